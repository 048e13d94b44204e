"""A run's settings, from the family's YAML, the user's file and the command line, later ones winning."""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from offlinerl import paths
from offlinerl.agent import Agent
from offlinerl.data.registry import Entry
from offlinerl.types import UserError

SECTIONS = {"fit", "agent", "train", "datasets", "versions"}
DEFAULTS = dict(
    updates=100_000, batch=256, eval_every=10_000, eval_episodes=10, final_episodes=50, block=50, compile="auto"
)

LIMITS = {
    **dict.fromkeys(("lr", "beta", "clip", "huber"), ("greater than 0", lambda x: x > 0)),
    **dict.fromkeys(("temperature", "action_noise", "random_actions"), ("at least 0", lambda x: x >= 0)),
    **dict.fromkeys(("n_step", "value_updates"), ("at least 1", lambda x: x >= 1)),
    **dict.fromkeys(set(DEFAULTS) - {"compile"}, ("at least 1", lambda x: x >= 1)),
    "tau": ("greater than 0 and at most 1", lambda x: 0 < x <= 1),
    "expectile": ("between 0 and 1", lambda x: 0 < x < 1),
    "gamma": ("from 0 to 1", lambda x: 0 <= x <= 1),
    "dropout": ("at least 0 and less than 1", lambda x: 0 <= x < 1),
}
"""What a setting must be, by name; a name means the same in every algorithm."""


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
    if not isinstance(content, dict) or not all(isinstance(section, dict) for section in content.values()):
        raise UserError(f"the configuration {path} must hold sections of settings, such as `agent:` and `train:`")
    if unknown := set(content) - SECTIONS:
        raise UserError(f"the configuration {path} has an unknown section {unknown.pop()!r}; name it agent or train")
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
    settings["agent"] = _checked(settings["agent"], parameters(agent), f"{agent_name} has no setting")
    settings["train"] = _checked(settings["train"], DEFAULTS, "training has no setting")
    return {section: settings[section] for section in ("agent", "train")}


def of_agent(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The constructor's arguments: the agent's settings, with ``decay_steps: updates`` as a number."""
    arguments = dict(settings["agent"])
    if arguments.get("decay_steps") == "updates":
        arguments["decay_steps"] = settings["train"]["updates"]
    return arguments


def parameters(agent: type[Agent]) -> dict[str, Any]:
    """The settings of an algorithm and their defaults: its constructor's keyword arguments."""
    return {
        name: parameter.default
        for name, parameter in inspect.signature(agent.__init__).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }


def _checked(given: Mapping[str, Any], defaults: Mapping[str, Any], complaint: str) -> dict[str, Any]:
    for key in given:
        if key not in defaults:
            near = difflib.get_close_matches(key, defaults, n=3, cutoff=0.5) or list(defaults)
            raise UserError(f"{complaint} {key!r}; did you mean {' or '.join(near)}?")
    return merge(defaults, {key: _value(key, value, defaults[key]) for key, value in given.items()})


def _value(key: str, value: Any, default: Any) -> Any:
    """``value`` in the type of the setting's default.

    Raises:
        UserError: it has another type or lies out of range.
    """
    if isinstance(value, str) and _is_number(value):
        value = float(value)  # YAML 1.1 takes 3e-4 for text
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    whole = number and value == int(value)
    if key == "compile":
        fits, wanted = value in ("auto", True, False), "auto, true or false"
    elif key == "decay_steps":
        fits, wanted = value in (None, "updates") or (whole and value >= 1), "a whole number, updates or null"
    elif isinstance(default, bool):
        fits, wanted = isinstance(value, bool), "true or false"
    elif isinstance(default, int):
        fits, wanted = whole, "a whole number"
    elif isinstance(default, float):
        fits, wanted = number, "a number"
    elif isinstance(default, Sequence):
        fits = isinstance(value, Sequence) and all(type(size) is int and size > 0 for size in value)
        wanted = "a list of whole numbers, such as [256, 256]"
    else:
        fits, wanted = True, ""
    limit, within = LIMITS.get(key, (wanted, lambda _: True))
    if not (fits and within(value)):
        raise UserError(f"{key} must be {limit if fits else wanted}, not {value!r}")
    return type(default)(value) if type(default) in (int, float) else value


def parse_value(text: str) -> Any:
    """A value on the command line: a number, true, false, null, a list, else the text itself."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
