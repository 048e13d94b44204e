"""The loop of a run: what happens before, between and after its blocks of updates."""

from __future__ import annotations

import itertools
import json
import logging
import math
import signal
import threading
import time
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

import lightning as L
import torch

from offlinerl.agents import checkpoint
from offlinerl.agents.base import Agent
from offlinerl.envs.make import Pool
from offlinerl.evaluation import plots
from offlinerl.evaluation.evaluate import evaluate, say_of_diverged
from offlinerl.evaluation.statistics import Evaluation
from offlinerl.evaluation.task import Task
from offlinerl.experience.sources import ActingData, Epoch, Piece
from offlinerl.rollout.collector import mean_of
from offlinerl.training.checkpointer import STATE, Checkpointer
from offlinerl.training.held_out import HeldOut
from offlinerl.training.processes import Team
from offlinerl.training.recorder import Recorder, Silent
from offlinerl.training.schedule import Schedule
from offlinerl.util.atomic import write_json
from offlinerl.util.display import Display, shown
from offlinerl.util.errors import UNSOUND, ActingFailed, Mishap, UserError, reading
from offlinerl.util.folder import versions, write_config
from offlinerl.util.interrupt import AtOnce, Interrupted, Stop, on_interrupt
from offlinerl.util.settings import values_of

EVALUATION_SEED = 1_000_000
"""Reset seed of the first evaluation episode, far from the seeds of training."""


class Companion(Protocol):
    """Another job that goes along with a run, such as to keep all its episodes."""

    def state_dict(self) -> dict[str, Any]: ...  # what a checkpoint holds of it besides the run's state
    def load_state_dict(self, state: dict[str, Any]) -> None: ...  # from a checkpoint
    def note(self) -> str: ...  # what the progress bar says beside the count
    def finish(self) -> None: ...  # called once the run is at its end and saved


class Run(L.Callback):
    """A training. A Lightning epoch is the stretch to the next evaluation, and a batch is a piece of the source.

    Args:
        settings: ``{"fit": {...}, "agent": {...}, "train": {...}}``, what ``config.yaml`` holds.
        folder: where results go.
        display: where lines and the progress bar go.
        agent: what is trained.
        task: what it is evaluated in.
        pool: environments for that; None: it is not evaluated.
        schedule: what it learns from, and until when.
        dataset: what the summary says of the dataset: ``dataset`` its name, ``data`` its size and checksum and
            ``dataset_score``; all None without one.
        held_out: measures the losses on what is not learnt from, if anything is.
        team: the processes that train it together.

    Attributes:
        acting: the source whose agent acts, if there is one.
        companion: another job that goes along, if there is one.
        offline: scores of the policies at the end of the first of two stages, once it is reached.
        measured: the latest metrics on what is held out, a number a seed under every name.
        logged: the latest metrics, likewise.
    """

    def __init__(
        self,
        settings: dict[str, Any],
        folder: Path,
        display: Display,
        agent: Agent,
        task: Task,
        pool: Pool | None,
        schedule: Schedule,
        dataset: dict[str, Any],
        held_out: HeldOut | None = None,
        team: Team | None = None,
    ):
        self.held_out, self.measured, self.logged = held_out, {}, {}
        self.team = team or Team()
        self.settings, self.folder, self.display, self.dataset = settings, folder, display, dataset
        self.train_settings = settings["train"]
        self.agent, self.task, self.pool, self.schedule = agent, task, pool, schedule
        self.clock, self.end = schedule.clock, schedule.end
        sources = [stage.source for stage in schedule.stages]
        self.acting = next((source for source in sources if isinstance(source, ActingData)), None)
        recorder = Recorder if self.team.first else Silent
        self.recorder = recorder(folder, settings, agent.members, self.clock, task.label, display)
        replay = self.acting and self.acting.replay
        self.checkpointer = Checkpointer(folder, agent, replay, self.train_settings["save_every"])
        self.companion: Companion | None = None
        self.offline: dict[str, Any] | None = None
        self.seconds = dict(total=0.0, training=0.0)  # of earlier sessions, then of this one too
        self.configured = False  # whether this process began in a folder that holds the settings
        self.stop, self.stopping = Stop(), False  # whether this process was asked to stop, and whether all are stopping
        self.states: list[dict[str, Any]] = []  # of the random numbers of each process, when they were saved last

    @property
    def now(self) -> int:
        """What the clock shows."""
        return self.counters()[self.clock]

    def counters(self) -> dict[str, int]:
        """The first columns of the run's tables."""
        counted = dict(update=self.agent.updates)
        return counted if self.acting is None else dict(counted, step=self.agent.steps)

    # The course of a run

    def train(self) -> dict[str, Any]:
        """Train to the end, evaluate the last policy and write the results."""
        about = self.settings["fit"]
        together = f" in {self.team.size} processes" if self.team.size > 1 else ""
        if self.pool is not None and self.pool.endless:
            self.display.warn_of_endless(self.pool.name)
        self.display.say(
            f"{about['agent']} on {self.agent.device.type}{together}, {self.in_words()}:"
            f" {self.clock}s {self.now:,} to {self.end:,}, into {self.folder}"
        )
        self.began = self.checkpointer.saved = time.perf_counter()
        self.first = self.now
        self.configured = (self.folder / "config.yaml").is_file()
        try:
            # The first Ctrl-C, or SIGTERM, finishes the piece, so that what is saved is a whole number of updates.
            with on_interrupt(self.heard), self.display.bar("training", self.end, self.now, f"{self.clock}s"):
                self.team.start(self.settings, self.agent.device, self.folder)
                with self.team.losing_none():
                    if self.now < self.end:
                        self.run_trainer()
                    if self.stop.is_set():
                        raise self.interrupted()
                    self.measure()
                summary = self.finish()
        except AtOnce:
            self.stop.set(signal.SIGTERM)  # what the command line heard before there was a handler here
            if self.now > self.first:
                raise self.checkpointer.interrupted_at_once(self.stop.status) from None
            raise self.interrupted() from None
        except Mishap as error:
            if self.companion is not None:  # which says so itself
                raise
            raise self.checkpointer.to_go_on_after(error) from error
        finally:
            if self.team.size > 1:
                self.team.close()
                self.agent.share_batches(1)
            self.recorder.close()
            if self.pool is not None:
                self.pool.close()
            if self.acting is not None:
                self.acting.collector.close()
        self.display.summary(summary, self.folder)
        return summary

    def follow(self) -> None:
        """What the other processes do while the first one does ``train``."""
        self.began = self.checkpointer.saved = time.perf_counter()
        with on_interrupt(self.stop.set), self.display.bar("training", self.end, self.now):
            if self.now < self.end:
                self.run_trainer()
            if not self.stopping:
                self.measure()
        self.team.close()

    def run_trainer(self) -> None:
        with hushed_lightning():
            trainer = L.Trainer(
                **self.team.trainer_settings(),
                accelerator="gpu" if self.agent.device.type == "cuda" else "cpu",
                max_epochs=-1,
                reload_dataloaders_every_n_epochs=1,  # an epoch after an interruption may be shorter than others
                logger=self.recorder.open_loggers() or False,
                callbacks=[self],
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                log_every_n_steps=1,
            )
            self.agent._log_hyperparams = False  # the loggers have the run's settings, which are plain data
            self.piece_began = time.perf_counter()
            with memory_for(self.train_settings["batch"]):
                trainer.fit(self.agent, Epochs(lambda: self.schedule.epoch(self.now)))
            if self.stopping:
                self.save(trainer)

    def on_train_start(self, trainer: L.Trainer, *_: Any) -> None:
        """Make up for an evaluation that was interrupted."""
        heard = self.heard if self.team.first else self.stop.set
        if self.stop.is_set() and self.team.first:
            raise AtOnce
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, lambda number, _: heard(number))  # Lightning's own leaves without a word
        if self.now and self.schedule.due(self.now) and self.recorder.evaluated < self.now:
            self.evaluate(trainer)
        self.piece_began = time.perf_counter()

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.seconds["training"] += time.perf_counter() - self.piece_began
        now = self.now
        if now - self.recorder.logged >= self.recorder.every or now == self.end:
            self.logged = self.team.mean(self.values())
            self.recorder.metrics(self.counters(), self.logged, self.rate(self.agent.updates))
        self.display.advance(now, self.note())
        due = self.agree(trainer, self.stop.is_set(), self.checkpointer.due())
        if due and not self.stopping:
            self.save(trainer)
        self.piece_began = time.perf_counter()

    def on_exception(self, trainer: L.Trainer, _: Any, error: BaseException) -> None:
        """Save what was learnt before an environment failed, which took real time to gather."""
        if isinstance(error, ActingFailed) and self.acting is not None and self.now > self.first:
            self.save(trainer)
            self.display.say(f"what was learnt up to {self.clock} {self.now:,} is saved")

    def agree(self, trainer: L.Trainer, stopped: bool, answer: bool) -> bool:
        """Whether any of the processes answers yes; and if any of them was stopped, all stop."""
        number, answered = self.team.agree((self.stop.signal or 0) * stopped, answer)
        if number:
            self.stop.set(number)
            self.stopping = trainer.should_stop = True
        return bool(answered)

    def save(self, trainer: L.Trainer, best: bool = False) -> None:
        """Save what it takes to go on, in ``last.ckpt`` or as the best so far.

        Raises:
            UserError: the processes do not have the same weights any more.
        """
        self.logged = self.team.mean(self.values())
        if self.configured and not (self.folder / "config.yaml").is_file():
            self.begin_folder_anew()
        if self.team.size > 1:
            streams = dict(update=self.agent.rng.state_dict(), source=self.schedule.stages[0].source.state_dict())
            weights, self.states = zip(*self.team.gather((checksum(self.agent), streams)), strict=True)
            if len(set(weights)) > 1:
                raise UserError(
                    f"the processes do not train the same policy any more: {type(self.agent).__name__} changes what it"
                    " learns by other means than descend; train it with --devices 1"
                )
        (self.checkpointer.save_best if best else self.checkpointer.save)(trainer)

    def begin_folder_anew(self) -> None:
        """Where the run's folder was renamed or deleted, have another one that it can go on from.

        Raises:
            UserError: what it cannot do without was in it: the replay on the disk, or the episodes of a collection.
        """
        replay = self.acting and self.acting.replay
        if self.companion is not None or (replay and replay.files):
            raise UserError(
                f"{self.folder} was renamed or deleted while this run trained, with files that it needs: give it its"
                f" name again, and go on with: {self.checkpointer.go_on}"
            )
        write_config(self.folder, self.settings)
        self.recorder.begin_anew()
        self.display.say(
            f"{self.folder} was renamed or deleted: the run goes on in a new folder of this name, which lacks what was"
            " written before"
        )

    def on_train_epoch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if self.stopping:
            return
        self.save(trainer)  # before the evaluation, which might be interrupted
        if self.now < self.end:
            self.evaluate(trainer)
        else:
            trainer.should_stop = True
        self.piece_began = time.perf_counter()

    def evaluate(self, trainer: L.Trainer) -> None:
        """Evaluate the policies as they are, and keep them if they are the best so far. At a switch, they are compared
        with those at the end, and have as many episodes."""
        self.measure()
        if self.pool is None:
            self.save(trainer)
            return
        result = self.rollouts_on_the_way() if self.team.first else None
        best = result is not None and self.recorder.evaluation(self.counters(), result)
        best = self.agree(trainer, self.team.first and result is None, best)
        if self.stopping:
            return
        if best:
            self.save(trainer, best=True)
        self.save(trainer)

    def rollouts_on_the_way(self) -> Evaluation | None:
        """An evaluation, unless the user stops it."""
        switch = self.now in self.schedule.switches
        try:
            result = self.rollouts(self.train_settings["final_episodes" if switch else "eval_episodes"])
        except Interrupted:
            return None
        if switch:
            self.offline = scores(result)
        return result

    def measure(self) -> None:
        """What is logged of the losses at an evaluation, and on what is held out."""
        self.logged = self.team.mean(self.values())
        if self.held_out is not None:
            self.measured = self.team.mean(self.held_out.metrics())
            self.recorder.held_out(self.counters(), self.measured)
        if self.pool is None:
            self.recorder.evaluated = self.now
            self.display.losses(f"{self.clock} {self.now:>9,}", losses(self.logged), losses(self.measured))

    def rollouts(self, episodes: int) -> Evaluation:
        """An evaluation. Raises ``Interrupted`` if the user stops it."""

        def progress(_: int) -> None:
            if self.stop.is_set():
                raise self.interrupted()

        result = evaluate(self.agent, self.task, episodes, EVALUATION_SEED, self.pool, progress)
        say_of_diverged(self.agent, result, self.display)
        return result

    def finish(self) -> dict[str, Any]:
        """Evaluate the last policy, which is the result, and write the summary and the picture."""
        result = None if self.pool is None else self.rollouts(self.train_settings["final_episodes"])
        if result is not None:
            self.recorder.evaluation(self.counters(), result)
        best = self.recorder.best is not None and self.recorder.best[self.clock] == self.now
        self.checkpointer.finish(self.state_dict(), best)
        summary = dict(
            agent=self.settings["fit"]["agent"],
            env=self.task.env_id,
            task=self.task.facts,
            **self.dataset,
            seeds=list(self.agent.seeds),
            **self.several(result),
            updates=self.agent.updates,
            steps=self.agent.steps,
            clock=f"{self.clock}s",
            score_kind=self.task.label,
            last=result and dict(scores(result), mean_return=float(result.returns.mean())),
            best=self.recorder.best,
            losses=losses(self.logged),
            held_out=losses(self.measured) or None,
            updates_per_second=self.rate(self.agent.updates),
            steps_per_second=self.rate(self.agent.steps),
            seconds=self.seconds["total"] + time.perf_counter() - self.began,
            versions=versions(),
        )
        if self.schedule.switches:
            summary["offline"] = self.offline
        path = self.folder / "summary.json"
        with suppress(OSError, *UNSOUND):  # how many settings a sweep tried is still true of a run that got longer
            summary["settings_tried"] = json.loads(path.read_text("utf-8"))["settings_tried"]
        write_json(path, summary)
        plots.curves(self.folder, self.folder / "curves.png")
        if self.companion is not None:
            self.companion.finish()
        return summary

    # What is shown and kept

    def in_words(self) -> str:
        """What is trained side by side."""
        given = dict(seeds=self.settings["fit"]["seeds"])
        given |= {name: self.settings["agent"][name] for name in values_of(self.agent.members[0])}
        if len(given["seeds"]) == 1:
            given = {"seed" if name == "seeds" else name: of for name, of in given.items()}
        return ", each with ".join(f"{name} {', '.join(map(str, of))}" for name, of in given.items())

    def several(self, result: Evaluation | None) -> dict[str, Any]:
        """What the summary says of settings that have several values: all members, in the order of what is listed
        per seed, and how the seeds of each combination of values did."""
        members = self.agent.members
        if not values_of(members[0]):
            return {}
        values = []
        for of, group in itertools.groupby(range(len(members)), lambda s: values_of(members[s])):
            values.append(dict(settings=of, last=result and scores(result.of([*group]))))
        return dict(members=members, values=values)

    def values(self) -> dict[str, list[float]]:
        """What to log, a number a seed under every name; nothing while some of the metrics are still to come."""
        if self.agent.updates < self.agent.period:
            return {}
        values = {name: tensor.tolist() for name, tensor in self.agent.metrics.items()}
        if self.acting is None:
            return values
        recent = dict(episode_return=self.acting.collector.returns, episode_length=self.acting.collector.lengths)
        means = {name: [sum(of) / len(of) if of else math.nan for of in seeds] for name, seeds in recent.items()}
        return values | means | dict(steps_per_second=[self.rate(self.agent.steps)] * len(self.agent.seeds))

    def note(self) -> str:
        """What the progress bar says beside the count."""
        if self.companion is not None:
            return self.companion.note()
        mean = None if self.acting is None else mean_of(self.acting.collector.returns)
        if mean is not None:
            return f"return {shown(mean)}"
        return "" if self.recorder.score is None else f"score {shown(self.recorder.score)}"

    def rate(self, count: int) -> float:
        """A count over the seconds of training."""
        return count / max(self.seconds["training"], 1e-9)

    def state_dict(self) -> dict[str, Any]:
        sources = {stage.name: stage.source.state_dict() for stage in self.schedule.stages}
        switches = self.schedule.switches
        return dict(
            source=sources if switches else sources.popitem()[1],
            seconds=dict(self.seconds, total=self.seconds["total"] + time.perf_counter() - self.began),
            metrics={name: of_seeds for name, of_seeds in self.logged.items() if name in self.agent.metrics},
            **self.recorder.state_dict(),
            **(dict(processes=list(self.states)) if self.team.size > 1 else {}),
            **(dict(offline=self.offline, switch=switches[0]) if switches else {}),
            **(self.companion.state_dict() if self.companion is not None else {}),
        )

    state_key = STATE

    def restore(self) -> None:
        """Continue from ``last.ckpt``. A run that was stopped before it first saved begins again."""
        state = self.checkpointer.restore()
        if state is None:
            self.recorder.trim()
            return
        last = self.checkpointer.last
        with reading(f"the checkpoint {last}", "use another one of the run, such as best.ckpt"):
            best = {"mean": 0.0, "per_seed": [0.0] * len(self.agent.seeds), self.clock: 0}
            like = dict(evaluated=0, logged=0, seconds=dict(total=0.0, training=0.0), best=state["best"] and best)
            checkpoint.require_like(state, like, STATE)
            self.load_run_state(state)
        if self.now > self.end:
            raise UserError(
                f"the run in {self.folder} has {self.now:,} {self.clock}s already; give"
                f" {self.schedule.stages[-1].flag} a larger number"
            )
        self.recorder.trim()
        if self.now < self.end and (lost := self.checkpointer.restore_replay()):
            self.display.say(
                f"{lost:,} of the oldest steps in the replay on the disk are gone, whose place newer ones took"
                " that were not saved: the run goes on without them, and not as if it had never stopped"
            )

    def load_run_state(self, state: dict[str, Any]) -> None:
        switches, sources = self.schedule.switches, state["source"]
        processes = state.get("processes", [{}])
        if len(processes) != self.team.size:
            raise UserError(
                f"the run in {self.folder} was trained by {len(processes)} processes, whose random numbers do not go on"
                f" in {self.team.size}: put devices: {len(processes)} into its config.yaml again"
            )
        if self.team.size > 1:
            sources = processes[self.team.rank]["source"]
            self.agent.rng.load_state_dict(processes[self.team.rank]["update"])
            self.states = processes  # of a run at its end nothing else is saved
        if not switches:
            sources = {self.schedule.stages[0].name: sources}
        same = [stage.source.load_state_dict(sources[stage.name]) for stage in self.schedule.stages]
        if not all(same):
            self.display.say("the simulator does not repeat itself here: the episodes under way begin again")
        self.recorder.load_state_dict(state)
        self.seconds = state["seconds"]
        metrics = state.get("metrics", {})  # not in the checkpoints of older versions
        self.agent.metrics = {name: torch.tensor(of_seeds, dtype=torch.float64) for name, of_seeds in metrics.items()}
        if self.companion is not None:
            self.companion.load_state_dict(state)
        if not switches:
            return
        self.offline, switch = state["offline"], state.get("switch", switches[0])
        if self.agent.steps and switch != switches[0]:
            raise UserError(
                f"the run in {self.folder} is past its {switch:,} updates on the dataset and has taken"
                f" {self.agent.steps:,} environment steps, so --updates cannot change any more; give --online-steps a"
                " larger number"
            )
        if not self.agent.steps and self.now > switches[0]:
            raise UserError(
                f"the run in {self.folder} has {self.now:,} updates on its dataset already; give --updates a larger"
                " number"
            )

    # Interruptions

    def heard(self, number: int) -> None:
        """What a signal does."""
        if self.stop.is_set():
            if number == signal.SIGTERM:
                return  # it was heard the first time
            raise self.checkpointer.interrupted_at_once()  # at a KeyboardInterrupt, Lightning leaves without a word
        self.stop.set(number)
        if self.now == self.first or self.agent.compiling:  # a scheduler does not wait for a compiler
            raise AtOnce
        again = "" if number == signal.SIGTERM else "; press Ctrl-C again to stop at once"
        self.display.say(f"stopping after this block{again}")

    def interrupted(self) -> Interrupted:
        """To be raised once everything is saved."""
        return self.checkpointer.interrupted(self.now, self.end, self.clock, self.stop.status)


class Epochs:
    """What Lightning iterates: at every epoch anew, the blocks up to the next evaluation."""

    def __init__(self, epoch: Callable[[], Epoch]):
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.epoch())

    def __iter__(self) -> Iterator[Piece]:
        return iter(self.epoch())


def checksum(agent: Agent) -> int:
    """Of the bits of everything that it trains."""
    found = 0
    for tensor in agent.trained_tensors():
        found = zlib.crc32(tensor.detach().reshape(-1).view(torch.uint8).cpu().numpy(), found)
    return found


def losses(metrics: dict[str, list[float]]) -> dict[str, list[float]]:
    """Those of the metrics that a training lowers, a number a seed each."""
    return {name: of_seeds for name, of_seeds in metrics.items() if name.endswith("loss")}


def scores(result: Evaluation) -> dict[str, Any]:
    """What the summary says of an evaluation."""
    return dict(
        mean=result.mean, ci95=list(result.interval()), per_seed=result.per_seed.tolist(),
        episodes=result.scores.shape[1],
    )  # fmt: skip


@contextmanager
def memory_for(batch: int) -> Iterator[None]:
    """Says in one sentence, instead of what torch raises, that there is too little."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        said = any(words in str(error) for words in ("can't allocate memory", "Storage size calculation overflowed"))
        if not said and not isinstance(error, MemoryError | torch.OutOfMemoryError):
            raise
        raise UserError(f"batches of {batch:,} need more memory than there is: give a smaller --batch") from error


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
