"""Datasets by name: where their rows come from, and which environment, rewards and scores belong to them."""

from __future__ import annotations

import difflib
import glob
import hashlib
import http.client
import itertools
import json
import operator
import os
import re
import shutil
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from offlinerl.data.dataset import ABOUT
from offlinerl.data.journal import COLLECTION, EPISODES, Journal
from offlinerl.data.mapping import parse_columns
from offlinerl.envs.make import id_of, steps_allowed, with_limits
from offlinerl.util import fast_yaml, paths
from offlinerl.util.atomic import DISK_FULL, atomic_write
from offlinerl.util.errors import UserError, did_you_mean, either, reading

if TYPE_CHECKING:
    from offlinerl.data.dataset import Dataset

TIMEOUT = 10
"""Seconds to wait for a server."""

HELDOUT = "-heldout"
"""Suffix in the name of the held-out part of a dataset that is generated here."""


NOWHERE = "none"
"""Given instead of an environment: ignore the one that the data names."""


@dataclass(frozen=True)
class Entry:
    """A dataset, and the task it belongs to.

    Attributes:
        name: the dataset's name.
        source: one of ``{"builtin": folder}``, ``{"recipe": name}``, ``{"minari": id}``, ``{"file": path}``,
            ``{"object": dataset}`` and ``{"d4rl": {"url": ..., "bytes": ..., "sha256": ...}}``, with its size
            and digest if known.
        env: the environment as ``offlinerl.envs.make.make`` takes it; None if unknown, as before a Minari dataset is
            installed.
        reward: rule for the training rewards, one of ``offlinerl.data.rewards.RULES``.
        score: ``{"min": ..., "max": ..., "from": "return" or "success"}``, and a ``kind`` if these are not the
            benchmark's own, see ``score_kind``; None if the return is the score. The episodes of the data are scored
            likewise, by the sum of their rewards or by whether one is above 0, unless ``data`` is "counts" or
            "terminals".
        family: which ``configs/<agent>/<family>.yaml`` applies.
        licence: of the data.
        citation: of the data.
        max_episode_steps: time limit at which the data's episodes were truncated.
        obs_keys: parts of a ``Dict`` observation and their order.
        columns: the column mapping of a table; see ``offlinerl.data.mapping.parse_columns``.
        subset: the episodes to use, by the name that the dataset gives this subset.
        split: "jump" where a jump of the position marks a new episode; see ``offlinerl.data.d4rl.load_hdf5``.
        overlong: whether the data is known to have episodes beyond its environment's time limit.
        note: what to know before comparing numbers.
        goal: what it means to be at a goal: ``achieved``, the entries of an observation that say where the agent is,
            and ``radius``, the distance at which the goal is reached; None if unknown.
    """

    name: str
    source: Mapping[str, Any]
    env: Mapping[str, Any] | None = None
    reward: str = "none"
    score: Mapping[str, Any] | None = None
    family: str | None = None
    licence: str = ""
    citation: str = ""
    max_episode_steps: int | None = None
    obs_keys: tuple[str, ...] | None = None
    split: str | None = None
    overlong: bool = False
    note: str = ""
    columns: Mapping[str, Sequence[str]] | None = None
    subset: str | None = None
    goal: Mapping[str, Any] | None = None

    @property
    def kind(self) -> str:
        """The kind of source: builtin, recipe, minari, d4rl, file or object."""
        return next(iter(self.source))

    @property
    def where(self) -> Any:
        """The source's folder, recipe, Minari id, path, download or dataset."""
        return self.source[self.kind]

    @property
    def path(self) -> Path:
        """Where the rows are, or will be once they are downloaded or generated.

        Raises:
            ValueError: the source is a Minari id, whose folder only Minari knows.
        """
        if self.kind == "builtin":
            return paths.share("datasets", self.where)
        if self.kind == "recipe":
            return paths.cache("datasets", self.where)
        if self.kind == "d4rl":
            return paths.cache("datasets", f"{self.name}.hdf5")
        if self.kind == "file":
            return Path(self.where)
        raise ValueError(f"{self.name} is kept by Minari")

    @property
    def env_id(self) -> str | None:
        """The Gymnasium id of the environment."""
        return None if self.env is None else id_of(self.env)

    @property
    def steps_allowed(self) -> int | None:
        """Length in steps of the longest episode that the environment allows; None if unknown."""
        asked = "max_episode_steps" in (self.env or {})
        if self.env is None or (self.max_episode_steps and not asked):
            return self.max_episode_steps
        return steps_allowed(self.env)

    def checksum(self, path: Path) -> str:
        """ "verified" if the file is the published one, "differs" if it is not, else "unknown"."""
        published = _load().get(self.name, self).source.get("d4rl", {})
        if "sha256" not in published or not path.is_file():
            return "unknown"
        return "verified" if sha256(path) == published["sha256"] else "differs"

    def score_of(self, episode_return: float | np.ndarray) -> float | np.ndarray:
        """The normalised score of a raw return; the return itself where the task has no score range."""
        if self.score is None:
            return episode_return
        return normalized_score(episode_return, self.score["min"], self.score["max"])

    @property
    def score_kind(self) -> str:
        """The kind of score that ``score_of`` gives: "normalized", "minari" with Minari's reference scores, "ours" for
        a task whose reference scores were measured by this project, "given" for a user's, "success", the share of
        episodes that reach their goal, or "return"."""
        return self.score.get("kind", "normalized") if self.score else "return"


def normalized_score(episode_return: float | np.ndarray, low: float, high: float) -> float | np.ndarray:
    """``100 (R - low) / (high - low)``: 0 for a random policy and 100 for an expert, as D4RL defines it."""
    return 100 * (episode_return - low) / (high - low)


def score_range(span: Sequence[float]) -> dict[str, Any]:
    """The ``score`` of an entry for a user's reference returns: those that count as 0 and 100."""
    return {"min": span[0], "max": span[1], "from": "return", "kind": "given"}


def names() -> list[str]:
    """Every name in the registry, in order."""
    return list(_load())


def entry(name: str) -> Entry:
    """The entry with exactly this name.

    Raises:
        UserError: there is none; the message suggests similar names.
    """
    try:
        return _load()[name]
    except KeyError:
        hint = did_you_mean(name, [*names(), *installed_ids()], "see `offlinerl datasets list`")
        raise UserError(f"there is no dataset {name!r}; {hint}") from None


def goal_in(env_id: str) -> Mapping[str, Any] | None:
    """The ``goal`` of the tasks in an environment, given by its Gymnasium id; None if none is known."""
    return next((task.goal for task in _load().values() if task.goal and task.env_id == env_id), None)


def resolve(
    source: str | Dataset | Mapping[str, Any],
    env: str | Mapping[str, Any] | None = None,
    obs_keys: Sequence[str] | None = None,
) -> Entry:
    """Finds the dataset that a user means, and never one that only has a similar name.

    Args:
        source: a name in the registry, the id of a Minari dataset, a Minari folder, the folder of an unfinished
            collection, or a file or folder in another format, see ``offlinerl.data.formats``; or a folder or glob
            pattern of several files, as in ``logs/*.csv``. A file named after an entry, such as
            ``kitchen-complete-v0.hdf5``, has that entry's task. Or a dataset itself; or what a file records of one,
            which is refused.
        env: another environment: a name in the registry, which brings its whole task; or a Gymnasium id, optionally
            with the module that registers it, ``module:Id``; or what ``offlinerl.envs.make.make`` takes. "none" removes
            the dataset's own.
        obs_keys: the parts of the observations to use; by default the dataset's own.

    Raises:
        UserError: there is no such dataset or environment.
    """
    if isinstance(source, Mapping):
        raise UserError(
            f"the dataset {source['name']} was given as an object, which no file holds: pass it again, in Python, as"
            " dataset="
        )
    found = _find(source) if isinstance(source, str) else _of_object(source)
    if env == NOWHERE:
        found = replace(found, env=None, score=None)
    elif isinstance(env, str) and env in _load():
        task = _load()[env]
        own = {key: getattr(found, key) or getattr(task, key) for key in ("obs_keys", "licence", "citation")}
        found = replace(task, name=found.name, source=found.source, **own)
    elif env is not None:
        found = replace(found, env=_environment(env), score=None)
    return _with_keys(found, obs_keys)


def _with_keys(entry: Entry, obs_keys: Sequence[str] | None) -> Entry:
    return replace(entry, obs_keys=tuple(obs_keys)) if obs_keys else entry


def _of_object(data: Dataset) -> Entry:
    """The entry of a dataset object; rewards that already follow a rule keep it."""
    task, rule = data.entry or Entry(data.name or "dataset", {}), data.provenance.get("reward", "none")
    return replace(task, source={"object": data}, reward=task.reward if rule == "none" else rule)


def task(env: str | Mapping[str, Any], obs_keys: Sequence[str] | None = None) -> Entry:
    """The task that a user names to act in, without a dataset.

    Args:
        env: a Gymnasium id or what ``offlinerl.envs.make.make`` takes, whose score is the return; or a name in the
            registry, which brings its environment and score range.
        obs_keys: the parts of the observations to use; by default the task's own.

    Raises:
        UserError: there is no such environment.
    """
    if env == NOWHERE:
        raise UserError("without an environment there is nowhere to act: give one instead of none")
    if isinstance(env, str) and env in _load():
        found = _load()[env]
        if found.env is None:
            raise UserError(f"{env} names no environment of its own until it is installed; give a Gymnasium id")
        return _with_keys(found, obs_keys)
    described = _environment(env)
    return _with_keys(Entry(id_of(described), {}, described), obs_keys)


def limited(entry: Entry, limits: Mapping[str, Any]) -> Entry:
    """The entry with the ``columns`` and ``subset`` in ``limits``, if any, and with the rest of ``limits`` applied to
    its environment; see ``offlinerl.envs.make.with_limits``.

    Raises:
        UserError: the columns are not a valid mapping, or the dataset is an object.
    """
    if limits.get("columns") or limits.get("subset"):
        if entry.kind == "object":
            raise UserError("a dataset that is an object is read already: leave out columns and subset")
        columns = limits.get("columns")
        entry = replace(entry, columns=parse_columns(columns) if columns else None, subset=limits.get("subset"))
    return entry if entry.env is None else replace(entry, env=with_limits(entry.env, limits))


def _environment(env: str | Mapping[str, Any]) -> Mapping[str, Any]:
    """The description of an environment. Raises a UserError with similar names if Gymnasium does not know the id; an id
    that is like no other may still belong to a simulator that is not loaded yet, and ``module:Id`` to its module."""
    if not isinstance(env, str):
        return env
    import gymnasium  # here, because listing datasets does not need it

    near = difflib.get_close_matches(env, [*names(), *gymnasium.registry], n=3, cutoff=0.8)
    if env not in gymnasium.registry and near and ":" not in env:  # with a colon, its module registers it
        raise UserError(f"there is no environment {env!r}; did you mean {either(*near)}?")
    return {"id": env}


def _find(name_or_file: str) -> Entry:
    path, minari_id = Path(name_or_file).expanduser(), name_or_file.strip("/")
    whole = _load().get(name_or_file.removesuffix(HELDOUT))
    if name_or_file.endswith(HELDOUT) and whole and whole.kind in ("recipe", "builtin"):
        return replace(whole, name=name_or_file, source={"recipe": name_or_file})
    if name_or_file in _load():
        task = _load()[name_or_file]
        if task.kind == "minari" and (minari_root() / minari_id / "data").is_dir():
            says = of_minari(minari_root() / minari_id, task.source)
            task = replace(task, env=task.env or says.env, score=task.score or says.score)
        return task
    if glob.has_magic(name_or_file) and not path.exists():
        stem = re.sub(r"[^\w.-]+", "", path.stem).strip("_.-")
        return Entry(stem or path.absolute().parent.name, {"file": str(path)})
    if path.is_file() or path.suffix in SUFFIXES:
        if not path.is_file():
            raise UserError(f"{path} does not exist; check the path")
        task = _load().get(path.stem) or Entry(path.stem, {}, **_exported_from(path))
        return replace(task, source={"file": str(path)})
    kind = folder_kind(path)
    if kind == "minari":
        return of_minari(path, {"file": str(path)})
    if kind is None and not _holds_files(path):  # a folder with data may have the name of a Minari dataset by chance
        if (minari_root() / minari_id / "data").is_dir():
            return of_minari(minari_root() / minari_id, {"minari": minari_id})
        if re.fullmatch(r"[-\w][-\w/]*[-\w]/[-\w]+-v\d+", minari_id):  # with a namespace, it can be nothing else
            return Entry(minari_id, {"minari": minari_id})
    if path.is_dir():
        return Entry(path.absolute().name, {"file": str(path)}, reward=_rule_of(path) if kind == "written" else "none")
    return entry(name_or_file)


SUFFIXES = (".hdf5", ".h5", ".npz", ".csv", ".tsv", ".parquet")
"""Suffixes of data files, and of names that mean files."""


LEROBOT = "meta/info.json"
"""The file by which a folder is recognised as a LeRobot dataset."""

FOLDERS = dict(lerobot=(LEROBOT,), written=(ABOUT,), minari=("metadata.json", "data/metadata.json", COLLECTION))
"""The files by which each kind of folder is recognised; it has one of them."""


def folder_kind(folder: Path) -> str | None:
    """The format of the dataset that a folder holds: "lerobot", "written" by ``Dataset.write``, or "minari", which an
    unfinished collection also is; None for another folder, or if there is none."""
    kinds = (kind for kind, files in FOLDERS.items() if any((folder / file).is_file() for file in files))
    return next(kinds, None)


def _holds_files(folder: Path) -> bool:
    """Whether there is such a folder and it contains data files."""
    return folder.is_dir() and any(file.suffix.lower() in SUFFIXES for file in folder.iterdir())


def _rule_of(folder: Path) -> str:
    """The reward rule of a folder made by ``Dataset.write``."""
    with reading(f"the dataset {folder}", "write it again"):
        return json.loads((folder / ABOUT).read_text("utf-8"))["provenance"].get("reward", "none")


def _exported_from(path: Path) -> dict[str, Any]:
    """The environment and the observation parts that an exported file states; empty if it states nothing, or cannot be
    opened, which loading reports."""
    import h5py  # here, because listing datasets does not need it

    try:
        with h5py.File(path, "r") as file:
            task = json.loads(file.attrs.get("task", "{}"))
    except (OSError, ValueError, TypeError):
        return {}
    with reading(f"what {path} says of its task", "export it again"):
        keys = _checked_keys(task.get("obs_keys"))
        return dict(env=checked_env(task.get("env")), obs_keys=tuple(keys) if keys else None)


def checked_env(env: Any) -> Mapping[str, Any] | None:
    """A description of an environment, see ``offlinerl.envs.make``; raises a ValueError if it is invalid."""
    if env is None:
        return None
    about = env if "id" in env else json.loads(env["spec"])
    steps = about.get("max_episode_steps")
    if not (isinstance(about["id"], str) and isinstance(about.get("kwargs", {}), dict)):
        raise ValueError("its environment has no id or no arguments")
    if not (steps is None or (type(steps) is int and steps > 0)):
        raise ValueError(f"its environment has a limit of {steps!r} steps")
    return env


def _checked_keys(keys: Any) -> list[str] | None:
    if not (keys is None or (isinstance(keys, list) and all(isinstance(key, str) for key in keys))):
        raise ValueError("obs_keys are no list of words")
    return keys


def of_minari(folder: Path, source: Mapping[str, Any]) -> Entry:
    """The entry of a Minari dataset, from its metadata. Its reference scores are the returns of an expert and of a
    random policy, not D4RL's, and scores based on them are marked as such."""
    metadata = minari_metadata(folder)
    low, high = metadata.get("ref_min_score"), metadata.get("ref_max_score")
    known = low is not None and high is not None
    stack = {"stack": metadata["frame_stack"]} if metadata.get("frame_stack") else {}
    spec = metadata.get("eval_env_spec") or metadata.get("env_spec")
    return Entry(
        name=metadata.get("dataset_id", folder.name),
        source=source,
        env={"spec": spec} | stack if spec else None,
        score={"min": low, "max": high, "from": "return", "kind": "minari"} if known else None,
        licence=metadata.get("licence", metadata.get("license", "")),
        obs_keys=tuple(metadata.get("obs_keys") or ()) or None,
        note=metadata.get("description", ""),
    )


def minari_metadata(folder: Path) -> dict[str, Any]:
    """``metadata.json`` in a Minari dataset's folder or its ``data`` folder, or ``collection.json`` of an unfinished
    collection, with the numbers of episodes and steps in its journal so far.

    Raises:
        UserError: it is missing, not JSON, invalid, or lacks the dataset's id or size.
    """
    folder = folder / "data" if (folder / "data").is_dir() else folder
    collection = (folder / COLLECTION).is_file()
    path = folder / (COLLECTION if collection else "metadata.json")
    try:
        metadata = json.loads(path.read_text("utf-8"))
        if collection:
            with Journal(folder / EPISODES, write=False) as journal:
                metadata |= dict(total_episodes=len(journal), total_steps=journal.steps)
        for key in ("env_spec", "eval_env_spec"):
            if metadata.get(key) is not None:
                checked_env({"spec": metadata[key]})
        _checked_keys(metadata.get("obs_keys"))
        for key, kinds in dict(dataset_id=str, ref_min_score=(float, int), ref_max_score=(float, int)).items():
            if metadata.get(key) is not None and not isinstance(metadata[key], kinds):
                raise ValueError(f"{key} is {metadata[key]!r}")
        stack = metadata.get("frame_stack", 1)
        if not (type(stack) is int and stack > 0):
            raise ValueError(f"frame_stack is {stack!r}")
        counts = {key: operator.index(metadata[key]) for key in ("total_episodes", "total_steps")}
        return {"dataset_id": metadata["dataset_id"]} | metadata | counts
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{path} cannot be read as Minari metadata; delete the dataset and get it again") from error


def minari_root() -> Path:
    """Where Minari stores its datasets: ``$MINARI_DATASETS_PATH``, or ``~/.minari/datasets``."""
    given = os.environ.get("MINARI_DATASETS_PATH")
    return Path(given) if given else paths.home("MINARI_DATASETS_PATH") / ".minari" / "datasets"


def installed_ids() -> list[str]:
    """The ids of the Minari datasets on this machine, in order."""
    root = minari_root()
    ids = (folder.parent.relative_to(root).as_posix() for folder in sorted(root.glob("**/data")))
    return [name for name in ids if "/." not in f"/{name}"]  # one being written is in a hidden folder


def download(entry: Entry) -> None:
    """Downloads a D4RL file into the cache, and verifies its size and sha256 if these are known.

    Raises:
        UserError: the server cannot be reached, or what it sent is not the published file.
    """
    url = entry.where["url"]
    instead = f"download it elsewhere and pass the file with --dataset FILE --env {entry.name}"
    with atomic_write(entry.path, overwrite=True) as temporary:
        try:
            with urllib.request.urlopen(url, timeout=TIMEOUT) as response, temporary.open("wb") as file:
                expected = int(response.headers.get("Content-Length") or 0)
                shutil.copyfileobj(response, file, 1 << 20)
        except (OSError, http.client.HTTPException) as error:
            if getattr(error, "errno", None) in DISK_FULL:
                raise
            raise UserError(f"{url} could not be reached; {instead}") from error
        received = temporary.stat().st_size
        size, sha = entry.where.get("bytes", expected or received), entry.where.get("sha256")
        if received != size:
            raise UserError(f"{url} sent {received} bytes instead of {size}; try again, or {instead}")
        if sha and sha256(temporary) != sha:
            raise UserError(f"{url} sent a file that is not the published one (its sha256 differs); {instead}")


def sha256(path: Path) -> str:
    """The hexadecimal digest of a file."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@cache
def _load() -> dict[str, Entry]:
    path = paths.share("datasets", "registry.yaml")
    sections = fast_yaml.parse(path.read_text("utf-8"))["datasets"]
    entries = [_entry(filled) for section in sections for filled in expanded(section)]
    return {entry.name: entry for entry in entries}


def _entry(section: dict[str, Any]) -> Entry:
    """The entry of an expanded section. A score range of which one end is not known yet is dropped."""
    keys, score = section.pop("obs_keys", None), section.get("score")
    if score and None in (score["min"], score["max"]):
        section = {**section, "score": None}
    return _with_keys(Entry(**section), keys)


def expanded(section: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A section of a file with ``each`` stands for every combination of the values listed there. In the section's
    strings, ``{variable}`` is replaced by the variable's value, and so are the further variables listed below that
    value."""
    section = dict(section)
    each, found = section.pop("each", {}), []
    for chosen in itertools.product(*(values.items() for values in each.values())):
        words: dict[str, Any] = {}
        for variable, (value, more) in zip(each, chosen, strict=True):
            words |= {variable: value, **(more or {})}
        found.append(_fill(section, words))
    return found


def _fill(value: Any, words: Mapping[str, Any]) -> Any:
    """``value`` with its ``{placeholders}`` replaced; one that is the whole string keeps the type of its value."""
    if isinstance(value, Mapping):
        return {key: _fill(inner, words) for key, inner in value.items()}
    if isinstance(value, list):
        return [_fill(inner, words) for inner in value]
    if not isinstance(value, str):
        return value
    if value[:1] == "{" and value[1:-1] in words and value[-1:] == "}":
        return words[value[1:-1]]
    return value.format_map(words)
