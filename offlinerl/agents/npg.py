"""NPG: the natural policy gradient (Kakade, NeurIPS 2001), in its truncated form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Distribution, kl_divergence

from offlinerl.agents.base import fixed, setting
from offlinerl.agents.policy_gradient import PolicyGradient, PolicyGradientConfig, Sample
from offlinerl.learning import losses
from offlinerl.learning.optim import conjugate_gradients, flatten, unflatten
from offlinerl.types import Metrics


@dataclass(frozen=True)
class NPGConfig(PolicyGradientConfig):
    max_kl: float = setting(0.01, "delta, the mean KL divergence of the new policy from the old one, in nats", above=0)
    cg_iterations: int = setting(15, "of the conjugate gradients, each one product with the Fisher matrix F", low=1)
    cg_damping: float = setting(0.1, "added to F's diagonal", low=0)
    value_lr: float = setting(1e-3, "Adam's learning rate of the value", above=0, per_seed=True)
    entropy: float = fixed(0.0)
    max_grad_norm: float | None = fixed(None)


class NPG(PolicyGradient):
    """The step that gains most, to first order, of all whose KL divergence is ``max_kl``, to second order:
    ``sqrt(2 max_kl / g' F^-1 g) F^-1 g`` for every rollout, where ``F^-1 g`` is solved for by conjugate gradients."""

    config_class = NPGConfig

    CG_TOLERANCE = 1e-10
    """Squared residual at which a seed has its direction."""

    def configure_optimizers(self):
        return self.adam(self.config.value_lr, self.EPS, value=self.value)

    def improve(self, sample: Sample) -> Metrics:
        parameters, advantage = list(self.policy.parameters()), self.advantage_of(sample)

        def surrogate(policy: Distribution) -> Tensor:  # [S], what a policy gains
            return -losses.surrogate(policy.log_prob(sample.action), sample.old_log_prob, advantage).mean(-1)

        with torch.no_grad():
            old = self.policy(sample.obs)
        policy = self.policy(sample.obs)
        gain = surrogate(policy)
        gradient = flatten(torch.autograd.grad(gain.sum(), parameters, retain_graph=True))  # [S, P]
        fisher = fisher_product(old, policy, parameters, self.config.cg_damping)
        direction = conjugate_gradients(fisher, gradient, self.config.cg_iterations, self.CG_TOLERANCE)
        slope = (gradient * direction).sum(-1, keepdim=True)  # [S, 1], g' F^-1 g
        # A policy that is all but certain has no slope; then there is no direction either, and it stays.
        step = torch.where(slope > 0, (2 * self.config.max_kl / slope).sqrt(), 0.0) * direction
        before = flatten([p.detach() for p in parameters])

        def at(share: Tensor) -> tuple[Tensor, Tensor]:
            """Gain and divergence, ``[S]`` each, after these shares ``[S]`` of the step."""
            moved = torch.where(share.unsqueeze(-1) > 0, before + share.unsqueeze(-1) * step, before)
            for p, value in zip(parameters, unflatten(moved, parameters), strict=True):
                p.copy_(value)
            policy = self.policy(sample.obs)
            return surrogate(policy) - gain, kl_divergence(old, policy).mean(-1)

        with torch.no_grad():
            metrics = self.search(at, gain.shape)
        self.updates += 1
        return metrics | self.passes(sample)

    def search(self, at: Callable[[Tensor], tuple[Tensor, Tensor]], seeds: torch.Size) -> Metrics:
        """Choose how much of the step to take, and take it; here the whole."""
        gain, kl = at(torch.ones(seeds, device=self.device))
        return dict(gain=gain, kl=kl)


def fisher_product(
    old: Distribution, policy: Distribution, parameters: Sequence[Tensor], damping: float = 0.0
) -> Callable[[Tensor], Tensor]:
    """``v -> (F + damping) v`` for every seed, ``[S, P] -> [S, P]``, F being the mean over B of the Fisher
    information: the Hessian of the divergence from ``old``, the same policy without gradient (TRPO, appendix C.1)."""
    kl = kl_divergence(old, policy).mean(-1).sum()
    slope = flatten(torch.autograd.grad(kl, parameters, create_graph=True))  # [S, P]

    def product(v: Tensor) -> Tensor:
        return flatten(torch.autograd.grad((slope * v).sum(), parameters, retain_graph=True)) + damping * v

    return product
