"""Checkpoints: Lightning's format, written whole or not at all and read without running code from them."""

from __future__ import annotations

import io
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import lightning as L
import torch

from offlinerl import agents
from offlinerl.agent import Agent
from offlinerl.config import parameters
from offlinerl.data.record import aside
from offlinerl.types import UserError


def save(trainer: L.Trainer, path: Path) -> None:
    """Save everything a run needs to go on; a full disk or a crash leaves the previous file as it was.

    Raises:
        UserError: the disk is full.
    """
    with aside(path, overwrite=True) as temporary:
        trainer.save_checkpoint(temporary)


def read(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """The content of a checkpoint.

    Raises:
        UserError: there is none, it is damaged, or it is not one of ours.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there is no checkpoint {path}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch wonders about the pickles of others
            content = torch.load(path, map_location=device, weights_only=True)
    except (RuntimeError, EOFError, OSError, ValueError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise UserError(
            f"the checkpoint {path} is damaged or not a checkpoint; use another one of the run, such as best.ckpt"
        ) from error
    if not isinstance(content, dict) or "offlinerl" not in content:
        raise UserError(f"{path} is not a checkpoint of offlinerl")
    return content


def amend(path: Path, callback: str, state: dict[str, Any]) -> None:
    """Replace a callback's state in a checkpoint and leave the rest of it as it is.

    Raises:
        UserError: see ``read``, or the disk is full.
    """
    content = read(path)
    content["callbacks"][callback] = state
    buffer = io.BytesIO()  # of a full disk, torch would only say that writing failed
    torch.save(content, buffer)
    with aside(path, overwrite=True) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def load_into(agent: Agent, saved: dict[str, Any], path: Path) -> None:
    """Put a checkpoint's weights, optimisers, generators and counters into an agent.

    Raises:
        UserError: they do not fit it.
    """
    try:
        agent.load_state_dict(saved["state_dict"])
    except RuntimeError as error:
        raise UserError(f"the checkpoint {path} does not fit this agent: other networks or seeds") from error
    agent.configure_optimizers()
    for optimizer, state in zip(agent.optim.values(), saved["optimizer_states"], strict=True):
        optimizer.load_state_dict(state)
    agent.on_load_checkpoint(saved)


def load_agent(path: Path, device: torch.device | str = "cpu") -> Agent:
    """The agent in a checkpoint, ready to act.

    Raises:
        UserError: see ``read``.
    """
    saved = read(path, device)
    agent_class = agents.get(saved["offlinerl"]["agent"])
    known = {"spec", "seeds", *parameters(agent_class)}  # an older version's may have had others
    agent = agent_class(**{key: value for key, value in saved["hyper_parameters"].items() if key in known})
    agent.to(device)
    load_into(agent, saved, path)
    return agent.eval()
