"""Claims: one holder at a time, none after the holder's death, and notes that are never trusted."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mxsweep.files import locks as claims
from mxsweep.files.locks import CLAIM_NAME, Lock, holder, is_held, one_at_a_time, this_process

HOLD = """
import sys, time
from pathlib import Path
from mxsweep.files.locks import Lock
lock = Lock.take(Path(sys.argv[1]))
lock.write({"pid": 1, "host": "there"})
print("held", flush=True)
time.sleep(60)
"""


@contextlib.contextmanager
def other_process(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process, which holds the lock."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_one_holder_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / CLAIM_NAME
    first = Lock.take(path)
    assert first is not None and is_held(path)
    assert Lock.take(path) is None  # nor a second one of this process
    first.release()
    assert not is_held(path)
    second = Lock.take(path)
    assert second is not None
    second.release()
    assert path.exists()  # unlinked, two processes could hold it, each on a file of its own


def test_a_lock_that_is_refused_leaves_no_file_open(tmp_path: Path) -> None:
    path = tmp_path / CLAIM_NAME
    lock = Lock.take(path)
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else None
    for _ in range(3):
        assert Lock.take(path) is None
        assert is_held(path)
    if before is not None:
        assert len(os.listdir("/proc/self/fd")) == before
    assert lock is not None
    lock.release()


def test_asking_changes_nothing(tmp_path: Path) -> None:
    assert not is_held(tmp_path / "nowhere" / CLAIM_NAME)
    assert holder(tmp_path) is None
    assert list(tmp_path.iterdir()) == []
    lock = Lock.take(tmp_path / CLAIM_NAME)
    assert lock is not None
    lock.write({"pid": 7})
    for _ in range(3):
        assert is_held(tmp_path / CLAIM_NAME) and holder(tmp_path) == {"pid": 7}
    lock.release()
    assert holder(tmp_path) is None  # the notes stay, and mean nothing
    assert json.loads((tmp_path / CLAIM_NAME).read_text()) == {"pid": 7}


def test_who_only_asks_does_not_keep_others_from_a_claim(tmp_path: Path) -> None:
    path = tmp_path / CLAIM_NAME
    path.touch()
    asking = subprocess.Popen(
        [
            *(sys.executable, "-c"),
            "import sys; from pathlib import Path; from mxsweep.files.locks import is_held\n"
            "path = Path(sys.argv[1])\nprint('asks', flush=True)\nwhile True: is_held(path)",
            str(path),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert asking.stdout is not None and asking.stdout.readline() == "asks\n"
        for _ in range(200):
            lock = Lock.take(path)
            assert lock is not None, "somebody who only asked was taken for a holder"
            lock.release()
    finally:
        asking.kill()
        asking.communicate()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_claim_dies_with_its_holder(number: signal.Signals, tmp_path: Path) -> None:
    path = tmp_path / CLAIM_NAME
    with other_process(path) as process:
        assert holder(tmp_path) == {"pid": 1, "host": "there"}
        assert Lock.take(path) is None
        process.send_signal(number)
        process.wait()
    assert not is_held(path) and holder(tmp_path) is None
    lock = Lock.take(path)
    assert lock is not None
    assert lock.read() == {"pid": 1, "host": "there"}  # of whom it was
    lock.release()


def test_a_child_that_is_started_does_not_inherit_a_claim(tmp_path: Path) -> None:
    path = tmp_path / CLAIM_NAME
    lock = Lock.take(path)
    assert lock is not None
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], close_fds=False)
    try:
        lock.release()
        # Popen returns when the child begins to be another program, microseconds before its copies are closed.
        assert Lock.take(path) is not None
    finally:
        child.kill()
        child.wait()


def test_waiting_for_a_lock(tmp_path: Path) -> None:
    path = tmp_path / CLAIM_NAME
    with other_process(path) as process:
        killed = tmp_path / "killed"
        killer = subprocess.Popen(["sh", "-c", f"sleep 0.3; touch '{killed}'; kill -9 {process.pid}"])
        with one_at_a_time(path):
            assert killed.exists()
            assert is_held(path)
        killer.wait()
    assert not is_held(path)


def test_notes_are_replaced_not_added_to(tmp_path: Path) -> None:
    lock = Lock.take(tmp_path / CLAIM_NAME)
    assert lock is not None
    assert lock.read() == {}
    lock.write({"launch": "a" * 200, "deaths": 1})
    lock.write({"deaths": 2})
    assert lock.read() == {"deaths": 2}
    lock.release()


@pytest.mark.parametrize("damage", [b"", b"{", b"[1, 2]", b'"text"', b"\xff\xfe\x00", b'{"pid": 1}{"pid"'])
def test_damaged_notes_are_no_notes(damage: bytes, tmp_path: Path) -> None:
    path = tmp_path / CLAIM_NAME
    path.write_bytes(damage)
    lock = Lock.take(path)
    assert lock is not None
    assert lock.read() == {}
    assert holder(tmp_path) == {}  # there is one, of whom nothing is known
    lock.release()


def test_this_process_says_who_it_is() -> None:
    assert this_process() == {"host": socket.gethostname(), "pid": os.getpid()}


def take_in_turn(path: Path, counter: Path, times: int) -> None:
    for _ in range(times):
        with one_at_a_time(path):
            # Without the lock some of these additions would be lost.
            count = int(counter.read_text())
            time.sleep(0.001)
            counter.write_text(str(count + 1))


def test_processes_that_wait_take_turns(tmp_path: Path) -> None:
    counter = tmp_path / "counter"
    counter.write_text("0")
    context = multiprocessing.get_context("spawn")
    arguments = (tmp_path / CLAIM_NAME, counter, 25)
    processes = [context.Process(target=take_in_turn, args=arguments) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4
    assert counter.read_text() == "100"


class Clock:
    """Time that passes only while somebody sleeps."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_a_claim_that_is_taken_is_asked_for_as_long_as_somebody_who_only_asks_may_hold_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = Lock.take(tmp_path / CLAIM_NAME)
    assert lock is not None
    clock = Clock()
    monkeypatch.setattr(claims, "time", clock)
    assert Lock.take(tmp_path / CLAIM_NAME) is None
    assert clock.now == pytest.approx(claims.PATIENCE_S, abs=0.02)
    lock.release()
