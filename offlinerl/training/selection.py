"""Selects what a run learns from, which depends on its flags and on the kinds of batch the agent supports."""

from __future__ import annotations

from collections.abc import Collection

from offlinerl.util.errors import UserError

IN_WORDS = dict(
    transitions="transitions", windows="windows of a dataset's episodes", episodes="whole episodes of a dataset",
    rollouts="rollouts of its own", observations="images of a dataset",
)  # fmt: skip
"""What an agent with a kind of batch learns from."""

OFFLINE = ("transitions", "windows", "episodes", "observations")
"""The kinds of batch that a dataset gives, which are the names of these sources too."""

ONLINE = dict(rollouts="rollouts", transitions="replay")
"""The kinds of batch that acting gives, each with its source."""


def sources_of(kinds: Collection[str]) -> dict[str, str]:
    """The possible sources for an agent with these kinds of batch, each with its description in words."""
    offline = {kind: "on a dataset" for kind in OFFLINE if kind in kinds}
    return offline | {source: "by acting" for kind, source in ONLINE.items() if kind in kinds}


def source_of(agent_name: str, kinds: Collection[str], dataset: str | None, env: str | None) -> str:
    """The source for an agent with these kinds of batch.

    Returns:
        With a dataset: "transitions", "windows", "episodes" or "observations" of it; without one, "rollouts", or
        "replay" for a replay buffer of its own transitions.

    Raises:
        UserError: the agent cannot learn from the dataset or the environment that is given.
    """
    can = f"{agent_name} learns from {' or '.join(what for kind, what in IN_WORDS.items() if kind in kinds)}"
    offline = [kind for kind in OFFLINE if kind in kinds]
    online = [source for kind, source in ONLINE.items() if kind in kinds]
    if dataset is not None:
        if not offline:
            raise UserError(f"{can}: give --env instead of --dataset")
        return offline[0]
    if not online:
        raise UserError(f"{can}: give --dataset, as in: --dataset kitchen")
    if env is None:
        instead = "--dataset, as in: --dataset kitchen, or " if offline else ""
        raise UserError(f"{can}: give {instead}--env, as in: --env Pendulum-v1")
    return online[0]
