"""Do runs in processes beside this one, each with a GPU of its own or a share of the CPU: hydra/launcher=gpus."""

from __future__ import annotations

import logging
import math
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mxsweep.config.run_config import RunConfig
from mxsweep.config.sweep_settings import Gpus
from mxsweep.files.atomic import write_atomically
from mxsweep.machine.gpus import visible_gpu_count
from mxsweep.report.collection import import_report
from mxsweep.sweeps.execute import SweepObserver, SweepRun
from mxsweep.sweeps.launch import Launch, LaunchError, Watch
from mxsweep.sweeps.worker import Worker
from mxsweep.sweeps.worker_process import EARLY_WORKERS, WorkerProcess, end_workers
from mxsweep.terminal.errors import ConfigError

log = logging.getLogger("mxsweep")

POLL_S = 0.25
DEATHS_IN_A_ROW = 3  # of workers, none of which got a run to its end: there is something wrong with all of them
CPU_WORKERS = 2


@dataclass
class _Slot:
    """Hold one worker at a time on a GPU, or on a share of the CPU."""

    gpu: int | None
    threads: int | None
    folder: Path
    process: WorkerProcess | None = None

    @property
    def is_free(self) -> bool:
        """Return whether no worker is at work here."""
        return self.process is None or self.process.is_done


@contextmanager
def workers_started_early(typed: Mapping[str, str]) -> Iterator[None]:
    """Have workers import, while the context lasts, what they are going to need, where a command will want some.

    They are for what was typed: a launcher that an experiment chooses starts its workers when the runs are planned. One
    core is left for planning, which a refused command is to be answered by as soon as any.

    Args:
        typed: the command's words, knob to value.
    """
    with EARLY_WORKERS.started(_wanted_early(typed)[: len(os.sched_getaffinity(0)) - 1]):
        yield


def _wanted_early(typed: Mapping[str, str]) -> Sequence[int | None]:
    """Return the GPU of each worker that a command will want, as far as its words tell; None for one on the CPU."""
    n = typed.get("hydra.launcher.n", "null")
    is_to_run = typed.get("hydra/launcher") == "gpus" and typed.get("dry_run", "false").lower() == "false"
    if not is_to_run or not re.fullmatch("null|[1-9][0-9]{0,2}", n):
        return []
    launcher = Gpus(None if n == "null" else int(n), retries=0)
    try:
        workers = _gpus_or_cpu(launcher, _gpus(launcher, typed.get("model.device") == "cpu"))
    except ConfigError:  # which planning raises
        return []
    return workers[: _most_runs(typed)]


def _most_runs(typed: Mapping[str, str]) -> int | None:
    """Return how many runs the words of a command come to at the most; None where they do not tell."""
    is_elsewhere = "experiment" in typed or "resume" in typed  # in the experiment's file, in the sweep's folder
    if is_elsewhere or any("(" in value for value in typed.values()):  # as in range(1,9)
        return None
    # Each may have a baseline of its own, as trainings of each seed have.
    return 2 * math.prod(1 + value.count(",") for value in typed.values())


def gpus_for(launcher: Gpus, configs: Sequence[RunConfig]) -> list[int]:
    """Return the GPUs for workers, as CUDA_VISIBLE_DEVICES would name them; none where the runs are to be on the CPU.

    Raises:
        ConfigError: the configs, the launcher or CUDA_VISIBLE_DEVICES leave no such choice.
    """
    for config in configs:
        if config.model.device_map is not None:
            raise ConfigError(
                "model.device_map: 'auto' takes all GPUs for one run; allowed with hydra/launcher=gpus: null"
            )
        if config.model.device not in ("auto", "cpu", "cuda"):
            raise ConfigError(
                f"model.device: {config.model.device!r} has no say with hydra/launcher=gpus, which gives each run "
                "a GPU of its own; allowed: auto, cuda, cpu"
            )
    return _gpus(launcher, all(config.model.device == "cpu" for config in configs))


def _gpus(launcher: Gpus, on_cpu: bool) -> list[int]:
    """Return the GPUs for workers; none where there are none or the CPU is asked for. Raises ConfigError."""
    count = visible_gpu_count()
    if count == 0 or on_cpu:
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES", "").strip()
    if not named:
        gpus = list(range(count))
    elif all(part.strip().isdigit() for part in named.split(",")):
        gpus = [int(part) for part in named.split(",")][:count]
    else:
        raise ConfigError(f"CUDA_VISIBLE_DEVICES: {named!r} names GPUs by UUID; hydra/launcher=gpus takes numbers: 0,1")
    if launcher.n is not None and launcher.n > len(gpus):
        raise ConfigError(
            f"hydra.launcher.n: {launcher.n} workers need as many GPUs, and {len(gpus)} can be seen here; allowed: 1 "
            f"to {len(gpus)}, or null"
        )
    return gpus[: launcher.n]


def _gpus_or_cpu(launcher: Gpus, gpus: Sequence[int]) -> list[int | None]:
    """Return the GPU of each worker, or a None for each on the CPU."""
    return list(gpus) or [None] * (launcher.n or CPU_WORKERS)


def work_on_host(launcher: Gpus, runs: Sequence[SweepRun], launch: Launch, observers: Sequence[SweepObserver]) -> None:
    """Do the runs in workers, a worker a GPU, or in a few on the CPU. Raises LaunchError, OSError."""
    gpus = gpus_for(launcher, [run.config for run in runs if run.config is not None])
    workers = _gpus_or_cpu(launcher, gpus)
    threads = None if gpus else max(1, len(os.sched_getaffinity(0)) // len(workers))
    slots = [
        _Slot(gpu, threads, launch.folder / (f"worker{index}" if gpu is None else f"gpu{gpu}"))
        for index, gpu in enumerate(workers)
    ]
    used = f"GPU {', '.join(map(str, gpus))}" if gpus else f"the CPU, {slots[0].threads} threads each"
    log.info("%d processes, on %s (their output: %s)", len(slots), used, launch.folder)
    watch = Watch(runs, observers)
    try:
        watch.look()
        _keep_slots_busy(slots, watch, launcher, launch)
    finally:
        end_workers(slot.process for slot in slots if slot.process is not None)


def _keep_slots_busy(slots: list[_Slot], watch: Watch, launcher: Gpus, launch: Launch) -> None:
    """Start workers, and others in the place of those that end, while there are runs that nobody does."""
    deaths, unsettled = 0, len(watch.unsettled)
    # More than one run can cause: after its retries it is recorded as failed, and others have their turn.
    most_deaths = max(DEATHS_IN_A_ROW, launcher.retries + 2) * len(slots)
    while watch.unsettled:
        if len(watch.unsettled) < unsettled:
            deaths, unsettled = 0, len(watch.unsettled)
        busy = [slot for slot in slots if not slot.is_free]
        # Runs first, then workers: one that has just finished a run may not have claimed the next.
        wanted = min(len(slots), len(watch.unsettled)) - len(busy)
        free = [slot for slot in slots if slot.is_free][: max(0, wanted)] if watch.idle else []
        for slot in free:
            if slot.process is not None:
                # Should the disk be full, that is what to say, and not what is left of a worker's last words.
                write_atomically(launch.folder / "room", "x" * 4096)
                (launch.folder / "room").unlink()
                deaths += 1
                if deaths >= most_deaths:
                    raise LaunchError(f"workers end without finishing a run: {slot.process.last_words()}")
        _start(free, watch, launcher, launch)
        EARLY_WORKERS.dismiss()  # for whom there is nothing to do
        import_report()  # at once, but for the first time
        time.sleep(POLL_S)
        watch.look()


def _start(slots: Sequence[_Slot], watch: Watch, launcher: Gpus, launch: Launch) -> None:
    """Set workers to work in slots: all are started before the first is handed its runs, which waits for its Python."""
    for slot in slots:
        slot.process = EARLY_WORKERS.take(slot.gpu)
    for slot in slots:
        assert slot.process is not None
        worker = Worker(list(watch.unsettled.values()), launch.name, launcher.retries, slot.threads)
        slot.process.give(worker, slot.folder)
