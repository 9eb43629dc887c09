"""What a run's observers and its claim hear while it is done."""

from pathlib import Path
from typing import Any

import pytest

from mxsweep.files.locks import Lock
from mxsweep.results.record import _who_works, write_record
from mxsweep.runs.new_record import new_record
from mxsweep.sweeps import execute
from mxsweep.sweeps.execute import SweepRun, work


class Recorder:
    """Observe runs and keep how far they were said to be."""

    def __init__(self) -> None:
        self.shares: list[tuple[Any, ...]] = []

    def begin(self, run: SweepRun) -> None: ...

    def advance(self, run: SweepRun, done: int, total: int, phase: str = "") -> None:
        self.shares.append((done, total, phase))

    def end(self, run: SweepRun, record: dict[str, Any]) -> None: ...

    def lost(self, run: SweepRun, why: str) -> None: ...


def test_phases_reach_observers_and_the_claim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is prepared says of what it did how much; the shares of its requests are told apart from that."""
    run = SweepRun("id", tmp_path / "id", (), "0", None, None, {}, {})

    def perform(run: SweepRun, advance: Any) -> dict[str, Any]:
        advance(1, 4, "gptq")
        advance(3, 5)
        record = new_record("id", {}, (), "0")
        write_record(run.folder, record)
        return record

    notes: list[dict[str, Any]] = []
    monkeypatch.setattr(execute, "_perform", perform)
    monkeypatch.setattr(execute, "NOTES_EVERY_S", -1.0)
    monkeypatch.setattr(Lock, "write", lambda self, what: notes.append(what))
    recorder = Recorder()
    work([run], "launch", observers=[recorder])
    assert recorder.shares == [(1, 4, "gptq"), (3, 5, "")]
    started, prepared, answered, ended = notes
    assert (prepared["phase"], prepared["done"], prepared["total"]) == ("gptq", 1, 4) and "requests" not in prepared
    assert (answered["answered"], answered["requests"]) == (3, 5) and "phase" not in answered
    assert "phase" not in started and ended == {}
    assert [_who_works(each).partition(", ")[2] for each in (prepared, answered)] == ["25% of gptq", "60% answered"]


def test_a_phase_of_which_nothing_is_done() -> None:
    assert _who_works({"pid": 7, "host": "h", "phase": "budget", "done": 0, "total": 9}) == "process 7 on h, budget"
