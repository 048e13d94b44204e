"""The records of a run: its tables, the series of its loggers and its lines on the screen."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from offlinerl.evaluation.statistics import Evaluation, standing
from offlinerl.util.display import Display
from offlinerl.util.folder import append, clear, trim
from offlinerl.util.settings import columns_of, series_of

PROJECT = "offlinerl"
"""Name of the W&B project and of the MLflow experiment."""

MLFLOW = os.environ.get("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
"""Where MLflow stores runs; its own default."""


class Recorder:
    """Records metrics and evaluations of every member, in tables and loggers.

    Args:
        folder: of the run.
        settings: of the run, for the loggers.
        members: S of them; see ``offlinerl.util.settings.members``.
        clock: "update" or "step", the column that the run is counted by.
        score_kind: the name of the score.
        display: where messages go.

    Attributes:
        logged: the clock's count when metrics were last logged.
        evaluated: the clock's count at the latest evaluation.
        score: of the latest evaluation; None before the first one.
        best: the mean of the best evaluation, each seed's score and the clock's count.
    """

    def __init__(
        self, folder: Path, settings: Mapping[str, Any], members: Sequence[Mapping[str, Any]], clock: str,
        score_kind: str, display: Display,
    ):  # fmt: skip
        self.folder, self.settings, self.clock = folder, settings, clock
        self.score_kind, self.display = score_kind, display
        self.members = [columns_of(member) for member in members]
        self.ends = [series_of(member) for member in members]
        self.names = settings["train"]["logger"].split(",")
        self.every = settings["train"]["log_every"]
        self.logged = self.evaluated = 0
        self.score: float | None = None
        self.best: dict[str, Any] | None = None
        self.loggers: dict[str, Logger] = {}
        self.versions: dict[str, str | None] = {}  # run ids of W&B and MLflow

    def open_loggers(self) -> list[Logger]:
        """Lightning's loggers, which continue the series from before an interruption."""
        title, folder = self.folder.resolve().name, str(self.folder)
        make = dict(
            tensorboard=lambda _: TensorBoardLogger(folder, name="", version="", default_hp_metric=False),
            wandb=lambda run: WandbLogger(title, folder, id=run, project=PROJECT, resume="allow"),
            mlflow=lambda run: MLFlowLogger(PROJECT, title, MLFLOW, run_id=run),
        )
        for name in self.names:
            if name in make:
                self.loggers[name] = make[name](self.versions.get(name))
                if name not in self.versions:  # MLflow raises if a logged parameter changes
                    self.loggers[name].log_hyperparams(self.settings)
        return list(self.loggers.values())

    def metrics(self, counters: Mapping[str, int], values: Mapping[str, Sequence[float]], rate: float) -> None:
        """Log metrics and append one row per seed to ``metrics.csv``; the names must be the same in every call that has
        any.

        Args:
            counters: the first columns.
            values: S numbers for every name.
            rate: updates per second.
        """
        self.logged = counters[self.clock]
        if not values:
            return
        if "csv" in self.names:
            append(self.folder / "metrics.csv", self._rows(counters, values, updates_per_second=rate))
        self._log({f"train/{name}": value for name, value in values.items()}, self.logged)

    def held_out(self, counters: Mapping[str, int], values: Mapping[str, Sequence[float]]) -> None:
        """Append one row per seed to ``held_out.csv``, with metrics on held-out episodes; rows with the same count are
        replaced."""
        now, path = counters[self.clock], self.folder / "held_out.csv"
        clear(path, self.clock, now)
        append(path, self._rows(counters, values))
        self._log({f"held_out/{name}": value for name, value in values.items()}, now)

    def _rows(
        self, counters: Mapping[str, int], values: Mapping[str, Sequence[float]], **more: float
    ) -> list[dict[str, Any]]:
        """One row per seed, with its own number of every name."""
        return [
            {**counters, **member, **{name: of[s] for name, of in values.items()}, **more}
            for s, member in enumerate(self.members)
        ]

    def evaluation(self, counters: Mapping[str, int], result: Evaluation) -> bool:
        """Append one row per episode to ``evaluations.csv``, replacing an earlier evaluation with the same count.
        Returns whether it is the best evaluation so far."""
        now = self.evaluated = counters[self.clock]
        self.score = result.mean
        clear(self.folder / "evaluations.csv", self.clock, now)
        rows = [
            {
                **counters, **member, "episode": i, "return": float(result.returns[s, i]),
                "score": float(result.scores[s, i]), "length": int(result.lengths[s, i]),
                "success": "nan" if result.success is None else int(result.success[s, i]),
            }
            for s, member in enumerate(self.members)
            for i in range(result.scores.shape[1])
        ]  # fmt: skip
        append(self.folder / "evaluations.csv", rows)
        self._log({"evaluation/score": result.per_seed.tolist()}, now)
        when = f"{self.clock} {now:>9,}"
        self.display.evaluated(when, self.score_kind, result.mean, result.per_seed, result.interval())
        better = self.is_best(result)
        if better:
            self.best = {"mean": result.mean, "per_seed": result.per_seed.tolist(), self.clock: now}
        return better

    def is_best(self, result: Evaluation) -> bool:
        """Whether this is better than every earlier evaluation."""
        return self.best is None or standing(result.per_seed.tolist()) > standing(self.best["per_seed"])

    def reopen(self) -> None:
        """Make TensorBoard write new files, after the run's folder was lost and created again."""
        if logger := self.loggers.get("tensorboard"):
            with suppress(OSError):  # data not yet written is lost
                logger.experiment.close()
            logger._experiment = None  # Lightning creates another one

    def close(self) -> None:
        """Finish the loggers."""
        for logger in self.loggers.values():
            logger.finalize("success")
        if "wandb" in self.loggers:
            self.loggers["wandb"].experiment.finish()

    def _log(self, values: Mapping[str, Sequence[float]], now: int) -> None:
        series = {f"{name}/{end}": of[s] for name, of in values.items() for s, end in enumerate(self.ends)}
        for logger in self.loggers.values():
            logger.log_metrics(series, now)

    def trim(self) -> None:
        """Drop the rows of the tables that a resumed run will write again."""
        trim(self.folder / "metrics.csv", self.clock, self.logged)
        trim(self.folder / "evaluations.csv", self.clock, self.evaluated, ("score",))
        trim(self.folder / "held_out.csv", self.clock, self.evaluated)

    def state_dict(self) -> dict[str, Any]:
        versions = self.versions | {name: self.loggers[name].version for name in self.loggers if name != "tensorboard"}
        return dict(evaluated=self.evaluated, best=self.best, logged=self.logged, loggers=versions)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.evaluated, self.best, self.logged = state["evaluated"], state["best"], state["logged"]
        self.versions = state.get("loggers", {})  # checkpoints of older versions lack it


class Silent(Recorder):
    """A recorder that writes nothing, for ranks above 0."""

    def open_loggers(self) -> list[Logger]:
        return []

    def metrics(self, counters: Mapping[str, int], values: Mapping[str, Sequence[float]], rate: float) -> None:
        self.logged = counters[self.clock]

    def held_out(self, counters: Mapping[str, int], values: Mapping[str, Sequence[float]]) -> None: ...

    def trim(self) -> None: ...
