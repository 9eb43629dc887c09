"""Options of keys and values that do more than choose a format: one name for what a run does, wherever it stands."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.made_runs import outcomes, put

from mxsweep.report.columns import Output
from mxsweep.report.data_files import load
from mxsweep.report.figures.figure_files import group_figures
from mxsweep.report.figures.line_points import lines_against
from mxsweep.report.figures.quantity import change_quantity
from mxsweep.report.run_table import run_table
from mxsweep.results.groups import read_results
from mxsweep.study.group_study import Study, study_groups

OFF = {"key_axis": "token", "rope": "after", "rotation": "none", "scales": "block", "smooth": 0.0}
PLAIN = OFF | {"first": 0, "recent": 0}
RESCUED = OFF | {"first": 4, "recent": 32, "rotation": "hadamard"}
BASE = np.random.default_rng(0).normal(-1, 0.2, 60)


def put_run(top: Path, name: str, cost: float, kv: dict[str, Any] | None = None, **knobs: Any) -> None:
    drawn = np.random.default_rng(len(name)).normal(cost, 0.01, 60)
    put(top / name, outcomes((BASE - drawn).tolist()), **({"kv": kv} if kv else {}), **knobs)


def put_sweep(top: Path) -> None:
    put_run(top, "base", 0, format="none")
    for block in (16, 32):
        rtn = {"ptq": {"method": "rtn"}, "block_size": block}
        put_run(top, f"b{block}", 0.1, **rtn)
        put_run(top, f"b{block}_plain", 0.5, PLAIN, **rtn, kv_quant="fp4_e2m1")
        put_run(top, f"b{block}_rescued", 0.2, RESCUED, **rtn, kv_quant="fp4_e2m1")


def study_of(top: Path) -> Study:
    (study,) = study_groups(read_results(top))
    return study


def test_tables_and_ticks_say_what_names_say(tmp_path: Path) -> None:
    put_sweep(tmp_path)
    study = study_of(tmp_path)
    assert not [name for name in study.results.shown if name.startswith("kv_quant.")]
    for output in (Output.TERMINAL, Output.MARKDOWN, Output.LATEX, Output.PAGE):
        table = run_table(study.results, study.group, output, study.comparisons)
        assert not [name for name in table.columns if name.startswith("kv_quant.")]
        cells = [row[table.columns.index("kv_quant")] for row in table.texts]
        assert sorted(cells) == ["fp4_e2m1"] * 2 + ["none"] * 3 + ["rescue4"] * 2
    assert {"rescue4", "fp4_e2m1"} <= {*load(tmp_path)["kv_quant"]}
    figure = next(one for one in group_figures(study) if one.stem == "perplexity_vs_kv_quant")
    ticks = json.dumps(figure.page_spec())
    assert "rescue4" in ticks and {row[0] for row in figure.cells} == {"unquantized", "fp4_e2m1", "rescue4"}
    lines = next(one for one in group_figures(study) if one.stem == "perplexity_vs_block_size")
    assert {entry.name for entry in lines.entries} >= {"KV unquantized", "KV fp4_e2m1", "KV rescue4"}


def test_averaged_lines_are_of_the_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mxsweep.report.figures.line_points.MOST_LINES", 2)
    put_sweep(tmp_path)
    for name in ("b16_rescued", "b32_rescued"):
        (tmp_path / name.replace("rescued", "plain") / "result.json").unlink()
    study = study_of(tmp_path)
    rows = [row for row in study.rows if not row.is_baseline]
    drawn = lines_against("block_size", rows, ["kv_quant"], change_quantity(study, "perplexity"))
    assert [line.name for line in drawn.lines] == ["KV unquantized", "KV rescue4"]


def test_what_is_said_of_a_format_is_not_of_the_option_that_has_it(tmp_path: Path) -> None:
    """Plain fp4 costs 0.4 more than nothing, the option 0.1: an average of both would be neither's."""
    put_sweep(tmp_path)
    (values,) = [each for each in study_of(tmp_path).values if each.knob == "kv_quant"]
    costs = {(pair.low, pair.high): pair.tests["perplexity"].measured.difference for pair in values.pairs}
    assert costs == pytest.approx(
        {("none", "fp4_e2m1"): 0.4, ("none", "rescue4"): 0.1, ("fp4_e2m1", "rescue4"): -0.3}, abs=0.01
    )


def test_where_a_part_of_the_option_is_swept_runs_are_named_and_told_apart_by_the_parts(tmp_path: Path) -> None:
    put_run(tmp_path, "base", 0, format="none")
    for first in (0, 4, 8):
        put_run(tmp_path, f"f{first}", 0.3 - first / 100, RESCUED | {"first": first}, kv_quant="fp4_e2m1")
    study = study_of(tmp_path)
    assert {row.knobs["kv_quant"] for row in study.rows} == {"none", "fp4_e2m1"}
    assert study.swept == ["kv_quant.first"]
    assert {one.name for one in study.verdict.configs} == {
        "no first tokens kept",
        "first 4 tokens kept",
        "first 8 tokens kept",
    }


def test_steps_of_remedies_begin_with_the_options_format(tmp_path: Path) -> None:
    put_sweep(tmp_path)
    steps = study_of(tmp_path).remedy_steps
    assert [[step.text for step in one.steps] for one in steps] == [
        ["rtn", "rtn + first 4 tokens kept + last 32 tokens kept + keys rotated"]
    ] * 2
