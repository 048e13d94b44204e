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
    """One step of policy improvement over the behaviour: its own Q, and the policy that imitates what it did better
    than on average (paper, section 3.2, "exponentially weighted imitation").

    The behaviour's Q is learnt as IQL's with the expectile 0.5, that is with V the mean of Q over the data's actions:
    the same fixed point as the paper's SARSA, with less noise.
    """

    config_class = OneStepConfig
