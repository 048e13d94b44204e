"""Recipes of datasets, ``datasets/recipes/*.yaml``: everything needed to generate one."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from offlinerl.data.registry import expanded
from offlinerl.recipes.antmaze import collecting
from offlinerl.util.errors import UserError, did_you_mean
from offlinerl.util.paths import cache as cached
from offlinerl.util.paths import share

Recipe = Mapping[str, Any]


def names() -> list[str]:
    """The names of all recipes."""
    return sorted(_all())


def read(name: str) -> Recipe:
    """The recipe of a dataset.

    Raises:
        UserError: there is no recipe of that name.
    """
    try:
        return _all()[name]
    except KeyError:
        listed = did_you_mean(name, names(), f"there are: {', '.join(names())}")
        raise UserError(f"there is no recipe {name}; {listed}") from None


@cache
def _all() -> dict[str, Recipe]:
    """All recipes. A file is one recipe, named after it, or lists several under ``recipes``, with templates as in the
    registry."""
    found: dict[str, Recipe] = {}
    for path in sorted(share("datasets", "recipes").glob("*.yaml")):
        content = yaml.safe_load(path.read_text("utf-8"))
        sections = content.get("recipes", [{"name": path.stem, **content}])
        for section in sections:
            found |= {recipe.pop("name"): recipe for recipe in expanded(section)}
    return found


def environment(recipe: Recipe) -> dict[str, Any]:
    """The environment of a recipe's episodes; see ``offlinerl.envs.make``."""
    if recipe["kind"] == "navigator":
        return collecting(recipe["data"])
    env = recipe["env"]
    return {"id": env} if isinstance(env, str) else env


def policy_file(recipe: Recipe) -> Path | None:
    """The policy that plays a recipe's episodes: one in the user's cache, or else the shipped one of that name; None if
    the recipe needs none.

    Raises:
        UserError: there is none yet; the message says how to train it.
    """
    if "policy" not in recipe:
        return None
    file = f"{recipe['policy']}.safetensors"
    shipped, own = share("datasets", "policies", file), cached("policies", file)
    for path in (own, shipped):
        if path.is_file():
            return path
    run = f"runs/{recipe['policy']}"
    raise UserError(
        f"the policy {recipe['policy']} is missing: train it with `offlinerl fit {_flags(recipe['training'])} --out"
        f" {run}` and write it with `offlinerl export {run} --safetensors {own}`"
    )


def _flags(training: Mapping[str, Any]) -> str:
    """The arguments of ``offlinerl fit`` for a training."""
    about = f"{training['agent']} --env {training['env']} --steps {training['steps']} --seeds {training['seed']}"
    given = [(f"{name}.{key}", value) for name, inner in overrides(training).items() for key, value in inner.items()]
    return " ".join([about, *(f"--{key} {value}" for key, value in given)])


def overrides(training: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a training that differ from its agent's defaults."""
    return {name: training.get("settings", {}).get(name, {}) for name in ("agent", "train")}
