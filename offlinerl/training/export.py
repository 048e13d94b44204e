"""Export of trained policies: the weights that acting needs and how they were trained, in one small file."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from offlinerl.agents import checkpoint, shipped
from offlinerl.agents.base import Agent
from offlinerl.evaluation.evaluate import evaluate
from offlinerl.evaluation.task import Task
from offlinerl.rollout.deployed import DeployedPolicy, load_policy
from offlinerl.training import config
from offlinerl.util.atomic import require_place
from offlinerl.util.device import pick_device
from offlinerl.util.display import Display, shown
from offlinerl.util.errors import reading
from offlinerl.util.folder import find_checkpoint, versions
from offlinerl.util.settings import columns_of


def export_policy(
    path: Path,
    file: Path,
    *,
    seed: int | None = None,
    values: Mapping[str, float] | None = None,
    episodes: int = 100,
    overwrite: bool = False,
    device: str = "auto",
    agent_class: type[Agent] | str | None = None,
) -> Path:
    """Write the policy of one seed in a checkpoint to a file that ``offlinerl.load_policy``, ``evaluate`` and
    ``collect`` can read; see ``offlinerl.agents.shipped``.

    The metadata of the file also hold: ``seed``, ``updates`` and ``steps`` of the training; ``training``, the settings
    of the run, and ``curve``, its evaluations ``[steps or updates, mean return]``, if they are in the run's folder;
    ``measured``, the mean and standard deviation of the return without exploration over ``episodes`` episodes, the
    first one reset with seed 0, unless the environment is unknown or was an object; and ``versions``.

    Args:
        path: a checkpoint, or a run's folder, whose last checkpoint is read.
        file: to write; its name ends in ``.safetensors``.
        seed: of the policy, if several were trained side by side; by default the first one.
        values: of the settings that had several values; by default the first ones.
        episodes: number of episodes to measure the policy with.
        overwrite: replace the file if it exists.
        device: "auto", "cpu" or "cuda".
        agent_class: of an agent that is neither built in nor installed; see ``checkpoint.load_agent``.

    Returns:
        ``file``.

    Raises:
        UserError: there is no such checkpoint or seed, or the file exists.
    """
    shipped.require_name(file, overwrite)
    path, display = find_checkpoint(path), Display()
    agent = checkpoint.load_agent(path, pick_device(device), agent_class=agent_class)
    s = agent.member(seed, **values or {})
    policy = agent.part(slice(s, s + 1))
    facts: dict[str, Any] = dict(seed=policy.seeds[0], updates=agent.updates, steps=agent.steps)
    facts |= trained(path.parent, columns_of(agent.members[s]), agent.updates, agent.steps)
    env = agent.task.get("env")
    result = "its return is unknown, because it was trained without an environment"
    if env is not None and "factory" in env:
        result = (
            f"its return is not measured, because its environment {env['id']} was given as an object, which no file"
            " holds"
        )
    elif env is not None:
        with display.bar("measuring the return", episodes, unit="episodes"):
            found = evaluate(policy, Task(**agent.task), episodes, progress=display.add)
        mean, deviation = float(found.returns.mean()), float(found.returns.std())
        facts["measured"] = dict(episodes=episodes, mean_return=mean, std_return=deviation)
        if found.success is not None:
            facts["measured"]["success"] = float(found.success.mean())
        result = f"return {shown(mean)} over {episodes} episodes"
    shipped.write(policy, file, dict(**facts, versions=versions()), overwrite)
    display.say(f"{file}: {file.stat().st_size / 1e3:,.0f} kB; {result}")
    return file


def export_graph(
    path: Path,
    file: Path,
    write: Callable[[DeployedPolicy, Path, bool], dict[str, Any]],
    *,
    seed: int | None = None,
    values: Mapping[str, float] | None = None,
    overwrite: bool = False,
    agent_class: type[Agent] | str | None = None,
) -> Path:
    """Write the policy of one seed in a checkpoint as a graph that other programs can run without offlinerl; see
    ``offlinerl.rollout.portable``.

    Args:
        path: a checkpoint, or a run's folder, whose last checkpoint is read.
        file: to write.
        write: ``write_onnx`` or ``write_torchscript``.
        seed: of the policy, if several were trained side by side; by default the first one.
        values: of the settings that had several values; by default the first ones.
        overwrite: replace the file if it exists.
        agent_class: of an agent that is neither built in nor installed; see ``checkpoint.load_agent``.

    Returns:
        ``file``.

    Raises:
        UserError: there is no such checkpoint or seed, the policy depends on earlier steps, or the file exists.
    """
    require_place(file, overwrite)
    facts = write(load_policy(path, seed, agent_class=agent_class, **values or {}), file, overwrite)
    inputs = ", ".join(f"{of['name']} {of['shape']} {of['dtype']}".replace("'", "") for of in facts["inputs"])
    Display().say(
        f"{file}: {file.stat().st_size / 1e3:,.0f} kB; {facts['agent']} of seed {facts['seed']}; {inputs} to action"
        f" {facts['action']['dtype']}"
    )
    return file


def trained(folder: Path, member: Mapping[str, float], updates: int, steps: int) -> dict[str, Any]:
    """``training``, the settings of a run, and ``curve``, the evaluations of a member up to these updates or steps;
    each of them only if the folder has its file. The member is given by its columns in the table."""
    facts: dict[str, Any] = {}
    known: dict[str, Any] = {}
    if (folder / "config.yaml").is_file():
        known = config.read(folder / "config.yaml")
        facts["training"] = {section: known.get(section) for section in ("fit", "agent", "train")}
    table = folder / "evaluations.csv"
    if table.is_file():
        returns: dict[int, list[float]] = defaultdict(list)
        with (
            table.open(newline="") as file,
            reading(f"the table {table}", "delete it to export without a learning curve"),
        ):
            rows = csv.DictReader(file)
            fine_tuned = "online_steps" in (known.get("train") or {})  # has both columns, and is counted in updates
            clock = "step" if "step" in (rows.fieldnames or ()) and not fine_tuned else "update"
            for row in rows:
                own = all(float(row[column]) == value for column, value in member.items())
                if own and int(row[clock]) <= (steps if clock == "step" else updates):
                    returns[int(row[clock])].append(float(row["return"]))
        facts["curve"] = [[at, round(float(np.mean(values)), 3)] for at, values in sorted(returns.items())]
    return facts
