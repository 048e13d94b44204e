"""``offlinerl sweep``: one run for every combination of agents, datasets and settings, side by side on Ray."""

from __future__ import annotations

import itertools
import json
import math
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from offlinerl import agents
from offlinerl.data import load
from offlinerl.data.registry import Entry
from offlinerl.evaluation import comparison, report
from offlinerl.training import config, request
from offlinerl.util.atomic import write_json
from offlinerl.util.cores import cores
from offlinerl.util.display import Display
from offlinerl.util.errors import UserError, command, counted, did_you_mean, reading
from offlinerl.util.given import seeds_in
from offlinerl.util.interrupt import Interrupted, Stop, end_with_parent, on_interrupt
from offlinerl.util.ray_cluster import RayCluster
from offlinerl.util.settings import per_seed_settings, require_known

KEYS = dict(
    agents=None, datasets=(), env=None, environments=(), seeds=(0,), each={}, together=False, agent={}, train={},
    cpus=1, gpus=0, out="runs/sweep",
)  # fmt: skip
"""The keys of a sweep file and their defaults."""

DEATHS = 3
"""How often a run may be killed (out of memory, or its machine is taken away) and restarted before it has failed."""


@dataclass(frozen=True)
class Planned:
    """One run.

    Attributes:
        folder: of the run.
        what: arguments of ``offlinerl fit`` that say what to train.
        how: arguments of ``offlinerl fit`` about device and threads.
        tried: number of settings of its agent that the sweep tries on its task.
    """

    folder: Path
    what: tuple[str, ...]
    how: tuple[str, ...]
    tried: int = 1

    @property
    def log(self) -> Path:
        """The file with its output, beside its folder."""
        return self.folder.parent / f"{self.folder.name}.txt"

    @property
    def finished(self) -> bool:
        return (self.folder / "summary.json").is_file()

    def command(self) -> list[str]:
        """The command that starts the run, or resumes it if it has begun."""
        begun = (self.folder / "config.yaml").is_file()
        what = ("--resume", str(self.folder)) if begun else self.what
        return [sys.executable, "-m", "offlinerl", "fit", *what, *self.how]


def sweep(file: Path, ray_address: str | None = None) -> int:
    """Train the runs that a file plans, and print a table of all runs. Finished runs are kept, and interrupted ones are
    resumed.

    Args:
        file: YAML with ``agents``; ``datasets``, and ``env``, the environment to evaluate in, if they name none or
            another is wanted; or ``environments`` to learn by acting; ``seeds``, which every run trains side by side;
            ``each``, lists of values by setting, as in ``agent.beta: [1, 2]``: every combination is a run, for the
            agents that have the setting; ``together``, whether one run trains all values of a setting that can have
            several, with the same results as separate runs; ``agent`` and ``train``, settings of all runs; ``cpus``
            and ``gpus`` per run; ``out``, the folder of the runs, which all machines of a cluster must share.
        ray_address: of a Ray cluster; by default this machine only.

    Returns:
        1 if a run failed, else 0.

    Raises:
        UserError: the file is wrong, or Ray cannot be started.
        Interrupted: Ctrl-C or SIGTERM; all runs are saved.
    """
    plan = read(file)
    runs, display, stop = planned(plan), Display(), Stop()
    left = [run for run in runs if not run.finished]
    display.say(f"{counted(len(runs), 'run')} in {plan['out']}, {len(runs) - len(left)} of them finished")
    failed: list[Planned] = []
    needed = 0 if ray_address else cores()  # a cluster has its own cores
    cluster = RayCluster(needed, ray_address, "runs") if left else None
    try:
        if cluster is not None:
            cluster.start()  # Ray installs its own SIGTERM handler, so ours comes after it
            require_room(cluster.ray, plan, file)
            with on_interrupt(stop.set):
                failed = _train(cluster.ray, left, plan, display, stop)
    finally:
        if cluster is not None:
            cluster.close()
    if stop.is_set():
        done = sum(run.finished for run in runs)
        again = command("sweep", file, *(("--ray-address", ray_address) if ray_address else ()))
        raise Interrupted(f"interrupted with {done} of {len(runs)} runs finished; resume with: {again}", stop.status)
    for run in failed:
        display.say(f"failed: {run.folder}: {_last_line(run)}")
    if done := [run for run in runs if run.finished]:
        for run in done:
            _write_tried(run)
        report.report([run.folder for run in done], Path(plan["out"]) / "report")
    return 1 if failed else 0


def read(file: Path) -> dict[str, Any]:
    """The plan in a file, completed with defaults.

    Raises:
        UserError: the file cannot be read, or has an unknown or wrong entry.
    """
    with reading(f"the sweep {file}", "see `offlinerl sweep --help`"):
        try:
            given = yaml.safe_load(file.read_text("utf-8"))
        except yaml.YAMLError as error:
            raise ValueError(f"it is not YAML{_place(error)}") from error
        if not isinstance(given, dict):
            raise ValueError("it holds no settings")
    require_known(given, KEYS, f"{file} has an unknown entry")
    plan = {**KEYS, **given}
    for key in ("agents", "datasets", "environments"):
        plan[key] = [plan[key]] if isinstance(plan[key], str) else plan[key]
        if not isinstance(plan[key], list | tuple) or not all(isinstance(name, str) for name in plan[key]):
            raise UserError(f"{file}: {key} must be a list of names, as in {key}: [xql, iql], not {plan[key]!r}")
    plan["seeds"] = [plan["seeds"]] if isinstance(plan["seeds"], int) else plan["seeds"]
    if isinstance(plan["seeds"], str):
        with suppress(UserError):
            plan["seeds"] = seeds_in(plan["seeds"])
    if not isinstance(plan["seeds"], list | tuple):
        raise UserError(
            f"{file}: seeds must be different whole numbers, as in seeds: 0-2 or seeds: [0, 1, 2], not"
            f" {plan['seeds']!r}"
        )
    if not plan["datasets"] and not plan["environments"]:
        raise UserError(f"{file} needs datasets, or environments to learn by acting")
    if plan["env"] is not None and not (isinstance(plan["env"], str) and plan["datasets"]):
        raise UserError(
            f"{file}: env must name the environment in which policies of datasets are evaluated, or none, not"
            f" {plan['env']!r}; environments lists those to learn in"
        )
    for key, value in plan["each"].items() if isinstance(plan["each"], dict) else [("each", plan["each"])]:
        if not re.match(r"(agent|train)\.", str(key)) or not isinstance(value, list) or not value:
            raise UserError(
                f"{file}: each must list values by setting of agent or train, as in agent.beta: [1, 2], not"
                f" {key}: {value!r}"
            )
    for key in ("agent", "train"):
        if not isinstance(plan[key], dict):
            raise UserError(f"{file}: {key} must hold settings, as in train: {{updates: 20000}}, not {plan[key]!r}")
    if not isinstance(plan["out"], str) or not plan["out"]:
        raise UserError(f"{file}: out must name a folder, as in out: runs/sweep, not {plan['out']!r}")
    out = Path(plan["out"])
    if not (there := next(path for path in (out, *out.absolute().parents) if path.exists())).is_dir():
        raise UserError(f"{file}: out must name a folder, and {there} is a file")
    if not isinstance(plan["together"], bool):
        raise UserError(f"{file}: together must be true or false, not {plan['together']!r}")
    for key, least in (("cpus", 1), ("gpus", 0)):
        number = isinstance(plan[key], int | float) and not isinstance(plan[key], bool)
        if not number or not least <= plan[key] < math.inf:
            raise UserError(f"{file}: {key} must be a number of at least {least}, not {plan[key]!r}")
    return plan


def planned(plan: Mapping[str, Any]) -> list[Planned]:
    """The runs of a plan, after checking all of them and downloading what unfinished ones need.

    Raises:
        UserError: an agent, a dataset or a setting is wrong, or a dataset cannot be obtained.
    """
    runs: dict[Path, Planned] = {}
    fixed = {section: dict(plan[section]) for section in ("agent", "train")}
    tasks = [(name, plan["env"]) for name in plan["datasets"]] + [(None, name) for name in plan["environments"]]
    unused, needed = set(plan["each"]), dict[str, Entry]()
    all_known = dict(agent=set[str](), train=set[str]())
    how = ("--device", "cuda" if plan["gpus"] else "cpu", "--threads", str(int(plan["cpus"])))
    for agent, (dataset, env) in itertools.product(plan["agents"], tasks):
        known = request.settings_for(agent, dataset, env, plan["seeds"], None, fixed)[0]
        own = [key for key in plan["each"] if key.partition(".")[2] in known[key.partition(".")[0]]]
        unused -= set(own)
        for section, names in all_known.items():
            names.update(known[section])
        shared = {f"agent.{name}" for name in per_seed_settings(agents.outline(agent).config_class)}
        shared = {key: plan["each"][key] for key in own if plan["together"] and key in shared}
        apart = [key for key in own if key not in shared]
        tried = math.prod(len(plan["each"][key]) for key in own)
        for values in itertools.product(*(plan["each"][key] for key in apart)):
            over = {section: dict(settings) for section, settings in fixed.items()}
            for key, value in [*zip(apart, values, strict=True), *shared.items()]:
                section, _, name = key.partition(".")
                over[section][name] = value
            settings, entry = request.settings_for(agent, dataset, env, plan["seeds"], None, over)
            assigned = [f"{key.partition('.')[2]}={value}" for key, value in zip(apart, values, strict=True)]
            name = "-".join([agent, dataset or env, *assigned])
            folder = Path(plan["out"]).resolve() / name.replace("/", "-").replace(" ", "")
            if folder in runs:
                raise UserError(f"two runs would have the folder {folder.name}: move one of them to another sweep file")
            require_same(folder, settings)
            task = [*(("--dataset", dataset) if dataset else ()), *(("--env", env) if env else ())]
            words = [agent, *task, "--seeds", ",".join(map(str, plan["seeds"])), "--out", str(folder)]
            for section, settings in over.items():
                for key, value in settings.items():
                    line = yaml.safe_dump(value, default_flow_style=True, width=math.inf).split("\n")[0]
                    words += [f"--{section}.{key}", line]
            runs[folder] = Planned(folder, tuple(words), how, tried)
            if dataset and not runs[folder].finished:
                needed[dataset] = entry
    if unused:
        section, _, name = min(unused).partition(".")
        hint = did_you_mean(name, all_known[section], "`offlinerl fit AGENT --help` lists them")
        raise UserError(f"each: none of the agents has the setting {section}.{name}; {hint}")
    for entry in needed.values():
        load.require_readable(entry)
    return list(runs.values())


def require_same(folder: Path, planned: Mapping[str, Any]) -> None:
    """Raise a UserError if the folder holds a run that has begun with other settings than planned: its result would not
    be that of the plan."""
    file = folder / "config.yaml"
    if not file.is_file():
        return
    begun = config.read(file)
    for section, settings in planned.items():
        for key, value in settings.items():
            had = begun.get(section, {}).get(key, value)
            if had != value and f"{section}.{key}" not in comparison.WATCHED:
                raise UserError(
                    f"{folder} was started with {key} {had}, but {value} is planned: set another `out`, or delete"
                    " this folder"
                )


def require_room(ray: Any, plan: Mapping[str, Any], file: Path) -> None:
    """Raise a UserError if no machine has the CPUs and GPUs of a run, since Ray would wait for them forever."""
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    for key, kind in (("gpus", "GPU"), ("cpus", "CPU")):
        most = max((machine.get(kind, 0) for machine in machines), default=0)
        if most < plan[key]:
            raise UserError(f"{file}: {key} of a run is {plan[key]}, but a machine has {most:g}: give no more")
        machines = [machine for machine in machines if machine.get(kind, 0) >= plan[key]]


def _place(error: yaml.YAMLError) -> str:
    """The line of a YAML error in words, if it is known."""
    mark = getattr(error, "problem_mark", None)
    return f", in line {mark.line + 1}" if mark else ""


def _train(ray: Any, runs: list[Planned], plan: Mapping[str, Any], display: Display, stop: Stop) -> list[Planned]:
    """Train runs side by side, as many as there are resources for. Returns those that failed."""
    remote = ray.remote(num_cpus=plan["cpus"], num_gpus=plan["gpus"], max_retries=DEATHS)(finish)
    began = {remote.remote(run): run for run in runs}
    failed, done, cancelled = [], 0, False
    with display.bar("runs", len(runs), unit="runs"):
        while began:
            if stop.is_set() and not cancelled:
                display.say("stopping: every active run is saved")
                for reference in began:
                    ray.cancel(reference)
                cancelled = True
            for reference in ray.wait(list(began), timeout=0.5)[0]:
                run = began.pop(reference)
                try:
                    status = ray.get(reference)
                except (ray.exceptions.TaskCancelledError, KeyboardInterrupt):
                    continue
                except ray.exceptions.RayError as error:  # its machine was lost repeatedly
                    display.say(f"{run.folder.name}: {str(error).strip().splitlines()[0]}")
                    status = 1
                if cancelled and not run.finished:
                    continue
                done += 1
                display.advance(done, run.folder.name)
                if status:
                    failed.append(run)
                display.say(f"[{done}/{len(runs)}] {run.folder.name}  {_outcome(run, status)}")
    return failed


def _outcome(run: Planned, status: int) -> str:
    return f"failed: {_last_line(run)}" if status else report.outcome(run.folder)


def _write_tried(run: Planned) -> None:
    """Add to a run's summary how many settings were tried, by this sweep or an earlier one, since a reader may see only
    the best of them."""
    path = run.folder / "summary.json"
    with reading(f"the summary {path}", f"delete {run.folder} to train it again"):
        summary = json.loads(path.read_text("utf-8"))
        write_json(path, {**summary, "settings_tried": max(summary.get("settings_tried") or 0, run.tried)})


def _last_line(run: Planned) -> str:
    try:
        return run.log.read_text("utf-8", "replace").strip().splitlines()[-1]
    except (OSError, IndexError):
        return "it printed nothing"


def finish(run: Planned) -> int:
    """Finish a run in a process of its own, which is started again if it is killed.

    Returns:
        Its exit status, or minus the number of the signal that killed the last process.
    """
    status = 0
    run.log.parent.mkdir(parents=True, exist_ok=True)
    for _ in range(1 + DEATHS):
        if run.finished:
            return 0
        with run.log.open("ab") as output:
            process = subprocess.Popen(
                run.command(), stdout=output, stderr=output, stdin=subprocess.DEVNULL, preexec_fn=end_with_parent
            )
        try:
            while (status := process.poll()) is None:
                time.sleep(0.2)  # one long wait() could not be interrupted
        except KeyboardInterrupt:
            process.terminate()  # the run saves itself
            process.wait()
            raise
        if status >= 0:
            break
    return status
