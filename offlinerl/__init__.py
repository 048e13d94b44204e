"""offlinerl: datasets, training and evaluation for offline reinforcement learning."""

import importlib
from typing import Any

__version__ = "0.2.0.dev0"

_HOMES = {
    "api": ("fit", "evaluate", "collect", "select", "report", "export", "load_dataset"),
    "training.result": ("FitResult",),
    "rollout.deployed": ("load_policy", "DeployedPolicy"),
    "rollout.policy": ("Policy",),
    "data.dataset": ("Dataset",),
    "agents.base": ("Agent", "Config", "setting"),
    "types": ("Batch", "Spec"),
    "util.errors": ("UserError",),
    "agents.bc": ("BC",),
    "agents.iql": ("IQL",),
    "agents.xql": ("XQL",),
    "agents.td3bc": ("TD3BC",),
    "agents.edac": ("EDAC",),
    "agents.rebrac": ("ReBRAC",),
    "agents.cql": ("CQL",),
    "agents.calql": ("CalQL",),
    "agents.discrete_cql": ("DiscreteCQL",),
    "agents.awac": ("AWAC",),
    "agents.onestep": ("OneStep",),
    "agents.fql": ("FQL",),
    "agents.dt": ("DT",),
    "agents.vae": ("VAE",),
    "agents.dqn": ("DQN",),
    "agents.ddpg": ("DDPG",),
    "agents.td3": ("TD3",),
    "agents.d4pg": ("D4PG",),
    "agents.sac": ("SAC",),
    "agents.drqv2": ("DrQv2",),
    "agents.xtd3": ("XTD3",),
    "agents.xsac": ("XSAC",),
    "agents.reinforce": ("REINFORCE",),
    "agents.is_reinforce": ("ISREINFORCE",),
    "agents.a2c": ("A2C",),
    "agents.npg": ("NPG",),
    "agents.trpo": ("TRPO",),
    "agents.ppo": ("PPO",),
}
_NAMES = {name: module for module, names in _HOMES.items() for name in names}

__all__ = ["__version__", *_NAMES]


def __getattr__(name: str) -> Any:
    """Import the module of a public name on first use: torch takes seconds to load, and the command line must not."""
    if name not in _NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_NAMES[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *_NAMES]
