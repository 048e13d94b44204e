"""A run's settings, from the family's YAML, the user's file and the command line, later ones winning."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from offlinerl import paths
from offlinerl.agent import Agent
from offlinerl.data.registry import Entry
from offlinerl.types import UserError

TRAIN = ("updates", "batch", "eval_every", "eval_episodes", "final_episodes", "block", "compile")
DEFAULTS = dict(
    updates=100_000, batch=256, eval_every=10_000, eval_episodes=10, final_episodes=50, block=50, compile="auto"
)


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with the values of ``over``, mappings within mappings merged likewise."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def read(path: Path) -> dict[str, Any]:
    """A YAML file that holds a mapping.

    Raises:
        UserError: it is missing or something else.
    """
    try:
        content = yaml.safe_load(Path(path).read_text())
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not YAML"
        raise UserError(f"the configuration {path} cannot be read: {reason}") from error
    if not isinstance(content, dict):
        raise UserError(f"the configuration {path} must hold settings such as `agent:` and `train:`")
    return content


def resolve(
    agent_name: str, agent: type[Agent], entry: Entry, file: Path | None = None, over: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The settings of a run: ``{"agent": {...}, "train": {...}}``.

    From weakest to strongest: the algorithm's defaults, ``configs/<agent>/<family>.yaml``, its value for this
    dataset, ``file``, ``over``.

    Raises:
        UserError: a setting is unknown or of the wrong type; the message names the nearest ones.
    """
    settings: dict[str, Any] = dict(agent={}, train=DEFAULTS)
    family = paths.share("configs", agent_name, f"{entry.family}.yaml")
    for path in [family] * family.is_file() + ([Path(file)] if file else []):
        content = read(path)
        of_dataset = content.pop("datasets", {}).get(entry.name, {})
        settings = merge(merge(settings, content), of_dataset)
    settings = merge(settings, over or {})
    if unknown := set(settings) - {"agent", "train"}:
        raise UserError(f"unknown section {unknown.pop()!r} in the settings; there are agent, train and datasets")
    settings["agent"] = _checked(settings["agent"], parameters(agent), f"{agent_name} has no setting")
    settings["train"] = _checked(settings["train"], DEFAULTS, "training has no setting")
    if settings["agent"].get("decay_steps") == "updates":
        settings["agent"]["decay_steps"] = settings["train"]["updates"]
    for key in ("updates", "batch", "eval_every", "eval_episodes", "final_episodes", "block"):
        if settings["train"][key] < 1:
            raise UserError(f"{key} must be at least 1, not {settings['train'][key]}")
    return settings


def parameters(agent: type[Agent]) -> dict[str, Any]:
    """The settings of an algorithm and their defaults: its constructor's keyword arguments."""
    return {
        name: parameter.default
        for name, parameter in inspect.signature(agent.__init__).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }


def _checked(given: Mapping[str, Any], defaults: Mapping[str, Any], complaint: str) -> dict[str, Any]:
    for key, value in given.items():
        if key not in defaults:
            near = difflib.get_close_matches(key, defaults, n=3, cutoff=0.5) or list(defaults)
            raise UserError(f"{complaint} {key!r}; did you mean {' or '.join(near)}?")
        default = defaults[key]
        number = isinstance(default, (int, float)) and not isinstance(default, bool)
        if number and (isinstance(value, bool) or not isinstance(value, (int, float))):
            raise UserError(f"{key} must be a number, not {value!r}")
        if isinstance(default, int) and number and value != int(value):
            raise UserError(f"{key} must be a whole number, not {value!r}")
    cast = {k: type(defaults[k])(v) if isinstance(defaults[k], (int, float)) else v for k, v in given.items()}
    return merge(defaults, cast)


def parse_value(text: str) -> Any:
    """A value on the command line: a number, true, false, null, a list, else the text itself."""
    try:
        value = yaml.safe_load(text)
        return float(text) if isinstance(value, str) and _is_number(text) else value  # YAML 1.1 misses 3e-4
    except yaml.YAMLError:
        return text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
