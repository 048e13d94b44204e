"""Policy files for deployment: only the weights that acting needs, in a file of a few hundred kilobytes.

The format is safetensors. The metadata have one entry, ``offlinerl``, a JSON object with: ``agent``, the class as
``module:Class``; ``settings``, what it is created with, including its one seed and the task's shapes; ``task``, what
evaluation needs to know about the task; and further facts about how the policy was trained. Networks that only training
needs are left out, so training cannot be continued from such a file.
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
    """Records the storages of all tensors that operations read."""

    def __init__(self) -> None:
        super().__init__()
        self.places: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, Tensor):
                self.places.add(leaf.untyped_storage().data_ptr())
        return func(*args, **(kwargs or {}))


def acting_weights(agent: Agent) -> dict[str, Tensor]:
    """The weights that the agent's ``act`` reads, with and without exploration, by their names in the state
    dictionary."""
    one = agent.acting_in([0])
    obs = {
        leaf.path: torch.zeros(len(one.seeds), 1, *leaf.shape, dtype=getattr(torch, leaf.dtype), device=one.device)
        for leaf in one.spec.obs
    }
    with torch.no_grad(), _Read() as read:
        for explore in (False, True):
            one.begin(np.ones((len(one.seeds), 1), bool), np.zeros((len(one.seeds), 1), int))
            one.act(obs.get("", obs), explore)
    state = one.state_dict()
    return {name: w for name, w in state.items() if w.untyped_storage().data_ptr() in read.places}


def write(agent: Agent, path: Path, facts: Mapping[str, Any], overwrite: bool = False) -> Path:
    """Write the policy of an agent of one seed.

    Args:
        agent: of one seed; see ``Agent.part``.
        path: the file, which ends in ``.safetensors``.
        facts: further facts about the policy to store in the metadata, as plain data.
        overwrite: replace the file if it exists.

    Returns:
        ``path``.

    Raises:
        UserError: the file exists, its name does not end in ``.safetensors``, or the disk is full.
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
    """Raise a UserError unless ``write`` may write a policy there."""
    if path.suffix != SUFFIX:
        raise UserError(f"a policy is written as a file that ends in {SUFFIX}, not as {path}")
    require_place(path, overwrite)


def read(path: Path, device: torch.device | str = "cpu") -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The metadata of a policy file, and its weights by name.

    Raises:
        UserError: the file holds no policy of offlinerl, or is damaged.
    """
    try:
        with safe_open(path, "pt", str(device)) as file:
            stated = json.loads((file.metadata() or {}).get("offlinerl", "{}"))
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (it is no mapping)
    except (SafetensorError, *UNSOUND) as error:
        raise UserError(f"the policy {path} is damaged; download or export it again") from error
    kinds = dict(agent=str, settings=dict, task=dict)
    if not isinstance(stated, dict) or not all(isinstance(stated.get(key), kind) for key, kind in kinds.items()):
        raise UserError(f"{path} holds no policy of offlinerl")
    return stated, weights


def fill(agent: Agent, weights: Mapping[str, Tensor], path: Path) -> None:
    """Load the weights of a policy file into an agent that was created from its settings.

    Raises:
        UserError: names or shapes differ from those of the weights that the agent acts with.
    """
    due = acting_weights(agent)
    if {name: w.shape for name, w in weights.items()} != {name: w.shape for name, w in due.items()}:
        raise UserError(f"the weights in {path} are not those of the agent that it names; download or export it again")
    agent.load_state_dict(dict(weights), strict=False)
