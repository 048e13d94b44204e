"""Value and action-value networks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor, nn
from torch.func import functional_call

from offlinerl.nn.layers import MLP, Init, orthogonal


class Value(nn.Module):
    """A state value a seed: ``[S, B, O] -> [S, B]``."""

    def __init__(
        self,
        obs_dim: int,
        hidden: Sequence[int],
        rng: Sequence[Generator],
        layer_norm: bool = False,
        init: Init = orthogonal,
        last_init: Init | None = None,
        activation: Callable[[Tensor], Tensor] = torch.relu,
    ):
        super().__init__()
        self.net = MLP(
            [obs_dim, *hidden, 1], (len(rng),), rng, layer_norm=layer_norm, init=init, last_init=last_init,
            activation=activation,
        )  # fmt: skip

    def forward(self, obs: Tensor) -> Tensor:
        return self.net(obs).squeeze(-1)


class Critic(nn.Module):
    """N action values a seed: ``[S, B, O], [S, B, A] -> [S, N, B]``; with ``atoms``, the logits of N
    distributions over returns: ``[S, N, B, atoms]``."""

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        hidden: Sequence[int],
        rng: Sequence[Generator],
        critics: int = 2,
        init: Init = orthogonal,
        last_init: Init | None = None,
        atoms: int | None = None,
    ):
        super().__init__()
        self.critics, self.atoms = critics, atoms
        sizes = [obs_dim + action_dim, *hidden, atoms or 1]
        self.net = MLP(sizes, (len(rng), critics), rng, init=init, last_init=last_init)

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        x = torch.cat([obs, action], -1).unsqueeze(1)  # [S, 1, B, O + A]
        x = self.net(x.expand(-1, self.critics, -1, -1))  # [S, N, B, atoms]
        return x if self.atoms else x.squeeze(-1)

    def first(self, obs: Tensor, action: Tensor) -> Tensor:
        """The first of the N alone, ``[S, B]``, or ``[S, B, atoms]``."""
        x = torch.cat([obs, action], -1).unsqueeze(1)  # [S, 1, B, O + A]
        first = {name: p[:, :1] for name, p in self.net.named_parameters()}
        x = functional_call(self.net, first, x).squeeze(1)  # [S, B, atoms]
        return x if self.atoms else x.squeeze(-1)
