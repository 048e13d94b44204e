"""The Decision Transformer: its inputs, its loss, and its memory while acting."""

import json
import math
from pathlib import Path

import counting
import numpy as np
import pytest
import torch
from conftest import SPEC, random_table

import offlinerl
from offlinerl.agents.dt import DT
from offlinerl.data.rewards import OnlineReward
from offlinerl.experience.sources import WindowData
from offlinerl.experience.table import Table
from offlinerl.types import Spec
from offlinerl.util.errors import UserError
from offlinerl.util.trees import tree_map

SMALL = dict(context=5, embedding=16, blocks=2, heads=2, longest=30, warm_up=0)


def windows(agent, batch=16, updates=4):
    return WindowData(Table.of(agent, random_table()), agent.seeds, batch, updates, length=agent.config.context)


def trained(*seeds, updates=4, ill=None, **settings):
    agent = DT(SPEC, seeds, **{**SMALL, **settings}).double()
    if ill is not None:
        with torch.no_grad():
            for p in agent.parameters():
                p[ill] = math.nan
    doubled = tree_map(lambda x: x.double() if x.is_floating_point() else x, windows(agent, updates=updates).draw())
    agent.learn(doubled)
    return agent


def test_stacked_seeds_equal_seeds_alone_and_a_diverged_one_changes_no_other():
    seeds = (3, 1, 4)
    stack, ill = trained(*seeds), trained(*seeds, ill=1)
    for s, seed in enumerate(seeds):
        for (name, p), q in zip(stack.named_parameters(), trained(seed).parameters(), strict=True):
            torch.testing.assert_close(p[s], q[0], rtol=0, atol=1e-9, msg=f"{name} of seed {seed}")
    for (name, p), q in zip(stack.named_parameters(), ill.parameters(), strict=True):
        assert torch.equal(p[0], q[0]) and torch.equal(p[2], q[2]), name


def test_the_embedding_must_be_a_multiple_of_the_heads():
    with pytest.raises(UserError, match="embedding must be a multiple of heads, which is 3, not 16"):
        DT(SPEC, embedding=16, heads=3)


def test_memory_holds_the_actions_that_the_environment_executed():
    agent = DT(Spec(3, 2, (0.0, 0.0), (1.0, 1.0), whole=True), (0,), **SMALL)
    for p in agent.model.parameters():
        torch.nn.init.normal_(p, 0, 0.3)
    for t in range(3):
        taken = agent.act(torch.full((1, 4, 3), float(t)))
        assert set(taken.flatten().tolist()) <= {0.0, 1.0}
        assert torch.equal(agent.memory.action[:, :, t], 2 * taken - 1)


def test_an_action_does_not_depend_on_later_inputs():
    agent = DT(SPEC, (0,), **SMALL)
    for p in agent.model.parameters():
        torch.nn.init.normal_(p, 0, 0.3)
    batch = tree_map(lambda x: x[0], windows(agent).draw(1))
    inputs = dict(obs=batch.obs, action=batch.action, to_go=batch.to_go, step=batch.step)
    start = agent.model(**inputs)
    for name, own in (("obs", True), ("to_go", True), ("action", False)):  # own: is the input of its own step used?
        changed = dict(inputs, **{name: inputs[name].clone()})
        changed[name][:, :, 2] += 1.0
        moved = (agent.model(**changed) - start).abs().amax((0, 1, 3))
        assert (moved[:2] == 0).all() and (moved[3:] > 0).all() and (moved[2] > 0) == own, name


def test_the_loss_ignores_positions_beyond_the_episode(monkeypatch):
    agent = DT(SPEC, (0, 1), **{**SMALL, "dropout": 0.0})
    batch = tree_map(lambda x: x[0], windows(agent, batch=64).draw(1))
    assert 0.5 < batch.mask.mean() < 1
    seen = []
    monkeypatch.setattr(agent, "descend", lambda name, loss, max_norm: seen.append(loss.detach()) or loss.mean(-1))
    agent.update(batch, {}, 0)
    scaled = batch.to_go / batch.largest[:, :1, None]
    action = agent.model(batch.obs, batch.action, scaled, batch.step).detach()
    for s in (0, 1):
        mask = batch.mask[s] == 1
        errors = ((action - batch.action)[s][mask] ** 2).mean(-1)
        torch.testing.assert_close(seen[0][s].mean(), errors.mean())
        best = random_table().episode_returns.max()
        assert agent.best[s].item() == pytest.approx(best), "of all episodes, whether drawn yet or not"
        assert best > batch.to_go[s][batch.step[s] == 0].max()


@pytest.mark.parametrize("asked", [None, 7.0])
def test_acting_applies_the_model_to_the_latest_steps(asked):
    """In two environments whose episodes begin at different times and are longer than the context."""
    agent = DT(SPEC, (0, 1), **SMALL, target_return=asked)
    agent.learn(windows(agent).draw())
    agent.explore_in(range(2))
    agent.task = dict(reward=list(OnlineReward(scale=2.0, shift=-1.0)))
    rng, starts = np.random.default_rng(0), np.array([[0, 3], [0, 3]])
    target = agent.best.detach().numpy() if asked is None else np.full((2, 1), asked)
    history = {lane: [] for lane in np.ndindex(2, 2)}
    for t in range(12):
        if (where := starts == t).any():
            agent.begin(where, np.zeros((2, 2), int))
        obs = torch.from_numpy(rng.normal(size=(2, 2, 5)).astype(np.float32))
        action, reward = agent.act(obs), rng.normal(size=(2, 2))
        agent.receive(reward)
        for (s, e), steps in history.items():
            if t < starts[s, e]:
                continue
            left = target[s, 0] if not steps else steps[-1][2] - (2 * steps[-1][3] - 1)
            steps.append((obs[s, e], action[s, e], left, reward[s, e], t - starts[s, e]))
            latest = steps[-5:]
            to_go = torch.tensor(np.float32([step[2] for step in latest])) / agent.scale[s]
            alone = agent.part(slice(s, s + 1)).model(
                torch.stack([step[0] for step in latest])[None, None],
                torch.stack([step[1] for step in latest])[None, None],
                to_go[None, None],
                torch.tensor([step[4] for step in latest])[None, None],
            )
            torch.testing.assert_close(action[s, e], alone[0, 0, -1], atol=1e-5, rtol=1e-4)


def test_it_reaches_the_requested_return():
    """Half of the episodes always do +0.5 for a reward of 1 a step, and half do -0.5 for none."""
    data = random_table(800)
    good = np.arange(800) // 20 % 2 == 0
    data.action[:], data.reward[:] = np.where(good, 0.5, -0.5)[:, None], good
    agent = DT(SPEC, (0,), **{**SMALL, "dropout": 0.0}, lr=1e-3)
    agent.learn(WindowData(Table.of(agent, data), (0,), 32, 200, length=5).draw())
    for asked, wanted in ((20.0, 0.5), (0.0, -0.5)):
        agent.best.data.fill_(asked)
        agent.begin(np.ones((1, 1), bool), np.zeros((1, 1), int))
        for _ in range(10):
            action = agent.act(torch.randn(1, 1, 5))
            assert (action - wanted).abs().max() < 0.25
            agent.receive(np.full((1, 1), asked / 20))


def test_a_run_evaluates_with_memory_resumes_and_is_deployed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    counting.register()
    rng = np.random.default_rng(0)
    lengths = 3 + np.arange(12) % 5
    arrays = dict(
        obs=np.concatenate([np.c_[np.full(n, i), np.arange(n), np.zeros(n)] for i, n in enumerate(lengths)]),
        action=rng.uniform(-1, 1, (lengths.sum(), 1)),
        reward=np.concatenate([1.0 + np.arange(n) for n in lengths]),
        terminated=np.concatenate([np.arange(n) == n - 1 for n in lengths]),
    )
    small = {name: value for name, value in SMALL.items() if name != "warm_up"}
    train = dict(updates=6, eval_every=3, eval_episodes=2, final_episodes=3, batch=8, compile=False)
    run = offlinerl.fit("dt", arrays, env=counting.ID, over=dict(agent=small, train=train), out=Path("run"))
    assert run.summary["updates"] == 6
    longer = offlinerl.fit(resume=Path("run"), dataset=arrays, over=dict(train=dict(updates=9)))
    straight = offlinerl.fit(
        "dt", arrays, env=counting.ID, over=dict(agent=small, train=dict(train, updates=9)), out=Path("straight")
    )
    assert longer.summary["last"]["per_seed"] == straight.summary["last"]["per_seed"]
    for p, q in zip(longer.agent.parameters(), straight.agent.parameters(), strict=True):
        assert torch.equal(p, q)
    policy = offlinerl.load_policy("run")
    policy.reset()
    first = policy(np.zeros(3))
    policy.receive(1.0)
    assert policy(np.zeros(3)).shape == first.shape == (1,)
    assert json.loads(Path("run/summary.json").read_text())["agent"] == "dt"
