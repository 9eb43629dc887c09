"""Estimate how long a sweep still takes, from how far its runs are and how long those before them took.

A run may work something out before it scores its requests (GPTQ, a search). Of that time nothing follows for the rest,
so only the pace of the requests is extrapolated; once it takes longer than whole runs before it, nothing is known. A
training is most of a run's time: while it lasts, its pace is, from where it was first heard of, since one that resumes
begins in the middle.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from mxsweep.terminal.progress_callback import TRAINING


@dataclass
class Pace:
    """Describe how fast a training is.

    Attributes:
        began, before: when it was first heard of, and what share of it was done by then.
        until, share: the same of the last time.
    """

    began: float
    before: float
    until: float
    share: float

    @property
    def seconds(self) -> float | None:
        """Return how long all of it takes; None before that is known."""
        took, done = self.until - self.began, self.share - self.before
        return took / done if took > 0 and done > 0 else None


@dataclass
class RunningRun:
    """Describe how far a run is that has begun.

    Attributes:
        number: of the run within its sweep, from 1.
        knobs: what tells the run apart, for display.
        began: when, in the seconds of the sweep's clock.
        share: of its requests that are scored; None while none is known.
        phase: what the run does before its requests; empty while requests are scored.
        phase_share: how much of the phase, or of the requests, is done.
        prepared_until: when another phase was last heard of; None if none was.
        training: of a run that trains, once that is heard of.
    """

    number: int
    knobs: str
    began: float
    share: float | None = None
    phase: str = ""
    phase_share: float | None = None
    prepared_until: float | None = None
    training: Pace | None = None

    def advance(self, share: float, phase: str, now: float) -> None:
        """Note that ``share`` of a phase, or of the requests if it has no name, is done."""
        self.phase, self.phase_share = phase, share
        if phase:
            self.prepared_until = now
        else:
            self.share = share
        if phase == TRAINING:
            self.training = self.training or Pace(now, share, now, share)
            self.training.until, self.training.share = now, share

    @property
    def progress(self) -> float:
        """Return how much of the whole run is done, of which a training is nearly all."""
        return max(self.share or 0.0, self.training.share if self.training else 0.0)

    def seconds_in_all(self, now: float) -> float | None:
        """Estimate how long such a run takes from its beginning; None before that can be said."""
        trained = self.training.seconds if self.training else None
        if not self.share:
            return trained
        since = self.prepared_until or self.began
        seconds = since - self.began + (now - since) / self.share
        return seconds + (self.training.before * trained if self.training and trained else 0.0)

    def seconds_left(self, now: float, usual: float) -> float | None:
        """Estimate how long the run still takes, where runs usually take ``usual`` seconds; None if that is over while
        it still works something out.
        """
        if not self.share:
            if self.training and (trained := self.training.seconds) is not None:
                return max(0.0, trained * (1 - self.training.share) - (now - self.training.until))
            left = self.began + usual - now
            return None if left <= 0 and self.prepared_until is not None else max(0.0, left)
        if self.prepared_until is None:
            return usual * (1 - self.share)
        return (now - self.prepared_until) * (1 / self.share - 1)


def seconds_left(
    running: Sequence[RunningRun], waiting: int, past: Sequence[float], workers: int, now: float, elsewhere: int = 0
) -> float | None:
    """Estimate how long a sweep still takes, as if every run took the mean time; None if nothing is known.

    Args:
        waiting: runs that have not begun.
        past: seconds that finished runs took.
        workers: how many runs are done at a time, without those of ``elsewhere``.
        elsewhere: runs that other processes are at, which then take the next ones; they are taken to be half done.
    """
    times = past or [seconds for run in running if (seconds := run.seconds_in_all(now)) is not None]
    if not times:
        return None
    usual = sum(times) / len(times)
    ends = []
    for run in running:
        if (left := run.seconds_left(now, usual)) is None:
            return None
        ends.append(left)
    ends += [0.0] * (workers - len(ends))
    ends += [usual / 2] * elsewhere
    heapq.heapify(ends)
    for _ in range(waiting):
        heapq.heapreplace(ends, ends[0] + usual)  # whichever is free first takes the next run
    return max(ends)


def format_duration(seconds: float) -> str:
    """Return a duration in the unit that a person would use."""
    if seconds < 99.5:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
