"""Checks of the user's request, before torch is imported and data is loaded."""

from __future__ import annotations

import glob
import importlib.util
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offlinerl import agents
from offlinerl.data import formats, registry
from offlinerl.data.inferred import KINDS
from offlinerl.data.mapping import known_columns, parse_columns
from offlinerl.envs.make import LIMITS, plain
from offlinerl.envs.pixels import asked_for
from offlinerl.training import config
from offlinerl.training.selection import source_of
from offlinerl.util.errors import UserError, WrongUsage, did_you_mean, either
from offlinerl.util.folder import find_checkpoint
from offlinerl.util.given import bounds, built_in, two_numbers
from offlinerl.util.settings import per_seed_settings, require_known, settings_of, typed

if TYPE_CHECKING:  # these load torch, which is imported only after the request has been checked
    from offlinerl.agents.base import Agent
    from offlinerl.data.dataset import Dataset
    from offlinerl.rollout.policy import Policy


def by_section(given: Mapping[str, Any], agent_name: str | None) -> dict[str, dict[str, Any]]:
    """Settings that were given by name, by the section they belong to. Without an agent's name, all that are not of the
    training are of the agent.

    Raises:
        UserError: neither the agent nor any training has such a setting.
    """
    own = None if agent_name is None else settings_of(agents.outline(agent_name).config_class)
    train = {name for kind in config.BY_SOURCE.values() for name in settings_of(kind)}
    found: dict[str, dict[str, Any]] = {}
    for name, value in given.items():
        of_agent = name not in train if own is None else name in own
        if not of_agent and name not in train:
            known = [*FIT, "device", "threads", *train, *(own or ())]
            hint = f"give it as limits=dict({name}=...)" if name in LIMITS else did_you_mean(
                name, known, "its arguments are in help(offlinerl.fit)"
            )  # fmt: skip
            raise UserError(f"fit has no argument or setting {name!r}; {hint}")
        found.setdefault("agent" if of_agent else "train", {})[name] = value
    return found


def settings_for(
    agent_name: str | None,
    dataset: str | Path | Dataset | None,
    env: str | Mapping[str, Any] | None,
    seeds: int | Sequence[int] | None,
    file: Path | None,
    over: Mapping[str, Any] | None,
    obs_keys: Sequence[str] | None = None,
    limits: Mapping[str, Any] | None = None,
    init: Path | None = None,
    *,
    collecting: bool = False,
    **reading: Any,
) -> tuple[dict[str, Any], registry.Entry]:
    """All settings of a new run, and its dataset and task; for the arguments see ``fit``. A run that collects learns by
    acting, so entries of ``file`` about a dataset are ignored.

    Raises:
        UserError: a setting is missing, unknown or out of range.
    """
    require_known(limits or {}, LIMITS, "limits have no entry")
    about = dict(
        agent=agent_name, dataset=stated(dataset), env=plain(env), seeds=None if seeds is None else listed(seeds),
        obs_keys=obs_keys and list(obs_keys), init=init and str(find_checkpoint(init).resolve()),
        **built_in(limits or {}), **reading,
    )  # fmt: skip
    again = _about_in(file) if file else {}
    if collecting:
        again = {key: value for key, value in again.items() if key not in OF_DATASET}
    elif about["dataset"] is not None and not takes_columns(again, about["dataset"]):
        again.pop("columns", None)
    about = _checked_about(again | {k: v for k, v in about.items() if v is not None})
    agent = agents.outline(about["agent"])
    source = source_of(about["agent"], agent.kinds, about["dataset"], about["env"])
    entry = entry_of(about, dataset, env)
    settings = config.resolve(about["agent"], agent, entry, source, file, over)
    train = settings["train"]
    if encoder := settings["agent"].get("encoder"):
        settings["agent"]["encoder"] = str(find_checkpoint(Path(encoder)).resolve())
    if settings["agent"].get("normalize") and about["dataset"] is None and not about.get("init"):
        own = ", or use normalize_obs, which keeps running statistics" if "normalize_obs" in settings["agent"] else ""
        raise UserError(
            "normalize needs the mean and standard deviation of a dataset, and this run has no dataset: leave it out,"
            f" or start with --init from a checkpoint that has them{own}"
        )
    require_loggers(train["logger"])
    require_divisible(about["agent"], agent, source, train)
    if source == "rollouts" and train["precision"] != "float32":
        raise UserError(
            f"precision {train['precision']} is for agents that learn from a dataset or a replay buffer: the ratios of"
            f" old and new probabilities in {about['agent']} would start from rounding errors; leave it out"
        )
    if train.get("final_old_share") is not None and train["old_share"] is None:
        raise UserError("final_old_share is the value to which old_share changes: give old_share too")
    if train.get("old_share_steps") is not None and train["final_old_share"] is None:
        raise UserError("old_share_steps needs final_old_share, which is reached after them: give that too")
    return dict(fit=about, **settings), entry


OF_DATASET = ("dataset", "actions", "columns", "subset")
"""Entries of the section ``fit`` about a dataset; see ``fit``."""

HISTORY = ("extended", "fingerprint", "successors")
"""Entries of ``config.yaml`` about the run itself, which a new run that reads the file ignores."""

FIT = ("agent", "env", "seeds", "obs_keys", "init", "score_range", *OF_DATASET, *LIMITS)
"""All other entries that the section ``fit`` may hold."""


def takes_columns(again: Mapping[str, Any], dataset: str | Mapping[str, Any]) -> bool:
    """Whether the columns in the section ``fit`` of a run's file apply to a dataset that is given: to its own, and to
    another table that has no mapping of its own."""
    own, columns = again.get("dataset"), again.get("columns")
    if columns is None or own is None:
        return True
    if not isinstance(dataset, str):
        return False
    path = Path(dataset).expanduser()
    same = dataset == own or (path.exists() and path.resolve() == Path(own).expanduser().resolve())
    return same or (formats.is_table(path, columns) and known_columns(path) is None)


def _about_in(file: Path) -> dict[str, Any]:
    """The section ``fit`` of a file; empty if there is none.

    Raises:
        UserError: it has an unknown entry.
    """
    about = {key: value for key, value in config.read(file).get("fit", {}).items() if key not in HISTORY}
    for name in about:
        if any(name in settings_of(training) for training in config.BY_SOURCE.values()):
            raise UserError(f"the configuration {file} has {name} in its section fit: put it into train")
    require_known(about, FIT, f"the section fit of the configuration {file} has an unknown entry")
    return about


def listed(seeds: Any) -> list[Any]:
    """One or several seeds as a list, with numpy integers converted to Python's."""
    seeds = list(seeds) if isinstance(seeds, Iterable) else [seeds]
    return [int(seed) if isinstance(seed, Integral) and type(seed) is not bool else seed for seed in seeds]


def stated(dataset: str | Path | Dataset | None) -> str | dict[str, Any] | None:
    """How ``config.yaml`` describes a dataset: by its name, or an object by name, number of rows and provenance."""
    if dataset is None or isinstance(dataset, str | Path):
        return dataset and str(dataset)
    facts = json.loads(json.dumps(dataset.provenance, default=str))
    return dict(name=dataset.name or "dataset", rows=len(dataset), provenance=facts)


def entry_of(about: dict[str, Any], dataset: Any = None, env: Any = None) -> registry.Entry:
    """The dataset and the task of a run's section ``fit``; those that are objects must be given again. The path of a
    file is made absolute in ``about``, so that it can be found from another working directory.

    Raises:
        UserError: there is no such dataset or task.
    """
    dataset, env = about["dataset"] if dataset is None else dataset, about["env"] if env is None else env
    keys = about.get("obs_keys")
    if dataset is None:
        if given := [name for name in ("columns", "subset") if about.get(name)]:
            raise UserError(f"{given[0]} applies to a dataset, and there is none: give --dataset")
        entry = registry.task(env, keys)
    else:
        entry = registry.resolve(str(dataset) if isinstance(dataset, Path) else dataset, env, keys)
        if entry.kind == "file":
            about["dataset"] = str(entry.path.resolve())
    if about.get("score_range"):
        entry = replace(entry, score=registry.score_range(about["score_range"]))
    return registry.limited(entry, about)


def require_divisible(name: str, agent: type[Agent], source: str, train: Mapping[str, Any]) -> None:
    """Raise a UserError if the agent or its source does not support several processes, or the batch cannot be divided
    equally among them."""
    devices = train["devices"]
    if devices == 1:
        return
    if source in ("replay", "rollouts") or train.get("online_steps"):
        raise UserError(
            f"--devices {devices} only works when learning from a dataset alone, but this agent acts: leave it out"
        )
    if not agent.divisible:
        raise UserError(
            f"{name} weights every row of a batch by all others, so processes cannot share a batch: leave out --devices"
        )
    if train["batch"] % devices:
        raise UserError(f"--batch must be a multiple of --devices, which is {devices}, not {train['batch']}")


def require_loggers(names: str) -> None:
    """Raise a UserError if a logger's package is not installed."""
    for name in {"wandb", "mlflow"} & {*names.split(",")}:
        if importlib.util.find_spec(name) is None:
            raise UserError(f"the logger {name} is an extra that is not installed: pip install 'offlinerl[{name}]'")


def _checked_about(given: Mapping[str, Any]) -> dict[str, Any]:
    """The section ``fit`` of a run's settings, with its defaults.

    Raises:
        UserError: an entry is missing or of the wrong type.
    """
    about = dict(dataset=None, env=None, seeds=[0]) | given
    if about.get("agent") is None:
        raise UserError("fit needs an agent, as in: offlinerl fit xql --dataset kitchen")
    for name in ("agent", "dataset", "env", "init"):
        if not isinstance(about.get(name), str | None) and not _is_stated(name, about[name]):
            raise UserError(f"{name} must be a name, not {about[name]!r}")
    keys, seeds = about.get("obs_keys"), about["seeds"]
    if keys is not None and not (isinstance(keys, list) and all(isinstance(key, str) for key in keys)):
        raise UserError(f"obs_keys must be a list of words, such as [state, goal], not {keys!r}")
    if about.get("columns") is not None:
        about["columns"] = parse_columns(about["columns"])
    if not isinstance(about.get("subset"), str | None):
        raise UserError(f"subset must be a name, not {about['subset']!r}")
    if about.get("actions") not in (None, *KINDS):
        raise UserError(f"actions must be {either(*KINDS)}, not {about['actions']!r}")
    steps = about.get("max_episode_steps")
    if steps is not None and not (type(steps) is int and steps > 0):
        raise UserError(f"max_episode_steps must be a whole number of at least 1, not {steps!r}")
    for name, checked in dict(action_range=bounds, score_range=two_numbers).items():
        about |= {name: checked(name, about[name])} if about.get(name) is not None else {}
    if about.get("pixels"):
        about["pixels"] = asked_for(about["pixels"])
    stack = about.get("stack")
    if stack is not None and not (type(stack) is int and stack > 0):
        raise UserError(f"stack must be a whole number of at least 1, not {stack!r}")
    whole = isinstance(seeds, list) and all(type(seed) is int and seed >= 0 for seed in seeds)
    if not whole or not seeds or len(set(seeds)) < len(seeds):
        raise UserError(f"seeds must be a list of different whole numbers of at least 0, not {seeds}")
    return about


def _is_stated(name: str, value: Any) -> bool:
    """Whether this is the description of a dataset or environment object in a run's settings."""
    try:
        if name == "dataset":
            return isinstance(value["name"], str)
        return name == "env" and registry.checked_env(value) is not None
    except (LookupError, TypeError, ValueError):
        return False


def require_source(
    source: str | Policy,
    env: str | Mapping[str, Any] | None,
    file: Path | None,
    over: Mapping[str, Any] | None,
    *,
    steps: int | None,
    episodes: int | None,
    workers: int | None,
    ray_address: str | None,
    noise: float,
    envs: int | None,
    agent_class: str | None,
) -> None:
    """Check the arguments of ``offlinerl.training.collection.collect``, where they are explained.

    Raises:
        UserError: there is no such source or environment, or a setting is wrong.
    """
    if isinstance(source, str | Path):
        agents.require_module(str(source))
    of_checkpoint = isinstance(source, str | Path) and not agents.is_name(str(source))
    if env is None and (source in ("random", "scripted") or not of_checkpoint):
        raise WrongUsage("collect needs --env, the environment to act in, as in: --env Pendulum-v1")
    if isinstance(source, str) and agents.is_name(source):
        if episodes is not None:
            raise WrongUsage(f"{source} learns while it collects, so give --steps instead of --episodes")
        if noise:
            raise UserError(f"{source} learns, and explores by its own settings: leave out --noise")
        if agent_class:
            raise UserError(f"--agent-class applies to a checkpoint, but {source} is an agent: leave it out")
        own = settings_for(source, None, env, None, file, over, collecting=True)[0]["agent"]
        for name in per_seed_settings(agents.outline(source).config_class):
            if isinstance(own[name], list):
                raise UserError(f"a dataset is collected by one learner: give {name} one value, not {own[name]}")
        return
    if source not in ("random", "scripted") and isinstance(source, str | Path):
        if not Path(source).exists():
            known = [*agents.names(), *agents.installed(), "random", "scripted"]
            hint = did_you_mean(str(source), known, "name an agent, a checkpoint, random or scripted", near=2)
            raise UserError(f"there is no agent or checkpoint {str(source)!r}; {hint}")
        find_checkpoint(source)
    elif agent_class:
        raise UserError("--agent-class applies to a checkpoint, and this is none: leave it out")
    if source == "scripted" and envs not in (None, 1):
        raise UserError("a script acts in one environment: leave out --envs")
    config.require_sections(over or {}, "over")
    useless = [f"--{section}.{name}" for section, given in (over or {}).items() for name in given]
    if file or useless:
        raise UserError(f"nothing learns here, so leave out {useless[0] if useless else '--config'}")
    if noise and source == "random":
        raise UserError("random actions cannot get more random: leave out --noise")
    if workers or ray_address:
        raise UserError("workers act for a learning agent, and nothing learns here: give --envs instead of --workers")
    if steps is None and episodes is None:
        raise WrongUsage("collect needs --steps or --episodes")
    if steps is not None and episodes is not None:
        raise WrongUsage("collect takes --steps or --episodes, not both: leave out one")
    if env is None:  # that of the checkpoint
        return
    task = registry.task(env)
    if source == "scripted" and "factory" in task.env:
        raise UserError("a script needs its environment by name: give env as a name, or collect with a policy")


def settings_of_run(
    folder: Path,
    agent_name: str | None,
    dataset: str | Path | Dataset | None,
    env: str | Mapping[str, Any] | None,
    over: Mapping[str, Any],
) -> tuple[dict[str, Any], registry.Entry, dict[str, Any]]:
    """The settings of a run to resume, its dataset and task, and the changes of its length or learning-rate schedule.

    Raises:
        UserError: the folder holds no run, its dataset is missing or a different one, or a setting that is fixed would
            change.
    """
    settings, outline, training = _read_run(folder)
    about = settings["fit"]
    if agent_name not in (None, about["agent"]):
        raise UserError(f"the run in {folder} has agent {about['agent']}, not {agent_name}; leave it out")
    if env is not None and plain(env) != about["env"]:
        had, has = (
            given and (given if isinstance(given, str) else registry.task(given).name) for given in (about["env"], env)
        )
        raise UserError(f"the run in {folder} has --env {had}, not {has}; leave it out, or give that one")
    _place_of_dataset(folder, about, dataset)
    entry = entry_of(about, dataset, env)
    config.require_sections(over, "over")
    return settings, entry, _change(folder, settings, outline, training, over)


def _read_run(folder: Path) -> tuple[dict[str, Any], type[Agent], type[config.TrainConfig]]:
    """The settings in a run's folder, with defaults for those that an older version did not know; the outline of its
    agent; and the class of its training settings.

    Raises:
        UserError: the folder holds no run, or its settings are wrong.
    """
    file = folder / "config.yaml"
    if not file.is_file():
        raise UserError(f"{folder} holds no run to resume: it has no config.yaml")
    if not (folder / "last.ckpt").is_file() and any((folder / name).exists() for name in ("best.ckpt", "summary.json")):
        raise UserError(f"{folder} holds no run to resume: it has no last.ckpt")
    settings = config.read(file)
    version = (settings.pop("versions", None) or {}).get("offlinerl")
    if "collect" in settings:
        raise UserError(f"{folder} is a collection: resume it with the same `offlinerl collect` command and --resume")
    if missing := {"fit", "agent", "train"} - set(settings):
        raise UserError(f"{file} has no section {missing.pop()!r}; start the run again")
    try:
        about = settings["fit"] = _checked_about(settings["fit"])
        outline = agents.outline(about["agent"])
        source = source_of(about["agent"], outline.kinds, about["dataset"], about["env"])
        settings = config.of_run(settings, outline, source)
    except UserError as error:
        raise UserError(f"{file}: {error}") from error
    agent, train = settings["agent"], settings["train"]
    if agent.get("decay_steps") == "updates" and "steps" in train and f"{version}.".startswith("0.1."):
        agent["decay_steps"] = train["steps"] // train.get("steps_per_update", 1)  # that version counted the warm-up
    return settings, outline, config.BY_SOURCE[source]


FREE = ("save_every", "logger", "table", "patience")
"""Training settings that do not affect what is learned in an update, so that a resumed run may have others."""


def _change(
    folder: Path,
    settings: dict[str, Any],
    outline: type[Agent],
    training: type[config.TrainConfig],
    over: Mapping[str, Any],
) -> dict[str, Any]:
    """Change the settings of a run to resume as asked, where that is allowed: ``FREE`` ones, lengths and
    ``decay_steps``.

    Returns:
        The changes of its length or learning-rate schedule.

    Raises:
        UserError: another setting would change.
    """
    agent, train, of_agent = settings["agent"], settings["train"], over.get("agent", {})
    asked: dict[str, Any] = {}
    for name, value in over.get("train", {}).items():
        value = typed(training, name, value) if name in settings_of(training) else value
        if value != train.get(name):
            asked[name] = value
    lengths = [name for name in ("steps", "updates", "online_steps") if train.get(name)]
    free = [name for name in FREE if name in train]
    fixed = [name for name in asked if name not in (*free, *lengths)]
    fixed += [name for name in of_agent if name != "decay_steps" or name not in agent]
    if fixed:
        flags = " or ".join(f"--{name.replace('_', '-')}" for name in lengths)
        raise UserError(
            f"a resumed run keeps its settings, so {fixed[0]} cannot be given; only {flags} may be increased"
        )
    require_loggers(asked.get("logger", train["logger"]))
    changes = {name: asked[name] for name in lengths if name in asked}
    if changes.get("online_steps") == 0:
        had = train["online_steps"]
        raise UserError(f"the run in {folder} has {had:,} online steps: give --online-steps a larger number, or none")
    if "online_steps" in changes and train["final_old_share"] is not None and train["old_share_steps"] is None:
        train["old_share_steps"] = train["online_steps"]  # the schedule of the share stays as it was
    if of_agent:
        agent["decay_steps"] = typed(outline.config_class, "decay_steps", of_agent["decay_steps"])
        changes["decay_steps"] = agent["decay_steps"]
    elif changes and (decay := config.of_agent(settings).get("decay_steps")) is not None:
        agent["decay_steps"] = decay  # the learning-rate schedule stays as it was
    train |= asked
    return changes


def require_dataset(folder: Path, about: Mapping[str, Any]) -> None:
    """Raise a UserError if the file that a run learned from is missing."""
    if is_missing(known := about["dataset"]):
        raise UserError(f"the dataset {known} of the run in {folder} is missing; give its new place with --dataset")


def is_missing(dataset: Any) -> bool:
    """Whether what a run's settings call its dataset is the path of a file that is not there."""
    is_path = isinstance(dataset, str) and Path(dataset).is_absolute()
    return is_path and not Path(dataset).exists() and not glob.glob(dataset, recursive=True)


def _place_of_dataset(folder: Path, about: dict[str, Any], dataset: str | Path | Dataset | None) -> None:
    """Store the dataset's new location, if one is given, in a run's settings; its contents are compared when it is
    loaded."""
    known, given = about["dataset"], stated(dataset)
    if given is None or given == known:
        require_dataset(folder, about)
        return
    if known is None or "fingerprint" not in about:
        had, has = (at["name"] if isinstance(at, dict) else at for at in (known, given))
        raise UserError(f"the run in {folder} has --dataset {had}, not {has}; leave it out")
    about["dataset"] = given
    if not (isinstance(given, str) and formats.is_table(Path(given).expanduser(), about.get("columns"))):
        about.pop("columns", None)
