"""What a person does who comes with logs and no simulator: one file, one command, one policy that acts."""

import json
from pathlib import Path

import numpy as np
import pytest
from pendulum import empty_workplace
from test_formats import lerobot, ogbench, robomimic, write_csv

import offlinerl
from offlinerl.cli import main, parser

O, A, T = 3, 2, 30
FLAGS = ("--batch", "32", "--compile", "false", "--eval-every")
UPDATES = dict(bc=400, xql=20)


@pytest.fixture
def here(tmp_path):
    with empty_workplace(tmp_path) as folder:
        yield folder


def act(obs):
    """How the person's own controller acts."""
    return np.stack([np.tanh(obs[..., 0] - obs[..., 1]), 0.5 * np.sin(obs[..., 2])], -1)


def logs(count=12):
    """Episodes of that controller, which succeeds in every other one."""
    episodes = []
    for number in range(count):
        rng = np.random.default_rng(100 + number)
        obs = rng.normal(size=(T + 1, O)).astype(np.float32)
        end = (np.arange(T) == T - 1) & bool(number % 2)
        action = act(obs[:-1]).astype(np.float32)
        episodes.append(dict(obs=obs, action=action, reward=end.astype(np.float32), terminated=end))
    return episodes


def own_csv(here):
    write_csv(here / "robot.csv", logs(), final=True)
    return "robot.csv", ["--columns", "obs=x,y,angle", "action=u,v", "reward=r", "terminated=ended", "episode=run"]


def robomimic_file(here):
    return str(robomimic(here / "lift.hdf5", logs())), ["--subset", "train", "--obs-keys", "eef_pos,gripper"]


def ogbench_file(here):
    return str(ogbench(here / "cube.npz", logs())), []


def lerobot_folder(here):
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    return str(lerobot(here / "so100", "v3.0", logs(8))), []


@pytest.mark.parametrize(
    "data", [own_csv, robomimic_file, ogbench_file, lerobot_folder], ids=lambda made: made.__name__
)
def test_from_a_file_to_a_policy_that_acts_from_another_file(data, here, capsys):
    source, more = data(here)
    assert main(["datasets", "show", source, *more]) == 0
    shown = capsys.readouterr().out
    assert "episodes" in shown and Path("robot.png" if "csv" in source else f"{Path(source).stem}.png").is_file()
    assert main(["datasets", "validate", source]) == 0
    for agent in ("bc", "xql"):
        assert main(["fit", agent, "--dataset", source, *more, *FLAGS, str(UPDATES[agent] // 2),
                     "--updates", str(UPDATES[agent]), "--out", agent]) == 0  # fmt: skip
        said = capsys.readouterr().out
        assert "no environment is named" in said and "held out" in said
        summary = json.loads(Path(agent, "summary.json").read_text())
        assert summary["last"] is None and all(np.isfinite(of).all() for of in summary["held_out"].values())
        obs = logs(14)[13]["obs"]  # what no data showed
        policy = offlinerl.load_policy(agent)
        if agent == "bc":
            error = np.abs(policy(obs) - act(obs)).mean()
            assert error < 0.5 * np.abs(act(obs)).mean(), "it acts much as the person's controller does"
            losses = np.genfromtxt(Path(agent, "held_out.csv"), delimiter=",", names=True)["actor_loss"]
            assert losses[-1] < losses[0]
        onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
        assert main(["export", agent, "--onnx", f"{agent}.onnx"]) == 0
        acted = onnxruntime.InferenceSession(f"{agent}.onnx").run(None, {"obs": obs})[0]
        np.testing.assert_allclose(acted, policy(obs), atol=1e-5)


def test_seeds_may_be_a_range():
    assert parser().parse_args(["fit", "bc", "--seeds", "0-4,7"]).seeds == [0, 1, 2, 3, 4, 7]
    with pytest.raises(SystemExit):
        parser().parse_args(["fit", "bc", "--seeds", "4-0"])
