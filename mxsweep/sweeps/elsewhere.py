"""Count what other processes do of the runs of a sweep, which whoever does its other runs is not told of."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Container, Sequence
from pathlib import Path

from mxsweep.files.locks import holder
from mxsweep.sweeps.execute import SweepRun, settled_record

SECONDS_BETWEEN_LOOKS = 15.0  # a look opens a file of every run that is left


class Elsewhere:
    """Look now and then into the folders of runs that were left when a launch began.

    Attributes:
        ended: how many of them other processes have ended since.
        running: how many of them other processes are at.
    """

    def __init__(self, runs: Sequence[SweepRun], clock: Callable[[], float]) -> None:
        self.ended = self.running = 0
        self._ended: set[Path] = set()
        self._left = {run.folder: run for run in runs}
        self._clock, self._looked = clock, clock()

    def look(self, known: Container[Path]) -> None:
        """Count anew, if the last look is some time ago.

        Args:
            known: folders of the runs that the caller is told of itself.
        """
        if self._clock() - self._looked < SECONDS_BETWEEN_LOOKS:
            return
        running = 0
        for folder, run in list(self._left.items()):
            with contextlib.suppress(OSError):  # a folder that cannot be looked into costs no run, only an estimate
                if folder in known:
                    del self._left[folder]
                elif holder(folder) is not None:  # before the result: a claim is given up only after one is written
                    running += 1
                elif settled_record(run) is not None:
                    del self._left[folder]
                    self._ended.add(folder)
        self._ended.difference_update(filter(known.__contains__, list(self._ended)))  # of some the caller is told later
        self.ended, self.running = len(self._ended), running
        self._looked = self._clock()
