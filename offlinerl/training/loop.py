"""The training loop of a run: updates, evaluations, logging, checkpoints and interruptions."""

from __future__ import annotations

import itertools
import json
import logging
import math
import signal
import statistics
import threading
import time
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint

from offlinerl.agents import checkpoint
from offlinerl.agents.base import Agent
from offlinerl.envs.pool import Pool
from offlinerl.evaluation import plots
from offlinerl.evaluation.evaluate import evaluate, say_of_diverged
from offlinerl.evaluation.statistics import Evaluation, standing
from offlinerl.evaluation.task import Task
from offlinerl.experience.sources import ActingData, Epoch, Piece
from offlinerl.rollout.collector import mean_of
from offlinerl.training.checkpointer import STATE, Checkpointer
from offlinerl.training.config import TrainConfig
from offlinerl.training.held_out import HeldOut
from offlinerl.training.processes import Team
from offlinerl.training.recorder import Recorder, Silent
from offlinerl.training.schedule import Schedule
from offlinerl.util.atomic import write_json
from offlinerl.util.device import memory_for
from offlinerl.util.display import Display, shown
from offlinerl.util.errors import UNSOUND, ActingFailed, Mishap, UserError, counted, reading
from offlinerl.util.folder import versions, write_config
from offlinerl.util.interrupt import AtOnce, Interrupted, Stop, on_interrupt
from offlinerl.util.settings import named, values_of

EVALUATION_SEED = 1_000_000
"""Reset seed of the first evaluation episode, far from the reset seeds of training."""

ROWS = 20
"""Rows of metrics per seed in a run that is shorter than ``log_every``."""


class Companion:
    """An additional task during a run, such as recording all its episodes; by itself it does nothing."""

    keeps_files = False
    """Whether it writes to the run's folder all the time, and has its own command to resume the run."""

    def state_dict(self) -> dict[str, Any]:
        """Entries to add to the run's state in a checkpoint."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore them from the run's state in a checkpoint."""

    def note(self) -> str:
        """Text of the progress bar, after the count."""
        return ""

    def finish(self) -> None:
        """Called when the run has ended and is saved."""


class Run(L.Callback):
    """One training run. A Lightning epoch lasts until the next evaluation, and a Lightning batch is a ``Piece`` of the
    source.

    Args:
        settings: ``{"fit": {...}, "agent": {...}, "train": {...}}``, the content of ``config.yaml``.
        folder: where results go.
        display: where messages and the progress bar go.
        agent: to train.
        task: to evaluate the agent in.
        pool: environments for evaluation; None: no evaluation in an environment.
        schedule: the sources to learn from, and for how long.
        dataset: what the summary states about the dataset: ``dataset``, its name, ``data``, its size and checksum, and
            ``dataset_score``; all None without a dataset.
        held_out: measures the losses on held-out episodes, if there are any.
        team: the processes of data-parallel training.
        resources: closes the environments; ``train`` does so at its end.

    Attributes:
        acting: the source that acts in an environment, if there is one.
        companion: an additional task during the run; by default one that does nothing.
        callbacks: of Lightning, called after this one. ``trainer.callback_metrics`` has the metrics of the agent, see
            ``Agent.report``, and at the end of an epoch, when the policies are evaluated, the ``score`` and the metrics
            ``held_out/NAME``, all as means over the seeds. One that sets ``trainer.should_stop`` ends the run.
        offline: scores of the policies at the end of the first of two stages, once it is reached.
        measured: the latest metrics on held-out episodes, by name, one number per seed.
        least: without an environment, the lowest held-out loss that an agent is judged by: its ``mean`` over the seeds,
            ``per_seed``, the name of the ``loss`` and the clock's count.
        logged: the latest training metrics, by name, one number per seed.
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
        resources: ExitStack | None = None,
    ):
        self.resources = resources or ExitStack()
        self.held_out, self.measured, self.logged = held_out, {}, {}
        self.least: dict[str, Any] | None = None
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
        self.companion = Companion()
        self.callbacks: Sequence[L.Callback] = ()
        self.offline: dict[str, Any] | None = None
        self.final: Evaluation | None = None  # of the last policy, if it was evaluated before the training ended
        self.seconds = dict(total=0.0, training=0.0)  # total: of earlier sessions; training: including this one
        self.configured = False  # whether config.yaml existed when training began
        self.stop, self.stopping = Stop(), False  # whether this process was asked to stop; whether all are stopping
        self.states: list[dict[str, Any]] = []  # random states of each process at the last save

    @property
    def now(self) -> int:
        """The current count of updates or steps, by the run's clock."""
        return self.counters()[self.clock]

    def counters(self) -> dict[str, int]:
        """The counters in the first columns of the run's tables."""
        counted = dict(update=self.agent.updates)
        return counted if self.acting is None else dict(counted, step=self.agent.steps)

    # The course of a run

    def train(self) -> dict[str, Any]:
        """Train to the end, evaluate the last policy and write the results."""
        about = self.settings["fit"]
        together = f" in {self.team.size} processes" if self.team.size > 1 else ""
        if self.pool is not None and self.pool.endless:
            self.display.warn_of_endless(self.pool.name)
        ahead = f"{self.clock}s {self.now:,} to {self.end:,}"
        if self.now == self.end:
            ahead = f"all {self.end:,} {self.clock}s are done already, and the last policy is evaluated again"
            if self.end < self.schedule.end:
                ahead += f"; to continue to {self.schedule.end:,}, give a larger --train.patience, or null"
        self.display.say(
            f"{about['agent']} on {self.agent.device.type}{together}, {self.in_words()}: {ahead}, into {self.folder}"
        )
        self.say_of_sparse_metrics()
        self.began = self.checkpointer.saved = time.perf_counter()
        self.first = self.now
        self.configured = (self.folder / "config.yaml").is_file()
        try:
            # The first Ctrl-C or SIGTERM lets the piece finish, so that the saved state is that after a whole update.
            with on_interrupt(self.on_signal), self.display.bar("training", self.end, self.now, f"{self.clock}s"):
                self.team.start(self.settings, self.agent.device, self.folder)
                with self.team.reporting_lost():
                    if self.now < self.end:
                        self.run_trainer()
                    if self.stop.is_set():
                        raise self.interrupted()
                    best = self.measure()
                summary = self.finish(best)
        except AtOnce:
            self.stop.set(signal.SIGTERM)  # the command line's handler got it before this one was installed
            if self.now > self.first:
                raise self.checkpointer.interrupted_at_once(self.stop.status) from None
            raise self.interrupted() from None
        except Mishap as error:
            if self.companion.keeps_files:  # it reports how to resume itself
                raise
            raise self.checkpointer.to_go_on_after(error) from error
        finally:
            if self.team.size > 1:
                self.team.close()
                self.agent.share_batches(1)
            self.recorder.close()
            self.resources.close()
        self.display.summary(summary, self.folder)
        return summary

    def say_of_sparse_metrics(self) -> None:
        """Report if the user wants metrics more often than blocks end, which is when they are logged."""
        stage, every = self.schedule.stages[0], self.recorder.every
        block = min(stage.source.piece, stage.eval_every)
        if every < block and every != TrainConfig.log_every:
            more = ": for more, give a smaller --train.block" if "block" in self.train_settings else ""
            self.display.say(f"metrics come once per block of {block:,} {self.clock}s, and not every {every:,}{more}")

    def follow(self) -> None:
        """What ranks above 0 do while rank 0 runs ``train``."""
        self.began = self.checkpointer.saved = time.perf_counter()
        with on_interrupt(self.stop.set), self.display.bar("training", self.end, self.now):
            if self.now < self.end:
                self.run_trainer()
            if not self.stopping:
                self.measure()
        self.team.close()

    def run_trainer(self) -> None:
        with quiet_lightning():
            trainer = L.Trainer(
                **self.team.trainer_settings(),
                accelerator="gpu" if self.agent.device.type == "cuda" else "cpu",
                max_epochs=-1,
                reload_dataloaders_every_n_epochs=1,  # the first epoch after an interruption may be shorter
                logger=self.recorder.open_loggers() or False,
                callbacks=[self, *self.callbacks],
                default_root_dir=self.folder,
                enable_checkpointing=any(isinstance(one, Checkpoint) for one in self.callbacks),
                enable_progress_bar=False,
                enable_model_summary=False,
                log_every_n_steps=1,
            )
            self.piece_began = time.perf_counter()
            batch = self.train_settings["batch"]
            with (
                self.recorded(),
                memory_for(f"batches of {batch:,} need more memory than is available: give a smaller --batch"),
            ):
                trainer.fit(self.agent, Epochs(lambda: self.schedule.epoch(self.now)))
            if self.stopping:
                self.save(trainer)
            elif self.recorder.logged < self.now:  # the run ends before its schedule does
                self.record()
            if self.now < self.end and not self.stop.is_set():
                self.save(trainer)
                self.end = self.now
                self.display.say(f"a callback ended the run after {self.clock} {self.now:,}")

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Keep the agent from logging what the recorder logs."""
        before = self.agent._log_hyperparams
        self.agent._log_hyperparams = self.agent.reports = False
        try:
            yield
        finally:
            self.agent._log_hyperparams, self.agent.reports = before, True

    def record(self) -> None:
        """Log the current metrics."""
        self.logged = self.team.mean(self.values())
        self.recorder.metrics(self.counters(), self.logged, self.rate(self.agent.updates))

    def on_train_start(self, trainer: L.Trainer, *_: Any) -> None:
        """Run an evaluation that was interrupted in an earlier session."""
        heard = self.on_signal if self.team.first else self.stop.set
        if self.stop.is_set() and self.team.first:
            raise AtOnce
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, lambda number, _: heard(number))  # Lightning's own handler exits silently
        if self.now and self.schedule.due(self.now) and self.recorder.evaluated < self.now:
            self.evaluate(trainer)
        self.piece_began = time.perf_counter()

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.seconds["training"] += time.perf_counter() - self.piece_began
        now = self.now
        every = self.recorder.every if self.recorder.every <= self.end else -(-self.end // ROWS)
        if now - self.recorder.logged >= every or now == self.end:
            self.record()
        if self.callbacks:
            self.agent.report(logger=False)
        self.display.advance(now, self.note())
        due = self.agree(trainer, self.stop.is_set(), self.checkpointer.due())
        if due and not self.stopping:
            self.save(trainer)
        self.piece_began = time.perf_counter()

    def on_exception(self, trainer: L.Trainer, _: Any, error: BaseException) -> None:
        """Save what was learned before an environment failed, since experience takes time to collect."""
        if isinstance(error, ActingFailed) and self.acting is not None and self.now > self.first:
            self.save(trainer)
            self.display.say(f"the training up to {self.clock} {self.now:,} is saved")

    def agree(self, trainer: L.Trainer, stopped: bool, answer: bool) -> bool:
        """Whether any of the processes answers yes. If any of them was asked to stop, all stop."""
        number, answered = self.team.agree((self.stop.signal or 0) * stopped, answer)
        if number:
            self.stop.set(number)
            self.stopping = trainer.should_stop = True
        return bool(answered)

    def save(self, trainer: L.Trainer, best: bool = False) -> None:
        """Save everything needed to resume, in ``last.ckpt``, or in ``best.ckpt``.

        Raises:
            UserError: the processes no longer have the same weights.
        """
        self.logged = self.team.mean(self.values())
        if self.configured and not (self.folder / "config.yaml").is_file():
            self.recreate_folder()
        if self.team.size > 1:
            streams = dict(update=self.agent.rng.state_dict(), source=self.schedule.stages[0].source.state_dict())
            weights, self.states = zip(*self.team.gather((checksum(self.agent), streams)), strict=True)
            if len(set(weights)) > 1:
                raise UserError(
                    f"the processes no longer train the same policy: {type(self.agent).__name__} changes parameters by"
                    " other means than descend; train it with --devices 1"
                )
        replay = ": give --train.replay disk, or a smaller --train.capacity" if self.checkpointer.replay else ""
        with memory_for(f"saving needs more memory than is available{replay}"):
            (self.checkpointer.save_best if best else self.checkpointer.save)(trainer)

    def recreate_folder(self) -> None:
        """Create the run's folder again after it was renamed or deleted, so that the run can be resumed from it.

        Raises:
            UserError: the folder held files that the run needs: a replay buffer on disk, or a collection's episodes.
        """
        replay = self.acting and self.acting.replay
        if self.companion.keeps_files or (replay and replay.files):
            raise UserError(
                f"{self.folder} was renamed or deleted during this run, with files that the run needs: restore its"
                f" name, and resume with: {self.checkpointer.go_on}"
            )
        write_config(self.folder, self.settings)
        self.recorder.reopen()
        self.display.say(
            f"{self.folder} was renamed or deleted: the run continues in a new folder of this name, without the files"
            " written before"
        )

    def on_train_epoch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if not self.stopping:
            self.save(trainer)  # before the evaluation, which might be interrupted
            if self.now < self.end and not (trainer.should_stop and self.now not in self.schedule.switches):
                self.evaluate(trainer)
            elif self.callbacks and self.pool is not None:  # which are told the score of the last policy too
                with suppress(Interrupted):
                    self.final = self.rollouts(self.train_settings["final_episodes"])
            trainer.should_stop |= self.now == self.end
        self.tell_callbacks()
        self.piece_began = time.perf_counter()

    def tell_callbacks(self) -> None:
        """Give the results of the latest evaluation to the user's callbacks."""
        if not self.callbacks:
            return
        if self.held_out is not None and (self.now == self.end or not self.measured):
            self.measured = self.team.mean(self.held_out.metrics())
        found = {f"held_out/{name}": sum(of) / len(of) for name, of in self.measured.items()}
        if self.pool is not None:
            latest = self.recorder.score if self.final is None else self.final.mean
            found["score"] = math.nan if latest is None else latest
        self.agent.log_dict(found, logger=False, batch_size=1)

    def evaluate(self, trainer: L.Trainer) -> None:
        """Evaluate the current policies, and save them if they are the best so far. At a switch between stages they get
        as many episodes as at the end, since both are compared."""
        best = self.measure()
        if self.pool is not None:
            result = self.interim_evaluation() if self.team.first else None
            best = result is not None and self.recorder.evaluation(self.counters(), result)
            best = self.agree(trainer, self.team.first and result is None, best)
            if self.stopping:
                return
        if best:
            self.save(trainer, best=True)
        self.save(trainer)
        if self.team.agree(self.out_of_patience())[0]:
            self.end, trainer.should_stop = self.now, True
            evaluations = counted(self.train_settings["patience"], "evaluation")
            self.display.say(f"{self.clock} {self.now:,}: {evaluations} in a row were not the best, so the run ends")

    def out_of_patience(self) -> bool:
        """Whether so many evaluations in a row were not the best that the run ends before its schedule does."""
        patience, best = self.train_settings["patience"], self.least if self.pool is None else self.recorder.best
        since = self.recorder.evaluated - (best[self.clock] if best else 0)
        return patience is not None and since >= patience * self.schedule.stages[0].eval_every

    def interim_evaluation(self) -> Evaluation | None:
        """Evaluate the current policies; None if the user interrupts the evaluation."""
        switch = self.now in self.schedule.switches
        try:
            result = self.rollouts(self.train_settings["final_episodes" if switch else "eval_episodes"])
        except Interrupted:
            return None
        if switch:
            self.offline = scores(result)
        return result

    def measure(self) -> bool:
        """Record the current metrics at an evaluation, and measure those on held-out episodes. Without an environment,
        these may tell that the agent is the best so far; returns whether they do."""
        self.logged = self.team.mean(self.values())
        if self.held_out is not None:
            self.measured = self.team.mean(self.held_out.metrics())
            self.recorder.held_out(self.counters(), self.measured)
        if self.pool is not None:
            return False
        self.recorder.evaluated = self.now
        self.display.losses(f"{self.clock} {self.now:>9,}", losses(self.logged), losses(self.measured))
        name = self.agent.judged_by
        if name not in self.measured:
            return False
        found, before = self.measured[name], self.least
        known = [loss for loss in found if math.isfinite(loss)]  # those of diverged seeds are not
        if before is not None and before[self.clock] == self.now:
            return True  # measured again
        if not known or (before is not None and order(found) <= order(before["per_seed"])):
            return False
        self.least = {"loss": name, "mean": statistics.fmean(known), "per_seed": found, self.clock: self.now}
        return True

    def rollouts(self, episodes: int) -> Evaluation:
        """Evaluate the current policies.

        Raises:
            Interrupted: the user stops the evaluation.
        """

        def progress(_: int) -> None:
            if self.stop.is_set():
                raise self.interrupted()

        result = evaluate(self.agent, self.task, episodes, EVALUATION_SEED, self.pool, progress)
        say_of_diverged(self.agent, result, self.display)
        return result

    def finish(self, best: bool) -> dict[str, Any]:
        """Evaluate the last policy, which is the run's result, and write the summary and the plot; ``best`` is what
        ``measure`` returned."""
        result = self.final
        if result is None and self.pool is not None:
            result = self.rollouts(self.train_settings["final_episodes"])
        if result is not None:
            self.recorder.evaluation(self.counters(), result)
            best = self.recorder.best is not None and self.recorder.best[self.clock] == self.now
        else:
            self.say_of_infinite_weights()
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
            best_held_out=self.least,
            updates_per_second=self.rate(self.agent.updates),
            steps_per_second=self.rate(self.agent.steps),
            seconds=self.seconds["total"] + time.perf_counter() - self.began,
            versions=versions(),
        )
        if self.schedule.switches:
            summary["offline"] = self.offline
        path = self.folder / "summary.json"
        with suppress(OSError, *UNSOUND):  # a run that was extended keeps the count that a sweep wrote
            summary["settings_tried"] = json.loads(path.read_text("utf-8"))["settings_tried"]
        write_json(path, summary)
        plots.curves(self.folder, self.folder / "curves.png")
        self.companion.finish()
        return summary

    def say_of_infinite_weights(self) -> None:
        """Report the seeds whose weights are not finite, which an evaluation would have shown."""
        for s, member in enumerate(self.agent.members):
            if not all(p[s].isfinite().all() for p in self.agent.parameters()):
                self.display.say(
                    f"the training of {named(member)} diverged, and its weights are not finite; lower the learning"
                    " rate, or normalise large observations with --agent.normalize true"
                )

    # Reports and state

    def in_words(self) -> str:
        """The seeds and the settings' values that are trained side by side, in words."""
        given = dict(seeds=self.settings["fit"]["seeds"])
        given |= {name: self.settings["agent"][name] for name in values_of(self.agent.members[0])}
        if len(given["seeds"]) == 1:
            given = {"seed" if name == "seeds" else name: of for name, of in given.items()}
        return ", each with ".join(f"{name} {', '.join(map(str, of))}" for name, of in given.items())

    def several(self, result: Evaluation | None) -> dict[str, Any]:
        """Entries of the summary for settings with several values: all members, in the order of the lists per seed, and
        the scores of the seeds for each combination of values."""
        members = self.agent.members
        if not values_of(members[0]):
            return {}
        values = []
        for of, group in itertools.groupby(range(len(members)), lambda s: values_of(members[s])):
            values.append(dict(settings=of, last=result and scores(result.of([*group]))))
        return dict(members=members, values=values)

    def values(self) -> dict[str, list[float]]:
        """Metrics to log, by name, one number per seed; empty until every kind of update has been made once."""
        if self.agent.updates < self.agent.period:
            return {}
        values = {name: tensor.tolist() for name, tensor in self.agent.metrics.items()}
        if self.acting is None:
            return values
        recent = dict(episode_return=self.acting.collector.returns, episode_length=self.acting.collector.lengths)
        means = {name: [sum(of) / len(of) if of else math.nan for of in seeds] for name, seeds in recent.items()}
        return values | means | dict(steps_per_second=[self.rate(self.agent.steps)] * len(self.agent.seeds))

    def note(self) -> str:
        """Text of the progress bar, after the count."""
        if note := self.companion.note():
            return note
        mean = None if self.acting is None else mean_of(self.acting.collector.returns)
        if mean is not None:
            return f"return {shown(mean)}"
        return "" if self.recorder.score is None else f"score {shown(self.recorder.score)}"

    def rate(self, count: int) -> float:
        """A count divided by the seconds of training."""
        return count / max(self.seconds["training"], 1e-9)

    def state_dict(self) -> dict[str, Any]:
        sources = {stage.name: stage.source.state_dict() for stage in self.schedule.stages}
        switches = self.schedule.switches
        return dict(
            source=sources if switches else sources.popitem()[1],
            seconds=dict(self.seconds, total=self.seconds["total"] + time.perf_counter() - self.began),
            metrics={name: of_seeds for name, of_seeds in self.logged.items() if name in self.agent.metrics},
            **self.recorder.state_dict(),
            **(dict(least=self.least) if self.least else {}),
            **(dict(processes=list(self.states)) if self.team.size > 1 else {}),
            **(dict(offline=self.offline, switch=switches[0]) if switches else {}),
            **self.companion.state_dict(),
        )

    state_key = STATE

    def restore(self) -> None:
        """Continue from ``last.ckpt``. A run that was stopped before its first save starts again."""
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
        if self.out_of_patience():
            self.end = self.now
        if self.now > self.end:
            raise UserError(
                f"the run in {self.folder} has {self.now:,} {self.clock}s already; give"
                f" {self.schedule.stages[-1].flag} a larger number"
            )
        self.recorder.trim()
        if self.now < self.end and (lost := self.checkpointer.restore_replay()):
            self.display.say(
                f"{lost:,} of the oldest steps in the replay buffer on disk were overwritten by newer ones that"
                " were not saved: the run continues without them, and not as if it had never stopped"
            )

    def load_run_state(self, state: dict[str, Any]) -> None:
        switches, sources = self.schedule.switches, state["source"]
        processes = state.get("processes", [{}])
        if len(processes) != self.team.size:
            raise UserError(
                f"the run in {self.folder} was trained by {len(processes)} processes, whose random numbers cannot"
                f" continue in {self.team.size}: set devices: {len(processes)} in its config.yaml again"
            )
        if self.team.size > 1:
            sources = processes[self.team.rank]["source"]
            self.agent.rng.load_state_dict(processes[self.team.rank]["update"])
            self.states = processes  # a run at its end saves its state without collecting them again
        if not switches:
            sources = {self.schedule.stages[0].name: sources}
        same = [stage.source.load_state_dict(sources[stage.name]) for stage in self.schedule.stages]
        if not all(same):
            self.display.say("the simulator is not reproducible here: the current episodes start again")
        self.recorder.load_state_dict(state)
        self.seconds, self.least = state["seconds"], state.get("least")
        metrics = state.get("metrics", {})  # checkpoints of older versions lack it
        self.agent.metrics = {name: torch.tensor(of_seeds, dtype=torch.float64) for name, of_seeds in metrics.items()}
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

    def on_signal(self, number: int) -> None:
        """Handle a signal: stop after the current piece, or at once at a second Ctrl-C."""
        if self.stop.is_set():
            if number == signal.SIGTERM:
                return  # it is stopping already
            raise self.checkpointer.interrupted_at_once()  # Lightning would exit silently at a KeyboardInterrupt
        self.stop.set(number)
        if self.now == self.first or self.agent.compiling:  # a cluster's scheduler does not wait for the compiler
            raise AtOnce
        again = "" if number == signal.SIGTERM else "; press Ctrl-C again to stop at once"
        self.display.say(f"stopping after this block{again}")

    def interrupted(self) -> Interrupted:
        """The exception to raise after everything is saved."""
        return self.checkpointer.interrupted(self.now, self.end, self.clock, self.stop.status)


class Epochs:
    """The data loader for Lightning: every epoch yields the blocks up to the next evaluation."""

    def __init__(self, epoch: Callable[[], Epoch]):
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.epoch())

    def __iter__(self) -> Iterator[Piece]:
        return iter(self.epoch())


def order(losses: list[float]) -> tuple[int, float]:
    """Sort key of losses per seed, lower ones last; see ``standing``."""
    return standing([-loss if math.isfinite(loss) else math.nan for loss in losses])


def checksum(agent: Agent) -> int:
    """A checksum of all tensors that the agent trains."""
    found = 0
    for tensor in agent.trained_tensors():
        found = zlib.crc32(tensor.detach().reshape(-1).view(torch.uint8).cpu().numpy(), found)
    return found


def losses(metrics: dict[str, list[float]]) -> dict[str, list[float]]:
    """The losses among the metrics, one number per seed each."""
    return {name: of_seeds for name, of_seeds in metrics.items() if name.endswith("loss")}


def scores(result: Evaluation) -> dict[str, Any]:
    """The entry of an evaluation in the summary."""
    return dict(
        mean=result.mean, ci95=list(result.interval()), per_seed=result.per_seed.tolist(),
        episodes=result.scores.shape[1],
    )  # fmt: skip


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Silence Lightning's advice on data loaders and the warnings about its use of deprecated functions."""
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
