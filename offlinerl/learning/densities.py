"""Logarithms of the probabilities and densities with which policies act, in the units of the environment."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Normal

ROUNDED = 1e-6
"""Nearer than this to a bound, in units of half the range, an action lies on it."""

INSIDE = 1 - 2**-25
"""Where an action is taken to have been that a tanh rounded to 1 in float32."""


def clipped_normal(action: Tensor, mean: Tensor, std: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Of a Normal whose samples are clipped to bounds: its density within them, and on a bound the probability of all
    that lies beyond. Two policies are compared by them alike, and they sum to 1: the integral within and both bounds.

    Args:
        action: ``[..., A]``, and all others as they broadcast with it.
        mean: before clipping.
        std: above 0.
        low: bounds of every dimension; one in which they are equal does not count.
        high: see ``low``.

    Returns:
        ``[...]`` float64.
    """
    action, mean, std, low, high = (x.double() for x in (action, mean, std, low, high))
    near, moves = ROUNDED * (high - low) / 2, high > low
    std = torch.where(moves, std, 1.0)
    inside = Normal(mean, std, validate_args=False).log_prob(action)
    below, above = (torch.special.log_ndtr(x / std) for x in (low - mean, mean - high))
    found = torch.where(action <= low + near, below, torch.where(action >= high - near, above, inside))
    return torch.where(moves, found, 0.0).sum(-1)


def squashed_normal(action: Tensor, mean: Tensor, std: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Of a Normal whose samples x are squashed to ``mid + half tanh(x)`` within bounds: the density of x over the
    slope, ``half (1 - tanh(x)^2)`` (Haarnoja et al., Soft Actor-Critic, 2018, appendix C).

    The arguments and what is returned are those of ``clipped_normal``, but mean and std are of x.
    """
    action, mean, std, low, high = (x.double() for x in (action, mean, std, low, high))
    moves, half = high > low, (high - low) / 2
    half = torch.where(moves, half, 1.0)
    unit = ((action - (high + low) / 2) / half).clamp(-INSIDE, INSIDE)
    x = torch.atanh(unit)
    found = Normal(mean, std, validate_args=False).log_prob(x) - torch.log1p(-unit.square()) - half.log()
    return torch.where(moves, found, 0.0).sum(-1)


def uniform(action: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Of a uniform action within bounds, see ``clipped_normal``."""
    width = torch.where(high > low, high - low, 1.0).double()
    return -width.log().sum().expand(action.shape[:-1])


def epsilon_greedy(action: Tensor, greedy: Tensor, epsilon: float, num_actions: int) -> Tensor:
    """Of numbers of actions ``[..., 1]``, each the greedy one but for the share ``epsilon``, which is uniform."""
    share = (action == greedy).squeeze(-1).double() * (1 - epsilon) + epsilon / num_actions
    return share.log()
