"""Start processes on this host that work on a sweep, and hand each the runs: while these are planned, workers import.

Each waits on a pipe that this process holds the other end of, and ends when that is gone, however it went.
"""

from __future__ import annotations

import contextlib
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from mxsweep.machine.child_modules import child_environment
from mxsweep.sweeps.worker import LENGTH_BYTES, Worker, output_files

CHILD = "from mxsweep.sweeps.worker import serve; serve()"
PATIENCE_S = 3.0  # for a worker that is to end to take back its claim


class WorkerProcess:
    """Hold a process that works on a sweep once it is given the runs.

    Attributes:
        gpu: the only one that it sees; None for none.
    """

    def __init__(self, gpu: int | None) -> None:
        self.gpu = gpu
        self._folder: Path | None = None
        # What it says until it is given its runs, and a folder for that.
        self._first_words: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
        with _interrupts_held_back():
            self._process = subprocess.Popen(
                [sys.executable, "-u", "-c", CHILD],
                stdin=subprocess.PIPE,
                stdout=self._first_words,
                stderr=self._first_words,
                env=child_environment() | {"CUDA_VISIBLE_DEVICES": "" if gpu is None else str(gpu)},
            )

    @property
    def is_done(self) -> bool:
        """Return whether the process has ended."""
        return self._process.poll() is not None

    def give(self, worker: Worker, folder: Path) -> None:
        """Hand the process its runs, and the folder for what it says."""
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        content = pickle.dumps((folder, worker))
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died, which whoever looks for it will see
            self._process.stdin.write(len(content).to_bytes(LENGTH_BYTES, "big") + content)
            self._process.stdin.flush()

    def last_words(self) -> str:
        """Return the last line that the process wrote to its error output, with the file's name."""
        if self._folder is not None:
            path = output_files(self._folder, self._process.pid)[1]
            if path.exists():
                return f"{_last_line(path.read_bytes())} (see {path})"
        self._first_words.seek(0)
        return _last_line(self._first_words.read())

    def send(self, number: signal.Signals) -> None:
        """Send the process a signal, unless it has ended."""
        if not self.is_done:
            self._process.send_signal(number)


def end_workers(processes: Iterable[WorkerProcess]) -> None:
    """End processes: politely, so that they take back their claims, then not."""
    left = [process for process in processes if not process.is_done]
    for number, patience_s in ((signal.SIGTERM, PATIENCE_S), (signal.SIGKILL, PATIENCE_S)):
        for process in left:
            process.send(number)
        end = time.monotonic() + patience_s
        while (left := [process for process in left if not process.is_done]) and time.monotonic() < end:
            time.sleep(0.01)


class EarlyWorkers:
    """Hold workers that import while the runs are planned, of which those that nobody takes are ended."""

    def __init__(self) -> None:
        self._waiting: list[WorkerProcess] = []

    @contextmanager
    def started(self, gpus: Sequence[int | None]) -> Iterator[None]:
        """Start a worker for each of the GPUs, or None; when the context is left, those that wait still are ended."""
        try:
            with contextlib.suppress(OSError):  # which whoever takes one meets as well, and says
                for gpu in gpus:
                    self._waiting.append(WorkerProcess(gpu))
            yield
        finally:
            self.dismiss()

    def take(self, gpu: int | None) -> WorkerProcess:
        """Return a worker that sees a GPU, or none: one that waits, else a new one."""
        for process in self._waiting:
            if process.gpu == gpu and not process.is_done:
                self._waiting.remove(process)
                return process
        return WorkerProcess(gpu)

    def dismiss(self) -> None:
        """End the workers that wait."""
        waiting, self._waiting = self._waiting, []
        end_workers(waiting)


EARLY_WORKERS = EarlyWorkers()


@contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Keep Ctrl-C from processes that are started in the context; this one hears of it when the context is left.

    It goes to every process of the terminal; only this one answers it, and ends the others.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])  # which they take over
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _last_line(said: bytes) -> str:
    lines = said.decode(errors="replace").split("\n")
    return next((line for line in reversed(lines) if line.strip()), "no message")
