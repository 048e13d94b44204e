"""AWAC, CQL, Cal-QL, EDAC, FQL, one-step RL and ReBRAC against their equations."""

import copy
import dataclasses
import math
from functools import partial

import numpy as np
import pytest
import torch
from conftest import SPEC, random_table

from offlinerl import agents
from offlinerl.agents.awac import AWAC
from offlinerl.agents.calql import CalQL
from offlinerl.agents.cql import CQL
from offlinerl.agents.edac import EDAC
from offlinerl.agents.fql import FQL, fixed_noise
from offlinerl.agents.onestep import OneStep
from offlinerl.agents.rebrac import ReBRAC
from offlinerl.data import registry
from offlinerl.data.dataset import Dataset
from offlinerl.experience.ring import Replay
from offlinerl.experience.sources import OfflineData
from offlinerl.experience.table import Table
from offlinerl.training import config
from offlinerl.types import Transition
from offlinerl.util.errors import UserError
from offlinerl.util.trees import tree_map

NAMES = ("awac", "cql", "calql", "edac", "fql", "onestep", "rebrac")
SMALL = dict(hidden=(16, 16))


def source_for(agent, rows=400, batch=16):
    return OfflineData(Table.of(agent, random_table(rows)), agent.seeds, batch, 4)


def one_batch(agent, **kwargs):
    """A batch ``[S, B, ...]`` and the noise of an update on it."""
    batch = tree_map(lambda x: x[0], source_for(agent, **kwargs).draw(1))
    return batch, agent.draw(batch.action.shape[1])


def recorded(agent, monkeypatch):
    """The losses that the agent minimises, by name, without taking a step."""
    found = {}

    def descend(name, loss, max_norm=None):
        found[name] = loss.detach()
        return loss.detach().mean(-1).flatten(1).sum(-1) if loss.ndim > 2 else loss.detach().mean(-1)

    monkeypatch.setattr(agent, "descend", descend)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_updates_are_finite_and_move_every_group(name):
    agent = agents.get(name)(SPEC, (0, 1), **SMALL)
    before = {name: p.detach().clone() for name, p in agent.named_parameters()}
    metrics, _ = agent.learn(source_for(agent).draw())
    for key, value in metrics.items():
        assert value.shape == (2,) and value.isfinite().all(), key
    for key, p in agent.named_parameters():
        assert p.isfinite().all() and not torch.equal(p, before[key]), f"{key} did not move"


@pytest.mark.parametrize("name", NAMES)
def test_stacked_seeds_equal_seeds_alone_and_a_diverged_one_changes_no_other(name):
    seeds = (3, 1, 4)

    def trained(*some, ill=None):
        agent = agents.get(name)(SPEC, some, **SMALL).double()
        source = source_for(agent)
        if ill is not None:
            with torch.no_grad():
                for p in agent.parameters():
                    p[ill] = math.nan
        agent.learn(tree_map(lambda x: x.double(), source.draw()))
        return agent

    stack, ill = trained(*seeds), trained(*seeds, ill=1)
    for s, seed in enumerate(seeds):
        for (key, p), q in zip(stack.named_parameters(), trained(seed).parameters(), strict=True):
            torch.testing.assert_close(p[s], q[0], rtol=0, atol=1e-9, msg=f"{key} of seed {seed}")
    for (key, p), q in zip(stack.named_parameters(), ill.named_parameters(), strict=True):
        assert torch.equal(p[0], q[1][0]) and torch.equal(p[2], q[1][2]), key


def test_awac_by_hand(monkeypatch):
    agent = AWAC(SPEC, (0, 1), temperature=2.0, **SMALL)
    batch, noise = one_batch(agent)
    with torch.no_grad():
        for p in agent.target.parameters():
            p.mul_(1.1)
    start, found = copy.deepcopy(agent), recorded(agent, monkeypatch)
    agent.update(batch, noise, 0)
    with torch.no_grad():
        std = start.actor.log_std.exp()
        following = (start.actor.mean(batch.next_obs) + std * noise["next_action"]).clamp(-1, 1)
        target = batch.reward + batch.discount * start.target(batch.next_obs, following).min(1).values
        q = start.critic(batch.obs, batch.action)
        torch.testing.assert_close(found["critic"], (target.unsqueeze(1) - q) ** 2)
        here = (start.actor.mean(batch.obs) + std * noise["action"]).clamp(-1, 1)
        advantage = q.min(1).values - start.critic(batch.obs, here).min(1).values
        normal = torch.distributions.Normal(start.actor.mean(batch.obs), std)
        log_prob = normal.log_prob(batch.action).sum(-1)
        torch.testing.assert_close(found["actor"], -torch.exp(2 * advantage).clamp(max=100) * log_prob)


def test_cql_by_hand(monkeypatch):
    agent = CQL(SPEC, (0, 1), cql_alpha=3.0, samples=4, **SMALL)
    batch, noise = one_batch(agent)
    start, found = copy.deepcopy(agent), recorded(agent, monkeypatch)
    agent.update(batch, noise, 0)
    with torch.no_grad():
        following, _ = start.actor(batch.next_obs, noise["next_action"])
        target = batch.reward + batch.discount * start.target_critic(batch.next_obs, following).min(1).values
        q = start.critic(batch.obs, batch.action)  # [S, N, B]
        weights = []
        for i in range(4):
            for obs, name in ((batch.obs, "sampled"), (batch.next_obs, "next_sampled")):
                action, log_prob = start.actor(obs, noise[name][:, :, i])
                weights.append(start.critic(batch.obs, action) - log_prob.unsqueeze(1))
            weights.append(start.critic(batch.obs, noise["uniform"][:, :, i]) + 2 * math.log(2))
        integral = torch.stack(weights).exp().mean(0).log()
        meant = (target.unsqueeze(1) - q) ** 2 + 3.0 * (integral - q)
    torch.testing.assert_close(found["critic"], meant, rtol=1e-4, atol=1e-5)


def test_calql_by_hand(monkeypatch):
    agent = CalQL(SPEC, (0, 1), cql_alpha=3.0, samples=4, **SMALL)
    batch, noise = one_batch(agent)
    start, found = copy.deepcopy(agent), recorded(agent, monkeypatch)
    metrics = agent.update(batch, noise, 0)
    bound = batch.to_go.unsqueeze(1)  # [S, 1, B]
    with torch.no_grad():
        q, values, weights = start.critic(batch.obs, batch.action), [], []  # [S, N, B]
        for i in range(4):
            following, _ = start.actor(batch.next_obs, noise["next_action"][:, :, i])
            values.append(start.target_critic(batch.next_obs, following).min(1).values)
            for obs, name in ((batch.obs, "sampled"), (batch.next_obs, "next_sampled")):
                action, log_prob = start.actor(obs, noise[name][:, :, i])
                weights.append(torch.maximum(start.critic(batch.obs, action), bound) - log_prob.unsqueeze(1))
            weights.append(start.critic(batch.obs, noise["uniform"][:, :, i]) + 2 * math.log(2))
        target = batch.reward + batch.discount * torch.stack(values).amax(0)
        integral = torch.stack(weights).exp().mean(0).log()
        meant = (target.unsqueeze(1) - q) ** 2 + 3.0 * (integral - q)
    torch.testing.assert_close(found["critic"], meant, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(metrics["to_go"], batch.to_go.mean(-1))
    assert (q < bound).any() and (q > bound).any()


def test_calql_is_cql_where_no_return_is_known(monkeypatch):
    settings = dict(cql_alpha=3.0, samples=4, **SMALL)
    calibrated, plain = CalQL(SPEC, (0, 1), **settings), CQL(SPEC, (0, 1), **settings)
    plain.load_state_dict(calibrated.state_dict())
    calibrated.configure_optimizers()
    batch, noise = one_batch(calibrated)
    unknown = batch._replace(to_go=torch.full_like(batch.to_go, -math.inf))
    assert torch.equal(calibrated.soft_maximum(unknown, noise), plain.soft_maximum(batch, noise))
    assert (calibrated.soft_maximum(batch, noise) > plain.soft_maximum(batch, noise)).any()
    assert calibrated.update(unknown, noise, 0)["to_go"].tolist() == [0, 0]
    assert all(p.isfinite().all() for p in calibrated.parameters())


def returns_by_hand(reward, terminated, last, gamma, infinite):
    """From each row to the first that is terminal or the last of its episode, whose reward may repeat forever."""
    found, following = np.zeros(len(reward)), math.nan
    for row in reversed(range(len(reward))):
        if terminated[row]:
            following = 0.0
        elif last[row]:
            following = reward[row] / (1 - gamma) if infinite else 0.0
        following = found[row] = reward[row] + gamma * following
    return found


@pytest.mark.parametrize("infinite", [False, True])
def test_returns_to_go_of_a_dataset_end_where_its_episodes_do(infinite):
    data, rng = random_table(200), np.random.default_rng(1)
    terminated = data.terminated | (rng.random(200) < 0.05)  # also within episodes, as in AntMaze
    next_at = np.array(data.next_at)
    next_at[[70, 133]] = 3  # steps are missing there, but the episode is one
    data = dataclasses.replace(data, terminated=terminated, next_at=next_at)
    assert data.leaps.tolist() == [70, 133]
    agent = CalQL(SPEC, (0,), gamma=0.9, infinite_horizon=infinite, **SMALL)
    table = Table.of(agent, data)
    meant = returns_by_hand(data.reward, terminated, data.last, 0.9, infinite)
    rows = torch.arange(200).view(1, 1, -1)
    np.testing.assert_allclose(table.transitions(rows).to_go[0, 0], meant, rtol=1e-5, atol=1e-5)
    assert Table.of(CQL(SPEC, (0,), **SMALL), data).transitions(rows).to_go is None


@pytest.mark.parametrize("infinite", [False, True])
@pytest.mark.parametrize("steps", [3, 11, 12, 40])
def test_returns_to_go_in_a_replay_buffer_are_known_when_an_episode_has_ended(steps, infinite):
    S, E, capacity, gamma, rng = 2, 3, 36, 0.9, np.random.default_rng(0)
    make = partial(Replay, SPEC, (0, 1), capacity, E, gamma, returns="infinite" if infinite else "finite")
    ring, history, next_obs, ends = make(), [], None, np.ones((S, E), bool)
    for _ in range(steps):
        obs, after = rng.normal(size=(2, S, E, SPEC.obs_dim)).astype(np.float32)
        obs, next_obs = obs if next_obs is None else np.where(ends[..., None], obs, next_obs), after
        reward, ends = rng.normal(size=(S, E)), rng.random((S, E)) < 0.3
        terminated = ends & (rng.random((S, E)) < 0.5)
        history.append((reward.astype(np.float32), terminated, ends))
        ring.add(Transition(obs, np.zeros((S, E, 2)), reward, terminated, next_obs, ends))
    reward, terminated, ends = map(np.stack, zip(*history, strict=True))
    meant = np.full((steps, S, E), -math.inf)
    for s, e in np.ndindex(S, E):
        known = max(ends[:, s, e].nonzero()[0] + 1, default=0)
        columns = (column[:known, s, e] for column in (reward, terminated, ends))
        meant[:known, s, e] = returns_by_hand(*columns, gamma, infinite)
    again = make()
    again.load_state_dict(ring.state_dict())
    rows = torch.arange(len(ring)).view(1, 1, -1).expand(1, S, -1)
    for of in (ring, again):
        found = of.transitions(rows).to_go[0].numpy().reshape(S, -1, E)
        for s, place in np.ndindex(found.shape[:2]):
            number = steps - 1 - (steps - 1 - place) % 12
            np.testing.assert_allclose(found[s, place], meant[number, s], rtol=1e-5, atol=1e-6)
    assert torch.equal(ring.returns, again.returns)


def test_the_soft_maximum_of_cql_is_the_integral():
    """For a quadratic Q, compared with a sum over a grid of actions."""
    agent = CQL(SPEC, (0,), samples=3_000, **SMALL)
    batch, noise = one_batch(agent, batch=2)

    def of_many(obs, actions):
        return (-3 * (actions - 0.3).square().sum(-1)).unsqueeze(1)

    agent.critic.of_many = of_many
    line = torch.linspace(-1, 1, 801)
    grid = torch.stack(torch.meshgrid(line, line, indexing="ij"), -1).view(1, 1, -1, 2)
    exact = of_many(None, grid).logsumexp(-1) + 2 * math.log(2 / 800)
    torch.testing.assert_close(agent.soft_maximum(batch, noise)[0, 0], exact[0, 0].expand(2), rtol=0, atol=0.05)


def test_edac_by_hand(monkeypatch):
    agent = EDAC(SPEC, (0, 1), critics=4, eta=0.7, **SMALL)
    batch, noise = one_batch(agent)
    start, found = copy.deepcopy(agent), recorded(agent, monkeypatch)
    metrics = agent.update(batch, noise, 0)
    with torch.no_grad():
        following, log_prob = start.actor(batch.next_obs, noise["next_action"])
        value = start.target_critic(batch.next_obs, following).min(1).values - log_prob  # alpha is 1 at first
        target = batch.reward + batch.discount * value
    action = batch.action.clone().requires_grad_()
    q = start.critic(batch.obs, action)  # [S, N, B]
    slopes = [torch.autograd.grad(q[:, i].sum(), action, retain_graph=True)[0] for i in range(4)]
    cosines = [
        torch.cosine_similarity(slopes[i], slopes[j], dim=-1) for i in range(4) for j in range(4) if i != j
    ]  # fmt: skip
    weighed = agent.regress(batch._replace(weight=torch.ones(2, batch.action.shape[1])), target)
    torch.testing.assert_close(weighed["priority"], (target.unsqueeze(1) - q.detach()).abs().mean(1))
    meant = ((target.unsqueeze(1) - q) ** 2).sum(1) + 0.7 * sum(cosines) / 3
    torch.testing.assert_close(found["critic"], meant.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(metrics["alignment"], torch.stack(cosines).mean((0, 2)), rtol=1e-4, atol=1e-5)


def test_edacs_critics_diverge_in_their_slopes_and_sac_ns_do_not():
    turned = []
    for eta in (0.0, 30.0):
        agent = EDAC(SPEC, (0,), critics=5, eta=eta, **SMALL)
        source = source_for(agent, batch=64)
        for _ in range(40):
            metrics, _ = agent.learn(source.draw())
        turned.append(metrics["alignment"].item())
    assert turned[1] < turned[0] - 0.1 and turned[1] >= -1 / 4 - 1e-6


def test_one_steps_value_regresses_to_the_mean_of_q_over_the_data(monkeypatch):
    agent = OneStep(SPEC, (0, 1), **SMALL)
    batch, noise = one_batch(agent)
    start, found = copy.deepcopy(agent), recorded(agent, monkeypatch)
    agent.update(batch, noise, 0)
    with torch.no_grad():
        error = start.target(batch.obs, batch.action).min(1).values - start.value(batch.obs)
    torch.testing.assert_close(found["value"], 0.5 * error**2)
    with pytest.raises(UserError, match="no setting 'expectile'"):
        OneStep(SPEC, expectile=0.7)


@pytest.mark.parametrize(("targets", "normalize_q"), [("mean", False), ("min", True)])
def test_fql_by_hand(monkeypatch, targets, normalize_q):
    settings = dict(alpha=3.0, flow_steps=4, targets=targets, normalize_q=normalize_q)
    agent = FQL(SPEC, (0, 1), **settings, **SMALL)
    batch, noise = one_batch(agent, batch=64)
    with torch.no_grad():
        for p in agent.target_critic.parameters():
            p.mul_(1.1)
    start, found = copy.deepcopy(agent), recorded(agent, monkeypatch)
    agent.update(batch, noise, 0)
    with torch.no_grad():
        values = start.target_critic(batch.next_obs, start.actor(batch.next_obs, noise["next"]).clamp(-1, 1))
        value = values.mean(1) if targets == "mean" else values.min(1).values
        target = batch.reward + batch.discount * value
        q = start.critic(batch.obs, batch.action)
        torch.testing.assert_close(found["critic"], (target.unsqueeze(1) - q) ** 2)
        point = noise["start"] + noise["time"] * (batch.action - noise["start"])
        velocity = start.flow.net(torch.cat([batch.obs, point, noise["time"]], -1))
        error = ((velocity + noise["start"] - batch.action) ** 2).mean(-1)
        torch.testing.assert_close(found["flow"], error)
        point = noise["actor"]
        for time in (0, 0.25, 0.5, 0.75):
            clock = torch.full((2, 64, 1), time)
            point = point + 0.25 * start.flow.net(torch.cat([batch.obs, point, clock], -1))
        action = start.actor.net(torch.cat([batch.obs, noise["actor"]], -1))
        q = start.critic(batch.obs, action.clamp(-1, 1)).mean(1)
        q = q / q.abs().mean(-1, keepdim=True) if normalize_q else q
        far = ((action - point.clamp(-1, 1)) ** 2).mean(-1)
        torch.testing.assert_close(found["actor"], 3 * far - q)
    assert start.critic.net.norms and not start.actor.net.norms and not start.flow.net.norms


def two_modes(reward):
    """A dataset of one-step episodes whose action is near -0.8 or 0.8, whatever the observation."""
    rng, rows = np.random.default_rng(0), 512
    obs = rng.normal(size=(rows + 1, SPEC.obs_dim)).astype(np.float32)
    action = np.repeat(0.8 * rng.choice([-1, 1], (rows, 1)), SPEC.action_dim, 1).astype(np.float32)
    rewards, ends = reward(action[:, 0]).astype(np.float32), np.ones(rows, bool)
    return Dataset.of_rows(obs[:-1], obs[1:], action=action, reward=rewards, terminated=ends, last=ends)


def test_fql_imitates_actions_with_two_modes_and_prefers_the_better_one():
    """A Normal's mean would be in the middle."""

    def trained(reward, alpha):
        agent = FQL(SPEC, (0,), lr=2e-3, alpha=alpha, hidden=(64, 64))
        source = OfflineData(Table.of(agent, two_modes(reward)), (0,), 128, 400)
        agent.learn(source.draw())
        obs = torch.randn(1, 400, SPEC.obs_dim, generator=torch.Generator().manual_seed(1))
        noise = torch.randn(1, 400, SPEC.action_dim, generator=torch.Generator().manual_seed(2))
        with torch.no_grad():
            return [x[0, :, 0] for x in (agent.flow.generate(obs, noise, 10), agent.actor(obs, noise), agent.act(obs))]

    flow, policy, best = trained(np.zeros_like, 100.0)
    for action, share in ((flow, 0.85), (policy, 0.6)):
        assert (action.abs() > 0.5).float().mean() > share and 0.35 < (action > 0).float().mean() < 0.65
    assert (best.abs() > 0.5).float().mean() > 0.6
    flow, policy, best = trained(lambda action: action, 0.1)
    assert 0.35 < (flow > 0).float().mean() < 0.65, "the flow only imitates"
    assert (policy > 0).float().mean() > 0.95 and (best > 0).all()


def test_fql_acts_on_the_best_of_fixed_noises_unless_it_explores():
    agent = FQL(SPEC, (0, 1), candidates=3, **SMALL)
    obs = torch.randn(2, 5, SPEC.obs_dim)
    noise = torch.from_numpy(fixed_noise((0, 1), 3, SPEC.action_dim))
    torch.testing.assert_close(noise.norm(dim=-1), torch.full((2, 3), SPEC.action_dim**0.5))
    with torch.no_grad():
        actions = [agent.actor(obs, noise[:, [n]].expand(-1, 5, -1)).clamp(-1, 1) for n in range(3)]
        values = torch.stack([agent.critic(obs, action).mean(1) for action in actions])  # [3, S, E]
        chosen, best = agent.act(obs), values.argmax(0)
        for s, e in np.ndindex(2, 5):
            torch.testing.assert_close(chosen[s, e], agent.to_env(actions[best[s, e]][s, e]))
        assert len(best.unique()) > 1
        torch.testing.assert_close(agent.part(slice(1, 2)).act(obs[1:]), chosen[1:])
        first, second = agent.act(obs, explore=True), agent.act(obs, explore=True)
    assert not torch.equal(first, second) and not torch.equal(first, chosen)


def test_rebrac_by_hand(monkeypatch):
    agent = ReBRAC(SPEC, (0, 1), actor_bc=0.5, critic_bc=0.25, **SMALL)
    batch, noise = one_batch(agent, batch=64)
    start, found = copy.deepcopy(agent), recorded(agent, monkeypatch)
    agent.update(batch, noise, 1)
    with torch.no_grad():
        smooth = (0.2 * noise["target"]).clamp(-0.5, 0.5)
        following = (start.target_actor(batch.next_obs) + smooth).clamp(-1, 1)
        far = ((following - batch.next_action) ** 2).sum(-1)
        value = start.target_critic(batch.next_obs, following).min(1).values
        assert (batch.last == 1).any() and (batch.last * batch.discount > 0).any()
        target = batch.reward + batch.discount * torch.where(batch.last == 1, value, value - 0.25 * far)
        q = start.critic(batch.obs, batch.action)
        torch.testing.assert_close(found["critic"], (target.unsqueeze(1) - q) ** 2)
        action = start.actor(batch.obs)
        q = start.critic(batch.obs, action).min(1).values
        meant = 0.5 * ((action - batch.action) ** 2).sum(-1) - q / q.abs().mean(-1, keepdim=True)
        torch.testing.assert_close(found["actor"], meant)
    assert start.critic.net.norms and not start.actor.net.norms


def test_the_next_action_is_the_one_in_the_data():
    agent = ReBRAC(SPEC, (0,), n_step=3, **SMALL)
    data = random_table(60)
    batch = Table.of(agent, data).transitions(torch.arange(60))
    for row in range(60):
        tail = min(row + 2, row // 20 * 20 + 19)
        if batch.last[row] == 0:
            torch.testing.assert_close(batch.next_action[row], torch.from_numpy(data.action[tail + 1]))


def test_the_action_after_the_newest_row_of_a_replay_is_not_known_yet():
    agent = ReBRAC(SPEC, (0,), **SMALL)
    ring = Replay.of(agent, 20, envs=2)
    O, A = SPEC.obs_dim, SPEC.action_dim
    obs, no = np.zeros((1, 2, O), np.float32), np.zeros((1, 2), bool)
    for t in range(3):
        action, following = np.full((1, 2, A), t / 10, np.float32), obs + 1
        ring.add(Transition(obs, action, np.zeros((1, 2), np.float32), no, following, no))
        obs = following
    batch = ring.transitions(torch.arange(6).view(1, 1, 6))
    assert batch.last.flatten().tolist() == [0, 0, 0, 0, 1, 1] and (batch.discount > 0).all()
    assert batch.next_action[0, 0, :4, 0].tolist() == pytest.approx([0.1, 0.1, 0.2, 0.2])


# ReBRAC's authors' configurations in CORL, configs/offline/rebrac: actor_bc_coef, critic_bc_coef, actor_learning_rate,
# critic_learning_rate, gamma, batch_size, and the factor that normalize_reward puts before rewards. The critic's weight
# on hopper-medium is that of configs/rebrac in the authors' own repository; CORL's is 0.01.
REBRAC = """
halfcheetah-medium-v2          0.001  0.01    1e-3  1e-3  0.99   1024  1
halfcheetah-medium-replay-v2   0.01   0.001   1e-3  1e-3  0.99   1024  1
halfcheetah-medium-expert-v2   0.01   0.1     1e-3  1e-3  0.99   1024  1
hopper-medium-v2               0.01   0.001   1e-3  1e-3  0.99   1024  1
hopper-medium-replay-v2        0.05   0.5     1e-3  1e-3  0.99   1024  1
hopper-medium-expert-v2        0.1    0.01    1e-3  1e-3  0.99   1024  1
walker2d-medium-v2             0.05   0.1     1e-3  1e-3  0.99   1024  1
walker2d-medium-replay-v2      0.05   0.01    1e-3  1e-3  0.99   1024  1
walker2d-medium-expert-v2      0.01   0.01    1e-3  1e-3  0.99   1024  1
antmaze-umaze-v2               0.003  0.002   3e-4  5e-5  0.999  256   100
antmaze-umaze-diverse-v2       0.003  0.001   3e-4  5e-5  0.999  256   100
antmaze-medium-play-v2         0.001  0.0005  3e-4  5e-5  0.999  256   100
antmaze-medium-diverse-v2      0.001  0.0     3e-4  5e-5  0.999  256   100
antmaze-large-play-v2          0.002  0.001   3e-4  5e-5  0.999  256   100
antmaze-large-diverse-v2       0.002  0.002   3e-4  5e-5  0.999  256   100
"""


def resolved(name, dataset):
    found = config.resolve(name, agents.outline(name), registry.resolve(dataset), "transitions")
    return found["agent"], found["train"]


@pytest.mark.parametrize("line", REBRAC.strip().splitlines())
def test_rebracs_settings_are_those_of_its_authors(line):
    dataset, *numbers = line.split()
    *numbers, factor = map(float, numbers)
    agent, train = resolved("rebrac", dataset)
    names = ("actor_bc", "critic_bc", "actor_lr", "critic_lr", "gamma")
    assert [*(agent[name] for name in names), train["batch"]] == numbers
    assert {"none": 1, "hundredfold": 100}[train["reward"]] == factor
    assert (agent["hidden"], agent["policy_delay"], agent["tau"]) == ([256] * 3, 2, 0.005)
    assert (agent["target_noise"], agent["target_noise_clip"]) == (0.2, 0.5)
    made_here = dataset.removesuffix("-v2")
    assert resolved("rebrac", made_here) == (agent, train)


def test_settings_of_other_agents_are_those_of_their_authors():
    """Settings of TD3+BC's table 3 and code, and of AWAC in CORL, such as awac_lambda and normalize_reward."""
    agent, train = resolved("td3bc", "hopper-medium-v2")
    assert (agent["alpha"], agent["normalize"], train["batch"], train["reward"]) == (2.5, True, 256, "none")
    for dataset, awac_lambda, reward in (("hopper-medium-v2", 0.3333, "none"), ("antmaze-umaze-v2", 0.1, None)):
        agent, train = resolved("awac", dataset)
        assert 1 / agent["temperature"] == pytest.approx(awac_lambda, rel=1e-3) and train["reward"] == reward
        assert agent["normalize"] and agent["hidden"] == [256] * 3
    assert registry.resolve("antmaze-umaze-v2").reward == "minus_one"
    assert resolved("cql", "hopper-medium-v2")[1]["reward"] == "none"
