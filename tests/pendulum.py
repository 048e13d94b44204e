"""A small cheap task for tests of the command line: short episodes of Pendulum by random actions."""

import copy
import csv
import json
import multiprocessing
import os
import subprocess
import sys
import threading
from contextlib import contextmanager
from multiprocessing.reduction import DupFd

import drawing
import gymnasium as gym
import numpy as np
import pytest
import torch

from offlinerl.agents.checkpoint import read
from offlinerl.cli import main
from offlinerl.data.episode import Episode
from offlinerl.data.minari_writer import write_minari

ID = "test/pendulum-v0"
STEPS = 25
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["offlinerl.training.build", "offlinerl.training.collection"])  # these start no threads


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
    """Write a Minari dataset into the folder of datasets."""
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


def start(*argv, cwd):
    """Run the command line in a separate process, forked from one that has imported what a training needs."""
    return Forked(_offlinerl, argv, cwd)


def start_python(code, *argv, cwd="."):
    """The same for a program, like ``python -c``."""
    return Forked(_python, (code, *argv), cwd)


def start_afresh(*argv, cwd):
    """Run the command line in a new process, which imports everything itself."""
    command = [sys.executable, "-m", "offlinerl", *map(str, argv)]
    return subprocess.Popen(command, cwd=cwd, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


class Forked:
    """Like ``subprocess.Popen`` with pipes for both outputs, but without seconds of imports."""

    def __init__(self, job, argv, cwd):
        (self.stdout, out), (self.stderr, err) = (map(os.fdopen, os.pipe(), "rw") for _ in range(2))
        ends = [DupFd(pipe.fileno()) for pipe in (out, err)]
        self.process = FORKS.Process(
            target=_run, args=(job, [*map(str, argv)], os.path.abspath(cwd), dict(os.environ), *ends)
        )
        self.process.start()
        self.pid = self.process.pid
        out.close()
        err.close()

    @property
    def returncode(self):
        return self.process.exitcode

    poll = returncode.fget

    def send_signal(self, number):
        os.kill(self.pid, number)

    def kill(self):
        self.process.kill()

    def wait(self, timeout=None):
        self.process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired("a forked process", timeout)

    def communicate(self, timeout=None):
        """Return the remaining output of both pipes when the process ends."""
        said = {}

        def listen(name):
            said[name] = getattr(self, name).read()

        listeners = [threading.Thread(target=listen, args=(name,)) for name in ("stdout", "stderr")]
        for listener in listeners:
            listener.start()
        self.wait(timeout)
        for listener in listeners:
            listener.join()
        return said["stdout"], said["stderr"]


def _run(job, argv, cwd, environment, out, err):
    os.dup2(out.detach(), 1)
    os.dup2(err.detach(), 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", 1, closefd=False)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    sys.path[0] = cwd
    with drawing.coarse():
        sys.exit(job(*argv))


def _offlinerl(*argv):
    sys.argv = ["offlinerl", *argv]
    return main([*argv])


def _python(code, *argv):
    sys.argv = ["-c", *argv]
    exec(compile(code, "a program", "exec"), {"__name__": "__main__"})


def fit(*argv):
    """Run a training and return its exit status."""
    return main(["fit", *map(str, argv)])


def rows(path):
    """The rows of a CSV file."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def summary(folder):
    return json.loads((folder / "summary.json").read_text())


def weights(folder):
    """The weights in a run's last checkpoint, by name."""
    return read(folder / "last.ckpt")["state_dict"]


def differing(folder, other):
    """The names of the weights in which two runs ended differently."""
    first, second = weights(folder), weights(other)
    assert first.keys() == second.keys()
    return [name for name in first if not torch.equal(first[name], second[name])]
