"""The schedule of a run: its stages and evaluations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from offlinerl.experience.sources import Epoch, Source


@dataclass(frozen=True)
class Stage:
    """A part of a run that learns from one source.

    Attributes:
        name: "offline" or "online".
        source: of its blocks.
        end: the run's count at its end.
        eval_every: the count between two evaluations.
        flag: the command-line flag for its length.
        scale: units of the source per unit of the run's clock: the environment steps per update, possibly a fraction,
            where a run that is counted in updates acts, else 1.
    """

    name: str
    source: Source
    end: int
    eval_every: int
    flag: str
    scale: Fraction = Fraction(1)


class Schedule:
    """The stages of a run, one after another.

    Args:
        clock: "update" or "step", what the run is counted in; the same in all stages.
        stages: in the order of their ends; the evaluations of each are counted from its beginning.
    """

    def __init__(self, clock: str, stages: Sequence[Stage]):
        self.clock, self.stages = clock, tuple(stages)
        self.end = self.stages[-1].end
        self.switches = [stage.end for stage in self.stages[:-1]]

    def stage(self, now: int) -> Stage:
        """The current stage, or the last one if the run is over."""
        return self.stages[sum(now >= switch for switch in self.switches)]

    def _since(self, now: int) -> int:
        """The count since the beginning of the current stage."""
        return now - max((switch for switch in self.switches if switch <= now), default=0)

    def due(self, now: int) -> bool:
        """Whether an evaluation is due at this count."""
        return self._since(now) % self.stage(now).eval_every == 0

    def epoch(self, now: int) -> Epoch:
        """The blocks up to the next evaluation or the end of the stage."""
        stage = self.stage(now)
        ahead = min(stage.eval_every - self._since(now) % stage.eval_every, stage.end - now)
        return stage.source.epoch(int(ahead * stage.scale))
