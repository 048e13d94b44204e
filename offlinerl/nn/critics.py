"""Value and action-value networks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor, nn
from torch.func import functional_call

from offlinerl.nn.encoders import Encoder
from offlinerl.nn.layers import MLP, Init, orthogonal, uniform
from offlinerl.types import Spec


class Value(nn.Module):
    """One state-value function per seed: ``[S, B, O] -> [S, B]``."""

    def __init__(
        self,
        encoder: Encoder,
        hidden: Sequence[int],
        rng: Sequence[Generator],
        layer_norm: bool = False,
        init: Init = orthogonal,
        last_init: Init | None = None,
        activation: Callable[[Tensor], Tensor] = torch.relu,
    ):
        super().__init__()
        self.encoder = encoder
        self.net = MLP(
            [encoder.features, *hidden, 1], (len(rng),), rng, layer_norm=layer_norm, init=init, last_init=last_init,
            activation=activation,
        )  # fmt: skip

    def forward(self, obs: Tensor) -> Tensor:
        return self.net(self.encoder(obs)).squeeze(-1)


class Critic(nn.Module):
    """N action-value functions per seed: ``[S, B, O], [S, B, A] -> [S, N, B]``; with ``atoms``, the logits of N
    categorical distributions over returns: ``[S, N, B, atoms]``."""

    def __init__(
        self,
        encoder: Encoder,
        action_dim: int,
        hidden: Sequence[int],
        rng: Sequence[Generator],
        critics: int = 2,
        init: Init = orthogonal,
        last_init: Init | None = None,
        atoms: int | None = None,
        layer_norm: bool = False,
        activation: Callable[[Tensor], Tensor] = torch.relu,
    ):
        super().__init__()
        self.encoder, self.critics, self.atoms = encoder, critics, atoms
        sizes = [encoder.features + action_dim, *hidden, atoms or 1]
        self.net = MLP(
            sizes, (len(rng), critics), rng, layer_norm, init=init, last_init=last_init, activation=activation
        )

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        x = torch.cat([self.encoder(obs), action], -1).unsqueeze(1)  # [S, 1, B, F + A]
        x = self.net(x.expand(-1, self.critics, -1, -1))  # [S, N, B, atoms]
        return x if self.atoms else x.squeeze(-1)

    def with_slopes(self, obs: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """The values ``[S, N, B]``, and the gradient of each with respect to the action, ``[S, N, B, A]``, which can be
        differentiated again."""
        own = action.unsqueeze(1).repeat(1, self.critics, 1, 1).requires_grad_()  # each critic's own
        features = self.encoder(obs).unsqueeze(1).expand(-1, self.critics, -1, -1)
        q = self.net(torch.cat([features, own], -1)).squeeze(-1)
        return q, torch.autograd.grad(q.sum(), own, create_graph=True)[0]

    def of_many(self, obs: Tensor, actions: Tensor) -> Tensor:
        """Values of n actions for every observation, ``[S, B, O], [S, B, n, A] -> [S, N, B, n]``."""
        features, n = self.encoder(obs), actions.shape[2]
        x = torch.cat([features.unsqueeze(2).expand(-1, -1, n, -1), actions], -1).flatten(1, 2)  # [S, B n, F + A]
        return self.net(x.unsqueeze(1).expand(-1, self.critics, -1, -1)).squeeze(-1).unflatten(-1, (-1, n))

    def first(self, obs: Tensor, action: Tensor) -> Tensor:
        """The first of the N critics only, ``[S, B]``, or ``[S, B, atoms]``."""
        x = torch.cat([self.encoder(obs), action], -1).unsqueeze(1)  # [S, 1, B, F + A]
        first = {name: p[:, :1] for name, p in self.net.named_parameters()}
        x = functional_call(self.net, first, x).squeeze(1)  # [S, B, atoms]
        return x if self.atoms else x.squeeze(-1)


class DiscreteCritic(nn.Module):
    """N action-value functions per seed, with an output for every discrete action: the values of action indices,
    ``[S, B, O], [S, B, 1] -> [S, N, B]``."""

    def __init__(
        self, encoder: Encoder, actions: int, hidden: Sequence[int], rng: Sequence[Generator], critics: int = 2
    ):
        super().__init__()
        self.encoder, self.critics = encoder, critics
        self.net = MLP([encoder.features, *hidden, actions], (len(rng), critics), rng)

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        x = self.encoder(obs).unsqueeze(1)  # [S, 1, B, F]
        values = self.net(x.expand(-1, self.critics, -1, -1))  # [S, N, B, actions]
        return values.gather(-1, action.long().unsqueeze(1).expand(-1, self.critics, -1, -1)).squeeze(-1)


def critic_of(spec: Spec, encoder: Encoder, hidden: Sequence[int], rng: Sequence[Generator]) -> Critic | DiscreteCritic:
    """Two action-value functions per seed, for a task's kind of actions."""
    if spec.num_actions:
        return DiscreteCritic(encoder, spec.num_actions, hidden, rng)
    return Critic(encoder, spec.action_dim, hidden, rng)


class ActionValues(nn.Module):
    """The values of all discrete actions: ``[S, B, O] -> [S, B, actions]``."""

    def __init__(self, encoder: Encoder, actions: int, hidden: Sequence[int], rng: Sequence[Generator]):
        super().__init__()
        self.encoder = encoder
        self.net = MLP([encoder.features, *hidden, actions], (len(rng),), rng, init=uniform)

    def forward(self, obs: Tensor) -> Tensor:
        return self.net(self.encoder(obs))
