"""A picture of a VAE's reconstructions in its run's folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from offlinerl.agents.vae import VAE
from offlinerl.data.dataset import Dataset
from offlinerl.evaluation import plots
from offlinerl.training.loop import Companion
from offlinerl.util.display import RECONSTRUCTIONS

FRAMES = 8


class Reconstructions(Companion):
    """Draws some frames and their reconstructions by the first seed at the end of a run.

    Args:
        agent: the VAE.
        data: the dataset to take frames from, at evenly spaced rows.
        folder: of the run, where ``reconstructions.png`` is written.
    """

    def __init__(self, agent: VAE, data: Dataset, folder: Path):
        self.agent, self.path = agent, folder / RECONSTRUCTIONS
        self.frames = data.observations[data.at[np.linspace(0, len(data) - 1, FRAMES).astype(int)]]

    def finish(self) -> None:
        frames = torch.from_numpy(self.frames).to(self.agent.device)
        found = self.agent.reconstructed(frames.expand(len(self.agent.seeds), *frames.shape))[0]
        plots.reconstructions(self.frames / 255, found.cpu().numpy(), self.path)
