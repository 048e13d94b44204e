"""Episodes that differ from each other. torch is not imported, so that processes of tests start quickly."""

import gymnasium
import numpy as np

from offlinerl.data.episode import Episode
from offlinerl.data.episode_log import check_target, seal
from offlinerl.data.journal import Journal

ID = "test/cartpole-v0"
ENV = gymnasium.spec("CartPole-v1")
BOX = gymnasium.spaces.Box(-np.inf, np.inf, (4,), np.float32)
TWO = gymnasium.spaces.Discrete(2)
SPACES = dict(observation_space=BOX, action_space=TWO)


def episode(number=0, steps=None):
    """An episode; other numbers give other values and other lengths."""
    rng = np.random.default_rng(number)
    steps = 3 + number % 5 if steps is None else steps
    last = np.arange(steps) == steps - 1
    observations = rng.normal(size=(steps + 1, 4)).astype(np.float32)
    over, seed = last & (number % 2 > 0), None if number == 1 else number
    return Episode(observations, rng.integers(2, size=steps), np.ones(steps), over, last, seed=seed)


def filled(path, numbers=range(3)):
    with Journal(path) as journal:
        assert all(journal.append(episode(number)) for number in numbers)
    return path


def sealed(journal_path, numbers, agent="random", env_spec=ENV, append=False, **provenance):
    """Write some episodes to a journal and make a dataset from it."""
    with Journal(filled(journal_path, numbers)) as journal:
        path = check_target(ID, append, agent, env_spec, BOX)
        provenance = dict(collected_by="offlinerl", agent=agent, **provenance)
        metadata = dict(author="offlinerl", description=f"from {journal_path.name}", provenance=provenance)
        more = dict(dataset_id=ID, env_spec=env_spec, metadata=metadata, append=append)
        return seal(journal, path, **SPACES, **more)
