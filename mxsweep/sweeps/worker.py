"""Work on a sweep in a process that submitit starts for another one, on this host or on a Slurm cluster."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from mxsweep.files.locks import end_with
from mxsweep.runs.run import import_evaluation
from mxsweep.sweeps.execute import LOG_FORMAT, SweepRun, work

STOP_WITHIN_S = 10.0  # how long a worker on a cluster takes, at most, to stop once it heeds a signal


@dataclass
class Worker:
    """Do the runs of a launch: a callable for submitit, which pickles it.

    Attributes:
        runs, launch, retries: as :func:`mxsweep.sweeps.execute.work` takes them.
        parent: a file that the process which started this one holds a lock on; when it does no longer, this process
            ends. None where a worker outlives its parent, as on a cluster.
        threads: of the CPU; None for as many as torch takes.
        all_gpus: on a cluster, whether a process uses all GPUs of its job, rather than one.
    """

    runs: Sequence[SweepRun]
    launch: str
    retries: int
    parent: Path | None = None
    threads: int | None = None
    all_gpus: bool = False

    def __call__(self) -> None:
        line, time_of_day = LOG_FORMAT
        logging.basicConfig(level=logging.INFO, format=line, datefmt=time_of_day, stream=sys.stdout, force=True)
        logging.getLogger("submitit").propagate = False  # it has a handler of its own
        if self.parent is None:
            _stop_at(signal.SIGUSR2, signal.SIGTERM)
            if not self.all_gpus:
                _take_one_gpu()
        else:
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
            threading.Thread(target=end_with, args=(self.parent,), daemon=True).start()
        if self.threads is not None:
            import_evaluation()  # of which torch is a part
            import torch

            torch.set_num_threads(self.threads)
        work(self.runs, self.launch, self.retries)


def _stop_at(*signals: signal.Signals) -> None:
    """End at the first of these signals, with the exit code that a shell gives to a process that died of it.

    By USR2 Slurm says that a job's time is nearly over or that it is preempted; by TERM that it is preempted or
    cancelled. To tell these apart, and to have the job queued again, is up to the job's script (see on_slurm.py).
    submitit's own handler does it in this process: it takes a preemption of a short job for a time-out, stops only the
    first of several tasks, and raises, in the middle of a run, where Slurm was quicker.
    """

    def stop(received: int, _: FrameType | None) -> None:
        for each in signals:
            signal.signal(each, signal.SIG_IGN)  # another one must not disturb the end
        print(f"stopped by Slurm ({signal.Signals(received).name})", flush=True)
        code = 128 + received
        # Should somebody's `except` swallow the exit, or something not end.
        patience = threading.Timer(STOP_WITHIN_S, os._exit, [code])
        patience.daemon = True
        patience.start()
        sys.exit(code)

    for each in signals:
        signal.signal(each, stop)


def _take_one_gpu() -> None:
    """Let each task of a job see one of the GPUs that the job has."""
    visible = [gpu for gpu in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu]
    if len(visible) > 1:
        os.environ["CUDA_VISIBLE_DEVICES"] = visible[int(os.environ.get("SLURM_LOCALID", "0")) % len(visible)]
