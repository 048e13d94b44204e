"""The agents for fixed datasets whose actions are discrete, against their equations, and on a task that they solve."""

import copy

import numpy as np
import pytest
import torch

import offlinerl
from offlinerl import agents
from offlinerl.experience.sources import OfflineData
from offlinerl.experience.table import Table
from offlinerl.types import Batch, Spec
from offlinerl.util.errors import UserError
from offlinerl.util.trees import tree_map

NAMES = ("bc", "xql", "iql", "onestep", "dqn", "discrete_cql")
COUNT = 3
CHOICES = Spec(5, 1, (0.0,), (2.0,), COUNT)


def bandit(rows=2000, seed=0):
    """One-step episodes: the reward is 1 for the action that the observation, one of three unit vectors, names, and the
    logged actions are half random and half action 0."""
    rng = np.random.default_rng(seed)
    named, action = rng.integers(COUNT, size=rows), rng.integers(COUNT, size=rows) * (rng.random(rows) < 0.5)
    ends = np.ones(rows, bool)
    return dict(obs=np.eye(COUNT)[named], action=action, reward=(named == action) * 1.0, terminated=ends)


def batch_of(agent, rows=12):
    rng = np.random.default_rng(1)
    obs, next_obs = (torch.from_numpy(rng.normal(size=(len(agent.seeds), rows, 5))).float() for _ in range(2))
    action = torch.from_numpy(rng.integers(COUNT, size=(len(agent.seeds), rows, 1))).float()
    reward, discount = (torch.from_numpy(rng.random((len(agent.seeds), rows))).float() for _ in range(2))
    return Batch(obs, action, reward, discount, next_obs, torch.zeros_like(reward))


def losses_of(agent, batch, monkeypatch):
    """The per-sample losses that an update minimises, by name, without its steps."""
    found = {}

    def descend(name, loss, max_norm=None):
        found[name] = loss.detach()
        return loss.detach().flatten(1).mean(-1)

    monkeypatch.setattr(agent, "descend", descend)
    agent.update(batch, agent.draw(batch.action.shape[1]), 0)
    return found


@pytest.mark.parametrize("name", ["bc", "iql", "xql"])
def test_the_losses_of_the_cloning_agents_by_hand(name, monkeypatch):
    agent = agents.get(name)(CHOICES, (3, 8), hidden=(16,))
    batch, start = batch_of(agent), copy.deepcopy(agent)
    if name != "bc":
        with torch.no_grad():
            for p in agent.target.parameters():
                p.mul_(1.2)
        start = copy.deepcopy(agent)
    found = losses_of(agent, batch, monkeypatch)
    for s in range(2):
        logits = start.actor.net(start.actor.encoder(batch.obs))[s]
        log_prob = logits.log_softmax(-1).gather(-1, batch.action[s].long()).squeeze(-1)
        if name == "bc":
            torch.testing.assert_close(found["actor"][s], -log_prob)
            continue
        q = start.target.net(batch.obs.unsqueeze(1).expand(-1, 2, -1, -1))[s]  # [N, B, actions]
        q = q.gather(-1, batch.action[s].long().expand(2, -1, -1)).squeeze(-1).min(0).values
        value, following = start.value(batch.obs)[s], start.value(batch.next_obs)[s]
        weight = torch.exp(agent.config.temperature * (q - value)).clamp(max=100)
        torch.testing.assert_close(found["actor"][s], -weight * log_prob)
        own = start.critic.net(batch.obs.unsqueeze(1).expand(-1, 2, -1, -1))[s]
        own = own.gather(-1, batch.action[s].long().expand(2, -1, -1)).squeeze(-1)
        error = batch.reward[s] + batch.discount[s] * following - own
        torch.testing.assert_close(found["critic"][s], start.critic_loss(error.unsqueeze(0))[0])
        torch.testing.assert_close(found["value"][s], start.value_loss((q - value).unsqueeze(0))[0])


def test_discrete_cql_by_hand(monkeypatch):
    agent = offlinerl.DiscreteCQL(CHOICES, (3, 8), hidden=(16,), alpha=2.0)
    with torch.no_grad():
        for p in agent.target.parameters():
            p.mul_(1.2)
    batch, start = batch_of(agent), copy.deepcopy(agent)
    found = losses_of(agent, batch, monkeypatch)["q"]
    for s in range(2):
        for b in range(batch.action.shape[1]):
            values, following = start.q(batch.obs)[s, b], start.q(batch.next_obs)[s, b]
            best = int(following.argmax())
            target = batch.reward[s, b] + batch.discount[s, b] * start.target(batch.next_obs)[s, b, best]
            q = values[int(batch.action[s, b])]
            u = (target - q).abs()
            huber = u.square() / 2 if u <= 1 else u - 0.5
            torch.testing.assert_close(found[s, b], (huber + 2 * (values.exp().sum().log() - q)).detach())
    assert offlinerl.DQN(CHOICES, (0,), hidden=(8,)).further_terms(torch.zeros(1, 2, 3), torch.zeros(1, 2)) == {}


@pytest.mark.parametrize("name", NAMES)
def test_stacked_seeds_equal_seeds_alone(name):
    data = offlinerl.load_dataset(bandit() | dict(obs=np.random.default_rng(0).normal(size=(2000, 5))))

    def trained(*seeds):
        agent = agents.get(name)(CHOICES, seeds, hidden=(16, 16)).double()
        agent.learn(tree_map(lambda x: x.double(), OfflineData(Table.of(agent, data), agent.seeds, 16, 4).draw()))
        return agent

    stack = trained(3, 1)
    for s, seed in enumerate((3, 1)):
        for (key, p), q in zip(stack.named_parameters(), trained(seed).parameters(), strict=True):
            torch.testing.assert_close(p[s], q[0], rtol=0, atol=1e-9, msg=f"{key} of seed {seed}")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("first", [0, 4])
def test_the_best_action_is_found_in_mixed_data(name, first, tmp_path):
    arrays = bandit()
    arrays["action"] = arrays["action"] + first
    settings = dict(hidden=[32], lr=3e-3) | (dict(temperature=5.0) if name in ("xql", "iql", "onestep") else {})
    settings |= dict(xql=dict(beta=0.2), discrete_cql=dict(alpha=0.1)).get(name, {})
    over = dict(train=dict(updates=400, batch=128, compile=False), agent=settings)
    run = offlinerl.fit(name, arrays, out=tmp_path / "run", over=over)
    chosen = run.policy(np.eye(COUNT, dtype=np.float32))
    assert chosen.dtype == np.int64
    assert chosen.tolist() == ([first] * COUNT if name == "bc" else [first, first + 1, first + 2])


@pytest.mark.parametrize("name", ["bc", "xql"])
def test_probabilities_sum_to_one_and_samples_follow_them(name):
    agent = agents.get(name)(CHOICES, (0,), hidden=(8,))
    agent.explore_in(range(500))
    obs = torch.tensor([0.3, -1.0, 2.0, 0.0, 1.0]).expand(1, 500, -1)
    with torch.no_grad():
        every = [agent.log_prob(obs, torch.full((1, 500, 1), float(i)))[0, 0].exp() for i in range(COUNT)]
        drawn = torch.cat([agent.act(obs, explore=True) for _ in range(20)]).flatten()
        assert agent.act(obs)[0, 0].item() == int(torch.stack(every).argmax())
    assert sum(every).item() == pytest.approx(1)
    shares = [(drawn == i).double().mean().item() for i in range(COUNT)]
    assert shares == pytest.approx([p.item() for p in every], abs=0.02)


def test_random_actions_are_choices_and_noise_on_them_is_refused():
    agent = offlinerl.XQL(CHOICES, (0, 1), hidden=(8,), random_actions=3)
    random = agent.draw(50)["random"]
    assert random.shape == (2, 150, 1) and set(random.flatten().tolist()) == {0.0, 1.0, 2.0}
    metrics, _ = agent.learn(tree_map(lambda x: x.unsqueeze(0), batch_of(agent)))
    assert all(value.isfinite().all() for value in metrics.values())
    with pytest.raises(UserError, match="action_noise is added to vectors, but the actions are discrete"):
        offlinerl.XQL(CHOICES, (0,), action_noise=0.1)


def test_continuous_actions_are_refused_by_discrete_cql():
    with pytest.raises(UserError, match="DiscreteCQL does not support continuous actions"):
        offlinerl.DiscreteCQL(offlinerl.Spec(3, 2, (-1.0,) * 2, (1.0,) * 2))
