"""What a run learns from, which its flags say and not the agent's class."""

from __future__ import annotations

from collections.abc import Collection

from offlinerl.util.errors import UserError

KINDS = dict(
    transitions="transitions", windows="windows of a dataset's episodes", episodes="whole episodes of a dataset",
    rollouts="rollouts of its own", observations="images of a dataset",
)  # fmt: skip


def sources_of(kinds: Collection[str]) -> dict[str, str]:
    """What an agent that learns from such kinds of batch may have to learn from, and how that is said."""
    ways = dict(
        transitions=dict(transitions="on a dataset", replay="by acting"), windows=dict(windows="on a dataset"),
        episodes=dict(episodes="on a dataset"), rollouts=dict(rollouts="by acting"),
        observations=dict(observations="on a dataset"),
    )  # fmt: skip
    return {source: how for kind in kinds for source, how in ways[kind].items()}


def source_of(agent_name: str, kinds: Collection[str], dataset: str | None, env: str | None) -> str:
    """What an agent that learns from such kinds of batch has to learn from.

    Returns:
        "transitions", "windows", "episodes" or "observations" of a dataset; without one, "rollouts" or the "replay" of
        its own transitions.

    Raises:
        UserError: it cannot learn from what there is.
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
