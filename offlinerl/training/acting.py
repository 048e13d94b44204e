"""Runs that act: learning online, and fine-tuning what was trained on a dataset."""

from __future__ import annotations

import math
import pickle
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch

from offlinerl import agents
from offlinerl.data import registry, rewards
from offlinerl.evaluation.evaluate import make_pool
from offlinerl.evaluation.statistics import Evaluation
from offlinerl.evaluation.task import Task
from offlinerl.experience.ring import Replay
from offlinerl.experience.sources import FineTuningData, ReplayData, RolloutData
from offlinerl.rollout.actor_pool import ActorPool
from offlinerl.rollout.collector import Collector, mean_of
from offlinerl.rollout.ray_backend import RayBackend
from offlinerl.training import config
from offlinerl.training.loop import OfflineRun, Run
from offlinerl.util.atomic import aside
from offlinerl.util.display import shown
from offlinerl.util.errors import UNSOUND, UserError


class ActingRun(Run):
    """A run whose agent acts. What it has lived through, if it is kept, is saved beside the checkpoint, for it is
    large.

    Attributes:
        ray_address: of the cluster that its workers run on; None is this machine.
    """

    collector: Collector | ActorPool
    ray_address: str | None = None
    replay: Replay | None = None

    def make_collector(self) -> Collector | ActorPool:
        """The environments to act in, here or in as many workers as the settings say."""
        settings, seeds, lanes = self.train_settings, self.about["seeds"], range(self.train_settings["envs"])
        env, obs_keys, workers = self.task.env, self.task.obs_keys, settings.get("workers", 0)
        first = self.settings.get("collect", {}).get("first", 0)
        if not workers:
            return Collector(env, seeds, lanes, obs_keys, first)
        agent = partial(type(self.agent), self.pool.spec, seeds, **config.of_agent(self.settings))
        backend = RayBackend(workers, self.ray_address)
        return ActorPool(env, seeds, lanes, obs_keys, agent, workers, backend, self.display.say, first)

    def make_replay(self, longest: int) -> Replay:
        """A replay for so many steps at the most."""
        settings = self.train_settings
        return Replay.of(self.agent, settings, min(settings["capacity"], longest + settings["envs"]))

    def require_whole(self, source: ReplayData, *names: str) -> None:
        """Raises a UserError unless these settings are whole numbers of strides."""
        for name in names:
            if self.train_settings[name] % source.stride:
                raise UserError(
                    f"{name} must be a multiple of {source.stride}, for {source.envs} environments and"
                    f" {source.steps_per_update} steps per update, not {self.train_settings[name]}"
                )

    def counters(self) -> dict[str, int]:
        return dict(update=self.agent.updates, step=self.agent.steps)

    def values(self) -> dict[str, list[float]]:
        if self.agent.updates < self.agent.period:
            return {}  # some of the metrics are still to come
        recent = dict(episode_return=self.collector.returns, episode_length=self.collector.lengths)
        means = {name: [sum(of) / len(of) if of else math.nan for of in seeds] for name, seeds in recent.items()}
        rate = dict(steps_per_second=[self.rate(self.agent.steps)] * len(self.agent.seeds))
        return super().values() | means | rate

    def note(self) -> str:
        mean = mean_of(self.collector.returns)
        return super().note() if mean is None else f"return {shown(mean)}"

    def save(self, trainer: L.Trainer, name: str) -> None:
        if self.replay is None or name != "last.ckpt":
            super().save(trainer, name)
            return
        # First the replay under a name of its own, then the checkpoint that means it: at any moment there is a pair.
        replay = self.replay_file(self.agent.steps)
        with aside(replay, overwrite=True) as temporary:
            torch.save(self.replay.state_dict(), temporary)
        super().save(trainer, name)
        for other in self.folder.glob("replay-*.pt"):
            if other != replay:
                other.unlink()

    def replay_file(self, steps: int) -> Path:
        return self.folder / f"replay-{steps}.pt"

    def restore(self) -> None:
        super().restore()
        if self.replay is None or not (self.folder / "last.ckpt").is_file():
            return
        path = self.replay_file(self.agent.steps)
        try:
            saved = torch.load(path, map_location=self.replay.packed.device, weights_only=True)
            self.replay.load_state_dict(saved)
        except (*UNSOUND, OSError, EOFError, pickle.UnpicklingError) as error:
            raise UserError(f"{path} is missing or damaged, without which this run cannot go on") from error

    def close(self) -> None:
        super().close()
        self.collector.close()


class OnlineRun(ActingRun):
    """A training by acting in an environment, which counts its steps. On-policy, both its length and the steps
    between evaluations are rounded up to whole rollouts."""

    clock = "step"

    def build(self, device: torch.device) -> None:
        settings = self.train_settings
        self.entry = registry.limited(registry.task(self.about["env"], self.about.get("obs_keys")), self.about)
        self.task = Task.of(self.entry)
        self.pool = make_pool(self.task, len(self.about["seeds"]), settings["final_episodes"])
        self.build_agent(device)
        self.collector = self.make_collector()
        if self.agent.on_policy:
            self.source = RolloutData(self.agent, self.collector, settings["batch"])
            return
        self.replay = self.make_replay(self.end)
        self.source = ReplayData(
            self.agent, self.collector, self.replay, settings["batch"], settings["block"],
            settings["steps_per_update"], settings["warm_up"],
        )  # fmt: skip
        self.require_whole(self.source, "steps", "eval_every")

    @property
    def updates(self) -> int:
        settings = self.train_settings
        if self.agent.on_policy:
            return self.end // settings["batch"] * self.agent.updates_in(settings["batch"])
        return self.end // settings["steps_per_update"]

    @property
    def now(self) -> int:
        return self.source.steps

    @property
    def end(self) -> int:
        return self._in_rollouts(super().end)

    @property
    def every(self) -> int:
        return self._in_rollouts(super().every)

    def _in_rollouts(self, steps: int) -> int:
        batch = self.train_settings["batch"]
        return -(-steps // batch) * batch if self.agent.on_policy else steps


class FineTuning(ActingRun, OfflineRun):
    """A training on a dataset that goes on in the environment, as in the paper's second table. It counts updates,
    of which every ``steps_per_update`` steps bring one, and evaluates at the switch too.

    Attributes:
        offline: scores of the policies at the switch.
    """

    offline: dict[str, Any] | None = None

    def build(self, device: torch.device) -> None:
        super().build(device)
        settings, offline = self.train_settings, self.source
        self.collector, self.replay = self.make_collector(), self.make_replay(settings["online_steps"])
        online = ReplayData(
            self.agent, self.collector, self.replay, settings["batch"], steps_per_update=settings["steps_per_update"],
            warm_up=0, table=offline.table, reward=rewards.online_reward(self.entry, self.raw),
        )  # fmt: skip
        self.require_whole(online, "online_steps")
        self.source = FineTuningData(offline, online, settings["updates"])

    @property
    def end(self) -> int:
        settings = self.train_settings
        return settings["updates"] + settings["online_steps"] // settings["steps_per_update"]

    @property
    def length_flag(self) -> str:
        return "--online-steps"

    def look_ahead(self) -> None:
        switch, every = self.source.switch, self.every
        if self.now < switch:
            ahead = min(self.now // every * every + every, switch)
        else:
            every = self.train_settings["online_eval_every"]
            ahead = min(switch + (self.now - switch) // every * every + every, self.end)
        self.source.updates_ahead = ahead - self.now

    def due(self) -> bool:
        online = self.now - self.source.switch
        return super().due() if online < 0 else online % self.train_settings["online_eval_every"] == 0

    @property
    def eval_episodes(self) -> int:
        """As many at the switch as at the end, for the two are compared."""
        return self.train_settings["final_episodes"] if self.now == self.source.switch else super().eval_episodes

    def record(self, result: Evaluation) -> None:
        super().record(result)
        if self.now == self.source.switch:
            self.offline = dict(
                mean=result.mean, ci95=list(result.interval()), per_seed=result.per_seed.tolist(),
                episodes=self.eval_episodes,
            )  # fmt: skip

    def results(self) -> dict[str, Any]:
        return dict(super().results(), offline=self.offline)

    def state_dict(self) -> dict[str, Any]:
        return dict(super().state_dict(), offline=self.offline, switch=self.source.switch)

    def restore_state(self, state: dict[str, Any]) -> None:
        super().restore_state(state)
        self.offline = state["offline"]
        switch = state.get("switch", self.source.switch)
        if self.agent.steps and switch != self.source.switch:
            raise UserError(
                f"the run in {self.folder} is past its {switch:,} updates on the dataset and has taken"
                f" {self.agent.steps:,} environment steps, so --updates cannot change any more; give --online-steps a"
                " larger number"
            )


def run_of(settings: dict[str, Any], device: torch.device, folder: Path) -> Run:
    """The run that those settings describe."""
    if agents.outline(settings["fit"]["agent"]).online:
        return OnlineRun(settings, device, folder)
    return (FineTuning if settings["train"].get("online_steps") else OfflineRun)(settings, device, folder)
