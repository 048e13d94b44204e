"""Ours beside stable-baselines3, same networks, batch, rates and update ratio, one seed and one environment:
``pip install -e '.[benchmark]' && python tests/benchmarks/against_sb3.py``.

Speed is steps a second of both in turn, so that a busy moment favours neither; ours includes Lightning, theirs their
monitor. ``--returns SEEDS`` trains both to the end and compares their last policies instead: TD3 and DQN on small tasks
in minutes, PPO and TRPO on a robot, observations and rewards normalised, in an hour; ``--agents`` chooses.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import gymnasium as gym
import numpy as np
import sb3_contrib
import stable_baselines3 as sb3
import torch
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecNormalize

from offlinerl import benchmark
from offlinerl.evaluation import bootstrap
from offlinerl.training import fit

warnings.filterwarnings("ignore")

TD3 = dict(agent=dict(hidden=[256, 256], actor_lr=1e-3, critic_lr=1e-3, gamma=0.99, sigma=0.1), train=dict(batch=256))
DQN = dict(
    agent=dict(hidden=[64, 64], lr=1e-4, target_every=2500, epsilon_steps=800, final_epsilon=0.05),
    train=dict(batch=32, steps_per_update=4, block=1),
)
"""TD3 with the networks of its authors' code; DQN, PPO and TRPO as stable-baselines3 and sb3-contrib have them by
default, which are our defaults too. Gradients are clipped for policy and value apart here, and together there."""

PLAIN = dict(agent=dict(normalize_obs=False, normalize_reward=False))
ON_POLICY = dict(ppo=sb3.PPO, trpo=sb3_contrib.TRPO)


def theirs(name: str, env: str, seed: int = 0, small: bool = False) -> sb3.common.base_class.BaseAlgorithm:
    if name == "td3":
        made = gym.make(env)
        noise = sb3.common.noise.NormalActionNoise(np.zeros(made.action_space.shape), 0.1 * made.action_space.high)
        return sb3.TD3(
            "MlpPolicy", env, 1e-3, batch_size=256, learning_starts=1000 if small else 512, train_freq=1,
            gradient_steps=1, gamma=0.98 if small else 0.99, action_noise=noise, seed=seed, buffer_size=100_000,
            policy_kwargs=dict(net_arch=[256, 256]),
        )  # fmt: skip
    if name in ON_POLICY:
        return ON_POLICY[name]("MlpPolicy", env, seed=seed)
    if small:  # the settings of offlinerl's configs, with its target's 250 updates as the steps they take
        return sb3.DQN(
            "MlpPolicy", env, lambda left: 1e-3 * (1 + math.cos(math.pi * (1 - left))) / 2, gamma=0.98, batch_size=64,
            learning_starts=1000, train_freq=2, gradient_steps=1, target_update_interval=500,
            exploration_fraction=0.1, exploration_final_eps=0.05, policy_kwargs=dict(net_arch=[256, 256]), seed=seed,
            buffer_size=100_000,
        )  # fmt: skip
    return sb3.DQN(
        "MlpPolicy", env, 1e-4, batch_size=32, learning_starts=100, train_freq=4, gradient_steps=1, seed=seed,
        buffer_size=100_000,
    )  # fmt: skip


def their_rate(model: sb3.common.base_class.BaseAlgorithm, steps: int) -> float:
    began = time.perf_counter()
    model.learn(steps, reset_num_timesteps=False)
    return steps / (time.perf_counter() - began)


def speed(agents: Sequence[str], repeats: int, seconds: float) -> None:
    tasks = (
        ("td3", "HalfCheetah-v5", TD3, 500), ("dqn", "CartPole-v1", DQN, 8000), ("ppo", "HalfCheetah-v5", PLAIN, 4096),
        ("trpo", "HalfCheetah-v5", PLAIN, 4096),
    )  # fmt: skip
    for name, env, settings, chunk in tasks:
        if name not in agents:
            continue
        model = theirs(name, env)
        model.learn(1000)
        ours, other = [], []
        for _ in range(repeats):
            ours.append(benchmark.steps_per_second(name, torch.device("cpu"), settings, seconds))
            other.append(their_rate(model, chunk))
        a, b = statistics.median(ours), statistics.median(other)
        print(f"{name} on {env}: ours {a:,.0f} steps/s, stable-baselines3 {b:,.0f}, ratio {a / b:.2f}", flush=True)


def their_returns(name: str, env: str, seed: int, steps: int, episodes: int) -> list[float]:
    """Returns of their last policy."""
    if name not in ON_POLICY:
        return evaluate_policy(theirs(name, env, seed, small=True).learn(steps), gym.make(env), episodes,
                               return_episode_rewards=True)[0]  # fmt: skip
    seen = VecNormalize(make_vec_env(env, seed=seed))
    model = ON_POLICY[name]("MlpPolicy", seen, seed=seed).learn(steps)
    seen.training = seen.norm_reward = False
    return evaluate_policy(model, seen, episodes, return_episode_rewards=True)[0]


def returns(agents: Sequence[str], seeds: int, keep: Path, episodes: int = 20) -> None:
    """Compare last policies; what is finished is kept and not done again."""
    tasks = (
        ("td3", "Pendulum-v1", 10_000, {}),
        ("dqn", "CartPole-v1", 100_000, dict(double_q=False, max_grad_norm=10.0)),  # as theirs
        ("ppo", "HalfCheetah-v5", 1_000_000, {}),
        ("trpo", "HalfCheetah-v5", 1_000_000, {}),
    )
    keep.mkdir(parents=True, exist_ok=True)
    for name, env, steps, agent in tasks:
        if name not in agents:
            continue
        over = dict(agent=agent, train=dict(final_episodes=episodes, steps=steps, eval_every=max(steps // 20, 10_000)))
        run = keep / f"{name}-{env}"
        if not (run / "summary.json").exists():
            again = dict(resume=run) if (run / "last.ckpt").exists() else dict(out=run, env=env, seeds=range(seeds))
            fit(name, over={} if "resume" in again else over, **again)
        last = json.loads((run / "summary.json").read_text())["last"]
        other = []
        for seed in range(seeds):
            file = keep / f"sb3-{name}-{env}-{seed}.json"
            if not file.exists():
                file.write_text(json.dumps(list(map(float, their_returns(name, env, seed, steps, episodes)))))
            other.append(json.loads(file.read_text()))
        low, high = bootstrap(np.array(other))
        print(
            f"{name} on {env}, {seeds} seeds, {steps:,} steps, {episodes} episodes: ours {last['mean']:.1f}"
            f" [{last['ci95'][0]:.1f}, {last['ci95'][1]:.1f}], stable-baselines3 {np.mean(other):.1f} [{low:.1f},"
            f" {high:.1f}], by seed {np.mean(other, 1).round(1)}",
            flush=True,
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--agents", nargs="+", default=["td3", "dqn", "ppo", "trpo"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--returns", type=int, metavar="SEEDS", help="compare last policies of so many seeds instead")
    parser.add_argument("--keep", type=Path, default=Path("runs/against-sb3"), help="where finished trainings stay")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.returns:
        returns(args.agents, args.returns, args.keep)
    else:
        speed(args.agents, args.repeats, args.seconds)
