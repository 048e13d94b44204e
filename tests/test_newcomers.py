"""Ten tasks of users with logs and without a simulator: from their data to a policy that acts in their program."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from pendulum import empty_workplace
from test_formats import COLUMNS, assert_rows, d3rlpy, lerobot, no_ends, ogbench, robomimic, write_csv

import offlinerl
from offlinerl.cli import main, parser

FEW = ("--batch", "64", "--compile", "false")
UPDATES = dict(bc=200, xql=10)
RANKING = dict(updates=30, critics=2)


@pytest.fixture
def here(tmp_path):
    with empty_workplace(tmp_path) as folder:
        yield folder


class Robot:
    """The user's robot, which we do not have: a hand in a plane and a motor, which should reach the middle."""

    def __init__(self, seed):
        self.state = np.append(np.random.default_rng(seed).uniform(-2, 2, 2), 0).astype(np.float32)

    def move(self, action):
        """The reward: 1 when it has arrived."""
        self.state[:2] += 0.25 * np.clip(action, -1, 1)
        self.state[2] = np.abs(action).max()
        return float(np.linalg.norm(self.state[:2]) < 0.25)


def controlled(number, steps=8):
    """An episode with the user's noisy controller, T + 1 observations and T actions; not all arrive in time."""
    robot, rng = Robot(number), np.random.default_rng(100 + number)
    obs, rows = [robot.state.copy()], []
    while len(rows) < steps and not (rows and rows[-1][1]):
        action = np.clip(-1.5 * robot.state[:2] + 0.3 * rng.normal(size=2), -1, 1).astype(np.float32)
        rows.append((action, robot.move(action)))
        obs.append(robot.state.copy())
    action, reward = map(np.array, zip(*rows, strict=True))
    reward = reward.astype(np.float32)
    return dict(obs=np.stack(obs), action=action, reward=reward, terminated=reward > 0)


LOGS = [controlled(number) for number in range(40)]


def test_the_logs_have_both_ends_and_several_lengths():
    arrived = [bool(one["terminated"][-1]) for one in LOGS]
    assert 10 < sum(arrived) < 38 and len({len(one["reward"]) for one in LOGS}) > 5


def in_a_control_loop(file, steps=30, trials=10):
    """The share of trials in which the robot arrives with an exported policy, which does not use this package."""
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    session, arrived = onnxruntime.InferenceSession(str(file)), []
    for trial in range(trials):
        robot = Robot(1000 + trial)
        arrived.append(any(robot.move(session.run(["action"], {"obs": robot.state[None]})[0][0]) for _ in range(steps)))
    return float(np.mean(arrived))


def judge(run, ranking, rewards=True):
    """The results of two finished trainings, and the behaviour of the policies that they exported."""
    for agent in ("bc", "xql"):
        summary = json.loads(Path(run[agent], "summary.json").read_text())
        assert summary["last"] is None and summary["env"] is None
        assert summary["held_out"] and all(np.isfinite(of).all() for of in summary["held_out"].values())
    losses = np.genfromtxt(Path(run["bc"], "held_out.csv"), delimiter=",", names=True)["actor_loss"]
    assert losses[-1] < losses[0], "what it imitates it also foresees where it was not shown"
    assert ranking["method"]["name"] == "fqe" and ranking["tried"] == 2
    values = {Path(row["run"]).name: row["estimate"] for row in ranking["policies"]}
    assert np.isfinite([row["ci95"] for row in ranking["policies"]]).all()
    assert np.isfinite(list(values.values())).all()
    obs = np.concatenate([one["obs"] for one in LOGS[:3]])
    for agent in ("bc", "xql"):
        onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
        acted = onnxruntime.InferenceSession(f"{agent}.onnx").run(None, {"obs": obs})[0]
        np.testing.assert_allclose(acted, offlinerl.load_policy(run[agent])(obs), atol=1e-5)
    assert in_a_control_loop("bc.onnx") >= 0.8


def from_the_command_line(source, capsys, *reading, rewards=True, held=None):
    """Look at the data, train, rank and export on the command line; ``held`` is the data for ranking."""
    assert main(["datasets", "show", source, *reading]) == 0
    assert main(["datasets", "validate", source, *reading]) == 0
    for agent, updates in UPDATES.items():
        length = ["--updates", str(updates), "--eval-every", str(updates // 2)]
        assert main(["fit", agent, "--dataset", source, *reading, *FEW, *length, "--out", agent]) == 0
        said = capsys.readouterr().out
        assert "no environment is named" in said and "held out" in said
    short = [f"--{name}={value}" for name, value in RANKING.items()] + (["--dataset", held] if held else [])
    assert main(["select", "bc", "xql", *short, "--json", "ranking.json"]) == 0
    said = capsys.readouterr().out
    assert "2 policies tried, by fitted Q evaluation" in said and ("all rewards are 0" in said) != rewards
    for agent in UPDATES:
        assert main(["export", agent, "--onnx", f"{agent}.onnx"]) == 0
    judge(dict(bc="bc", xql="xql"), json.loads(Path("ranking.json").read_text()), rewards)


def from_python(data, **reading):
    """The same with the Python functions."""
    runs = {}
    for agent, updates in UPDATES.items():
        train = dict(updates=updates, eval_every=updates // 2, batch=64, compile=False)
        runs[agent] = offlinerl.fit(agent, data, over=dict(train=train), out=agent, **reading).folder
    ranking = offlinerl.select(list(runs.values()), offlinerl.load_dataset(data, **reading), **RANKING)
    for agent, run in runs.items():
        assert offlinerl.export(run, f"{agent}.onnx") == Path(f"{agent}.onnx")
    judge(runs, ranking)


def test_1_a_users_own_csv(here, capsys):
    write_csv(here / "robot.csv", LOGS, final=True)
    assert_rows(offlinerl.load_dataset("robot.csv", columns=COLUMNS), LOGS)
    Path("robot.csv.columns.yaml").unlink()
    assert main(["datasets", "show", "robot.csv", "--columns", *COLUMNS]) == 0  # given only this once
    from_the_command_line("robot.csv", capsys)


def test_2_demonstrations_of_robomimic(here, capsys):
    robomimic(here / "lift.hdf5", LOGS)
    reading = ["--subset", "train", "--obs-keys", "eef_pos,gripper"]
    chosen = offlinerl.load_dataset("lift.hdf5", subset="train", obs_keys=["eef_pos", "gripper"])
    assert_rows(chosen, LOGS[::2])
    from_the_command_line("lift.hdf5", capsys, *reading)


def test_3_trajectories_of_ogbench(here, capsys):
    assert_rows(offlinerl.load_dataset(ogbench(here / "cube.npz", LOGS)), no_ends(LOGS))
    from_the_command_line("cube.npz", capsys, rewards=False)


@pytest.mark.parametrize("version", ["v3.0", "v2.1"], ids=["4_v3", "5_v2"])
def test_recordings_of_lerobot(here, capsys, version):
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    assert_rows(offlinerl.load_dataset(lerobot(here / "so100", version, LOGS)), LOGS, final=False)
    from_the_command_line("so100", capsys)


def test_6_a_buffer_of_d3rlpy(here, capsys):
    assert_rows(offlinerl.load_dataset(d3rlpy(here / "replay.h5", LOGS)), LOGS, final=False)
    from_the_command_line("replay.h5", capsys)


def test_7_a_frame_of_pandas(here):
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    frame = pandas.read_csv(write_csv(here / "log.csv", LOGS, final=True))
    assert_rows(offlinerl.load_dataset(frame, columns=COLUMNS), LOGS)
    from_python(frame, columns=COLUMNS)


def test_8_arrays_of_numpy(here):
    rows = {name: np.concatenate([one[name] for one in LOGS]) for name in ("action", "reward", "terminated")}
    obs, after = (np.concatenate([one["obs"][part] for one in LOGS]) for part in (slice(-1), slice(1, None)))
    ends = np.concatenate([np.arange(len(one["reward"])) == len(one["reward"]) - 1 for one in LOGS])
    arrays = dict(obs=obs, next_obs=after, truncated=ends & ~rows["terminated"], **rows)
    assert_rows(offlinerl.load_dataset(arrays), LOGS)
    from_python(arrays)


def test_9_a_folder_with_one_file_per_day(here, capsys):
    (here / "logs").mkdir()
    for day in range(8, 12):  # 10 comes after 9
        write_csv(here / f"logs/day_{day}.csv", LOGS[10 * (day - 8) : 10 * (day - 7)], final=True)
    assert main(["datasets", "show", "logs", "--columns", *COLUMNS]) == 0
    assert_rows(offlinerl.load_dataset("logs"), LOGS)
    from_the_command_line("logs", capsys)


def test_10_training_on_good_episodes_of_two_files_and_ranking_on_others(here, capsys):
    robomimic(here / "monday.hdf5", LOGS[:25]), robomimic(here / "tuesday.hdf5", LOGS[25:])
    assert main(["datasets", "merge", "monday.hdf5", "tuesday.hdf5", "--out", "week.hdf5"]) == 0
    assert_rows(offlinerl.load_dataset("week.hdf5"), LOGS)
    assert main(["datasets", "filter", "week.hdf5", "--success", "--out", "good.hdf5"]) == 0
    good = [one for one in LOGS if one["terminated"][-1]]
    assert_rows(offlinerl.load_dataset("good.hdf5"), good)
    assert main(["datasets", "split", "good.hdf5", "--share", "0.8", "--out", "train.hdf5", "test.hdf5"]) == 0
    parts = [offlinerl.load_dataset(f"{part}.hdf5") for part in ("train", "test")]
    assert sum(len(part.episode_starts) for part in parts) == len(good)
    from_the_command_line("train.hdf5", capsys, held="test.hdf5")


def test_a_file_is_exported_by_its_name(here):
    arrays = dict(obs=np.zeros((4, 3)), action=np.zeros((4, 1)), reward=np.zeros(4), terminated=np.arange(4) == 3)
    train = dict(updates=2, eval_every=2, batch=4, compile=False, held_out=0.0)
    run = offlinerl.fit("bc", arrays, over=dict(train=train))
    with pytest.raises(offlinerl.UserError, match=r"policy.zip must end in .onnx, .pt or .safetensors"):
        offlinerl.export(run.folder, "policy.zip")
    loaded = offlinerl.load_policy(offlinerl.export(run.folder, "policy.safetensors"))
    np.testing.assert_array_equal(loaded(np.ones(3)), run.policy(np.ones(3)))
    assert offlinerl.export(run.folder, "policy.pt", seed=0).is_file()


def test_seeds_may_be_a_range():
    assert parser().parse_args(["fit", "bc", "--seeds", "0-4,7"]).seeds == [0, 1, 2, 3, 4, 7]
    with pytest.raises(SystemExit):
        parser().parse_args(["fit", "bc", "--seeds", "4-0"])


@pytest.mark.parametrize("kind", ["csv", "hdf5", "arrays"])
def test_a_success_only_in_the_last_row_is_not_lost_without_notice(here, kind, capsys):
    logs = [dict(x=np.arange(5.0) + n, u=np.full(5, 0.1), success=1 * (np.arange(5) == 4)) for n in range(3)]
    columns = {name: np.concatenate([log[name] for log in logs]).astype(np.float32) for name in logs[0]}
    run, last = np.repeat(np.arange(3), 5), np.tile(np.arange(5) == 4, 3)
    said = "3 rewards other than 0 went with last steps that are left out"
    if kind == "arrays":
        data = dict(
            obs=columns["x"], action=columns["u"], reward=columns["success"], truncated=last, terminated=0 * last
        )
        offlinerl.fit("bc", data, over=dict(train=dict(updates=2, compile=False)))
        assert said in capsys.readouterr().out
        whole = offlinerl.load_dataset({**data, "terminated": last})
        assert whole.reward.sum() == 3 and "rewards_dropped" not in whole.provenance
        return
    if kind == "csv":
        source = Path("logs.csv")
        rows = zip(columns["x"], columns["u"], columns["success"], run, strict=True)
        source.write_text("x,u,success,run\n" + "".join(f"{x},{u},{s},{n}\n" for x, u, s, n in rows))
        reading = ["--columns", "obs=x", "action=u", "reward=success", "episode=run"]
    else:
        source, reading = Path("logs.hdf5"), []
        with h5py.File(source, "w") as file:
            given = dict(observations=columns["x"][:, None], actions=columns["u"][:, None], rewards=columns["success"])
            for name, column in (given | dict(terminals=0 * last, timeouts=last)).items():
                file[name] = column
    assert main(["datasets", "validate", str(source), *reading]) == 0
    assert said in " ".join(capsys.readouterr().out.split())
    assert main(["datasets", "show", str(source)]) == 0, "the mapping was written by the first command"
    assert said in " ".join(capsys.readouterr().out.split())
