"""The algorithms, one file each. Every file here that defines an ``Agent`` is an algorithm; there is no list of them.

Other packages register theirs in the entry-point group ``offlinerl.agents``, and any class can be named as
``module:Class``. Names and settings of the built-in agents are checked without importing them, since the import loads
torch, which takes seconds.
"""

from __future__ import annotations

import ast
import importlib
import pkgutil
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offlinerl.util.errors import UserError, did_you_mean
from offlinerl.util.interrupt import raise_interrupt
from offlinerl.util.settings import Config, fixed, setting

if TYPE_CHECKING:
    from offlinerl.agents.base import Agent

BASES = {"base", "checkpoint", "policy_gradient", "shipped"}
"""Files with code that algorithms share; they are not algorithms."""

GROUP = "offlinerl.agents"
"""The entry-point group in which other packages register their agents."""


def names() -> list[str]:
    """The names of the built-in algorithms, which are their file names."""
    return sorted({module.name for module in pkgutil.iter_modules(__path__)} - BASES)


@cache
def installed() -> dict[str, EntryPoint]:
    """Other packages' agents, by name."""
    return {point.name: point for point in entry_points(group=GROUP)}


def is_name(name: str) -> bool:
    """Whether this names an agent: a built-in one, an installed one, or a class as ``module:Class``."""
    is_class = name.count(":") == 1 and all(word.isidentifier() for word in name.replace(":", ".").split("."))
    return is_class or name in names() or name in installed()


def name_of(agent: str | type[Agent]) -> str:
    """The name of an agent, which may be given as a name or as a class.

    Raises:
        UserError: it is neither; or the class cannot be imported by its name, as checkpoints and other processes do.
    """
    if isinstance(agent, str):
        return agent
    if not isinstance(agent, type):
        raise UserError(f"agent must be a name or a class, not {type(agent).__name__} {agent!r:.60}")
    name = f"{agent.__module__}:{agent.__qualname__}"
    if not is_name(name) or get(name) is not agent:
        raise UserError(f"the class {name} cannot be imported by its name; define it at the top level of a module")
    return name


def get(name: str) -> type[Agent]:
    """The agent class of that name.

    Raises:
        UserError: there is no such agent, or its module cannot be imported.
    """
    require(name)
    if name in names():
        return getattr(importlib.import_module(f"{__name__}.{name}"), _skeleton(name).__name__)
    module, _, found = (installed()[name].value if name in installed() else name).partition(":")
    try:
        agent = importlib.import_module(module)
        for part in found.split("."):
            agent = getattr(agent, part, None)
    except ModuleNotFoundError as error:
        raise_interrupt(error)
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise UserError(
                f"the module {module} of the agent {name} needs {error.name}, which is not installed"
            ) from error
        raise UserError(f"there is no module {module} for the agent {name}; check its name") from error
    except Exception as error:  # whatever a user's own module raises
        raise_interrupt(error)
        raise UserError(f"{module} cannot be imported: {type(error).__name__}: {error}") from error
    base = importlib.import_module(f"{__name__}.base").Agent
    if not (isinstance(agent, type) and issubclass(agent, base)):
        raise UserError(f"{name} is not an agent; name a class of {module} that inherits offlinerl.agents.base.Agent")
    if lacking := sorted(agent.__abstractmethods__):
        raise UserError(f"the agent {name} lacks {' and '.join(lacking)}: define what Agent declares")
    return agent


def outline(name: str) -> type[Agent]:
    """The agent class of that name. A built-in one is not imported: it has its settings and constant attributes only.

    Raises:
        UserError: see ``get``.
    """
    require(name)
    return _skeleton(name) if name in names() else get(name)


def require(name: str) -> None:
    """Raise a UserError that suggests similar names if this does not name an agent."""
    require_module(name)
    if not is_name(name):
        known = [*names(), *installed()]
        hint = did_you_mean(str(name), known, f"there are {', '.join(known)}, and module:Class", near=2)
        raise UserError(f"there is no agent {name!r}; {hint}")


def require_module(name: str) -> None:
    """Raise a UserError if this names the file of a class and not its module."""
    file, _, found = str(name).partition(":")
    if file.endswith(".py"):
        path = Path(file)
        raise UserError(
            f"{name} names a file: give {path.stem}:{found or 'Class'}, the class in its module, and run this in the"
            f" folder {path.parent.absolute()}"
        )


def _skeleton(name: str) -> type[Agent]:
    """The agent class of a built-in file, without its methods."""
    module = f"{__name__}.{name}"
    classes = _classes(module)
    return next(c for c in classes.values() if c.__module__ == module and issubclass(c, classes["Agent"]))


@cache
def _classes(module: str) -> dict[str, type]:
    """The classes that a built-in file defines or imports from other files here. Dataclasses of settings are complete;
    other classes have only those attributes that are constants or known names. Nothing else in the file is executed."""
    known: dict[str, Any] = {c.__name__: c for c in (Config, UserError, dataclass, fixed, setting)}
    known["__name__"] = module
    path = Path(__file__).with_name(f"{module.rpartition('.')[2]}.py")
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"{__name__}."):
            known |= {name: found for name, found in _classes(node.module).items() if isinstance(found, type)}
        elif isinstance(node, ast.ImportFrom):
            known |= {a.asname: known[a.name] for a in node.names if a.asname and a.name in known}
        elif isinstance(node, ast.ClassDef):
            node.bases = [base for base in node.bases if isinstance(base, ast.Name) and base.id in known]
            unevaluated = 0
            if not node.decorator_list:
                node.body = [line for line in node.body if _is_plain(line, known)] or [ast.Pass(lineno=1, col_offset=0)]
                unevaluated = annotations.compiler_flag  # annotations name types that are not imported
            exec(compile(ast.Module([node], []), str(path), "exec", unevaluated, dont_inherit=True), known)
    return {name: found for name, found in known.items() if isinstance(found, type)}


def _is_plain(line: ast.stmt, known: dict[str, Any]) -> bool:
    value = line.value if isinstance(line, ast.Assign | ast.AnnAssign) else None
    values = value.elts if isinstance(value, ast.Tuple) else [value]
    return all(isinstance(v, ast.Constant) or (isinstance(v, ast.Name) and v.id in known) for v in values)
