"""Training: what ``offlinerl fit`` does. A run is a folder; everything in it can be read, compared and resumed."""

from __future__ import annotations

import csv
import json
import logging
import math
import pickle
import platform
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
import yaml
from lightning.pytorch.loggers import TensorBoardLogger

import offlinerl
from offlinerl import agents, checkpoint, config, plots
from offlinerl.agent import Agent
from offlinerl.data import load, registry
from offlinerl.data.interaction import Interaction, mean_of
from offlinerl.data.record import aside, write_whole
from offlinerl.data.replay import Replay
from offlinerl.data.sources import EpisodeData, FineTuningData, OfflineData, ReplayData, RolloutData
from offlinerl.data.workers import Crew, OnRay
from offlinerl.device import pick_device
from offlinerl.display import Display
from offlinerl.envs.make import Pool
from offlinerl.evaluation import Evaluation, Task, evaluate, make_pool
from offlinerl.types import UserError

EVALUATION_SEED = 1_000_000
"""Reset seed of the first evaluation episode, far from the seeds of training."""

COMPILE_WORTHWHILE = 3_000
"""Updates from which compiling, which takes half a minute, is earned back."""

LOG_EVERY = 500
"""Updates between two rows of metrics, the only times when the device is waited for."""


class Interrupted(UserError):
    """The user pressed Ctrl-C; what was trained is saved."""


def fit(
    agent_name: str | None = None,
    dataset: str | None = None,
    *,
    env: str | None = None,
    seeds: Sequence[int] | None = None,
    file: Path | None = None,
    over: Mapping[str, Any] | None = None,
    device: str = "auto",
    out: Path | None = None,
    resume: Path | None = None,
) -> dict[str, Any]:
    """Train an agent on a fixed dataset, or by acting in an environment, and evaluate it as it learns.

    Args:
        agent_name: one of ``offlinerl.agents.names()``.
        dataset: a name, a Minari id or a file; see ``offlinerl.data.registry.resolve``. None if the agent learns
            online.
        env: the environment to act in; with a dataset, to evaluate in where it is not the dataset's own.
        seeds: S integers, trained side by side; by default just 0.
        file: a YAML file of settings, or another run's ``config.yaml``, which tells the agent, the dataset and
            the seeds too.
        over: settings that win over all files, ``{"agent": {...}, "train": {...}}``.
        device: "auto", "cpu" or "cuda".
        out: the run's folder, which may not hold anything yet; by default a new one below ``runs/``.
        resume: the folder of a run to go on with, by its own settings; only its length may change.

    Returns:
        What ``summary.json`` holds.

    Raises:
        UserError: anything the user can put right.
        Interrupted: Ctrl-C; the run is saved and can be resumed.
    """
    if resume:
        settings = settings_of(Path(resume), agent_name, dataset, over or {})
        run = run_of(settings, pick_device(device), Path(resume))
        run.restore()
        write_config(run.folder, settings)  # it may be longer now
        return run.train()
    settings, entry = settings_for(agent_name, dataset, env, seeds, file, over)
    about = settings["fit"]
    folder = Path(out) if out else next_free(Path("runs") / f"{about['agent']}-{entry.name.replace('/', '-')}")
    require_free(folder)
    run = run_of(settings, pick_device(device), folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_config(folder, settings)
    return run.train()


def settings_for(
    agent_name: str | None,
    dataset: str | None,
    env: str | None,
    seeds: Sequence[int] | None,
    file: Path | None,
    over: Mapping[str, Any] | None,
) -> tuple[dict[str, Any], registry.Entry]:
    """All settings of a new run, and the task it is about; for the arguments see ``fit``.

    Raises:
        UserError: one is missing, unknown or out of range.
    """
    about = dict(agent=agent_name, dataset=dataset and str(dataset), env=env, seeds=seeds and list(seeds))
    again = config.read(file).get("fit", {}) if file else {}
    about = dict(dataset=None, env=None, seeds=[0]) | again | {k: v for k, v in about.items() if v is not None}
    if "agent" not in about:
        raise UserError("fit needs an agent, as in: offlinerl fit xql --dataset kitchen")
    agent_class = agents.get(about["agent"])
    if agent_class.online:
        if about["dataset"] is not None:
            raise UserError(
                f"{about['agent']} learns by acting and not from a dataset: give --env instead of --dataset"
            )
        if about["env"] is None:
            raise UserError(f"{about['agent']} learns by acting: give --env, as in: --env Pendulum-v1")
        entry = registry.task(about["env"])
    else:
        if about["dataset"] is None:
            raise UserError(f"{about['agent']} learns from a dataset: give --dataset, as in: --dataset kitchen")
        entry = registry.resolve(about["dataset"], about["env"])
    seeds = about["seeds"]
    whole = isinstance(seeds, list) and all(type(seed) is int and seed >= 0 for seed in seeds)
    if not whole or not seeds or len(set(seeds)) < len(seeds):
        raise UserError(f"seeds must be a list of different whole numbers from 0 on, not {seeds}")
    return dict(fit=about, **config.resolve(about["agent"], agent_class, entry, file, over)), entry


def require_free(folder: Path) -> None:
    """Raises a UserError unless a run can begin in that folder."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"the output folder {folder} exists; go on with --resume {folder} or name another --out")


def run_of(settings: dict[str, Any], device: torch.device, folder: Path) -> Run:
    """The run that those settings describe."""
    if agents.get(settings["fit"]["agent"]).online:
        return OnlineRun(settings, device, folder)
    return (FineTuning if settings["train"].get("online_steps") else OfflineRun)(settings, device, folder)


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
    """

    clock = "update"
    """What the run counts: the column by that name in its tables, and its length as ``<clock>s`` in the settings."""

    agent: Agent
    source: OfflineData | ReplayData | RolloutData | FineTuningData
    task: Task
    pool: Pool
    dataset_score: float | None = None

    def __init__(self, settings: dict[str, Any], device: torch.device, folder: Path):
        self.settings, self.folder, self.display = settings, folder, Display()
        self.about, self.train_settings = settings["fit"], settings["train"]
        self.evaluated = 0  # what the clock showed at the latest evaluation
        self.best: dict[str, Any] | None = None
        self.score: float | None = None  # of the latest evaluation
        self.seconds = dict(total=0.0, training=0.0)  # of earlier sessions, then of this one too
        self.stop = threading.Event()
        self.logged = 0
        self.logger: TensorBoardLogger | None = None
        self.build(device)

    def build(self, device: torch.device) -> None:
        """Make the agent, its source, its task and the environments to evaluate it in."""
        raise NotImplementedError

    def build_agent(self, device: torch.device) -> None:
        """Make the agent for the pool's task."""
        agent_class = agents.get(self.about["agent"])
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
        self.display.say(
            f"{self.about['agent']} on {self.agent.device.type}, seeds {seeds}: {self.clock}s {self.now:,} to"
            f" {self.end:,}, into {self.folder}"
        )
        self.began = time.perf_counter()
        try:
            with self.signals(), self.display.bar("training", self.end, self.now, f"{self.clock}s"):
                if self.now < self.end:
                    self.run_trainer()
                if self.stop.is_set():
                    raise self.interrupted()
                summary = self.finish()
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
        if self.best is None or result.mean > self.best["mean"]:
            self.best = {"mean": result.mean, "per_seed": result.per_seed.tolist(), self.clock: self.now}
            self.save(trainer, "best.ckpt")
        self.save(trainer, "last.ckpt")

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
        better = self.best is None or result.mean > self.best["mean"]
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
        write_whole(self.folder / "summary.json", json.dumps(summary, indent=1))
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
        return f"score {self.score:.1f}" if self.score is not None else ""

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
                "success": int(result.success[s, i]),
            }
            for s, seed in enumerate(self.agent.seeds)
            for i in range(result.scores.shape[1])
        ]  # fmt: skip
        append(self.folder / "evaluations.csv", rows)
        if self.logger is not None:
            self.logger.log_metrics({"evaluation/score": result.mean}, self.now)
        self.display.evaluated(self.clock, self.now, result, self.task.score_kind)

    def state_dict(self) -> dict[str, Any]:
        total = self.seconds["total"] + time.perf_counter() - self.began
        return dict(
            source=self.source.state_dict(), evaluated=self.evaluated, best=self.best, logged=self.logged,
            seconds=dict(self.seconds, total=total),
        )  # fmt: skip

    def save(self, trainer: L.Trainer, name: str) -> None:
        checkpoint.save(trainer, self.folder / name)

    def restore(self) -> None:
        """Continue from ``last.ckpt``: weights, targets, optimisers, generators, sampler and counters."""
        saved = checkpoint.read(self.folder / "last.ckpt")
        checkpoint.load_into(self.agent, saved, self.folder / "last.ckpt")
        self.restore_state(saved["callbacks"]["Run"])
        if self.now > self.end:
            raise UserError(
                f"the run in {self.folder} has {self.now:,} {self.clock}s already; give --{self.clock}s a larger number"
            )
        trim(self.folder / "metrics.csv", self.clock, self.logged)
        trim(self.folder / "evaluations.csv", self.clock, self.evaluated)

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
        """Let the first Ctrl-C finish the block, so that what is saved is a whole number of updates."""

        def stop() -> None:
            if self.stop.is_set():
                raise self.interrupted_at_once()  # at a KeyboardInterrupt, Lightning leaves without a word
            self.stop.set()
            self.display.say("stopping after this block; press Ctrl-C again to stop at once")

        return on_interrupt(stop)

    def interrupted(self) -> Interrupted:
        return Interrupted(
            f"interrupted after {self.now:,} of {self.end:,} {self.clock}s, which are saved; go on with: {self.go_on}"
        )

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
        self.entry = registry.resolve(self.about["dataset"], self.about["env"])
        self.raw = load.load(self.entry, reward="none")
        self.dataset_score = dataset_score(self.entry, self.raw)
        data = load.with_reward(self.raw, self.entry.reward)
        self.display.say(
            f"{self.entry.name}: {len(data):,} transitions in {len(data.episode_starts):,} episodes,"
            f" {data.obs.shape[1]} observations, {data.action.shape[1]} actions"
        )
        seeds = self.about["seeds"]
        self.task = task_of(self.entry, data)
        self.pool = make_pool(self.task, len(seeds), self.train_settings["final_episodes"])
        self.build_agent(device)
        self.source = (EpisodeData if self.agent.whole_episodes else OfflineData)(
            data.transitions(self.agent.gamma, self.agent.n_step), self.pool.spec, seeds,
            self.train_settings["batch"], self.train_settings["block"], device,
        )  # fmt: skip


class ActingRun(Run):
    """A run whose agent acts. What it has lived through, if it is kept, is saved beside the checkpoint, for it is
    large.

    Attributes:
        ray_address: of the cluster that its workers run on; None is this machine.
    """

    interaction: Interaction | Crew
    ray_address: str | None = None
    replay: Replay | None = None

    def make_interaction(self) -> Interaction | Crew:
        """The environments to act in, here or in as many workers as the settings say."""
        settings, seeds, lanes = self.train_settings, self.about["seeds"], range(self.train_settings["envs"])
        env, obs_keys, workers = self.task.env, self.task.obs_keys, settings.get("workers", 0)
        if not workers:
            return Interaction(env, seeds, lanes, obs_keys)
        agent = partial(type(self.agent), self.pool.spec, seeds, **config.of_agent(self.settings))
        place = OnRay(workers, self.ray_address)
        return Crew(env, seeds, lanes, obs_keys, agent, workers, place, self.display.say)

    def make_replay(self, longest: int) -> Replay:
        """A replay for so many steps at the most."""
        settings = self.train_settings
        return Replay.of(self.agent, settings, min(settings["capacity"], longest + settings["envs"]))

    def require_whole(self, source: ReplayData, *names: str) -> None:
        """Raises a UserError unless these settings are whole numbers of strides."""
        for name in names:
            if self.train_settings[name] % source.stride:
                raise UserError(
                    f"{name} must be a multiple of {source.stride}, for {source.envs} environments and"
                    f" {source.steps_per_update} steps per update, not {self.train_settings[name]}"
                )

    def counters(self) -> dict[str, int]:
        return dict(update=self.agent.updates, step=self.agent.steps)

    def values(self) -> dict[str, list[float]]:
        if self.agent.updates < self.agent.period:
            return {}  # some of the metrics are still to come
        recent = dict(episode_return=self.interaction.returns, episode_length=self.interaction.lengths)
        means = {name: [sum(of) / len(of) if of else math.nan for of in seeds] for name, seeds in recent.items()}
        rate = dict(steps_per_second=[self.rate(self.agent.steps)] * len(self.agent.seeds))
        return super().values() | means | rate

    def note(self) -> str:
        mean = mean_of(self.interaction.returns)
        return super().note() if mean is None else f"return {mean:.1f}"

    def save(self, trainer: L.Trainer, name: str) -> None:
        if self.replay is None or name != "last.ckpt":
            super().save(trainer, name)
            return
        # First the replay under a name of its own, then the checkpoint that means it: at any moment there is a pair.
        replay = self.replay_file(self.agent.steps)
        with aside(replay, overwrite=True) as temporary:
            torch.save(self.replay.state_dict(), temporary)
        super().save(trainer, name)
        for other in self.folder.glob("replay-*.pt"):
            if other != replay:
                other.unlink()

    def replay_file(self, steps: int) -> Path:
        return self.folder / f"replay-{steps}.pt"

    def restore(self) -> None:
        super().restore()
        if self.replay is None:
            return
        path = self.replay_file(self.agent.steps)
        try:
            saved = torch.load(path, map_location=self.replay.packed.device, weights_only=True)
        except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
            raise UserError(f"{path} is missing or damaged, without which this run cannot go on") from error
        self.replay.load_state_dict(saved)

    def close(self) -> None:
        super().close()
        self.interaction.close()


class OnlineRun(ActingRun):
    """A training by acting in an environment, which counts its steps. On-policy, both its length and the steps
    between evaluations are rounded up to whole rollouts."""

    clock = "step"

    def build(self, device: torch.device) -> None:
        settings = self.train_settings
        self.entry = registry.task(self.about["env"])
        self.task = Task.of(self.entry)
        self.pool = make_pool(self.task, len(self.about["seeds"]), settings["final_episodes"])
        self.build_agent(device)
        self.interaction = self.make_interaction()
        if self.agent.on_policy:
            self.source = RolloutData(self.agent, self.interaction, settings["batch"])
            return
        self.replay = self.make_replay(self.end)
        self.source = ReplayData(
            self.agent, self.interaction, self.replay, settings["batch"], settings["block"],
            settings["steps_per_update"], settings["warm_up"],
        )  # fmt: skip
        self.require_whole(self.source, "steps", "eval_every")

    @property
    def updates(self) -> int:
        settings = self.train_settings
        if self.agent.on_policy:
            return self.end // settings["batch"] * self.agent.updates_in(settings["batch"])
        return self.end // settings["steps_per_update"]

    @property
    def now(self) -> int:
        return self.source.steps

    @property
    def end(self) -> int:
        return self._in_rollouts(super().end)

    @property
    def every(self) -> int:
        return self._in_rollouts(super().every)

    def _in_rollouts(self, steps: int) -> int:
        batch = self.train_settings["batch"]
        return -(-steps // batch) * batch if self.agent.on_policy else steps


class FineTuning(ActingRun, OfflineRun):
    """A training on a dataset that goes on in the environment, as in the paper's second table. It counts updates,
    of which every ``steps_per_update`` steps bring one, and evaluates at the switch too.

    Attributes:
        offline: scores of the policies at the switch.
    """

    offline: dict[str, Any] | None = None

    def build(self, device: torch.device) -> None:
        super().build(device)
        settings, offline = self.train_settings, self.source
        self.interaction, self.replay = self.make_interaction(), self.make_replay(settings["online_steps"])
        online = ReplayData(
            self.agent, self.interaction, self.replay, settings["batch"], steps_per_update=settings["steps_per_update"],
            warm_up=0, table=offline, reward=load.online_reward(self.entry, self.raw),
        )  # fmt: skip
        self.require_whole(online, "online_steps")
        self.source = FineTuningData(offline, online, settings["updates"])

    @property
    def end(self) -> int:
        settings = self.train_settings
        return settings["updates"] + settings["online_steps"] // settings["steps_per_update"]

    def look_ahead(self) -> None:
        switch, every = self.source.switch, self.every
        if self.now < switch:
            ahead = min(self.now // every * every + every, switch)
        else:
            every = self.train_settings["online_eval_every"]
            ahead = min(switch + (self.now - switch) // every * every + every, self.end)
        self.source.updates_ahead = ahead - self.now

    def due(self) -> bool:
        online = self.now - self.source.switch
        return super().due() if online < 0 else online % self.train_settings["online_eval_every"] == 0

    @property
    def eval_episodes(self) -> int:
        """As many at the switch as at the end, for the two are compared."""
        return self.train_settings["final_episodes"] if self.now == self.source.switch else super().eval_episodes

    def record(self, result: Evaluation) -> None:
        super().record(result)
        if self.now == self.source.switch:
            self.offline = dict(
                mean=result.mean, ci95=list(result.interval()), per_seed=result.per_seed.tolist(),
                episodes=self.eval_episodes,
            )  # fmt: skip

    def results(self) -> dict[str, Any]:
        return dict(super().results(), offline=self.offline)

    def state_dict(self) -> dict[str, Any]:
        return dict(super().state_dict(), offline=self.offline)

    def restore_state(self, state: dict[str, Any]) -> None:
        super().restore_state(state)
        self.offline = state["offline"]


class _Stopped(Exception):
    """Raised out of an evaluation by Ctrl-C."""


# Helpers


@contextmanager
def on_interrupt(stop: Callable[[], None]) -> Iterator[None]:
    """Let Ctrl-C call ``stop`` instead of raising; outside the main thread, which alone hears of it, do nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, lambda *_: stop())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def task_of(entry: registry.Entry, data: load.Dataset) -> Task:
    """What evaluation needs of a dataset's task.

    Raises:
        UserError: nothing tells which environment the data belongs to.
    """
    env = entry.env
    if env is None and "env_spec" in data.provenance:
        env = {"spec": data.provenance["env_spec"]}
    if env is None:
        raise UserError(
            f"nothing says which environment {entry.name} was collected in; name it with --env, by a Gymnasium id"
            " or a registry name such as kitchen-complete-v0"
        )
    return replace(Task.of(entry), env=env)


def dataset_score(entry: registry.Entry, raw: load.Dataset) -> float | None:
    """Mean score of the dataset's own episodes, from rewards as stored; None without a score range."""
    if entry.score is None:
        return None
    highest = np.maximum.reduceat(raw.reward, raw.episode_starts)
    totals = dict(
        counts=highest,  # D4RL's Kitchen files hold the tasks completed so far in every row
        success=highest > 0,
    ).get(entry.score.get("data", entry.score["from"]), raw.episode_returns)
    return float(np.mean(entry.score_of(totals)))


def settings_of(folder: Path, agent_name: str | None, dataset: str | None, over: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a run to resume, of which only the number of updates may be changed.

    Raises:
        UserError: the folder holds no run, or something else is to be changed.
    """
    if not (folder / "config.yaml").is_file() or not (folder / "last.ckpt").is_file():
        raise UserError(f"{folder} holds no run to resume: it lacks config.yaml or last.ckpt")
    settings = config.read(folder / "config.yaml")
    settings.pop("versions", None)
    if "collect" in settings:
        raise UserError(f"{folder} is a collection: go on with `offlinerl collect` as before, with --resume")
    if missing := {"fit", "agent", "train"} - set(settings):
        raise UserError(f"{folder / 'config.yaml'} lacks its section {missing.pop()!r}; start the run again")
    for flag, given, known in (("agent", agent_name, "agent"), ("--dataset", dataset, "dataset")):
        if given is not None and given != settings["fit"][known]:
            raise UserError(f"the run in {folder} has {flag} {settings['fit'][known]}, not {given}; leave it out")
    length = "steps" if "steps" in settings["train"] else "updates"
    changed = dict(over.get("train", {}))
    settings["train"][length] = int(changed.pop(length, settings["train"][length]))
    if changed or over.get("agent"):
        name = next(iter([*changed, *over.get("agent", {})]))
        raise UserError(f"a resumed run keeps its settings, so {name} cannot be given; only --{length} may grow")
    return settings


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
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        warnings.filterwarnings("ignore", message=".*LeafSpec.*")
        yield
    logger.setLevel(level)


def next_free(stem: Path) -> Path:
    """The first of ``stem``, ``stem-2``, ``stem-3`` ... that does not exist."""
    number, path = 1, stem
    while path.exists():
        number += 1
        path = stem.with_name(f"{stem.name}-{number}")
    return path


def versions() -> dict[str, str]:
    from importlib.metadata import version

    names = ("torch", "lightning", "gymnasium", "gymnasium-robotics", "mujoco", "minari", "numpy")
    return dict(offlinerl=offlinerl.__version__, python=platform.python_version(), **{n: version(n) for n in names})


def append(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Append rows to a CSV file, with a header if it is new."""
    new = not path.exists() or not path.stat().st_size
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        if new:
            writer.writeheader()
        writer.writerows(rows)


def trim(path: Path, clock: str, time: int) -> None:
    """Drop the rows of a CSV file whose column ``clock`` is beyond ``time``; a resumed run writes them again."""
    if not path.exists() or not path.stat().st_size:  # killed between making the file and writing to it
        return
    with path.open(newline="") as file:
        header, *rows = csv.reader(file)
    column = header.index(clock)
    kept = [row for row in rows if len(row) == len(header) and int(row[column]) <= time]
    write_whole(path, "".join(",".join(row) + "\r\n" for row in [header, *kept]))


def write_config(folder: Path, settings: Mapping[str, Any]) -> None:
    stated = yaml.safe_dump(dict(settings, versions=versions()), sort_keys=False)
    about = "Everything needed to run this again, by: offlinerl fit --config config.yaml"
    write_whole(folder / "config.yaml", f"# {about}\n{stated}")


def copy_whole(source: Path, target: Path) -> None:
    with aside(target, overwrite=True) as temporary:
        temporary.write_bytes(source.read_bytes())
