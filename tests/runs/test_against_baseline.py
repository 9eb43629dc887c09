"""A run against its baseline: the paired differences of the report, or the command that makes one."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from mxsweep import compare, compose, run
from mxsweep.runs.against_baseline import against_baseline
from mxsweep.runs.export_run import export_run

pytestmark = pytest.mark.usefixtures("own_cache")

FEW = ["limit=48", "model.device=cpu"]
WORDS = [*FEW, "format=mxfp4", "format.activation=none"]


def done(folder: Path, words: list[str]) -> dict[str, Any]:
    record = run(compose(words), folder, overrides=words)
    assert record["status"] == "done", record["error"]
    return record


def test_differences_are_those_of_a_comparison(tmp_path: Path) -> None:
    baseline = done(tmp_path / "none", [*FEW, "format=none"])
    done(tmp_path / "other", ["limit=24", "model.device=cpu", "format=none"])
    record = done(tmp_path / "mine", WORDS)
    found = against_baseline(record, tmp_path / "mine")
    assert found["run_id"] == baseline["run_id"]
    expected = compare(tmp_path / "none", tmp_path / "mine").set_index("metric")
    assert [each["metric"] for each in found["differences"]] == ["acc", "perplexity"]
    for each, metric in zip(found["differences"], ("acc", "log-perplexity"), strict=True):
        assert (each["p"], each["n"]) == (expected.p[metric], expected.n[metric]) and each["n"] == 48
    assert found["differences"][1]["change"].startswith("+") and "%" in found["differences"][1]["change"]
    export = export_run(compose(WORDS), record, tmp_path / "mine", "auto", tmp_path / "out", verify=False)
    said = (export.folder / "README.md").read_text()
    assert f"Against the unquantized model (run {baseline['run_id']})" in said
    assert found["differences"][1]["change"] in said


def test_a_run_alone_says_what_to_evaluate(tmp_path: Path) -> None:
    record = done(tmp_path / "mine", WORDS)
    done(tmp_path / "other", ["limit=24", "model.device=cpu", "format=none"])
    found = against_baseline(record, tmp_path / "mine")
    assert list(found) == ["missing"]
    command = re.search(r"`python -m mxsweep (.+)`", found["missing"])
    assert command and compose(shlex.split(command[1])).config_hash == compose([*FEW, "format=none"]).config_hash


def test_a_baseline_is_found_where_a_report_finds_it(tmp_path: Path) -> None:
    baseline = done(tmp_path / "outputs" / "none", [*FEW, "format=none"])
    mine = tmp_path / "multirun" / "monday" / "mine"
    found = against_baseline(done(mine, WORDS), mine)
    assert found["run_id"] == baseline["run_id"] and found["metrics"] == baseline["metrics"]


def test_a_baseline_of_another_environment_is_none(tmp_path: Path) -> None:
    done(tmp_path / "none", [*FEW, "format=none"])
    record = done(tmp_path / "mine", WORDS)
    file = tmp_path / "none" / "result.json"
    other = json.loads(file.read_text())
    other["environment"]["versions"]["torch"] = "1.0"
    file.write_text(json.dumps(other))
    found = against_baseline(record, tmp_path / "mine")
    assert list(found) == ["missing"] and "in the same environment" in found["missing"]
