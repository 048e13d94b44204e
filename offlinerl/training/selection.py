"""Selects what a run learns from, which depends on its flags and on the kinds of batch the agent supports."""

from __future__ import annotations

from collections.abc import Collection

from offlinerl.util.errors import UserError

KINDS = dict(
    transitions="transitions", windows="windows of a dataset's episodes", episodes="whole episodes of a dataset",
    rollouts="rollouts of its own", observations="images of a dataset",
)  # fmt: skip


def sources_of(kinds: Collection[str]) -> dict[str, str]:
    """The possible sources for an agent with these kinds of batch, each with its description in words."""
    ways = dict(
        transitions=dict(transitions="on a dataset", replay="by acting"), windows=dict(windows="on a dataset"),
        episodes=dict(episodes="on a dataset"), rollouts=dict(rollouts="by acting"),
        observations=dict(observations="on a dataset"),
    )  # fmt: skip
    return {source: how for kind in kinds for source, how in ways[kind].items()}


def source_of(agent_name: str, kinds: Collection[str], dataset: str | None, env: str | None) -> str:
    """The source for an agent with these kinds of batch.

    Returns:
        With a dataset: "transitions", "windows", "episodes" or "observations" of it; without one, "rollouts", or
        "replay" for a replay buffer of its own transitions.

    Raises:
        UserError: the agent cannot learn from the dataset or the environment that is given.
    """
    can = f"{agent_name} learns from {' or '.join(what for kind, what in KINDS.items() if kind in kinds)}"
    offline = [kind for kind in ("transitions", "windows", "episodes", "observations") if kind in kinds]
    online = [dict(transitions="replay").get(kind, kind) for kind in ("rollouts", "transitions") if kind in kinds]
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
