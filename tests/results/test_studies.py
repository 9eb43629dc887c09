"""Studies that are collected together: what they hold the same of counts once, and what cannot be compared is apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers.made_runs import outcomes, put

from mxsweep.report.collection import collect
from mxsweep.report.data_files import load
from mxsweep.results.groups import Results, read_results
from mxsweep.results.studies import ENVIRONMENT, STUDY, study_names
from mxsweep.study.comparison import compare_with_baselines, explain_groups
from mxsweep.study.value_pairs import study_values

HERE = {"versions": {"torch": "2.13.0"}, "device_name": "x86_64"}


def run(folder: Path, cost: float = 0.0, environment: dict[str, Any] | None = None, **knobs: Any) -> None:
    """Write a run whose config_hash is that of its folder's name: two folders of one name hold the same run."""
    samples = outcomes([-0.5 - 0.1 * (i % 7) - cost * (1 + i % 3) for i in range(60)])
    put(folder, samples, record={"environment": environment or HERE}, **knobs)


def two_studies(top: Path, environment: dict[str, Any] | None = None) -> list[Path]:
    """Two sweeps with the same baseline and one config in common."""
    for study, blocks, made_in in (("a", (16, 32), HERE), ("b", (32, 64), environment or HERE)):
        run(top / study / "base", environment=made_in, format="none")
        for block in blocks:
            run(top / study / f"{block}", block / 100, made_in, block_size=block)
    return [top / "a", top / "b"]


def lines(results: Results) -> list[list[tuple[str, Any, bool]]]:
    return [
        [(row.knobs[STUDY], row.knobs.get("block_size"), row.is_baseline) for row in group.rows]
        for group in results.groups
    ]


def test_what_two_studies_have_the_same_of_is_one_line(tmp_path: Path) -> None:
    results = read_results(two_studies(tmp_path))
    assert lines(results) == [
        [("a, b", None, True), ("a", 16, False), ("a, b", 32, False), ("b", 64, False)],
    ]
    assert results.repeats == 2
    (group,) = results.groups
    assert len(compare_with_baselines(group)) == 3
    # Values are compared across studies: nothing but the block size is different.
    (knob,) = study_values(results, group)
    assert [(pair.low, pair.high) for pair in knob.pairs] == [("16", "32"), ("16", "64"), ("32", "64")]


def test_tables_say_whose_a_run_is(tmp_path: Path) -> None:
    dirs = two_studies(tmp_path)
    text = collect(dirs, tmp_path / "out").text
    header = next(line for line in text.splitlines() if "block_size" in line and "acc" in line)
    assert header.split()[0] == STUDY
    assert "of runs that were made twice, and came out the same, one is shown" in text
    assert list(load(dirs)[STUDY]) == ["a, b", "a", "a, b", "b"]
    alone = collect(dirs[0]).text
    assert STUDY not in alone and "twice" not in alone


def test_a_run_that_came_out_differently_is_a_line_of_each_study(tmp_path: Path) -> None:
    dirs = two_studies(tmp_path)
    for study, cost in (("a", 0.3), ("b", 0.4)):
        run(tmp_path / study / "again", cost, block_size=48)
    results = read_results(dirs)
    (group,) = results.groups
    assert [row.knobs[STUDY] for row in group.rows if row.knobs.get("block_size") == 48] == ["a", "b"]
    assert results.shown[0] == STUDY


def test_of_two_baselines_that_differ_each_study_has_its_own(tmp_path: Path) -> None:
    dirs = two_studies(tmp_path)
    for study, cost in (("c", 0.0), ("d", 0.01)):
        run(tmp_path / study / "plain", cost, format="none")
        run(tmp_path / study / f"8-{study}", 0.2, block_size=8)
    (group,) = read_results([tmp_path / "c", tmp_path / "d", *dirs]).groups
    found = {row.run.path.name: group.baseline_for(row) for row in group.rows if row.knobs.get("block_size") == 8}
    assert {name: row and row.run.path.parent.name for name, row in found.items()} == {"8-c": "c", "8-d": "d"}


def test_studies_of_different_environments_are_not_compared(tmp_path: Path) -> None:
    dirs = two_studies(tmp_path, {"versions": {"torch": "2.4.0"}, "device_name": "x86_64"})
    results = read_results(dirs)
    assert lines(results) == [
        [("a", None, True), ("a", 16, False), ("a", 32, False)],
        [("b", None, True), ("b", 32, False), ("b", 64, False)],
    ]
    why = explain_groups(results)
    assert why is not None and "torch is 2.13.0 in a, 2.4.0 in b" in why
    assert "torch is 2.13.0 in a, 2.4.0 in b" in " ".join(collect(dirs, tmp_path / "out").text.split())


def test_a_commit_or_a_python_is_no_other_environment(tmp_path: Path) -> None:
    dirs = two_studies(tmp_path, HERE | {"git_sha": "1" * 40, "python": "3.12.1"})
    assert len(read_results(dirs).groups) == 1


def test_a_run_that_failed_before_its_device_was_known_is_of_its_studys_environment(tmp_path: Path) -> None:
    dirs = two_studies(tmp_path)
    failed = {"status": "failed", "error": {"type": "ConfigError"}, "environment": {"versions": HERE["versions"]}}
    put(tmp_path / "a" / "failed", record=failed)
    results = read_results(dirs)
    assert explain_groups(results) is None
    assert len([group for group in results.groups if any(row.run.status == "done" for row in group.rows)]) == 1
    assert all(ENVIRONMENT not in row.knobs for row in results.rows)


def test_a_run_without_a_hash_is_like_no_other(tmp_path: Path) -> None:
    for study in ("a", "b"):
        put(tmp_path / study / "one", record={"config_hash": None})
    assert read_results([tmp_path / "a", tmp_path / "b"]).repeats == 0


def test_nan_is_the_same_as_nan(tmp_path: Path) -> None:
    for study in ("a", "b"):
        put(tmp_path / study / "one", metrics={"story": {"perplexity": float("nan")}})
    assert read_results([tmp_path / "a", tmp_path / "b"]).repeats == 1


def test_of_two_the_one_that_measured_more_stays(tmp_path: Path) -> None:
    put(tmp_path / "a" / "one")
    noise = {"repeats": 2, "metrics": {"story": {"acc": [0.5, 0.6]}}}
    put(tmp_path / "b" / "one", record={"noise": noise})
    (row,) = read_results([tmp_path / "a", tmp_path / "b"]).rows
    assert row.noise == {"acc": [0.5, 0.6]} and row.knobs[STUDY] == "a, b"


@pytest.mark.parametrize(
    ("folders", "names"),
    [(["x/a", "x/b"], ["a", "b"]), (["x/a", "y/a"], ["x/a", "y/a"]), (["x/a", "x/a"], ["a"])],
)
def test_a_study_is_called_by_its_folder(tmp_path: Path, folders: list[str], names: list[str]) -> None:
    for folder in folders:
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    assert list(study_names([tmp_path / folder for folder in folders]).values()) == names


def test_a_run_by_itself_is_no_study(tmp_path: Path) -> None:
    two_studies(tmp_path)
    put(tmp_path / "single", format="w4a6", block_size=128)
    results = read_results([tmp_path / "a", tmp_path / "single"])
    assert results.studies == [] and all(STUDY not in row.knobs for row in results.rows)


def test_a_baseline_that_lies_in_no_study_goes_with_its_environment(tmp_path: Path) -> None:
    other = {"versions": {"torch": "2.4.0"}, "device_name": "x86_64"}
    for study, made_in in (("a", HERE), ("b", other)):
        run(tmp_path / study / "16", 0.1, made_in, block_size=16)
        run(tmp_path / f"base_{study}", 0.0, made_in, format="none")
    results = read_results([tmp_path / "a", tmp_path / "b", tmp_path / "base_a", tmp_path / "base_b"])
    found = [[(row.knobs[ENVIRONMENT], row.is_baseline) for row in group.rows] for group in results.groups]
    assert found == [[("a", True), ("a", False)], [("b", True), ("b", False)]]
