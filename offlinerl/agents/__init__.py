"""The algorithms, one file each. A file that defines an ``Agent`` here is an algorithm; there is no list.

What a user asks for is checked against their source, for to import one loads torch, which takes seconds.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from inspect import Parameter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offlinerl.util.errors import UserError

if TYPE_CHECKING:
    from offlinerl.agents.base import Agent

BASES = {"base", "checkpoint", "policy_gradient"}
"""Files that are no algorithm but what algorithms share."""


@dataclass(frozen=True)
class Outline:
    """What the source of an algorithm says of it.

    Attributes:
        kinds: as of its ``Agent``.
        settings: and their defaults, see ``offlinerl.training.config.parameters``.
    """

    kinds: frozenset[str]
    settings: Mapping[str, Any]


def names() -> list[str]:
    """The algorithms, by file name."""
    return sorted({module.name for module in pkgutil.iter_modules(__path__)} - BASES)


def get(name: str) -> type[Agent]:
    """The agent class in the file of that name.

    Raises:
        UserError: there is none; the message names the nearest ones.
    """
    require(name)
    module = f"{__name__}.{name}"
    return getattr(importlib.import_module(module), _defined(module))


def outline(name: str) -> Outline:
    """What the file of that name says of its agent, without importing it.

    Raises:
        UserError: there is none; the message names the nearest ones.
    """
    require(name)
    module = f"{__name__}.{name}"
    found = _facts(module, _defined(module))
    return Outline(**{field: found[field] for field in Outline.__dataclass_fields__})


def require(name: str) -> None:
    """Raises a UserError if there is no algorithm of that name."""
    if name not in names():
        near = difflib.get_close_matches(str(name), names(), n=2, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(names())}"
        raise UserError(f"there is no agent {name!r}; {hint}")


@cache
def _source(module: str) -> tuple[dict[str, ast.ClassDef], dict[str, str]]:
    """The classes that a module of this package defines, and where it imports names from."""
    path = Path(__file__).parent.parent.joinpath(*module.split(".")[1:]).with_suffix(".py")
    body = ast.parse(path.read_text("utf-8")).body
    imported = {
        alias.name: node.module for node in body if isinstance(node, ast.ImportFrom) for alias in node.names
    }  # fmt: skip
    return {node.name: node for node in body if isinstance(node, ast.ClassDef)}, imported


def _defined(module: str) -> str:
    """The agent class that an algorithm's file defines, by name."""
    return next(name for name in _source(module)[0] if _facts(module, name) is not None)


def _facts(module: str, name: str) -> dict[str, Any] | None:
    """The kinds of batch and the settings of an agent class, inherited ones too; None of another class."""
    classes, imported = _source(module)
    base = next((base.id for base in classes[name].bases if isinstance(base, ast.Name)), None)
    if (module, name) == ("offlinerl.agents.base", "Agent"):
        facts: dict[str, Any] | None = {}
    elif base in classes:
        facts = _facts(module, base)
    elif imported.get(base, "").startswith("offlinerl.agents."):
        facts = _facts(imported[base], base)
    else:
        facts = None
    if facts is None:
        return None
    facts = dict(facts)
    for node in classes[name].body:
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["kinds"]:
            facts["kinds"] = frozenset(ast.literal_eval(node.value.args[0]))  # of frozenset({...})
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            pairs = zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
            own = {key.arg: ast.literal_eval(value) if value else Parameter.empty for key, value in pairs}
            facts["settings"] = own | (facts["settings"] if node.args.kwarg else {})
    return facts
