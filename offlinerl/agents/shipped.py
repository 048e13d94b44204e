"""Policies to hand on: of an agent the weights that acting needs, in a file of a few hundred kilobytes.

The file is in the format of safetensors. Its metadata have one entry, ``offlinerl``, with JSON of: ``agent``, the class
as ``module:Class``; ``settings``, what it is made with, its one seed and the task's shapes included; ``task``, what
evaluation must know of the task; and whatever else is known of how the policy came about. Networks that only learning
needs are not in it, so that nothing can be trained further from it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from offlinerl.agents.base import Agent
from offlinerl.util.atomic import atomic_write, require_place, to_json
from offlinerl.util.errors import UNSOUND, UserError
from offlinerl.util.settings import values_of

SUFFIX = ".safetensors"


class _Read(TorchDispatchMode):
    """Notes the memory that operations read from."""

    def __init__(self) -> None:
        super().__init__()
        self.places: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, Tensor):
                self.places.add(leaf.untyped_storage().data_ptr())
        return func(*args, **(kwargs or {}))


def acting_weights(agent: Agent) -> dict[str, Tensor]:
    """What the agent's ``act`` reads, with exploration and without, by its names in the state dictionary."""
    one = agent.acting_in([0])
    seen = {
        leaf.path: torch.zeros(len(one.seeds), 1, *leaf.shape, dtype=getattr(torch, leaf.dtype), device=one.device)
        for leaf in one.spec.obs
    }
    with torch.no_grad(), _Read() as read:
        for explore in (False, True):
            one.begin(np.ones((len(one.seeds), 1), bool), np.zeros((len(one.seeds), 1), int))
            one.act(seen.get("", seen), explore)
    state = one.state_dict()
    return {name: w for name, w in state.items() if w.untyped_storage().data_ptr() in read.places}


def write(agent: Agent, path: Path, facts: Mapping[str, Any], overwrite: bool = False) -> Path:
    """Write the policy of an agent of one seed.

    Args:
        agent: of one seed; see ``Agent.part``.
        path: the file, which ends in ``.safetensors``.
        facts: what else the file shall say of it, as plain data.
        overwrite: replace the file if it exists.

    Returns:
        ``path``.

    Raises:
        UserError: the file exists or has another ending, or the disk is full.
    """
    path = Path(path)
    require_name(path, overwrite)
    settings = {**agent.hparams, **values_of(agent.members[0]), "seeds": list(agent.seeds)}
    about = dict(agent=f"{type(agent).__module__}:{type(agent).__name__}", settings=settings, task=agent.task, **facts)
    weights = {name: w.detach().cpu().contiguous().clone() for name, w in acting_weights(agent).items()}
    with atomic_write(path, overwrite) as temporary:
        temporary.write_bytes(save(weights, {"offlinerl": json.dumps(about, default=to_json)}))
    return path


def require_name(path: Path, overwrite: bool = False) -> None:
    """Raises a UserError unless ``write`` may write a policy there."""
    if path.suffix != SUFFIX:
        raise UserError(f"a policy is written as a file that ends in {SUFFIX}, not as {path}")
    require_place(path, overwrite)


def about(path: Path) -> dict[str, Any]:
    """What a file says of its policy.

    Raises:
        UserError: it is none of ours, or damaged.
    """
    return read(path)[0]


def read(path: Path, device: torch.device | str = "cpu") -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What a file says of its policy, and the weights by name.

    Raises:
        UserError: it is none of ours, or damaged.
    """
    try:
        with safe_open(path, "pt", str(device)) as file:
            stated = json.loads((file.metadata() or {}).get("offlinerl", "{}"))
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (it is no mapping)
    except (SafetensorError, *UNSOUND) as error:
        raise UserError(f"the policy {path} is damaged; get it or write it again") from error
    kinds = dict(agent=str, settings=dict, task=dict)
    if not isinstance(stated, dict) or not all(isinstance(stated.get(key), kind) for key, kind in kinds.items()):
        raise UserError(f"{path} holds no policy of offlinerl")
    return stated, weights


def fill(agent: Agent, weights: Mapping[str, Tensor], path: Path) -> None:
    """Put the weights of a file into an agent that was made by its settings.

    Raises:
        UserError: they are not those that it acts by.
    """
    due = acting_weights(agent)
    if {name: w.shape for name, w in weights.items()} != {name: w.shape for name, w in due.items()}:
        raise UserError(f"the weights in {path} are not those of the agent that it names; get it or write it again")
    agent.load_state_dict(dict(weights), strict=False)
