"""VAE: variational autoencoder (Kingma & Welling, Auto-Encoding Variational Bayes, 2013), an encoder for other agents.

As in Learning to Drive in a Day (Kendall et al., ICRA 2019), it is trained on collected frames, and a policy is then
trained on its latents.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from offlinerl.agents.base import Agent, Config, Noise, fixed, setting
from offlinerl.learning import losses
from offlinerl.nn.decoders import ImageDecoder
from offlinerl.nn.encoders import LAYERS, Posterior
from offlinerl.types import Batch, Metrics, Spec
from offlinerl.util.errors import UserError


@dataclass(frozen=True)
class VAEConfig(Config):
    convolutions: str = "world_models"
    normalize: bool = fixed(False)
    encoder: str | None = fixed(None)
    latents: int = setting(32, "dimension of a frame's latent vector", low=1)
    lr: float = setting(1e-3, "Adam's learning rate", above=0)
    likelihood: str = setting(
        "gaussian", "distribution of a pixel, given the decoder's output", choices=("gaussian", "bernoulli")
    )
    sigma: float = setting(
        0.1, "standard deviation of the gaussian likelihood, where black is 0 and white is 1", above=0
    )
    beta: float = setting(1.0, "weight of the KL divergence (Higgins et al., ICLR 2017)", low=0)


class VAE(Agent):
    """An encoder and a decoder of frames, which maximise a lower bound of the frames' likelihood (paper, equation 10).
    It has no policy: give its run as the setting ``encoder`` of an agent that has one.
    """

    config_class = VAEConfig
    kinds = ("observations",)
    judged_by = "vae_loss"
    discrete = None

    def build(self) -> None:
        require_image_alone(self.spec, "a vae learns")
        config, (leaf, *others) = self.config, self.spec.obs
        if others or leaf.path or len(leaf.shape) != 3 or leaf.dtype != "uint8":
            raise UserError(
                "a vae learns from images only, [H, W, C] of uint8, but these observations are something else"
            )
        self.posterior = Posterior(leaf.shape, config.latents, self.init_rng("encoder"), LAYERS[config.convolutions])
        self.decoder = ImageDecoder(self.posterior.images, config.latents, self.init_rng("decoder"))

    def configure_optimizers(self):
        return self.adam(self.config.lr, vae=torch.nn.ModuleList([self.posterior, self.decoder]))

    def draw(self, batch_size: int) -> Noise:
        return dict(epsilon=self.rng.normal((batch_size, self.config.latents)))

    def update(self, batch: Batch, noise: Noise, k: int) -> Metrics:
        config, x = self.config, (batch.obs / 255).flatten(2)  # [S, B, H W C]
        mean, log_var = self.posterior(batch.obs)  # [S, B, Z]
        z = mean + torch.exp(0.5 * log_var) * noise["epsilon"]  # reparameterisation trick, section 2.4
        logits = self.decoder(z).flatten(2)
        decoded = torch.sigmoid(logits)
        if config.likelihood == "gaussian":
            reconstruction = losses.gaussian_likelihood(x, decoded, config.sigma)  # [S, B]
        else:
            reconstruction = losses.bernoulli_likelihood(x, logits)
        kl = losses.divergence(mean, log_var)
        return dict(
            vae_loss=self.descend("vae", reconstruction + config.beta * kl),
            reconstruction_loss=reconstruction.detach().mean(-1),
            kl_loss=kl.detach().mean(-1),
            pixel_error=(x - decoded.detach()).square().mean((1, 2)),
        )

    @torch.no_grad()
    def reconstructed(self, frames: Tensor) -> Tensor:
        """Reconstructions of frames from the mean of their latents, in [0, 1]; both are ``[S, B, H, W, C]``."""
        mean, _ = self.posterior(frames)
        return torch.sigmoid(self.decoder(mean))

    def act(self, obs: Tensor, explore: bool = False) -> Tensor:
        raise UserError("a vae has no policy: name its run as an agent's encoder, as in --agent.encoder runs/vae")


def require_image_alone(spec: Spec, who: str) -> None:
    """Raise a UserError if observations have other parts beside an image; ``who`` begins it, as in "a vae learns"."""
    images = [leaf.path for leaf in spec.obs if len(leaf.shape) == 3 and leaf.dtype == "uint8"]
    if images and len(spec.obs) > 1:
        parts = ", ".join(leaf.path for leaf in spec.obs)
        raise UserError(
            f"{who} from one image alone, but these observations have the parts {parts}: choose an image with"
            f" --obs-keys {images[0]}"
        )
