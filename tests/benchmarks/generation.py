"""Speed of generating datasets on one core, compared with the environment alone: python tests/benchmarks/generation.py

Both are measured in turn, in CPU seconds, and the medians are printed. Every dataset has a process of its own, as when
it is generated: environments of others that stay in memory slow it down. The environment alone replays the generated
episodes, because the time of a step depends on the contacts. cube-single needs the extra ``manipulation``.
"""

import json
import statistics
import subprocess
import sys
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
    """Steps per second of an environment that replays episodes one after another, including resets."""
    began = time.process_time()
    for episode in episodes:
        env.reset(seed=episode.seed)
        for action in episode.actions:
            env.step(action)
    return sum(len(episode.actions) for episode in episodes) / (time.process_time() - began)


def made(block, path):
    """Transitions per second for a block of a dataset of a million transitions, and the block's episodes."""
    with Journal(path) as journal:
        began = time.process_time()
        block.play(journal, lambda: True)
        return journal.steps / (time.process_time() - began), list(journal)


def measure(name):
    torch.set_num_threads(1)
    recipe = dict(read(name))
    with tempfile.TemporaryDirectory() as folder, closing(make(environment(recipe), observed=False)) as env:
        whole, rates = Part(recipe, 10**6, "transitions"), []
        for n in range(ROUNDS):
            rate, episodes = made(whole.block(n), Path(folder) / f"{n}.journal")
            rates.append((alone(env, episodes), rate))
    own, ours = (statistics.median(column) for column in zip(*rates, strict=True))
    share = statistics.median(b / a for a, b in rates)
    print(json.dumps(dict(dataset=name, environment=round(own), generation=round(ours), share=round(share, 2))))


if __name__ == "__main__":
    for name in sys.argv[1:]:
        measure(name)
    for name in NAMES if len(sys.argv) == 1 else ():
        subprocess.run([sys.executable, __file__, name], check=True)
