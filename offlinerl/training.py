"""Training: what ``offlinerl fit`` does. A run is a folder; everything in it can be read, compared and resumed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from offlinerl import agents, config
from offlinerl.acting import FineTuning, OnlineRun
from offlinerl.data import registry
from offlinerl.device import pick_device
from offlinerl.folder import next_free, require_free, write_config
from offlinerl.run import OfflineRun, Run
from offlinerl.types import UserError


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
    obs_keys: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Train an agent on a fixed dataset, or by acting in an environment, and evaluate it as it learns.

    Args:
        agent_name: one of ``offlinerl.agents.names()``.
        dataset: a name, a Minari id or a file; see ``offlinerl.data.registry.resolve``. None if the agent learns
            online.
        env: the environment to act in; with a dataset, to evaluate in where it is not the dataset's own.
        seeds: S integers, trained side by side; by default just 0.
        file: a YAML file of settings, or another run's ``config.yaml``, which tells the agent, the dataset and
            the seeds too.
        over: settings that win over all files, ``{"agent": {...}, "train": {...}}``.
        device: "auto", "cpu" or "cuda".
        out: the run's folder, which may not hold anything yet; by default a new one below ``runs/``.
        resume: the folder of a run to go on with, by its own settings; only its length may change.
        obs_keys: the parts of the observations to learn from, in this order; by default all.

    Returns:
        What ``summary.json`` holds.

    Raises:
        UserError: anything the user can put right.
        Interrupted: Ctrl-C; the run is saved and can be resumed.
    """
    if resume:
        settings = settings_of(Path(resume), agent_name, dataset, over or {})
        run = run_of(settings, pick_device(device), Path(resume))
        run.restore()
        write_config(run.folder, settings)  # it may be longer now
        return run.train()
    settings, entry = settings_for(agent_name, dataset, env, seeds, file, over, obs_keys)
    about = settings["fit"]
    folder = Path(out) if out else next_free(Path("runs") / f"{about['agent']}-{entry.name.replace('/', '-')}")
    require_free(folder)
    run = run_of(settings, pick_device(device), folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_config(folder, settings)
    return run.train()


def settings_for(
    agent_name: str | None,
    dataset: str | None,
    env: str | None,
    seeds: Sequence[int] | None,
    file: Path | None,
    over: Mapping[str, Any] | None,
    obs_keys: Sequence[str] | None = None,
) -> tuple[dict[str, Any], registry.Entry]:
    """All settings of a new run, and the task it is about; for the arguments see ``fit``.

    Raises:
        UserError: one is missing, unknown or out of range.
    """
    about = dict(
        agent=agent_name, dataset=dataset and str(dataset), env=env, seeds=seeds and list(seeds),
        obs_keys=obs_keys and list(obs_keys),
    )  # fmt: skip
    again = config.read(file).get("fit", {}) if file else {}
    about = dict(dataset=None, env=None, seeds=[0]) | again | {k: v for k, v in about.items() if v is not None}
    if "agent" not in about:
        raise UserError("fit needs an agent, as in: offlinerl fit xql --dataset kitchen")
    keys = about.get("obs_keys")
    if keys is not None and not (isinstance(keys, list) and all(isinstance(key, str) for key in keys)):
        raise UserError(f"obs_keys must be a list of words, such as [state, goal], not {keys!r}")
    agent_class = agents.get(about["agent"])
    if agent_class.online:
        if about["dataset"] is not None:
            raise UserError(
                f"{about['agent']} learns by acting and not from a dataset: give --env instead of --dataset"
            )
        if about["env"] is None:
            raise UserError(f"{about['agent']} learns by acting: give --env, as in: --env Pendulum-v1")
        entry = registry.task(about["env"], keys)
    else:
        if about["dataset"] is None:
            raise UserError(f"{about['agent']} learns from a dataset: give --dataset, as in: --dataset kitchen")
        entry = registry.resolve(about["dataset"], about["env"], keys)
    seeds = about["seeds"]
    whole = isinstance(seeds, list) and all(type(seed) is int and seed >= 0 for seed in seeds)
    if not whole or not seeds or len(set(seeds)) < len(seeds):
        raise UserError(f"seeds must be a list of different whole numbers from 0 on, not {seeds}")
    return dict(fit=about, **config.resolve(about["agent"], agent_class, entry, file, over)), entry


def settings_of(folder: Path, agent_name: str | None, dataset: str | None, over: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a run to resume, of which only the number of updates may be changed.

    Raises:
        UserError: the folder holds no run, or something else is to be changed.
    """
    if not (folder / "config.yaml").is_file() or not (folder / "last.ckpt").is_file():
        raise UserError(f"{folder} holds no run to resume: it lacks config.yaml or last.ckpt")
    settings = config.read(folder / "config.yaml")
    settings.pop("versions", None)
    if "collect" in settings:
        raise UserError(f"{folder} is a collection: go on with `offlinerl collect` as before, with --resume")
    if missing := {"fit", "agent", "train"} - set(settings):
        raise UserError(f"{folder / 'config.yaml'} lacks its section {missing.pop()!r}; start the run again")
    for flag, given, known in (("agent", agent_name, "agent"), ("--dataset", dataset, "dataset")):
        if given is not None and given != settings["fit"][known]:
            raise UserError(f"the run in {folder} has {flag} {settings['fit'][known]}, not {given}; leave it out")
    length = "steps" if "steps" in settings["train"] else "updates"
    changed = dict(over.get("train", {}))
    settings["train"][length] = int(changed.pop(length, settings["train"][length]))
    if changed or over.get("agent"):
        name = next(iter([*changed, *over.get("agent", {})]))
        raise UserError(f"a resumed run keeps its settings, so {name} cannot be given; only --{length} may grow")
    return settings


def run_of(settings: dict[str, Any], device: torch.device, folder: Path) -> Run:
    """The run that those settings describe."""
    if agents.get(settings["fit"]["agent"]).online:
        return OnlineRun(settings, device, folder)
    return (FineTuning if settings["train"].get("online_steps") else OfflineRun)(settings, device, folder)
