"""offlinerl: datasets, training and evaluation for offline reinforcement learning."""

import os

__version__ = "0.1.0"

# torch's CPU build waits for its threads by spinning, which stops every other job of a busy machine, and this one with
# it. Its OpenMP library reads the length of the wait when it is loaded, so this stands before anything imports torch.
if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
    os.environ["GOMP_SPINCOUNT"] = "1000"
