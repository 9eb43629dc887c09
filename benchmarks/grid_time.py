"""Have mxsweep do a whole study in a process that is timed from outside, and take its time apart."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import REPOSITORY, TASK, BenchmarkError
from benchmarks.material import Material

# ex1 with keys and values as they are, and with them in fp4_e2m1, which is ex2: 24 runs and their baseline.
GRID = ["experiment=ex1", "kv_quant=none,fp4_e2m1"]


@dataclass(frozen=True)
class GridTime:
    """What mxsweep's process took.

    Attributes:
        wall_s: from the process's start to its exit, seen from outside.
        until_first_s: from its start until the first run began.
        span_s: from then until the last run's end.
        parts: seconds by what they were spent on, where runs were done one after the other; they add up to ``wall_s``.
        records: of the runs, the baseline's first.
        report: the files of the report, by name.
    """

    wall_s: float
    until_first_s: float
    span_s: float
    parts: dict[str, float]
    records: list[dict[str, Any]]
    report: list[str]

    @property
    def failed(self) -> list[dict[str, Any]]:
        """The records of runs that failed."""
        return [record for record in self.records if record["status"] != "done"]

    @property
    def proven(self) -> list[dict[str, Any]]:
        """The records of runs that another one proves, which were not evaluated."""
        return [record for record in self.records if "proven_by" in record]


def run_grid(material: Material, knobs: Sequence[str], workers: int | None = None) -> GridTime:
    """Start mxsweep's process, wait for it, and take its time apart.

    Args:
        workers: processes that do the runs, each on a GPU of its own or on a share of the CPU; None for the one that
            is started.

    Raises:
        BenchmarkError: the process ended before its last step.
    """
    folder = material.work / "mxsweep"
    if folder.exists():
        shutil.rmtree(folder)  # of an earlier benchmark in the same --work: mxsweep never writes into old runs
    folder.mkdir()
    sweep = folder / "grid"
    launcher = [] if workers is None else ["hydra/launcher=gpus", f"hydra.launcher.n={workers}"]
    words = ["model=hf", f"model.path={material.model}", f"task={TASK}", f"task.data={material.data}", *knobs]
    typed = {knob.partition("=")[0] for knob in knobs}
    grid = [word for word in GRID if word.partition("=")[0] not in typed]
    started = time.time()
    words = [*grid, f"hydra.sweep.dir={sweep}", *words, *launcher]
    wall_s, log = timed_process(["mxsweep", "-m", *words], folder / "log.txt")
    ends = {name: sweep / file for name, file in (("planned", "sweep.json"), ("report", "results.md"))}
    files = list(sweep.glob("*/result.json"))
    if not files or not all(file.is_file() for file in ends.values()):
        tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])
        raise BenchmarkError(f"mxsweep's process did not do its work; the last it said:\n{tail}")
    marks = {name: file.stat().st_mtime for name, file in ends.items()}
    marks["last_record"] = max(file.stat().st_mtime for file in files)
    records = sorted((read_record(file) for file in files), key=_knobs)
    report = sorted(path.name for path in sweep.glob("[a-z]*.*"))
    # What a run was composed of is written when it begins.
    first = min(file.stat().st_mtime for file in sweep.glob("*/.hydra/*"))
    parts = _parts(started, wall_s, marks, records) if workers is None else {}
    return GridTime(wall_s, first - started, marks["last_record"] - first, parts, records, report)


def timed_process(module: Sequence[str], log: Path) -> tuple[float, Path]:
    """Seconds from starting ``python -m MODULE ...`` to its exit; what it says goes into a file."""
    with log.open("w", encoding="utf-8") as output:
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", *module], cwd=REPOSITORY, stdout=output, stderr=output, check=False)
        return time.perf_counter() - started, log


def read_record(path: Path) -> dict[str, Any]:
    """A run's record as mxsweep wrote it."""
    return json.loads(path.read_text(encoding="utf-8"))


def _knobs(record: dict[str, Any]) -> tuple[Any, ...]:
    """What orders the rows of the table: the baseline, then without KV, then as the knobs count up."""
    config = record["config"]
    knobs = config["kv_quant"]["name"] != "none", config["block_size"], config["scale_bits"], config["custom_cuda"]
    return config["format"]["name"] != "none", *knobs


def _parts(started: float, wall_s: float, marks: dict[str, Any], records: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The wall time by what it was spent on, from what the process left and the runs' records.

    The parts add up to the wall time. A run that fails before its model is loaded has a total and no parts, and one
    that is proven has no times: what it takes is between the others.
    """
    spent = {part: sum(r["timing"].get(f"{part}_s", 0.0) for r in records) for part in ("load", "quantize", "eval")}
    rest = [record["timing"].get("total_s", 0.0) - _known(record) for record in records]
    total = sum(record["timing"].get("total_s", 0.0) for record in records)
    order = sorted(range(len(records)), key=lambda index: records[index]["started_at"])
    first = rest[order[0]]
    return {
        "starting and planning": marks["planned"] - started,
        "first run: imports": first,
        "loading model and task": spent["load"],
        "quantizing weights": spent["quantize"],
        "evaluating": spent["eval"],
        "rest of the other runs": sum(rest) - first,
        "between runs: writing records, proven runs": marks["last_record"] - marks["planned"] - total,
        "report": marks["report"] - marks["last_record"],
        "exit": started + wall_s - marks["report"],
    }


def _known(record: dict[str, Any]) -> float:
    return sum(record["timing"].get(f"{part}_s", 0.0) for part in ("load", "quantize", "eval"))
