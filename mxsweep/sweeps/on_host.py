"""Do runs in processes beside this one, each with a GPU of its own or a share of the CPU: hydra/launcher=gpus."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mxsweep.config.run_config import RunConfig
from mxsweep.config.sweep_settings import Gpus
from mxsweep.files.atomic import write_atomically
from mxsweep.machine.gpus import visible_gpu_count
from mxsweep.sweeps.execute import SweepObserver, SweepRun
from mxsweep.sweeps.launch import Launch, LaunchError, Watch
from mxsweep.sweeps.worker import Worker
from mxsweep.terminal.errors import ConfigError

log = logging.getLogger("mxsweep")

POLL_S = 0.25
DEATHS_IN_A_ROW = 3  # of workers, none of which got a run to its end: there is something wrong with all of them
CPU_WORKERS = 2
YEAR_MIN = 60 * 24 * 365  # submitit ends local jobs after a time; these end by themselves


@dataclass
class _Slot:
    """Hold one worker at a time on a GPU, or on a share of the CPU."""

    gpu: int | None
    threads: int | None
    folder: Path
    job: Any = None

    @property
    def is_free(self) -> bool:
        """Return whether no worker is at work here."""
        return self.job is None or self.job.done()


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
    count = visible_gpu_count()
    if count == 0 or all(config.model.device == "cpu" for config in configs):
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


def work_on_host(launcher: Gpus, runs: Sequence[SweepRun], launch: Launch, observers: Sequence[SweepObserver]) -> None:
    """Do the runs in workers, a worker a GPU, or in a few on the CPU. Raises LaunchError, OSError."""
    gpus = gpus_for(launcher, [run.config for run in runs if run.config is not None])
    if gpus:
        slots = [_Slot(gpu, None, launch.folder / f"gpu{gpu}") for gpu in gpus]
    else:
        count = launcher.n or CPU_WORKERS
        threads = max(1, len(os.sched_getaffinity(0)) // count)
        slots = [_Slot(None, threads, launch.folder / f"worker{index}") for index in range(count)]
    used = f"GPU {', '.join(map(str, gpus))}" if gpus else f"the CPU, {slots[0].threads} threads each"
    log.info("%d processes, on %s (their output: %s)", len(slots), used, launch.folder)
    watch = Watch(runs, observers)
    try:
        watch.look()
        _keep_slots_busy(slots, watch, launcher, launch)
    finally:
        _end(slots)


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
        for slot in [slot for slot in slots if slot.is_free][: max(0, wanted)] if watch.idle else []:
            if slot.job is not None:
                # Should the disk be full, that is what to say, and not what is left of a worker's last words.
                write_atomically(launch.folder / "room", "x" * 4096)
                (launch.folder / "room").unlink()
                deaths += 1
                if deaths >= most_deaths:
                    raise LaunchError(f"workers end without finishing a run: {_last_words(slot)}")
            _start(slot, watch, launcher, launch)
        time.sleep(POLL_S)
        watch.look()


def _start(slot: _Slot, watch: Watch, launcher: Gpus, launch: Launch) -> None:
    """Start a worker in a slot."""
    import submitit

    executor = submitit.LocalExecutor(folder=slot.folder)
    gpus = [] if slot.gpu is None else [slot.gpu]
    executor.update_parameters(timeout_min=YEAR_MIN, gpus_per_node=len(gpus), visible_gpus=gpus)
    worker = Worker(list(watch.unsettled.values()), launch.name, launcher.retries, launch.lock, slot.threads)
    # Ctrl-C goes to every process of the terminal; only this one answers it, and ends the others.
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        slot.job = executor.submit(worker)
    finally:
        signal.signal(signal.SIGINT, handler)


def _end(slots: list[_Slot]) -> None:
    """End the workers that are left: politely, so that they take back their claims, then not."""
    for number, patience_s in ((signal.SIGTERM, 3.0), (signal.SIGKILL, 0.0)):
        for slot in slots:
            if not slot.is_free:
                os.kill(int(slot.job.job_id), number)  # submitit's controller, which passes SIGTERM on
        end = time.monotonic() + patience_s
        while any(not slot.is_free for slot in slots) and time.monotonic() < end:
            time.sleep(0.05)


def _last_words(slot: _Slot) -> str:
    """Return the last line that a worker wrote to its error output, with the file's name."""
    path = slot.job.paths.stderr
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else []
    return f"{next((line for line in reversed(lines) if line.strip()), 'no message')} (see {path})"
