"""Ctrl-C is heard where Python loses it, and answered as ever elsewhere."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest

from mxsweep import compose
from mxsweep.runs.run import run
from mxsweep.sweeps.launch import Watch
from mxsweep.terminal.command import run_command
from mxsweep.terminal.interrupts import interrupts_remembered, raise_lost_interrupt

# Python says on standard error that it has ignored an error in a callback, which is what this is about.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(autouse=True)
def _ctrl_c_is_pythons() -> Iterator[None]:
    """Answer Ctrl-C as Python does by itself; what is started in the background, as these tests may be, ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def lose_an_interrupt() -> None:
    """Press Ctrl-C while Python is in a callback, as its import system is when it forgets a module's lock."""

    class Forgotten:
        pass

    def press(_: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(1000):  # the error is raised between two operations
            pass

    forgotten = Forgotten()
    reference = weakref.ref(forgotten, press)
    del forgotten
    assert reference() is None


def test_python_loses_it() -> None:
    lose_an_interrupt()
    raise_lost_interrupt()  # no command asked for it to be remembered


def test_a_command_that_goes_on_all_the_same_is_ended(capsys: pytest.CaptureFixture[str]) -> None:
    reached = []

    def command() -> int:
        raise_lost_interrupt()
        lose_an_interrupt()
        reached.append("went on")
        raise_lost_interrupt()
        return 0

    assert run_command("prog", command, "stopped") == 130
    assert reached == ["went on"]
    assert capsys.readouterr().err.endswith("prog: stopped\n")
    raise_lost_interrupt()  # it was answered


def test_whoever_waits_for_workers_hears_it() -> None:
    def command() -> int:
        watch = Watch([], [])
        watch.look()
        lose_an_interrupt()
        watch.look()
        return 0

    assert run_command("prog", command) == 130


def test_what_an_import_makes_of_it_is_no_failed_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def import_evaluation() -> None:
        lose_an_interrupt()
        raise ImportError("numpy._core.multiarray failed to import")

    monkeypatch.setattr("mxsweep.runs.run.import_evaluation", import_evaluation)
    config = compose(["limit=2", "model.device=cpu"])
    assert run_command("prog", lambda: bool(run(config, tmp_path / "run"))) == 130
    assert not (tmp_path / "run" / "result.json").exists()


def test_what_an_import_makes_of_it_is_no_failed_export(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def export_run(*_: object) -> None:
        lose_an_interrupt()
        raise ImportError("numpy._core.multiarray failed to import")

    monkeypatch.setattr("mxsweep.runs.export_run.export_run", export_run)
    config = compose(["limit=2", "model.device=cpu", "format=mxfp4", "export=compressed-tensors"])
    assert run_command("prog", lambda: bool(run(config, tmp_path / "run"))) == 130
    assert not (tmp_path / "run" / "result.json").exists()


def test_an_interrupt_that_is_not_lost_comes_where_python_is() -> None:
    def command() -> int:
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(1000):
            pass
        return 0

    assert run_command("prog", command) == 130


def test_whoever_answers_it_already_goes_on_to() -> None:
    heard: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _: heard.append(number))
    with interrupts_remembered():
        os.kill(os.getpid(), signal.SIGINT)
        raise_lost_interrupt()
    assert heard == [signal.SIGINT]
    assert signal.getsignal(signal.SIGINT) not in (signal.default_int_handler, signal.SIG_IGN)


def test_a_command_in_another_thread_changes_nothing() -> None:
    said: list[int] = []
    thread = threading.Thread(target=lambda: said.append(run_command("prog", lambda: 0)))
    thread.start()
    thread.join()
    assert said == [0] and signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_one_that_is_started_in_the_background_ignores_it() -> None:
    program = (
        "import os, signal\n"
        "from mxsweep.terminal.command import run_command\n"
        "def command():\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    return 7\n"
        "raise SystemExit(run_command('prog', command))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN), check=False
    )
    assert done.returncode == 7
