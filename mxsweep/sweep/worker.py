"""A process that works on a sweep for another: what submitit starts, on this host or on a Slurm cluster."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from mxsweep.results.claims import is_held
from mxsweep.sweep.execute import SweepRun, work

LOOK_EVERY_S = 0.5  # how soon a worker notices that its parent is gone


@dataclass
class Worker:
    """A callable for submitit, which pickles it, and calls ``checkpoint`` when Slurm is about to stop the job.

    Attributes:
        runs, launch, retries: as :func:`mxsweep.sweep.execute.work` takes them.
        parent: a file that the process which started this one holds a lock on; when it does no longer, this process
            ends. None where a worker outlives its parent, as on a cluster.
        threads: of the CPU; None for as many as torch takes.
    """

    runs: Sequence[SweepRun]
    launch: str
    retries: int
    parent: Path | None = None
    threads: int | None = None

    def __call__(self) -> None:
        logging.basicConfig(
            level=logging.INFO, format="[%(asctime)s] %(message)s", datefmt="%H:%M:%S", stream=sys.stdout, force=True
        )
        if self.parent is None:
            _let_only_exits_through(signal.SIGUSR2)
            _take_one_gpu()
        else:
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
            threading.Thread(target=_end_with, args=(self.parent,), daemon=True).start()
        if self.threads is not None:
            import torch

            torch.set_num_threads(self.threads)
        work(self.runs, self.launch, self.retries)

    def checkpoint(self) -> Any:
        """What to do when the job is requeued: the same, which leaves out the runs that are done by then."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)


def _end_with(parent: Path) -> None:
    while is_held(parent):
        time.sleep(LOOK_EVERY_S)
    # In the middle of a run, as if killed: what is in its folder bears that, and a GPU must not stay taken.
    os._exit(1)


def _let_only_exits_through(number: signal.Signals) -> None:
    """Keep submitit's handler, which requeues the job and exits, but for its errors.

    It raises them in the middle of a run when Slurm has requeued the job itself already, or will not have it any more;
    as errors they would be recorded as the run's.
    """
    handler = signal.getsignal(number)
    if not callable(handler):
        return
    requeue = handler

    def stop(received: int, frame: FrameType | None) -> None:
        try:
            requeue(received, frame)
        except Exception as error:
            print(f"not requeued by this process: {error}", file=sys.stderr)
            sys.exit(1)

    signal.signal(number, stop)


def _take_one_gpu() -> None:
    """Of the GPUs that a job has, let each of its tasks see one."""
    visible = [gpu for gpu in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu]
    if len(visible) > 1:
        os.environ["CUDA_VISIBLE_DEVICES"] = visible[int(os.environ.get("SLURM_LOCALID", "0")) % len(visible)]
