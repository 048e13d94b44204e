"""BC: behaviour cloning (Pomerleau, 1989) by maximum likelihood, the baseline every offline method must beat."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from offlinerl.agents.base import Agent, Noise
from offlinerl.nn.actors import GaussianActor
from offlinerl.nn.layers import dropout_masks
from offlinerl.types import Batch, Metrics, Spec


class BC(Agent):
    """Maximum likelihood of the dataset's actions under XQL's policy network.

    Args:
        spec: shapes and bounds of the task.
        seeds: S integers.
        lr: Adam's learning rate.
        hidden: sizes of the hidden layers.
        dropout: rate of dropout.
        decay_steps: updates over which a cosine takes the learning rate to zero; None: constant.
    """

    def __init__(
        self,
        spec: Spec,
        seeds: Sequence[int] = (0,),
        *,
        lr: float = 3e-4,
        hidden: Sequence[int] = (256, 256),
        dropout: float = 0.0,
        decay_steps: int | None = None,
    ):
        super().__init__(spec, seeds)
        self.save_hyperparameters()
        self.lr, self.hidden, self.dropout, self.decay_steps = lr, tuple(hidden), dropout, decay_steps
        self.actor = GaussianActor(self.encoder("actor"), spec.action_dim, hidden, self.init_rng("actor"), dropout)

    def configure_optimizers(self):
        return self.adam(self.lr, actor=self.actor)

    def update(self, batch: Batch, noise: Noise, k: int) -> Metrics:
        log_prob = self.actor(batch.obs, noise.get("dropout")).log_prob(batch.action)  # [S, B]
        return dict(actor_loss=self.descend("actor", -log_prob))

    def draw(self, batch_size: int) -> Noise:
        if not self.dropout:
            return {}
        return dict(dropout=dropout_masks(self.rng.to(self.device), self.dropout, batch_size, self.hidden))

    def before_update(self) -> None:
        self.cosine("actor", self.decay_steps)

    def act(self, obs: Tensor, explore: bool = False) -> Tensor:
        return self.to_env(self.actor.act(obs, self.exploring(obs) if explore else None))
