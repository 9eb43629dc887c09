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

_came = threading.Event()


@contextmanager
def interrupts_remembered() -> Iterator[None]:
    """Remember Ctrl-C while the context lasts, beside raising KeyboardInterrupt as ever.

    Where somebody else answers Ctrl-C, or it is ignored, as in the background of a shell, that stays.
    """
    is_pythons = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not is_pythons or threading.current_thread() is not threading.main_thread():
        yield
        return
    _came.clear()
    signal.signal(signal.SIGINT, _remember)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _came.clear()


def raise_lost_interrupt() -> None:
    """Raise KeyboardInterrupt if Ctrl-C came and the command went on all the same."""
    if _came.is_set():
        raise KeyboardInterrupt


def _remember(number: int, frame: FrameType | None) -> None:
    _came.set()
    signal.default_int_handler(number, frame)
