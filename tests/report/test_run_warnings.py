"""Warnings in tables: each once, in front of it the runs that give it."""

from pathlib import Path

from helpers.made_runs import put

from mxsweep.report.run_warnings import list_warnings
from mxsweep.results.groups import read_results
from mxsweep.results.rows import Row


def named(row: Row) -> str:
    """A run's name as tables make it: knobs in their order, a comma between them."""
    knobs = (("block size", "block_size"), ("seed", "seed"))
    return ", ".join(f"{word} {row.knobs[knob]}" for word, knob in knobs if knob in row.knobs)


def test_runs_that_differ_in_the_seed_alone_are_one(tmp_path: Path) -> None:
    for block in (8, 16, 32):
        for seed in (1, 2, 3):
            warnings = [] if block == 32 else ["it is left out"]
            folder = tmp_path / f"{block}_{seed}"
            put(folder, format="mxfp4", block_size=block, seed=seed, record={"warnings": warnings})
    rows = sorted(read_results(tmp_path).rows, key=lambda row: (row.knobs["block_size"], row.knobs["seed"]))
    assert list_warnings(rows, named) == [
        "block size 8, seed 1 and 2 and 3; block size 16, seed 1 and 2 and 3: it is left out"
    ]
    assert list_warnings(rows[:3], named) == ["every run: it is left out"]
    assert list_warnings([rows[0], rows[3], rows[6]], lambda row: f"block size {row.knobs['block_size']}") == [
        "block size 8, block size 16: it is left out"
    ]


def test_a_run_without_a_seed_in_its_name_is_not_taken_for_those_with_one(tmp_path: Path) -> None:
    for name, record in (("a", {"warnings": ["it is left out"]}), ("b", {"warnings": ["it is left out"]}), ("c", {})):
        put(tmp_path / name, format="mxfp4", record=record)
    rows = sorted(read_results(tmp_path).rows, key=lambda row: row.run.run_id)
    names = {"id_a": "mxfp4", "id_b": "mxfp4, seed 1", "id_c": "mxfp6"}
    assert list_warnings(rows, lambda row: names[row.run.run_id]) == ["mxfp4; mxfp4, seed 1: it is left out"]
