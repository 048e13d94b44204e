"""Encoders: from observations to features, ``[S, B, ...] -> [S, B, F]``. Every network has one of its own."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn


class Encoder(nn.Module, ABC):
    """What a network sees of an observation.

    Attributes:
        features: F.
    """

    features: int

    @abstractmethod
    def forward(self, obs: Tensor) -> Tensor:
        """``[S, B, ...] -> [S, B, F]``."""


class Identity(Encoder):
    """A vector as it is."""

    def __init__(self, features: int):
        super().__init__()
        self.features = features

    def forward(self, obs: Tensor) -> Tensor:
        return obs
