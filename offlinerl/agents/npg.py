"""NPG: the natural policy gradient (Kakade, NeurIPS 2001), with truncated conjugate gradients."""

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
    cg_iterations: int = setting(
        15, "conjugate gradient iterations, each with one product with the Fisher matrix F", low=1
    )
    cg_damping: float = setting(0.1, "damping added to the diagonal of F", low=0)
    value_lr: float = setting(1e-3, "Adam's learning rate of the value function", above=0, per_seed=True)
    entropy: float = fixed(0.0)
    max_grad_norm: float | None = fixed(None)


class NPG(PolicyGradient):
    """For every rollout, the step that maximises the first-order gain subject to a second-order KL divergence of
    ``max_kl``: ``sqrt(2 max_kl / g' F^-1 g) F^-1 g``, where ``F^-1 g`` is computed by conjugate gradients."""

    config_class = NPGConfig

    CG_TOLERANCE = 1e-10
    """Squared residual at which a seed's conjugate gradients stop."""

    def configure_optimizers(self):
        return self.adam(self.config.value_lr, self.EPS, value=self.value)

    def improve(self, sample: Sample) -> Metrics:
        parameters, advantage = list(self.policy.parameters()), self.advantage_of(sample)

        def surrogate(policy: Distribution) -> Tensor:  # [S], to be maximised
            return -losses.surrogate(policy.log_prob(sample.action), sample.old_log_prob, advantage).mean(-1)

        with torch.no_grad():
            old = self.policy(sample.obs)
        policy = self.policy(sample.obs)
        gain = surrogate(policy)
        gradient = flatten(torch.autograd.grad(gain.sum(), parameters, retain_graph=True))  # [S, P]
        fisher = fisher_product(old, policy, parameters, self.config.cg_damping)
        direction = conjugate_gradients(fisher, gradient, self.config.cg_iterations, self.CG_TOLERANCE)
        slope = (gradient * direction).sum(-1, keepdim=True)  # [S, 1], g' F^-1 g
        # The slope of a nearly deterministic policy is zero; then no step is taken.
        step = torch.where(slope > 0, (2 * self.config.max_kl / slope).sqrt(), 0.0) * direction
        before = flatten([p.detach() for p in parameters])

        def at(share: Tensor) -> tuple[Tensor, Tensor]:
            """Gain and KL divergence, ``[S]`` each, after these fractions ``[S]`` of the full step."""
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
        """Choose a fraction of the full step and take it; here always the full step."""
        gain, kl = at(torch.ones(seeds, device=self.device))
        return dict(gain=gain, kl=kl)


def fisher_product(
    old: Distribution, policy: Distribution, parameters: Sequence[Tensor], damping: float = 0.0
) -> Callable[[Tensor], Tensor]:
    """The product ``v -> (F + damping) v`` for every seed, ``[S, P] -> [S, P]``. F is the Fisher information averaged
    over B: the Hessian of the KL divergence from ``old``, the same policy without gradient (TRPO, appendix C.1)."""
    kl = kl_divergence(old, policy).mean(-1).sum()
    slope = flatten(torch.autograd.grad(kl, parameters, create_graph=True))  # [S, P]

    def product(v: Tensor) -> Tensor:
        return flatten(torch.autograd.grad((slope * v).sum(), parameters, retain_graph=True)) + damping * v

    return product
