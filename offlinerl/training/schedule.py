"""What is due when in a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from offlinerl.experience.sources import Epoch, Source


@dataclass(frozen=True)
class Stage:
    """A part of a run, which learns from one source.

    Attributes:
        name: "offline" or "online".
        source: of its blocks.
        end: what the run's clock shows at its end.
        eval_every: what the clock counts from one evaluation to the next.
        flag: what makes it longer.
        scale: what the source counts while the clock counts one: the environment steps to an update, in a stage that
            acts in a run that counts updates.
    """

    name: str
    source: Source
    end: int
    eval_every: int
    flag: str
    scale: int = 1


class Schedule:
    """The stages of a run, one after another.

    Args:
        clock: what the run counts, "update" or "step", the same in all stages.
        stages: by their ends; evaluations in each are counted from its beginning.
    """

    def __init__(self, clock: str, stages: Sequence[Stage]):
        self.clock, self.stages = clock, tuple(stages)
        self.end = self.stages[-1].end
        self.switches = [stage.end for stage in self.stages[:-1]]

    def stage(self, now: int) -> Stage:
        """The stage under way, or the last one."""
        return self.stages[sum(now >= switch for switch in self.switches)]

    def _since(self, now: int) -> int:
        """What the clock has counted in the stage under way."""
        return now - max((switch for switch in self.switches if switch <= now), default=0)

    def due(self, now: int) -> bool:
        """Whether an evaluation belongs here."""
        return self._since(now) % self.stage(now).eval_every == 0

    def epoch(self, now: int) -> Epoch:
        """The blocks up to the next evaluation, or to the end of the stage."""
        stage = self.stage(now)
        ahead = min(stage.eval_every - self._since(now) % stage.eval_every, stage.end - now)
        return stage.source.epoch(ahead * stage.scale)
