"""Compare with stable-baselines3: same networks, batch size, learning rates and update ratio, one seed and environment:
``pip install -e '.[benchmark]' && python tests/benchmarks/against_sb3.py``.

Speed is measured in steps per second, of both in turn, so that a busy moment favours neither. Our loop includes
Lightning, theirs includes its monitor. With ``--returns SEEDS``, both train to the end, and their curves and last
policies are compared instead: TD3 and DQN on small tasks in minutes; PPO and TRPO on a robot, with normalised
observations and rewards, in hours. ``--agents`` chooses among them.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import gymnasium as gym
import numpy as np
import sb3_contrib
import stable_baselines3 as sb3
import torch
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecNormalize, sync_envs_normalization

from offlinerl import benchmark
from offlinerl.api import fit
from offlinerl.evaluation.report import report
from offlinerl.evaluation.statistics import bootstrap
from offlinerl.util.folder import append

warnings.filterwarnings("ignore")

TD3 = dict(agent=dict(hidden=[256, 256], actor_lr=1e-3, critic_lr=1e-3, gamma=0.99, sigma=0.1), train=dict(batch=256))
DQN = dict(
    agent=dict(hidden=[64, 64], lr=1e-4, target_every=2500, epsilon_steps=800, final_epsilon=0.05),
    train=dict(batch=32, steps_per_update=4, block=1),
)
"""TD3 has the networks of its authors' code; DQN, PPO and TRPO have the defaults of stable-baselines3 and sb3-contrib,
which are also ours."""

PLAIN = dict(agent=dict(normalize_obs=False, normalize_reward=False))
ON_POLICY = dict(ppo=sb3.PPO, trpo=sb3_contrib.TRPO)


def theirs(
    name: str, env: str | VecNormalize, seed: int = 0, small: bool = False
) -> sb3.common.base_class.BaseAlgorithm:
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
    if small:  # the settings of offlinerl's configs; the 250 updates between two targets are 500 steps
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


def their_returns(name: str, env: str, seed: int, steps: int, every: int, episodes: int) -> dict[int, list[float]]:
    """The returns of their policies by training steps; the last policy plays ``episodes`` episodes."""
    if name in ON_POLICY:
        model = theirs(name, VecNormalize(make_vec_env(env, seed=seed)), seed)
        there = VecNormalize(make_vec_env(env, seed=1_000_000 + seed), training=False, norm_reward=False)
    else:
        model = theirs(name, env, seed, small=True)
        there = make_vec_env(env, seed=1_000_000 + seed)
    with tempfile.TemporaryDirectory() as log:  # without it, the results of the evaluations are not kept
        watch = EvalCallback(there, n_eval_episodes=10, eval_freq=every, log_path=log, verbose=0, warn=False)
        model.learn(steps, watch)
    found = dict(zip(map(int, watch.evaluations_timesteps), np.array(watch.evaluations_results).tolist(), strict=True))
    sync_envs_normalization(model.get_env(), there)
    last, _ = evaluate_policy(model, there, episodes, return_episode_rewards=True, warn=False)
    return found | {model.num_timesteps: list(map(float, last))}


def as_run(folder: Path, name: str, env: str, found: Sequence[Mapping[str, Sequence[float]]]) -> Path:
    """Write the returns of each seed by steps, as the files of a run that ``offlinerl report`` reads."""
    times = list(found[0])
    rows = [
        dict(step=time, seed=seed, score=score)
        for seed, of_seed in enumerate(found) for time in times for score in of_seed[time]
    ]  # fmt: skip
    (folder / "evaluations.csv").unlink(missing_ok=True)
    append(folder / "evaluations.csv", rows)
    means = {time: np.array([of_seed[time] for of_seed in found]).mean(-1) for time in times}  # [S] each
    best = max(times, key=lambda time: means[time].mean())
    last = np.array([of_seed[times[-1]] for of_seed in found])
    summary = dict(
        agent=f"stable-baselines3's {name}", dataset=None, env=env, seeds=list(range(len(found))), clock="steps",
        steps=int(times[-1]), score_kind="return", dataset_score=None,
        last=dict(mean=last.mean(), ci95=bootstrap(last)),
        best=dict(mean=means[best].mean(), per_seed=means[best].tolist(), step=int(best)),
    )  # fmt: skip
    (folder / "summary.json").write_text(json.dumps(summary, indent=1))
    return folder


def returns(agents: Sequence[str], seeds: int, keep: Path, episodes: int = 20) -> None:
    """Compare curves and last policies; finished trainings are kept and not repeated."""
    tasks = (
        ("td3", "Pendulum-v1", 10_000, {}),
        ("dqn", "CartPole-v1", 100_000, dict(double_q=False, max_grad_norm=10.0)),  # as theirs
        ("ppo", "HalfCheetah-v5", 1_000_000, {}),
        ("trpo", "HalfCheetah-v5", 1_000_000, {}),
    )
    runs: list[Path] = []
    for name, env, steps, agent in tasks:
        if name not in agents:
            continue
        every = max(steps // 20, 1000)
        over = dict(agent=agent, train=dict(final_episodes=episodes, steps=steps, eval_every=every))
        run, other = keep / f"{name}-{env}", keep / f"sb3-{name}-{env}"
        if not (run / "summary.json").exists():
            again = dict(resume=run) if (run / "last.ckpt").exists() else dict(out=run, env=env, seeds=range(seeds))
            fit(name, over={} if "resume" in again else over, **again)
        other.mkdir(parents=True, exist_ok=True)
        for seed in range(seeds):
            file = other / f"{seed}.json"
            if not file.exists():
                file.write_text(json.dumps(their_returns(name, env, seed, steps, every, episodes)))
        found = [json.loads((other / f"{seed}.json").read_text()) for seed in range(seeds)]
        runs += [run, as_run(other, name, env, found)]
    report(runs, keep / "report")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--agents", nargs="+", default=["td3", "dqn", "ppo", "trpo"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--returns", type=int, metavar="SEEDS", help="compare curves and last policies instead")
    parser.add_argument("--keep", type=Path, default=Path("runs/against-sb3"), help="where what is finished stays")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.returns:
        returns(args.agents, args.returns, args.keep)
    else:
        speed(args.agents, args.repeats, args.seconds)
