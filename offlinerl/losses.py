"""Losses as pure functions: tensors in, one value a sample out, nothing reduced.

Every function broadcasts over leading axes and returns ``[..., B]``; the batch axis is last, and no function
mixes two entries of any other axis, so that stacked seeds cannot leak into each other.
"""

from __future__ import annotations

import torch
from torch import Tensor


def gumbel(error: Tensor, beta: float, clip: float | None = None) -> Tensor:
    """Gumbel regression of a soft value: its minimiser over V is ``beta * log E[exp(Q / beta)]``.

    Extreme Q-Learning (Garg et al., ICLR 2023), equation 8 and appendix D.3. The loss is divided by
    ``exp(m)``, with m the largest z of the batch and at least -1, so that no exponential overflows; the
    minimiser is unchanged, for m is a constant to the gradient.

    Args:
        error: ``Q - V``, shape ``[..., B]``.
        beta: temperature of the soft maximum, in units of reward; V tends to ``max Q`` as it tends to 0
            and to ``E[Q]`` as it grows.
        clip: upper bound of ``z = error / beta``; samples above it lose their gradient.
    """
    z = error / beta
    if clip is not None:
        z = z.clamp(max=clip)
    m = z.detach().amax(-1, keepdim=True).clamp(min=-1.0)
    return torch.exp(z - m) - z * torch.exp(-m) - torch.exp(-m)


def expectile(error: Tensor, tau: float) -> Tensor:
    """Expectile regression, ``|tau - 1(error < 0)| * error^2``.

    Implicit Q-Learning (Kostrikov et al., ICLR 2022), equation 5.

    Args:
        error: ``Q - V``, shape ``[..., B]``.
        tau: the expectile; 0.5 is the mean, towards 1 the maximum.
    """
    return torch.where(error < 0, 1.0 - tau, tau) * error.square()


def squared(error: Tensor) -> Tensor:
    """``error^2``, without a half, as the reference IQL regresses its critics. Shape ``[..., B]``."""
    return error.square()


def huber(error: Tensor, delta: float) -> Tensor:
    """Huber's loss: ``error^2 / 2`` up to ``delta``, ``delta * (|error| - delta / 2)`` beyond it.

    Huber (1964), equation 2.1; XQL's critics use ``delta = 20``. Shape ``[..., B]``.
    """
    size = error.abs()
    return torch.where(size <= delta, 0.5 * error.square(), delta * (size - 0.5 * delta))


def awr(log_prob: Tensor, advantage: Tensor, temperature: float, max_weight: float = 100.0) -> Tensor:
    """Advantage-weighted regression of the policy, ``-min(exp(temperature * A), max_weight) * log pi(a|s)``.

    Peng et al. (2019), equation 11; XQL (2023), equation 12. Here ``temperature`` multiplies the advantage,
    as in the code of IQL and XQL: larger is greedier.

    Args:
        log_prob: log-probability of the dataset's actions, ``[..., B]``.
        advantage: ``Q - V``, ``[..., B]``; no gradient flows through it.
        temperature: inverse temperature of the weights, in 1 / reward.
        max_weight: upper bound of a weight.
    """
    weight = torch.exp(temperature * advantage.detach()).clamp(max=max_weight)
    return -weight * log_prob


def project(probability: Tensor, atoms: Tensor, reward: Tensor, discount: Tensor) -> Tensor:
    """The distribution of ``reward + discount * Z``, put back on the atoms of Z.

    Bellemare et al., A Distributional Perspective on Reinforcement Learning, 2017, algorithm 1: every shifted
    atom gives its probability to the two atoms beside it, the nearer one more; what falls outside goes to the
    outermost atom.

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
