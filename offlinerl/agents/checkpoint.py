"""Checkpoints in Lightning's format. They are written atomically, and reading one does not run code from it."""

from __future__ import annotations

import errno
import inspect
import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch

from offlinerl import agents
from offlinerl.agents import shipped
from offlinerl.agents.base import Agent
from offlinerl.util.atomic import atomic_write
from offlinerl.util.errors import UNSOUND, UserError
from offlinerl.util.folder import find_checkpoint
from offlinerl.util.settings import settings_of


def save(trainer: L.Trainer, path: Path) -> None:
    """Save everything a run needs to resume. If the disk is full or the process crashes, the previous file stays as it
    was. Every process of a data-parallel run must call this; rank 0 writes.

    Raises:
        UserError: the disk is full.
    """
    if not trainer.is_global_zero:
        return trainer.save_checkpoint(path)
    with atomic_write(path, overwrite=True) as temporary:
        trainer.save_checkpoint(temporary)


def read(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """The content of a checkpoint.

    Raises:
        UserError: there is none, it is damaged, or it is not a checkpoint of offlinerl.
    """
    path = find_checkpoint(path)
    if path.suffix == shipped.SUFFIX:
        raise UserError(f"{path} holds only a policy, without what training needs; name a checkpoint or a run's folder")
    try:
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about pickles of other programs
            content = torch.load(file, map_location=device, weights_only=True)
    except Exception as error:  # unpickling a file of another kind may raise anything
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # torch gets that from some truncated files
            why = (error.strerror or str(error)).lower()
            raise UserError(f"the checkpoint {path} cannot be read: {why}") from error
        raise UserError(
            f"the checkpoint {path} is damaged or not a checkpoint; use another one of the run, such as best.ckpt"
        ) from error
    ours = content.get("offlinerl") if isinstance(content, dict) else None
    if not isinstance(ours, dict) or not isinstance(ours.get("agent"), str):
        raise UserError(f"{path} is not a checkpoint of offlinerl")
    if lacking := ({"state_dict", "optimizer_states"} - set(content)) | ({"updates", "rng"} - set(ours)):
        raise UserError(f"the checkpoint {path} is damaged: it has no {min(lacking)}; use another one of the run")
    if "version" not in ours and ours["agent"] in ("dqn", "offlinerl.agents.dqn:DQN"):  # 0.1 named layers differently
        content["state_dict"] = {re.sub(r"^\w+", r"\g<0>.net", name): w for name, w in content["state_dict"].items()}
    return content


def amend(path: Path, callback: str, state: dict[str, Any]) -> None:
    """Replace a callback's state in a checkpoint and leave the rest unchanged.

    Raises:
        UserError: see ``read``, or the disk is full.
    """
    content = read(path)
    content["callbacks"][callback] = state
    write(content, path)


def write(content: Any, path: Path) -> None:
    """Write an object with ``torch.save``. If the disk is full or the process crashes, the previous file stays as it
    was.

    Raises:
        UserError: the disk is full.
    """
    with atomic_write(path, overwrite=True) as temporary, temporary.open("wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # torch hides the OSError behind it
            if isinstance(error.__context__, OSError):
                raise error.__context__ from error
            raise


def load_into(agent: Agent, saved: dict[str, Any], path: Path) -> None:
    """Load a checkpoint's weights, optimisers, random generators and counters into an agent.

    Raises:
        UserError: they do not fit the agent, or belong to another class.
    """
    require_class(type(agent), saved, path)
    try:
        agent.load_state_dict(saved["state_dict"])
        agent.configure_optimizers()
        for optimizer, state in zip(agent.optim.values(), saved["optimizer_states"], strict=True):
            require_like(state, optimizer.state_dict(), "optimizer_states")
            optimizer.load_state_dict(state)
        fresh: dict[str, Any] = {}
        agent.on_save_checkpoint(fresh)
        # An older version's checkpoint may lack newer keys, and the number of environments may differ between runs.
        ours = saved["offlinerl"]
        known = {key: value for key, value in fresh["offlinerl"].items() if key in ours and key != "explore"}
        require_like(ours, known, "offlinerl")
        agent.on_load_checkpoint(saved)
    except UNSOUND as error:
        version = saved["offlinerl"].get("version", "0.1 or earlier")
        raise UserError(
            f"the checkpoint {path}, written by offlinerl {version}, does not fit this agent: networks or seeds differ;"
            " use the settings, or the version, that it was trained with"
        ) from error


def bounds_in(path: Path) -> tuple[list[float], list[float]]:
    """The lower and upper bounds of the actions of a checkpoint's policy, ``[A]`` each."""
    spec = read(path)["hyper_parameters"]["spec"]
    return spec["action_low"], spec["action_high"]


def load_weights(agent: Agent, path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Load a checkpoint's weights, target networks included, into an agent that has not trained yet, whatever agent
    they were trained by. Returns the facts of the task that they were trained for, and its spec.

    Raises:
        UserError: its networks are different, or only one of the two normalises observations.
    """
    content, have = read(path), agent.state_dict()
    normalized = bool((content.get("hyper_parameters") or {}).get("normalize"))
    if normalized != getattr(agent.config, "normalize", False):
        raise UserError(
            f"the checkpoint {path} was trained {'with' if normalized else 'without'} normalised observations; give"
            f" --agent.normalize {str(normalized).lower()}"
        )
    saved = content["state_dict"]
    for name in sorted(saved.keys() ^ have.keys()) or have:
        sizes = ["x".join(map(str, state[name].shape)) if name in state else "nothing" for state in (saved, have)]
        if sizes[0] != sizes[1]:
            raise UserError(
                f"the checkpoint {path} has other networks: {name} is {sizes[0]} there and {sizes[1]} here; give the"
                " agent, the seeds and the sizes it was trained with"
            )
    agent.load_state_dict(saved)
    return content["offlinerl"].get("task") or {}, content["hyper_parameters"]["spec"]


def require_like(saved: Any, fresh: Any, what: str) -> None:
    """Raise a ValueError that names the place unless a saved value has the structure of a fresh one: mappings with at
    least its keys, tensors of the same shapes and dtypes, and values of the same types. None in the fresh value matches
    anything, and an empty list matches a list of any length."""
    inner: Iterable[Any] = ()
    if isinstance(fresh, torch.Tensor):
        fits = isinstance(saved, torch.Tensor) and (saved.shape, saved.dtype) == (fresh.shape, fresh.dtype)
    elif isinstance(fresh, Mapping):
        fits = isinstance(saved, Mapping) and set(fresh) <= set(saved)
        inner = fresh
    elif isinstance(fresh, (list, tuple)):
        fits = isinstance(saved, (list, tuple)) and (not fresh or len(saved) == len(fresh))
        inner = range(len(fresh))
    elif isinstance(fresh, (bool, str)):
        fits = isinstance(saved, type(fresh))
    elif isinstance(fresh, int):
        fits = type(saved) is int
    else:
        fits = fresh is None or not isinstance(fresh, float) or type(saved) in (int, float)
    if not fits:
        raise ValueError(f"{what} is not as expected")
    for key in inner:
        require_like(saved[key], fresh[key], f"{what}/{key}")


def load_agent(
    path: Path, device: torch.device | str = "cpu", *, agent_class: type[Agent] | str | None = None
) -> Agent:
    """The agent in a checkpoint, ready to act.

    Args:
        path: a checkpoint; a run's folder, whose last checkpoint is read; or a policy file that ``shipped`` wrote.
        device: where to put the agent.
        agent_class: its class, or ``module:Class``. Needed if the class is neither built in nor installed: the
            checkpoint names it, but a module is never imported because a file names it.

    Raises:
        UserError: see ``read``; or the class is not given and not known, or is not the checkpoint's.
    """
    path = find_checkpoint(path)
    if path.suffix == shipped.SUFFIX:
        stated, weights = shipped.read(path, device)
        agent = made(agent_class, dict(offlinerl=stated, hyper_parameters=stated["settings"]), path, device)
        shipped.fill(agent, weights, path)
        agent.task = stated["task"]
        agent.updates, agent.steps = stated.get("updates") or 0, stated.get("steps") or 0
        return agent.eval()
    saved = read(path, device)
    agent = made(agent_class, saved, path, device)
    load_into(agent, saved, path)
    return agent.eval()


def made(agent_class: type[Agent] | str | None, saved: dict[str, Any], path: Path, device: torch.device | str) -> Agent:
    """Create an agent with the settings in a checkpoint, without loading its weights; see ``load_agent``."""
    if agent_class is None:
        agent_class = class_of(saved["offlinerl"]["agent"], path)
    elif isinstance(agent_class, str):
        agent_class = agents.get(agent_class)
    require_class(agent_class, saved, path)
    settings = saved.get("hyper_parameters")
    if not isinstance(settings, dict):
        raise UserError(f"the checkpoint {path} has no settings of its agent; call save_hyperparameters() in __init__")
    known = accepted(agent_class)  # a base class or an older version may have saved further settings
    settings = {key: value for key, value in settings.items() if key in known}
    try:
        agent = agent_class(**settings)
    except (TypeError, ValueError, UserError) as error:
        raise UserError(f"the settings in the checkpoint {path} are not {agent_class.__name__}'s: {error}") from error
    return agent.to(device)


def require_class(agent_class: type[Agent], saved: dict[str, Any], path: Path) -> None:
    """Raise a UserError if the name of a checkpoint's agent class differs from this class's."""
    stated = saved["offlinerl"]["agent"]
    known = agent_class.__name__ if ":" in stated else agent_class.__module__.rpartition(".")[2]
    if known != stated.rpartition(":")[2]:
        raise UserError(f"the checkpoint {path} holds an agent of the class {stated}, not of {agent_class.__name__}")


def accepted(agent_class: type[Agent]) -> set[str]:
    """The names of the arguments that an agent class accepts, settings included."""
    named = inspect.signature(agent_class.__init__).parameters.values()
    others = any(parameter.kind is parameter.VAR_KEYWORD for parameter in named)
    return {parameter.name for parameter in named} | (set(settings_of(agent_class.config_class)) if others else set())


def stated_class(path: Path) -> str:
    """The class that a checkpoint, or a policy file that ``shipped`` wrote, names for its agent.

    Raises:
        UserError: see ``read``.
    """
    path = find_checkpoint(path)
    stated = shipped.read(path)[0] if path.suffix == shipped.SUFFIX else read(path)["offlinerl"]
    return stated["agent"]


def class_of(stated: str, path: Path) -> type[Agent]:
    """The class that a checkpoint names; see ``known_class``.

    Raises:
        UserError: it is neither built in nor installed.
    """
    if found := known_class(stated):
        return found
    name = stated.rpartition(":")[2]
    raise UserError(
        f"the checkpoint {path} holds an agent of the class {stated}, which is not one of offlinerl's or installed;"
        f" name it with --agent-class {stated}, or in Python with agent_class={name}"
    )


def known_class(stated: str) -> type[Agent] | None:
    """The class of the name ``module:Class`` if it is built in or installed, else None. An older checkpoint has only
    the last part of a built-in module's name."""
    module, _, name = stated.rpartition(":")
    package, _, file = module.rpartition(".") if module else (agents.__name__, "", stated)
    ours = [file] if package == agents.__name__ and file in agents.names() else []
    others = [known for known, point in agents.installed().items() if point.value.rpartition(":")[2] == name]
    for known in (*ours, *others):
        found = agents.get(known)
        if stated in (f"{found.__module__}:{found.__name__}", known):
            return found
    return None
