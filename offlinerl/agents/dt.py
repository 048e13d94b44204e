"""DT: Decision Transformer, reinforcement learning via sequence modeling (Chen et al., NeurIPS 2021)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from offlinerl.agents.base import Agent, Config, Noise, setting
from offlinerl.data import rewards
from offlinerl.learning import losses
from offlinerl.nn.encoders import Encoder
from offlinerl.nn.layers import LayerNorm, Linear, drop, dropout_masks, normal
from offlinerl.types import Metrics, Window
from offlinerl.util.errors import UserError
from offlinerl.util.trees import Tree, first_leaf, tree_map


@dataclass(frozen=True)
class DTConfig(Config):
    context: int = setting(20, "number of past steps that the policy sees", low=1)
    target_return: float | None = setting(
        None, "return to condition on when acting; null: that of the best training episode"
    )
    embedding: int = setting(128, "size of an embedding", low=1)
    blocks: int = setting(3, "number of transformer blocks", low=1)
    heads: int = setting(1, "number of attention heads; embedding must be a multiple of it", low=1)
    dropout: float = setting(
        0.1, "dropout rate of the embeddings and of the output of each block's layers", low=0, below=1
    )
    longest: int = setting(1_000, "number of time-step embeddings; later steps share the last one", low=1)
    lr: float = setting(1e-4, "Adam's learning rate", above=0, per_seed=True)
    warm_up: int = setting(10_000, "updates over which the learning rate rises from zero", low=0)
    max_grad_norm: float = setting(0.25, "maximum gradient norm", above=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.embedding % self.heads:
            raise UserError(f"embedding must be a multiple of heads, which is {self.heads}, not {self.embedding}")


class Memory(NamedTuple):
    """The latest T steps in every environment, oldest first; positions that are not filled yet have no effect."""

    obs: Tree  # [S, E, T, ...]
    action: Tensor  # [S, E, T, A]
    to_go: Tensor  # [S, E, T] return to go
    step: Tensor  # [S, E, T] int64, index in the episode
    count: Tensor  # [S, E] int64, steps of the episode so far
    left: Tensor  # [S, E]  return to go of the next step


class Block(nn.Module):
    """A pre-norm transformer block with residual connections: causal self-attention, then two linear layers (Radford et
    al., GPT-2, 2019) with a ReLU between them (DT, table 8): ``[S, B, L, E] -> [S, B, L, E]``."""

    def __init__(self, size: int, heads: int, rng: Sequence[Generator]):
        super().__init__()
        lead, self.heads = (len(rng),), heads
        self.norms = nn.ModuleList(LayerNorm(size, lead) for _ in range(2))
        self.project, self.attended = Linear(size, 3 * size, lead, rng, normal), Linear(size, size, lead, rng, normal)
        self.widen, self.narrow = Linear(size, 4 * size, lead, rng, normal), Linear(4 * size, size, lead, rng, normal)

    def forward(self, x: Tensor, kept: Sequence[Tensor], rate: float) -> Tensor:
        S, B, L, E = x.shape
        x = x.flatten(1, 2)  # [S, B L, E]
        heads = self.project(self.norms[0](x)).view(S * B, L, 3, self.heads, E // self.heads)
        q, k, v = heads.permute(2, 0, 3, 1, 4)  # [S B, heads, L, E / heads]
        mixed = scaled_dot_product_attention(q, k, v, is_causal=True)
        mixed = self.attended(mixed.transpose(1, 2).reshape(S, B * L, E))
        x = x + (drop(mixed, kept[0].flatten(1, 2), rate) if kept else mixed)
        wide = self.narrow(torch.relu(self.widen(self.norms[1](x))))
        x = x + (drop(wide, kept[1].flatten(1, 2), rate) if kept else wide)
        return x.view(S, B, L, E)


class Sequences(nn.Module):
    """Predicts the action after every observation from the returns to go, observations and actions so far. Each of them
    is one embedding, plus a learned embedding of the time step (paper, section 3)."""

    def __init__(self, encoder: Encoder, action_dim: int, config: DTConfig, rng: Sequence[Generator]):
        super().__init__()
        self.encoder, self.rate, size, lead = encoder, config.dropout, config.embedding, (len(rng),)
        self.of_return, self.of_obs, self.of_action = (
            Linear(inputs, size, lead, rng, normal) for inputs in (1, encoder.features, action_dim)
        )
        steps = [torch.empty(config.longest, size).normal_(0, 0.02, generator=generator) for generator in rng]
        self.of_step = nn.Parameter(torch.stack(steps))  # [S, longest, E]
        self.norm_in, self.norm_out = LayerNorm(size, lead), LayerNorm(size, lead)
        self.blocks = nn.ModuleList(Block(size, config.heads, rng) for _ in range(config.blocks))
        self.head = Linear(size, action_dim, lead, rng, normal)

    def forward(self, obs: Tree, action: Tensor, to_go: Tensor, step: Tensor, kept: Sequence[Tensor] = ()) -> Tensor:
        """Actions ``[S, B, T, A]`` in units of [-1, 1], of T steps; ``to_go`` is in units of the largest return to go,
        see ``DT.scale``."""
        S, B, T, A = action.shape
        features = self.encoder(tree_map(lambda x: x.flatten(1, 2), obs))  # [S, B T, F]
        longest, size = self.of_step.shape[1:]
        numbers = step.flatten(1).clamp(max=longest - 1).unsqueeze(-1)  # [S, B T, 1]
        place = self.of_step.gather(1, numbers.expand(-1, -1, size))  # [S, B T, E]
        wanted, done = self.of_return(to_go.flatten(1).unsqueeze(-1)), self.of_action(action.flatten(1, 2))
        tokens = torch.stack([wanted, self.of_obs(features), done], 2) + place.unsqueeze(2)  # [S, B T, 3, E]
        x = tokens.view(S, B * T * 3, size)
        x = self.norm_in(x).view(S, B, 3 * T, size)
        if kept:
            x = drop(x, kept[0], self.rate)
        for i, block in enumerate(self.blocks):
            x = block(x, kept[1 + 2 * i : 3 + 2 * i], self.rate)
        x = self.norm_out(x[:, :, 1::3].flatten(1, 2))  # [S, B T, E], the tokens of observations
        return torch.tanh(self.head(x)).view(S, B, T, A)


class DT(Agent):
    """Predicts actions from returns to go, observations and earlier actions (paper, algorithm 1). When it acts, the
    return to go starts at ``target_return``, and every reward is subtracted from it.

    Unlike the authors' code for continuous control, Adam has no weight decay, all weights are initialised small, and
    attention has no dropout.
    """

    config_class = DTConfig
    kinds = ("windows",)
    judged_by = "actor_loss"

    def build(self) -> None:
        self.model = Sequences(self.encoder("model"), self.spec.action_dim, self.config, self.init_rng("model"))
        # The highest return of an episode and the largest absolute return to go in the data, [S, 1]: parameters, since
        # each seed has its own.
        self.best = nn.Parameter(torch.full((len(self.seeds), 1), -math.inf), requires_grad=False)
        self.scale = nn.Parameter(torch.full((len(self.seeds), 1), 1e-8), requires_grad=False)
        self.forget(0)

    def configure_optimizers(self):
        return self.adam(self.config.lr, model=self.model)

    def before_update(self) -> None:
        self.optim["model"].anneal(min(1.0, (self.updates + 1) / max(self.config.warm_up, 1)))

    def update(self, batch: Window, noise: Noise, k: int) -> Metrics:
        with torch.no_grad():
            for known, new in ((self.best, batch.best), (self.scale, batch.largest)):
                known.copy_(torch.maximum(known, new.amax(1, keepdim=True)))
        scaled = batch.to_go / self.scale.unsqueeze(-1)  # [S, B, T]
        action = self.model(batch.obs, batch.action, scaled, batch.step, noise.get("dropout", ()))
        error = losses.squared(action - batch.action).mean(-1) * batch.mask  # [S, B, T]
        share = self.mean_of_all(batch.mask.mean((1, 2), keepdim=True))  # [S, 1, 1], fraction of unmasked steps
        return dict(actor_loss=self.descend("model", (error / share).mean(-1), self.config.max_grad_norm))

    def draw(self, batch_size: int) -> Noise:
        config = self.config
        if not config.dropout:
            return {}
        widths = [3 * config.context * config.embedding] * (1 + 2 * config.blocks)
        kept = dropout_masks(self.rng, config.dropout, batch_size, widths)
        return dict(dropout=tuple(of.unflatten(-1, (-1, config.embedding)) for of in kept))

    # Acting

    def forget(self, envs: int) -> None:
        """Reset the memory, for E environments of every seed."""
        shape = (len(self.seeds), envs)
        self.memory = Memory(
            obs=None,
            action=torch.zeros(*shape, self.config.context, self.spec.action_dim, device=self.device),
            to_go=torch.zeros(*shape, self.config.context, device=self.device),
            step=torch.zeros(*shape, self.config.context, dtype=torch.int64, device=self.device),
            count=torch.zeros(shape, dtype=torch.int64, device=self.device),
            left=torch.zeros(shape, device=self.device),
        )
        self.total = np.zeros(shape)  # sum of the episode's rewards so far

    def explore_in(self, lanes: Sequence[int]) -> None:
        super().explore_in(lanes)
        self.forget(len(lanes))

    def begin(self, where: np.ndarray, episodes: np.ndarray) -> None:
        super().begin(where, episodes)
        if where.shape != self.memory.count.shape:
            self.forget(where.shape[1])
        self.total = np.where(where, 0, self.total)
        new, asked = torch.from_numpy(where).to(self.device), self.config.target_return
        best = torch.where(self.best.isinf(), 0, self.best)  # [S, 1]; 0 before training
        left = best if asked is None else torch.full_like(best, asked)
        self.memory = self.memory._replace(
            count=self.memory.count.masked_fill(new, 0), left=torch.where(new, left, self.memory.left)
        )

    def receive(self, reward: np.ndarray) -> None:
        self.total = self.total + reward
        value = rewards.OnlineReward(*self.task.get("reward") or ())(reward, self.total)
        self.memory = self.memory._replace(left=self.memory.left - torch.from_numpy(value).to(self.memory.left))

    def act(self, obs: Tree, explore: bool = False) -> Tensor:
        if (envs := first_leaf(obs).shape[1]) != self.memory.count.shape[1]:
            self.explore_in(range(envs))
            self.begin(np.ones((len(self.seeds), envs), bool), np.zeros((len(self.seeds), envs), int))
        memory, T = self.memory, self.config.context
        full, place = memory.count >= T, memory.count.clamp(max=T - 1)  # [S, E]

        def put(steps: Tensor, new: Tensor) -> Tensor:
            """Append a step, and drop the oldest one where the memory is full."""
            wide = (...,) + (None,) * (steps.ndim - 2)
            moved = torch.where(full[wide], steps.roll(-1, 2), steps)
            return moved.scatter(2, place[wide].expand(*steps.shape[:2], 1, *steps.shape[3:]), new.unsqueeze(2))

        if memory.obs is None:
            memory = memory._replace(obs=tree_map(lambda x: x.unsqueeze(2).expand(-1, -1, T, *x.shape[2:]), obs))
        history = tree_map(put, memory.obs, obs)
        to_go, step = put(memory.to_go, memory.left), put(memory.step, memory.count)
        action = put(memory.action, torch.zeros_like(memory.action[:, :, 0]))  # unknown yet; causally masked
        at = place[..., None, None].expand(-1, -1, 1, self.spec.action_dim)
        new = self.model(history, action, to_go / self.scale.unsqueeze(-1), step).gather(2, at)  # [S, E, 1, A]
        taken = self.to_env(new)
        if self.spec.whole:  # the environment rounds
            taken = taken.round()
            new = self.in_unit(taken)
        self.memory = Memory(history, action.scatter(2, at, new), to_go, step, memory.count + 1, memory.left)
        return taken.squeeze(2)
