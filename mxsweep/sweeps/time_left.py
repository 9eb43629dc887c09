"""Estimate how long a sweep still takes, from how far its runs are and how long those before them took.

A run may work something out before it scores its requests (GPTQ, a search). Of that time nothing follows for the rest,
so only the pace of the requests is extrapolated.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass


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
    """

    number: int
    knobs: str
    began: float
    share: float | None = None
    phase: str = ""
    phase_share: float | None = None
    prepared_until: float | None = None

    def advance(self, share: float, phase: str, now: float) -> None:
        """Note that ``share`` of a phase, or of the requests if it has no name, is done."""
        self.phase, self.phase_share = phase, share
        if phase:
            self.prepared_until = now
        else:
            self.share = share

    def seconds_in_all(self, now: float, share: float) -> float:
        """Estimate how long the run takes: what came before its requests, and these at their pace."""
        since = self.prepared_until or self.began
        return since - self.began + (now - since) / share

    def seconds_left(self, now: float, usual: float) -> float:
        """Estimate how long the run still takes, where runs usually take ``usual`` seconds."""
        if not self.share:
            return max(0.0, self.began + usual - now)
        if self.prepared_until is None:
            return usual * (1 - self.share)
        return (now - self.prepared_until) * (1 / self.share - 1)


def seconds_left(
    running: Sequence[RunningRun], waiting: int, past: Sequence[float], workers: int, now: float
) -> float | None:
    """Estimate how long a sweep still takes, as if every run took the mean time; None if nothing is known.

    Args:
        waiting: runs that have not begun.
        past: seconds that finished runs took.
        workers: how many runs are done at a time.
    """
    times = past or [run.seconds_in_all(now, run.share) for run in running if run.share]
    if not times:
        return None
    usual = sum(times) / len(times)
    ends = [run.seconds_left(now, usual) for run in running]
    ends += [0.0] * (workers - len(ends))
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
