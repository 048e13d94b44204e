"""Optimisation: an Adam that can be traced into the graph of a training step, gradient clipping, conjugate
gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from offlinerl.learning.seeds import per_seed

NEGLIGIBLE = 1e-30
"""Adam's state is set to zero below this, which is negligible next to 1 and eps. Otherwise the powers of beta and the
moments of dead units would become subnormal numbers, with which a CPU is many times slower."""


class Adam(torch.optim.Optimizer):
    """Adam (Kingma & Ba, 2015, algorithm 1) whose step reads and writes only tensors.

    torch.optim.Adam keeps its step count and learning rate as Python numbers or reads them with ``.item()``, which
    would become constants in a traced graph. Here the learning rate is a tensor that a schedule fills in place. The
    powers of beta for the bias correction are running products, one per seed, so that all state of the optimiser has
    the same leading axis of seeds as the parameters.

    Args:
        params: parameters ``[S, ...]``.
        lr: learning rate, or one per seed.
        betas: decay rates of the two moments.
        eps: added to the square root of the second moment.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float | Sequence[float],
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ):
        super().__init__(params, dict(betas=betas, eps=eps, initial_lr=lr))
        for group in self.param_groups:
            first = group["params"][0]
            group["lr"] = torch.tensor(lr, dtype=torch.float32, device=first.device)  # [] or [S]
            group["beta_powers"] = torch.ones(len(first), 2, dtype=torch.float32, device=first.device)
            for p in group["params"]:
                self.state[p] = dict(exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [p for group in self.param_groups for p in group["params"]]

    def anneal(self, fraction: float) -> None:
        """Set the learning rate to ``fraction`` of the initial one."""
        for group in self.param_groups:
            initial = group["initial_lr"]
            if isinstance(initial, float):
                group["lr"].fill_(fraction * initial)
            else:
                group["lr"].copy_(fraction * torch.tensor(initial, dtype=torch.float64))

    def step(self, closure: None = None) -> None:  # type: ignore[override]  # a closure could not be traced
        """Apply one update from each parameter's ``.grad``."""
        self.descend([p.grad for group in self.param_groups for p in group["params"]])

    @torch.no_grad()
    def descend(self, gradients: Sequence[Tensor]) -> None:
        """Apply one update from gradients, given in the order of the parameters."""
        remaining = iter(gradients)
        for group in self.param_groups:
            (beta1, beta2), powers = group["betas"], group["beta_powers"]
            # Changing views in place would add a chain of copies to the graph for every parameter.
            power1, power2 = shrunk(powers[:, 0] * beta1), shrunk(powers[:, 1] * beta2)  # [S]
            powers.copy_(torch.stack([power1, power2], -1))
            rates = group["lr"] / (1 - power1)
            corrections = (1 - power2).rsqrt()
            for p in group["params"]:
                m, v, grad = self.state[p]["exp_avg"], self.state[p]["exp_avg_sq"], next(remaining)
                rate, correction = per_seed(rates, p), per_seed(corrections, p)  # [S, 1, ...]
                m.copy_(shrunk(m.lerp_(grad, 1 - beta1)))
                v.copy_(shrunk(v.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)))
                p.addcdiv_(m * -rate, v.sqrt() * correction + group["eps"])


def shrunk(x: Tensor) -> Tensor:
    """x, with negligible entries set to zero; NaN is kept."""
    return nn.functional.hardshrink(x, NEGLIGIBLE)


def clip_norm(gradients: Sequence[Tensor], limit: float) -> list[Tensor]:
    """Gradients ``[S, ...]``, clipped for each seed to a joint norm of at most ``limit``.

    Pascanu et al., ICML 2013, algorithm 1.
    """
    norm = torch.stack([g.flatten(1).square().sum(-1) for g in gradients]).sum(0).sqrt()  # [S]
    share = (limit / (norm + 1e-6)).clamp(max=1.0)
    return [g * per_seed(share, g) for g in gradients]


def flatten(tensors: Sequence[Tensor]) -> Tensor:
    """Parameters ``[S, ...]`` of a network as one vector per seed, ``[S, P]``."""
    return torch.cat([t.flatten(1) for t in tensors], 1)


def unflatten(vectors: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """The inverse of ``flatten``: tensors with the shapes of ``like``."""
    sizes = [t[0].numel() for t in like]
    return [v.view_as(t) for v, t in zip(vectors.split(sizes, 1), like, strict=True)]


def conjugate_gradients(product: Callable[[Tensor], Tensor], b: Tensor, iterations: int, tolerance: float) -> Tensor:
    """Solve ``A x = b`` for every seed, given A as ``product(v) = A v``; A is symmetric and positive definite.

    Hestenes & Stiefel, 1952, as used in TRPO (Schulman et al., 2015, appendix C).

    Args:
        product: ``[S, P] -> [S, P]``.
        b: ``[S, P]``.
        iterations: maximum number of iterations, with one product each.
        tolerance: a seed stops when its squared residual is at most this.
    """
    x, residual, direction = torch.zeros_like(b), b.clone(), b.clone()
    squared = residual.square().sum(-1, keepdim=True)  # [S, 1]
    for _ in range(iterations):
        moving = squared > tolerance
        curved = product(direction)
        length = torch.where(moving, squared / (direction * curved).sum(-1, keepdim=True), 0.0)
        x = x + torch.where(moving, length * direction, 0.0)
        residual = residual - torch.where(moving, length * curved, 0.0)
        before, squared = squared, residual.square().sum(-1, keepdim=True)
        direction = torch.where(moving, residual + squared / before * direction, direction)
    return x
