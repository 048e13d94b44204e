"""Policy-gradient agents: compared with exact gradients of finite problems, and their loop of rollouts and updates."""

import copy
import math
from functools import lru_cache, partial
from itertools import chain

import counting
import gymnasium as gym
import numpy as np
import pytest
import torch
from torch.distributions import kl_divergence

from offlinerl import agents, tabular
from offlinerl.agents import npg
from offlinerl.agents.is_reinforce import ISREINFORCE
from offlinerl.agents.npg import NPG, fisher_product
from offlinerl.agents.policy_gradient import Sample
from offlinerl.agents.ppo import PPO
from offlinerl.agents.reinforce import REINFORCE
from offlinerl.agents.trpo import TRPO
from offlinerl.data.dataset import Dataset
from offlinerl.envs.finite import FINITE_ID, kwargs_of
from offlinerl.envs.make import spec_of
from offlinerl.experience.sources import EpisodeData, RolloutData
from offlinerl.experience.table import Table
from offlinerl.learning import losses
from offlinerl.learning.optim import Adam, clip_norm, conjugate_gradients, flatten, unflatten
from offlinerl.learning.rng import Streams, generator
from offlinerl.nn.actors import CategoricalActor, GaussianActor
from offlinerl.nn.encoders import Identity
from offlinerl.nn.normalize import RunningNorm
from offlinerl.rollout.collector import Collector
from offlinerl.types import Batch, Spec
from offlinerl.util.errors import UserError
from offlinerl.util.trees import tree_map

SMALL = dict(hidden=(16, 16), normalize_obs=True, normalize_reward=True)
VARIANTS = {
    "reinforce": dict(),
    "reinforce-average": dict(baseline="average"),
    "reinforce-none": dict(baseline="none"),
    "a2c": dict(entropy=0.01),
    "npg": dict(minibatch=16),
    "trpo": dict(minibatch=16),
    "ppo": dict(minibatch=16, decay_steps=1000),
    "ppo-penalty": dict(minibatch=16, target_kl=0.01),
}
MEMBERS = [name for name in VARIANTS if "penalty" not in name]


@pytest.fixture(autouse=True)
def environments():
    counting.register()


class Loop:
    """An agent with its environments and rollouts."""

    def __init__(self, variant, seeds=(0, 1), envs=2, batch=64, double=False, env="Pendulum-v1", **more):
        self.collector = Collector(env if isinstance(env, dict) else {"id": env}, seeds, range(envs))
        settings = {**SMALL, **VARIANTS[variant], **more}
        self.agent = agents.get(variant.partition("-")[0])(self.collector.spec, seeds, **settings)
        if double:
            self.agent.double()
            act = self.agent.act
            self.agent.act = lambda obs, explore=False: act(obs.double(), explore).float()
        self.double = double
        self.source = RolloutData(self.agent, self.collector, batch)

    def rollout(self):
        block = self.source.draw()
        return tree_map(lambda x: x.double(), block) if self.double else block

    def run(self, rollouts):
        for _ in range(rollouts):
            self.agent.metrics |= self.agent.learn(self.rollout())[0]
        return self


# Exactness: sampled gradients, compared with those of a known finite MDP


@pytest.fixture(scope="module")
def mdp():
    return tabular.random_mdp(5, 3, 0.7, np.random.default_rng(3))


@pytest.fixture(scope="module")
def logits(mdp):
    return np.random.default_rng(4).normal(size=mdp.reward.shape)


def put(network, table):
    """Set a linear network's weights to a table over one-hot states."""
    with torch.no_grad():
        network.layers[0].weight[:] = torch.from_numpy(table)
        network.layers[0].bias.zero_()


def recorded(agent, mdp, monkeypatch):
    """Record the gradients of a policy's weights, ``[S, states, actions]`` each, without taking steps. Seeds that are
    trained in parts are recorded one part after another."""
    found, descend = [], Adam.descend

    def record(optimizer, gradients):
        if gradients[0].shape[1:] == mdp.reward.shape:
            found.append(-gradients[0])
        else:
            descend(optimizer, gradients)

    def solve(product, b, *_):
        found.append(unflatten(b, list(agent.policy.parameters()))[0])
        return conjugate_gradients(product, b, 15, 1e-10)

    monkeypatch.setattr(Adam, "descend", record)
    monkeypatch.setattr(npg, "conjugate_gradients", solve)
    return found


def require_equal_within_error(sampled, exact):
    """Compare independent estimates ``[S, ...]`` with the estimated quantity."""
    error = sampled.std(0) / math.sqrt(len(sampled))
    z = (sampled.mean(0) - exact) / error
    assert error.max() < 0.1 * np.abs(exact).max(), "the error must be small for this to say anything"
    assert np.abs(z).max() < 4.5 and np.square(z).mean() < 2.5, z


@pytest.mark.parametrize("member", MEMBERS)
def test_a_sampled_policy_gradient_is_the_exact_one(member, mdp, logits, monkeypatch):
    """With many seeds of the same policy, in episodes that end at random, so that no discount is needed."""
    S, T = 100, 200
    more = dict(hidden=(), normalize_obs=False, normalize_reward=False, normalize_advantage=False, gamma=1.0)
    more |= {} if member in ("npg", "trpo") else dict(max_grad_norm=1e9, entropy=0.0)
    more |= dict(epochs=1, minibatch=T) if member == "ppo" else {}
    env = {"id": FINITE_ID, "kwargs": kwargs_of(mdp, random_horizon=True)}
    loop = Loop(member, tuple(range(S)), envs=1, batch=T, env=env, **more)
    agent = loop.agent
    put(agent.policy.net, logits)
    V, _ = tabular.evaluate(mdp, tabular.softmax_policy(logits))
    put(agent.value.net, V[:, None])
    found = recorded(agent, mdp, monkeypatch)
    RolloutData(agent, loop.collector, 40).draw()  # all begin together; from here they are at different steps
    agent.learn(loop.rollout())
    sampled = torch.cat(found).numpy().astype(float) / (1 - mdp.gamma)  # a step's share of an episode's gradient
    assert len(sampled) == S
    require_equal_within_error(sampled, tabular.policy_gradient(mdp, logits))


@pytest.fixture(scope="module")
def episodes_at_random(mdp):
    """The spec and the table of some episodes with uniformly random actions, which also end at random."""
    return lru_cache(partial(_episodes_at_random, mdp))


def _episodes_at_random(mdp, count):
    env = {"id": FINITE_ID, "kwargs": kwargs_of(mdp, random_horizon=True)}
    collector, episodes = Collector(env, (0,), range(8)), []
    collector.on_episode = lambda s, e, episode: episodes.append(episode)
    while len(episodes) < count:
        collector.step(collector.uniform)
    obs, next_obs, action, reward, terminated, last = (np.concatenate(column) for column in zip(*(
        (e.observations[:-1], e.observations[1:], e.actions[:, None].astype(np.float32), e.rewards.astype(np.float32),
         e.terminations, e.terminations | e.truncations)
        for e in episodes[:count]), strict=True))  # fmt: skip
    data = Dataset.of_rows(obs, next_obs, action=action, reward=reward, terminated=terminated, last=last)
    return collector.spec, Table(data, collector.spec, gamma=1.0)


def test_an_importance_sampled_gradient_is_the_exact_one(mdp, logits, episodes_at_random, monkeypatch):
    """Importance sampling from uniformly random actions, for a policy that is not too far from them."""
    S, B, logits = 100, 100, 0.3 * logits
    spec, table = episodes_at_random(S * B)
    source = EpisodeData(table, (0,), 1)
    batch = table.transitions(source.rows.unflatten(0, (S, B)).unsqueeze(0))
    agent = ISREINFORCE(spec, range(S), gamma=1.0, hidden=(), behavior_updates=0, self_normalized=False,
                        max_weight=math.inf, max_grad_norm=1e9)  # fmt: skip
    put(agent.policy.net, logits)
    put(agent.behavior.net, np.zeros_like(logits))
    agent.configure_optimizers()
    found = recorded(agent, mdp, monkeypatch)
    agent.update(tree_map(lambda x: x[0], batch), {}, 1)
    require_equal_within_error(found[0].numpy().astype(float), tabular.policy_gradient(mdp, logits))


@pytest.mark.parametrize("self_normalized", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_off_policy_reinforce_learns_a_better_policy_than_that_of_the_data(mdp, episodes_at_random, self_normalized):
    """Its exact value is better, although all episodes have random actions."""
    spec, table = episodes_at_random(2000)
    agent = ISREINFORCE(spec, (0, 1), gamma=1.0, hidden=(), lr=0.03, behavior_lr=0.03, behavior_updates=100,
                        self_normalized=self_normalized)  # fmt: skip
    source = EpisodeData(table, (0, 1), batch_size=500, updates=100)
    chance = tabular.performance(mdp, np.full_like(mdp.reward, 1 / 3))
    best = mdp.start @ tabular.value_iteration(mdp)[0]

    def gained():
        """The improvement over random actions, as a share of the best policy's improvement."""
        policies = agent.policy(torch.eye(5).expand(2, 5, 5)).base_dist.probs[:, :, 0].detach().numpy()
        return [(tabular.performance(mdp, policy) - chance) / (best - chance) for policy in policies]

    agent.learn(source.draw())
    agent.learn(source.draw(1))
    assert np.abs(gained()).max() < 0.1, "it sets out from the clone"
    agent.learn(source.draw())
    assert min(gained()) > 0.7


# Natural gradients


def sample_of(policy, seeds=2, rows=40, actions=None):
    rng = torch.Generator().manual_seed(0)
    obs = torch.randn(seeds, rows, policy.net.layers[0].weight.shape[-2], generator=rng, dtype=torch.float64)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        action = policy(obs).sample()
        log_prob = policy(obs).log_prob(action)
    advantage, target = torch.randn(2, seeds, rows, generator=rng, dtype=torch.float64)
    return Sample(obs, action, log_prob, advantage, target)


KINDS = {"gaussian": Spec(3, 2, (-1.0,) * 2, (1.0,) * 2), "categorical": Spec(3, 1, (0.0,), (3.0,), 4)}


@pytest.fixture(params=KINDS)
def task(request):
    return KINDS[request.param]


def dense_fisher(policy, obs, s):
    """``E[grad log pi grad log pi']`` of one seed, over its observations and all its actions."""
    parameters = list(policy.parameters())
    P = sum(p[0].numel() for p in parameters)
    F = torch.zeros(P, P, dtype=torch.float64)

    def score(log_prob):
        found = torch.autograd.grad(log_prob, parameters, retain_graph=True, materialize_grads=True)
        return flatten(found)[s]

    for b in range(obs.shape[1]):
        here = policy(obs[:, b : b + 1])
        if isinstance(policy, CategoricalActor):
            probability = here.base_dist.probs[s, 0, 0]
            for a, p in enumerate(probability.detach()):
                g = score(here.base_dist.logits[s, 0, 0].log_softmax(-1)[a])
                F += p * torch.outer(g, g) / obs.shape[1]
        else:
            mean, std = here.base_dist.loc[s, 0], here.base_dist.scale[s, 0]
            for m, d in zip(mean, std, strict=True):  # Fisher information of a Normal about its mean and deviation
                g, h = score(m), score(d)
                F += (torch.outer(g, g) + 2 * torch.outer(h, h)) / d.detach() ** 2 / obs.shape[1]
    return F


def test_the_natural_gradient_step_equals_the_dense_solution(task):
    agent = NPG(task, (0, 1), hidden=(4,), cg_iterations=200, cg_damping=1e-3, max_kl=1e-4).double()
    agent.CG_TOLERANCE = 1e-26
    with torch.no_grad():
        for p in agent.policy.parameters():
            p.add_(0.5 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    sample = sample_of(agent.policy)
    parameters = list(agent.policy.parameters())
    with torch.no_grad():
        old = agent.policy(sample.obs)
    product = fisher_product(old, agent.policy(sample.obs), parameters)
    log_prob, advantage = agent.policy(sample.obs).log_prob(sample.action), losses.standardized(sample.advantage)
    loss = losses.policy_gradient(log_prob, advantage)
    g = -flatten(torch.autograd.grad(loss.mean(-1).sum(), parameters))
    before = flatten([p.detach().clone() for p in parameters])
    wanted = []
    for s in range(2):
        F = dense_fisher(agent.policy, sample.obs, s)
        v = torch.randn(2, len(F), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        torch.testing.assert_close(product(v)[s], F @ v[s])
        direction = torch.linalg.solve(F + 1e-3 * torch.eye(len(F), dtype=torch.float64), g[s])
        wanted.append((2e-4 / (g[s] @ direction)).sqrt() * direction)
    metrics = agent.improve(sample)
    torch.testing.assert_close(flatten(parameters) - before, torch.stack(wanted), rtol=1e-4, atol=1e-7)
    assert metrics["kl"].tolist() == pytest.approx([1e-4] * 2, rel=0.2), "max_kl to second order, less the damping"


def test_conjugate_gradients_solve_each_seed_separately():
    rng = torch.Generator().manual_seed(0)
    root = torch.randn(3, 8, 8, generator=rng, dtype=torch.float64)
    A, b = root @ root.mT + torch.eye(8), torch.randn(3, 8, generator=rng, dtype=torch.float64)
    b[1] = 0  # this one is solved at the start and must not become 0 / 0
    A[2] = float("nan")
    x = conjugate_gradients(lambda v: (A @ v.unsqueeze(-1)).squeeze(-1), b, 20, 1e-20)
    torch.testing.assert_close(x[0], torch.linalg.solve(A[0], b[0]))
    assert (x[1] == 0).all() and x[2].isnan().any()


def test_trpo_stays_within_its_bound(task):
    """In a case where the full step of the natural gradient exceeds it."""
    for cls, within in ((NPG, False), (TRPO, True)):
        agent = cls(task, (0, 1, 2), hidden=(16,), max_kl=0.5, cg_damping=1e-4, value_epochs=1)
        with torch.no_grad():
            for p in agent.policy.parameters():
                p.add_(0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
        agent.double()
        sample = sample_of(agent.policy, seeds=3)
        old = copy.deepcopy(agent.policy)
        metrics = agent.improve(sample)
        with torch.no_grad():
            kl = kl_divergence(old(sample.obs), agent.policy(sample.obs)).mean(-1)
            gained = losses.surrogate(
                agent.policy(sample.obs).log_prob(sample.action), sample.old_log_prob,
                losses.standardized(sample.advantage),
            )  # fmt: skip
        torch.testing.assert_close(kl, metrics["kl"])
        assert (kl <= 0.5).all() == within, kl
        if within:
            assert (-gained.mean(-1) > 0).all() and (kl > 0.05).all()
            assert (metrics["step_share"] < 1).any(), "the line search must have had something to do"


def test_trpo_takes_no_step_if_none_is_acceptable():
    agent = TRPO(KINDS["gaussian"], (0, 1), hidden=(4,), backtracks=1, max_kl=1e-12)
    agent.double()
    sample = sample_of(agent.policy)
    before = copy.deepcopy(agent.policy.state_dict())
    agent.search = lambda at, seeds: TRPO.search(agent, lambda share: (at(share)[0] * 0 - 1, at(share)[1]), seeds)
    assert agent.improve(sample)["step_share"].tolist() == [0, 0]
    assert all(torch.equal(p, before[name]) for name, p in agent.policy.state_dict().items())


@pytest.mark.parametrize("cls", [NPG, TRPO])
def test_an_almost_deterministic_policy_stays_finite(cls):
    """Its gradient vanishes, so the step has no direction, and its length must not become 0 / 0."""
    agent = cls(KINDS["categorical"], (0, 1), hidden=(4,), value_epochs=1).double()
    with torch.no_grad():
        agent.policy.net.layers[-1].bias[1, ..., 0] = 30.0
    sample = sample_of(agent.policy)
    before = copy.deepcopy(agent.policy.state_dict())
    metrics = agent.improve(sample)
    assert metrics["gain"].isfinite().all() and metrics["kl"].isfinite().all()
    for name, p in agent.policy.state_dict().items():
        assert p.isfinite().all() and torch.equal(p[1], before[name][1]), name
    assert not all(torch.equal(p[0], before[name][0]) for name, p in agent.policy.state_dict().items())


# The loop


@pytest.mark.parametrize("env", ["Pendulum-v1", "CartPole-v1"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_rollouts_move_policy_and_value_by_finite_steps(variant, env):
    loop = Loop(variant, env=env, batch=256 if env == "CartPole-v1" else 448)
    before = copy.deepcopy(dict(loop.agent.named_parameters()))
    loop.run(2)
    assert loop.agent.steps == 2 * loop.source.stride and loop.agent.updates > 0
    for name, value in loop.agent.metrics.items():
        assert value.shape == (2,) and value.isfinite().all(), name
    for name, p in loop.agent.named_parameters():
        frozen = name.startswith("value") and variant in ("reinforce-average", "reinforce-none")
        assert p.isfinite().all() and torch.equal(p, before[name]) == frozen, name


@pytest.mark.parametrize("variant", VARIANTS)
def test_stacked_seeds_equal_seeds_alone_with_environments_in_the_loop(variant):
    seeds = (3, 1)
    stack = Loop(variant, seeds, double=True).run(3)
    for s, seed in enumerate(seeds):
        alone = Loop(variant, (seed,), double=True).run(3)
        for (name, p), q in zip(stack.agent.state_dict().items(), alone.agent.state_dict().values(), strict=True):
            if p.ndim:
                torch.testing.assert_close(p[s], q[0], rtol=1e-5, atol=1e-6, msg=f"{name} of seed {seed}")


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_diverged_seed_leaves_the_others_alone(variant):
    healthy, ill = Loop(variant, (0, 1, 2)).run(1), Loop(variant, (0, 1, 2)).run(1)
    block = healthy.rollout()
    ill.agent.steps = healthy.agent.steps  # a learning rate may depend on it
    with torch.no_grad():
        for p in ill.agent.parameters():
            p[1] = float("nan")
    healthy.agent.learn(block)
    ill.agent.learn(block)
    for (name, p), q in zip(healthy.agent.named_parameters(), ill.agent.parameters(), strict=True):
        assert torch.equal(p[0], q[0]) and torch.equal(p[2], q[2]), f"{name} differs by a bit"


def test_no_reset_is_a_successor_and_terminations_differ_from_truncations():
    loop = Loop("ppo", seeds=(0, 1), envs=3, batch=150, env=counting.ID)
    obs, action, reward, discount, next_obs, last = (x[0].flatten(0, 2) if x.ndim == 5 else x[0].flatten()
                                                     for x in loop.rollout()[:6])  # fmt: skip
    assert torch.equal(next_obs[:, 0], obs[:, 0]), "a successor belongs to another episode"
    assert torch.equal(next_obs[:, 1], obs[:, 1] + 1), "a step is missing or false"
    torch.testing.assert_close(next_obs[:, 2], obs[:, 2] + 2 * action[:, 0].clamp(-1, 1), rtol=0, atol=1e-5)
    assert torch.equal(reward, next_obs[:, 1])
    ends = last == 1
    assert discount[~ends].tolist() == pytest.approx([0.99] * int((~ends).sum()))
    assert {round(d, 2) for d in discount[ends].tolist()} == {0.0, 0.99}, "both kinds of ending must occur"


def test_the_agent_learns_from_the_unclipped_action():
    loop = Loop("ppo", (0,), envs=1)
    with torch.no_grad():
        loop.agent.policy.net.layers[-1].bias.fill_(3.0)
    kept = []
    loop.collector.on_episode = lambda s, e, episode: kept.append(episode)
    rollout = loop.rollout()
    loop.collector.truncate()
    assert rollout.action.max() > 2
    assert np.abs(kept[0].actions).max() <= 2.0, "Pendulum's bounds, in its units"
    applied = 2 * rollout.action[0, 0, 0, :, 0].clamp(-1, 1).numpy()
    np.testing.assert_allclose(kept[0].actions[:, 0], applied, rtol=1e-6)


def test_a_policy_is_evaluated_at_its_likeliest_action_within_bounds():
    spec = Spec(3, 1, (-2.0,), (2.0,))
    agent = PPO(spec, (0,), hidden=(8,))
    with torch.no_grad():
        agent.policy.net.layers[-1].bias.fill_(3.0)
    assert (agent.act(torch.randn(1, 5, 3)) == 2).all()


def test_an_epoch_has_the_requested_number_of_steps():
    loop = Loop("a2c", (0,), envs=2, batch=10)
    epoch = loop.source.epoch(330)
    pieces = list(epoch)
    assert len(pieces) == len(epoch) == 2
    assert sum(1 for _ in chain.from_iterable(pieces)) == 33 and loop.agent.steps == 330
    with pytest.raises(UserError, match="multiple of envs"):
        Loop("a2c", (0,), envs=3, batch=10)


def test_reinforce_ignores_steps_without_a_known_return():
    """Without a learned value, steps of an episode that continues after the rollout have no return."""
    agent = REINFORCE(KINDS["gaussian"], (0,), baseline="average", baseline_rate=0.5, gamma=0.5, hidden=(4,))
    last = torch.tensor([[[0.0, 1, 0, 0], [0, 0, 0, 0]]])
    reward = torch.tensor([[[1.0, 2, 4, 8], [1, 1, 1, 1]]])
    obs, action = torch.zeros(1, 2, 4, 3), torch.zeros(1, 2, 4, 2)
    rollout = Batch(obs, action, reward, 0.5 * (1 - last), obs, last)
    got = agent.compute_advantages(rollout).advantage
    # returns 1 + 0.5 * 2 and 2, of two steps in eight
    assert got.tolist() == [pytest.approx([8.0, 8.0, 0, 0, 0, 0, 0, 0])]
    assert agent.average.item() == pytest.approx(1.0)
    assert agent.compute_advantages(rollout).advantage.tolist() == [pytest.approx([4.0, 4.0, 0, 0, 0, 0, 0, 0])]
    with pytest.raises(UserError, match="baseline: value"):
        REINFORCE(KINDS["gaussian"], (0,), baseline="none", normalize_advantage=True)


def test_rewards_are_scaled_by_the_discounted_return_across_rollouts():
    agent = PPO(KINDS["gaussian"], (0,), gamma=0.5, hidden=(4,), normalize_reward=True)
    rng, seen, running = np.random.default_rng(0), [], np.zeros(2)
    for _ in range(3):
        reward, last = rng.normal(size=(2, 5)), rng.random((2, 5)) < 0.3
        for t in range(5):
            running = reward[:, t] + running
            seen.append(running)
            running = 0.5 * running * ~last[:, t]
        zeros = torch.zeros(1, 2, 5, 3)
        rollout = Batch(zeros, zeros, *(torch.tensor(x, dtype=torch.float32)[None] for x in (reward, last)), zeros,
                        torch.tensor(last, dtype=torch.float32)[None])  # fmt: skip
        scaled = agent.scaled(rollout)
    np.testing.assert_allclose(scaled[0], reward / np.std(seen), rtol=1e-4)


def test_running_moments_are_those_of_all_observations():
    norm, rng = RunningNorm(2, 3), torch.Generator().manual_seed(0)
    parts = [2 + 5 * torch.randn(2, size, 3, generator=rng) for size in (7, 100, 1)]
    assert torch.equal(norm(parts[0]), parts[0].clamp(-10, 10)), "nothing was seen yet"
    for part in parts:
        norm.see(part)
    whole = torch.cat(parts, 1)
    torch.testing.assert_close(norm.mean, whole.mean(1, keepdim=True))
    torch.testing.assert_close(norm.var, whole.var(1, correction=0, keepdim=True))


def test_gradients_are_clipped_by_seed():
    gradients = [torch.tensor([[3.0, 0.0], [0.3, 0.0]]), torch.tensor([[[4.0]], [[0.4]]])]
    first, second = clip_norm(gradients, 1.0)
    assert first.tolist() == [pytest.approx([0.6, 0.0], abs=1e-5), pytest.approx([0.3, 0.0])]
    assert second.flatten().tolist() == pytest.approx([0.8, 0.4], abs=1e-5)


@pytest.mark.parametrize("member", ["a2c", "ppo"])
def test_policy_and_value_are_clipped_as_one_gradient(member, monkeypatch):
    found = []
    monkeypatch.setattr(Adam, "descend", lambda optimizer, gradients: found.append(flatten(gradients)))
    agent = agents.get(member)(KINDS["gaussian"], (0, 1), hidden=(4,), normalize_advantage=False, max_grad_norm=0.01)
    agent.double().configure_optimizers()
    batch = sample_of(agent.policy)
    agent.update(batch, {}, 0)

    log_prob = agent.policy(batch.obs).log_prob(batch.action)  # [S, B]; of the old policy: PPO's ratio is 1
    whole = [
        flatten(torch.autograd.grad(loss.mean(-1).sum(), network.parameters()))
        for network, loss in (
            (agent.policy, -batch.advantage * log_prob),
            (agent.value, (batch.target - agent.value(batch.obs)).square() / 2),
        )
    ]
    norm = torch.cat(whole, 1).norm(dim=1, keepdim=True)  # [S, 1]
    assert (norm > 0.02).all()
    for shortened, part in zip(found, whole, strict=True):
        torch.testing.assert_close(shortened, part * 0.01 / norm, rtol=1e-3, atol=0)


def test_ppo_learns_the_same_as_stable_baselines3_from_the_same_rollouts(monkeypatch):
    sb3 = pytest.importorskip("stable_baselines3")

    class Steps(sb3.common.callbacks.BaseCallback):
        """The environment's rewards; in stable-baselines3's buffer, truncated episodes' rewards include a value."""

        taken = []

        def _on_step(self):
            seen, (paid,), (last,), (info,) = (self.locals[name] for name in ("new_obs", "rewards", "dones", "infos"))
            successor = info["terminal_observation"] if last else seen[0].copy()
            terminated = last and not info["TimeLimit.truncated"]
            self.taken.append((float(paid), 0.99 * (1 - terminated), successor, float(last)))
            return True

    env = sb3.common.env_util.make_vec_env("Hopper-v5", seed=0, env_kwargs=dict(max_episode_steps=25))
    rest = dict(n_steps=512, batch_size=64, n_epochs=2, seed=0, device="cpu")
    theirs, steps = sb3.PPO("MlpPolicy", sb3.common.vec_env.VecNormalize(env), **rest), Steps()
    agent = PPO(spec_of(gym.make("Hopper-v5")), (0,), epochs=2)
    order = Streams((0,), "update")  # in the same way as the agent
    monkeypatch.setattr(np.random, "permutation", lambda rows: order.permutation(rows)[0].numpy())

    def weights():
        """Parameters of stable-baselines3 in the order and shapes of ours."""
        nets = theirs.policy.mlp_extractor
        layers = (*nets.policy_net[::2], theirs.policy.action_net, *nets.value_net[::2], theirs.policy.value_net)
        return [theirs.policy.log_std, *(x for layer in layers for x in (layer.weight.T, layer.bias))]

    learnt = [p for p in agent.parameters() if p.requires_grad]
    with torch.no_grad():
        for ours, start in zip(learnt, weights(), strict=True):
            ours.copy_(start.view_as(ours))
    for _ in range(3):
        steps.taken.clear()
        theirs.learn(512, steps, reset_num_timesteps=False)
        buffer = theirs.rollout_buffer  # [T, ...], flat by now
        reward, discount, successor, last = (
            torch.tensor(np.array(column)) for column in zip(*steps.taken, strict=True)
        )
        assert discount.unique().tolist() == [0, pytest.approx(0.99)] and last.sum() > (discount == 0).sum()
        obs, action = (torch.from_numpy(x) for x in (buffer.observations, buffer.actions))
        rollout = Batch(*(x.float()[None, None] for x in (obs, action, reward, discount, successor, last)))

        sample = agent.compute_advantages(rollout)
        for ours, other in ((sample.advantage, buffer.advantages), (sample.target, buffer.returns)):
            torch.testing.assert_close(ours[0], torch.from_numpy(other).view(-1), rtol=1e-4, atol=1e-4)
        agent.learn(tree_map(lambda x: x[None], rollout))
        for ours, other in zip(learnt, weights(), strict=True):
            torch.testing.assert_close(ours, other.view_as(ours), rtol=1e-4, atol=1e-5)


def test_the_penalty_follows_the_divergence():
    for lr, penalty in ((1e-9, 0.5), (0.3, 2.0)):
        agent = PPO(KINDS["gaussian"], (0, 1), hidden=(4,), target_kl=0.01, epochs=1, minibatch=40, lr=lr).double()
        agent.improve(sample_of(agent.policy))
        assert agent.penalty.flatten().tolist() == [penalty] * 2


def test_the_penalty_returns_from_wherever_it_was():
    agent = PPO(KINDS["gaussian"], (0, 1), hidden=(4,), target_kl=0.01, epochs=1, minibatch=40, lr=1e-9).double()
    for _ in range(200):  # halved as often, it would be zero for ever
        agent.improve(sample_of(agent.policy))
    assert agent.penalty.flatten().tolist() == pytest.approx([1e-3] * 2)
    agent = PPO(KINDS["gaussian"], (0, 1), hidden=(4,), target_kl=1e-30, epochs=1, minibatch=40, lr=0.3).double()
    for _ in range(20):
        agent.improve(sample_of(agent.policy))
    assert agent.penalty.flatten().tolist() == pytest.approx([1e3] * 2)


def test_policies_sample_from_their_stated_distribution():
    rng = [generator(0, "policy")]
    from offlinerl.learning.rng import EnvStreams

    lanes, obs = EnvStreams((0,), range(1), "explore"), torch.ones(1, 1, 2)
    discrete = CategoricalActor(Identity(2), 3, (), rng)
    with torch.no_grad():
        discrete.net.layers[0].bias[:] = torch.tensor([0.0, 1.0, 2.0])
    drawn = torch.cat([discrete.act(obs, lanes) for _ in range(4000)]).flatten()
    share = torch.bincount(drawn.long(), minlength=3) / len(drawn)
    wanted = discrete(obs).base_dist.probs.flatten()
    assert (share - wanted).abs().max() < 0.03 and discrete.act(obs).item() == 2
    normal = GaussianActor(Identity(2), 1, (), rng, bounded=False)
    with torch.no_grad():
        normal.log_std.fill_(math.log(0.5))
        drawn = torch.cat([normal.act(obs, lanes) for _ in range(4000)]).flatten()
    assert drawn.std().item() == pytest.approx(0.5, rel=0.05)
    assert drawn.mean().item() == pytest.approx(normal.act(obs).item(), abs=0.03)


# Off-policy


def test_off_policy_reinforce_clones_first_and_starts_from_the_clone(spec, source_of):
    source = EpisodeData(source_of((0,)).table, (0, 1), batch_size=6, updates=4)
    assert source.rows.shape == (20, 20)
    agent = ISREINFORCE(spec, (0, 1), hidden=(8,), behavior_updates=8)
    agent.learn(source.draw())
    cloned, _ = agent.learn(source.draw())
    assert cloned["behavior_loss"].isfinite().all()
    assert set(cloned) == {"behavior_loss", *ISREINFORCE.LATER}, "a table has the same columns from the start"
    policy = agent.policy.state_dict()
    assert all(torch.equal(p, policy[name]) for name, p in agent.behavior.state_dict().items()), "it acts as the clone"
    behavior = copy.deepcopy(agent.behavior.state_dict())
    metrics, _ = agent.learn(source.draw(1))
    assert metrics["effective_episodes"].tolist() == pytest.approx([6.0, 6.0]), "the policy is the clone still"
    metrics, _ = agent.learn(source.draw())
    assert all(torch.equal(p, behavior[name]) for name, p in agent.behavior.state_dict().items())
    assert (metrics["effective_episodes"] < 6).all()


def test_the_expected_return_by_hand():
    agent = ISREINFORCE(KINDS["gaussian"], (0,), gamma=0.5, hidden=(4,), self_normalized=False, max_weight=3.0)
    log_ratio = torch.tensor([[[2.0, 2.0], [0.5, 1.0]]]).log()
    reward = torch.tensor([[[1.0, 2.0], [4.0, 8.0]]])
    expected, weight = agent.expected_return(log_ratio, reward)
    assert weight.tolist() == [[pytest.approx([2.0, 3.0]), [0.5, 0.5]]]  # 4 is clipped to 3
    assert expected.tolist() == [pytest.approx([2 * 1 + 0.5 * 3 * 2, 0.5 * 4 + 0.5 * 0.5 * 8])]
    normalized = ISREINFORCE(KINDS["gaussian"], (0,), gamma=0.5, hidden=(4,), max_weight=3.0)
    _, weight = normalized.expected_return(log_ratio, reward)
    assert weight[0].mean(0).tolist() == pytest.approx([1.0, 1.0])
    assert weight[0, 0].tolist() == pytest.approx([2 / 1.25, 3 / 1.75])


@pytest.mark.parametrize("updates", [0, 3])
def test_steps_after_the_first_terminal_step_do_not_count(spec, source_of, updates):
    """An episode may continue after a terminal step, as in AntMaze; the policy's return ends at this step."""
    batch = tree_map(lambda x: x[0], EpisodeData(source_of((0,)).table, (0,), batch_size=6, updates=1).draw(1))
    batch.last[..., 3] = 1
    noised = batch._replace(**{name: getattr(batch, name).clone() for name in ("action", "reward")})
    for column in (noised.action, noised.reward):
        column[:, :, 4:] = column[:, :, 4:].flip(1)
    found = []
    for given in (batch, noised):
        agent = ISREINFORCE(spec, (0,), hidden=(8,), behavior_updates=1)
        agent.configure_optimizers()
        agent.updates = updates
        agent.update(given, {}, agent.phase())
        found.append(torch.cat([p.flatten() for p in agent.parameters()]))
    torch.testing.assert_close(*found)


def test_actions_on_a_bound_have_the_probability_of_all_samples_beyond_it():
    """Half of the samples of the data are clipped. With exact behaviour the estimate is the policy's return."""
    policy, behavior = (torch.distributions.Normal(mean, 0.5) for mean in (1.2, 0.8))
    action = behavior.sample((20_000, 1)).clamp(-1, 1).numpy()
    one, obs = np.ones(len(action), bool), np.zeros_like(action)
    reward = (action[:, 0] >= 1).astype(np.float32)
    data = Dataset.of_rows(obs, obs, action=2 * action, reward=reward, terminated=one, last=one)
    spec = Spec(1, 1, (-2.0,), (2.0,))
    agent = ISREINFORCE(spec, (0,), hidden=(), behavior_updates=0, self_normalized=False, max_weight=math.inf)
    agent.configure_optimizers()
    with torch.no_grad():
        for network, known in ((agent.policy, policy), (agent.behavior, behavior)):
            network.net.layers[-1].weight.zero_()
            network.net.layers[-1].bias.fill_(known.mean.item())
            network.log_std.fill_(known.stddev.log().item())
    batch = EpisodeData(Table(data, spec, 1.0), (0,), 20_000, 1).draw(1)
    metrics = agent.measure(tree_map(lambda x: x[0], batch))
    assert metrics["mean_weight"].item() == pytest.approx(1.0, abs=0.05)
    assert -metrics["policy_loss"].item() == pytest.approx(1 - policy.cdf(torch.tensor(1.0)).item(), abs=0.05)


@pytest.mark.parametrize("self_normalized", [True, False])
def test_weights_that_vanish_or_explode_keep_the_gradient_finite(spec, source_of, self_normalized):
    source = EpisodeData(source_of((0,)).table, (0,), batch_size=6, updates=3)
    for network in ("policy", "behavior"):
        agent = ISREINFORCE(spec, (0,), hidden=(8,), behavior_updates=1, self_normalized=self_normalized)
        agent.learn(source.draw(1))
        agent.updates = 2  # one of them is far from the data
        with torch.no_grad():
            getattr(agent, network).net.layers[-1].bias += 30
        metrics, _ = agent.learn(source.draw())
        assert (metrics["largest_weight"].log().abs() > 80).all()
        assert all(p.isfinite().all() for p in agent.parameters())
