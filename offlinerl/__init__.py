"""offlinerl: datasets, training and evaluation for offline reinforcement learning."""

__version__ = "0.1.0"
