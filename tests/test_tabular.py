"""The exact solutions, compared with each other, with numbers computed by hand, and with samples."""

import math

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from offlinerl import tabular
from offlinerl.envs.finite import FINITE_ID, GRID_ID, Finite, kwargs_of
from offlinerl.envs.make import make, spec_of, specification
from offlinerl.learning import losses
from offlinerl.util.errors import UserError

BETAS = [0.5, 1.0, 3.0]


def garnet(seed=0, states=6, actions=3, gamma=0.8):
    return tabular.random_mdp(states, actions, gamma, np.random.default_rng(seed))


def logits_of(mdp, seed=1):
    return np.random.default_rng(seed).normal(size=mdp.reward.shape)


def some_policy(mdp, seed=1):
    return tabular.softmax_policy(logits_of(mdp, seed))


def uniform(mdp):
    return np.full(mdp.reward.shape, 1 / mdp.reward.shape[1])


# ---------------------------------------------------------------------------------------------- processes


def test_a_garnet_has_as_many_successors_as_it_branches():
    mdp = garnet(states=7, actions=2)
    assert ((mdp.transition > 0).sum(-1) == 3).all() and not mdp.terminal.any()
    assert np.array_equal(mdp.transition, garnet(states=7, actions=2).transition)
    assert not np.array_equal(mdp.transition, garnet(1, states=7, actions=2).transition)
    for branching in (0, 8):
        with pytest.raises(UserError, match="branching must be between 1 and the 7 states"):
            tabular.random_mdp(7, 2, 0.9, np.random.default_rng(0), branching)


def test_moves_on_the_grid_by_hand():
    mdp = tabular.grid_world(height=3, width=4)
    successor = mdp.transition.argmax(-1)
    assert mdp.transition.max(-1).min() == 1, "every move is certain"
    assert successor[5].tolist() == [6, 4, 1, 9]  # right, left, up, down
    assert successor[3].tolist() == [3, 2, 3, 7]  # the upper right corner has walls to its right and above
    assert successor[0].tolist() == [0] * 4 and successor[11].tolist() == [11] * 4
    assert np.flatnonzero(mdp.terminal).tolist() == [0, 11] == np.flatnonzero(mdp.start == 0).tolist()
    assert mdp.reward[1:-1].tolist() == [[-1] * 4] * 10
    with pytest.raises(UserError, match="no cell between"):
        tabular.grid_world(1, 2)


SOUND = dict(transition=[[[0.5, 0.5]], [[0, 1]]], reward=[[1], [0]], gamma=0.9, start=[1, 0])


@pytest.mark.parametrize(
    "wrong, message",
    [
        (dict(transition=[[0.5, 0.5], [0, 1]]), r"transition must have the shape \[states, actions, states\]"),
        (dict(transition=[[[0.5, 0.4]], [[0, 1]]]), "every distribution of transition"),
        (dict(transition=[[[1.5, -0.5]], [[0, 1]]]), "every distribution of transition"),
        (dict(reward=[1, 0]), r"reward must have the shape \[2, 1\], not \[2\]"),
        (dict(reward=[[1], [math.nan]]), "every reward must be finite"),
        (dict(start=[1, 0, 0]), r"start must have the shape \[2\], not \[3\]"),
        (dict(start=[0.5, 0.6]), "every distribution of start"),
        (dict(gamma=1.0), "gamma must be at least 0 and below 1, not 1.0"),
        (dict(gamma=-0.1), "gamma must be at least 0 and below 1, not -0.1"),
    ],
)
def test_invalid_processes_are_refused(wrong, message):
    assert tabular.FiniteMDP(**SOUND).terminal.tolist() == [False, True]
    with pytest.raises(UserError, match=message):
        tabular.FiniteMDP(**{**SOUND, **wrong})


def test_a_state_with_a_reward_or_an_exit_is_not_terminal():
    transition = np.tile(np.eye(3)[:, None], (1, 2, 1))
    transition[2, 1] = [1, 0, 0]
    mdp = tabular.FiniteMDP(transition, [[0, 0], [0, 1], [0, 0]], 0.9, [1, 0, 0])
    assert mdp.terminal.tolist() == [True, False, False]


# ---------------------------------------------------------------------------------------------- values


def test_values_of_the_random_policy_on_the_grid_are_those_of_the_textbook():
    mdp = tabular.grid_world(gamma=1 - 1e-9)  # the textbook does not discount
    V, _ = tabular.evaluate(mdp, uniform(mdp))
    figure = [[0, -14, -20, -22], [-14, -18, -20, -20], [-20, -20, -18, -14], [-22, -20, -14, 0]]
    np.testing.assert_allclose(V.reshape(4, 4), figure, atol=1e-4)  # Sutton & Barto, figure 4.1


def test_values_of_a_policy_by_hand():
    # from state 0 one leaves with a half and is paid 1 a step: V = 1 / (1 - 0.9 / 2)
    mdp = tabular.FiniteMDP(**SOUND)
    V, Q = tabular.evaluate(mdp, np.ones((2, 1)))
    assert V.tolist() == pytest.approx([1 / 0.55, 0]) and Q[:, 0].tolist() == pytest.approx(V.tolist())
    assert tabular.performance(mdp, np.ones((2, 1))) == pytest.approx(1 / 0.55)


@pytest.mark.parametrize("solve", [tabular.value_iteration, tabular.policy_iteration])
@pytest.mark.parametrize("gamma", [0.0, 0.9, 0.999])
def test_optimal_values_of_the_grid_by_hand(solve, gamma):
    row, column = np.indices((4, 4))
    steps = np.minimum(row + column, 6 - row - column).ravel()  # to the nearer corner
    V, Q = solve(tabular.grid_world(gamma=gamma))
    np.testing.assert_allclose(V, -(1 - gamma**steps) / (1 - gamma), atol=1e-8)
    np.testing.assert_allclose(Q.max(-1), V, atol=1e-8)


@pytest.mark.parametrize("seed", range(5))
def test_policy_iteration_finds_what_value_iteration_does(seed):
    mdp = garnet(seed, states=12, actions=4, gamma=0.95)
    (V, Q), (V_too, Q_too) = tabular.policy_iteration(mdp), tabular.value_iteration(mdp)
    np.testing.assert_allclose(V, V_too, atol=1e-8)
    np.testing.assert_allclose(Q, Q_too, atol=1e-8)
    np.testing.assert_allclose(V, Q.max(-1), atol=1e-9)
    assert tabular.performance(mdp, tabular.greedy_policy(Q)) == pytest.approx(mdp.start @ V)
    for other in range(20):
        assert (tabular.evaluate(mdp, some_policy(mdp, other))[0] < V).all()


@pytest.mark.parametrize("tolerance", [1e-2, 1e-6])
def test_value_iteration_reaches_its_tolerance(tolerance):
    mdp = garnet(gamma=0.99)
    V, _ = tabular.policy_iteration(mdp)
    error = np.abs(tabular.value_iteration(mdp, tolerance)[0] - V).max()
    assert 1e-12 < error <= tolerance * np.abs(V).max() * 1.01


def test_samples_of_a_distribution_function_at_its_edges():
    sums = tabular.distribution_function(np.array([0, 0.5, 0.5, 0]))
    last = np.nextafter(1, 0)
    assert np.searchsorted(sums, [0, 0.5, last], side="right").tolist() == [1, 2, 2]
    tenths = tabular.distribution_function(np.full(10, 0.1))  # the plain sum of these is below 1
    assert np.searchsorted(tenths, [0, last], side="right").tolist() == [0, 9]


def test_q_learning_converges_to_the_optimal_values():
    mdp = garnet(states=5, actions=2)
    _, Q = tabular.value_iteration(mdp)
    rng = np.random.default_rng(0)
    errors = [np.abs(tabular.q_learning(mdp, steps, rng) - Q).max() for steps in (1_000, 60_000)]
    assert errors[1] < 0.05 < errors[0], f"of values that spread by {np.ptp(Q):.1f}"


def test_q_learning_solves_the_grid():
    mdp = tabular.grid_world(3, 3, gamma=0.9)
    learned = tabular.q_learning(mdp, 40_000, np.random.default_rng(0))
    np.testing.assert_allclose(learned, tabular.value_iteration(mdp)[1], atol=0.01)


# ---------------------------------------------------------------------------------------------- soft values


@pytest.mark.parametrize("beta", BETAS)
def test_the_soft_maximum_by_hand(beta):
    Q, reference = np.array([1.0, 2.0, 50.0]), np.array([0.25, 0.75, 0.0])
    by_hand = beta * math.log(0.25 * math.exp(1 / beta) + 0.75 * math.exp(2 / beta))
    assert tabular.soft_maximum(Q, reference, beta) == pytest.approx(by_hand)
    policy = tabular.soft_policy(Q, reference, beta)
    weight = [0.25 * math.exp(1 / beta), 0.75 * math.exp(2 / beta)]
    assert policy.tolist() == pytest.approx([weight[0] / sum(weight), weight[1] / sum(weight), 0])


def test_the_soft_maximum_does_not_overflow():
    Q, reference = np.array([5000.0, -5000.0]), np.array([0.5, 0.5])
    assert tabular.soft_maximum(Q, reference, 1.0) == pytest.approx(5000 - math.log(2))
    with pytest.raises(UserError, match="beta must be positive, not 0"):
        tabular.soft_maximum(Q, reference, 0)


@pytest.mark.parametrize("beta", BETAS)
def test_soft_value_iteration_satisfies_its_fixed_point(beta):
    mdp, reference = garnet(gamma=0.95), some_policy(garnet())
    V, Q = tabular.soft_value_iteration(mdp, reference, beta)
    np.testing.assert_allclose(V, beta * np.log((reference * np.exp(Q / beta)).sum(-1)), atol=1e-8)
    np.testing.assert_allclose(Q, mdp.reward + 0.95 * np.einsum("sat,t->sa", mdp.transition, V), atol=1e-8)


@pytest.mark.parametrize("beta", BETAS)
def test_the_soft_policy_earns_the_soft_value_and_no_other_more(beta):
    mdp, reference = garnet(), some_policy(garnet())
    V, Q = tabular.soft_value_iteration(mdp, reference, beta)

    def regularised(policy):
        cost = beta * np.log(policy / reference)
        return tabular.evaluate(tabular.FiniteMDP(mdp.transition, mdp.reward - cost, mdp.gamma, mdp.start), policy)[0]

    policy = tabular.soft_policy(Q, reference, beta)
    np.testing.assert_allclose(policy.sum(-1), 1)
    np.testing.assert_allclose(regularised(policy), V, atol=1e-8)
    for seed in range(2, 22):
        assert (regularised(some_policy(mdp, seed)) < V).all()


def test_the_soft_value_is_between_those_of_the_reference_and_the_optimum():
    mdp, reference = garnet(), some_policy(garnet())
    low, high = tabular.evaluate(mdp, reference)[0], tabular.value_iteration(mdp)[0]
    values = [tabular.soft_value_iteration(mdp, reference, beta)[0] for beta in (1e-5, 0.1, 1.0, 10.0, 1e6)]
    np.testing.assert_allclose(values[0], high, atol=1e-3)
    np.testing.assert_allclose(values[-1], low, atol=1e-3)
    assert (low < high - 0.1).all()
    assert (np.diff([high, *values, low], axis=0) < 1e-9).all(), "V falls as beta grows"


def test_an_action_that_the_reference_never_takes_is_ignored():
    mdp, reference = garnet(), tabular.greedy_policy(logits_of(garnet()))
    V, Q = tabular.soft_value_iteration(mdp, reference, 0.5)
    np.testing.assert_allclose(V, tabular.evaluate(mdp, reference)[0], atol=1e-8)
    np.testing.assert_allclose(tabular.soft_policy(Q, reference, 0.5), reference)


@pytest.mark.parametrize("beta", BETAS)
def test_extreme_q_learning_of_tables_finds_the_soft_values(beta):
    """Gradient descent on the two losses of XQL, over every transition that can happen, weighted by how often the
    reference makes it. Successors are random, so V must fit the mean of Q over them and not single samples."""
    mdp = garnet()
    reference = some_policy(mdp)
    transitions = np.nonzero(mdp.transition)
    frequency = reference[transitions[:2]] * mdp.transition[transitions]
    states = len(mdp.start)
    # A row for each state, because the Gumbel loss is scaled by the largest entry of its last axis.
    s, a, following = (torch.as_tensor(index).reshape(states, -1) for index in transitions)
    weight, reward = torch.as_tensor(frequency).reshape(s.shape), torch.as_tensor(mdp.reward)[s, a]

    V = torch.zeros(states, dtype=torch.float64, requires_grad=True)
    Q = torch.zeros(mdp.reward.shape, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([V, Q], lr=0.1)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.995)
    for _ in range(1500):
        value = losses.gumbel(Q[s, a].detach() - V[s], beta)
        critic = losses.squared(reward + mdp.gamma * V[following].detach() - Q[s, a])
        optimizer.zero_grad()
        (weight * (value + critic)).sum().backward()
        optimizer.step()
        schedule.step()
    V_exact, Q_exact = tabular.soft_value_iteration(mdp, reference, beta)
    np.testing.assert_allclose(V.detach(), V_exact, atol=1e-6)
    np.testing.assert_allclose(Q.detach(), Q_exact, atol=1e-6)


# ---------------------------------------------------------------------------------------------- policy gradients


def test_the_softmax_policy_by_hand():
    policy = tabular.softmax_policy(np.array([[0.0, math.log(3)], [1000.0, 0.0]]))
    np.testing.assert_allclose(policy, [[0.25, 0.75], [1, 0]], atol=1e-15)


def test_the_state_distribution_is_the_discounted_share_of_time():
    mdp = tabular.FiniteMDP(garnet().transition, garnet().reward, 0.8, np.eye(6)[2])
    policy = some_policy(mdp)
    share, now = np.zeros(6), mdp.start
    for t in range(200):
        share += 0.2 * 0.8**t * now
        now = np.einsum("s,sa,sat->t", now, policy, mdp.transition)
    d = tabular.state_distribution(mdp, policy)
    np.testing.assert_allclose(d, share, atol=1e-12)
    assert d.sum() == pytest.approx(1, abs=1e-12)
    assert tabular.performance(mdp, policy) == pytest.approx(d @ (policy * mdp.reward).sum(-1) / 0.2)


@pytest.mark.parametrize("mdp", [garnet(), garnet(3, gamma=0.98), tabular.grid_world(3, 3)], ids=["", "far", "grid"])
def test_the_policy_gradient_is_that_of_the_performance(mdp):
    logits, step = logits_of(mdp), 1e-4
    differences = np.zeros_like(logits)
    for entry in np.ndindex(logits.shape):
        nudge = np.zeros_like(logits)
        nudge[entry] = step
        above, below = (tabular.performance(mdp, tabular.softmax_policy(logits + sign * nudge)) for sign in (1, -1))
        differences[entry] = (above - below) / (2 * step)
    gradient = tabular.policy_gradient(mdp, logits)
    assert np.abs(gradient).max() > 0.01
    np.testing.assert_allclose(gradient, differences, atol=1e-6 * np.abs(gradient).max())


def test_the_fisher_information_is_the_mean_square_of_the_score():
    mdp = garnet(states=4)
    logits, step = logits_of(mdp), 1e-5
    policy = tabular.softmax_policy(logits)
    nudges = step * np.eye(logits.size).reshape(-1, *logits.shape)
    score = np.log(tabular.softmax_policy(logits + nudges) / tabular.softmax_policy(logits - nudges)) / (2 * step)
    weight = tabular.state_distribution(mdp, policy)[:, None] * policy
    mean = np.einsum("sa,isa,jsa->ij", weight, score, score)
    np.testing.assert_allclose(tabular.fisher(mdp, logits), mean, atol=1e-9)


@pytest.mark.parametrize("reached", [True, False])
def test_the_natural_gradient_is_the_advantage(reached):
    mdp = garnet(states=4)
    if not reached:  # state 3 is one that nothing leads to
        transition = mdp.transition[..., :3] + mdp.transition[..., 3:] / 3
        transition = np.concatenate([transition, np.zeros((4, 3, 1))], -1)
        mdp = tabular.FiniteMDP(transition, mdp.reward, mdp.gamma, [0, 1, 0, 0])
    logits = logits_of(mdp)
    natural = tabular.natural_gradient(mdp, logits)
    inverse = np.linalg.pinv(tabular.fisher(mdp, logits), rcond=1e-10, hermitian=True)
    solved = (inverse @ tabular.policy_gradient(mdp, logits).ravel()).reshape(logits.shape)
    np.testing.assert_allclose(natural, solved, atol=1e-9)

    V, Q = tabular.evaluate(mdp, tabular.softmax_policy(logits))
    rest = (natural - (Q - V[:, None]) / (1 - mdp.gamma))[: None if reached else 3]
    np.testing.assert_allclose(rest, np.broadcast_to(rest[:, :1], rest.shape), atol=1e-9)
    assert np.abs(natural[3]).max() > 0.1 if reached else not natural[3].any()


# ---------------------------------------------------------------------------------------------- environments


def walk(env, policy, steps, seed):
    """The transitions of a policy: state, action, successor, reward, terminated, each ``[steps]``."""
    rng, rows = np.random.default_rng([seed, 1]), []  # seed alone would give the environment's random numbers
    sums, state = tabular.distribution_function(policy), env.reset(seed=seed)[0].argmax()
    for _ in range(steps):
        action = np.searchsorted(sums[state], rng.random(), side="right")
        observation, reward, terminated, truncated, _ = env.step(action)
        rows.append((state, action, observation.argmax(), reward, terminated))
        state = (env.reset()[0] if terminated or truncated else observation).argmax()
    return tuple(np.array(column) for column in zip(*rows, strict=True))


def test_transitions_are_as_frequent_as_they_are_likely():
    mdp = garnet()
    state, action, following, reward, terminated = walk(Finite(**kwargs_of(mdp)), some_policy(mdp), 20_000, seed=0)
    counts = np.zeros(mdp.transition.shape)
    np.add.at(counts, (state, action, following), 1)
    visits = counts.sum(-1, keepdims=True)
    error = np.sqrt(mdp.transition * (1 - mdp.transition) / visits)
    assert visits.min() > 50
    assert (np.abs(counts / visits - mdp.transition) <= 4 * error).all()  # nothing impossible either
    assert np.array_equal(reward, mdp.reward[state, action]) and not terminated.any()


def test_the_first_state_is_drawn_from_the_start():
    start = np.array([0.5, 0.2, 0.3, 0, 0, 0])
    mdp = tabular.FiniteMDP(garnet().transition, garnet().reward, 0.8, start)
    env = Finite(**kwargs_of(mdp))
    share = np.mean([env.reset(seed=seed)[0] for seed in range(3000)], axis=0)
    assert (np.abs(share - start) <= 4 * np.sqrt(start * (1 - start) / 3000)).all()


@pytest.fixture(scope="module")
def horizons():
    """A process, logits, and what their policy does in episodes of random length: state, action and return to go of
    every step, which episode it is of, and every episode's return."""
    mdp = garnet(4, states=4, actions=2, gamma=0.75)
    logits = logits_of(mdp)
    env = make({"id": FINITE_ID, "kwargs": kwargs_of(mdp, random_horizon=True)})
    state, action, _, reward, terminated = walk(env, tabular.softmax_policy(logits), 40_000, seed=0)
    end = np.flatnonzero(terminated)
    episode = np.repeat(np.arange(len(end)), np.diff(end, prepend=-1))
    state, action, reward = (column[: len(episode)] for column in (state, action, reward))  # only whole episodes
    past = reward.cumsum()
    to_go = past[end][episode] - past + reward
    return mdp, logits, state, action, to_go, episode, to_go[np.append(0, end[:-1] + 1)]


def test_with_a_random_horizon_the_mean_return_is_the_performance(horizons):
    mdp, logits, *_, episode, total = horizons
    exact, error = tabular.performance(mdp, tabular.softmax_policy(logits)), total.std() / math.sqrt(len(total))
    assert 8 * error < abs(exact), "too few episodes to tell"
    assert abs(total.mean() - exact) < 4 * error
    length = np.bincount(episode)
    assert abs(length.mean() - 1 / (1 - mdp.gamma)) < 4 * length.std() / math.sqrt(len(length))


def test_with_a_random_horizon_the_sampled_policy_gradient_needs_no_discount(horizons):
    mdp, logits, state, action, to_go, episode, total = horizons
    sample = np.zeros((len(total), *logits.shape))  # of each episode, sum_t return to go * grad log pi (REINFORCE)
    np.add.at(sample, (episode, state, action), to_go)
    np.add.at(sample, (episode, state), -to_go[:, None] * tabular.softmax_policy(logits)[state])
    exact, error = tabular.policy_gradient(mdp, logits), sample.std(0) / math.sqrt(len(total))
    assert 4 * np.linalg.norm(error) < np.linalg.norm(exact), "too few episodes to tell"
    assert (np.abs(sample.mean(0) - exact) < 4 * error).all()


def test_a_seed_decides_an_episode():
    env, again = (Finite(**kwargs_of(garnet(), random_horizon=True)) for _ in range(2))
    walk(env, uniform(garnet()), 10, seed=5)  # earlier episodes must not matter
    first = np.stack(walk(env, uniform(garnet()), 100, seed=3))
    assert np.array_equal(first, np.stack(walk(again, uniform(garnet()), 100, seed=3)))
    assert not np.array_equal(first, np.stack(walk(env, uniform(garnet()), 100, seed=4)))


@pytest.mark.parametrize("name, kwargs", [(FINITE_ID, kwargs_of(garnet())), (GRID_ID, {})])
def test_gymnasiums_checker_finds_no_fault(name, kwargs):
    check_env(gym.make(name, **kwargs).unwrapped, skip_render_check=True)


def test_the_grid_terminates_in_a_corner_and_is_truncated_after_100_steps():
    env = make({"id": GRID_ID, "kwargs": {"height": 3, "width": 3}})
    assert (spec_of(env).obs_dim, spec_of(env).num_actions) == (9, 4)
    env.reset(seed=0)
    env.unwrapped._state = 5  # the right cell of the middle row
    ends = [env.step(action)[1:4] for action in (0, 1, 3, 0)]  # into the wall, left, down, right into the corner
    assert ends == [(-1.0, False, False)] * 3 + [(-1.0, True, False)]

    env.reset(seed=0)
    env.unwrapped._state = 2  # the upper right corner, which is not terminal
    flags = [env.step(0)[2:4] for _ in range(100)]
    assert flags == [(False, False)] * 99 + [(False, True)]


def test_the_environment_can_be_made_again_from_its_specification():
    mdp = tabular.grid_world(3, 3, gamma=0.9)
    env = make({"id": FINITE_ID, "kwargs": kwargs_of(mdp, random_horizon=True)})
    again = make({"spec": specification(env)})
    assert again.unwrapped.random_horizon
    for name in ("transition", "reward", "start", "gamma"):
        assert np.array_equal(getattr(again.unwrapped.mdp, name), getattr(mdp, name))
    with pytest.raises(UserError, match="every distribution of start"):
        make({"id": FINITE_ID, "kwargs": {**kwargs_of(mdp), "start": [1] * 9}})
