"""Losses as pure functions of tensors, one value per sample, without a reduction over the batch.

Every function broadcasts over leading axes and returns ``[..., B]``. The batch axis is last, and no function mixes
entries of any other axis, so that stacked seeds cannot affect each other. A ``Number`` may differ per entry of the
first axis, which is that of the seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from offlinerl.learning.seeds import Number, per_seed


def gumbel(
    error: Tensor, beta: Number, clip: Number | None = None, largest: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """Gumbel regression of a soft value: the minimiser over V is ``beta * log E[exp(Q / beta)]``.

    Extreme Q-Learning (Garg et al., ICLR 2023), equation 8 and appendix D.3. The loss is divided by ``exp(m)``, where m
    is the largest z of the batch and at least -1, so that no exponential overflows. This does not change the minimiser
    of one batch, since no gradient flows through m. Over many batches, however, those with the best samples get less
    weight, and V converges below the soft maximum of all samples if ``beta`` is small relative to the spread of Q; see
    ``notebooks/gumbel_regression.ipynb``.

    Args:
        error: ``Q - V``, shape ``[..., B]``.
        beta: temperature of the soft maximum, in units of reward; V tends to ``max Q`` as it tends to 0
            and to ``E[Q]`` as it grows.
        clip: upper bound of ``z = error / beta``; samples above it have no gradient.
        largest: if this is a part of a batch, maps the largest z of this part to that of all parts, ``[..., 1]``.
    """
    z = error / per_seed(beta, error)
    if clip is not None:
        z = z.clamp(max=per_seed(clip, z))
    m = z.detach().amax(-1, keepdim=True)
    m = (m if largest is None else largest(m)).clamp(min=-1.0)
    return torch.exp(z - m) - z * torch.exp(-m) - torch.exp(-m)


def expectile(error: Tensor, tau: Number) -> Tensor:
    """Expectile regression, ``|tau - 1(error < 0)| * error^2``.

    Implicit Q-Learning (Kostrikov et al., ICLR 2022), equation 5.

    Args:
        error: ``Q - V``, shape ``[..., B]``.
        tau: the expectile; 0.5 gives the mean, and towards 1 it tends to the maximum.
    """
    tau = per_seed(tau, error)
    return torch.where(error < 0, 1.0 - tau, tau) * error.square()


def squared(error: Tensor) -> Tensor:
    """``error^2``, without the factor 1/2, as in the critics of the reference IQL. Shape ``[..., B]``."""
    return error.square()


def huber(error: Tensor, delta: Number) -> Tensor:
    """Huber's loss: ``error^2 / 2`` up to ``delta``, ``delta * (|error| - delta / 2)`` beyond it.

    Huber (1964), equation 2.1; XQL's critics use ``delta = 20``. Shape ``[..., B]``.
    """
    size, delta = error.abs(), per_seed(delta, error)
    return torch.where(size <= delta, 0.5 * error.square(), delta * (size - 0.5 * delta))


def alignment(slopes: Tensor) -> Tensor:
    """How aligned the slopes of N critics are: the sum of the cosines over all ordered pairs of two, divided by N - 1,
    which is N if all are parallel.

    The sum over the pairs is the squared length of the sum of all directions, minus N.

    Args:
        slopes: the critics' gradients with respect to the action, ``[S, N, B, A]``.

    Returns:
        ``[S, B]``.

    Source: An et al., Uncertainty-based offline reinforcement learning with diversified Q-ensemble, NeurIPS 2021,
    equation 4.
    """
    directions = slopes / (slopes.norm(dim=-1, keepdim=True) + 1e-10)
    pairs = directions.sum(1).square().sum(-1) - directions.square().sum((1, -1))
    return pairs / (slopes.shape[1] - 1)


def soft_maximum(q: Tensor, log_density: Tensor) -> Tensor:
    """The log of the integral of exp Q(s, a) over a, by importance sampling from n actions: ``log mean exp(Q - log
    density)``.

    Args:
        q: values of the sampled actions, ``[..., n]``.
        log_density: of the distribution that each was sampled from, ``[..., n]``.

    Returns:
        ``[...]``.

    Source: Kumar et al., Conservative Q-Learning, NeurIPS 2020, appendix F.
    """
    return (q - log_density).logsumexp(-1) - math.log(q.shape[-1])


def awr(log_prob: Tensor, advantage: Tensor, temperature: Number, max_weight: float = 100.0) -> Tensor:
    """Advantage-weighted regression of the policy, ``-min(exp(temperature * A), max_weight) * log pi(a|s)``.

    Peng et al. (2019), equation 11; XQL (2023), equation 12. Here ``temperature`` multiplies the advantage,
    as in the code of IQL and XQL: a larger one makes the policy greedier.

    Args:
        log_prob: log-probability of the dataset's actions, ``[..., B]``.
        advantage: ``Q - V``, ``[..., B]``; no gradient flows through it.
        temperature: inverse temperature of the weights, in 1 / reward.
        max_weight: upper bound of a weight.
    """
    weight = torch.exp(per_seed(temperature, advantage) * advantage.detach()).clamp(max=max_weight)
    return -weight * log_prob


def gaussian_likelihood(x: Tensor, mean: Tensor, sigma: float) -> Tensor:
    """``-log N(x; mean, sigma^2)``, summed over the last axis (Kingma & Welling, 2013, appendix C.2, with the same
    sigma for all dimensions).

    Args:
        x: ``[..., B, D]``.
        mean: ``[..., B, D]``.
        sigma: standard deviation, in units of x.

    Returns:
        ``[..., B]``.
    """
    constant = math.log(sigma) + 0.5 * math.log(2 * math.pi)
    return (0.5 * ((x - mean) / sigma).square() + constant).sum(-1)


def bernoulli_likelihood(x: Tensor, logits: Tensor) -> Tensor:
    """``-(x log p + (1 - x) log(1 - p))`` with ``p = sigmoid(logits)``, summed over the last axis (Kingma & Welling,
    2013, appendix C.1). For x between 0 and 1 this is the cross entropy, which is minimal at ``p = x``.

    Both arguments ``[..., B, D]``; returns ``[..., B]``.
    """
    return (nn.functional.softplus(logits) - x * logits).sum(-1)


def divergence(mean: Tensor, log_var: Tensor) -> Tensor:
    """``KL(N(mean, var) || N(0, 1)) = -1/2 sum(1 + log var - mean^2 - var)`` over the last axis.

    Kingma & Welling, 2013, appendix B.

    Both arguments ``[..., B, Z]``; returns ``[..., B]``.
    """
    return -0.5 * (1 + log_var - mean.square() - log_var.exp()).sum(-1)


def project(probability: Tensor, atoms: Tensor, reward: Tensor, discount: Tensor) -> Tensor:
    """The distribution of ``reward + discount * Z``, projected onto the atoms of Z.

    Bellemare et al., A Distributional Perspective on Reinforcement Learning, 2017, algorithm 1: the probability of
    every shifted atom is split between its two neighbouring atoms by linear interpolation; outside the range it goes
    to the outermost atom.

    Args:
        probability: of each atom of Z, ``[..., B, atoms]``.
        atoms: returns, evenly spaced and ascending, ``[atoms]``.
        reward: ``[..., B]``.
        discount: ``[..., B]``.

    Returns:
        Probabilities, ``[..., B, atoms]``.
    """
    low, high, spacing = atoms[0], atoms[-1], atoms[1] - atoms[0]
    moved = reward.unsqueeze(-1) + discount.unsqueeze(-1) * atoms  # [..., B, atoms]
    moved = torch.minimum(torch.maximum(moved, low), high)
    distance = (moved.unsqueeze(-2) - atoms.unsqueeze(-1)).abs() / spacing  # [..., B, to, from]
    return ((1 - distance).clamp(min=0) * probability.unsqueeze(-2)).sum(-1)


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """``-sum_i target_i log softmax(logits)_i``, the categorical critic's loss (Bellemare et al., 2017).

    Args:
        logits: ``[..., B, atoms]``.
        target: probabilities, ``[..., B, atoms]``; no gradient flows through them.

    Returns:
        ``[..., B]``.
    """
    return -(target.detach() * logits.log_softmax(-1)).sum(-1)


def policy_gradient(log_prob: Tensor, advantage: Tensor) -> Tensor:
    """``-log pi(a|s) A``, whose gradient is the negative of a sample of the policy gradient.

    Williams, REINFORCE, 1992, theorem 1; Sutton et al., 2000, theorem 1. Both arguments ``[..., B]``; no gradient
    flows through ``advantage``.
    """
    return -log_prob * advantage.detach()


def surrogate(log_prob: Tensor, old_log_prob: Tensor, advantage: Tensor) -> Tensor:
    """``-(pi / pi_old) A``: the negative gain of a policy over a nearby old one, estimated on the old one's samples.

    TRPO (Schulman et al., ICML 2015), equation 14. At the old policy, its gradient equals that of ``policy_gradient``.
    All arguments ``[..., B]``; no gradient flows through the last two.
    """
    return -torch.exp(log_prob - old_log_prob.detach()) * advantage.detach()


def ppo_clip(log_prob: Tensor, old_log_prob: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """The clipped surrogate: nothing is gained by a probability ratio outside ``[1 - clip, 1 + clip]``.

    PPO (Schulman et al., 2017, arXiv 1707.06347), equation 7. All arguments ``[..., B]``; no gradient flows through
    the last two.
    """
    ratio, advantage = torch.exp(log_prob - old_log_prob.detach()), advantage.detach()
    return -torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)


def trajectory_weights(log_ratio: Tensor, limit: float = math.inf, normalized: bool = False) -> Tensor:
    """``prod_{t' <= t} pi(a_t'|s_t') / mu(a_t'|s_t')``: the likelihood ratio of the first t steps, policy pi over the
    behaviour policy mu.

    Precup, Sutton & Singh, ICML 2000, section 3: per-decision importance sampling.

    Args:
        log_ratio: ``log pi - log mu`` of every step and 0 after the end of an episode, ``[..., B, T]``.
        limit: upper bound of a weight; weights above it have no gradient.
        normalized: divide the weights of each step by their mean over B (weighted importance sampling).

    Returns:
        ``[..., B, T]``.
    """
    log_weight = log_ratio.cumsum(-1).clamp(max=math.log(limit))
    if normalized:  # before the exponential, in which all weights may underflow
        log_weight = log_weight - log_weight.logsumexp(-2, keepdim=True) + math.log(log_weight.shape[-2])
    return log_weight.exp()


def effective_sample_size(log_weight: Tensor) -> Tensor:
    """``(sum w)^2 / sum w^2``: the number of unweighted samples with the same information, from 1 to B.

    Kong, 1992; Owen, Monte Carlo theory, methods and examples, equation 9.13.

    Args:
        log_weight: ``[..., B]``.

    Returns:
        ``[...]``.
    """
    return torch.exp(2 * log_weight.logsumexp(-1) - (2 * log_weight).logsumexp(-1))


def sampled_kl(log_prob: Tensor, old_log_prob: Tensor) -> Tensor:
    """``r - 1 - log r`` with ``r = pi / pi_old``: non-negative, and its mean under the old policy is KL(old || new).

    Schulman, Approximating KL divergence, 2020. Both arguments ``[..., B]``.
    """
    log_ratio = log_prob - old_log_prob.detach()
    return torch.expm1(log_ratio) - log_ratio


def standardized(x: Tensor) -> Tensor:
    """Shift and scale to mean 0 and standard deviation 1 over the last axis; ``[..., B]``."""
    return (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 1e-8)


def accumulate(x: Tensor, factor: Tensor) -> Tensor:
    """``y_t = x_t + factor_t * y_{t+1}`` along the last axis T, with y zero after its end; ``[..., T]``.

    A parallel scan (Blelloch, Prefix sums, 1990), which takes log2 T operations instead of T.
    """
    y, factor, reach, T = x.clone(), factor.clone(), 1, x.shape[-1]
    while reach < T:
        # y_t sums `reach` steps from t on, and factor_t is the product of their factors
        y[..., :-reach] = y[..., :-reach] + factor[..., :-reach] * y[..., reach:]
        factor[..., :-reach] = factor[..., :-reach] * factor[..., reach:]
        factor[..., -reach:] = 0
        reach *= 2
    return y


def gae(reward: Tensor, discount: Tensor, last: Tensor, value: Tensor, next_value: Tensor, lam: float) -> Tensor:
    """Generalised advantage estimation: ``A_t = delta_t + gamma lam A_{t+1}``, where the sum stops at episode ends.

    Schulman et al., ICLR 2016, equation 16. With ``lam`` 0 it is the one-step TD error, with 1 the Monte-Carlo return
    minus the value. At a truncation or the end of the rollout it bootstraps from ``next_value``.

    Args:
        reward: ``[..., T]``.
        discount: ``gamma (1 - terminated)``, ``[..., T]``.
        last: 1 where an episode ends, by termination or truncation, ``[..., T]``.
        value: V of the observations, ``[..., T]``.
        next_value: V of the true next observations, ``[..., T]``.
        lam: lambda, between 0 and 1.

    Returns:
        ``[..., T]``.
    """
    delta = reward + discount * next_value - value
    return accumulate(delta, lam * discount * (1 - last))
