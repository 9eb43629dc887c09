"""Work on a sweep in a process that another one started: beside it on this host, or by submitit on a Slurm cluster."""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from types import FrameType
from typing import NoReturn

from mxsweep.runs.run import import_evaluation
from mxsweep.sweeps.execute import LOG_FORMAT, SweepRun, work
from mxsweep.terminal.command import leave

STOP_WITHIN_S = 10.0  # how long a worker on a cluster takes, at most, to stop once it heeds a signal
LENGTH_BYTES = 8  # of the number, on a worker's standard input, of bytes that follow


@dataclass
class Worker:
    """Do the runs of a launch; on a cluster a callable for submitit, which pickles it.

    Attributes:
        runs, launch, retries: as :func:`mxsweep.sweeps.execute.work` takes them.
        threads: of the CPU; None for as many as torch takes.
        all_gpus: on a cluster, whether a process uses all GPUs of its job, rather than one.
    """

    runs: Sequence[SweepRun]
    launch: str
    retries: int
    threads: int | None = None
    all_gpus: bool = False

    def __call__(self) -> None:
        """Do the runs in a job, which outlives the process that submitted it."""
        logging.getLogger("submitit").propagate = False  # it has a handler of its own
        _stop_at(signal.SIGUSR2, signal.SIGTERM)
        if not self.all_gpus:
            _take_one_gpu()
        self.work()

    def work(self) -> None:
        """Do the runs."""
        line, time_of_day = LOG_FORMAT
        logging.basicConfig(level=logging.INFO, format=line, datefmt=time_of_day, stream=sys.stdout, force=True)
        if self.threads is not None:
            import_evaluation()  # of which torch is a part
            import torch

            torch.set_num_threads(self.threads)
        work(self.runs, self.launch, self.retries)


def serve() -> NoReturn:
    """Be a worker on this host: import what evaluates, wait for the runs on standard input, do them, and end.

    When the process that started this one is gone, this one ends, too.
    """
    orders: SimpleQueue[bytes] = SimpleQueue()
    # From here on a process that this one starts, as a compiler, does not hold the pipe.
    pipe = os.dup(0)
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    threading.Thread(target=_listen, args=(pipe, orders), daemon=True).start()
    with contextlib.suppress(Exception):  # which the first run meets as well, and then is its result
        import_evaluation()
    folder, worker = pickle.loads(orders.get())
    for stream, path in zip((1, 2), output_files(folder, os.getpid()), strict=True):
        with path.open("ab") as file:
            os.dup2(file.fileno(), stream)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that a claim is taken back
    code = 1
    try:
        worker.work()
        code = 0
    except SystemExit:
        pass
    except BaseException:
        traceback.print_exc()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    leave(code)


def output_files(folder: Path, pid: int) -> tuple[Path, Path]:
    """Return the files for what a worker on this host writes to its output and to its error output."""
    return folder / f"{pid}.out", folder / f"{pid}.err"


def _listen(pipe: int, orders: SimpleQueue[bytes]) -> None:
    """Pass on what comes through a pipe, and end this process when nobody holds the other end any longer."""
    with open(pipe, "rb") as stream:
        length = int.from_bytes(stream.read(LENGTH_BYTES), "big")
        if content := stream.read(length):
            orders.put(content)
        stream.read()
    # In the middle of a run, as if killed: what is in its folder bears that, and a GPU must not stay taken.
    os._exit(1)


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
