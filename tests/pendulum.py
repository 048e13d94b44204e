"""A small cheap task for tests of the command line: short episodes of Pendulum by random actions."""

import copy
import csv
import json
import os
import subprocess
import sys
from contextlib import contextmanager

import gymnasium as gym
import numpy as np
import pytest

from offlinerl.agents.checkpoint import read
from offlinerl.cli import main
from offlinerl.data.episode import Episode
from offlinerl.data.minari_writer import write_minari

ID = "test/pendulum-v0"
STEPS = 25


def episodes(env: gym.Env, count: int):
    env.action_space.seed(0)
    for number in range(count):
        observations = [env.reset(seed=number)[0]]
        actions = np.stack([env.action_space.sample() for _ in range(STEPS)])
        steps = [env.step(action) for action in actions]
        observations += [step[0] for step in steps]
        rewards, terminations, truncations = (np.array([step[i] for step in steps]) for i in (1, 2, 3))
        yield Episode(np.stack(observations), actions, rewards, terminations, truncations)


def install(root, name=ID, count=8):
    """A Minari dataset below a folder of them."""
    spec = copy.deepcopy(gym.spec("Pendulum-v1"))
    spec.max_episode_steps = STEPS
    env = gym.make(spec)
    return write_minari(
        root / name, episodes(env, count), dataset_id=name, env_spec=env.spec,
        observation_space=env.observation_space, action_space=env.action_space,
    )  # fmt: skip


@contextmanager
def empty_workplace(folder):
    """A fresh working directory without any dataset."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(folder / "minari"))
        patch.setenv("OFFLINERL_HOME", str(folder / "cache"))
        patch.chdir(folder)
        yield folder


@contextmanager
def workplace(folder):
    """A fresh working directory with the dataset installed."""
    with empty_workplace(folder):
        install(folder / "minari")
        yield folder


def start(*argv, cwd, **environment):
    """The command line in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "offlinerl", *map(str, argv)], cwd=cwd, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, env={**os.environ, **environment},
    )  # fmt: skip


def fit(*argv):
    """The exit status of a training."""
    return main(["fit", *map(str, argv)])


def rows(path):
    """The rows of a CSV file."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def summary(folder):
    return json.loads((folder / "summary.json").read_text())


def weights(folder):
    """Those of a run's last checkpoint, by name."""
    return read(folder / "last.ckpt")["state_dict"]
