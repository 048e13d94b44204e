"""TD3+BC against its equations, and from a dataset to a table."""

import copy
import json
from pathlib import Path

import numpy as np
import torch
from pendulum import empty_workplace, rows

import offlinerl
from offlinerl.agents.td3bc import TD3BC
from offlinerl.cli import main
from offlinerl.experience.ring import Replay
from offlinerl.experience.table import Table
from offlinerl.training import build


def test_the_actors_loss_by_hand(spec, source_of):
    agent = TD3BC(spec, (0, 1), hidden=(8,), alpha=3.0)
    batch = source_of((0, 1)).draw(1)
    batch = type(batch)(*(x if x is None else x[0] for x in batch))
    found = agent.actor_loss(batch)
    for s in (0, 1):
        alone = copy.deepcopy(agent)
        action = alone.actor(batch.obs)[s]
        q = alone.critic(batch.obs, alone.actor(batch.obs))[s, 0]
        meant = ((action - batch.action[s]) ** 2).mean(-1) - 3.0 / q.abs().mean() * q
        torch.testing.assert_close(found[s], meant)
    found.mean(-1).sum().backward()
    scaled = agent.actor.net.layers[0].weight.grad
    agent.zero_grad()
    action = agent.actor(batch.obs)
    q = agent.critic(batch.obs, action)[:, 0]
    fixed = 3.0 / q.abs().mean(-1, keepdim=True).detach()  # no gradient flows through the scale
    (((action - batch.action) ** 2).mean(-1) - fixed * q).mean(-1).sum().backward()
    torch.testing.assert_close(agent.actor.net.layers[0].weight.grad, scaled)


def test_it_trains_on_collected_data_and_appears_in_reports(tmp_path, capsys):
    few = ["--updates", "4", "--eval-every", "4", "--eval-episodes", "1", "--final-episodes", "1", "--batch", "8"]
    with empty_workplace(tmp_path):
        assert (
            main(["collect", "random", "--env", "Pendulum-v1", "--episodes", "2", "--dataset", "some/random-v0"]) == 0
        )
        for agent in ("bc", "xql", "td3bc"):
            fit = ["fit", agent, "--dataset", "some/random-v0", *few, "--compile", "false", "--out", agent]
            assert main(fit) == 0
        assert main(["fit", "bc", "--dataset", "some/random-v0", *few, "--train.top", "0.5", "--out", "top"]) == 0
        assert "200 transitions in 1 episode," in capsys.readouterr().out, "the better one of two"
        for rule in ("none", "hundredfold"):
            argv = ["fit", "td3bc", "--dataset", "some/random-v0", *few, "--compile", "false", "--log-every", "4"]
            assert main([*argv, "--train.reward", rule, "--out", rule]) == 0
        losses = [float(rows(Path(rule, "metrics.csv"))[-1]["critic_loss"]) for rule in ("none", "hundredfold")]
        assert losses[1] > 1_000 * losses[0], "of errors nearly a hundred times as large, squared"
        assert json.loads(Path("td3bc/summary.json").read_text())["updates"] == 4
        capsys.readouterr()
        assert main(["report", "bc", "xql", "td3bc"]) == 0
        table = capsys.readouterr().out
    assert all(agent in table for agent in ("bc", "xql", "td3bc"))


def test_truncated_episodes_may_count_as_terminated(tmp_path, monkeypatch):
    rng, cut = np.random.default_rng(0), np.arange(12) % 4 == 3
    obs = rng.normal(size=(13, 3))
    arrays = dict(
        obs=obs[:-1], next_obs=obs[1:], action=rng.uniform(-1, 1, (12, 2)), reward=obs[1:, 0], terminated=cut & False,
        truncated=cut,
    )  # fmt: skip
    seen, of = [], Table.of.__func__
    monkeypatch.setattr(Table, "of", classmethod(lambda cls, *given: seen.append(of(cls, *given)) or seen[-1]))
    few = dict(updates=1, eval_every=1, batch=4, compile=False, held_out=0)
    for ends in (False, True):
        train = few | dict(terminal_ends=ends)
        offlinerl.fit("td3bc", arrays, over=dict(train=train), out=tmp_path / str(ends))
    discounts = [table.transitions(torch.arange(len(table))).discount for table in seen]
    assert (discounts[0] > 0).all() and (discounts[1] == 0).tolist() == cut.tolist()


def test_in_fine_tuning_truncations_may_be_terminal_and_all_updates_decide_on_compiling(tmp_path, monkeypatch):
    added, asked, add = [], [], Replay.add
    monkeypatch.setattr(Replay, "add", lambda self, step: added.append(step) or add(self, step))
    monkeypatch.setattr(build, "wants_compile", lambda setting, updates: asked.append(updates))
    few = dict(updates=2, online_steps=205, eval_every=207, eval_episodes=1, final_episodes=1, batch=4)
    with empty_workplace(tmp_path):
        argv = ["collect", "random", "--env", "Pendulum-v1", "--episodes", "2", "--dataset", "some/random-v0"]
        assert main(argv) == 0
        for ends in (False, True):
            train = few | dict(terminal_ends=ends)
            offlinerl.fit("td3bc", "some/random-v0", seeds=[0], over=dict(agent=dict(hidden=[8]), train=train))
    ends = [bool(step.terminated.all()) for step in added if step.last.all()]
    assert ends == [False, True] and asked == [207, 207]


def test_the_best_episodes_are_chosen_by_the_stored_rewards(tmp_path, capsys):
    """With a cost per step, a failure that was truncated early would look better than a longer success."""
    reward = np.array([0, 0, 0, 0, 1.0, 0, 0])
    arrays = dict(
        obs=np.arange(7.0)[:, None], next_obs=np.arange(1, 8.0)[:, None], action=np.zeros((7, 1)), reward=reward,
        terminated=reward > 0, truncated=np.arange(7) == 6,
    )  # fmt: skip
    train = dict(updates=1, eval_every=1, batch=4, compile=False, held_out=0, top=0.5, reward="minus_one")
    offlinerl.fit("bc", arrays, over=dict(train=train), out=tmp_path / "run")
    assert "5 transitions in 1 episode" in capsys.readouterr().out
