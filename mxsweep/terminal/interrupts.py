"""Hear Ctrl-C where Python loses it.

Python raises KeyboardInterrupt wherever it is at. Inside a callback of its import system the error is printed and
forgotten, and a module written in C may make another error of it, or none: of a hundred interrupts during the imports
of a report two or three were lost, and the sweep went on to its end. So a command remembers that it was interrupted,
and what takes long asks now and then.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_came = False  # no threading.Event, whose lock a second Ctrl-C would wait for inside of the first one's handler


@contextmanager
def interrupts_remembered() -> Iterator[None]:
    """Remember Ctrl-C while the context lasts, beside raising KeyboardInterrupt as ever.

    Where somebody else answers Ctrl-C, or it is ignored, as in the background of a shell, that stays.
    """
    global _came
    is_pythons = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not is_pythons or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, _remember)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _came = False


def raise_lost_interrupt() -> None:
    """Raise KeyboardInterrupt if Ctrl-C came and the command went on all the same."""
    if _came:
        raise KeyboardInterrupt


def _remember(number: int, frame: FrameType | None) -> None:
    global _came
    _came = True
    signal.default_int_handler(number, frame)
