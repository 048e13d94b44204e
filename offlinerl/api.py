"""The commands as Python functions.

Modules that load torch are imported only after the arguments have been checked.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from offlinerl import agents
from offlinerl.data import registry
from offlinerl.data.dataset import Dataset
from offlinerl.data.mapping import in_words, known_columns, remember
from offlinerl.envs.make import described
from offlinerl.training.config import merge
from offlinerl.training.request import by_section, settings_for, settings_of_run
from offlinerl.util.errors import NoSteps, UserError, WrongUsage, either
from offlinerl.util.folder import find_checkpoint, held, make, numbered, require_free, write_config
from offlinerl.util.given import filled, whole_number
from offlinerl.util.settings import require_known

if TYPE_CHECKING:  # these load torch
    from gymnasium import Env
    from lightning import Callback
    from minari import MinariDataset

    from offlinerl.agents.base import Agent
    from offlinerl.rollout.deployed import DeployedPolicy
    from offlinerl.rollout.policy import Policy
    from offlinerl.training.loop import Run
    from offlinerl.training.result import FitResult

    Data: TypeAlias = str | Path | Dataset | MinariDataset | Mapping[str, Any] | list[Any]
    Environment: TypeAlias = str | Env | Callable[[], Env]


@filled
def fit(
    agent: str | type[Agent] | None = None,
    dataset: Data | None = None,
    *,
    env: Environment | None = None,
    seeds: int | Sequence[int] | None = None,
    file: Path | None = None,
    over: Mapping[str, Any] | None = None,
    device: str = "auto",
    out: Path | None = None,
    resume: Path | None = None,
    threads: int | None = None,
    obs_keys: Sequence[str] | None = None,
    limits: Mapping[str, Any] | None = None,
    init: Path | None = None,
    actions: str | None = None,
    columns: Sequence[str] | Mapping[str, Any] | None = None,
    subset: str | None = None,
    score_range: Sequence[float] | None = None,
    callbacks: Sequence[Callback] | None = None,
    **settings: Any,
) -> FitResult:
    """Train an agent on a fixed dataset, or by acting in an environment, and evaluate it during training.

    Args:
        agent: one of ``offlinerl.agents.names()``, an installed one, a class as ``module:Class``, or the class itself.
        dataset: a name, a Minari id or a file; see ``offlinerl.data.registry.resolve``; or what ``load_dataset`` takes
            or returns. None: learn by acting.
        env: the environment to act in; with a dataset, the environment to evaluate in if it is not the dataset's own.
            If none is known, only losses are measured. A Gymnasium id; a name in the registry; a function that makes an
            environment; or an environment. The latter is made again from its Gymnasium specification, wrappers
            included, if that is complete; otherwise the object itself is used, where one environment is enough.
        seeds: S integers, trained side by side, or one; by default only 0.
        file: a YAML file of settings; or another run's ``config.yaml``, which also sets the agent, the dataset and the
            seeds.
        over: settings that override all files, ``{"agent": {...}, "train": {...}}``.
        settings: the same by name, of the agent or of the training, as in ``beta=1.0, updates=20_000``.
        device: "auto", "cpu" or "cuda".
        out: the run's folder, which must be empty or not exist; by default a new one below ``runs/``.
        resume: the folder of a run to resume with its own settings. Only these may change: its length, separately for
            each phase; ``save_every``; ``logger``; ``table``; ``decay_steps``, to stretch a schedule over the longer
            run; and the path of its dataset. A dataset or an environment that was an object must be given again.
        threads: number of CPU threads, per process if ``devices`` asks for several; by default the number of cores.
        obs_keys: the parts of the observations to learn from, in this order; by default all.
        limits: some of ``offlinerl.envs.make.LIMITS``, such as ``pixels=True``; see ``offlinerl.envs.make.make``.
        init: a checkpoint, or a run's folder, to take initial weights from.
        actions: "discrete" or "continuous", the kind of the dataset's actions if no environment is known; by default
            their type decides.
        columns: the meaning of a table's columns, which is stored beside the table; see ``offlinerl.data.load.load``.
        subset: a filter key of a robomimic file or a split of a LeRobot dataset.
        score_range: two returns that count as scores 0 and 100, such as those of a random policy and of an expert,
            instead of the task's own.
        callbacks: of Lightning, for the Trainer that trains the run; see ``offlinerl.training.loop.Run``. Their state
            is not saved with the run.

    Returns:
        The finished run: its scores, tables, policies and folder.

    Raises:
        UserError: for anything that the user can fix.
        Interrupted: Ctrl-C; the run is saved and can be resumed.
    """
    agent_name = None if agent is None else agents.name_of(agent)
    _require_callbacks(callbacks := callbacks or ())
    over = merge(over or {}, by_section(settings, agent_name)) if settings else over
    if _is_table(dataset, columns):
        dataset, columns = load_dataset(dataset, columns=columns, obs_keys=obs_keys), None
        obs_keys = None if resume else obs_keys
    dataset, where = _dataset(dataset), _environment(env)
    if resume:
        fixed = dict(
            out=out, seeds=seeds, config=file, obs_keys=obs_keys, init=init, actions=actions, columns=columns,
            subset=subset, score_range=score_range, **(limits or {}),
        )  # fmt: skip
        if given := [f"--{name.replace('_', '-')}" for name, value in fixed.items() if value is not None]:
            raise WrongUsage(f"--resume keeps a run's own settings: leave out {', '.join(given)}")
        chosen, entry, changes = settings_of_run(Path(resume), agent_name, dataset, where, over or {})
        with held(Path(resume)):
            return _trained(chosen, entry, Path(resume), device, threads, callbacks, changes=changes)
    chosen, entry = settings_for(
        agent_name, dataset, where, seeds, file, over, obs_keys, limits, init, actions=actions, columns=columns,
        subset=subset, score_range=score_range,
    )  # fmt: skip
    about = chosen["fit"]
    short = about["agent"].rpartition(":")[2].rpartition(".")[2]
    stem = Path("runs") / f"{short}-{entry.name.replace('/', '-')}"
    if out:
        folder = Path(out)
        _require_free(folder)
        made = make(folder)
    else:
        folder, made = next(filter(make, numbered(stem))), True
    with held(folder, made):
        _require_free(folder)  # another run may have used it before the lock
        return _trained(chosen, entry, folder, device, threads, callbacks, columns_given=columns is not None)


def _trained(
    settings: dict[str, Any],
    entry: registry.Entry,
    folder: Path,
    device: str,
    threads: int | None,
    callbacks: Sequence[Callback] = (),
    changes: Mapping[str, Any] | None = None,
    columns_given: bool = False,
) -> FitResult:
    """Build a run and train it to the end.

    Args:
        callbacks: see ``fit``.
        changes: of a run to resume; see ``settings_of_run``. None: the run is new.
        columns_given: whether to remember the columns of a table that the run could load.
    """
    from offlinerl.training.build import build
    from offlinerl.training.result import FitResult
    from offlinerl.util.device import pick_device
    from offlinerl.util.threads import threads_for

    if callbacks and settings["train"]["devices"] > 1:
        raise UserError("callbacks are for a run in one process: leave them out, or --devices")
    with threads_for(threads, settings["train"]["devices"]):
        run = build(settings, entry, pick_device(device), folder)
        run.callbacks = callbacks
        with run.resources:
            if changes is not None:
                run.restore()
            if changes:
                settings["fit"].setdefault("extended", []).append({run.clock: run.now, **changes})
                _say_of_schedule(run, changes)
            if columns_given and entry.columns:
                before = known_columns(entry.path)
                if (place := remember(entry.path, entry.columns)) and before:
                    run.display.say(f"{place} had other columns, which it keeps as a comment: {in_words(before)}")
            write_config(folder, settings)
            return FitResult(folder, run.train(), run.agent)


def _require_callbacks(callbacks: Sequence[Callback]) -> None:
    """Raise a UserError unless these are callbacks of Lightning."""
    if not callbacks:
        return
    from lightning import Callback
    from lightning.pytorch.callbacks import ProgressBar

    if not isinstance(callbacks, list | tuple) or not all(isinstance(one, Callback) for one in callbacks):
        raise UserError(f"callbacks must be a list of lightning.Callback objects, not {callbacks!r:.80}")
    if any(isinstance(one, ProgressBar) for one in callbacks):
        raise UserError("a run has its own progress bar: leave others out of callbacks")


def _require_free(folder: Path) -> None:
    """Raise a UserError unless a run can begin in that folder."""
    resumable = all((folder / name).is_file() for name in ("config.yaml", "last.ckpt"))
    go_on = f"resume it with --resume {shlex.quote(str(folder))} or " if resumable else ""
    require_free(folder, f"{go_on}name another --out")


def _say_of_schedule(run: Run, changes: Mapping[str, Any]) -> None:
    """Tell a user who extended a run what happens to a learning-rate schedule that ended with it."""
    decay = getattr(run.agent.config, "decay_steps", None)
    if decay is not None and "decay_steps" not in changes:
        run.display.say(
            f"the learning rates that decay reach 0 after {decay:,} {run.clock}s as before, and their networks learn no"
            " more from there on; --agent.decay_steps updates extends the decay over the longer run"
        )


@filled
def evaluate(
    policy: str | Path | Policy | DeployedPolicy | FitResult,
    env: Environment | None = None,
    episodes: int = 50,
    **settings: Any,
) -> dict[str, Any]:
    """Evaluate the policies of a checkpoint or of a run's folder, or any policy.

    Args:
        policy: a checkpoint, a run's folder, what ``fit`` returned, or a policy.
        env: a Gymnasium id or a dataset's name, an environment, or a function that makes one; by default the one that
            the policy was trained for.
        episodes: number of episodes of each seed's policy.
        settings: further arguments of ``offlinerl.evaluation.evaluate.evaluate_checkpoint``; for a policy, only
            ``seed`` and ``video``.

    Returns:
        ``mean``, ``ci95`` and ``per_seed`` of the score, and more; see ``evaluate_checkpoint``.

    Raises:
        UserError: for anything that the user can fix.
    """
    where = _environment(env)
    from offlinerl.evaluation import evaluate as evaluation
    from offlinerl.evaluation.video import record_videos
    from offlinerl.training.result import FitResult

    episodes = whole_number("episodes", episodes, 1)
    if "seed" in settings:
        settings["seed"] = whole_number("seed", settings["seed"])
    if isinstance(policy, FitResult):
        settings = dict(agent_class=type(policy.agent)) | settings
        policy = policy.folder
    if isinstance(policy, str | Path):
        return evaluation.evaluate_checkpoint(Path(policy), env=where, episodes=episodes, **settings)
    acting, seed = _acting(policy), settings.get("seed", 0)
    require_known(settings, ("seed", "video"), "the evaluation of a policy that is no checkpoint has no argument")
    if where is None and not (getattr(acting, "task", None) or {}).get("env"):
        raise UserError("the policy does not name an environment of its own: give env")
    task = evaluation.task_for(acting, where)
    found = evaluation.evaluate(acting, task, episodes, seed)
    if settings.get("video") is not None:
        record_videos(acting, task, seed, Path(settings["video"]))
    return dict(
        env=task.env_id, seeds=list(acting.seeds), episodes=episodes, score_kind=task.label, **found.facts()
    )  # fmt: skip


@filled
def collect(source: str | Policy | DeployedPolicy, env: Environment | None, dataset_id: str, **settings: Any) -> Path:
    """Collect a dataset in an environment (see ``fit``; None: that of the checkpoint) with an agent, a checkpoint,
    "random", "scripted" or any policy; for the settings see ``offlinerl.training.collection.collect``."""
    where = _environment(env)
    from offlinerl.training import collection

    return collection.collect(_acting(source), where, dataset_id, **settings)


SELECTED = (
    "by", "episodes", "env", "updates", "critics", "gamma", "terminal_ends", "seed", "png", "json_file", "device",
    "agent_class",
)  # fmt: skip
"""Settings of ``select``."""


@filled
def select(runs: str | Path | Sequence[str | Path], dataset: Data | None = None, **settings: Any) -> dict[str, Any]:
    """Rank the policies of some runs, or of the finished runs below a folder, on a dataset, by default the one that the
    first run learned from, or by ``episodes`` in their environment or in ``env``, given as to ``evaluate``. For the
    settings and the result see ``offlinerl.training.choosing.select``.

    Raises:
        UserError: for anything that the user can fix.
    """
    require_known(settings, SELECTED, "select has no argument")
    given = {
        name.replace("_", "-")
        for name, value in dict(settings, dataset=dataset).items()
        if value is not None and value is not False
    }
    critics = given & {"updates", "critics", "terminal-ends"}
    if "env" in given and "episodes" not in given:
        raise WrongUsage("--env is where to act: leave it out, or give --episodes")
    if "episodes" in given and (fitted := critics | given & {"by", "dataset", "gamma"}):
        raise WrongUsage(f"--{min(fitted)} applies to an evaluation on a dataset: leave it out, or --episodes")
    if settings.get("by") == "wis" and critics:
        raise WrongUsage(f"--{min(critics)} applies to fitted Q evaluation: leave it out, or --by wis")
    from offlinerl.evaluation import comparison

    found = _dataset(dataset)
    chosen = [run for path in _paths(runs) for run in comparison.find([path])]  # keeps duplicates, which raise later
    for run in chosen:
        if not (run / "last.ckpt").exists() and (left := comparison.unfinished([run])):
            raise UserError(f"the runs below {run} are not finished: name those to rank, as in {left[0]}")
        find_checkpoint(run)
    if isinstance(found, str):
        registry.resolve(found)
    from offlinerl.training import choosing

    settings["env"] = _environment(settings.get("env"))
    return choosing.select(chosen, dataset=found, **settings)


@filled
def report(runs: str | Path | Sequence[str | Path], out: str | Path | None = None) -> dict[str, list[dict[str, Any]]]:
    """Compare runs: print which agent is the best and how certain that is, and return the numbers.

    Args:
        runs: one or several folders of finished runs, or folders that contain them.
        out: a folder for a report page, pictures and tables; see ``offlinerl.evaluation.report.report``.

    Returns:
        Rows by table name: ``scores``, ``overall``, ``improvement`` and more, each suitable for a pandas DataFrame.

    Raises:
        UserError: a folder holds no finished run.
    """
    from offlinerl.evaluation import report

    return report.report(_paths(runs), None if out is None else Path(out))


def _paths(runs: str | Path | Sequence[str | Path]) -> list[Path]:
    """One path, or several, as a list."""
    paths = [Path(run) for run in ([runs] if isinstance(runs, str | PathLike) else runs)]
    if not paths:
        raise UserError("there are no runs: name their folders")
    return paths


@filled
def export(run: str | Path, file: str | Path, **settings: Any) -> Path:
    """Write the policy of a run's folder or a checkpoint to a file. Its suffix sets the format: ``.onnx`` for ONNX
    Runtime, ``.pt`` for TorchScript, ``.safetensors`` for ``load_policy``, ``evaluate`` and ``collect``.

    Args:
        run: a run's folder, or a checkpoint.
        file: to write.
        settings: ``seed``, if several were trained side by side, ``overwrite`` and more; see
            ``offlinerl.training.export``.

    Returns:
        ``file``.

    Raises:
        UserError: the suffix is unknown, or for anything else that the user can fix.
    """
    run, file = Path(run), Path(file)
    kinds = (".onnx", ".pt", ".safetensors")
    if file.suffix not in kinds:
        raise UserError(f"{file} must end in {either(*kinds)}, which determines its format")
    from offlinerl.rollout import portable
    from offlinerl.training import export

    if file.suffix == ".safetensors":
        return export.export_policy(run, file, **settings)
    write = portable.write_onnx if file.suffix == ".onnx" else portable.write_torchscript
    return export.export_graph(run, file, write, **settings)


POLICY = ("act", "begin", "seeds", "spec", "device")
"""The attributes that a policy must have."""


def _acting(policy: Any) -> Any:
    """The agent in a ``DeployedPolicy``, and the folder of what ``fit`` returned; other policies and paths unchanged.

    Raises:
        UserError: it is not a policy.
    """
    from offlinerl.rollout.deployed import DeployedPolicy

    policy = policy.agent if isinstance(policy, DeployedPolicy) else policy
    policy = Path(policy) if isinstance(policy, PathLike) else policy
    if not isinstance(policy, str | Path) and not all(hasattr(policy, name) for name in POLICY):
        raise UserError(
            f"a policy must be a checkpoint's path, what load_policy returns or an offlinerl.Policy, not"
            f" {type(policy).__name__}: derive from offlinerl.Policy and implement act"
        )
    return policy


def _environment(env: Environment | None) -> Any:
    return env if env is None or isinstance(env, str) else described(env)


def _is_table(source: Any, columns: Any) -> bool:
    """Whether this is a pandas DataFrame, or similar to one, or a dictionary of the columns that are named; or a list
    of such tables."""
    if isinstance(source, list | tuple):
        return any(_is_table(one, columns) for one in source)
    is_frame = hasattr(source, "columns") and hasattr(source, "to_numpy")
    return is_frame or (isinstance(source, Mapping) and columns is not None)


def _dataset(source: Data | None) -> str | Path | Dataset | None:
    """Convert a Minari dataset object to its folder, and arrays to a ``Dataset``; other sources are unchanged."""
    if source is None or isinstance(source, str | Path | Dataset):
        return source
    if isinstance(source, Mapping | list | tuple):
        return load_dataset(source)
    try:
        folder, part = Path(source.storage.data_path), len(source.episode_indices) < source.storage.total_episodes
    except AttributeError:
        raise _no_dataset(source) from None
    if part:
        raise UserError(
            f"this is a part of the Minari dataset {source.spec.dataset_id}; store it as one, or give the whole one"
        )
    return str(folder)


def _no_dataset(source: Any) -> UserError:
    return UserError(
        "dataset must be a name, a path, a Dataset, a data frame, a list of frames or arrays, a dictionary of arrays or"
        f" a dataset that Minari opened, not {type(source).__name__}"
    )


def _joined(sources: Sequence[Any], name: str = "list", **settings: Any) -> Dataset:
    """The episodes of several data frames or dictionaries of arrays, as those of several files: one after another,
    without those that have no step."""
    from offlinerl.data import edit

    parts, empty = [], []
    for number, source in enumerate(sources):
        if isinstance(source, list | tuple) or not (isinstance(source, Mapping) or _is_table(source, None)):
            raise UserError(
                f"a list must hold data frames or dictionaries of arrays, and {number} is of type"
                f" {type(source).__name__}: for several files give their folder or a pattern, such as 'logs/*.csv'"
            )
        try:
            parts.append(load_dataset(source, name=f"{name} {number}", **settings))
        except NoSteps:
            empty.append(f"{name} {number}")
        except UserError as error:
            raise UserError(f"{number} in the list: {error}") from error
    if not parts:
        raise NoSteps("the list holds no step to learn from")
    return edit.joined(parts, name, empty)


@filled
def load_dataset(source: Data, env: str | None = None, **settings: Any) -> Dataset:
    """Load the transitions of a dataset as numpy arrays.

    Args:
        source: a name, a Minari id, a file or a folder; a Minari dataset object; arrays ``obs``, ``action``
            and optionally ``reward``, ``terminated``, ``truncated`` and ``next_obs``, see
            ``offlinerl.data.arrays.from_arrays``; a pandas DataFrame, with ``columns`` as for a file; or a list of
            such arrays or DataFrames, in each of which an episode ends.
        env: the environment of a file, for its action bounds and episode ends. For other sources, give ``env`` to
            ``fit``.
        settings: of ``offlinerl.data.load.load``; for arrays and DataFrames only ``name``, ``obs_keys`` and
            ``columns``, with which arrays are the columns of a table.

    Raises:
        UserError: the dataset is unknown, unavailable or invalid.
    """
    from offlinerl.data import arrays, formats, load
    from offlinerl.data.mapping import parse_columns

    columns = settings.pop("columns", None)
    is_table = _is_table(source, columns)
    found = source if is_table or isinstance(source, Mapping | list | tuple) else _dataset(source)
    if found is None:
        raise _no_dataset(source)
    if env is not None and not isinstance(found, str | Path):
        raise UserError("env applies to a dataset's file: leave it out here, and give it to offlinerl.fit")
    if isinstance(source, list | tuple):
        return _joined(source, columns=columns, **settings)
    if is_table:
        name = settings.pop("name", "frame")
        return formats.of_frame(cast(Mapping[str, Any], source), columns and parse_columns(columns), name, **settings)
    if isinstance(found, str | Path):
        return load.load(str(found), env, columns=columns, **settings)
    keys = settings.pop("obs_keys", None)
    data = found if isinstance(found, Dataset) else arrays.from_arrays(cast(Mapping[str, Any], source), **settings)
    return load.load(registry.resolve(data, obs_keys=keys)) if keys else data
