"""Charts are drawn in tests as ever, but in the test's own process: another one takes a second to begin, and its end
takes what it has loaded with it.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
from typing import Any

import pytest

from mxsweep.report.figures import draw

REPLACED = {name: getattr(draw, name) for name in ("_ask", "drawing_ahead")}  # with what is there by itself


def draw_in_processes(patch: pytest.MonkeyPatch) -> None:
    """Have charts drawn in processes of their own, as mxsweep does by itself."""
    for name, plain in REPLACED.items():
        patch.setattr(draw, name, plain)


def draw_here(patch: pytest.MonkeyPatch) -> None:
    """Have charts drawn in this process."""
    patch.setattr(draw, "_ask", _ask)
    patch.setattr(draw, "drawing_ahead", contextlib.nullcontext)


def _ask(job: dict[str, Any]) -> tuple[list[dict[str, Any]], str]:
    """Return what `draw.child` says of a job; an error that it does not answer is the test's."""
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said):
        patch.setattr(sys, "stdin", io.StringIO(json.dumps(job, default=draw._plain)))
        draw.child()
    return draw._lines(said.getvalue().encode()), "the process that draws ended"
