"""Begin a launch, one go at the runs of a sweep, and watch what other processes do in it.

What processes say is kept in a new folder for each launch. Whether one is still there, or what Slurm says of a job, is
only ever a hint at whether somebody is at work; whether a run is done, its result.json says.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mxsweep.files.locks import Lock, holder
from mxsweep.sweeps.execute import SweepObserver, SweepRun, settled_record
from mxsweep.terminal.interrupts import raise_lost_interrupt

LAUNCHES = ".launches"  # in a sweep's folder: one folder per launch, with its lock and what its processes say
LOCK_NAME = "lock"


class LaunchError(Exception):
    """Say that runs cannot be done where they should be, and what to mend."""


@dataclass(frozen=True)
class Launch:
    """Name one go at the runs of a sweep, and the folder for what belongs to that go alone."""

    name: str
    folder: Path

    @property
    def lock(self) -> Path:
        """Return the file that is locked for as long as the launch lasts."""
        return self.folder / LOCK_NAME


@contextmanager
def begin_launch(sweep: Path, name: str) -> Iterator[Launch]:
    """Make a launch's folder, and keep it locked for as long as this process is at it."""
    launch = Launch(name, sweep / LAUNCHES / name)
    if (sweep / LAUNCHES).is_symlink():  # what is kept of launches would land elsewhere
        raise LaunchError(f"{LAUNCHES} in {sweep} is a link; remove it")
    lock = Lock.take(launch.lock)
    assert lock is not None, f"{launch.lock} is locked: launch names repeat"
    try:
        yield launch
    finally:
        lock.release()


class Watch:
    """Tell observers what other processes do with some runs.

    Attributes:
        unsettled: runs that have no result yet, by their ids.
        running: what the process at work on a run says, by the run's id.
    """

    def __init__(self, runs: Sequence[SweepRun], observers: Sequence[SweepObserver]) -> None:
        self.unsettled = {run.run_id: run for run in runs}
        self.running: dict[str, dict[str, Any]] = {}
        self._observers = observers

    @property
    def idle(self) -> list[SweepRun]:
        """Return the runs that nobody works on and that have no result."""
        return [run for name, run in self.unsettled.items() if name not in self.running]

    def look(self) -> None:
        """Look into the folders of the runs, and tell the observers what changed."""
        raise_lost_interrupt()
        for name, run in list(self.unsettled.items()):
            # Before the result is looked for: a process gives up its claim only after it wrote one.
            notes = holder(run.folder)
            record = settled_record(run)
            if record is not None:
                if name not in self.running:
                    self._tell("begin", run)
                self.running.pop(name, None)
                del self.unsettled[name]
                self._tell("end", run, record)
            elif notes is not None:
                if name not in self.running:
                    self._tell("begin", run)
                self.running[name] = notes
                if "requests" in notes:
                    self._tell("advance", run, notes.get("answered", 0), notes["requests"])
                elif "phase" in notes:
                    self._tell("advance", run, notes["done"], notes["total"], notes["phase"])
            elif name in self.running:
                del self.running[name]
                self._tell("lost", run, "the process that did it stopped or died")

    def _tell(self, what: str, *arguments: Any) -> None:
        for observer in self._observers:
            getattr(observer, what)(*arguments)
