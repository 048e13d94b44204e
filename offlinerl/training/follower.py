"""A process that trains together with the one that the user started; see ``offlinerl.training.processes``."""

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
    """Take a job from standard input, say by a line on standard output when its run is built, and train. The process
    ends with the one that started it, in whatever way that ends."""
    said = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what there is to say, the first process says
    warnings.simplefilter("ignore")
    job = pickle.load(sys.stdin.buffer)
    threading.Thread(target=end_with_the_first, daemon=True).start()
    if job["own"] is not None:  # of a notebook or a script, which is no module here
        setattr(sys.modules["__main__"], job["own"].__name__, job["own"])
    set_threads(job["threads"])
    try:
        run = build(job["settings"], job["entry"], torch.device(job["device"]), job["folder"], rank=rank)
        run.restore()
        os.write(said, b"ready\n")
        run.team.connect(dist.TCPStore("127.0.0.1", job["port"], timeout=PATIENCE))
        run.follow()
    except UserError as error:
        print(f"process {rank}: {error}", file=sys.stderr)
        sys.exit(error.status)


def end_with_the_first() -> NoReturn:
    """Standard input ends when the process at its other end does."""
    while os.read(0, 1):
        pass
    os._exit(1)
