"""A hundred small runs and their baseline, as benchmarks/bookkeeping.py times them: all are there, and in the table."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mxsweep.report.data_files import load

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_a_hundred_runs(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.bookkeeping", "--work", str(tmp_path), "--limit", "1"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    output = tmp_path / "figures.json"
    done = subprocess.run(
        [*command, "--json", str(output)], cwd=REPOSITORY, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr

    sweep = tmp_path / "sweep"
    records = [json.loads(path.read_text()) for path in sweep.glob("*/result.json")]
    assert [record["status"] for record in records] == ["done"] * 101
    assert len({record["config_hash"] for record in records}) == 101
    assert all(record["n_effective"] == {"story": 1} for record in records)
    with (sweep / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 101
    assert sum(row["format"] == "none" for row in rows) == 1
    knobs = {(row["block_size"], row["scale_bits"], row["rounding"]) for row in rows if row["format"] != "none"}
    assert len(knobs) == 100
    assert len(load(sweep)) == 101
    assert {path.name for path in sweep.glob("*.md")} == {"results.md"} and list(sweep.glob("*.svg"))
    planned = json.loads((sweep / "sweep.json").read_text())
    assert len(planned["runs"]) == 101 and len(planned["commands"]) == 1

    figures = json.loads(output.read_text())
    assert figures["runs"] == 101
    parts = ("start_s", "planning_s", "imports_s", "own_s", "execution_s", "collecting_s")
    assert sum(figures[part] for part in parts) == pytest.approx(figures["wall_s"])
    assert all(figures[part] > 0 for part in parts)
    assert "bookkeeping: the last three" in done.stdout and "Bookkeeping costs " in done.stdout
