"""A run's settings, from the family's YAML, the user's file and the command line; later ones override earlier ones."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from offlinerl.data import registry
from offlinerl.data.registry import Entry
from offlinerl.data.rewards import RULES
from offlinerl.util import paths
from offlinerl.util.errors import UserError, WrongUsage
from offlinerl.util.settings import Config, make, plain, require_known, setting, settings_of

if TYPE_CHECKING:
    from offlinerl.agents.base import Agent

SECTIONS = {"fit", "agent", "train", "datasets", "environments", "collect", "versions"}
LOGGERS = ("csv", "tensorboard", "wandb", "mlflow")
"""Where metrics can be logged; the last two are optional extras of the package."""

ROLLOUT = 32
"""Default number of steps that a worker takes per request, unless ``block`` is given; a round trip takes
milliseconds."""


@dataclass(frozen=True)
class TrainConfig(Config):
    """Training settings of all runs."""

    batch: int = setting(256, "rows per gradient step", low=1)
    eval_every: int = setting(
        10_000, "updates or steps between evaluations; fewer in a shorter run without an environment", low=1
    )
    eval_episodes: int = setting(10, "episodes per evaluation during training", low=1)
    final_episodes: int = setting(20, "episodes of the evaluation of the last policy", low=1)
    patience: int | None = setting(
        None, "end the run after so many evaluations in a row that are not the best so far; null: never", low=1
    )
    compile: bool = setting("auto", "compile the update; auto: if the run is long enough to benefit", choices=("auto",))
    tf32: bool = setting(False, "multiply matrices in TensorFloat-32 on a GPU: faster, with three significant digits")
    precision: str = setting(
        "float32", "of matrix products in updates; bf16: faster where hardware supports it, with two to three digits",
        choices=("float32", "bf16"),
    )  # fmt: skip
    channels_last: bool = setting(
        "auto", "channels-last memory layout in convolutions; auto: if only one seed is trained", choices=("auto",)
    )
    devices: int = setting(1, "processes that train one policy, each on its own GPU with its share of a batch", low=1)
    save_every: float = setting(5.0, "minutes after which the run is saved, also between evaluations", above=0)
    log_every: int = setting(
        500, "updates or steps between rows of metrics, at least a block; fewer in a shorter run", low=1
    )
    logger: str = setting(
        "csv,tensorboard", "where metrics are logged: some of csv, tensorboard, wandb and mlflow, separated by commas"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not {*self.logger.split(",")} <= {*LOGGERS}:
            raise UserError(f"logger must be some of {', '.join(LOGGERS)}, separated by commas, not {self.logger!r}")


@dataclass(frozen=True)
class EpisodesConfig(TrainConfig):
    """Training settings of runs on a dataset's whole episodes, which cannot be fine-tuned."""

    updates: int = setting(100_000, "gradient steps", low=1)
    batch: int = setting(32, "episodes per gradient step", low=1)
    final_episodes: int = 50
    block: int = setting(5, "updates between returns to the training loop", low=1)
    top: float = setting(1.0, "fraction of the episodes to learn from, those with the highest returns", above=0, high=1)
    terminal_ends: bool = setting(False, "treat every end of an episode as terminal: no value is bootstrapped after it")
    reward: str | None = setting(
        None, "rule that transforms the rewards; some agents are tuned to its scale; null: the dataset's own rule",
        choices=RULES,
    )  # fmt: skip
    table: str = setting(
        "auto", "where the dataset is kept; disk: in files that are written once; auto: on disk if memory is short",
        choices=("auto", "memory", "disk"),
    )  # fmt: skip
    held_out: float | None = setting(
        None, "fraction of the episodes held out to measure losses on; null: 0.1 without an environment, else none",
        low=0, below=1,
    )  # fmt: skip


@dataclass(frozen=True)
class WindowsConfig(EpisodesConfig):
    """Training settings of runs on windows of a dataset's episodes."""

    batch: int = setting(64, "windows per gradient step", low=1)
    block: int = 50


@dataclass(frozen=True)
class ObservationsConfig(EpisodesConfig):
    """Training settings of runs on a dataset's observations only."""

    updates: int = setting(10_000, "gradient steps", low=1)
    batch: int = setting(64, "observations per gradient step", low=1)
    eval_every: int = 1_000


GOALS = setting(
    "data", "the goals to learn to reach; future: what is reached later in the same episode (hindsight)",
    choices=("data", "future"),
)  # fmt: skip
ANYWHERE = setting(
    0.0, "with goals future, the fraction of goals that are reached anywhere in the batch instead", low=0, high=1
)
RADIUS = setting(None, "with goals future, the distance at which a goal is reached; null: the task's, or 0", low=0)
UPDATES = setting(1, "gradient steps per environment step, each with its own batch", low=1)


def require_goals(train: OfflineConfig | OnlineConfig) -> None:
    """Raise a UserError if one of these settings is given without other goals than the data's, or leaves no room."""
    for name in ("goals_own", "goals_anywhere", "goal_radius"):
        if train.goals == "data" and getattr(train, name) != getattr(type(train), name):
            raise UserError(f"{name} is for other goals than the data's: give --train.goals future too")
    if train.goals_own + train.goals_anywhere > 1:
        raise UserError("goals_own and goals_anywhere are fractions of the same goals: give two whose sum is at most 1")


def require_one_ratio(train: OfflineConfig | OnlineConfig) -> None:
    """Raise a UserError if a gradient step has several environment steps and vice versa."""
    if train.steps_per_update > 1 and train.updates_per_step > 1:
        raise UserError("steps_per_update and updates_per_step contradict each other: leave one of them at 1")


@dataclass(frozen=True)
class OfflineConfig(EpisodesConfig):
    """Training settings of runs on a dataset's transitions, and of fine-tuning after them."""

    batch: int = setting(256, "transitions per gradient step", low=1)
    block: int = 50
    goals: str = GOALS
    goals_own: float = setting(0.0, "with goals future, the fraction of rows that keep their goal", low=0, high=1)
    goals_anywhere: float = ANYWHERE
    goal_radius: float | None = RADIUS
    online_steps: int = setting(0, "environment steps of fine-tuning afterwards", low=0)
    online_eval_every: int = setting(1_000, "updates between evaluations in fine-tuning", low=1)
    envs: int = setting(1, "number of parallel environments", low=1)
    steps_per_update: int = setting(1, "environment steps per gradient step", low=1)
    updates_per_step: int = UPDATES
    capacity: int = setting(1_000_000, "transitions that the replay buffer holds", low=1)
    replay: str = setting("memory", "where the replay buffer's observations are kept", choices=("memory", "disk"))
    old_share: float | None = setting(
        None, "the dataset's fraction of a batch in fine-tuning; null: its fraction of all rows", low=0, high=1
    )
    final_old_share: float | None = setting(None, "that fraction after old_share_steps; null: old_share", low=0, high=1)
    old_share_steps: int | None = setting(None, "steps over which the fraction changes; null: all steps", low=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_goals(self)
        require_one_ratio(self)
        if self.online_steps and self.patience is not None:
            raise UserError("patience is for runs of one stage: leave out --train.patience, or --online-steps")
        if self.goals == "data":
            return
        if self.terminal_ends:
            raise UserError("with other goals no end of an episode is terminal: leave out --train.terminal_ends")
        if self.reward not in (None, "none"):
            raise UserError(f"other goals have other rewards, 0 and -1: leave out --train.reward {self.reward}")
        if self.online_steps:
            raise UserError("in fine-tuning, goals are those of the environment: leave out --train.goals")


FINE_TUNING = frozenset({
    "online_eval_every", "envs", "steps_per_update", "updates_per_step", "capacity", "replay", "old_share",
    "final_old_share", "old_share_steps",
})  # fmt: skip
"""The settings of ``OfflineConfig`` that only fine-tuning has."""


@dataclass(frozen=True)
class OnPolicyConfig(TrainConfig):
    """Training settings of runs on rollouts of the current policy."""

    steps: int = setting(1_000_000, "environment steps", low=1)
    batch: int = setting(2_048, "steps per rollout, in all environments together", low=1)
    eval_every: int = 20_000
    envs: int = setting(1, "number of parallel environments", low=1)


@dataclass(frozen=True)
class OnlineConfig(OnPolicyConfig):
    """Training settings of runs that act and learn from a replay buffer; see
    ``offlinerl.experience.sources.ReplayData`` and ``offlinerl.experience.ring.Replay``."""

    steps: int = 100_000
    batch: int = setting(256, "transitions per gradient step", low=1)
    eval_every: int = 5_000
    block: int = setting(1, "updates made in one go, after their steps; an evaluation ends a block early", low=1)
    steps_per_update: int = setting(1, "environment steps per gradient step", low=1)
    updates_per_step: int = UPDATES
    warm_up: int = setting(1_000, "random steps before the first update", low=0)
    capacity: int = setting(1_000_000, "transitions that the replay buffer holds", low=1)
    replay: str = setting("memory", "where the replay buffer's observations are kept", choices=("memory", "disk"))
    reward_clip: float | None = setting(
        None, "clip rewards to [-X, X] for learning, but not in evaluations; null: no clipping", above=0
    )
    prioritized: bool = setting(
        False, "sample transitions by their last error: prioritised replay (Schaul et al., ICLR 2016)"
    )
    priority_alpha: float = setting(0.6, "exponent of the error in the sampling probability", low=0, high=1)
    priority_beta: float = setting(
        0.4, "exponent of the importance weights that correct for it, which the paper anneals to 1", low=0, high=1
    )
    workers: int = setting(0, "processes that act; 0: only this one", low=0)
    goals: str = GOALS
    goals_own: float = setting(0.2, "with goals future, the fraction of rows that keep their goal", low=0, high=1)
    goals_anywhere: float = ANYWHERE
    goal_radius: float | None = RADIUS

    def __post_init__(self) -> None:
        super().__post_init__()
        require_goals(self)
        require_one_ratio(self)
        if self.goals != "data" and (self.prioritized or self.reward_clip is not None):
            given, off = ("prioritized", "false") if self.prioritized else ("reward_clip", "null")
            raise UserError(
                f"{given} is for the environment's own goals and rewards: leave out --train.goals, or give"
                f" --train.{given} {off}"
            )


BY_SOURCE = dict(
    transitions=OfflineConfig, windows=WindowsConfig, episodes=EpisodesConfig, replay=OnlineConfig,
    rollouts=OnPolicyConfig, observations=ObservationsConfig,
)  # fmt: skip
"""The training settings by what a run learns from; see ``offlinerl.training.selection``."""


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with the values of ``over``; nested mappings are merged recursively."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def read(path: Path) -> dict[str, Any]:
    """The content of a YAML file with sections of settings.

    Raises:
        UserError: it is missing, or holds something else.
    """
    try:
        content = yaml.safe_load(Path(path).read_text("utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not YAML"
        raise UserError(f"the configuration {path} cannot be read: {reason}") from error
    if not isinstance(content, dict) or not all(isinstance(section, dict) for section in content.values()):
        raise UserError(f"the configuration {path} must hold sections of settings, such as `agent:` and `train:`")
    if unknown := set(content) - SECTIONS:
        raise UserError(f"the configuration {path} has an unknown section {unknown.pop()!r}; name it agent or train")
    return content


def resolve(
    agent_name: str,
    agent: type[Agent],
    entry: Entry,
    source: str,
    file: Path | None = None,
    over: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The settings of a run: ``{"agent": {...}, "train": {...}}``.

    In order of increasing priority: the algorithm's defaults, ``configs/<agent>/<family>.yaml``, the entry for this
    dataset or environment in that file, ``file``, ``over``. The family is the dataset's, or "online" without one.

    Args:
        source: what the run learns from, one of ``BY_SOURCE``.

    Raises:
        UserError: a setting is unknown or of the wrong type; the message suggests similar names.
    """
    training, online = BY_SOURCE[source], source in ("replay", "rollouts")
    family = paths.share("configs", agent_name, f"{'online' if online else entry.family}.yaml")
    require_sections(over or {}, "over")
    asked = merge(_read_for(Path(file), entry) if file else {}, over or {})
    family_settings = merge(dict(agent={}, train={}), _read_for(family, entry) if family.is_file() else {})
    settings = merge(family_settings, asked)
    complaint = f"{agent_name} has no setting"
    if file and (other := read(file).get("fit", {}).get("agent", agent_name)) != agent_name:
        complaint = f"the configuration {file} is of {other}, and {complaint}"
    settings["agent"] = plain(make(agent.config_class, settings["agent"], complaint))
    learning, clock, wrong = ("by acting", "steps", "updates") if online else ("from a dataset", "updates", "steps")
    if wrong in settings["train"]:
        raise WrongUsage(f"learning {learning} is counted in --{clock}, not in --{wrong}")
    settings["train"] = plain(make(training, settings["train"], f"training {agent_name} has no setting"))
    if training is OfflineConfig and not settings["train"]["online_steps"]:
        own = plain(make(training, family_settings["train"], f"training {agent_name} has no setting"))
        for name in sorted(FINE_TUNING & asked.get("train", {}).keys()):
            if settings["train"][name] != own[name]:
                raise UserError(f"{name} is for fine-tuning in the environment: leave it out, or give --online-steps")
    if settings["train"].get("workers"):
        settings["train"] |= _for_workers(settings["train"], asked.get("train", {}))
    return {section: settings[section] for section in ("agent", "train")}


def of_run(settings: Mapping[str, Any], agent: type[Agent], source: str) -> dict[str, Any]:
    """The settings in a run's ``config.yaml``, which an older version may have written: missing settings get their
    defaults, and additional ones are kept.

    Raises:
        UserError: a setting has the wrong type or is out of range.
    """
    checked = dict(settings)
    for section, known in dict(agent=agent.config_class, train=BY_SOURCE[source]).items():
        stated = {key: value for key, value in settings[section].items() if key in settings_of(known)}
        checked[section] = {**settings[section], **plain(known(**stated))}
    return checked


def _read_for(path: Path, entry: Entry) -> dict[str, Any]:
    """The settings of a file, merged with its entry for one dataset or environment."""
    content = read(path)
    tables = {**content.pop("datasets", {}), **content.pop("environments", {})}
    for name, table in tables.items():
        require_sections(table, f"the configuration {path}, for {name},")
    if entry.name not in tables and (near := _misspelt(entry.name, tables)):
        raise UserError(
            f"the configuration {path} has settings for {near}, which is no dataset or environment, and none for"
            f" {entry.name}: correct the name, or add `{entry.name}: {{}}`"
        )
    return merge(content, tables.get(entry.name, {}))


def require_sections(given: Any, whose: str) -> None:
    """Raise a UserError unless these are settings in the sections ``agent`` and ``train`` only."""
    if not isinstance(given, Mapping):
        raise UserError(f"{whose} must hold sections of settings, such as `agent:` and `train:`, and not {given!r}")
    require_known(given, ("agent", "train"), f"{whose} has an unknown section")
    for section, settings in given.items():
        if not isinstance(settings, Mapping):
            raise UserError(f"{whose} must hold settings in its section {section}, and not {settings!r}")


def _misspelt(name: str, tables: Iterable[Any]) -> str | None:
    """A name in the tables that is unknown but similar to this one, which is known; else None."""
    near = difflib.get_close_matches(name, map(str, tables), 1, 0.85)
    return near[0] if near and _is_known(name) and not _is_known(near[0]) else None


def _is_known(name: str) -> bool:
    """Whether there is a dataset or an environment of this name."""
    for find in (registry.resolve, registry.task):
        with suppress(UserError):
            find(name)
            return True
    return False


def _for_workers(train: Mapping[str, Any], asked: Mapping[str, Any]) -> dict[str, int]:
    """Defaults with workers: at least one environment for each, and blocks long enough to pay for a round trip."""
    workers, envs, block = (train[name] for name in ("workers", "envs", "block"))
    if "envs" not in asked:
        envs = -(-envs // workers) * workers
    if "block" not in asked:
        block = max(block, math.ceil(ROLLOUT * envs / steps_per_update(train)))
    return dict(envs=envs, block=block)


def of_agent(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The agent's settings as constructor arguments, with ``decay_steps: updates`` replaced by the number of updates,
    for which a warm-up does not count. With fine-tuning it is None, so that the learning rate does not decay."""
    arguments, train = dict(settings["agent"]), settings["train"]
    if arguments.get("decay_steps") != "updates":
        return arguments
    if train.get("online_steps"):
        arguments["decay_steps"] = None
    elif "steps" in train:
        learnt_from = train["steps"] - train.get("warm_up", 0)
        arguments["decay_steps"] = max(1, int(learnt_from / steps_per_update(train)))
    else:
        arguments["decay_steps"] = train["updates"]
    return arguments


def steps_per_update(train: Mapping[str, Any]) -> Fraction:
    """Environment steps per gradient step of a run that learns from a replay buffer, which may be a fraction; 1 for
    others."""
    return Fraction(train.get("steps_per_update", 1), train.get("updates_per_step", 1))


def parse_value(text: str) -> Any:
    """Parse a value from the command line: a number, true, false, null or a list, also as numbers with commas; else the
    text itself."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    if isinstance(value, str) and "," in value:
        with suppress(ValueError):
            return [int(part) if part.isdigit() else float(part) for part in value.split(",")]
    return value
