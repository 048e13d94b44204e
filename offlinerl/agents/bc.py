"""BC: behaviour cloning (Pomerleau, 1989) by maximum likelihood, the baseline that every offline method must beat."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from offlinerl.agents.base import Agent, Config, Noise, setting
from offlinerl.nn.actors import actor_of
from offlinerl.nn.layers import dropout_masks
from offlinerl.types import Batch, Metrics


@dataclass(frozen=True)
class BCConfig(Config):
    lr: float = setting(3e-4, "Adam's learning rate", above=0, per_seed=True)
    hidden: tuple[int, ...] = setting((256, 256), "sizes of the hidden layers")
    dropout: float = setting(0.0, "dropout rate", low=0, below=1)
    decay_steps: int | None = setting(
        None,
        "updates over which the learning rate decays to zero along a cosine; `updates`: the whole run",
        low=1,
        choices=("updates",),
    )


class BC(Agent):
    """Maximises the likelihood of the dataset's actions, with XQL's policy network."""

    config_class = BCConfig
    judged_by = "actor_loss"
    discrete = None

    def build(self) -> None:
        config = self.config
        encoder, rng = self.encoder("actor"), self.init_rng("actor")
        self.actor = actor_of(self.spec, encoder, config.hidden, rng, dropout=config.dropout)

    def configure_optimizers(self):
        return self.adam(self.config.lr, actor=self.actor)

    def update(self, batch: Batch, noise: Noise, k: int) -> Metrics:
        log_prob = self.actor(batch.obs, noise.get("dropout")).log_prob(batch.action)  # [S, B]
        return dict(actor_loss=self.descend("actor", -log_prob))

    def draw(self, batch_size: int) -> Noise:
        if not self.config.dropout:
            return {}
        return dict(dropout=dropout_masks(self.rng, self.config.dropout, batch_size, self.config.hidden))

    def before_update(self) -> None:
        self.cosine("actor", self.config.decay_steps)

    def act(self, obs: Tensor, explore: bool = False) -> Tensor:
        return self.to_env(self.actor.act(obs, self.exploring(obs) if explore else None))

    def log_prob(self, obs: Tensor, action: Tensor, explore: bool = False) -> Tensor:
        return self.log_prob_under(self.actor(obs), action)
