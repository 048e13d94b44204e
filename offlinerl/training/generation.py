"""``offlinerl datasets generate``: datasets that are generated from recipes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from offlinerl.agents import shipped
from offlinerl.data import registry
from offlinerl.data.episode import Episode
from offlinerl.data.journal import EPISODES, Journal
from offlinerl.data.minari_writer import MINARI, metadata_of, write_minari
from offlinerl.envs import checks
from offlinerl.envs.make import make, specification
from offlinerl.evaluation.task import Task
from offlinerl.recipes.generate import SHARE, Generation, Part, parts_of
from offlinerl.recipes.recipe import Recipe, environment, overrides, policy_file, read
from offlinerl.training.build import build
from offlinerl.training.collection import Collection
from offlinerl.training.request import settings_for
from offlinerl.util import paths
from offlinerl.util.atomic import alone, require_place, sweep
from offlinerl.util.cores import cores
from offlinerl.util.device import pick_device
from offlinerl.util.display import Display
from offlinerl.util.errors import UserError, counted
from offlinerl.util.folder import versions
from offlinerl.util.interrupt import Interrupted, Stop, on_interrupt


def generate_dataset(
    name: str,
    *,
    size: int | None = None,
    episodes: int | None = None,
    split: str = "train",
    workers: int | None = None,
    out: Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> Path:
    """Generate a dataset from its recipe and write it as a Minari dataset. The same recipe, size and versions give
    bitwise identical episodes, regardless of the number of workers and of interruptions.

    Args:
        name: of the recipe.
        size: number of transitions; the last episode is completed. None: the recipe's size.
        episodes: number of episodes instead, for demonstrations.
        split: "train", or "heldout": a tenth as many transitions or demonstrations, disjoint from "train". A recipe
            that records the training of an agent writes both at once, with every tenth episode held out.
        workers: number of processes; by default the number of cores.
        out: the folder to write; by default one in the cache. Until all is finished, finished parts are kept in a
            folder beside it whose name ends in ``.partial``.
        resume: continue an unfinished dataset.
        overwrite: replace the folder if it exists.

    Returns:
        The dataset's folder.

    Raises:
        UserError: for anything that the user can fix.
        Interrupted: Ctrl-C; every finished episode is kept.
    """
    recipe, display = read(name), Display()
    replayed = recipe["kind"] == "replay"
    full = name + (registry.HELDOUT if split == "heldout" and not replayed else "")
    path = Path(out) if out else paths.cache("datasets", full)
    partial = path.with_name(f"{path.name}.partial")
    sealed = resume and partial.exists()  # the dataset may have been written before the process was killed
    for place in (path, _heldout(path)) if replayed else (path,):
        require_place(place, overwrite or sealed, MINARI)
    if replayed:
        if episodes is not None:
            raise UserError(f"{name} is measured in transitions: give --size instead of --episodes")
        return _replay(name, recipe, size or recipe["training"]["steps"], path, partial, resume, overwrite)
    parts = parts_of(name, size, episodes, split == "heldout")
    policies = {part.recipe["policy"]: _facts(part.recipe) for part in parts if "policy" in part.recipe}
    with _working_in(partial, resume, path):
        generation = Generation(partial, parts, dict(versions=versions(), policies=policies))
        stop, unit = Stop(), generation.unit
        with on_interrupt(stop.set), display.bar(f"generating {full}", generation.total, unit=unit):

            def progress(made: int) -> None:
                display.advance(min(made, generation.total))

            if not generation.run(workers or cores(), lambda: not stop.is_set(), progress):
                raise Interrupted(
                    f"interrupted after {generation.made:,} {unit}, which are kept in {partial}; resume with: the same"
                    " command and --resume",
                    stop.status,
                )
        provenance = dict(recipe=recipe, size=generation.total, unit=unit, split=split, versions=versions())
        if policies:
            provenance["policies"] = policies
        _write(path, full, parts, iter(generation), provenance, overwrite or path.exists(), display)
        generation.clear()
    return path


def _heldout(path: Path) -> Path:
    """The folder of a replay dataset's held-out episodes, beside that of its other episodes."""
    return path.with_name(path.name + registry.HELDOUT)


@contextmanager
def _working_in(partial: Path, resume: bool, *targets: Path) -> Iterator[None]:
    """Lock the folder of unfinished datasets, and delete partial files of killed processes beside the targets."""
    if partial.exists() and not resume:
        raise UserError(f"{partial} holds an unfinished dataset: resume it with --resume, or delete it to start again")
    with alone(partial, f"{partial} is being written by another process; wait until it ends or choose another --out"):
        for target in targets:
            sweep(target.parent, target.name)
        yield


def _write(
    path: Path,
    name: str,
    parts: list[Part],
    episodes: Iterator[Episode],
    provenance: Mapping[str, Any],
    overwrite: bool,
    display: Display,
) -> None:
    recipe = parts[0].recipe
    with checks.closing(make(environment(recipe), recipe.get("obs_keys"))) as env:
        space, spec, action_space = env.observation_space, specification(env), env.action_space
    if recipe["kind"] != "demonstrator" and isinstance(space, gym.spaces.Box) and space.dtype == np.float64:
        space = gym.spaces.Box(np.float32(space.low), np.float32(space.high), space.shape, np.float32)
    kinds = dict(demonstrator="scripted", controller="scripted", random="random")
    steps = count = 0

    def told() -> Iterator[Episode]:
        nonlocal steps, count
        for episode in episodes:
            steps, count = steps + len(episode.rewards), count + 1
            yield episode

    write_minari(
        path, told(), dataset_id=f"offlinerl/{name}-v0", env_spec=spec, observation_space=space,
        action_space=action_space, overwrite=overwrite,
        metadata=metadata_of(
            f"{name}, made from its recipe",
            kinds.get(recipe["kind"], recipe.get("training", {}).get("agent", "policy")), provenance,
            seed=recipe["seed"], **(dict(obs_keys=recipe["obs_keys"]) if "obs_keys" in recipe else {}),
        ),
    )  # fmt: skip
    display.say(f"{name}: {counted(count, 'episode')}, {steps:,} transitions in {path}")


def _facts(recipe: Recipe) -> dict[str, Any]:
    """Facts about a recipe's policy for the dataset's provenance."""
    path = policy_file(recipe)
    stated, _ = shipped.read(path)
    known = ("agent", "seed", "steps", "updates", "measured", "versions")
    return dict({key: stated[key] for key in known if key in stated}, sha256=registry.sha256(path))


def _replay(name: str, recipe: Recipe, steps: int, path: Path, partial: Path, resume: bool, overwrite: bool) -> Path:
    """Train an agent by its recipe and write all episodes of the training, as in a replay buffer. Every tenth episode
    is held out, or the last one of fewer than ten."""
    training = recipe["training"]
    other = _heldout(path)
    over = overrides(training)
    over["train"] = {**over["train"], "steps": steps}
    settings, entry = settings_for(training["agent"], None, training["env"], [training["seed"]], None, over)
    collection = Collection(
        partial, Task.of(entry), f"offlinerl/{name}-v0", False, training["agent"], training["seed"], settings
    )
    settings["collect"] = dict(dataset=collection.dataset_id, first=collection.first)
    with _working_in(partial, resume, path, other):
        collection.learn(build(settings, entry, pick_device("auto"), partial))
        provenance = dict(recipe=recipe, size=steps, unit="transitions", versions=versions())
        part = Part(dict(recipe, seed=training["seed"], env=training["env"]), steps, "transitions")
        with Journal(partial / EPISODES, write=False) as journal:
            episodes = range(len(journal))
            apart = episodes[SHARE - 1 :: SHARE] or episodes[1:][-1:]
            for target, title, heldout in ((other, name + registry.HELDOUT, True), (path, name, False)):
                if heldout and not apart:
                    collection.display.say(
                        f"{title} is not written, because there is only one episode: give a larger --size"
                    )
                    continue
                chosen = (journal[i] for i in episodes if (i in apart) == heldout)
                split = dict(provenance, split="heldout" if heldout else "train")
                _write(target, title, [part], chosen, split, overwrite or target.exists(), collection.display)
        shutil.rmtree(partial)
    return path
