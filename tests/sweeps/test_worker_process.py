"""Workers import while the runs are planned, and none is left where nothing is run."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.stand_in import command, environment, processes, read_log

from mxsweep.config.sweep_settings import Gpus
from mxsweep.sweeps import on_host, worker_process
from mxsweep.sweeps.launch import Launch, Watch
from mxsweep.sweeps.worker import Worker
from mxsweep.sweeps.worker_process import EarlyWorkers, WorkerProcess, end_workers

SWEEP = ("-m", "seed=1,2,3,4", "limit=10", "baseline=false", "hydra/launcher=gpus", "hydra.sweep.dir=s")
WORKER = "import serve"  # in a worker's command line


class Named:
    """In the place of a process, what it was started for."""

    started: list[int | None]

    def __init__(self, gpu: int | None) -> None:
        self.started.append(gpu)
        self.is_done = True


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[int | None]:
    """For which GPUs workers were started, of three that there are; five cores."""
    monkeypatch.setattr(Named, "started", [], raising=False)
    monkeypatch.setattr(worker_process, "WorkerProcess", Named)
    monkeypatch.setattr(on_host, "visible_gpu_count", lambda: 3)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(5))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return Named.started


@pytest.mark.parametrize(
    ("typed", "gpus"),
    [
        ({"hydra/launcher": "gpus", "block_size": "16,32"}, [0, 1, 2]),
        ({"hydra/launcher": "gpus", "format": "mxfp4"}, [0, 1]),  # a run and its baseline
        ({"hydra/launcher": "gpus", "seed": "range(1,9)"}, [0, 1, 2]),
        ({"hydra/launcher": "gpus", "experiment": "ex1"}, [0, 1, 2]),
        ({"hydra/launcher": "gpus", "resume": "true"}, [0, 1, 2]),
        ({"hydra/launcher": "gpus", "hydra.launcher.n": "2"}, [0, 1]),
        ({"hydra/launcher": "gpus", "hydra.launcher.n": "4"}, []),  # which is refused
        ({"hydra/launcher": "gpus", "hydra.launcher.n": "1,2"}, []),
        ({"hydra/launcher": "gpus", "model.device": "cpu", "hydra.launcher.n": "9" * 5000}, []),
        ({"hydra/launcher": "gpus", "model.device": "cpu"}, [None, None]),
        # A core is left.
        ({"hydra/launcher": "gpus", "model.device": "cpu", "hydra.launcher.n": "9", "seed": "1,2,3,4"}, [None] * 4),
        ({"hydra/launcher": "gpus", "model.device": "cpu", "hydra.launcher.n": "9", "seed": "1,2"}, [None] * 4),
        ({"hydra/launcher": "gpus", "dry_run": "true"}, []),
        ({"hydra/launcher": "slurm"}, []),
        ({}, []),
    ],
)
def test_workers_are_started_early_for_what_was_typed(
    typed: dict[str, str], gpus: list[int | None], started: list[int | None]
) -> None:
    with on_host.workers_started_early(typed):
        assert started == gpus


def test_planning_has_a_core_of_its_own(started: list[int | None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(1))
    with on_host.workers_started_early({"hydra/launcher": "gpus"}):
        assert started == []


def test_the_workers_that_import_meanwhile_do_the_runs(tmp_path: Path) -> None:
    process = start(tmp_path, *SWEEP, STAND_IN_GPUS=2)
    wait_for(lambda: early(tmp_path), process)
    begun_early = set(early(tmp_path))
    assert not (tmp_path / "s" / "sweep.json").exists(), "nothing is planned yet"
    assert process.wait(60) == 0
    used = {event.pid for event in read_log(tmp_path / "evaluations.log")}
    assert begun_early and begun_early <= used
    assert not processes(tmp_path)


def test_a_refused_command_leaves_no_worker(tmp_path: Path) -> None:
    answer = subprocess.run(
        command(*SWEEP, "block_size=-1"),
        cwd=tmp_path,
        env=environment(tmp_path, STAND_IN_GPUS=2),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert not processes(tmp_path)
    assert answer.returncode == 2 and answer.stderr.startswith("mxsweep: block_size: -1")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_workers_end_with_a_command_that_is_stopped_while_it_plans(sent: signal.Signals, tmp_path: Path) -> None:
    process = start(tmp_path, *SWEEP, STAND_IN_GPUS=2)
    wait_for(lambda: early(tmp_path), process)
    process.send_signal(sent)
    assert process.wait(60) == (130 if sent == signal.SIGINT else -sent)
    wait_for(lambda: not processes(tmp_path))
    assert not (tmp_path / "s").exists()


def test_a_worker_that_dies_before_it_has_runs_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_process, "CHILD", "raise SystemExit('no room')")
    process = WorkerProcess(None)
    wait_for(lambda: process.is_done)
    process.give(Worker([], "launch", retries=0), tmp_path / "worker0")
    assert process.last_words() == "no room"


def test_a_worker_is_taken_for_its_gpu_and_the_others_are_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_process, "CHILD", "import os; os.read(0, 1)")
    early_workers = EarlyWorkers()
    with early_workers.started([0, 1]):
        waiting = list(early_workers._waiting)
        taken, new = early_workers.take(1), early_workers.take(1)
        assert taken is waiting[1] and new not in waiting and new.gpu == 1
    assert waiting[0].is_done and not taken.is_done and not new.is_done
    end_workers([taken, new])
    assert taken.is_done and new.is_done


def test_where_no_worker_can_be_started_early_the_command_is_planned_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_more(_: int | None) -> None:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(worker_process, "WorkerProcess", no_more)
    early_workers = EarlyWorkers()
    with early_workers.started([0, 1]), pytest.raises(BlockingIOError):
        early_workers.take(0)


def test_all_workers_are_on_their_way_before_one_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe holds 64 KiB, and a worker reads when its Python is up."""
    said: list[str] = []

    class Slow:
        def __init__(self, gpu: int | None) -> None:
            said.append("started")

        def give(self, worker: Worker, folder: Path) -> None:
            said.append("given")

    monkeypatch.setattr(worker_process, "WorkerProcess", Slow)
    slots = [on_host._Slot(gpu, None, tmp_path) for gpu in range(3)]
    on_host._start(slots, Watch([], []), Gpus(3, retries=0), Launch("launch", tmp_path))
    assert said == ["started"] * 3 + ["given"] * 3


def start(folder: Path, *words: str, **more: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command(*words),
        cwd=folder,
        env=environment(folder, **more),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def early(folder: Path) -> list[int]:
    """The workers that there are."""
    return [pid for pid, line in processes(folder).items() if WORKER in line]


def wait_for(condition: Callable[[], object], process: subprocess.Popen[bytes] | None = None) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert process is None or process.poll() is None, "it has ended"
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)
