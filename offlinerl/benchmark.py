"""``offlinerl benchmark``: training speed on this machine, compared with the limit set by its matrix products."""

from __future__ import annotations

import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import lightning as L
import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from offlinerl import agents
from offlinerl.agents.base import Agent
from offlinerl.data import registry
from offlinerl.data.dataset import Dataset
from offlinerl.data.episode import Episode
from offlinerl.data.minari_writer import write_minari
from offlinerl.experience.ring import Replay
from offlinerl.experience.sources import EpisodeData, OfflineData, ReplayData, RolloutData, WindowData
from offlinerl.experience.table import Table
from offlinerl.rollout.collector import Collector
from offlinerl.training import config
from offlinerl.training.loop import quiet_lightning
from offlinerl.training.selection import source_of
from offlinerl.types import Batch, Spec
from offlinerl.util.atomic import require_place, write_json
from offlinerl.util.device import pick_device
from offlinerl.util.display import Display
from offlinerl.util.paths import share
from offlinerl.util.settings import settings_of
from offlinerl.util.trees import tree_map

KITCHEN = Spec(60, 9, (-1.0,) * 9, (1.0,) * 9)
KITCHEN_DISCRETE = Spec(60, 1, (0.0,), (8.0,), 9)


STACKS = (1, 5, 20)
"""Numbers of seeds trained side by side for which a GPU is measured."""


def benchmark(
    agent_name: str, batch: int, seeds: Sequence[int] | None, device: str, threads: int | None, json_file: Path | None
) -> None:
    """Measure an agent's updates per second with Kitchen's shapes, Lightning's share of the time, and the loading of a
    dataset.

    Args:
        agent_name: one of ``offlinerl.agents.names()``.
        batch: transitions per update and seed, or windows or episodes if the agent learns from these.
        seeds: trained side by side; rates count the updates of every seed. None: one seed and, on a GPU, also 5 and 20.
        device: "auto", "cpu" or "cuda".
        threads: number of CPU threads; None: torch's default.
        json_file: where to write the results, if anywhere.
    """
    require_place(json_file)
    if threads:
        torch.set_num_threads(threads)
    display, where = Display(), pick_device(device)
    name = torch.cuda.get_device_name(where) if where.type == "cuda" else cpu_name()
    stacks = [seeds] if seeds else [range(n) for n in (STACKS if where.type == "cuda" else STACKS[:1])]
    display.say(f"{agent_name}, batch {batch}, on {name}, {torch.get_num_threads()} CPU threads")
    results: dict[str, Any] = dict(
        agent=agent_name, batch=batch, device=where.type, device_name=name, threads=torch.get_num_threads()
    )
    measured = []
    for stack in stacks:
        found = updates(agent_name, batch, list(stack), where)
        measured.append(found)
        display.say("")
        for label, value in (
            ("seeds", len(found["seeds"])),
            ("updates/s, all seeds together", f"{found['updates_per_second']:,.0f}"),
            ("uncompiled", f"{found['eager_updates_per_second']:,.0f}"),
            *([("in TensorFloat-32", f"{found['tf32_updates_per_second']:,.0f}")] if where.type == "cuda" else []),
            (
                "limit, from matrix products alone",
                f"{found['limit_updates_per_second']:,.0f}  ({found['matmul_gflops']:,.0f} GFLOP/s)",
            ),
            ("share of the limit", f"{found['share_of_limit']:.0%}"),
            ("compiling", f"{found['compile_seconds']:.0f} s"),
            ("Lightning's share of the time", f"{found['lightning_share']:.1%}"),
        ):
            display.say(f"{label:<44} {value}")
    results |= measured[0] | load_million()
    if len(measured) > 1:
        results["stacks"] = measured
    display.say("")
    display.say(f"{'loading 1M transitions':<44} {results['load_seconds_per_million']:.2f} s")
    display.say(f"{'peak memory of loading / size of the table':<44} {results['load_memory_ratio']:.2f}")
    if share("configs", agent_name, "online.yaml").is_file():  # the settings that it acts with
        task, steps = speed_task(agents.get(agent_name)), steps_per_second(agent_name, where)
        results |= dict(steps_per_second=steps, steps_env=task)
        display.say(f"{f'environment steps/s, {task}':<44} {steps:,.0f}")
    if json_file is not None:
        write_json(json_file, results)


def updates(agent_name: str, batch: int, seeds: Sequence[int], where: torch.device) -> dict[str, Any]:
    """The speed of an agent's updates, and its limit; see ``benchmark``."""
    eager, compiled = (build(agent_name, seeds, where, compile, batch) for compile in (False, True))
    source = synthetic_source(eager, batch)
    flops = count_flops(build(agent_name, seeds, where, False, batch), source)
    began = time.perf_counter()
    compiled.learn(source.draw(compiled.period))
    compile_seconds = time.perf_counter() - began
    rates = interleaved(
        eager=lambda: updates_rate(eager, source), compiled=lambda: updates_rate(compiled, source),
        matmul=lambda: matmul_rate(batch, len(seeds), where),
    )  # fmt: skip
    S = len(seeds)
    tf32 = {}
    if where.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
        rounded = build(agent_name, seeds, where, True, batch)
        tf32["tf32_updates_per_second"] = updates_rate(rounded, source) * S
        torch.backends.cuda.matmul.allow_tf32 = False
    limit = rates["matmul"] / flops * S
    return dict(
        seeds=list(seeds),
        updates_per_second=rates["compiled"] * S,
        eager_updates_per_second=rates["eager"] * S,
        limit_updates_per_second=limit,
        share_of_limit=rates["compiled"] * S / limit,
        gflop_per_update=flops / S / 1e9,
        matmul_gflops=rates["matmul"] / 1e9,
        compile_seconds=compile_seconds,
        lightning_share=lightning_share(compiled, source),
        **tf32,
    )


def build(agent_name: str, seeds: Sequence[int], device: torch.device, compile: bool, batch: int = 256) -> Agent:
    """The agent as ``fit`` would build it for Kitchen, with dropout and decay if it has them, at the kind of update
    that it makes most."""
    agent_class = agents.get(agent_name)
    usual = dict(dropout=0.1, decay_steps=1_000_000, minibatch=batch, behavior_updates=0)
    spec = KITCHEN_DISCRETE if agent_class.discrete else KITCHEN
    agent = agent_class(spec, seeds, **{k: v for k, v in usual.items() if k in settings_of(agent_class.config_class)})
    agent.to(device)
    agent.configure_optimizers()
    agent.compile = compile
    return agent


def synthetic_source(agent: Agent, batch: int) -> OfflineData:
    """Random blocks of the kind that the agent learns from: of 48 updates for transitions, of 2 for windows and
    episodes."""
    if "rollouts" in agent.kinds:
        return SyntheticRollouts(agent, batch)
    table = Table.of(agent, synthetic_table(spec=agent.spec))
    if "transitions" in agent.kinds:
        return OfflineData(table, agent.seeds, batch, 48)
    if "windows" in agent.kinds:
        return WindowData(table, agent.seeds, batch, 2, length=agent.config.context)
    return EpisodeData(table, agent.seeds, batch, 2)


class SyntheticRollouts(OfflineData):
    """The same random rollout in every block: eight minibatches of ``batch`` rows if the agent uses minibatches, else
    ``batch`` rows."""

    def __init__(self, agent: Agent, batch: int):
        rows = 8 * batch if agent.config.minibatch else batch
        table = Table(synthetic_table(rows, agent.spec), agent.spec, agent.gamma, device=agent.device)
        super().__init__(table, agent.seeds, rows, updates=1)
        one = table.transitions(torch.arange(rows, device=agent.device))
        self.rollout = tree_map(lambda x: x.expand(1, len(agent.seeds), 1, *x.shape), one)  # [1, S, 1, T, ...]

    def draw(self, updates: int | None = None) -> Batch:
        return self.rollout


def synthetic_table(rows: int = 20_000, spec: Spec = KITCHEN) -> Dataset:
    """Random transitions with the shapes of ``spec``; the speed does not depend on their values."""
    rng = np.random.default_rng(0)
    obs = rng.normal(size=(rows + 1, spec.obs_dim)).astype(np.float32)
    action = rng.uniform(-1, 1, (rows, spec.action_dim)).astype(np.float32)
    if spec.num_actions:
        action = rng.integers(0, spec.num_actions, (rows, 1)).astype(np.float32)
    reward = rng.integers(0, 5, rows).astype(np.float32)
    last = np.arange(rows) % 200 == 199
    return Dataset.of_rows(obs[:-1], obs[1:], action=action, reward=reward, terminated=last, last=last)


def interleaved(repeats: int = 5, **measures: Any) -> dict[str, float]:
    """The median of several measurements, taken in turn, so that short disturbances affect all alike."""
    found: dict[str, list[float]] = {name: [] for name in measures}
    for _ in range(repeats):
        for name, measure in measures.items():
            found[name].append(measure())
    return {name: statistics.median(values) for name, values in found.items()}


def updates_rate(agent: Agent, source: OfflineData, seconds: float = 1.0) -> float:
    """Updates per second, including sampling and, for an on-policy agent, the computation of advantages."""
    agent.learn(source.draw())
    first, began = agent.updates, time.perf_counter()
    while (elapsed := time.perf_counter() - began) < seconds:
        agent.learn(source.draw())
        synchronize(agent.device)
    return (agent.updates - first) / elapsed


def count_flops(agent: Agent, source: OfflineData) -> float:
    """Average floating-point operations in the matrix products of one update of all seeds."""
    with FlopCounterMode(display=False) as counter:
        agent.learn(source.draw(agent.period))
    return counter.get_total_flops() / agent.updates


def speed_task(agent: Agent | type[Agent]) -> str:
    """The environment in which an online agent's steps per second are measured."""
    return "CartPole-v1" if agent.discrete else "HalfCheetah-v5"


def steps_per_second(
    agent_name: str, device: torch.device, over: Mapping[str, Any] | None = None, seconds: float = 8.0
) -> float:
    """Environment steps per second of a whole online run with one seed, by the agent's settings: environment, replay
    buffer or rollouts, updates and Lightning.

    Args:
        agent_name: one of ``offlinerl.agents.names()``.
        device: where to train.
        over: settings that override the built-in ones, ``{"agent": {...}, "train": {...}}``.
        seconds: time to measure for, after the warm-up and compilation.
    """
    agent_class = agents.get(agent_name)
    entry = registry.task(speed_task(agent_class))
    source = source_of(agent_name, agent_class.kinds, None, entry.name)
    settings = config.resolve(agent_name, agent_class, entry, source, over=over)
    train = settings["train"]
    collector = Collector(entry.env, (0,), range(train["envs"]))
    agent = agent_class(collector.spec, (0,), **config.of_agent(settings)).to(device)
    agent.configure_optimizers()
    agent.compile = True
    if source == "rollouts":
        source = RolloutData(agent, collector, train["batch"])
    else:
        source = ReplayData(
            agent, collector, Replay.of(agent, 100_000, train["envs"]), train["batch"], train["block"],
            config.steps_per_update(train), warm_up=2 * train["batch"],
        )  # fmt: skip
    while agent.updates < 2 * agent.period:
        agent.learn(source.draw())

    first, clock = source.steps, Clock(seconds)
    with quiet_lightning():
        quiet_trainer(device, clock).fit(agent, source.epoch(10**6 * source.stride))
    collector.close()
    return (source.steps - first) / clock.seconds


class Clock(L.Callback):
    """Measures the seconds of a training up to its latest batch, and ends it after a limit."""

    def __init__(self, limit: float = float("inf")):
        self.limit = limit

    def on_train_start(self, *_: Any) -> None:
        self.began = time.perf_counter()

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.seconds = time.perf_counter() - self.began
        trainer.should_stop = self.seconds > self.limit


def quiet_trainer(device: torch.device, *callbacks: L.Callback) -> L.Trainer:
    """A trainer for one epoch, without output, logging and checkpoints."""
    return L.Trainer(
        accelerator="gpu" if device.type == "cuda" else "cpu", devices=1, max_epochs=1, logger=False,
        callbacks=list(callbacks), enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip


def matmul_rate(batch: int, seeds: int, device: torch.device, width: int = 256, seconds: float = 0.5) -> float:
    """Floating-point operations per second of the update's largest matrix product."""
    a, b = torch.randn(seeds, batch, width, device=device), torch.randn(seeds, width, width, device=device)
    out = torch.empty(seeds, batch, width, device=device)
    done, began = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - began) < seconds:
        for _ in range(20):
            torch.bmm(a, b, out=out)
        synchronize(device)
        done += 20
    return done * 2 * seeds * batch * width * width / elapsed


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def lightning_share(agent: Agent, source: OfflineData, blocks: int = 20) -> float:
    """The fraction of the training time that is neither drawing a block nor learning from it."""
    inner = 0.0

    def timed(function: Any) -> Any:
        def call(*args: Any) -> Any:
            nonlocal inner
            began = time.perf_counter()
            result = function(*args)
            synchronize(agent.device)
            inner += time.perf_counter() - began
            return result

        return call

    clock, learn, draw = Clock(), agent.learn, source.draw
    agent.learn, source.draw = timed(learn), timed(draw)
    try:
        with quiet_lightning():
            quiet_trainer(agent.device, clock).fit(agent, source.epoch(blocks * source.piece))
    finally:
        agent.learn, source.draw = learn, draw
    return max(0.0, 1 - inner / clock.seconds)


_LOAD = """
import re, resource, sys, time
from pathlib import Path
from offlinerl.data.load import load_minari

def peak():
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss would start at the size of the process that started this one
        return 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", status.read_text())[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

load_minari(sys.argv[1])
before, began = peak(), time.perf_counter()
data = load_minari(sys.argv[2])
seconds = time.perf_counter() - began
print(seconds, (peak() - before) / data.nbytes)
"""


def load_million() -> dict[str, float]:
    """Seconds to load a million transitions with the shapes of locomotion tasks from a Minari file in a new process,
    and the additional peak memory, divided by the size of the loaded dataset."""
    rng, steps = np.random.default_rng(0), 1000

    def episodes(count: int) -> Iterable[Episode]:
        for _ in range(count):
            yield Episode(
                rng.normal(size=(steps + 1, 17)).astype(np.float32),
                rng.uniform(-1, 1, (steps, 6)).astype(np.float32),
                rng.normal(size=steps), np.zeros(steps, bool), np.arange(steps) == steps - 1,
            )  # fmt: skip

    with tempfile.TemporaryDirectory() as folder:
        for name, count in (("small", 2), ("million", 1_000_000 // steps)):
            write_minari(
                Path(folder) / name, episodes(count), dataset_id=f"benchmark/{name}-v0", env_spec=None,
                observation_space=gymnasium.spaces.Box(-np.inf, np.inf, (17,), np.float32),
                action_space=gymnasium.spaces.Box(-1, 1, (6,), np.float32),
            )  # fmt: skip
        command = [sys.executable, "-c", _LOAD, f"{folder}/small", f"{folder}/million"]
        runs = [subprocess.run(command, capture_output=True, text=True, check=True).stdout.split() for _ in range(3)]
    seconds, ratio = (statistics.median(float(run[i]) for run in runs) for i in (0, 1))
    return dict(load_seconds_per_million=seconds, load_memory_ratio=ratio)


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
