"""Where the runs of a sweep are done: in this process, beside it on this host, or on a Slurm cluster.

submitit starts the processes and keeps their output, in a new folder for each launch. What it or Slurm says of a job is
only ever a hint at whether somebody is still at work; whether a run is done, its result.json says.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mxsweep.devices import visible_gpu_count
from mxsweep.errors import ConfigError
from mxsweep.results.claims import Lock, holder
from mxsweep.sweep.execute import Observer, SweepRun, settled, work
from mxsweep.sweep.settings import Gpus, Slurm
from mxsweep.sweep.worker import Worker

log = logging.getLogger("mxsweep")

LAUNCHES = ".launches"  # in a sweep's folder: one folder per launch, with its lock and submitit's files
LOCK_NAME = "lock"
POLL_S = 0.25
SLURM_POLL_S = 2.0
ASK_SLURM_EVERY_S = 10.0
DEATHS_IN_A_ROW = 3  # of workers, none of which got a run to its end: there is something wrong with all of them
CPU_WORKERS = 2
YEAR_MIN = 60 * 24 * 365  # submitit ends local jobs after a time; these end by themselves


class LaunchError(Exception):
    """The runs cannot be done where they should be; the message says what to mend."""


@dataclass(frozen=True)
class Launch:
    """One go at the runs of a sweep: a name, and a folder for what belongs to it alone."""

    name: str
    folder: Path

    @property
    def lock(self) -> Path:
        return self.folder / LOCK_NAME


@contextmanager
def begin_launch(sweep: Path, name: str) -> Iterator[Launch]:
    """A launch's folder, locked for as long as this process is at it."""
    launch = Launch(name, sweep / LAUNCHES / name)
    lock = Lock.take(launch.lock)
    assert lock is not None, f"{launch.lock} is locked: launch names repeat"
    try:
        yield launch
    finally:
        lock.release()


def check_launcher(launcher: Gpus | Slurm | None, runs: Sequence[SweepRun]) -> None:
    """Refuse, before anything starts, what cannot be. Raises ConfigError."""
    if isinstance(launcher, Slurm) and shutil.which("sbatch") is None:
        raise ConfigError("hydra/launcher: 'slurm' needs the commands of Slurm, and there is no sbatch here")
    if isinstance(launcher, Gpus):
        _gpus_of(launcher, runs)


def launch_runs(
    launcher: Gpus | Slurm | None, runs: Sequence[SweepRun], launch: Launch, observers: Sequence[Observer]
) -> str | None:
    """Do the runs. Returns, where they are done later by others, a sentence on how to follow them.

    Raises:
        LaunchError: workers cannot be started, or end one after the other.
        OSError: results cannot be written.
    """
    if isinstance(launcher, Gpus):
        _on_this_host(launcher, runs, launch, observers)
        return None
    if isinstance(launcher, Slurm):
        return _on_slurm(launcher, runs, launch, observers)
    work(runs, launch.name, observers=observers)
    return None


class _Watch:
    """What other processes do with some runs, told to observers."""

    def __init__(self, runs: Sequence[SweepRun], observers: Sequence[Observer]) -> None:
        self.unsettled = {run.run_id: run for run in runs}
        self.running: dict[str, dict[str, Any]] = {}  # run_id: what the process at work says
        self._observers = observers

    @property
    def idle(self) -> list[SweepRun]:
        """Runs that nobody works on and that are not settled."""
        return [run for name, run in self.unsettled.items() if name not in self.running]

    def look(self) -> None:
        for name, run in list(self.unsettled.items()):
            # Before the result is looked for: a process gives up its claim only after it wrote one.
            notes = holder(run.folder)
            record = settled(run)
            if record is not None:
                if name not in self.running:
                    self._tell("begin", run)
                self.running.pop(name, None)
                del self.unsettled[name]
                self._tell("end", run, record)
            elif notes is not None:
                if name not in self.running:
                    self._tell("begin", run)
                self.running[name] = notes
                if "requests" in notes:
                    self._tell("advance", run, notes.get("answered", 0), notes["requests"])
            elif name in self.running:
                del self.running[name]
                self._tell("lost", run, "the process that did it stopped or died")

    def _tell(self, what: str, *arguments: Any) -> None:
        for observer in self._observers:
            getattr(observer, what)(*arguments)


# ------------------------------------------------------------------------------------------------ this host


@dataclass
class _Slot:
    """A place for one worker at a time: a GPU, or a share of the CPU."""

    gpu: int | None
    threads: int | None
    folder: Path
    job: Any = None
    ended: list[Any] = field(default_factory=list)

    @property
    def is_free(self) -> bool:
        return self.job is None or self.job.done()


def _gpus_of(launcher: Gpus, runs: Sequence[SweepRun]) -> list[int]:
    """The GPUs for workers, as CUDA_VISIBLE_DEVICES would name them; none where the runs are to be on the CPU."""
    configs = [run.config for run in runs if run.config is not None]
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


def _on_this_host(launcher: Gpus, runs: Sequence[SweepRun], launch: Launch, observers: Sequence[Observer]) -> None:
    gpus = _gpus_of(launcher, runs)
    if gpus:
        slots = [_Slot(gpu, None, launch.folder / f"gpu{gpu}") for gpu in gpus]
    else:
        count = launcher.n or CPU_WORKERS
        threads = max(1, len(os.sched_getaffinity(0)) // count)
        slots = [_Slot(None, threads, launch.folder / f"worker{index}") for index in range(count)]
    watch = _Watch(runs, observers)
    try:
        watch.look()
        _keep_slots_busy(slots, watch, launcher, launch)
    finally:
        _end(slots)


def _keep_slots_busy(slots: list[_Slot], watch: _Watch, launcher: Gpus, launch: Launch) -> None:
    """Start workers, and others in the place of those that end, while there are runs that nobody does."""
    deaths, left = 0, len(watch.unsettled)
    while watch.unsettled:
        if len(watch.unsettled) < left:
            deaths, left = 0, len(watch.unsettled)
        busy = [slot for slot in slots if not slot.is_free]
        # Runs first, then workers: one that has just finished a run may not have claimed the next.
        wanted = min(len(slots), len(watch.unsettled)) - len(busy)
        for slot in [slot for slot in slots if slot.is_free][: max(0, wanted)] if watch.idle else []:
            if slot.job is not None:
                deaths += 1
                if deaths >= DEATHS_IN_A_ROW * len(slots):
                    raise LaunchError(f"workers end without finishing a run: {_last_words(slot)}")
            _start(slot, watch, launcher, launch)
        time.sleep(POLL_S)
        watch.look()


def _start(slot: _Slot, watch: _Watch, launcher: Gpus, launch: Launch) -> None:
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
    """The last line that a worker wrote to its error output, with the file's name."""
    path = slot.job.paths.stderr
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else []
    return f"{next((line for line in reversed(lines) if line.strip()), 'no message')} (see {path})"


# ---------------------------------------------------------------------------------------------------- Slurm


def _on_slurm(launcher: Slurm, runs: Sequence[SweepRun], launch: Launch, observers: Sequence[Observer]) -> str | None:
    jobs = _submit(launcher, runs, launch)
    array = jobs[0].split("_")[0]
    log.info("submitted to Slurm: %d jobs, %s (their output: %s)", len(jobs), ", ".join(jobs[:4]), launch.folder)
    follow = f"Slurm's jobs {array} go on; scancel {array} ends them"
    if not launcher.wait:
        return follow
    watch = _Watch(runs, observers)
    asked, gone_since = time.monotonic(), 0
    try:
        while True:
            watch.look()
            if not watch.unsettled:
                return None
            if time.monotonic() - asked > ASK_SLURM_EVERY_S:
                asked = time.monotonic()
                gone_since = 0 if watch.running or _in_queue(array) else gone_since + 1
                if gone_since >= 2:  # a file system may show the last results late
                    raise LaunchError(
                        f"Slurm's jobs {array} have ended, and {len(watch.unsettled)} runs have no result "
                        f"(the jobs' output: {launch.folder})"
                    )
            time.sleep(SLURM_POLL_S)
    except KeyboardInterrupt:
        log.info("%s", follow)
        raise


def _submit(launcher: Slurm, runs: Sequence[SweepRun], launch: Launch) -> list[str]:
    """Submit the jobs as an array; returns their ids."""
    import submitit
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    count = -(-len(runs) // launcher.runs_per_job)
    optional = {name: getattr(launcher, name) for name in ("partition", "account", "qos", "constraint")}
    try:
        executor = submitit.SlurmExecutor(folder=launch.folder / "%j", max_num_timeout=launcher.max_requeues)
        executor.update_parameters(
            **{name: str(value) for name, value in optional.items() if value is not None},
            job_name="mxsweep",
            time=launcher.time_min,
            gpus_per_node=launcher.gpus_per_node or None,
            ntasks_per_node=max(1, launcher.gpus_per_node),
            cpus_per_task=launcher.cpus_per_task,
            mem=None if launcher.mem_gb is None else f"{int(launcher.mem_gb * 1024)}M",
            array_parallelism=launcher.array_parallelism,
            setup=launcher.setup or None,
            additional_parameters={"requeue": True, **launcher.sbatch},
        )
        with executor.batch():
            jobs = [executor.submit(Worker(runs, launch.name, launcher.retries)) for _ in range(count)]
        return [job.job_id for job in jobs]
    except (FailedJobError, FailedSubmissionError, subprocess.CalledProcessError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise LaunchError(f"Slurm did not take the jobs: {reason[:500]}") from error


def _in_queue(array: str) -> bool:
    """Whether Slurm has anything of the array left to run; also when it does not answer."""
    answer = subprocess.run(["squeue", "-h", "-j", array, "-o", "%T"], capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        return "Invalid job id" not in answer.stderr
    return bool(answer.stdout.strip())
