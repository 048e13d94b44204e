"""Settings: frozen dataclasses whose fields hold their documentation and limits. Parsing of files and flags, help texts
and error messages are derived from them."""

from __future__ import annotations

import inspect
import itertools
import json
import math
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, Field, dataclass, field, fields
from functools import cache
from numbers import Real
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from offlinerl.util.errors import UserError, did_you_mean, either
from offlinerl.util.given import built_in

C = TypeVar("C", bound="Config")


def setting(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    below: float | None = None,
    choices: Sequence[Any] = (),
    per_seed: bool = False,
) -> Any:
    """A field of a ``Config``.

    Args:
        default: the default value.
        help: its meaning with units, in a phrase.
        low: inclusive lower bound.
        high: inclusive upper bound.
        above: exclusive lower bound.
        below: exclusive upper bound.
        choices: the allowed words of a ``str``; for other types, values that are allowed besides those of the type.
        per_seed: whether an agent accepts several values of this number, to train them side by side; see ``members``.
    """
    about = dict(
        low=low, high=high, above=above, below=below, help=help, choices=tuple(choices), per_seed=per_seed
    )  # fmt: skip
    return field(default=default, metadata=about)


def fixed(value: Any) -> Any:
    """Fix the value of an inherited setting, which is then no longer a setting of the subclass."""
    return field(default=value, init=False)


@dataclass(frozen=True)
class Config:
    """Base class of settings. A field that overrides an inherited one by a plain default keeps its help and limits.

    Types are bool, int, float, str and ``tuple[int, ...]``, or one of these and None. A setting that is ``per_seed``
    may be a tuple of different values instead.

    Raises:
        UserError: a value has the wrong type or is out of range.
    """

    def __init_subclass__(cls) -> None:
        annotated = inspect.get_annotations(cls)
        for name, inherited in getattr(cls, "__dataclass_fields__", {}).items():
            if name not in vars(cls):
                continue
            if name not in annotated:
                raise TypeError(f"{cls.__name__}.{name} needs the type of the setting that it overrides")
            own = vars(cls)[name]
            if not isinstance(own, Field):
                own = field(default=own)
            if not own.metadata:
                setattr(cls, name, field(default=own.default, init=own.init, metadata=inherited.metadata))

    def __post_init__(self) -> None:
        for name in settings_of(type(self)):
            object.__setattr__(self, name, typed(type(self), name, getattr(self, name)))


def settings_of(config: type[Config]) -> dict[str, Field]:
    """The settings by name, in order, without those that are ``fixed``."""
    if not issubclass(config, Config):
        raise UserError(f"the settings {config.__name__} must inherit offlinerl.agents.base.Config")
    if "__dataclass_fields__" not in vars(config):
        raise UserError(f"the settings {config.__name__} need the decorator @dataclass(frozen=True)")
    found = {f.name: f for f in fields(config) if f.init}
    for name, f in found.items():
        if f.default is MISSING and f.default_factory is MISSING:
            raise UserError(f"the setting {config.__name__}.{name} needs a default value")
    return found


def plain(config: Config) -> dict[str, Any]:
    """The values of the settings by name, as plain data for YAML."""
    values = {name: getattr(config, name) for name in settings_of(type(config))}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def members(seeds: Sequence[int], config: Config) -> list[dict[str, Any]]:
    """The members that one run trains side by side: every seed with every combination of the values of those settings
    that have several. Each is a mapping with ``seed`` and these settings; the seeds of a combination are adjacent."""
    several = {name: getattr(config, name) for name in per_seed_settings(type(config))}
    several = {name: values for name, values in several.items() if isinstance(values, tuple)}
    return [
        dict(seed=seed, **dict(zip(several, values, strict=True)))
        for values in itertools.product(*several.values())
        for seed in seeds
    ]


def named(member: Mapping[str, Any]) -> str:
    """A member in words, such as "seed 0, beta 0.5"."""
    words = {name: format(value, "g") if isinstance(value, float) else value for name, value in member.items()}
    return ", ".join(f"{name} {value}" for name, value in words.items())


def values_of(member: Mapping[str, Any]) -> dict[str, float]:
    """A member's values of the settings that have several; what distinguishes it from others with its seed."""
    return {name: value for name, value in member.items() if name != "seed"}


def columns_of(member: Mapping[str, Any]) -> dict[str, Any]:
    """A member as columns of a run's tables: ``seed``, and settings as ``agent.<name>``."""
    return {name if name == "seed" else f"agent.{name}": value for name, value in member.items()}


def series_of(member: Mapping[str, Any]) -> str:
    """A member as the end of the name of a series, such as "seed_0" or "seed_0_agent.beta_0.5"."""
    return "_".join(f"{column}_{value}" for column, value in columns_of(member).items())


def per_seed_settings(config: type[Config]) -> list[str]:
    """The names of the settings that are ``per_seed``."""
    return [name for name, f in settings_of(config).items() if f.metadata.get("per_seed")]


def make(config: type[C], given: Mapping[str, Any], complaint: str) -> C:
    """Create settings with these values.

    Raises:
        UserError: a setting is unknown, where the message begins with ``complaint``, such as "xql has no setting"; or a
            value has the wrong type or is out of range.
    """
    require_known(given, settings_of(config), complaint)
    return config(**given)


def require_known(given: Iterable[Any], known: Iterable[str], complaint: str) -> None:
    """Raise a UserError, which begins with ``complaint``, if one of the given names is not known."""
    for name in given:
        if name not in known:
            hint = did_you_mean(str(name), known, f"there are {', '.join(known)}")
            raise UserError(f"{complaint} {name!r}; {hint}")


@cache
def _hints(config: type[Config]) -> dict[str, tuple[Any, bool]]:
    """The type of every setting, and whether it may be None."""
    found = {}
    for name, hint in get_type_hints(config).items():
        kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        types = [get_origin(kind) or kind for kind in kinds if kind is not NoneType]
        found[name] = types[0] if types else NoneType, NoneType in kinds
    return found


def typed(config: type[Config], name: str, value: Any) -> Any:
    """Convert a value to the type of its setting.

    Raises:
        UserError: it has the wrong type or is out of range.
    """
    about, value = settings_of(config)[name].metadata, built_in(value)
    if about.get("per_seed") and isinstance(value, list | tuple):
        values = tuple(_one(config, name, one) for one in value)
        if not values or len(set(values)) < len(values):
            raise UserError(f"{name} must be a number or a list of different numbers, not {list(value)}")
        return values if len(values) > 1 else values[0]
    return _one(config, name, value)


def _one(config: type[Config], name: str, value: Any) -> Any:
    kind, nullable = _hints(config)[name]
    about = settings_of(config)[name].metadata
    choices = about.get("choices", ())
    if kind in (int, float) and isinstance(value, str):
        with suppress(ValueError):
            value = float(value)  # YAML 1.1 parses 3e-4 as text
    if (value is None and nullable) or (isinstance(value, (str, float)) and value in choices):
        return value
    number = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    sizes = isinstance(value, (list, tuple)) and all(type(size) is int and size > 0 for size in value)
    fits = {
        bool: isinstance(value, bool), int: number and value == int(value), float: number,
        str: isinstance(value, str) and not choices, tuple: sizes,
    }.get(kind, True)  # fmt: skip
    if fits and (kind not in (int, float) or _within(value, about)):
        return kind(value) if kind in (int, float, tuple) else value
    words = [*choices]
    if kind is bool:
        words += ["true", "false"]
    elif kind is not str or not choices:
        words = [limits(about) if fits else WANTED[kind], *choices]
    several = per_seed_settings(config) if isinstance(value, list) and kind is not tuple else []
    hint = f"; several values are only allowed for {', '.join(several)}" if several else ""
    raise UserError(f"{name} must be {either(*words, *(['null'] if nullable else []))}, not {value!r}{hint}")


WANTED = {
    int: "a whole number", float: "a number", str: "a word", tuple: "a list of whole numbers, such as [256, 256]",
}  # fmt: skip

BOUNDS = {
    "above": ("greater than", operator.gt),
    "low": ("at least", operator.ge),
    "high": ("at most", operator.le),
    "below": ("less than", operator.lt),
}
"""The limits of a setting: their words in messages, and the comparison that a value must satisfy."""


def limits(about: Mapping[str, Any]) -> str:
    """The limits in a setting's metadata in words; empty if there are none."""
    stated = {name: about[name] for name in BOUNDS if about.get(name) is not None}
    if stated.keys() >= {"low", "high"}:
        return "from {low:g} to {high:g}".format_map(stated)
    if stated.keys() >= {"above", "below"}:
        return "between {above:g} and {below:g}".format_map(stated)
    return " and ".join(f"{BOUNDS[name][0]} {bound:g}" for name, bound in stated.items())


def _within(value: float, about: Mapping[str, Any]) -> bool:
    return all(keeps(value, about[name]) for name, (_, keeps) in BOUNDS.items() if about.get(name) is not None)


def described(config: type[Config]) -> Iterator[tuple[str, str, str]]:
    """For every setting its name, the values it takes, and a line of help for ``argparse``."""
    for name, f in settings_of(config).items():
        kind, nullable = _hints(config)[name]
        words = {bool: ["true", "false"], int: ["N"], float: ["X"], tuple: ["[N,N]"]}.get(kind, [])
        words = [f"{words[0]}[,{words[0]}]"] if f.metadata.get("per_seed") else words
        words += [*map(str, f.metadata.get("choices", ())), *(["null"] if nullable else [])]
        about = "; ".join(filter(None, (f.metadata.get("help"), limits(f.metadata))))
        default = json.dumps(list(f.default) if isinstance(f.default, tuple) else f.default, default=str).strip('"')
        yield name, "|".join(words) or "WORD", f"{about} (default: {default})".strip().replace("%", "%%")
