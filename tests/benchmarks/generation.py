"""How fast datasets are made on one core, beside the environment alone: python tests/benchmarks/generation.py

Both are measured in turns, in CPU seconds of this process, and the medians are printed. The policy is one of SAC, with
two hidden layers of 256, that has learnt nothing.
"""

import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from offlinerl.agents import shipped
from offlinerl.agents.sac import SAC
from offlinerl.data.journal import Journal
from offlinerl.envs.make import make, spec_of
from offlinerl.recipes import rollouts
from offlinerl.recipes.generate import LANES
from offlinerl.recipes.recipe import environment, read

ROUNDS, STEPS = 5, 3200
NAMES = ("hopper-medium", "walker2d-medium", "halfcheetah-medium", "antmaze-medium-play", "pointmaze-medium")


def alone(env, count):
    """Steps a second of an environment under random actions, resets included."""
    actions = np.random.default_rng(0).uniform(-1, 1, (count, *env.action_space.shape)).astype(np.float32)
    env.reset(seed=0)
    began = time.process_time()
    for action in actions:
        *_, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            env.reset()
    return count / (time.process_time() - began)


def made(recipe, folder, number):
    """Transitions a second of a block."""
    with Journal(folder / f"{number}.journal") as journal:
        began = time.process_time()
        rollouts.play(recipe, range(LANES * number, LANES * (number + 1)), STEPS // LANES, journal, lambda: True)
        return journal.steps / (time.process_time() - began)


def main():
    torch.set_num_threads(1)
    for name in NAMES:
        recipe = dict(read(name))
        described = environment(recipe)
        described = {**described, "max_episode_steps": 200} if "maze" in name else described
        recipe["env"] = described
        with tempfile.TemporaryDirectory() as folder:
            if "policy" in recipe:
                with_policy = make({"id": recipe["training"]["env"]})
                path = Path(folder) / "policy.safetensors"
                shipped.write(SAC(spec_of(with_policy), (0,)), path, {})
                rollouts.policy_file = lambda _, path=path: path
            rollouts.environment = lambda recipe: recipe["env"]
            env = make(described, recipe.get("obs_keys"), seen=False)
            made(recipe, Path(folder), 0)
            rates = [(alone(env, STEPS), made(recipe, Path(folder), n)) for n in range(1, ROUNDS + 1)]
        own, ours = (statistics.median(column) for column in zip(*rates, strict=True))
        share = statistics.median(b / a for a, b in rates)
        print(json.dumps(dict(dataset=name, environment=round(own), generation=round(ours), share=round(share, 2))))


if __name__ == "__main__":
    main()
