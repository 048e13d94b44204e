"""Exact solutions of finite Markov decision processes, against which sampling algorithms can be measured.

All arrays are float64. A policy is an array of probabilities ``[states, actions]``, V is ``[states]`` and Q is
``[states, actions]``, both in units of reward.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from offlinerl.util.errors import UserError


@dataclass(frozen=True, eq=False)
class FiniteMDP:
    """A Markov decision process with finitely many states and actions, both numbered from 0.

    A terminal state is one that every action leads back to, with a reward of 0.

    Attributes:
        transition: probability of every next state, ``[states, actions, states]``.
        reward: expected reward of every action, ``[states, actions]``.
        gamma: discount per step, in [0, 1).
        start: distribution of the initial state, ``[states]``.

    Raises:
        UserError: the shapes disagree, a distribution does not sum to one or has negative entries, a reward is not
            finite, or ``gamma`` is out of its range.
    """

    transition: np.ndarray
    reward: np.ndarray
    gamma: float
    start: np.ndarray

    def __post_init__(self) -> None:
        for name in ("transition", "reward", "start"):
            object.__setattr__(self, name, np.array(getattr(self, name), np.float64))
        shape = self.transition.shape
        if len(shape) != 3 or shape[0] != shape[2] or 0 in shape:
            raise UserError(f"transition must have the shape [states, actions, states], not {list(shape)}")
        for name, expected in (("reward", shape[:2]), ("start", shape[:1])):
            if getattr(self, name).shape != expected:
                raise UserError(f"{name} must have the shape {list(expected)}, not {list(getattr(self, name).shape)}")
        for name in ("transition", "start"):
            probability = getattr(self, name)
            if (probability < 0).any() or not np.allclose(probability.sum(-1), 1, rtol=0, atol=1e-8):
                raise UserError(f"every distribution of {name} must be at least 0 and sum to 1")
        if not np.isfinite(self.reward).all():
            raise UserError("every reward must be finite")
        if not 0 <= self.gamma < 1:
            raise UserError(f"gamma must be at least 0 and below 1, not {self.gamma}")

    @property
    def terminal(self) -> np.ndarray:
        """Which states are terminal, ``[states]`` bool."""
        stays = self.transition.diagonal(axis1=0, axis2=2) == 1  # [actions, states]
        return stays.all(0) & (self.reward == 0).all(1)


def grid_world(height: int = 4, width: int = 4, gamma: float = 0.99) -> FiniteMDP:
    """A grid to leave by its upper left or its lower right corner, in as few steps as possible.

    States are numbered row by row; actions are right, left, up and down. Every transition has a reward of -1, including
    one into a wall, which leaves the state unchanged. The corners are terminal; all other states are equally likely at
    the start.

    Sutton & Barto, Reinforcement Learning, second edition, 2018, example 4.1.

    Raises:
        UserError: the grid has fewer than three cells.
    """
    states = height * width
    if states < 3:
        raise UserError(f"a grid of {height} x {width} has no cell between its two corners")
    row, column = np.divmod(np.arange(states)[:, None], width)
    down, right = np.array([[0, 0, -1, 1], [1, -1, 0, 0]])
    successor = (row + down).clip(0, height - 1) * width + (column + right).clip(0, width - 1)
    inner = np.ones(states)
    inner[[0, -1]] = 0
    successor[0], successor[-1] = 0, states - 1
    return FiniteMDP(np.eye(states)[successor], np.tile(-inner[:, None], 4), gamma, inner / inner.sum())


def random_mdp(states: int, actions: int, gamma: float, rng: np.random.Generator, branching: int = 3) -> FiniteMDP:
    """A Garnet: a random process in which every action has ``branching`` next states and a random reward.

    The next states are drawn without replacement; their probabilities are the lengths into which uniformly random cuts
    divide the unit interval; rewards are standard normal; all states are equally likely at the start.

    Archibald et al., On the generation of Markov decision processes, 1995; Bhatnagar et al., Natural actor-critic
    algorithms, 2009.

    Raises:
        UserError: ``branching`` is not between 1 and ``states``.
    """
    if not 1 <= branching <= states:
        raise UserError(f"branching must be between 1 and the {states} states, not {branching}")
    successor = rng.random((states, actions, states)).argsort(-1)[..., :branching]
    transition = np.zeros((states, actions, states))
    np.put_along_axis(transition, successor, rng.dirichlet(np.ones(branching), (states, actions)), -1)
    return FiniteMDP(transition, rng.normal(size=(states, actions)), gamma, np.full(states, 1 / states))


# ---------------------------------------------------------------------------------------------- values


def _chain(mdp: FiniteMDP, policy: np.ndarray) -> np.ndarray:
    """Transition probabilities between states under a policy, ``[states, states]``."""
    return np.einsum("sa,sat->st", policy, mdp.transition)


def _backup(mdp: FiniteMDP, V: np.ndarray) -> np.ndarray:
    """``Q = r + gamma P V``."""
    return mdp.reward + mdp.gamma * mdp.transition @ V


def evaluate(mdp: FiniteMDP, policy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """V and Q of a policy, from the linear equations ``V = r_pi + gamma P_pi V`` (Bellman, 1957)."""
    reward = (policy * mdp.reward).sum(-1)
    V = np.linalg.solve(np.eye(len(reward)) - mdp.gamma * _chain(mdp, policy), reward)
    return V, _backup(mdp, V)


def performance(mdp: FiniteMDP, policy: np.ndarray) -> float:
    """J, the expected discounted return of a policy from ``mdp.start``."""
    return float(mdp.start @ evaluate(mdp, policy)[0])


def greedy_policy(Q: np.ndarray) -> np.ndarray:
    """The policy that takes the best action in every state, the first one if there is a tie."""
    return np.eye(Q.shape[-1])[Q.argmax(-1)]


def _fixed_point(
    mdp: FiniteMDP, value: Callable[[np.ndarray], np.ndarray], tolerance: float
) -> tuple[np.ndarray, np.ndarray]:
    """V and Q with ``V = value(Q)`` and ``Q = r + gamma P V``, by iteration from V = 0."""
    V, off = np.zeros(len(mdp.start)), True
    while off:
        V, old = value(_backup(mdp, V)), V
        # a sweep contracts by gamma, so the error of V is at most gamma / (1 - gamma) times its last change
        off = mdp.gamma * np.abs(V - old).max() > (1 - mdp.gamma) * tolerance * max(1, np.abs(V).max())
    return V, _backup(mdp, V)


def value_iteration(mdp: FiniteMDP, tolerance: float = 1e-10) -> tuple[np.ndarray, np.ndarray]:
    """The optimal V and Q, by ``V <- max_a Q(., a)`` (Bellman, 1957).

    Args:
        mdp: to be solved.
        tolerance: bound on the error of V, relative to its largest absolute value where that exceeds 1.
    """
    return _fixed_point(mdp, lambda Q: Q.max(-1), tolerance)


def policy_iteration(mdp: FiniteMDP) -> tuple[np.ndarray, np.ndarray]:
    """The optimal V and Q, by alternating policy evaluation and improvement until the policy is stable (Howard,
    1960)."""
    policy = greedy_policy(mdp.reward)
    while True:
        V, Q = evaluate(mdp, policy)
        # Without a margin, actions that differ only by rounding would be swapped for ever.
        better = Q.max(-1) > V + 1e-12 * max(1, np.abs(V).max())
        if not better.any():
            return V, Q
        policy[better] = greedy_policy(Q[better])


def distribution_function(probability: np.ndarray) -> np.ndarray:
    """Cumulative sums along the last axis that end in exactly 1: ``searchsorted(sums, u, side="right")`` is then a
    valid sample for every u in [0, 1), and never one of probability 0."""
    sums = probability.cumsum(-1)
    return sums / sums[..., -1:]


def q_learning(
    mdp: FiniteMDP, steps: int, rng: np.random.Generator, epsilon: float = 0.5, omega: float = 0.8
) -> np.ndarray:
    """Q after some steps of tabular Q-learning (Watkins, 1989), starting from 0, with an epsilon-greedy policy.

    The n-th update of a state-action pair has the step size ``n^-omega``, with which Q converges for every pair that is
    visited infinitely often, at a rate polynomial in ``1 / (1 - gamma)`` if omega is in (1/2, 1) (Even-Dar & Mansour,
    Learning rates for Q-learning, 2003). A new episode starts after a terminal state, and after any other with
    probability ``1 - gamma``; the update bootstraps in both cases.

    Args:
        mdp: known to the learner only through samples.
        steps: number of transitions drawn; each is learned from once.
        rng: source of all randomness.
        epsilon: probability of a uniformly random action.
        omega: exponent of the step sizes.
    """
    Q, visits = np.zeros_like(mdp.reward), np.zeros_like(mdp.reward)
    start, successors = distribution_function(mdp.start), distribution_function(mdp.transition)
    terminal, actions = mdp.terminal, Q.shape[1]
    state = np.searchsorted(start, rng.random(), side="right")
    for _ in range(steps):
        action = rng.integers(actions) if rng.random() < epsilon else Q[state].argmax()
        following = np.searchsorted(successors[state, action], rng.random(), side="right")
        visits[state, action] += 1
        error = mdp.reward[state, action] + mdp.gamma * Q[following].max() - Q[state, action]
        Q[state, action] += visits[state, action] ** -omega * error
        over = terminal[following] or rng.random() >= mdp.gamma
        state = np.searchsorted(start, rng.random(), side="right") if over else following
    return Q


# ---------------------------------------------------------------------------------------------- soft values


def soft_maximum(Q: np.ndarray, reference: np.ndarray, beta: float) -> np.ndarray:
    """``V(s) = beta log sum_a reference(a|s) exp(Q(s, a) / beta)``; actions that the reference never takes are ignored.

    Extreme Q-Learning (Garg et al., ICLR 2023), section 2.1, equation 1.

    Args:
        Q: ``[..., actions]``.
        reference: a policy, ``[..., actions]``.
        beta: temperature, in units of reward; V tends to the maximum as ``beta`` tends to 0, and to the mean as it
            grows.

    Returns:
        V, ``[...]``.

    Raises:
        UserError: ``beta`` is not positive.
    """
    if not beta > 0:
        raise UserError(f"beta must be positive, not {beta}")
    with np.errstate(divide="ignore"):
        return beta * np.logaddexp.reduce(np.log(reference) + Q / beta, axis=-1)


def soft_policy(Q: np.ndarray, reference: np.ndarray, beta: float) -> np.ndarray:
    """``pi(a|s) = reference(a|s) exp((Q(s, a) - V(s)) / beta)``, with V the soft maximum.

    Extreme Q-Learning (Garg et al., ICLR 2023), section 2.1, equation 2. Arguments and errors are ``soft_maximum``'s.

    Returns:
        The policy, ``[..., actions]``.
    """
    advantage = Q - soft_maximum(Q, reference, beta)[..., None]
    return reference * np.exp(advantage / beta, where=reference > 0, out=np.zeros_like(advantage))


def soft_value_iteration(
    mdp: FiniteMDP, reference: np.ndarray, beta: float, tolerance: float = 1e-10
) -> tuple[np.ndarray, np.ndarray]:
    """The soft optimal V and Q: ``V = soft_maximum(Q, reference, beta)`` and ``Q = r + gamma P V``.

    V is the maximum of ``E[sum_t gamma^t (r_t - beta log(pi(a_t|s_t) /
    reference(a_t|s_t)))]`` over policies pi, and ``soft_policy`` attains it. Extreme Q-Learning (Garg et al., ICLR
    2023), section 2.1; linearly solvable problems (Todorov, 2007) have the same equations, with next states as actions.

    Args:
        mdp: to be solved.
        reference: the policy from which divergence is penalised, ``[states, actions]``.
        beta: penalty per nat of divergence, in units of reward.
        tolerance: bound on the error of V, relative to its largest absolute value where that exceeds 1.

    Raises:
        UserError: ``beta`` is not positive.
    """
    return _fixed_point(mdp, lambda Q: soft_maximum(Q, reference, beta), tolerance)


# ---------------------------------------------------------------------------------------------- policy gradients


def softmax_policy(logits: np.ndarray) -> np.ndarray:
    """``pi(a|s) = exp(logits(s, a)) / sum_b exp(logits(s, b))``, ``[..., actions]``."""
    weight = np.exp(logits - logits.max(-1, keepdims=True))
    return weight / weight.sum(-1, keepdims=True)


def state_distribution(mdp: FiniteMDP, policy: np.ndarray) -> np.ndarray:
    """``d(s) = (1 - gamma) sum_t gamma^t P(s_t = s)``, the discounted fraction of time in every state, ``[states]``.

    Sutton et al., Policy gradient methods for reinforcement learning with function approximation, 2000, in the
    start-state formulation; here normalised to sum to one.
    """
    return np.linalg.solve(np.eye(len(mdp.start)) - mdp.gamma * _chain(mdp, policy).T, (1 - mdp.gamma) * mdp.start)


def policy_gradient(mdp: FiniteMDP, logits: np.ndarray) -> np.ndarray:
    """Gradient of ``performance(mdp, softmax_policy(logits))`` with respect to the logits, ``[states, actions]``.

    It is ``d(s) pi(a|s) A(s, a) / (1 - gamma)`` (Sutton et al., 2000, theorem 1), with ``A = Q - V``.
    """
    policy = softmax_policy(logits)
    V, Q = evaluate(mdp, policy)
    return state_distribution(mdp, policy)[:, None] * policy * (Q - V[:, None]) / (1 - mdp.gamma)


def fisher(mdp: FiniteMDP, logits: np.ndarray) -> np.ndarray:
    """Fisher information matrix of a softmax policy's logits, ``[states * actions, states * actions]``.

    ``F = E[grad log pi(a|s) grad log pi(a|s)']`` over s from ``state_distribution`` and a from the policy (Kakade, A
    natural policy gradient, 2001, section 2). The logits are in row-major order; F is block-diagonal, with one block
    per state.
    """
    policy = softmax_policy(logits)
    states, actions = policy.shape
    covariance = policy[:, :, None] * (np.eye(actions) - policy[:, None, :])
    F, each = np.zeros((states, actions, states, actions)), np.arange(states)
    F[each, :, each] = state_distribution(mdp, policy)[:, None, None] * covariance
    return F.reshape(policy.size, policy.size)


def natural_gradient(mdp: FiniteMDP, logits: np.ndarray) -> np.ndarray:
    """``F^+ g``, with F from ``fisher`` and g from ``policy_gradient``, ``[states, actions]``.

    Within the block of a state, g is ``F A / (1 - gamma)``, and F ignores constants. So ``F^+ g`` is the advantage
    divided by ``1 - gamma``, minus its mean over the actions (Kakade, 2001, theorem 1), and 0 in states that the policy
    never visits.
    """
    policy = softmax_policy(logits)
    _, Q = evaluate(mdp, policy)
    visited = state_distribution(mdp, policy) > 0
    return visited[:, None] * (Q - Q.mean(-1, keepdims=True)) / (1 - mdp.gamma)
