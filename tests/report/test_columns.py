"""Columns: one declaration, every output; and files for programs that hold everything once, typed."""

import csv
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from helpers.made_report import put_study
from helpers.made_runs import put

from mxsweep.config.knobs import labels, notes
from mxsweep.report.collection import collect
from mxsweep.report.column_page import column_page
from mxsweep.report.column_table import MEASURED
from mxsweep.report.columns import (
    DATA_ONLY,
    EVERYWHERE,
    Change,
    Field,
    Output,
    against_baseline,
    difference_of,
    measured_column,
)
from mxsweep.report.data_files import load
from mxsweep.report.wording import ABSENT, difference
from mxsweep.results.groups import read_results
from mxsweep.results.record import RunFolder, read_record, write_record
from mxsweep.results.rows import Row
from mxsweep.study.group_study import study_groups

FEW = {"blocks": (16, 32), "scale_bits": (8,), "kv": ("none",)}


def test_a_column_declared_once_stands_in_every_output(tmp_path: Path) -> None:
    put_study(tmp_path, **FEW)
    for file in tmp_path.glob("*/result.json"):
        write_record(file.parent, read_record(file) | {"joules": 41.5})
    declared = measured_column(
        "joules", "energy, J", lambda row: row.number("joules"), "{:.1f} J".format, title="energy", outputs=EVERYWHERE
    )
    MEASURED.append(declared)
    try:
        terminal, frame, documented = collect(tmp_path).text, load(tmp_path), column_page()
    finally:
        MEASURED.remove(declared)
    texts = {name: (tmp_path / name).read_text() for name in ("results.md", "results.tex", "report.html")}
    assert "| `joules`" in documented and "energy, J" in documented
    header = next(line for line in terminal.splitlines() if line.startswith("format "))
    assert "energy" in header and terminal.count("41.5 J") == 3
    (runs,) = (part for part in texts["results.md"].split("### ") if part.startswith("All runs"))
    assert "| energy" in runs and runs.count("41.5 J") == 3
    assert "& energy" in texts["results.tex"] and texts["results.tex"].count("41.5 J") == 3
    page = texts["report.html"]
    assert '<th scope="col" class="num">energy</th>' in page
    assert page.count('data-sort="41.5">41.5 J</td>') == 3
    with (tmp_path / "results.csv").open() as file:
        assert [row["joules"] for row in csv.DictReader(file)] == ["41.5"] * 3
    assert pyarrow.parquet.read_table(tmp_path / "results.parquet")["joules"].to_pylist() == [41.5] * 3
    assert frame["joules"].tolist() == [41.5] * 3


def test_a_declared_difference_from_the_baseline_stands_beside_its_column(tmp_path: Path) -> None:
    put_study(tmp_path, **FEW)
    for index, file in enumerate(sorted(tmp_path.glob("*/result.json"))):
        write_record(file.parent, read_record(file) | {"joules": 10.0 + index})

    def joules(row: Row) -> float | None:
        return row.number("joules")

    less = against_baseline(joules, difference_of)
    declared = measured_column(
        "joules",
        "energy, J",
        joules,
        change=lambda entry: Change(ABSENT if less(entry) is None else f"{less(entry):+.2f} J", less(entry)),
        more=(Field("joules_difference", "more energy than the baseline, J", float, less),),
    )
    MEASURED.append(declared)
    try:
        terminal, frame = collect(tmp_path).text, load(tmp_path).set_index("run_id")
    finally:
        MEASURED.remove(declared)
    base = frame[frame["is_baseline"]].iloc[0]
    quantized = frame[~frame["is_baseline"]]
    assert (quantized["joules_difference"] == quantized["joules"] - base["joules"]).all() and len(quantized) == 2
    text = f"{quantized['joules_difference'].iloc[0]:+.2f} J"
    markdown, latex, page = ((tmp_path / name).read_text() for name in ("results.md", "results.tex", "report.html"))
    assert "Δ joules" in terminal and text in terminal and "Δ joules" in markdown and text in markdown
    assert "$\\Delta$ joules" in latex and text in latex
    assert ">Δ joules</th>" in page and f">{text.replace('-', '−')}</td>" in page


def test_a_column_without_values_is_left_out_of_tables_but_not_of_files(tmp_path: Path) -> None:
    put(tmp_path / "a", metrics={"story": {"acc": 0.5}})
    text = collect(tmp_path).text + (tmp_path / "results.md").read_text()
    assert "bits/weight" not in text and "KL, nats" not in (tmp_path / "report.html").read_text()
    table = pyarrow.parquet.read_table(tmp_path / "results.parquet")
    types = {name: str(table.schema.field(name).type) for name in ("bits_per_weight", "peak_gpu_bytes", "baseline")}
    assert types == {"bits_per_weight": "double", "peak_gpu_bytes": "int64", "baseline": "string"}
    assert table["bits_per_weight"].null_count == 1


def rows(folder: Path) -> list[dict[str, Any]]:
    collect(folder)
    return pyarrow.parquet.read_table(folder / "results.parquet").to_pylist()


def test_files_hold_every_knob_and_metric(tmp_path: Path) -> None:
    put_study(tmp_path, **FEW, rounding="even", symmetric=False, batch_size=8, tensor_scale=True)
    row = next(row for row in rows(tmp_path) if not row["is_baseline"])
    record = read_record(Path(row["folder"]) / "result.json")
    assert (row["seed"], row["batch_size"], row["model.dtype"]) == (1234, 8, "float32")
    assert (row["rounding"], row["symmetric"], row["tensor_scale"]) == ("even", False, True)
    diagnostics = record["diagnostics"]
    assert row["bits_per_weight"] == diagnostics["bits_per_weight"]
    assert row["parameter_bytes"] == diagnostics["parameter_bytes"] and isinstance(row["parameter_bytes"], int)
    assert (row["kl_nats"], row["kl_nats_stderr"], row["top1_agreement"]) == (0.2, 0.01, 0.9)
    assert (row["weight_sqnr_db"], row["activation_sqnr_db"], row["weight_saturated"]) == (18.0, 17.0, 0.02)
    assert row["config_hash"] == record.get("config_hash") and row["status"] == "done"


def test_files_hold_differences_with_intervals_and_p_values(tmp_path: Path) -> None:
    put_study(tmp_path, **FEW)
    by_id = {row["run_id"]: row for row in rows(tmp_path)}
    (study,) = study_groups(read_results(tmp_path))
    assert len(study.comparisons) == 2
    for comparison in study.comparisons.values():
        row, base = by_id[comparison.row.run.run_id], by_id[comparison.other.run.run_id]
        accuracy, perplexity = comparison.accuracy, comparison.perplexity
        assert accuracy is not None and perplexity is not None
        assert row["baseline"] == base["run_id"] and row["n_compared"] == comparison.n > 0
        assert row["acc_difference"] == row["acc"] - base["acc"] == pytest.approx(accuracy.difference)
        assert (row["acc_difference_low"], row["acc_difference_high"]) == (accuracy.low, accuracy.high)
        assert (row["acc_p"], row["acc_p_unadjusted"]) == (comparison.accuracy_p, accuracy.p)
        assert row["acc_above_noise"] is comparison.accuracy_above_floor
        assert row["ppl_ratio"] == pytest.approx(math.exp(perplexity.difference))
        assert row["ppl_ratio_low"] == math.exp(perplexity.low) < row["ppl_ratio"] < row["ppl_ratio_high"]
        assert row["ppl_p"] == comparison.perplexity_p and row["ppl_difference"] == row["ppl"] - base["ppl"]
        assert row["examples/sec_ratio"] == row["examples/sec"] / base["examples/sec"]
        assert base["acc_difference"] is None and base["baseline"] is None and base["is_baseline"] is True


def test_no_metric_stands_twice(tmp_path: Path) -> None:
    put_study(tmp_path / "story", **FEW)
    metrics = {"wikitext": {"word_perplexity": 60.0, "byte_perplexity": 2.0, "bits_per_byte": 1.1}}
    put(tmp_path / "wiki", metrics=metrics)
    table = load(tmp_path)
    assert table.columns.is_unique and not {"perplexity", "word_perplexity", "perplexity_stderr"} & set(table.columns)
    row = table[table["task"] == "wikitext"].iloc[0]
    assert (row["ppl"], row["byte_perplexity"], row["bits_per_byte"]) == (60.0, 2.0, 1.1)
    put(tmp_path / "both", metrics={"wikitext": {"perplexity": 9.0, "word_perplexity": 61.0}})
    table = load(tmp_path).set_index("run_id")
    assert table.loc["id_both", ["ppl", "word_perplexity"]].tolist() == [9.0, 61.0]
    assert math.isnan(table.loc["id_wiki", "word_perplexity"])  # which is its ppl


def test_a_metric_that_is_called_like_a_knob_keeps_its_values(tmp_path: Path) -> None:
    put(tmp_path / "a", metrics={"story": {"scale": 0.25, "n": 3.0}})
    row = load(tmp_path).iloc[0]
    assert (row["scale"], row["metric.scale"], row["metric.n"]) == ("e8m0", 0.25, 3.0)


def test_a_metric_that_is_called_like_a_difference_keeps_its_values(tmp_path: Path) -> None:
    put(tmp_path / "a", metrics={"story": {"acc": 0.5, "acc_p": 0.125}})
    row = load(tmp_path).iloc[0]
    assert (row["acc"], row["metric.acc_p"]) == (0.5, 0.125) and math.isnan(row["acc_p"])


@pytest.mark.parametrize("odd", [math.nan, 12.5, 2.0**70])
def test_odd_numbers_in_a_record_are_no_traceback(tmp_path: Path, odd: float) -> None:
    put(tmp_path / "a", record={"memory": {"peak_host_bytes": odd}, "n_effective": {"story": odd}})
    put(tmp_path / "b", record={"memory": {"peak_host_bytes": 5}})
    table = load(tmp_path).set_index("run_id")
    assert table.loc["id_a", "peak_host_bytes"] == odd or math.isnan(odd)
    assert table.loc["id_b", "peak_host_bytes"] == 5.0
    assert collect(tmp_path).write_error is None
    assert pyarrow.parquet.read_table(tmp_path / "results.parquet").num_rows == 2


def test_why_runs_are_not_compared_stands_in_files(tmp_path: Path) -> None:
    put_study(tmp_path, **FEW, samples=False)
    reasons = {row["not_compared"] for row in rows(tmp_path) if not row["is_baseline"]}
    assert all("has no samples.parquet" in reason for reason in reasons)


def test_a_change_of_layout_is_no_change_of_the_declaration(tmp_path: Path) -> None:
    put_study(tmp_path, **FEW)
    column = next(column for column in MEASURED if column.name == "bits_per_weight")
    study = study_groups(read_results(tmp_path))[0]
    hidden = replace(column, outputs=DATA_ONLY)
    shown = [each for each in Output if column.shows(study.rows, each)]
    assert [each for each in Output if hidden.shows(study.rows, each)] == ["data"] and len(shown) == 5


def test_the_page_of_columns_is_up_to_date() -> None:
    page = Path(__file__).parents[2] / "docs" / "columns.md"
    assert page.read_text(encoding="utf-8") == column_page(), "python -m mxsweep.report.column_page > docs/columns.md"


def test_every_column_of_the_files_is_on_the_page(tmp_path: Path) -> None:
    put_study(tmp_path, **FEW)
    (study,) = study_groups(read_results(tmp_path))
    knobs = {name for row in study.rows for name in row.knobs} | {*labels(), *notes()}
    said = set(re.findall(r"^\| `([^`]+)`", column_page(), re.MULTILINE))
    more = {"ppl", "ppl_stderr"} | {name.replace("acc_", "ppl_") for name in said if name.startswith("acc_")}
    unsaid = {name for name in load(tmp_path).columns if not name.startswith("activation_")} - knobs - said - more
    assert unsaid == set()


@pytest.mark.parametrize(
    ("base", "value", "said"),
    [
        (922_366_606.5, 999_286_039.54, "+7.692e+07 (+8.3%)"),
        (1.06, 1.515, "+0.455 (+42.9%)"),
    ],
)
def test_a_difference_has_no_more_digits_than_what_it_is_of(base: float, value: float, said: str) -> None:
    error = value * 6 if value > 1e7 else 0.063
    rows = [
        Row(RunFolder(Path(), "done", {}), "story", {}, {"perplexity": each, "perplexity_stderr": error}, each == base)
        for each in (base, value)
    ]
    assert difference(rows[1], rows[0], "perplexity") == said
