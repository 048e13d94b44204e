"""Saving and restoring a run, and the messages when it is interrupted."""

from __future__ import annotations

import pickle
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch

from offlinerl.agents import checkpoint
from offlinerl.agents.base import Agent
from offlinerl.experience.ring import Replay
from offlinerl.util.atomic import sweep
from offlinerl.util.errors import UNSOUND, UserError, command
from offlinerl.util.folder import copy_whole
from offlinerl.util.interrupt import Interrupted

STATE = "Run"
"""The key of a run's state in a checkpoint's callbacks."""


class Checkpointer:
    """``last.ckpt`` and ``best.ckpt`` in a run's folder. A replay buffer is large, so it has a file of its own beside
    ``last.ckpt``.

    Args:
        folder: of the run.
        agent: the agent that is trained.
        replay: its replay buffer, if it has one.
        every: minutes between two saves of ``last.ckpt``.

    Attributes:
        go_on: the command that resumes the run.
    """

    def __init__(self, folder: Path, agent: Agent, replay: Replay | None, every: float):
        self.folder, self.agent, self.replay, self.every = folder, agent, replay, every
        self.last, self.best = folder / "last.ckpt", folder / "best.ckpt"
        self.saved = time.perf_counter()
        self.replay_saved_at: tuple[int, ...] | None = None  # updates and steps of the agent, and of the replay
        self.go_on = command("fit", "--resume", folder)

    def due(self) -> bool:
        """Whether ``every`` minutes have passed since the last save."""
        return time.perf_counter() - self.saved >= 60 * self.every

    def save(self, trainer: L.Trainer) -> None:
        """Save everything needed to resume. At any moment there is a checkpoint with its matching replay buffer."""
        counters = self.agent.updates, self.agent.steps, self.replay.added if self.replay is not None else 0
        if self.replay is not None and not (counters == self.replay_saved_at and self._replay_file.is_file()):
            checkpoint.write(self.replay.state_dict(copy=False), self._replay_file)
            self.replay_saved_at = counters
        checkpoint.save(trainer, self.last)
        for replay in set(self.folder.glob("replay-*.pt")) - {self._replay_file}:
            replay.unlink()
        self.saved = time.perf_counter()

    def save_best(self, trainer: L.Trainer) -> None:
        """Save the policies as the best so far."""
        checkpoint.save(trainer, self.best)

    def finish(self, state: dict[str, Any], best: bool) -> None:
        """Store a finished run's state in ``last.ckpt``, and copy that to ``best.ckpt`` if it is the best."""
        checkpoint.amend(self.last, STATE, state)
        if best:
            copy_whole(self.last, self.best)

    def restore(self) -> dict[str, Any] | None:
        """Continue from ``last.ckpt``: weights, target networks, optimisers, random generators and counters.

        Returns:
            The run's state; None if nothing was saved.

        Raises:
            UserError: the checkpoint is damaged, or is not one of a run.
        """
        sweep(self.folder)  # delete partial files of a killed process
        if not self.last.is_file():
            return None
        saved = checkpoint.read(self.last, self.agent.device)
        checkpoint.load_into(self.agent, saved, self.last)
        if STATE not in saved.get("callbacks", {}):
            raise UserError(f"{self.last} was not saved by `offlinerl fit`, which can only resume its own checkpoints")
        return saved["callbacks"][STATE]

    def restore_replay(self) -> int:
        """Continue from the replay buffer that belongs to ``last.ckpt``.

        Returns:
            The number of its steps that are lost: in a buffer on disk, newer steps may have overwritten them between
            the last save and the end of the process.

        Raises:
            UserError: it is missing or damaged.
        """
        if self.replay is None:
            return 0
        try:
            saved = torch.load(self._replay_file, map_location=self.replay.numbers.device, weights_only=True)
            self.replay.load_state_dict(saved)
        except (*UNSOUND, OSError, EOFError, pickle.UnpicklingError) as error:
            raise UserError(f"{self._replay_file} is missing or damaged, so this run cannot be resumed") from error
        return self.replay.lost

    @property
    def _replay_file(self) -> Path:
        return self.folder / f"replay-{self.agent.steps}.pt"

    def to_go_on_after(self, error: UserError) -> UserError:
        """The error with the command to resume added, if anything was saved."""
        return UserError(f"{error}; resume with: {self.go_on}") if self.last.is_file() else error

    def interrupted(self, now: int, end: int, clock: str, status: int) -> Interrupted:
        """The exception to raise after everything is saved."""
        if self.last.is_file():
            done = f"interrupted after {now:,} of {end:,} {clock}s, which are saved"
        else:
            done = f"interrupted before the first {clock}"
        return Interrupted(f"{done}; resume with: {self.go_on}", status)

    def interrupted_at_once(self, status: int = 1) -> Interrupted:
        """The exception to raise when the run stops without saving."""
        since = "since the last save" if self.last.is_file() else "so far"
        return Interrupted(f"interrupted at once, so the training {since} is lost; resume with: {self.go_on}", status)
