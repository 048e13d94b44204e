"""Log-probabilities and log-densities of the actions of policies, in the units of the environment."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Normal

ROUNDED = 1e-6
"""An action nearer to a bound than this, in units of half the range, counts as on the bound."""

INSIDE = 1 - 2**-25
"""Value assumed for an action whose tanh was rounded to 1 in float32."""


def clipped_normal(action: Tensor, mean: Tensor, std: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Log-density of a Normal whose samples are clipped to bounds: the density inside, and on a bound the probability
    of everything beyond it. The integral inside and the probabilities of both bounds sum to 1, so that likelihood
    ratios of two policies are valid everywhere.

    Args:
        action: ``[..., A]``; all other arguments broadcast with it.
        mean: of the Normal before clipping.
        std: above 0.
        low: lower bound of every dimension; dimensions whose bounds are equal are ignored.
        high: upper bound of every dimension.

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
    """Log-density of a Normal whose samples x are squashed to ``mid + half tanh(x)`` within bounds: the density of x
    divided by the slope ``half (1 - tanh(x)^2)`` (Haarnoja et al., Soft Actor-Critic, 2018, appendix C).

    Arguments and result are those of ``clipped_normal``, except that mean and std are those of x.
    """
    action, mean, std, low, high = (x.double() for x in (action, mean, std, low, high))
    moves, half = high > low, (high - low) / 2
    half = torch.where(moves, half, 1.0)
    unit = ((action - (high + low) / 2) / half).clamp(-INSIDE, INSIDE)
    x = torch.atanh(unit)
    found = Normal(mean, std, validate_args=False).log_prob(x) - torch.log1p(-unit.square()) - half.log()
    return torch.where(moves, found, 0.0).sum(-1)


def uniform(action: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Log-density of a uniform action within bounds; see ``clipped_normal``."""
    width = torch.where(high > low, high - low, 1.0).double()
    return -width.log().sum().expand(action.shape[:-1])


def epsilon_greedy(action: Tensor, greedy: Tensor, epsilon: float, num_actions: int) -> Tensor:
    """Log-probability of action indices ``[..., 1]``, chosen uniformly with probability ``epsilon`` and greedily
    otherwise."""
    share = (action == greedy).squeeze(-1).double() * (1 - epsilon) + epsilon / num_actions
    return share.log()
