"""On a GPU: an update recorded as a CUDA graph equals the eager one, and runs resume bit for bit."""

import json

import numpy as np
import pytest
import torch
from test_goals import ACTING, Parted, brief

import offlinerl
from offlinerl import agents, benchmark
from offlinerl.agents import checkpoint
from offlinerl.util.trees import tree_map

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
CUDA = torch.device("cuda")


def trained(name: str, compile: bool, seeds=(0, 1), blocks: int = 2):
    """An agent after two blocks, their metrics, and the changes of its tensors."""
    agent = benchmark.build(name, seeds, CUDA, compile, 32)
    source = benchmark.synthetic_source(agent, 32)
    before = weights(agent)
    for _ in range(blocks):
        metrics, _ = agent.learn(source.draw(4))
    return agent, metrics, {key: value - before[key] for key, value in weights(agent).items()}


def weights(agent):
    return {name: value.double().cpu() for name, value in agent.state_dict().items() if value.is_floating_point()}


def assert_near(found, expected, error=0.02):
    """Compare changes with a tolerance: where a gradient is nearly zero, Adam may step in either direction."""
    for key, value in expected.items():
        assert (found[key] - value).norm() <= error * value.norm() + 1e-9, key


@pytest.mark.parametrize("name", ["xql", "iql", "bc", "td3", "sac", "cql", "calql", "edac", "dqn", "d4pg", "ppo", "dt"])
def test_recorded_equals_eager(name):
    (eager, expected, way), (recorded, found, moved) = (trained(name, compile) for compile in (False, True))
    assert eager.updates == recorded.updates
    assert_near(moved, way)
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=2e-2, atol=2e-3)


def test_goals_are_chosen_on_the_gpu(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    few = dict(goals="future", device="cuda", seeds=(0, 1))
    for run in (brief("iql", **few), offlinerl.fit("sac", env=Parted, **ACTING | dict(steps=300), **few)):
        assert run.agent.device.type == "cuda"
        assert all(np.isfinite(values).all() for values in run.metrics.values())


def test_a_seed_learns_the_same_alone_on_the_gpu():
    (*_, both), (*_, alone) = trained("xql", True), trained("xql", True, (1,))
    assert_near({key: both[key][1:] for key in alone}, alone)


def test_the_gpu_agrees_with_the_cpu():
    """For an agent that draws no random numbers, because they differ between devices."""
    here, there = (benchmark.build("ddpg", (0,), device, False, 32) for device in (torch.device("cpu"), CUDA))
    before, block = weights(here), benchmark.synthetic_source(here, 32).draw(6)
    here.learn(block)
    there.learn(tree_map(lambda x: x.to(CUDA), block))
    ways = [{key: value - before[key] for key, value in weights(agent).items()} for agent in (here, there)]
    assert_near(*ways)


def test_runs_resume_bit_for_bit(tmp_path):
    def run(updates, **where):
        train = dict(eval_every=50, eval_episodes=1, final_episodes=1, batch=32, compile=True, updates=updates)
        over = dict(agent=dict(decay_steps=150), train=train)
        return offlinerl.fit("xql", "kitchen", device=CUDA.type, over=over, **where)

    whole = run(150, out=tmp_path / "whole", seeds=[0, 1])
    run(100, out=tmp_path / "halves", seeds=[0, 1])
    halves = offlinerl.fit(resume=tmp_path / "halves", over=dict(train=dict(updates=150)), device=CUDA.type)
    ends = [checkpoint.read(run.folder / "last.ckpt")["state_dict"] for run in (whole, halves)]
    for key, value in ends[0].items():
        assert torch.equal(value, ends[1][key]), key
    assert whole.scores["per_seed"] == halves.scores["per_seed"]
    obs = np.zeros((3, 60), np.float32)
    here, there = (offlinerl.load_policy(whole.folder, device=device)(obs) for device in ("cpu", CUDA.type))
    np.testing.assert_allclose(there, here, atol=1e-4)


@pytest.mark.parametrize("name", ["sac", "td3", "dqn", "ppo"])
def test_agents_act_and_learn(name, tmp_path):
    env = "CartPole-v1" if agents.get(name).discrete else "Pendulum-v1"
    train = dict(steps=1024, eval_every=512, eval_episodes=2, final_episodes=2, compile=True)
    train |= dict(batch=512) if name == "ppo" else dict(warm_up=100, batch=32)
    run = offlinerl.fit(name, env=env, device=CUDA.type, out=tmp_path / "run", over=dict(train=train))
    assert np.isfinite(run.scores["mean"])
    assert json.loads((run.folder / "summary.json").read_text())["steps"] == 1024


@pytest.mark.parametrize("name", ["sac", "ppo"])
def test_runs_that_act_resume(name, tmp_path):
    """From the states of their environments, in the middle of an episode."""

    def train(steps):
        own = dict(batch=512) if name == "ppo" else dict(warm_up=100, batch=32)
        few = dict(eval_every=512, eval_episodes=2, final_episodes=2, compile=False)
        return dict(train=few | own | dict(steps=steps))

    offlinerl.fit(name, env="Pendulum-v1", device=CUDA.type, out=tmp_path / "run", over=train(512))
    run = offlinerl.fit(resume=tmp_path / "run", device=CUDA.type, over=dict(train=dict(steps=1024)))
    assert np.isfinite(run.scores["mean"]) and run.summary["steps"] == 1024
