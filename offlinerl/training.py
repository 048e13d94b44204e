"""Training: what ``offlinerl fit`` does. A run is a folder; everything in it can be read, compared and resumed."""

from __future__ import annotations

import csv
import json
import logging
import platform
import signal
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
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
from offlinerl.data.record import aside, write_whole
from offlinerl.data.sources import OfflineData
from offlinerl.device import pick_device
from offlinerl.display import Display
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
    """Train an agent on a fixed dataset and evaluate it as it learns.

    Args:
        agent_name: one of ``offlinerl.agents.names()``.
        dataset: a name, a Minari id or a file; see ``offlinerl.data.registry.resolve``.
        env: the environment to evaluate in, where it is not the dataset's own.
        seeds: S integers, trained side by side; by default just 0.
        file: a YAML file of settings, or another run's ``config.yaml``, which tells the agent, the dataset and
            the seeds too.
        over: settings that win over all files, ``{"agent": {...}, "train": {...}}``.
        device: "auto", "cpu" or "cuda".
        out: the run's folder, which may not hold anything yet; by default a new one below ``runs/``.
        resume: the folder of a run to go on with, by its own settings; only the number of updates may change.

    Returns:
        What ``summary.json`` holds.

    Raises:
        UserError: anything the user can put right.
        Interrupted: Ctrl-C; the run is saved and can be resumed.
    """
    if resume:
        settings = settings_of(Path(resume), agent_name, dataset, over or {})
        run = Run(settings, pick_device(device), Path(resume))
        run.restore()
        write_config(run.folder, settings)  # it may be longer now
        return run.train()
    about = dict(agent=agent_name, dataset=dataset and str(dataset), env=env, seeds=seeds and list(seeds))
    again = config.read(file).get("fit", {}) if file else {}
    about = dict(seeds=[0], env=None) | again | {key: value for key, value in about.items() if value is not None}
    if "agent" not in about or "dataset" not in about:
        raise UserError("fit needs an agent and a dataset, as in: offlinerl fit xql --dataset kitchen")
    agent_name, seeds = about["agent"], about["seeds"]
    entry = registry.resolve(about["dataset"], about["env"])
    whole = isinstance(seeds, list) and all(type(seed) is int and seed >= 0 for seed in seeds)
    if not whole or not seeds or len(set(seeds)) < len(seeds):
        raise UserError(f"seeds must be a list of different whole numbers from 0 on, not {seeds}")
    settings = dict(fit=about, **config.resolve(agent_name, agents.get(agent_name), entry, file, over))
    folder = Path(out) if out else next_free(Path("runs") / f"{agent_name}-{entry.name.replace('/', '-')}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"the output folder {folder} exists; go on with --resume {folder} or name another --out")
    run = Run(settings, pick_device(device), folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_config(folder, settings)
    return run.train()


class Run(L.Callback):
    """One training: its agent, its source of blocks and its folder, and what happens between blocks.

    A Lightning epoch is the stretch of updates to the next evaluation, and a batch is a block of K updates.

    Args:
        settings: ``{"fit": {...}, "agent": {...}, "train": {...}}``, what ``config.yaml`` holds.
        device: where to train.
        folder: where results go.
    """

    def __init__(self, settings: dict[str, Any], device: torch.device, folder: Path):
        self.settings, self.folder, self.display = settings, folder, Display()
        about, self.train_settings = settings["fit"], settings["train"]
        seeds = about["seeds"]
        self.entry = registry.resolve(about["dataset"], about["env"])
        agent_class = agents.get(about["agent"])
        raw = load.load(self.entry, reward="none")
        self.dataset_score = dataset_score(self.entry, raw)
        data = load.with_reward(raw, self.entry.reward)
        self.display.say(
            f"{self.entry.name}: {len(data):,} transitions in {len(data.episode_starts):,} episodes,"
            f" {data.obs.shape[1]} observations, {data.action.shape[1]} actions"
        )
        self.task = task_of(self.entry, data)
        self.pool = make_pool(self.task, len(seeds), self.train_settings["final_episodes"])
        self.agent: Agent = agent_class(self.pool.spec, seeds, **config.of_agent(settings))
        self.agent.task = json.loads(json.dumps(asdict(self.task)))
        self.agent.to(device)
        self.agent.configure_optimizers()
        self.agent.compile = wants_compile(self.train_settings["compile"], self.train_settings["updates"])
        self.source = OfflineData(
            data.transitions(self.agent.gamma, self.agent.n_step), self.pool.spec, seeds,
            self.train_settings["batch"], self.train_settings["block"], device,
        )  # fmt: skip
        self.evaluated = 0  # the update of the latest evaluation
        self.best: dict[str, Any] | None = None
        self.seconds = dict(total=0.0, training=0.0)  # of earlier sessions, then of this one too
        self.stop = threading.Event()
        self.logged = 0
        self.logger: TensorBoardLogger | None = None

    # The course of a run

    def train(self) -> dict[str, Any]:
        """Train to the end, evaluate the last policy and write the results."""
        agent, updates = self.agent, self.train_settings["updates"]
        seeds = ", ".join(map(str, agent.seeds))
        self.display.say(
            f"{self.settings['fit']['agent']} on {agent.device.type}, seeds {seeds}: updates {agent.updates:,} to"
            f" {updates:,}, into {self.folder}"
        )
        self.began = time.perf_counter()
        try:
            with self.signals(), self.display.bar("training", updates, agent.updates):
                if agent.updates < updates:
                    self.run_trainer()
                if self.stop.is_set():
                    raise self.interrupted()
                summary = self.finish()
        finally:
            self.pool.close()
        self.display.summary(summary, self.folder)
        return summary

    def run_trainer(self) -> None:
        self.logger = TensorBoardLogger(str(self.folder), name="", version="")
        self.source.updates_ahead = self.next_evaluation() - self.agent.updates
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
        updates = self.agent.updates
        if updates and updates % self.train_settings["eval_every"] == 0 and self.evaluated < updates:
            self.evaluate(trainer)

    def next_evaluation(self) -> int:
        every = self.train_settings["eval_every"]
        return min(self.agent.updates // every * every + every, self.train_settings["updates"])

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        now = time.perf_counter()
        self.seconds["training"] += now - self.block_began
        self.block_began = now
        updates = self.agent.updates
        if updates - self.logged >= LOG_EVERY or updates == self.train_settings["updates"]:
            self.log_metrics()
        self.display.advance(updates)
        trainer.should_stop = self.stop.is_set()

    def on_train_epoch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if self.stop.is_set():
            return
        self.save(trainer, "last.ckpt")  # before the evaluation, which might be interrupted
        if self.agent.updates < self.train_settings["updates"]:
            self.evaluate(trainer)
        else:
            trainer.should_stop = True
        self.source.updates_ahead = self.next_evaluation() - self.agent.updates
        self.block_began = time.perf_counter()

    def evaluate(self, trainer: L.Trainer) -> None:
        """Evaluate the policies as they are, and keep them if they are the best so far."""
        result = self.rollouts(self.train_settings["eval_episodes"])
        if result is None:
            trainer.should_stop = True
            return
        self.record(result)
        if self.best is None or result.mean > self.best["mean"]:
            self.best = dict(mean=result.mean, per_seed=result.per_seed.tolist(), update=self.agent.updates)
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
        last = dict(mean=result.mean, ci95=list(result.interval()), per_seed=result.per_seed.tolist())
        better = self.best is None or result.mean > self.best["mean"]
        if better:
            self.best = dict(mean=result.mean, per_seed=last["per_seed"], update=self.agent.updates)
        checkpoint.amend(self.folder / "last.ckpt", self.state_key, self.state_dict())
        if better:
            copy_whole(self.folder / "last.ckpt", self.folder / "best.ckpt")
        seconds = self.seconds["total"] + time.perf_counter() - self.began
        summary = dict(
            agent=self.settings["fit"]["agent"],
            dataset=self.entry.name,
            env=self.task.env_id,
            seeds=list(self.agent.seeds),
            updates=self.agent.updates,
            steps=0,
            score_kind=self.task.score_kind,
            last=dict(last, episodes=self.train_settings["final_episodes"]),
            best=self.best,
            dataset_score=self.dataset_score,
            updates_per_second=self.agent.updates / max(self.seconds["training"], 1e-9),
            seconds=seconds,
            versions=versions(),
        )
        write_whole(self.folder / "summary.json", json.dumps(summary, indent=1))
        plots.curves([self.folder], self.folder / "curves.png")
        return summary

    # What is kept

    def log_metrics(self) -> None:
        """Sync the metrics of the last block and append a row a seed to ``metrics.csv``."""
        self.logged = self.agent.updates
        values = {name: tensor.tolist() for name, tensor in self.agent.metrics.items()}
        rate = self.agent.updates / max(self.seconds["training"], 1e-9)
        rows = [
            dict(update=self.agent.updates, seed=seed, **{name: value[s] for name, value in values.items()},
                 updates_per_second=rate)
            for s, seed in enumerate(self.agent.seeds)
        ]  # fmt: skip
        append(self.folder / "metrics.csv", rows)
        means = {f"train/{name}": sum(value) / len(value) for name, value in values.items()}
        self.logger.log_metrics(means, self.agent.updates)

    def record(self, result: Evaluation) -> None:
        """Append a row an episode to ``evaluations.csv``, in place of an earlier evaluation of this update."""
        self.evaluated = self.agent.updates
        trim(self.folder / "evaluations.csv", self.agent.updates - 1)
        rows = [
            {
                "update": self.agent.updates, "seed": seed, "episode": i, "return": float(result.returns[s, i]),
                "score": float(result.scores[s, i]), "length": int(result.lengths[s, i]),
                "success": int(result.success[s, i]),
            }
            for s, seed in enumerate(self.agent.seeds)
            for i in range(result.scores.shape[1])
        ]  # fmt: skip
        append(self.folder / "evaluations.csv", rows)
        if self.logger is not None:
            self.logger.log_metrics({"evaluation/score": result.mean}, self.agent.updates)
        self.display.evaluated(self.agent.updates, result, self.task.score_kind)

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
        state = saved["callbacks"]["Run"]
        self.source.load_state_dict(state["source"])
        self.evaluated, self.best, self.logged = state["evaluated"], state["best"], state["logged"]
        self.seconds = state["seconds"]
        if self.agent.updates > self.train_settings["updates"]:
            raise UserError(
                f"the run in {self.folder} has {self.agent.updates:,} updates already; give --updates a larger number"
            )
        trim(self.folder / "metrics.csv", self.logged)
        trim(self.folder / "evaluations.csv", self.evaluated)

    @property
    def state_key(self) -> str:
        return "Run"

    # Interruptions

    @contextmanager
    def signals(self) -> Iterator[None]:
        """Let the first Ctrl-C finish the block, so that what is saved is a whole number of updates."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def on_interrupt(*_: Any) -> None:
            if self.stop.is_set():
                raise self.interrupted_at_once()  # at a KeyboardInterrupt, Lightning leaves without a word
            self.stop.set()
            self.display.say("stopping after this block; press Ctrl-C again to stop at once")

        before = signal.signal(signal.SIGINT, on_interrupt)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def interrupted(self) -> Interrupted:
        return Interrupted(
            f"interrupted after {self.agent.updates:,} of {self.train_settings['updates']:,} updates, which are saved;"
            f" go on with: offlinerl fit --resume {self.folder}"
        )

    def interrupted_at_once(self) -> Interrupted:
        lost = "interrupted at once, and what was trained since the last save is lost"
        if not (self.folder / "last.ckpt").is_file():
            return Interrupted(f"{lost}, which is everything; delete {self.folder} and start again")
        return Interrupted(f"{lost}; go on with: offlinerl fit --resume {self.folder}")


class _Stopped(Exception):
    """Raised out of an evaluation by Ctrl-C."""


# Helpers


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
    if missing := {"fit", "agent", "train"} - set(settings):
        raise UserError(f"{folder / 'config.yaml'} lacks its section {missing.pop()!r}; start the run again")
    for flag, given, known in (("agent", agent_name, "agent"), ("--dataset", dataset, "dataset")):
        if given is not None and given != settings["fit"][known]:
            raise UserError(f"the run in {folder} has {flag} {settings['fit'][known]}, not {given}; leave it out")
    changed = dict(over.get("train", {}))
    updates = changed.pop("updates", settings["train"]["updates"])
    if changed or over.get("agent"):
        name = next(iter([*changed, *over.get("agent", {})]))
        raise UserError(f"a resumed run keeps its settings, so {name} cannot be given; only --updates may grow")
    settings["train"]["updates"] = int(updates)
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
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        if new:
            writer.writeheader()
        writer.writerows(rows)


def trim(path: Path, update: int) -> None:
    """Drop the rows of a CSV file that come after ``update``; a resumed run writes them again."""
    if not path.exists():
        return
    with path.open(newline="") as file:
        header, *rows = csv.reader(file)
    column = header.index("update")
    kept = [row for row in rows if len(row) == len(header) and int(row[column]) <= update]
    write_whole(path, "".join(",".join(row) + "\r\n" for row in [header, *kept]))


def write_config(folder: Path, settings: Mapping[str, Any]) -> None:
    stated = yaml.safe_dump(dict(settings, versions=versions()), sort_keys=False)
    about = "Everything needed to run this again, by: offlinerl fit --config config.yaml"
    write_whole(folder / "config.yaml", f"# {about}\n{stated}")


def copy_whole(source: Path, target: Path) -> None:
    with aside(target, overwrite=True) as temporary:
        temporary.write_bytes(source.read_bytes())
