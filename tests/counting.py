"""An environment whose observation says which step of which episode it is, so that a wrong successor is detected."""

import gymnasium as gym
import numpy as np

ID = "test/Counting-v0"


class Counting(gym.Env):
    """Observes (reset seed mod 1000, steps so far, sum of actions). The seed decides the length of an episode, 3 to 9
    steps. An episode of even length terminates, and one of odd length is truncated."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (3,), np.float64)
    action_space = gym.spaces.Box(-2, 2, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state = np.array([seed % 1000, 0.0, 0.0])
        self.length = 3 + seed % 7
        return self.state.copy(), {}

    def step(self, action):
        self.state += (0, 1, float(action[0]))
        over = self.state[1] == self.length
        even = self.length % 2 == 0
        return self.state.copy(), float(self.state[1]), bool(over and even), bool(over and not even), {}


def register():
    if ID not in gym.registry:
        gym.register(ID, entry_point=Counting)
