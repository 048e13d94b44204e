"""Our loop of DrQ-v2 compared with a plain eager one, in one run: ``python tests/benchmarks/plain_drqv2.py``.

The plain one is written like a single-file implementation: torch.nn layers, images shifted by ``grid_sample``, an
optimiser for each of encoder, actor and critics, whole stacks in the replay, and minibatches put together row by row.
It never calls ``.item()`` and never logs. Both act in the same environment, one step at a time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from offlinerl.agents.drqv2 import DrQv2
from offlinerl.envs import make, pixels
from offlinerl.experience.ring import Replay
from offlinerl.experience.sources import ReplayData
from offlinerl.rollout.collector import Collector

STEPS_PER_UPDATE, N_STEP, GAMMA, SIGMA, CLIP, PAD = 2, 3, 0.99, 0.5, 0.3, 4


class Clock:
    """Seconds spent on each part; the time of rendering is counted separately from the part that rendered."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.rendering = 0.0
        draw = pixels.Pixels._frame

        def timed(env: pixels.Pixels) -> np.ndarray:
            began = time.perf_counter()
            frame = draw(env)
            self.rendering += time.perf_counter() - began
            return frame

        pixels.Pixels._frame = timed  # type: ignore[method-assign]

    def start(self) -> None:
        self.seconds.clear()
        self.rendering, self.began = 0.0, time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name] += now - self.began - self.rendering
        self.seconds["rendering"] += self.rendering
        self.rendering, self.began = 0.0, now


def shifted(x: torch.Tensor) -> torch.Tensor:
    """The random shift of the paper's code: a grid over the padded images ``[B, C, H, W]``, moved by whole pixels."""
    B, _, _, size = x.shape
    x = F.pad(x, (PAD,) * 4, "replicate")
    eps = 1 / (size + 2 * PAD)
    line = torch.linspace(-1 + eps, 1 - eps, size + 2 * PAD)[:size]
    grid = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1).expand(B, -1, -1, -1)
    moved = torch.randint(0, 2 * PAD + 1, (B, 1, 1, 2)) * 2 / (size + 2 * PAD)
    return F.grid_sample(x, grid + moved, padding_mode="zeros", align_corners=False)


class Head(nn.Module):
    def __init__(self, encoded: int, actions: int, outputs: int, features: int, hidden: int, count: int):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(encoded, features), nn.LayerNorm(features), nn.Tanh())
        self.nets = nn.ModuleList(
            nn.Sequential(
                nn.Linear(features + actions, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(),
                nn.Linear(hidden, outputs),
            )
            for _ in range(count)
        )  # fmt: skip

    def forward(self, h: torch.Tensor, *action: torch.Tensor) -> list[torch.Tensor]:
        x = torch.cat([self.trunk(h), *action], -1)
        return [net(x) for net in self.nets]


class PlainDrQv2:
    """The same algorithm, networks and hyperparameters as ``offlinerl.agents.drqv2``."""

    def __init__(self, channels: int, size: int, A: int, features: int, hidden: int):
        layers: list[nn.Module] = []
        for i, stride in enumerate((2, 1, 1, 1)):
            layers += [nn.Conv2d(32 if i else channels, 32, 3, stride), nn.ReLU()]
        self.encoder = nn.Sequential(*layers, nn.Flatten())
        encoded = self.encoder(torch.zeros(1, channels, size, size)).shape[1]
        self.actor = Head(encoded, 0, A, features, hidden, 1)
        self.critic, self.target = (Head(encoded, A, 1, features, hidden, 2) for _ in range(2))
        self.target.load_state_dict(self.critic.state_dict())
        self.optimizers = [torch.optim.Adam(m.parameters(), 1e-4) for m in (self.encoder, self.critic, self.actor)]

    def policy(self, h: torch.Tensor, clip: float) -> torch.Tensor:
        action = torch.tanh(self.actor(h)[0])
        return (action + (SIGMA * torch.randn_like(action)).clamp(-clip, clip)).clamp(-1, 1)

    @torch.no_grad()
    def act(self, obs: np.ndarray) -> np.ndarray:
        x = torch.from_numpy(obs).permute(2, 0, 1)[None]
        return self.policy(self.encoder(x / 255 - 0.5), np.inf)[0].numpy()

    def update(self, obs, action, reward, discount, next_obs) -> None:
        h = self.encoder(shifted(obs.float()) / 255 - 0.5)
        with torch.no_grad():
            next_h = self.encoder(shifted(next_obs.float()) / 255 - 0.5)
            q = self.target(next_h, self.policy(next_h, CLIP))
            target = reward + discount * torch.minimum(*q)
        loss = sum(F.mse_loss(q, target) for q in self.critic(h, action))
        for optimizer in self.optimizers[:2]:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in self.optimizers[:2]:
            optimizer.step()
        h = h.detach()
        loss = -torch.minimum(*self.critic(h, self.policy(h, CLIP))).mean()
        self.optimizers[2].zero_grad()
        loss.backward()
        self.optimizers[2].step()
        with torch.no_grad():
            for slow, fast in zip(self.target.parameters(), self.critic.parameters(), strict=True):
                slow.mul_(0.99).add_(fast, alpha=0.01)


class PlainReplay:
    """Stores episodes of whole stacks; a minibatch is assembled row by row."""

    def __init__(self) -> None:
        self.episodes: list[list[tuple]] = []
        self.rng = np.random.default_rng(0)

    def begin(self, obs: np.ndarray) -> None:
        self.episodes.append([(obs, None, 0.0)])

    def add(self, action: np.ndarray, reward: float, obs: np.ndarray) -> None:
        self.episodes[-1].append((obs, action, reward))

    def sample(self, batch: int) -> list[torch.Tensor]:
        rows, long = [], [episode for episode in self.episodes if len(episode) > N_STEP]
        for _ in range(batch):
            episode = long[self.rng.integers(len(long))]
            first = self.rng.integers(len(episode) - N_STEP)
            reward, discount = 0.0, 1.0
            for _, _, paid in episode[first + 1 : first + 1 + N_STEP]:
                reward, discount = reward + discount * paid, discount * GAMMA
            obs, action, next_obs = episode[first][0], episode[first + 1][1], episode[first + N_STEP][0]
            rows.append((obs.transpose(2, 0, 1), action, [reward], [discount], next_obs.transpose(2, 0, 1)))
        columns = [torch.from_numpy(np.stack(column)) for column in zip(*rows, strict=True)]
        return [x if x.dtype == torch.uint8 else x.float() for x in columns]


class Plain:
    def __init__(self, env: dict, args: argparse.Namespace, clock: Clock):
        self.env, self.replay, self.args, self.clock = make.make(env), PlainReplay(), args, clock
        A, (size, _, channels) = self.env.action_space.shape[0], self.env.observation_space.shape
        self.agent = PlainDrQv2(channels, size, A, args.features, args.hidden)
        self.over = True
        self.step(args.warm_up)

    def step(self, count: int) -> None:
        for _ in range(count):
            if self.over:
                self.obs, _ = self.env.reset()
                self.replay.begin(self.obs)
            action = self.agent.act(self.obs)
            self.obs, reward, terminated, truncated, _ = self.env.step(action)
            self.clock.lap("acting")
            self.replay.add(action, reward, self.obs)
            self.over = terminated or truncated
            self.clock.lap("replay")

    def turn(self) -> None:
        for _ in range(self.args.updates):
            self.step(STEPS_PER_UPDATE)
            batch = self.replay.sample(self.args.batch)
            self.clock.lap("replay")
            self.agent.update(*batch)
            self.clock.lap("update")

    def close(self) -> None:
        self.env.close()


class Ours:
    def __init__(self, env: dict, args: argparse.Namespace, clock: Clock):
        collector = Collector(env, (0,))
        self.agent = DrQv2(collector.spec, (0,), features=args.features, hidden=(args.hidden,) * 2)
        self.agent.compile, self.args, self.clock = args.compile == "true", args, clock
        replay = Replay.of(self.agent, 100_000, stack=env["stack"])
        self.source = ReplayData(self.agent, collector, replay, args.batch, 1, STEPS_PER_UPDATE, args.warm_up)
        self.source.draw(args.warm_up)

    def turn(self) -> None:
        for _ in range(self.args.updates):
            for transition in self.source.collect(STEPS_PER_UPDATE):
                self.clock.lap("acting")
                self.source.replay.add(transition)
                self.clock.lap("replay")
            block = self.source.sample(1)
            self.clock.lap("replay")
            self.agent.learn(block)
            self.clock.lap("update")

    def close(self) -> None:
        self.source.collector.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--env", default="dm_control/cartpole-balance-v0")
    parser.add_argument("--size", type=int, default=84)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--features", type=int, default=50)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--updates", type=int, default=5, help="of a turn")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--warm-up", type=int, default=600, help="steps before the first update")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compile", choices=("true", "false"), default="true")
    parser.add_argument("--scene", choices=("fast", "whole"), default="fast")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    clock = Clock()
    env = make.with_limits({"id": args.env}, dict(pixels=dict(size=args.size, fast=args.scene == "fast")))
    clock.start()
    loops = dict(ours=Ours(env, args, clock), plain=Plain(env, args, clock))
    found: dict[str, list[dict[str, float]]] = {name: [] for name in loops}
    for turn in range(args.turns + 1):  # the first one compiles and is not counted
        for name, loop in loops.items():
            clock.start()
            loop.turn()
            if turn:
                found[name].append({part: seconds / args.updates for part, seconds in clock.seconds.items()})
    for loop in loops.values():
        loop.close()
    frames = STEPS_PER_UPDATE * env["pixels"]["repeat"]
    parts = ("rendering", "acting", "replay", "update")
    table = {
        name: {part: statistics.median(turn[part] for turn in turns) for part in parts} for name, turns in found.items()
    }
    for name, of in table.items():
        of["all"] = statistics.median(sum(turn.values()) for turn in found[name])
    print(f"milliseconds an update, which {STEPS_PER_UPDATE} steps of {frames // STEPS_PER_UPDATE} frames belong to")
    print(f"{'':<16}{'ours':>10}{'plain':>10}{'plain / ours':>14}")
    for part in (*parts, "all"):
        ours, other = table["ours"][part], table["plain"][part]
        print(f"{part:<16}{1e3 * ours:>10.1f}{1e3 * other:>10.1f}{other / ours:>14.2f}")
    ours, other = (frames / table[name]["all"] for name in ("ours", "plain"))
    print(f"{'frames a second':<16}{ours:>10.1f}{other:>10.1f}{ours / other:>14.2f}")
    if args.json:
        args.json.write_text(json.dumps(dict(vars(args), json=str(args.json), seconds=table), indent=1) + "\n")


if __name__ == "__main__":
    main()
