"""A run's settings, from the family's YAML, the user's file and the command line, later ones winning."""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from offlinerl.agents import Outline
from offlinerl.data.registry import Entry
from offlinerl.util import paths
from offlinerl.util.errors import UserError

if TYPE_CHECKING:
    from offlinerl.agents.base import Agent

SECTIONS = {"fit", "agent", "train", "datasets", "environments", "collect", "versions"}
LOGGERS = ("csv", "tensorboard", "wandb", "mlflow")
"""Where metrics can go; the last two are extras of the package."""

RECORDS = dict(save_every=5.0, log_every=500, logger="csv,tensorboard")
"""What every training keeps: itself after so many minutes, also between evaluations, and its metrics after so many
updates or steps."""

OFFLINE = dict(
    updates=100_000, batch=256, eval_every=10_000, eval_episodes=10, final_episodes=50, block=50, compile="auto",
    online_steps=0, online_eval_every=1_000, envs=1, steps_per_update=1, capacity=1_000_000, old_share=None,
    final_old_share=None, **RECORDS,
)  # fmt: skip
"""Settings of a training on a dataset and of fine-tuning after it, and their defaults. In fine-tuning, ``old_share`` of
a batch is the dataset's, and ``final_old_share`` at the end; null: as large a share as the dataset has of all rows."""

EPISODES = dict(
    updates=100_000, batch=32, eval_every=10_000, eval_episodes=10, final_episodes=50, block=5, compile="auto",
    **RECORDS,
)  # fmt: skip
"""Of a training on a dataset's whole episodes, of which ``batch`` make a batch; what it makes is not fine-tuned."""

ONLINE = dict(
    steps=100_000, batch=256, eval_every=5_000, eval_episodes=10, final_episodes=20, block=1, compile="auto", envs=1,
    steps_per_update=1, warm_up=1_000, capacity=1_000_000, prioritized=False, priority_alpha=0.6, priority_beta=0.4,
    workers=0, **RECORDS,
)  # fmt: skip
"""Settings of a training by acting; see ``offlinerl.experience.sources.ReplayData`` and
``offlinerl.experience.ring.Replay``. ``workers`` are processes that act, see
``offlinerl.rollout.actor_pool``; 0 is this one alone."""

ON_POLICY = dict(
    steps=1_000_000, batch=2_048, eval_every=20_000, eval_episodes=10, final_episodes=20, compile="auto", envs=1,
    **RECORDS,
)  # fmt: skip
"""Settings of a training on the policy's own rollouts, of ``batch`` steps each in ``envs`` environments."""

BY_SOURCE = dict(transitions=OFFLINE, episodes=EPISODES, replay=ONLINE, rollouts=ON_POLICY)
"""The settings of a training and their defaults, by what it learns from; see ``offlinerl.training.selection``."""

ROLLOUT = 32
"""Steps that a worker takes between two deliveries, unless ``block`` says otherwise, for a way costs milliseconds."""

LIMITS = {
    **dict.fromkeys(
        ("lr", "actor_lr", "critic_lr", "value_lr", "beta", "clip", "huber", "alpha", "max_kl", "save_every"),
        ("greater than 0", lambda x: x > 0),
    ),
    **dict.fromkeys(
        (
            "temperature",
            "action_noise",
            "random_actions",
            "sigma",
            "target_noise",
            "target_noise_clip",
            "epsilon_steps",
            "entropy",
            "cg_damping",
        ),
        ("at least 0", lambda x: x >= 0),
    ),
    **dict.fromkeys(
        (
            "n_step",
            "value_updates",
            "critics",
            "policy_delay",
            "target_every",
            "epochs",
            "value_epochs",
            "minibatch",
            "cg_iterations",
            "backtracks",
        ),
        ("at least 1", lambda x: x >= 1),
    ),
    **dict.fromkeys(
        (OFFLINE | ONLINE | ON_POLICY).keys() - {"compile", "prioritized", "save_every", "logger"},
        ("at least 1", lambda x: x >= 1),
    ),
    **dict.fromkeys(("warm_up", "online_steps", "workers"), ("at least 0", lambda x: x >= 0)),
    **dict.fromkeys(
        ("priority_alpha", "priority_beta", "epsilon", "final_epsilon", "lam"), ("from 0 to 1", lambda x: 0 <= x <= 1)
    ),
    "num_atoms": ("at least 2", lambda x: x >= 2),
    "exploration": ("gaussian, ou or parameter", lambda x: x in ("gaussian", "ou", "parameter")),
    "baseline": ("none, average or value", lambda x: x in ("none", "average", "value")),
    **dict.fromkeys(("old_share", "final_old_share"), ("from 0 to 1 or null", lambda x: x is None or 0 <= x <= 1)),
    "logger": (f"some of {', '.join(LOGGERS)}, with commas between", lambda x: {*x.split(",")} <= {*LOGGERS}),
    **dict.fromkeys(("target_kl", "max_grad_norm"), ("greater than 0 or null", lambda x: x is None or x > 0)),
    **dict.fromkeys(("tau", "baseline_rate"), ("greater than 0 and at most 1", lambda x: 0 < x <= 1)),
    **dict.fromkeys(("expectile", "shrink"), ("between 0 and 1", lambda x: 0 < x < 1)),
    "gamma": ("from 0 to 1", lambda x: 0 <= x <= 1),
    **dict.fromkeys(("dropout", "hold"), ("at least 0 and less than 1", lambda x: 0 <= x < 1)),
}
"""What a setting must be, by name; a name means the same in every algorithm."""

NULLABLE = {"target_entropy", "target_kl", "max_grad_norm", "old_share", "final_old_share"}
"""Numbers that may be null."""


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
    agent: type[Agent] | Outline,
    entry: Entry,
    source: str,
    file: Path | None = None,
    over: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The settings of a run: ``{"agent": {...}, "train": {...}}``.

    From weakest to strongest: the algorithm's defaults, ``configs/<agent>/<family>.yaml``, its value for this
    dataset or environment, ``file``, ``over``. The family is the dataset's, and "online" where there is none.

    Args:
        source: what the training learns from, one of ``BY_SOURCE``.

    Raises:
        UserError: a setting is unknown or of the wrong type; the message names the nearest ones.
    """
    defaults, online = BY_SOURCE[source], source in ("replay", "rollouts")
    family = paths.share("configs", agent_name, f"{'online' if online else entry.family}.yaml")
    asked = merge(_read_for(Path(file), entry) if file else {}, over or {})
    settings = merge(dict(agent={}, train=defaults), _read_for(family, entry) if family.is_file() else {})
    settings = merge(settings, asked)
    settings["agent"] = _checked(settings["agent"], parameters(agent), f"{agent_name} has no setting")
    settings["train"] = _checked(settings["train"], defaults, f"training {agent_name} has no setting")
    if settings["train"].get("workers"):
        settings["train"] |= _for_workers(settings["train"], asked.get("train", {}))
    return {section: settings[section] for section in ("agent", "train")}


def of_run(settings: Mapping[str, Any], agent: type[Agent] | Outline, source: str) -> dict[str, Any]:
    """The settings that a run's ``config.yaml`` states, which may be an older version's: what it does not know is as by
    default, and what it knows beyond stays.

    Raises:
        UserError: a setting has another type or lies out of range.
    """
    checked = dict(settings)
    for section, defaults in dict(agent=parameters(agent), train=BY_SOURCE[source]).items():
        known = {key: value for key, value in settings[section].items() if key in defaults}
        checked[section] = {**defaults, **settings[section], **typed(known, defaults)}
    return checked


def _read_for(path: Path, entry: Entry) -> dict[str, Any]:
    """A file of settings, with its values for one dataset or environment."""
    content = read(path)
    tables = {**content.pop("datasets", {}), **content.pop("environments", {})}
    return merge(content, tables.get(entry.name, {}))


def _for_workers(train: Mapping[str, Any], asked: Mapping[str, Any]) -> dict[str, int]:
    """What was not asked for otherwise: environments for all workers, and blocks that are worth the way to them."""
    workers, envs, block = (train[name] for name in ("workers", "envs", "block"))
    if "envs" not in asked:
        envs = -(-envs // workers) * workers
    if "block" not in asked:
        block = max(block, -(-ROLLOUT * envs // train["steps_per_update"]))
    return dict(envs=envs, block=block)


def of_agent(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The constructor's arguments: the agent's settings, with ``decay_steps: updates`` as a number. What is to be
    fine-tuned goes on learning, so its rate does not fall."""
    arguments, train = dict(settings["agent"]), settings["train"]
    if "decay_steps" in arguments and train.get("online_steps"):
        arguments["decay_steps"] = None
    elif arguments.get("decay_steps") == "updates":
        online = "steps" in train
        arguments["decay_steps"] = train["steps"] // train.get("steps_per_update", 1) if online else train["updates"]
    return arguments


def parameters(agent: type[Agent] | Outline) -> dict[str, Any]:
    """The settings of an algorithm and their defaults: its constructor's keyword arguments, and where it passes
    others on, those of the class it is made from."""
    if isinstance(agent, Outline):
        return dict(agent.settings)
    own = inspect.signature(agent.__init__).parameters.values()
    passed_on = any(parameter.kind is parameter.VAR_KEYWORD for parameter in own)
    inherited = parameters(agent.__base__) if passed_on else {}
    return {p.name: p.default for p in own if p.kind is p.KEYWORD_ONLY} | inherited


def _checked(given: Mapping[str, Any], defaults: Mapping[str, Any], complaint: str) -> dict[str, Any]:
    for key in given:
        if key not in defaults:
            near = difflib.get_close_matches(key, defaults, n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(defaults)}"
            raise UserError(f"{complaint} {key!r}; {hint}")
    return merge(defaults, typed(given, defaults))


def typed(given: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Known settings in the types of their defaults.

    Raises:
        UserError: one has another type or lies out of range.
    """
    return {key: _value(key, value, defaults[key]) for key, value in given.items()}


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
    elif isinstance(default, float) or key in NULLABLE:
        number = number or (key in NULLABLE and value is None)
        fits, wanted = number, "a number"
    elif isinstance(default, str):
        fits, wanted = isinstance(value, str), "a word"
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
