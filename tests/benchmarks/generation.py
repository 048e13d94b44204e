"""How fast datasets are made on one core, beside the environment alone: python tests/benchmarks/generation.py

Both are measured in turns, in CPU seconds of this process, and the medians are printed. The environment alone plays
again what was generated: how long a step takes depends on what touches what. cube-single needs the extra manipulation.
"""

import json
import statistics
import tempfile
import time
from contextlib import closing
from pathlib import Path

import torch

from offlinerl.data.journal import Journal
from offlinerl.envs.make import make
from offlinerl.recipes.generate import Part
from offlinerl.recipes.recipe import environment, read

ROUNDS = 3
LOCOMOTION = ("hopper-medium", "walker2d-medium", "halfcheetah-medium", "halfcheetah-random")
NAMES = (*LOCOMOTION, "antmaze-medium-play", "pointmaze-medium", "pointmaze-umaze", "kitchen-partial", "cube-single")


def alone(env, episodes):
    """Steps a second of an environment that plays episodes again, one after the other, resets included."""
    began = time.process_time()
    for episode in episodes:
        env.reset(seed=episode.seed)
        for action in episode.actions:
            env.step(action)
    return sum(len(episode.actions) for episode in episodes) / (time.process_time() - began)


def made(block, path):
    """Transitions a second of a block of a dataset of a million, and its episodes."""
    with Journal(path) as journal:
        began = time.process_time()
        block.play(journal, lambda: True)
        return journal.steps / (time.process_time() - began), list(journal)


def main():
    torch.set_num_threads(1)
    for name in NAMES:
        recipe = dict(read(name))
        with tempfile.TemporaryDirectory() as folder, closing(make(environment(recipe), seen=False)) as env:
            whole, rates = Part(recipe, 10**6, "transitions"), []
            for n in range(ROUNDS):
                rate, episodes = made(whole.block(n), Path(folder) / f"{n}.journal")
                rates.append((alone(env, episodes), rate))
        own, ours = (statistics.median(column) for column in zip(*rates, strict=True))
        share = statistics.median(b / a for a, b in rates)
        print(json.dumps(dict(dataset=name, environment=round(own), generation=round(ours), share=round(share, 2))))


if __name__ == "__main__":
    main()
