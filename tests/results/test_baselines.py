"""A baseline that was not collected is found beside the runs, or the command that makes it is told."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
from helpers.made_runs import outcomes, put

from mxsweep import compose
from mxsweep.files.digests import json_digest
from mxsweep.report.collection import collect
from mxsweep.report.single_run import cost_text
from mxsweep.results.baselines import baseline_command, find_baselines
from mxsweep.results.groups import Results, read_results
from mxsweep.study.group_study import Study, study_groups

VALUES = [-0.2 - 0.02 * (i % 9) for i in range(60)]
HERE = {"versions": {"torch": "2.13.0"}, "device_name": "x86_64"}


def run(folder: Path, quantized: Any = None, weights: str = "a", **record: Any) -> Path:
    """Write a run with an identity; the last 8 letters of its folder's name are its hash's first, as a run's are."""
    identity = {"model": {"files": weights}, "limit": None, "quantized": quantized, "seed": 1234}
    hashed = json_digest(identity)
    values = VALUES if quantized is None else [value - 0.1 * (1 + i % 3) for i, value in enumerate(VALUES)]
    fields = {"identity": identity, "config_hash": hashed, "environment": HERE, **record}
    named = folder.with_name(f"{folder.name}_{hashed[:8]}")
    return put(named, outcomes(values), record=fields, format="none" if quantized is None else "w4a6")


def found(*dirs: Path) -> list[str]:
    return [path.name[:4] for path in find_baselines(read_results(dirs))]


def test_a_baseline_is_found_beside_a_run_and_in_sweeps(tmp_path: Path) -> None:
    one = run(tmp_path / "outputs" / "quantized", {"computed": []})
    assert found(one) == []
    run(tmp_path / "multirun" / "monday" / "base", None)
    run(tmp_path / "multirun" / "monday" / "other", None, weights="b")
    assert found(one) == ["base"]
    text = collect(one).text
    assert "Baseline from" in text and "No baseline" not in text and "Cost:" in text
    assert cost_text(one).startswith("Cost: Perplexity 1.319 unquantized: +") and "Compared with" in cost_text(one)


def test_a_baseline_whose_record_makes_no_sense_is_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = run(tmp_path / "x" / "quantized", {"computed": []})
    base = run(tmp_path / "x" / "base", None)

    def study(results: Results, *context: int) -> list[Study]:
        if any(each.path.resolve() == base.resolve() and each.status == "done" for each in results.runs):
            raise TypeError("of something odd")
        return study_groups(results, *context)

    monkeypatch.setattr("mxsweep.study.group_study.study_groups", study)
    monkeypatch.setattr("mxsweep.report.single_run.study_groups", study)
    result = collect(one)
    assert (result.done, result.unreadable) == (1, 1) and "Baseline from" not in result.text
    assert base.name in result.text and "makes no sense in its record: TypeError: of something odd" in result.text
    assert cost_text(one).startswith("To know what this cost, run its baseline")


def test_a_name_of_a_folder_beside_is_no_order(tmp_path: Path) -> None:
    one = run(tmp_path / "x" / "quantized", {"computed": []})
    run(tmp_path / "x" / "base", None).rename(tmp_path / "x" / "base \x1b[2J")
    assert r"base \x1b[2J" in " ".join(cost_text(one).split()) and "\x1b" not in cost_text(one)


def test_a_name_of_ones_own_is_no_hindrance(tmp_path: Path) -> None:
    one = run(tmp_path / "x" / "quantized", {"computed": []})
    base = run(tmp_path / "x" / "base", None)
    base.rename(tmp_path / "x" / "base of mine")
    assert found(one) == ["base"]


@pytest.mark.parametrize(
    "record",
    [
        {"environment": HERE | {"device_name": "H100"}},
        {"status": "failed", "error": {"type": "E", "message": "m"}},
        {"config_hash": "0" * 64},
    ],
)
def test_another_environment_failure_or_hash_is_no_baseline(record: dict[str, Any], tmp_path: Path) -> None:
    one = run(tmp_path / "outputs" / "quantized", {"computed": []})
    run(tmp_path / "outputs" / "base", None, **record)
    assert found(one) == []


def test_a_study_with_a_baseline_looks_for_none(tmp_path: Path) -> None:
    run(tmp_path / "outputs" / "base", None)
    one = run(tmp_path / "multirun" / "a" / "quantized", {"computed": []})
    again = run(tmp_path / "multirun" / "a" / "base", None)
    assert found(one, again) == []


def test_the_command_makes_the_baseline(tmp_path: Path) -> None:
    words = ["format=mxfp4", "block_size=16", "limit=5", "ptq=gptq", "kv_quant=int8", "seed=3", "noise=2", "stamp=x"]
    words += ["export=auto", "task.num_fewshot=2", "hydra.run.dir=a b"]
    config = compose([word for word in words if not word.startswith("hydra")])
    one = put(tmp_path / "one", record={"identity": config.identity, "overrides": words}, format="w4a6")
    (row,) = read_results(one).rows
    command = baseline_command(row)
    assert command is not None
    made = shlex.split(command)
    assert made[:3] == ["python", "-m", "mxsweep"] and "export=auto" not in made
    baseline = compose(made[3:])
    assert baseline.is_baseline
    assert baseline.config_hash == json_digest({**config.identity, "quantized": None})
    assert f"\n  {command}" in cost_text(one)
    assert command in " ".join(collect(one).text.split())


def test_a_run_of_an_earlier_version_has_no_command(tmp_path: Path) -> None:
    (row,) = read_results(put(tmp_path / "one")).rows
    assert baseline_command(row) is None
    assert cost_text(tmp_path / "one") == ""
