"""Hear how far long work is: one protocol for evaluations, calibrations and searches.

Whoever works calls ``progress(done, total)``; whoever displays it passes a :class:`Progress` in, or nothing.
"""

from __future__ import annotations

from typing import Protocol

TRAINING = "training"  # the phase in which a run's model is trained


class Progress(Protocol):
    """Hear that ``done`` of ``total`` steps of a phase of the work are done.

    The phase without a name is the one that the work is for: of a run, scoring its requests.
    """

    def __call__(self, done: int, total: int, phase: str = ..., /) -> object: ...


def silent(_done: int, _total: int, _phase: str = "", /) -> None:
    """Drop what is reported: nobody waits for it."""


def in_phase(progress: Progress, name: str) -> Progress:
    """Return a callback that reports unnamed steps to ``progress`` as those of the phase ``name``."""

    def report(done: int, total: int, phase: str = "", /) -> None:
        progress(done, total, phase or name)

    return report
