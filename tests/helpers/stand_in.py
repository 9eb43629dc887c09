"""mxsweep with a stand-in for the evaluation: `python tests/stand_in.py ARGUMENTS` is `python -m mxsweep ARGUMENTS`.

A run takes some hundredths of a second and neither torch nor a model; its metrics follow from its config_hash, so that
tables can be compared. Everything around it is the real thing: planning, claims, workers, records, tables; only figures
and the page are left out, which would take longer than all the rest. Seeds choose what becomes of a run:

    666   it raises an error             777   its process kills itself, every time
    888   it takes a minute              778   its process kills itself the first time

What it is told otherwise comes in the environment, so that workers hear it, too:

    STAND_IN_LOG          a file with a line for each evaluation that begins or ends, see `Event`
    STAND_IN_S            seconds that an evaluation takes on average (0.04)
    STAND_IN_LASTS_S      what takes a minute takes so many seconds (60)
    STAND_IN_SAMPLES      bytes of samples that a run writes (1000)
    STAND_IN_FULL_AFTER   so many evaluations later no file can grow beyond 200 bytes, as if the disk were full
    STAND_IN_COLLECT_S    seconds that drawing takes, which it does after results.csv was written (0)
    STAND_IN_GPUS         GPUs that there are said to be (0)
    STAND_IN_TOGETHER     a folder and a number: wait, once everything is imported, for so many processes there
"""

from __future__ import annotations

import contextlib
import os
import random
import resource
import signal
import sys
import time
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mxsweep.config.run_config import RunConfig
from mxsweep.runs.run_result import RunFiles, RunResult
from mxsweep.sweeps import worker
from mxsweep.sweeps.worker import Worker
from mxsweep.terminal.command import leave

FAILS, DIES, DIES_ONCE, LASTS = 666, 777, 778, 888


@dataclass(frozen=True)
class Event:
    """An evaluation that began or ended."""

    what: str  # begin or end
    config_hash: str
    pid: int
    at: float  # time.time()
    gpu: str  # CUDA_VISIBLE_DEVICES


def read_log(path: Path) -> list[Event]:
    """What the processes noted so far; the last line may be half written."""
    text = path.read_text() if path.exists() else ""
    lines = [line.split() for line in text.split("\n")[:-1]]
    return [Event(what, config_hash, int(pid), float(at), gpu) for what, config_hash, pid, at, gpu in lines]


def _note(what: str, config_hash: str) -> None:
    # One write of a few bytes to a file opened for appending: lines of several processes do not mix.
    descriptor = os.open(os.environ["STAND_IN_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        gpu = os.environ.get("CUDA_VISIBLE_DEVICES") or "none"
        os.write(descriptor, f"{what} {config_hash} {os.getpid()} {time.time()} {gpu}\n".encode())
    finally:
        os.close(descriptor)


def evaluate(config: RunConfig, progress: Callable[[int, int], object] | None, _overrides: Any = ()) -> RunResult:
    """In the place of mxsweep.runs.evaluate_config.evaluate_config."""
    log, digest = Path(os.environ["STAND_IN_LOG"]), config.config_hash
    began_before = sum(event.what == "begin" and event.config_hash == digest for event in read_log(log))
    _note("begin", digest)
    if config.seed == DIES or (config.seed == DIES_ONCE and not began_before):
        os.kill(os.getpid(), signal.SIGKILL)
    lasts = float(os.environ.get("STAND_IN_LASTS_S", 60))
    seconds = lasts if config.seed == LASTS else float(os.environ.get("STAND_IN_S", 0.04)) * random.uniform(0.5, 1.5)
    for step in range(1, 5):
        time.sleep(seconds / 4)
        if progress is not None:
            progress(step, 4)
    _note("end", digest)
    ended = sum(event.what == "end" for event in read_log(log))
    if ended > int(os.environ.get("STAND_IN_FULL_AFTER", sys.maxsize)):
        resource.setrlimit(resource.RLIMIT_FSIZE, (200, resource.RLIM_INFINITY))
    if config.seed == FAILS:
        raise RuntimeError("this seed fails")
    draw = random.Random(digest)
    metrics = {"acc": draw.random(), "acc_stderr": 0.01, "perplexity": 1 + draw.random(), "perplexity_stderr": 0.02}
    text = draw.randbytes(int(os.environ.get("STAND_IN_SAMPLES", 1000)) // 2).hex()
    entries = {
        "metrics": {"story": metrics},
        "n_effective": {"story": 10},
        "timing": {"load_s": 0.0, "quantize_s": 0.0, "prepare_s": 0.0, "eval_s": seconds},
        "examples_per_sec": 10 / seconds,
        "diagnostics": {},
        "memory": {},
        "warnings": [],
    }
    samples = [{"task": "story", "doc_id": 0, "text": text}]
    return RunResult(entries, {}, RunFiles(samples, {"results": {"story": metrics}}))


def draw_nothing(*_: object) -> dict[str, list[Path]]:
    """In the place of mxsweep.report.figures.figure_files.draw_figures."""
    time.sleep(float(os.environ.get("STAND_IN_COLLECT_S", 0)))
    return {}


def write_nothing(*_: object) -> list[Path]:
    """In the place of mxsweep.report.page.write_page.write_page."""
    return []


def install() -> None:
    """Put the stand-in into this process, in front of what would import torch and lm-eval, and of what draws."""
    for name, attributes in {
        "mxsweep.runs.evaluate_config": {"evaluate_config": evaluate},
        "mxsweep.report.figures.figure_files": {
            "draw_figures": draw_nothing,
            "make_figures": lambda *_: ({}, []),
            "written_files": dict,
        },
        "mxsweep.report.figures.draw": {"drawing_ahead": contextlib.nullcontext},
        "mxsweep.report.page.write_page": {"write_page": write_nothing},
        "lm_eval": {},
        "lm_eval.utils": {"handle_non_serializable": str},
    }.items():
        module = types.ModuleType(name)
        vars(module).update(attributes)
        sys.modules[name] = module


class StandInWorker(Worker):
    """A worker that has the stand-in. What unpickles it finds the class through PYTHONPATH, which `main` sees to."""

    def work(self) -> None:
        install()
        Worker.work(replace(self, threads=None))  # to set the number of threads, torch would be imported


def serve() -> None:
    """In the place of mxsweep.sweeps.worker.serve."""
    install()
    worker.serve()


def main() -> int:
    """As mxsweep's own."""
    import mxsweep.__main__
    import mxsweep.sweeps.on_host
    import mxsweep.sweeps.on_slurm

    install()
    mxsweep.sweeps.on_host.Worker = mxsweep.sweeps.on_slurm.Worker = StandInWorker
    mxsweep.sweeps.worker_process.CHILD = "from helpers.stand_in import serve; serve()"
    mxsweep.sweeps.on_host.visible_gpu_count = lambda: int(os.environ.get("STAND_IN_GPUS", 0))
    here = str(Path(__file__).resolve().parents[1])
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (here, os.environ.get("PYTHONPATH"))))
    folder, _, count = os.environ.get("STAND_IN_TOGETHER", "").rpartition(":")
    if folder:
        (Path(folder) / str(os.getpid())).touch()
        while len(os.listdir(folder)) < int(count):
            time.sleep(0.001)
    return mxsweep.__main__.main()


# ------------------------------------------------------------------------------------------- for the tests


def environment(folder: Path, **more: object) -> dict[str, str]:
    """The environment of a command whose processes can be found again by `processes(folder)`."""
    own = {"STAND_IN_LOG": folder / "evaluations.log", "OMP_NUM_THREADS": 1, "CUDA_VISIBLE_DEVICES": "", **more}
    return {**os.environ, **{name: str(value) for name, value in own.items()}}


def command(*arguments: str) -> list[str]:
    """`python -m mxsweep` with the stand-in."""
    return [sys.executable, str(Path(__file__).resolve()), *arguments]


def processes(folder: Path) -> dict[int, str]:
    """Process ids to command lines of what runs in `environment(folder)`, children included."""
    mark = f"STAND_IN_LOG={folder / 'evaluations.log'}".encode()
    return {pid: line for pid, line in _command_lines(mark)}


def _command_lines(mark: bytes) -> Iterator[tuple[int, str]]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # it ended meanwhile, or is somebody else's
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    yield int(entry.name), (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()


if __name__ == "__main__":
    # By its own name, since submitit would pickle a class of `__main__` by value.
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from helpers import stand_in

    leave(stand_in.main())
