"""One training: what happens before, between and after its blocks of updates."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import signal
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.loggers import TensorBoardLogger

from offlinerl import agents
from offlinerl.agents import checkpoint
from offlinerl.agents.base import Agent
from offlinerl.data import dataset, load, registry, rewards
from offlinerl.envs.make import Pool, unbounded_actions, with_limits
from offlinerl.evaluation import plots
from offlinerl.evaluation.evaluate import evaluate, make_pool
from offlinerl.evaluation.statistics import Evaluation
from offlinerl.evaluation.task import Task
from offlinerl.experience.sources import EpisodeData, FineTuningData, OfflineData, ReplayData, RolloutData
from offlinerl.experience.table import Table, entries_outside
from offlinerl.training import config
from offlinerl.util.atomic import sweep, write_json
from offlinerl.util.display import Display, shown
from offlinerl.util.errors import UserError, reading
from offlinerl.util.folder import append, copy_whole, trim, versions
from offlinerl.util.interrupt import AtOnce, Interrupted, Stop, on_interrupt
from offlinerl.util.trees import Tree, tree_leaves

EVALUATION_SEED = 1_000_000
"""Reset seed of the first evaluation episode, far from the seeds of training."""

COMPILE_WORTHWHILE = 3_000
"""Updates from which compiling, which takes half a minute, is earned back."""

LOG_EVERY = 500
"""Updates between two rows of metrics, the only times when the device is waited for."""


class Run(L.Callback):
    """One training: its agent, its source of blocks and its folder, and what happens between blocks.

    A Lightning epoch is the stretch to the next evaluation, and a batch is a block of K updates.

    Args:
        settings: ``{"fit": {...}, "agent": {...}, "train": {...}}``, what ``config.yaml`` holds.
        device: where to train.
        folder: where results go.

    Attributes:
        agent: what is trained.
        source: what it learns from.
        task: what it is evaluated in.
        pool: environments for that.
        dataset_score: of the dataset's average episode, if there is one.
        data: what tells the dataset from others, if there is one: its rows, episodes and checksum.
    """

    clock = "update"
    """What the run counts: the column by that name in its tables, and its length as ``<clock>s`` in the settings."""

    agent: Agent
    source: OfflineData | ReplayData | RolloutData | FineTuningData
    task: Task
    pool: Pool
    dataset_score: float | None = None
    data: dict[str, Any] | None = None

    def __init__(self, settings: dict[str, Any], device: torch.device, folder: Path):
        self.settings, self.folder, self.display = settings, folder, Display()
        self.about, self.train_settings = settings["fit"], settings["train"]
        self.evaluated = 0  # what the clock showed at the latest evaluation
        self.best: dict[str, Any] | None = None
        self.score: float | None = None  # of the latest evaluation
        self.seconds = dict(total=0.0, training=0.0)  # of earlier sessions, then of this one too
        self.stop = Stop()
        self.logged = 0
        self.logger: TensorBoardLogger | None = None
        self.build(device)

    def build(self, device: torch.device) -> None:
        """Make the agent, its source, its task and the environments to evaluate it in."""
        raise NotImplementedError

    def build_agent(self, device: torch.device) -> None:
        """Make the agent for the pool's task."""
        agent_class = agents.get(self.about["agent"])
        if self.about.get("obs_keys") and not self.pool.envs[0].has_wrapper_attr("leaves"):
            raise UserError(f"{self.task.env_id} observes one vector without parts; leave out --obs-keys")
        try:
            self.agent = agent_class(self.pool.spec, self.about["seeds"], **config.of_agent(self.settings))
        except UserError as error:
            raise UserError(f"{self.task.env_id}: {error}") from error
        self.agent.task = json.loads(json.dumps(asdict(self.task)))
        self.agent.to(device)
        self.agent.configure_optimizers()
        self.agent.compile = wants_compile(self.train_settings["compile"], self.updates)

    @property
    def updates(self) -> int:
        """About how many updates the whole run takes."""
        return self.train_settings["updates"]

    @property
    def now(self) -> int:
        """What the clock shows."""
        return self.agent.updates

    @property
    def end(self) -> int:
        """What the clock shows at the end."""
        return self.train_settings[f"{self.clock}s"]

    @property
    def length_flag(self) -> str:
        """What makes the run longer."""
        return f"--{self.clock}s"

    @property
    def eval_episodes(self) -> int:
        """Episodes of each policy for an evaluation on the way."""
        return self.train_settings["eval_episodes"]

    @property
    def every(self) -> int:
        """What the clock shows between two evaluations."""
        return self.train_settings["eval_every"]

    def due(self) -> bool:
        """Whether an evaluation belongs here."""
        return self.now % self.every == 0

    def look_ahead(self) -> None:
        """Let the source's next epoch end where the next evaluation is due."""
        ahead = min(self.now // self.every * self.every + self.every, self.end) - self.now
        setattr(self.source, f"{self.clock}s_ahead", ahead)

    # The course of a run

    def train(self) -> dict[str, Any]:
        """Train to the end, evaluate the last policy and write the results."""
        seeds = ", ".join(map(str, self.agent.seeds))
        if self.pool.endless:
            self.display.warn_of_endless(self.pool.name)
        self.display.say(
            f"{self.about['agent']} on {self.agent.device.type}, seeds {seeds}: {self.clock}s {self.now:,} to"
            f" {self.end:,}, into {self.folder}"
        )
        self.began = self.saved = time.perf_counter()
        self.first = self.now
        try:
            with self.signals(), self.display.bar("training", self.end, self.now, f"{self.clock}s"):
                if self.now < self.end:
                    self.run_trainer()
                if self.stop.is_set():
                    raise self.interrupted()
                summary = self.finish()
        except AtOnce:
            raise self.interrupted() from None
        finally:
            self.close()
        self.display.summary(summary, self.folder)
        return summary

    def close(self) -> None:
        self.pool.close()

    def run_trainer(self) -> None:
        self.logger = TensorBoardLogger(str(self.folder), name="", version="")
        self.look_ahead()
        with hushed_lightning():
            trainer = L.Trainer(
                accelerator="gpu" if self.agent.device.type == "cuda" else "cpu",
                devices=1,
                max_epochs=-1,
                reload_dataloaders_every_n_epochs=1,  # an epoch after an interruption may be shorter than others
                logger=self.logger,
                callbacks=[self],
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                log_every_n_steps=1,
            )
            self.block_began = time.perf_counter()
            trainer.fit(self.agent, self.source)
            if self.stop.is_set():
                self.save(trainer, "last.ckpt")

    def on_train_start(self, trainer: L.Trainer, *_: Any) -> None:
        """Make up for an evaluation that was interrupted."""
        if self.stop.is_set():
            raise AtOnce
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, lambda number, _: self.heard(number))  # Lightning's own leaves without a word
        if self.now and self.due() and self.evaluated < self.now:
            self.evaluate(trainer)

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        now = time.perf_counter()
        self.seconds["training"] += now - self.block_began
        self.block_began = now
        if self.now - self.logged >= LOG_EVERY or self.now == self.end:
            self.log_metrics()
        self.display.advance(self.now, self.note())
        trainer.should_stop = self.stop.is_set()
        if not trainer.should_stop and now - self.saved >= 60 * self.train_settings["save_every"]:
            self.save(trainer, "last.ckpt")

    def on_train_epoch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if self.stop.is_set():
            return
        self.save(trainer, "last.ckpt")  # before the evaluation, which might be interrupted
        if self.now < self.end:
            self.evaluate(trainer)
        else:
            trainer.should_stop = True
        self.look_ahead()
        self.block_began = time.perf_counter()

    def evaluate(self, trainer: L.Trainer) -> None:
        """Evaluate the policies as they are, and keep them if they are the best so far."""
        result = self.rollouts(self.eval_episodes)
        if result is None:
            trainer.should_stop = True
            return
        self.record(result)
        if self.is_best(result):
            self.best = {"mean": result.mean, "per_seed": result.per_seed.tolist(), self.clock: self.now}
            self.save(trainer, "best.ckpt")
        self.save(trainer, "last.ckpt")

    def is_best(self, result: Evaluation) -> bool:
        """Whether no evaluation so far was as good; a score that is not a number is the worst."""
        return self.best is None or _comparable(result.mean) > _comparable(self.best["mean"])

    def rollouts(self, episodes: int) -> Evaluation | None:
        """An evaluation, or None if the user interrupts it."""

        def progress(_: int) -> None:
            if self.stop.is_set():
                raise _Stopped

        try:
            return evaluate(self.agent, self.task, episodes, EVALUATION_SEED, self.pool, progress)
        except _Stopped:
            return None

    def finish(self) -> dict[str, Any]:
        """Evaluate the last policy, which is the result, and write the summary and the picture."""
        result = self.rollouts(self.train_settings["final_episodes"])
        if result is None:
            raise self.interrupted()
        self.record(result)
        last = dict(
            mean=result.mean, ci95=list(result.interval()), per_seed=result.per_seed.tolist(),
            mean_return=float(result.returns.mean()),
        )  # fmt: skip
        better = self.is_best(result)
        if better:
            self.best = {"mean": result.mean, "per_seed": last["per_seed"], self.clock: self.now}
        checkpoint.amend(self.folder / "last.ckpt", self.state_key, self.state_dict())
        if better:
            copy_whole(self.folder / "last.ckpt", self.folder / "best.ckpt")
        seconds = self.seconds["total"] + time.perf_counter() - self.began
        summary = dict(
            agent=self.about["agent"],
            dataset=self.entry.name if self.about["dataset"] else None,
            env=self.task.env_id,
            task=self.task.facts,
            data=self.data,
            seeds=list(self.agent.seeds),
            updates=self.agent.updates,
            steps=self.agent.steps,
            clock=f"{self.clock}s",
            score_kind=self.task.score_kind,
            last=dict(last, episodes=self.train_settings["final_episodes"]),
            best=self.best,
            dataset_score=self.dataset_score,
            updates_per_second=self.rate(self.agent.updates),
            steps_per_second=self.rate(self.agent.steps),
            seconds=seconds,
            versions=versions(),
            **self.results(),
        )
        write_json(self.folder / "summary.json", summary)
        plots.curves([self.folder], self.folder / "curves.png")
        return summary

    def results(self) -> dict[str, Any]:
        """Further entries of the summary."""
        return {}

    # What is kept

    def log_metrics(self) -> None:
        """Sync the latest metrics and append a row a seed to ``metrics.csv``."""
        self.logged = self.now
        values = self.values()
        if not values:
            return
        rows = [
            dict(self.counters(), seed=seed, **{name: value[s] for name, value in values.items()},
                 updates_per_second=self.rate(self.agent.updates))
            for s, seed in enumerate(self.agent.seeds)
        ]  # fmt: skip
        append(self.folder / "metrics.csv", rows)
        means = {f"train/{name}": sum(value) / len(value) for name, value in values.items()}
        self.logger.log_metrics(means, self.now)

    def values(self) -> dict[str, list[float]]:
        """What to log, a number a seed under every name; always the same names, once there is anything."""
        return {name: tensor.tolist() for name, tensor in self.agent.metrics.items()}

    def counters(self) -> dict[str, int]:
        """The first columns of the run's tables."""
        return dict(update=self.agent.updates)

    def note(self) -> str:
        """What the progress bar says beside the count."""
        return f"score {shown(self.score)}" if self.score is not None else ""

    def rate(self, count: int) -> float:
        """A count over the seconds of training."""
        return count / max(self.seconds["training"], 1e-9)

    def record(self, result: Evaluation) -> None:
        """Append a row an episode to ``evaluations.csv``, in place of an earlier evaluation at this time."""
        self.evaluated, self.score = self.now, result.mean
        trim(self.folder / "evaluations.csv", self.clock, self.now - 1)
        rows = [
            {
                **self.counters(), "seed": seed, "episode": i, "return": float(result.returns[s, i]),
                "score": float(result.scores[s, i]), "length": int(result.lengths[s, i]),
                "success": "nan" if result.success is None else int(result.success[s, i]),
            }
            for s, seed in enumerate(self.agent.seeds)
            for i in range(result.scores.shape[1])
        ]  # fmt: skip
        append(self.folder / "evaluations.csv", rows)
        if self.logger is not None:
            self.logger.log_metrics({"evaluation/score": result.mean}, self.now)
        when = f"{self.clock} {self.now:>9,}"
        self.display.evaluated(when, self.task.score_kind, result.mean, result.per_seed, result.interval())

    def state_dict(self) -> dict[str, Any]:
        total = self.seconds["total"] + time.perf_counter() - self.began
        return dict(
            source=self.source.state_dict(), evaluated=self.evaluated, best=self.best, logged=self.logged,
            seconds=dict(self.seconds, total=total),
        )  # fmt: skip

    def save(self, trainer: L.Trainer, name: str) -> None:
        checkpoint.save(trainer, self.folder / name)
        if name == "last.ckpt":
            self.saved = time.perf_counter()

    def restore(self) -> None:
        """Continue from ``last.ckpt``: weights, targets, optimisers, generators, sampler and counters. A run that was
        stopped before it first saved begins again."""
        sweep(self.folder)  # a process that was killed may have been writing
        if not (self.folder / "last.ckpt").is_file():
            for name in ("metrics.csv", "evaluations.csv"):
                trim(self.folder / name, self.clock, 0)
            return
        saved = checkpoint.read(self.folder / "last.ckpt")
        checkpoint.load_into(self.agent, saved, self.folder / "last.ckpt")
        if "Run" not in saved.get("callbacks", {}):
            raise UserError(f"{self.folder / 'last.ckpt'} was not saved by `offlinerl fit`, which goes on with its own")
        state = saved["callbacks"]["Run"]
        with reading(f"the checkpoint {self.folder / 'last.ckpt'}", "use another one of the run, such as best.ckpt"):
            best = {"mean": 0.0, "per_seed": [0.0] * len(self.agent.seeds), self.clock: 0}
            like = dict(evaluated=0, logged=0, seconds=dict(total=0.0, training=0.0), best=state["best"] and best)
            checkpoint.require_like(state, like, "Run")
            self.restore_state(state)
        if self.now > self.end:
            raise UserError(
                f"the run in {self.folder} has {self.now:,} {self.clock}s already; give"
                f" {self.length_flag} a larger number"
            )
        trim(self.folder / "metrics.csv", self.clock, self.logged)
        trim(self.folder / "evaluations.csv", self.clock, self.evaluated, ("score",))

    def restore_state(self, state: dict[str, Any]) -> None:
        if self.source.load_state_dict(state["source"]) is False:
            self.display.say("the simulator does not repeat itself here: the episodes under way begin again")
        self.evaluated, self.best, self.logged = state["evaluated"], state["best"], state["logged"]
        self.seconds = state["seconds"]

    @property
    def state_key(self) -> str:
        return "Run"  # whichever kind it is

    # Interruptions

    def signals(self) -> AbstractContextManager[None]:
        """Let the first Ctrl-C, or SIGTERM, finish the block, so that what is saved is a whole number of updates."""
        return on_interrupt(self.heard)

    def heard(self, number: int) -> None:
        """What a signal does."""
        if self.stop.is_set():
            if number == signal.SIGTERM:
                return  # it was heard the first time
            raise self.interrupted_at_once()  # at a KeyboardInterrupt, Lightning leaves without a word
        self.stop.set(number)
        if self.now == self.first:
            raise AtOnce
        again = "" if number == signal.SIGTERM else "; press Ctrl-C again to stop at once"
        self.display.say(f"stopping after this block{again}")

    def interrupted(self) -> Interrupted:
        """To be raised once everything is saved."""
        if not (self.folder / "last.ckpt").is_file():
            done = f"interrupted before the first {self.clock}"
        else:
            done = f"interrupted after {self.now:,} of {self.end:,} {self.clock}s, which are saved"
        return Interrupted(f"{done}; go on with: {self.go_on}", self.stop.status)

    def interrupted_at_once(self) -> Interrupted:
        lost = "interrupted at once, and what was trained since the last save is lost"
        if not (self.folder / "last.ckpt").is_file():
            return Interrupted(f"{lost}, which is everything; delete {self.folder} and start again")
        return Interrupted(f"{lost}; go on with: {self.go_on}")

    @property
    def go_on(self) -> str:
        """The command that goes on with this run."""
        return f"offlinerl fit --resume {self.folder}"


class OfflineRun(Run):
    """A training on a fixed dataset, which counts updates."""

    def build(self, device: torch.device) -> None:
        self.entry = registry.resolve(self.about["dataset"], self.about["env"], self.about.get("obs_keys"))
        self.entry = registry.limited(self.entry, self.about)
        self.raw = load.load(self.entry, reward="none")
        self.dataset_score = dataset_score(self.entry, self.raw)
        self.data = contents_of(self.raw)
        if self.about.get("fingerprint", self.data["sha256"]) != self.data["sha256"]:
            raise UserError(
                f"the dataset {self.about['dataset']} is not what the run in {self.folder} was trained on: its contents"
                " differ; give --dataset a copy of that one, or start a new run"
            )
        data = rewards.with_reward(self.raw, self.entry.reward)
        self.display.say(
            f"{self.entry.name}: {len(data):,} transitions in {len(data.episode_starts):,} episodes,"
            f" {shape_of(data.observations)}, {data.action.shape[1]} actions"
        )
        seeds = self.about["seeds"]
        self.task = within_data(task_of(self.entry, data, self.about), data, self.display)
        self.pool = make_pool(self.task, len(seeds), self.train_settings["final_episodes"])
        self.require_own_units(data)
        self.build_agent(device)
        table = Table(data, self.pool.spec, self.agent.gamma, self.agent.n_step, device)
        self.source = (EpisodeData if self.agent.whole_episodes else OfflineData)(
            table, seeds, self.train_settings["batch"], self.train_settings["block"]
        )

    def require_own_units(self, data: dataset.Dataset) -> None:
        """Says how many entries of the actions will be clipped, and raises a UserError if most would be."""
        spec = self.pool.spec
        if spec.num_actions or data.action.shape[1] != spec.action_dim:  # another shape is refused later
            return
        outside, entries = entries_outside(data.action, spec), data.action.size
        if not outside:
            return
        count = f"{outside:,} of {entries:,} entries of the actions ({outside / entries:.1%})"
        what = f"{self.entry.name}: {count} lie outside the bounds of {self.task.env_id}"
        if 2 * outside > entries:
            bounds = f"{min(spec.action_low):g} to {max(spec.action_high):g}"
            raise UserError(
                f"{what}, {bounds}: they are in other units; rescale them, or name the environment they were collected"
                " in with --env"
            )
        self.display.say(f"{what} and are clipped to them")


class _Stopped(Exception):
    """Raised out of an evaluation by Ctrl-C."""


def _comparable(score: float) -> float:
    return -math.inf if math.isnan(score) else score


def within_data(task: Task, data: dataset.Dataset, display: Display) -> Task:
    """The task with the data's range as the bounds of those actions that its environment leaves without."""
    if "action_range" in task.env or data.action.shape[1] != len(open_ := unbounded_actions(task.env)):
        return task
    if not open_.any():
        return task
    low, high = data.action.min(0), data.action.max(0)
    display.say(
        f"{task.env_id} has actions without bounds, which take those of the data, {low.min():g} to {high.max():g};"
        " --action-range LOW,HIGH gives others"
    )
    return replace(task, env={**task.env, "action_range": [low.tolist(), high.tolist()]})


def task_of(entry: registry.Entry, data: dataset.Dataset, limits: Mapping[str, Any]) -> Task:
    """What evaluation needs of a dataset's task; the limits, see ``offlinerl.envs.make.with_limits``, are for an
    environment that only the data itself names.

    Raises:
        UserError: nothing tells which environment the data belongs to.
    """
    env = entry.env
    if env is None and "env_spec" in data.provenance:
        env = with_limits({"spec": data.provenance["env_spec"]}, limits)
    if env is None:
        raise UserError(
            f"nothing says which environment {entry.name} was collected in; name it with --env, by a Gymnasium id"
            " or a registry name such as kitchen-complete-v0"
        )
    return replace(Task.of(entry), env=env, obs_keys=entry.obs_keys or data.provenance.get("obs_keys"))


def shape_of(observations: Tree) -> str:
    """What a dataset's rows observe, in words."""
    if not isinstance(observations, dict) and observations.ndim == 2:
        return f"{observations.shape[1]} observations"
    listed = (f"{path or 'images'} {'x'.join(map(str, leaf.shape[1:]))}" for path, leaf in tree_leaves(observations))
    return f"observations of {', '.join(listed)}"


def contents_of(raw: dataset.Dataset) -> dict[str, Any]:
    """How much a dataset holds, and a checksum of it, whatever its file is called."""
    digest = hashlib.sha256()
    for _, column in tree_leaves((raw.obs, raw.action, raw.reward, raw.terminated, raw.last)):
        digest.update(f"{column.dtype} {column.shape}".encode())
        digest.update(np.ascontiguousarray(column))
    return dict(rows=len(raw), episodes=len(raw.episode_starts), sha256=digest.hexdigest())


def dataset_score(entry: registry.Entry, raw: dataset.Dataset) -> float | None:
    """Mean score of the dataset's own episodes, from rewards as stored; None without a score range."""
    if entry.score is None:
        return None
    highest = np.maximum.reduceat(raw.reward, raw.episode_starts)
    totals = dict(
        counts=highest,  # D4RL's Kitchen files hold the tasks completed so far in every row
        success=highest > 0,
    ).get(entry.score.get("data", entry.score["from"]), raw.episode_returns)
    return float(np.mean(entry.score_of(totals)))


def wants_compile(setting: bool | str, updates: int) -> bool:
    """Whether to compile the update: "auto" does if the run is long enough to earn it back."""
    if setting not in (True, False, "auto"):
        raise UserError(f"compile must be auto, true or false, not {setting!r}")
    return updates >= COMPILE_WORTHWHILE if setting == "auto" else bool(setting)


@contextmanager
def hushed_lightning() -> Iterator[None]:
    """Without Lightning's advice on data loaders and its own use of deprecated functions."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            warnings.filterwarnings("ignore", message=".*LeafSpec.*")
            yield
    finally:
        logger.setLevel(level)
