"""Policies as small files: they act like the checkpoint and describe how they were trained."""

import json
import struct

import numpy as np
import pendulum
import pytest
import torch
from conftest import ACTING
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import offlinerl
from offlinerl.agents import get, shipped
from offlinerl.agents.sac import SAC
from offlinerl.cli import main
from offlinerl.training import export
from offlinerl.types import Leaf, Spec

FAST = (
    "--compile", "false", "--batch", 16, "--agent.hidden", "[16,16]", "--train.warm_up", 100, "--eval-every", 200,
    "--eval-episodes", 1, "--final-episodes", 1, "--train.steps_per_update", 4,
)  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two seeds that learned for two episodes."""
    with pendulum.empty_workplace(tmp_path_factory.mktemp("run")) as folder:
        out = folder / "runs/sac"
        assert pendulum.fit("sac", "--env", "Pendulum-v1", "--seeds", "3,5", "--steps", 400, *FAST, "--out", out) == 0
        assert main(["export", str(out), "--safetensors", "swing.safetensors", "--seed", "5", "--episodes", "3"]) == 0
        yield folder


@pytest.fixture
def here(run, monkeypatch):
    monkeypatch.chdir(run)
    return run


def test_a_policy_acts_as_its_checkpoint_does(here):
    obs = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    policy, whole = (offlinerl.load_policy(path, 5) for path in ("swing.safetensors", "runs/sac"))
    np.testing.assert_array_equal(policy(obs), whole(obs))
    assert policy.agent.seeds == (5,) and not np.allclose(policy(obs), offlinerl.load_policy("runs/sac", 3)(obs))
    seen = torch.from_numpy(obs)[None, :4]
    for one in (policy.agent, whole.agent):
        one.explore_in(range(4))
        one.begin(np.ones((1, 4), bool), np.zeros((1, 4), int))
    torch.testing.assert_close(policy.agent.act(seen, True), whole.agent.act(seen, True), rtol=0, atol=0)


def test_it_holds_only_the_actor_and_its_history(here):
    with safe_open("swing.safetensors", "np") as file:
        assert {name.split(".")[0] for name in file.keys()} == {"actor"}  # noqa: SIM118
        assert sum(file.get_tensor(name).size for name in file.keys()) == 3 * 16 + 16 + 16 * 16 + 16 + 16 * 2 + 2  # noqa: SIM118
    about, _ = shipped.read("swing.safetensors")
    assert about["agent"] == "offlinerl.agents.sac:SAC" and about["settings"]["hidden"] == [16, 16]
    assert (about["seed"], about["steps"]) == (5, 400) and about["task"]["env"] == {"id": "Pendulum-v1"}
    assert about["training"]["train"]["warm_up"] == 100 and about["training"]["fit"]["seeds"] == [3, 5]
    rows = [row for row in pendulum.rows(here / "runs/sac/evaluations.csv") if row["seed"] == "5"]
    assert about["curve"] == [[int(row["step"]), round(float(row["return"]), 3)] for row in rows]
    assert [at for at, _ in about["curve"]] == [200, 400]
    again = offlinerl.evaluate("swing.safetensors", episodes=3)
    assert again["updates"] == about["updates"] == 75 and offlinerl.load_policy("swing.safetensors").agent.steps == 400
    assert about["measured"]["mean_return"] == pytest.approx(again["mean_return"]) and about["versions"]["torch"]
    assert again["mean_return"] == pytest.approx(offlinerl.evaluate("runs/sac", episodes=3)["per_seed"][1])


def test_the_curve_uses_the_unit_that_its_run_counts(tmp_path):
    (tmp_path / "evaluations.csv").write_text(
        "update,step,seed,return\n10,0,3,1\n10,0,3,2\n20,0,3,4\n25,5,3,7\n25,5,4,9\n30,10,3,8\n"
    )
    for train, curve in ((dict(updates=20, online_steps=10), [[10, 1.5], [20, 4.0], [25, 7.0]]),
                         (dict(steps=10), [[0, 2.333], [5, 7.0]])):  # fmt: skip
        (tmp_path / "config.yaml").write_text(json.dumps(dict(fit={}, agent={}, train=train)))
        assert export.trained(tmp_path, dict(seed=3), updates=25, steps=5)["curve"] == curve


def test_it_can_collect(here, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(here / "minari"))
    argv = ["collect", "swing.safetensors", "--env", "Pendulum-v1", "--episodes", "2", "--dataset", "swing/mine-v0"]
    assert main(argv) == 0


SPEC, CHOICES = Spec(5, 2, (-1.0, -1.0), (1.0, 1.0)), Spec(5, 1, (0.0,), (2.0,), num_actions=3)


@pytest.mark.parametrize("name", ACTING)
def test_every_agent_acts_with_only_the_written_weights(name, tmp_path):
    """An agent of another seed acts the same after loading only the written weights."""
    kind = get(name)
    spec = CHOICES if kind.discrete else SPEC
    agent, other = kind(spec, (0,)).eval(), kind(spec, (1,)).eval()
    path = shipped.write(agent, tmp_path / "p.safetensors", {})
    _, weights = shipped.read(path)
    shipped.fill(other, weights, path)
    other.seeds = agent.seeds
    obs = torch.randn(1, 4, 5, generator=torch.Generator().manual_seed(0))
    for explore in (False, True):
        acted = []
        for one in (agent, other):
            one.explore_in(range(4))
            one.begin(np.ones((1, 4), bool), np.zeros((1, 4), int))
            with torch.no_grad():
                acted.append(one.act(obs, explore))
        torch.testing.assert_close(*acted, rtol=0, atol=0)
    assert 0 < len(weights) <= len(agent.state_dict())
    if name in ("sac", "td3", "xql", "ppo", "iql"):
        assert len(weights) < len(agent.state_dict())


def test_images_and_parts_are_kept(tmp_path):
    spec = Spec((Leaf("arm", (3,), "float32"), Leaf("eye", (36, 36, 3), "uint8")), 2, (-1.0,) * 2, (1.0,) * 2)
    path = shipped.write(SAC(spec, (0,)), tmp_path / "p.safetensors", {})
    obs = dict(arm=np.ones(3, np.float32), eye=np.full((36, 36, 3), 7, np.uint8))
    np.testing.assert_array_equal(offlinerl.load_policy(path)(obs), offlinerl.DeployedPolicy(SAC(spec, (0,)))(obs))


LIMITED = """
import resource, sys
from offlinerl.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
sys.exit(main(sys.argv[1:]))
"""


def test_a_full_disk_is_reported(here, tmp_path):
    """The operating system itself refuses to write; in a separate process."""
    argv = ["export", here / "runs/sac", "--safetensors", tmp_path / "p.safetensors", "--seed", 5, "--episodes", 1]
    process = pendulum.start_python(LIMITED, *argv, cwd=here)
    (line,) = process.communicate(timeout=100)[1].splitlines()
    assert process.returncode == 1 and "p.safetensors was not written, because the disk is full" in line
    assert not list(tmp_path.iterdir())


def test_mistakes_are_reported(here, refused, tmp_path):
    assert "seed 4" in refused("export", "runs/sac", "--safetensors", "x.safetensors", "--seed", 4)
    assert ".safetensors" in refused("export", "runs/sac", "--safetensors", "x.bin", "--episodes", 1)
    assert "overwrite" in refused("export", "runs/sac", "--safetensors", "swing.safetensors", "--episodes", 1)
    assert "no checkpoint" in refused("export", "nowhere", "--safetensors", "x.safetensors")
    fit = ("fit", "sac", "--env", "Pendulum-v1", *FAST, "--steps", 400, "--out", tmp_path / "run")
    assert "only a policy" in refused(*fit, "--init", "swing.safetensors")
    whole = (here / "swing.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:-8])
    assert "damaged" in refused("evaluate", tmp_path / "cut.safetensors")
    save_file(load_file(here / "swing.safetensors"), tmp_path / "plain.safetensors")
    assert "no policy of offlinerl" in refused("evaluate", tmp_path / "plain.safetensors")
    weights = load_file(here / "swing.safetensors")
    weights.popitem()
    length = struct.unpack("<Q", whole[:8])[0]
    stated = json.loads(whole[8 : 8 + length])["__metadata__"]
    save_file(weights, tmp_path / "less.safetensors", stated)
    assert "are not those of the agent" in refused("evaluate", tmp_path / "less.safetensors")
