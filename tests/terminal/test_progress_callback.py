"""One protocol for progress: phases are named where they are begun."""

from __future__ import annotations

from typing import Any

from mxsweep.terminal.progress_callback import in_phase, silent


def test_unnamed_steps_get_the_name_of_their_phase() -> None:
    heard: list[Any] = []
    report = in_phase(lambda *step: heard.append(step), "gptq")
    report(1, 3)
    report(2, 3, "of its own")
    assert heard == [(1, 3, "gptq"), (2, 3, "of its own")]
    in_phase(in_phase(lambda *step: heard.append(step), "outer"), "inner")(3, 3)
    assert heard[-1] == (3, 3, "inner")


def test_silence_takes_any_step() -> None:
    silent(1, 2)
    silent(1, 2, "gptq")
