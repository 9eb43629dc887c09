"""What every command has in common: exit codes, and one line for what a person can mend."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mxsweep.report.collection import CollectError
from mxsweep.terminal.command import leave, run_command, write_output
from mxsweep.terminal.errors import ConfigError


def raising(error: BaseException) -> Callable[[], int]:
    def command() -> int:
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ConfigError("seed: -1 is not allowed"), 2, "prog: seed: -1 is not allowed\n"),
        (CollectError("no run in x"), 2, "prog: no run in x\n"),
        (FileNotFoundError(2, "No such file or directory", "a"), 2, "prog: 'a': No such file or directory\n"),
        (OSError("odd"), 2, "prog: odd\n"),
        (KeyboardInterrupt(), 130, "prog: stopped\n"),
        (SystemExit(3), 3, ""),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_a_command_ends_in_a_line_and_a_code(
    error: BaseException, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command("prog", raising(error), "stopped") == code
    assert capsys.readouterr().err == said


def test_a_long_message_is_shortened(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command("prog", raising(ConfigError("a" * 900 + "b" * 900))) == 2
    said = capsys.readouterr().err
    assert len(said) < 1300 and said.startswith("prog: aaa") and "a ... b" in said


def test_a_fault_of_mxsweep_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        run_command("prog", lambda: 1 // 0)


def test_a_process_ends_with_all_that_it_is_to_do() -> None:
    """Its output, its threads and what is registered for the end; but nothing is taken apart."""
    program = (
        "import atexit, threading, time\n"
        "from mxsweep.terminal.command import leave\n"
        "class Kept:\n"
        "    def __del__(self): print('taken apart')\n"
        "kept = Kept()\n"
        "atexit.register(print, 'registered')\n"
        "threading.Thread(target=lambda: (time.sleep(0.2), print('thread'))).start()\n"
        "print('first')\n"
        "leave(3)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (3, "first\nthread\nregistered\n", "")


def test_a_process_that_another_module_runs_ends_as_any_other(tmp_path: Path) -> None:
    """As a profiler's: whoever called the command goes on after it."""
    (tmp_path / "command.py").write_text("from mxsweep.terminal.command import leave\nprint('called')\nleave(3)\n")
    program = (
        "import runpy\n"
        "try: runpy.run_module('command', run_name='__main__')\n"
        "except SystemExit as end: print('caught', end.code)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "called\ncaught 3\n", "")


def test_what_libraries_in_c_print_is_not_lost() -> None:
    program = (
        "import ctypes\nfrom mxsweep.terminal.command import leave\nctypes.CDLL(None).printf(b'printed\\n')\nleave(0)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "printed\n", "")


def test_a_process_that_is_traced_ends_as_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "gettrace", lambda: lambda *_: None)
    with pytest.raises(SystemExit) as ended:
        leave(3)
    assert ended.value.code == 3


def test_a_folder_that_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert run_command("prog", lambda: len(str(Path.cwd()))) == 2
    assert capsys.readouterr().err == "prog: the folder that this was started in is gone; change to one that is there\n"


def test_files_are_named_once_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert write_output("prog", tmp_path / "new", lambda folder: [folder / "a.csv"]) == 0
    assert capsys.readouterr().out == f"\nWritten:\n  {tmp_path}/new/a.csv\n"
    (tmp_path / "file").touch()
    assert write_output("prog", tmp_path / "file", lambda folder: []) == 1
    assert "cannot write to" in capsys.readouterr().err


@pytest.mark.parametrize(("before", "after"), [(None, "passive"), ("active", "active")])
def test_threads_wait_asleep_unless_told_otherwise(before: str | None, after: str) -> None:
    program = (
        "import os, sys; from mxsweep.terminal.command import run_command\n"
        "assert 'torch' not in sys.modules\n"
        "run_command('prog', lambda: print(os.environ['OMP_WAIT_POLICY']) or 0)\n"
        "import mxsweep.__main__, mxsweep.train, mxsweep.inspect, mxsweep.sensitivity, mxsweep.collect\n"
        "assert 'torch' not in sys.modules, 'which reads the policy when it is loaded'\n"
    )
    environment = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
    answer = subprocess.run(
        [sys.executable, "-c", program],
        env=environment | ({} if before is None else {"OMP_WAIT_POLICY": before}),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (answer.stdout, answer.returncode) == (f"{after}\n", 0), answer.stderr


@pytest.mark.parametrize(
    ("load", "before", "after"),
    [
        (1.0, {}, {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "3000"}),
        (1.1, {}, {"OMP_WAIT_POLICY": "passive"}),
        (0.0, {"GOMP_SPINCOUNT": "5"}, {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "5"}),
        (0.0, {"OMP_WAIT_POLICY": "passive"}, {"OMP_WAIT_POLICY": "passive"}),
    ],
)
def test_threads_look_for_work_a_moment_where_cores_are_idle(
    load: float, before: dict[str, str], after: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", dict(before))
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 9.0, 9.0))
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    assert run_command("prog", lambda: 0) == 0
    assert os.environ == after


@pytest.mark.parametrize("module", ["mxsweep", "mxsweep.collect", "mxsweep.inspect", "mxsweep.sensitivity"])
def test_python_without_docstrings_is_refused_at_once(module: str, tmp_path: Path) -> None:
    answer = subprocess.run([sys.executable, "-OO", "-m", module], cwd=tmp_path, capture_output=True, text=True)
    assert answer.returncode == 2
    assert "python -OO takes away docstrings that transformers reads" in answer.stderr
    assert len(answer.stderr.splitlines()) == 1
