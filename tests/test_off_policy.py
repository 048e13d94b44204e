"""Estimates of a policy's value from episodes of another policy, compared with exact values and slow loops."""

from functools import cache

import numpy as np
import pytest

from offlinerl import tabular
from offlinerl.data.dataset import Dataset
from offlinerl.evaluation.off_policy import discounted_returns, doubly_robust, importance_sampling
from offlinerl.util.errors import UserError

GAMMA, GOES_ON = 0.95, 0.9
"""Episodes end at every step with probability 1 - GOES_ON; GOES_ON is also the discount."""


def episodes_of(mdp, behavior, n, rng, goes_on=GOES_ON):
    """States, actions and rewards of n episodes, as a dataset of one-hot observations."""
    start, successors, choices = map(tabular.distribution_function, (mdp.start, mdp.transition, behavior))
    rows = []
    for _ in range(n):
        state, ended = np.searchsorted(start, rng.random(), side="right"), False
        while not ended:
            action = np.searchsorted(choices[state], rng.random(), side="right")
            successor = np.searchsorted(successors[state, action], rng.random(), side="right")
            ended = rng.random() >= goes_on
            rows.append((state, action, mdp.reward[state, action], successor, ended))
            state = successor
    states, actions, reward, successor, ended = map(np.array, zip(*rows, strict=True))
    one_hot = np.eye(len(mdp.start), dtype=np.float32)
    data = Dataset.of_rows(
        one_hot[states], one_hot[successor], action=actions[:, None].astype(np.float32),
        reward=reward.astype(np.float32), terminated=ended, last=ended,
    )  # fmt: skip
    return data, states, actions


@cache
def problem(number, n=200, states=6, actions=3):
    """A random MDP in the form that the estimators use, episodes of a behaviour policy, and a target policy."""
    rng = np.random.default_rng([21, number])
    mdp = tabular.random_mdp(states, actions, GAMMA * GOES_ON, rng)
    logits = rng.normal(size=(states, actions))
    behavior, target = (tabular.softmax_policy(x) for x in (logits, logits + 0.7 * rng.normal(size=logits.shape)))
    return mdp, target, behavior, *episodes_of(mdp, behavior, n, rng)


def wrong_model(mdp, target, rng):
    """Q and V of an inaccurate model."""
    _, Q = tabular.evaluate(mdp, target)
    Q = 0.7 * Q + 0.3 * rng.normal(size=Q.shape)
    return Q, (target * Q).sum(-1)


@pytest.mark.parametrize("weighted", (False, True))
@pytest.mark.parametrize("robust", (False, True))
def test_intervals_hold_the_exact_values_of_random_mdps(weighted, robust):
    inside, errors, widths = 0, [], []
    for number in range(20):
        mdp, target, behavior, data, s, a = problem(number)
        exact = tabular.performance(mdp, target)
        given = data, target[s, a], behavior[s, a]
        if robust:
            Q, V = wrong_model(mdp, target, np.random.default_rng(number))
            found = doubly_robust(*given, Q[s, a], V[s], GAMMA, weighted=weighted)
        else:
            found = importance_sampling(*given, GAMMA, weighted=weighted)
        low, high = found.interval
        inside += low <= exact <= high
        errors.append(abs(found.value - exact))
        widths.append(high - low)
        assert low <= found.value <= high and 1 <= found.effective <= 200
    assert inside >= 17
    assert np.median(widths) < 4  # an interval that contains everything would be useless


def test_the_model_and_the_weighting_narrow_the_interval():
    widths = {}
    for robust in (False, True):
        for weighted in (False, True):
            of_each = []
            for number in range(5):
                mdp, target, behavior, data, s, a = problem(number)
                _, Q = tabular.evaluate(mdp, target)
                given = data, target[s, a], behavior[s, a]
                values = (Q[s, a], (target * Q).sum(-1)[s]) if robust else ()
                found = (doubly_robust if robust else importance_sampling)(*given, *values, GAMMA, weighted=weighted)
                of_each.append(np.diff(found.interval)[0])
            widths[robust, weighted] = np.median(of_each)
    assert widths[False, True] < widths[False, False]
    assert widths[True, False] < widths[False, False] and widths[True, True] < widths[False, True]


def slow(data, target, behavior, Q, V, final_V, gamma, weighted, robust):
    """The estimators, computed with the loops of their papers."""
    firsts, lengths = data.episode_starts, data.episode_lengths
    n, T = len(firsts), max(lengths)
    ratio = [
        [target[f + t] / behavior[f + t] for t in range(length)] for f, length in zip(firsts, lengths, strict=True)
    ]
    if robust and not weighted:  # Jiang & Li, equation 10
        total = 0.0
        for i, (first, length) in enumerate(zip(firsts, lengths, strict=True)):
            value = 0.0 if data.terminated[first + length - 1] else final_V[i]
            for t in reversed(range(length)):
                value = V[first + t] + ratio[i][t] * (data.reward[first + t] + gamma * value - Q[first + t])
            total += value / n
        return total
    rho = np.ones((n, T + 1))  # of the steps before each
    for i in range(n):
        for t in range(T):
            rho[i, t + 1] = rho[i, t] * (ratio[i][t] if t < lengths[i] else 1.0)
    norm = rho.sum(0) if weighted else np.full(T + 1, float(n))
    total = 0.0
    for i, (first, length) in enumerate(zip(firsts, lengths, strict=True)):
        for t in range(length):
            after, before = rho[i, t + 1] / norm[t + 1], rho[i, t] / norm[t]
            if robust:  # Thomas & Brunskill, section 5
                total += gamma**t * (after * (data.reward[first + t] - Q[first + t]) + before * V[first + t])
            else:
                total += gamma**t * after * data.reward[first + t]
        if robust and not data.terminated[first + length - 1]:
            total += gamma**length * rho[i, length] / norm[length] * final_V[i]
    return total


@pytest.mark.parametrize("weighted", (False, True))
def test_estimates_equal_slow_loops(weighted):
    rng = np.random.default_rng(0)
    *_, data, s, a = problem(0, n=12)
    ended = data.terminated.copy()
    ended[data.episode_starts[1:6] - 1] = False  # some episodes are truncated instead
    data = Dataset(**{**data._columns(), "terminated": ended})
    target, behavior = rng.uniform(0.1, 1, (2, len(data)))
    target[3] = 0
    Q, V = rng.normal(size=(2, len(data)))
    final_V = rng.normal(size=12)
    given, settings = (data, target, behavior), dict(weighted=weighted, draws=10)
    expected = slow(*given, Q, V, final_V, GAMMA, weighted, robust=False)
    assert importance_sampling(*given, GAMMA, **settings).value == pytest.approx(expected, rel=1e-6)
    expected = slow(*given, Q, V, final_V, GAMMA, weighted, robust=True)
    found = doubly_robust(*given, Q, V, GAMMA, final_V=final_V, **settings)
    assert found.value == pytest.approx(expected, rel=1e-6)
    expected = slow(*given, Q, V, np.zeros(12), GAMMA, weighted, robust=True)
    assert doubly_robust(*given, Q, V, GAMMA, **settings).value == pytest.approx(expected, rel=1e-6)


def test_two_steps_by_hand():
    obs = np.zeros((3, 1), np.float32)
    last = np.array([False, True, True])
    data = Dataset.of_rows(
        obs, obs, action=obs, reward=np.array([1, 2, 4], np.float32), terminated=last, last=last
    )  # two episodes: 1, 2 and 4
    target, behavior = np.array([0.5, 0.8, 0.2]), np.array([0.5, 0.4, 0.4])  # ratios 1, 2 and 0.5
    found = importance_sampling(data, target, behavior, 0.5)
    assert found.value == pytest.approx((1 * 1 + 0.5 * 2 * 2 + 0.5 * 4) / 2)
    found = importance_sampling(data, target, behavior, 0.5, weighted=True)
    assert found.value == pytest.approx((1 * 1 + 0.5 * 4) / 1.5 + 0.5 * 2 * 2 / 2.5)
    assert found.effective == pytest.approx(2.5**2 / (2**2 + 0.5**2))


@pytest.mark.parametrize("weighted", (False, True))
def test_steps_after_a_terminal_one_do_not_count(weighted):
    """An episode that was recorded beyond a terminal step has the same value as without the rest."""
    rng = np.random.default_rng(0)
    lengths, terminal = np.array([5, 8, 6]), (2, 4, None)  # the last one is truncated
    step, episode = np.concatenate([np.arange(n) for n in lengths]), np.repeat(np.arange(3), lengths)
    terminated = np.array([terminal[e] is not None and t >= terminal[e] for e, t in zip(episode, step, strict=True)])
    kept = np.array([terminal[e] is None or t <= terminal[e] for e, t in zip(episode, step, strict=True)])
    reward, Q, V = rng.normal(size=(3, len(step))).astype(np.float32)
    target, behavior = rng.uniform(0.1, 1, (2, len(step)))

    def data_of(rows):
        obs, last = np.zeros((rows.sum(), 1), np.float32), np.r_[np.diff(episode[rows]) > 0, True]
        return Dataset.of_rows(obs, obs, action=obs, reward=reward[rows], terminated=terminated[rows], last=last)

    found = []
    for rows in (np.ones(len(step), bool), kept):
        given = data_of(rows), target[rows], behavior[rows]
        more = dict(weighted=weighted, draws=10)
        robust = doubly_robust(*given, Q[rows], V[rows], GAMMA, final_V=np.full(3, 9.0), **more)
        found.append((importance_sampling(*given, GAMMA, **more), robust, discounted_returns(given[0], GAMMA)))
    for whole, part in zip(*found, strict=True):
        np.testing.assert_allclose(getattr(whole, "value", whole), getattr(part, "value", part))
        assert getattr(whole, "effective", None) == getattr(part, "effective", None)


def test_a_return_stops_at_the_first_terminal_step():
    step, obs = np.arange(200), np.zeros((200, 1), np.float32)
    goal = step >= 20
    data = Dataset.of_rows(
        obs, obs, action=obs, reward=goal.astype(np.float32), terminated=goal, last=step == 199
    )  # a reward of 1 at every step from 20 on
    assert discounted_returns(data, 0.99) == pytest.approx([0.99**20])


def test_an_infinite_weight_adds_nothing_to_a_zero_reward():
    obs, last = np.zeros((2, 1), np.float32), np.ones(2, bool)
    data = Dataset.of_rows(obs, obs, action=obs, reward=np.array([0, 3], np.float32), terminated=last, last=last)
    found = importance_sampling(data, np.array([1.0, 1.0]), np.array([5e-324, 1.0]), 1.0)
    assert found.value == 1.5


def test_the_estimate_for_the_behaviour_policy_is_its_mean_return():
    *_, data, s, a = problem(1)
    same = np.full(len(data), 0.3)
    for weighted in (False, True):
        found = importance_sampling(data, same, same, 1.0, weighted=weighted)
        assert found.value == pytest.approx(data.episode_returns.mean(), rel=1e-6)
        assert found.effective == pytest.approx(200)


def test_long_products_of_ratios_stay_finite():
    rows = 4_000
    last = np.arange(rows) % 2_000 == 1_999
    obs = np.zeros((rows, 1), np.float32)
    data = Dataset.of_rows(obs, obs, action=obs, reward=np.ones(rows, np.float32), terminated=last, last=last)
    found = importance_sampling(data, np.full(rows, 0.9), np.full(rows, 0.3), 0.5, weighted=True)
    assert found.value == pytest.approx(2.0)


def test_arrays_that_do_not_fit_are_refused():
    *_, data, s, a = problem(2, n=3)
    fine = np.full(len(data), 0.5)
    with pytest.raises(UserError, match="target must have one number for each of the"):
        importance_sampling(data, fine[1:], fine, 0.9)
    with pytest.raises(UserError, match="behaviour's probabilities must be finite and above 0"):
        importance_sampling(data, fine, np.zeros(len(data)), 0.9)
    with pytest.raises(UserError, match="target's probabilities must be finite and at least 0"):
        importance_sampling(data, -fine, fine, 0.9)
    with pytest.raises(UserError, match="V must have one number"):
        doubly_robust(data, fine, fine, fine, fine[:2], 0.9)
