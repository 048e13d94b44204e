"""Fitted Q evaluation, compared with exact values."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import SPEC, random_table
from test_off_policy import GAMMA, problem

from offlinerl import tabular
from offlinerl.agents.bc import BC
from offlinerl.agents.dt import DT
from offlinerl.data.dataset import Dataset
from offlinerl.evaluation.fqe import (
    FQE,
    Followed,
    Resampled,
    choice_of,
    fitted_q_evaluation,
    has_diverged,
    typical_return,
)
from offlinerl.evaluation.statistics import of_replicates, student
from offlinerl.experience.table import Table
from offlinerl.types import Batch, Spec
from offlinerl.util.errors import UserError


def followed(target):
    """A policy of one-hot states as ``Choice``."""
    table = torch.from_numpy(target).float()
    return lambda obs: obs @ table


def estimate_of(number, critics=8):
    mdp, target, _, data, *_ = problem(number)
    spec = Spec(6, 1, (0.0,), (2.0,), 3)
    found = fitted_q_evaluation(
        followed(target), data, spec, critics=critics, updates=600, batch=128, gamma=GAMMA, hidden=(), lr=0.05,
        tau=0.1,
    )  # fmt: skip
    return found, tabular.performance(mdp, target)


def check(numbers):
    inside, errors, widths = 0, [], []
    for number in numbers:
        found, exact = estimate_of(number)
        inside += found.interval[0] <= exact <= found.interval[1]
        errors.append(found.value - exact)
        widths.append(np.diff(found.interval)[0])
    assert inside >= 0.85 * len(numbers)
    assert np.median(widths) < 1.5  # and the interval is narrow enough to be useful
    assert np.median(np.abs(errors)) < 0.3


def test_of_several_seeds_the_first_one_chooses():
    agent = BC(SPEC, (0, 1), hidden=(4,))
    obs = torch.randn(5, *SPEC.obs[0].shape)
    np.testing.assert_allclose(choice_of(agent)(obs), choice_of(agent.part(slice(0, 1)))(obs))
    assert not has_diverged(agent)
    with torch.no_grad():
        for parameter in agent.parameters():
            parameter[0] = float("nan")
    assert has_diverged(agent)


def test_actions_are_rounded_as_the_environment_does():
    spec = replace(SPEC, action_low=(0.0,), action_high=(4.0,), whole=True)
    agent = BC(spec, (0,), hidden=(4,))
    obs = torch.randn(50, *spec.obs[0].shape) * 9
    with torch.no_grad():
        chosen = agent.act(obs.unsqueeze(0))[0]
    assert (chosen != chosen.round()).any()
    np.testing.assert_allclose(choice_of(agent)(obs), (chosen.round() - 2) / 2)


def test_intervals_hold_the_exact_values_of_some_random_mdps():
    check(range(3))


@pytest.mark.slow
def test_intervals_hold_the_exact_values_of_twenty_random_mdps():
    check(range(20))


@pytest.mark.slow
def test_a_linear_system_has_its_value_in_closed_form():
    # s' = 0.9 s + 0.5 u + noise, r = -s^2 - 0.1 u^2 and u = -0.6 s: V(s) = -p s^2 - q, from p = 1 + 0.1 0.6^2 +
    # gamma 0.6^2 p and q = gamma (p sigma^2 + q)
    gamma, gain, sigma = 0.9, 0.6, 0.1
    p = (1 + 0.1 * gain**2) / (1 - gamma * (0.9 - 0.5 * gain) ** 2)
    q = gamma * p * sigma**2 / (1 - gamma)
    rng = np.random.default_rng(0)
    episodes, T = 200, 10
    s, u = np.empty((episodes, T + 1)), rng.uniform(-1, 1, (episodes, T))
    s[:, 0] = rng.uniform(-1, 1, episodes)
    for t in range(T):
        s[:, t + 1] = 0.9 * s[:, t] + 0.5 * u[:, t] + sigma * rng.normal(size=episodes)
    reward = -(s[:, :-1] ** 2) - 0.1 * u**2
    last = np.tile(np.arange(T) == T - 1, episodes)
    data = Dataset.of_rows(
        s[:, :-1].reshape(-1, 1).astype(np.float32), s[:, 1:].reshape(-1, 1).astype(np.float32),
        action=u.reshape(-1, 1).astype(np.float32), reward=reward.ravel().astype(np.float32),
        terminated=np.zeros(len(last), bool), last=last,
    )  # fmt: skip
    found = fitted_q_evaluation(
        lambda obs: -gain * obs, data, Spec(1, 1, (-1.0,), (1.0,)), critics=4, updates=1_500, batch=128, gamma=gamma,
        hidden=(32, 32), lr=3e-3, tau=0.05,
    )  # fmt: skip
    exact = -p * (s[:, 0] ** 2).mean() - q
    behavior = -typical_return(data, gamma)
    assert found.value == pytest.approx(exact, abs=0.04 * abs(behavior))  # values are learned in these units
    assert abs(behavior - exact) > 3 * abs(exact)  # what is evaluated is the policy, not the data
    assert found.interval[0] < exact < found.interval[1]


def test_an_update_is_a_regression_on_the_target_policys_next_value():
    spec = Spec(3, 1, (0.0,), (1.0,), 2)
    agent = FQE(spec, (0, 1), hidden=(4,), scale=2.0, tau=0.5)
    agent.configure_optimizers()
    g = torch.Generator().manual_seed(0)
    obs, next_obs = torch.randn(2, 2, 5, 3, generator=g)
    action = torch.tensor([0.0, 1, 1, 0, 1]).expand(2, 5).unsqueeze(-1)
    chosen = torch.rand(2, 5, 2, generator=g)
    reward, discount = torch.randn(2, 2, 5, generator=g)
    q, next_q = agent.critic(obs).detach(), agent.target(next_obs)
    expected = torch.zeros(2)
    for s in range(2):
        for b in range(5):
            target = reward[s, b] / 2 + discount[s, b] * sum(chosen[s, b, a] * next_q[s, b, a] for a in range(2))
            expected[s] += (target - q[s, b, int(action[s, b, 0])]) ** 2 / 5
    batch = Batch(obs, action, reward, discount, next_obs, torch.zeros(2, 5), next_action=chosen)
    before = [p.clone() for p in agent.target.parameters()]
    metrics = agent.update(batch, {}, 0)
    torch.testing.assert_close(metrics["critic_loss"], expected)
    for old, new, online in zip(before, agent.target.parameters(), agent.critic.parameters(), strict=True):
        torch.testing.assert_close(new, (old + online) / 2)


def test_a_critic_alone_learns_the_same_as_beside_others():
    values = []
    for seeds in ((3, 4, 5), (4,)):
        agent = FQE(SPEC, seeds, hidden=(8, 8))
        agent.configure_optimizers()
        table = Followed(lambda obs: obs[:, :2].tanh(), random_table(), SPEC, 0.9)
        for block in Resampled(table, seeds, 16).blocks(20):
            agent.learn(block)
        obs = torch.from_numpy(random_table().obs[:7]).expand(len(seeds), 7, -1)
        values.append(agent.value(obs, obs[..., :2].tanh())[seeds.index(4)])
    torch.testing.assert_close(*values)


def test_a_bootstrap_resample_weights_its_episodes_by_their_lengths():
    data = random_table(200)  # ten episodes of 20 rows
    data = Dataset(**{**data._columns(), "last": data.last | (np.arange(200) == 4)})  # and the first one in two
    data = Dataset(**{**data._columns(), "reward": np.arange(200, dtype=np.float32)})
    table = Table(data, SPEC, 0.9)
    source = Resampled(table, (0, 1, 2), 500, 20)
    rows = source.draw().reward.long().transpose(0, 1).flatten(1)  # [S, K B]
    assert (source.times.sum(-1) == 11).all() and len({tuple(times.tolist()) for times in source.times}) == 3
    for times, of_seed in zip(source.times, rows, strict=True):
        share = torch.bincount(of_seed, minlength=200) / of_seed.numel()
        number = torch.repeat_interleave(torch.arange(11), table.lengths)
        expected = times[number] / (times * table.lengths).sum()
        assert (share[expected == 0] == 0).all()
        assert (share - expected).abs().max() < 5 * (expected.max() / of_seed.numel()).sqrt()


def test_the_policys_actions_are_looked_up_by_row():
    data = random_table(60)
    table = Followed(lambda obs: obs[:, :2].tanh(), data, SPEC, 0.9)
    batch = table.transitions(torch.arange(60))
    torch.testing.assert_close(batch.next_action, batch.next_obs[:, :2].tanh())
    torch.testing.assert_close(table.first, torch.from_numpy(data.obs[data.episode_starts][:, :2]).tanh())


def test_a_step_whose_successor_is_not_the_next_row_begins_no_episode():
    """Neither the mean over first observations nor a resample treats the rows after it as another episode."""
    data = random_table(60)
    elsewhere = data.next_at.copy()
    elsewhere[4] = 40
    data = replace(data, next_at=elsewhere)
    assert data.leaps.tolist() == [4]
    table = Followed(lambda obs: obs[:, :2].tanh(), data, SPEC, 0.9)
    assert table.starts.tolist() == data.episode_starts.tolist() == [0, 20, 40]
    assert table.lengths.tolist() == [20, 20, 20] and len(table.first) == 3
    assert Resampled(table, (0, 1), 8).times.shape == (2, 3)


def test_a_policys_actions_are_scaled_and_policies_with_memory_are_refused():
    spec = Spec(5, 2, (0.0, -4.0), (2.0, 4.0))
    agent = BC(spec, (0,), hidden=(8,))
    obs = torch.randn(9, 5)
    expected = (agent.act(obs[None])[0] - torch.tensor([1.0, 0.0])) / torch.tensor([1.0, 4.0])
    torch.testing.assert_close(choice_of(agent)(obs), expected.detach().clamp(-1, 1))
    with pytest.raises(UserError, match="DT acts by what it remembers"):
        choice_of(DT(spec, (0,)))
    with pytest.raises(UserError, match="at least 2 critics, not 1"):
        fitted_q_evaluation(choice_of(agent), random_table(), spec, critics=1)


def test_intervals_from_few_replicates_have_the_right_coverage():
    for freedom, value in {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 9: 2.262, 100: 1.984}.items():
        assert student(freedom) == pytest.approx(value, rel=0.01)
    rng, inside = np.random.default_rng(0), 0
    for _ in range(2_000):
        estimate = rng.normal()  # the true value is 0; the replicates scatter around the estimate
        low, high = of_replicates(estimate + rng.normal(size=5))[1]
        inside += low <= 0 <= high
    assert inside / 2_000 == pytest.approx(0.95, abs=0.015)


def test_typical_returns_by_hand():
    obs = np.zeros((3, 1), np.float32)
    last = np.array([False, True, True])
    data = Dataset.of_rows(obs, obs, action=obs, reward=np.array([1, 2, 4], np.float32), terminated=last, last=last)
    assert typical_return(data, 0.5) == pytest.approx(np.sqrt((2**2 + 2**2 + 4**2) / 3))


def test_typical_returns_end_at_terminal_steps():
    obs = np.zeros((3, 1), np.float32)
    ends = np.array([False, True, True]), np.array([False, False, True])
    data = Dataset.of_rows(
        obs, obs, action=obs, reward=np.array([1, 2, 4], np.float32), terminated=ends[0], last=ends[1]
    )
    assert typical_return(data, 0.5) == pytest.approx(np.sqrt((2**2 + 2**2 + 4**2) / 3))
