"""Train one model in several processes on this host, which share it as accelerate says: DDP or FSDP2.

The run's own process, which holds its claim and writes its record, starts them under torch's launcher and waits; they
end when it does, however it ends. What it hands to them and what they hand back goes through files in a folder within
the run's that only this user can open, and that is gone at the end, or when the run is taken up again: ``job`` (a
TrainingJob and the run's folder), ``progress``, and of the first process ``said``, what it logs, and ``outcome`` or
``error``. Checkpoints and the trained model go straight to the run's folder.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import pickle
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mxsweep.files.atomic import write_atomically
from mxsweep.files.locks import Lock
from mxsweep.machine.child_modules import child_environment
from mxsweep.terminal.errors import ConfigError
from mxsweep.terminal.progress_callback import Progress
from mxsweep.training.job import TrainingJob

JOB, PROGRESS, SAID, OUTCOME, ERROR, LOCK, LOG = "job", "progress", "said", "outcome", "error", "lock", "log"
BETWEEN = ".together_"  # what a folder's name begins with
LOOK_EVERY_S = 0.2
SHOWN_LINES = 15  # of what the processes wrote, where they died


def train_together(job: TrainingJob, folder: Path, progress: Progress) -> dict[str, Any]:
    """Train in ``job.train.processes`` processes; return what the first found, as ``team_member.py`` hands it over.

    Raises:
        ConfigError: what a user can mend.
        RuntimeError: a process died.
    """
    for left in folder.glob(f"{BETWEEN}*"):  # by a process that was killed: who trains has claimed the run
        shutil.rmtree(left, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=BETWEEN, dir=folder) as temporary:
        place = Path(temporary)
        (place / JOB).write_bytes(pickle.dumps((job, folder.absolute())))
        lock, said = Lock.take(place / LOCK), _Said(place / SAID)
        assert lock is not None, f"{place / LOCK} is new, and locked"
        try:
            with (place / LOG).open("wb") as log, _started(job.train.processes, place, log) as launcher:
                while launcher.poll() is None:
                    said.pass_on()
                    _report(place / PROGRESS, progress)
                    time.sleep(LOOK_EVERY_S)
            said.pass_on()
            _report(place / PROGRESS, progress)
            if (place / ERROR).exists():
                raise ConfigError((place / ERROR).read_text(encoding="utf-8"))
            if launcher.returncode or not (place / OUTCOME).exists():
                raise RuntimeError(f"a process that trained the model died: {_last_lines(place / LOG)}")
            outcome: dict[str, Any] = pickle.loads((place / OUTCOME).read_bytes())  # which our own process wrote
            return outcome
        finally:
            lock.release()


def report_to(place: Path) -> Progress:
    """Return what writes progress for the process that waits, not more often than that looks."""
    written = 0.0

    def progress(done: int, total: int, phase: str = "") -> None:
        nonlocal written
        if time.monotonic() - written > LOOK_EVERY_S or done == total:
            written = time.monotonic()
            write_atomically(place / PROGRESS, json.dumps([done, total, phase]), durable=False)

    return progress


class SayTo(logging.Handler):
    """Write what is logged, a line of JSON each, for the process that waits, which logs it."""

    def __init__(self, place: Path) -> None:
        super().__init__(logging.INFO)
        self._path = place / SAID

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        line = json.dumps([record.name, record.levelno, record.getMessage()])
        with self._path.open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")


class _Said:
    """Log what another process wrote by `SayTo`, each line once."""

    def __init__(self, path: Path) -> None:
        self._path, self._read = path, 0

    def pass_on(self) -> None:
        """Log the lines that were written since the last call."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._read)
            for line in file:
                if not line.endswith(b"\n"):  # the rest is being written
                    return
                self._read += len(line)
                name, level, text = json.loads(line)
                logging.getLogger(name).log(level, "%s", text)


@contextlib.contextmanager
def _started(processes: int, place: Path, log: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Start the processes under torch's launcher; when the context is left they are gone."""
    words = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    words += ["--log-dir", str(place / "logs")]  # a folder of the launcher's own would stay
    words += ["-m", "mxsweep.training.team_member", str(place)]
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // processes))
    launcher = subprocess.Popen(
        [sys.executable, *words],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        env=child_environment() | {"OMP_NUM_THREADS": threads},
        start_new_session=True,  # Ctrl-C is this process's to hear, which then ends them
    )
    try:
        yield launcher
    finally:
        if launcher.poll() is None:
            launcher.terminate()  # the launcher ends its processes
            try:
                launcher.wait(timeout=30)
            except subprocess.TimeoutExpired:
                launcher.kill()
        launcher.wait()


def _report(path: Path, progress: Progress) -> None:
    with contextlib.suppress(FileNotFoundError):  # nothing is written yet
        done, total, phase = json.loads(path.read_text(encoding="utf-8"))
        progress(done, total, phase)


def _last_lines(path: Path) -> str:
    """Return the end of what the processes wrote: the error first, where there is one, then what led to it."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    errors = [number for number, line in enumerate(lines) if line.rpartition(":")[2] and "Error" in line]
    end = errors[0] + 1 if errors else len(lines)  # the first: what torch's launcher says of it comes after
    shown = lines[max(0, end - SHOWN_LINES) : end]
    reason = re.sub(r"^\[rank\d+\]: *", "", lines[end - 1]) if errors else ""
    return "\n".join([reason, *shown])
