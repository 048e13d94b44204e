"""One-step RL: offline RL without off-policy evaluation (Brandfonbrener, Whitney, Ranganath & Bruna, NeurIPS 2021)."""

from __future__ import annotations

from dataclasses import dataclass

from offlinerl.agents.base import fixed
from offlinerl.agents.iql import IQL, IQLConfig


@dataclass(frozen=True)
class OneStepConfig(IQLConfig):
    expectile: float = fixed(0.5)
    temperature: float = 1.0


class OneStep(IQL):
    """One step of policy improvement over the behaviour policy: estimate the behaviour's Q, then imitate its actions
    weighted by the exponential of their advantage (paper, section 3.2, "exponentially weighted imitation").

    The behaviour's Q is learned as in IQL with expectile 0.5, so that V is the mean of Q over the dataset's actions:
    the same fixed point as the paper's SARSA, with less noise.
    """

    config_class = OneStepConfig
