"""Builds a run from its settings: the task, the agent and the source of its batches."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from dataclasses import replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import torch

from offlinerl import agents
from offlinerl.agents import checkpoint
from offlinerl.agents.base import Agent
from offlinerl.agents.vae import VAE, require_image_alone
from offlinerl.data import describe, formats, load, rewards, scales
from offlinerl.data.dataset import Dataset
from offlinerl.data.fingerprint import checksums_of, contents_of, is_of
from offlinerl.data.inferred import KINDS, bounds_in_words, spec_of_data
from offlinerl.data.mapping import in_words
from offlinerl.data.registry import Entry
from offlinerl.data.scales import Moments
from offlinerl.envs import checks
from offlinerl.envs.make import id_of
from offlinerl.envs.pool import Pool
from offlinerl.evaluation.evaluate import make_pool
from offlinerl.evaluation.task import Task
from offlinerl.experience.hindsight import Goal, Hindsight
from offlinerl.experience.ring import Replay
from offlinerl.experience.sources import (
    ActingData,
    EpisodeData,
    GoalData,
    OfflineData,
    ReplayData,
    RolloutData,
    WindowData,
    stride_of,
)
from offlinerl.experience.table import Table
from offlinerl.learning.exploration import linear
from offlinerl.rollout.actor_pool import ActorPool
from offlinerl.rollout.collector import Collector
from offlinerl.rollout.ray_backend import RayBackend
from offlinerl.training import config, goals
from offlinerl.training.held_out import HeldOut, hold_out
from offlinerl.training.loop import Run
from offlinerl.training.processes import Team
from offlinerl.training.reconstructions import Reconstructions
from offlinerl.training.schedule import Schedule, Stage
from offlinerl.training.selection import source_of
from offlinerl.training.tasks import (
    dataset_score,
    in_one_vector,
    leaves_in,
    require_own_units,
    require_stored_order,
    task_of,
    with_leaves,
    with_own_parts,
    within_data,
)
from offlinerl.types import Spec
from offlinerl.util.cores import cores
from offlinerl.util.device import memory_for
from offlinerl.util.display import Display
from offlinerl.util.errors import UserError, counted
from offlinerl.util.settings import make, members
from offlinerl.util.trees import observed_in_words, tree_leaves

REPLAY = "replay"
"""The subfolder of a run's folder that holds its replay buffer, if that is on disk."""

SOURCES = dict(transitions=OfflineData, windows=WindowData, episodes=EpisodeData, observations=OfflineData)
"""The sources of batches from a dataset, by their names in ``offlinerl.training.selection``."""

COMPILE_WORTHWHILE = 3_000
"""Number of updates from which compiling, which takes half a minute, saves time."""

MEASURED = 10
"""How often a run without an environment measures its losses if it is shorter than ``eval_every``."""


def build(
    settings: dict[str, Any], entry: Entry, device: torch.device, folder: Path, ray_address: str | None = None,
    rank: int = 0,
) -> Run:  # fmt: skip
    """Build the run that the settings describe.

    Args:
        settings: ``{"fit": {...}, "agent": {...}, "train": {...}}``, the content of ``config.yaml``.
        entry: the dataset and the task, or only the task to learn by acting.
        device: where to train.
        folder: where results go.
        ray_address: of the Ray cluster that workers run on; by default this machine.
        rank: of this process in data-parallel training.

    Raises:
        UserError: for anything that the user can fix.
    """
    torch.backends.cuda.matmul.allow_tf32 = settings["train"].get("tf32", False)
    if settings["fit"]["dataset"] is None:
        with ExitStack() as resources:  # closes the environments if the run cannot be built
            return online(settings, entry, device, folder, ray_address, resources)
    team = Team(settings["train"]["devices"], rank, entry)
    if device.type == "cuda" and team.size > 1:
        if team.size > (have := torch.cuda.device_count()):
            raise UserError(f"--devices {team.size} needs as many GPUs, but there are {have}: give --devices {have}")
        device = torch.device("cuda", rank)
        torch.cuda.set_device(device)
    elif team.size > 4 * (have := cores()):  # a run from a larger machine may resume here, but must not fill the memory
        raise UserError(f"--devices {team.size} are too many for {counted(have, 'core')}: give --devices {have}")
    with ExitStack() as resources:
        return on_dataset(settings, entry, device, folder, ray_address, team, resources)


def online(
    settings: dict[str, Any], entry: Entry, device: torch.device, folder: Path, ray_address: str | None,
    resources: ExitStack,
) -> Run:  # fmt: skip
    """A run that learns by acting in an environment and is counted in environment steps. If it learns from rollouts,
    its length and the steps between evaluations are rounded up to whole rollouts."""
    about, train, display, goal = settings["fit"], settings["train"], Display(), None
    task = Task.of(entry)
    if goals.are_chosen(train):
        task, goal = goals.with_goals(task, entry.goal, train["goal_radius"])
        display.say(f"{entry.name}: {goals.in_words(goal)}")
    pool = resources.enter_context(closing(make_pool(task, members_of(settings), train["final_episodes"])))
    task = with_leaves(task, pool.envs[0], about.get("obs_keys"))
    agent = agent_for(task, pool.spec, settings, device, folder)
    collector = collector_for(task, agent, settings, display, ray_address, resources)
    if source_of(about["agent"], agent.kinds, None, about["env"]) == "rollouts":
        source: ActingData = RolloutData(agent, collector, train["batch"])
        steps, every = (-(-train[name] // train["batch"]) * train["batch"] for name in ("steps", "eval_every"))
        updates = steps // train["batch"] * agent.updates_in(train["batch"])
    else:
        require_whole(train, "steps", "eval_every")
        steps, every = train["steps"], train["eval_every"]
        updates = int(steps / config.steps_per_update(train))
        source = ReplayData(
            agent, collector, replay_for(agent, task, train, steps, folder), train["batch"], train["block"],
            config.steps_per_update(train), train["warm_up"],
            reward_clip=train["reward_clip"],
            hindsight=None if goal is None else hindsight_for(agent, goal, train),
        )  # fmt: skip
    compute_as_asked(agent, train, updates)
    schedule = Schedule("step", [Stage("online", source, steps, every, "--steps")])
    return Run(
        settings, folder, display, agent, task, pool, schedule, dict(dataset=None, data=None, dataset_score=None),
        resources=resources.pop_all(),
    )  # fmt: skip


def on_dataset(
    settings: dict[str, Any], entry: Entry, device: torch.device, folder: Path, ray_address: str | None, team: Team,
    resources: ExitStack,
) -> Run:  # fmt: skip
    """A run that learns from a fixed dataset and is counted in updates. If it fine-tunes in the environment afterwards,
    as in table 2 of the XQL paper, it makes one update per ``steps_per_update`` environment steps, or
    ``updates_per_step`` updates per step."""
    about, train, display = settings["fit"], settings["train"], Display()
    hindsight = goals.are_chosen(train)
    entry = replace(entry, reward="none" if hindsight else train.get("reward") or entry.reward)
    raw, contents = loaded(entry, settings, folder, display)
    data = learned_from(raw, entry, train)
    kind = source_of(about["agent"], agents.get(about["agent"]).kinds, about["dataset"], about["env"])
    announce(entry, raw, data, display, rewarded=kind != "observations" and not hindsight)
    task, pool, spec, goal = where_to_evaluate(settings, entry, data, kind, folder, display, resources)
    if goal is not None:
        data = goals.with_own_goals(data, goal, train["goals_own"])
        display.say(f"{entry.name}: {goals.in_words(goal)}")
    if pool is not None:
        data = in_one_vector(data, leaves_in(pool.envs[0]), task.env_id)
    if kind == "windows":  # such an agent acts on the return to go
        task = replace(task, reward=rewards.online_reward(entry, raw))
    require_own_units(entry, data, spec, task, display, about.get("action_range") is not None)
    share, steps = train.get("held_out"), train.get("online_steps")
    data, kept = hold_out(data, 0.1 * (pool is None) if share is None else share)
    moments = data.moments if goal is None else goals.moments_of(data, goal)
    agent = agent_for(task, spec, settings, device, folder, data.name, moments)
    if not getattr(agent.config, "normalize", True) and (fault := scales.far_apart(data.observations, data.moments)):
        display.say(f"{entry.name}: {fault}")
    compute_as_asked(agent, train, train["updates"] + int((steps or 0) / config.steps_per_update(train)))
    if team.size > 1:
        agent.share_batches(team.size, team.rank)
    batches = batches_for(agent, kind, goal, train, team)
    held_out = None
    if kept is not None:
        episodes = len(kept.episode_starts)
        draw = partial(batches, Table.of(agent, kept, task.stack), updates=1)
        held_out = HeldOut(agent, draw, episodes if kind == "episodes" else len(kept))
        are = "is" if episodes == 1 else "are"
        display.say(f"{counted(episodes, 'episode')} {are} held out to measure the losses on")
    if train["patience"] is not None and pool is None and (held_out is None or agent.judged_by is None):
        raise UserError(
            "patience needs evaluations, and there is no environment: name one with --env, or train an agent whose"
            " held-out loss tells which policy is best, such as bc"
        )
    table = Table.of(agent, data, task.stack)
    offline = batches(table, updates=train["block"])
    every = train["eval_every"]
    if pool is None and every > train["updates"]:
        every = -(-train["updates"] // MEASURED)
    stages = [Stage("offline", offline, train["updates"], every, "--updates")]
    if steps:
        reward = rewards.online_reward(entry, raw)
        collector = collector_for(task, agent, settings, display, ray_address, resources)
        stages.append(fine_tuning(task, agent, settings, table, reward, folder, collector))
    facts = dict(dataset=entry.name, data=contents, dataset_score=dataset_score(entry, raw))
    schedule, made = Schedule("update", stages), resources.pop_all()
    run = Run(settings, folder, display, agent, task, pool, schedule, facts, held_out, team, made)
    if isinstance(agent, VAE):
        run.companion = Reconstructions(agent, kept or data, folder)
    return run


def batches_for(
    agent: Agent, kind: str, goal: Goal | None, train: Mapping[str, Any], team: Team
) -> Callable[..., OfflineData]:
    """What makes the source of an agent's batches of a kind, given a table and the number of updates in a block."""
    more: dict[str, Any] = dict(length=agent.config.context) if kind == "windows" else {}
    if goal is not None:
        more = dict(hindsight=hindsight_for(agent, goal, train))
    source = SOURCES[kind] if goal is None else GoalData
    return partial(source, seeds=agent.seeds, batch_size=train["batch"] // team.size, rank=team.rank, **more)


def hindsight_for(agent: Agent, goal: Goal, train: Mapping[str, Any]) -> Hindsight:
    """What gives an agent's transitions other goals."""
    if agent.returns_to_go:
        raise UserError(
            f"the returns that {type(agent).__name__} learns from are those of an episode's own goal: leave out"
            " --train.goals"
        )
    if agent.n_step > 1:
        raise UserError(
            f"the rewards of n steps are those of an episode's own goal, and n_step is {agent.n_step}: give"
            " --agent.n_step 1"
        )
    return Hindsight(goal, train["goals_anywhere"], train["goals_own"], agent.device)


def loaded(entry: Entry, settings: dict[str, Any], folder: Path, display: Display) -> tuple[Dataset, dict[str, Any]]:
    """The dataset with its stored rewards, and its ``contents_of``. Its checksums, and the columns of a table, are
    added to the section ``fit``.

    Raises:
        UserError: it is not the one that the run in this folder was trained on, or its rewards are transformed already.
    """
    about, train = settings["fit"], settings["train"]
    raw = load.load(entry, reward="none", table=train["table"], display=display, store_columns=False)
    contents = contents_of(raw)
    found = checksums_of(raw, contents)
    if not is_of(about, found):
        raise UserError(
            f"the dataset {entry.name} is not the one that the run in {folder} was trained on: its contents differ;"
            " give --dataset a copy of that one, or start a new run"
        )
    about |= found
    if entry.kind == "file" and formats.is_table(entry.path, entry.columns):
        about |= columns_read(raw)
    had = raw.provenance.get("reward", "none")
    if train.get("reward") == "none" != had:
        raise UserError(
            f"the rewards of {raw.name} already follow the rule {had}, but {about['agent']} should learn from the"
            f' stored ones: load it with reward="none", or give --train.reward {had}'
        )
    return raw, contents


def learned_from(raw: Dataset, entry: Entry, train: Mapping[str, Any]) -> Dataset:
    """The part of a dataset to learn from, with transformed rewards and ends of episodes as asked."""
    data = rewards.with_reward(raw, entry.reward)
    if train.get("top", 1) < 1:
        data = data.best(train["top"], raw.episode_returns)  # stored rewards, since a rule may favour short episodes
    return data.with_terminal_ends() if train.get("terminal_ends") else data


def announce(entry: Entry, raw: Dataset, data: Dataset, display: Display, rewarded: bool = True) -> None:
    """Print what is learned from, and what is odd about it; ``rewarded`` is False if its rewards do not matter."""
    name = entry.name
    if entry.reward in rewards.IN_WORDS:
        display.say(
            f"{name}: rewards are transformed (--train.reward {entry.reward}): {rewards.IN_WORDS[entry.reward]}"
        )
    observed = observed_in_words({path: leaf.shape[1:] for path, leaf in tree_leaves(data.observations)})
    display.say(
        f"{name}: {counted(len(data), 'transition')} in {counted(len(data.episode_starts), 'episode')},"
        f" {observed}, {counted(data.action.shape[1], 'action')}"
    )
    if columns := data.provenance.get("columns"):
        display.say(f"columns: {in_words(columns)}")
    for what, find in describe.NOTES.items():
        if not (what == "no rewards" and not rewarded) and (note := find(raw)):
            display.say(f"{name}: {note}")
    if leaps := len(data.leaps):
        display.say(
            f"{name}: in {counted(leaps, 'step')} of its episodes, the next observation is not the next row's;"
            " n-step returns, next actions and windows stop there"
        )
    if cameras := data.provenance.get("left_out"):
        display.say(f"cameras that are not used unless --obs-keys selects them: {', '.join(cameras)}")


def where_to_evaluate(
    settings: Mapping[str, Any],
    entry: Entry,
    data: Dataset,
    kind: str,
    folder: Path,
    display: Display,
    resources: ExitStack,
) -> tuple[Task, Pool | None, Spec, Goal | None]:
    """The task of a run on a dataset, its environments, which ``resources`` close, if policies can be evaluated, the
    shapes, and where the goals are, if others than the data's are learned from."""
    about, train, goal = settings["fit"], settings["train"], None
    task, steps, hindsight = task_of(entry, data, about), train.get("online_steps"), goals.are_chosen(train)
    if kind == "observations":  # single frames, without a policy to evaluate
        return replace(task, env=None, score=None, score_kind="return"), None, spec_of_data(data)[0], None
    if task.env is None:
        lacking = f"{entry.name} names none" if about["env"] is None else f"--env is {about['env']}"
        if hindsight:
            raise UserError(f"goals are given by an environment, and {lacking}: give --env ID")
        if steps or about.get("pixels") or about.get("stack"):
            what = "fine-tuning needs" if steps else "--pixels and --stack need"
            raise UserError(f"{what} an environment, but {lacking}: give --env ID")
        spec, actions = spec_of_data(data, about.get("actions"), about.get("action_range"))
        last = folder / "last.ckpt"
        start = last if last.is_file() else about.get("init")
        if start and not (spec.num_actions or about.get("action_range")):  # else its policy would be stretched to this
            low, high = map(tuple, checkpoint.bounds_in(Path(start)))
            if len(low) == spec.action_dim and (low, high) != (spec.action_low, spec.action_high):
                spec = replace(spec, action_low=low, action_high=high)
                actions = f"continuous actions within {bounds_in_words(low, high)}, the bounds in {start}"
        display.say(f"no environment is named, so there will be losses but no scores; {actions}")
        return task, None, spec, None
    if about.get("actions"):
        raise UserError(f"{id_of(task.env)} defines its actions itself: leave out --actions")
    try:
        task = within_data(with_own_parts(task, entry, data), data, display)
        if hindsight:
            task, goal = goals.with_goals(task, entry.goal, train["goal_radius"])
        pool = resources.enter_context(closing(make_pool(task, members_of(settings), train["final_episodes"])))
    except UserError as error:
        if about["env"] is not None or steps or hindsight:
            raise
        raise UserError(f"{error}; or train on the dataset alone, with --env none") from error
    task = with_leaves(task, pool.envs[0], about.get("obs_keys"))
    require_stored_order(entry, data, pool.envs[0], about.get("obs_keys"))
    return task, pool, pool.spec, goal


def fine_tuning(
    task: Task, agent: Agent, settings: Mapping[str, Any], table: Table, reward: rewards.OnlineReward, folder: Path,
    collector: Collector | ActorPool,
) -> Stage:  # fmt: skip
    """The stage after learning from a dataset, in which the agent acts and mixes its transitions with the ``table``;
    ``reward`` transforms the environment's rewards to the dataset's."""
    train = settings["train"]
    steps, scale = train["online_steps"], config.steps_per_update(train)
    require_whole(train, "online_steps")
    if train["online_eval_every"] < steps / scale:
        require_whole(train, "online_eval_every", scale=scale)
    share, last = train["old_share"], train["final_old_share"]
    until = train["old_share_steps"] or steps
    source = ReplayData(
        agent, collector, replay_for(agent, task, train, steps, folder), train["batch"],
        steps_per_update=scale, warm_up=0, table=table,
        old_share=None if share is None else partial(linear, share, share if last is None else last, until),
        reward=reward, terminal_ends=train["terminal_ends"],
    )  # fmt: skip
    end = train["updates"] + int(steps / scale)
    return Stage("online", source, end, train["online_eval_every"], "--online-steps", scale)


def members_of(settings: Mapping[str, Any]) -> int:
    """The number of members that are trained side by side."""
    name = settings["fit"]["agent"]
    config = make(agents.get(name).config_class, settings["agent"], f"{name} has no setting")
    return len(members(settings["fit"]["seeds"], config))


def agent_for(
    task: Task, spec: Spec, settings: dict[str, Any], device: torch.device, folder: Path, name: str = "",
    moments: Moments | None = None,
) -> Agent:  # fmt: skip
    """The agent for a task with these shapes. A new run starts from the checkpoint ``init``, including its observation
    statistics, if one is given, and otherwise takes the observation statistics of its dataset."""
    about, last, vae = settings["fit"], folder / "last.ckpt", None
    if path := settings["agent"].get("encoder"):
        if last.is_file():
            latent = tuple(checkpoint.read(last)["hyper_parameters"]["spec"]["latent"])
        else:
            vae = checkpoint.load_agent(Path(path))
            latent = latent_of(vae, Path(path), spec, task.env_id or "the dataset")
        spec = replace(spec, latent=latent)
    agent_class = agents.get(about["agent"])
    try:
        with memory_for("the networks need more memory than is available: give smaller ones, or fewer --seeds"):
            agent = agent_class(spec, about["seeds"], **config.of_agent(settings))
    except UserError as error:
        if task.env is not None:
            raise UserError(f"{task.env_id}: {error}") from error
        if agent_class.discrete in (None, bool(spec.num_actions)):
            raise
        have, others = KINDS if spec.num_actions else KINDS[::-1]
        known = f"they are {have} by --actions" if about.get("actions") else f"the dataset's seem to be {have}"
        raise UserError(f"{error}; {known}: if they are {others}, give --actions {others}") from error
    agent.task = task.plain()
    agent.to(device)
    if not last.is_file():
        if vae is not None:
            agent.frozen.posterior.load_state_dict({name: w[:1] for name, w in vae.posterior.state_dict().items()})
        if about.get("init"):
            had, its_spec = checkpoint.load_weights(agent, Path(about["init"]))
            if differs := task.difference(Task(**had), spec):
                what, own, its = differs
                raise UserError(
                    f"the checkpoint {about['init']} has the {what} in the order {', '.join(its)}, and this run in the"
                    f" order {', '.join(own)}: give them in the checkpoint's order"
                )
            if "observations" not in agent.kinds:  # else it does not act
                require_same_bounds(agent.spec, its_spec, about["init"])
        elif moments is not None and getattr(agent.config, "normalize", False):
            if not moments:
                raise UserError(f"normalize is for vectors, and {name} observes only images: leave it out")
            agent.normalize_by(moments)
    agent.configure_optimizers()
    return agent


def require_same_bounds(spec: Spec, of_init: Mapping[str, Any], init: str) -> None:
    """Raise a UserError if the actions of a run have other bounds than those of the policy that it starts from, whose
    networks are scaled to them."""
    bounds = zip(of_init["action_low"], of_init["action_high"], spec.action_low, spec.action_high, strict=True)
    for dimension, (low, high, own_low, own_high) in enumerate(bounds):
        if not np.allclose((low, high), (own_low, own_high), rtol=1e-6):
            raise UserError(
                f"the policy of {init} has actions within {low:g} to {high:g} in dimension {dimension}, and this run"
                f" within {own_low:g} to {own_high:g}, to which they would be stretched: train it within the bounds of"
                " this run, or leave out --init"
            )


def latent_of(vae: Agent, path: Path, spec: Spec, where: str) -> tuple[str, int, int]:
    """``Spec.latent`` for images that are encoded by a VAE.

    Args:
        vae: the trained VAE.
        path: its checkpoint.
        spec: of the task.
        where: where the images are from, for error messages.

    Raises:
        UserError: it is not a VAE, or its frames have another shape than the task's.
    """
    if not isinstance(vae, VAE):
        raise UserError(f"the encoder {path} must be a vae's, not {type(vae).__name__}'s: train one with fit vae")
    require_image_alone(spec, f"an agent with the encoder {path} learns")
    height, width, channels = vae.spec.obs[0].shape
    leaf = spec.obs[0]
    if leaf.path or leaf.dtype != "uint8" or leaf.shape[:2] != (height, width) or leaf.shape[2] % channels:
        shown = observed_in_words({leaf.path: leaf.shape for leaf in spec.obs})
        raise UserError(
            f"the encoder {path} was trained on images of {height}x{width}x{channels}, but {where} has {shown}; use the"
            f" same size for both, as with --frame-size {height}"
        )
    return vae.config.convolutions, vae.config.latents, channels


def collector_for(
    task: Task, agent: Agent, settings: dict[str, Any], display: Display, ray_address: str | None, resources: ExitStack
) -> Collector | ActorPool:
    """The environments to act in, which ``resources`` close, in this process or in the number of workers that the
    settings give."""
    train, seeds = settings["train"], agent.seeds
    lanes, workers = range(train["envs"]), train.get("workers", 0)
    first = settings.get("collect", {}).get("first", 0)
    if not workers:
        return resources.enter_context(closing(Collector(task.env, seeds, lanes, task.obs_keys, first)))
    try:
        cloudpickle.dumps(task.env)
    except Exception as error:  # a user's object may raise anything
        raise UserError(
            f"{task.env_id} cannot be sent to workers ({checks.described(error)}): pass a function that can be"
            " pickled, or no workers"
        ) from error
    make = partial(type(agent), agent.spec, settings["fit"]["seeds"], **config.of_agent(settings))
    backend = RayBackend(workers, ray_address)
    actors = ActorPool(task.env, seeds, lanes, task.obs_keys, make, workers, backend, display.say, first)
    return resources.enter_context(closing(actors))


def replay_for(agent: Agent, task: Task, train: Mapping[str, Any], longest: int, folder: Path) -> Replay:
    """A replay buffer for a run of at most ``longest`` steps; one on disk lies in the run's folder."""
    place = folder / REPLAY if train["replay"] == "disk" else None
    new = place is not None and not place.exists()
    priorities = (train["priority_alpha"], train["priority_beta"]) if train.get("prioritized") else None
    capacity, envs = min(train["capacity"], longest + train["envs"]), train["envs"]
    more = dict(priorities=priorities, stack=task.stack, folder=place, goals=goals.are_chosen(train))
    try:
        return Replay.of(agent, capacity, envs, **more)
    except UserError:
        if new and place.exists():
            shutil.rmtree(place)  # else the folder would not be free for another try
        raise


def require_whole(train: Mapping[str, Any], *names: str, scale: Fraction = Fraction(1)) -> None:
    """Raise a UserError unless these settings are multiples of the stride of a ``ReplayData``. They are given in units
    of ``scale`` environment steps."""
    stride = int(stride_of(train["envs"], config.steps_per_update(train)) / scale)
    ratio = "updates_per_step" if train["updates_per_step"] > 1 else "steps_per_update"
    for name in names:
        if train[name] % stride:
            raise UserError(
                f"{name} must be a multiple of {stride}, for {train['envs']} environments and"
                f" {train[ratio]} {ratio.replace('_', ' ')}, not {train[name]}"
            )


def columns_read(raw: Dataset) -> dict[str, Any]:
    """The column mapping by which a table was read, as an entry of the section ``fit``, so that the run does not depend
    on a mapping that is stored beside the table and may change. Empty for files of other kinds, and for several tables
    of which only some have log-probabilities, since a mapping that is given must fit them all."""
    columns = raw.provenance.get("columns") or {}
    if not columns or ("log_prob" in columns and raw.log_prob is None):
        return {}
    return dict(columns={field: list(names) for field, names in columns.items()})


def compute_as_asked(agent: Agent, train: Mapping[str, Any], updates: int) -> None:
    """Set compilation, precision and memory format of an agent for a run with this many updates."""
    agent.compile = wants_compile(train["compile"], updates)
    agent.precision = train.get("precision", "float32")
    if train.get("channels_last", "auto") != "auto":
        agent.lay_out(train["channels_last"])


def wants_compile(setting: bool | str, updates: int) -> bool:
    """Whether to compile the update: "auto" compiles if the run is long enough for it to save time."""
    return updates >= COMPILE_WORTHWHILE if setting == "auto" else setting
