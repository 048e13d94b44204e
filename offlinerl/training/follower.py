"""The processes of rank 1 and above in data-parallel training; see ``offlinerl.training.processes``."""

from __future__ import annotations

import os
import pickle
import sys
import threading
import warnings
from typing import NoReturn

import torch
import torch.distributed as dist

from offlinerl.training.build import build
from offlinerl.training.processes import PATIENCE
from offlinerl.util.errors import UserError
from offlinerl.util.threads import set_threads


def main(rank: int) -> None:
    """Read a job from standard input, write a line to standard output when the run is built, and train. This process
    ends when the one that started it ends, in whatever way."""
    ready = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # only rank 0 prints
    warnings.simplefilter("ignore")
    job = pickle.load(sys.stdin.buffer)
    threading.Thread(target=end_with_rank_zero, daemon=True).start()
    if job["own"] is not None:  # an agent class of a notebook or script, whose __main__ is not imported here
        setattr(sys.modules["__main__"], job["own"].__name__, job["own"])
    set_threads(job["threads"])
    try:
        run = build(job["settings"], job["entry"], torch.device(job["device"]), job["folder"], rank=rank)
        run.restore()
        os.write(ready, b"ready\n")
        run.team.connect(dist.TCPStore("127.0.0.1", job["port"], timeout=PATIENCE))
        run.follow()
    except UserError as error:
        print(f"process {rank}: {error}", file=sys.stderr)
        sys.exit(error.status)


def end_with_rank_zero() -> NoReturn:
    """Exit when standard input is closed, which happens when rank 0 ends."""
    while os.read(0, 1):
        pass
    os._exit(1)
