"""Collecting: from small synthetic records to tables, figures and exit codes."""

import builtins
import csv
import itertools
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
from helpers.made_report import put_study

from mxsweep.collect import main
from mxsweep.report.collection import CollectError, collect, import_report
from mxsweep.report.data_files import load
from mxsweep.report.figures.figure_files import draw_figures, written_files
from mxsweep.report.result_texts import markdown_text, terminal_text
from mxsweep.report.wording import format_value
from mxsweep.results.groups import Results, read_results
from mxsweep.results.record import read_record, write_record
from mxsweep.study.group_study import study_groups

FORMATS = {"none": ("none", "none"), "w4a6": ("fp4_e2m1", "fp6_e2m3"), "mxfp8_e4m3": ("fp8_e4m3", "fp8_e4m3")}
PNG_START = b"\x89PNG\r\n"


def config(**knobs: Any) -> dict[str, Any]:
    """A run's config: the defaults, but for `knobs`."""
    fmt, kv, custom_cuda = (
        knobs.pop("format", "w4a6"),
        knobs.pop("kv_quant", "none"),
        knobs.get("custom_cuda"),
    )
    tasks, dtype, shots = (
        knobs.pop("tasks", ["story"]),
        knobs.pop("dtype", "float32"),
        knobs.pop("shots", None),
    )
    model = knobs.pop("model", "tiny")
    weight, activation = FORMATS[fmt]
    return {
        "format": {"name": fmt, "weight": knobs.pop("weight", weight), "activation": activation},
        "block_size": 32,
        "scale_bits": 8,
        "scale": "e8m0",
        "tensor_scale": False,
        "custom_cuda": False,
        "rounding": "nearest",
        "scale_rounding": "floor",
        "symmetric": True,
        "backend": "cuda" if custom_cuda else "torch",
        "arithmetic": "exact" if custom_cuda else "native",
        "kv_quant": {"name": kv, "key": kv, "value": kv},
        "limit": None,
        "model": {
            "name": model,
            "path": f"models/{model}",
            "dtype": dtype,
            "device": "cpu",
            "max_length": None,
        },
        "task": {"name": tasks[0], "names": tasks, "data": {}, "num_fewshot": shots},
        "modules": {},
        "batch_size": 32,
        "seed": 1234,
    } | knobs


def put(folder: Path, metrics: dict[str, Any] | None = None, speed: float = 400.0, n: int = 1000, **knobs: Any) -> None:
    """Write a done run with these `metrics` of the task story, or of several tasks by name."""
    by_task = metrics if metrics and isinstance(next(iter(metrics.values())), dict) else {"story": metrics or {}}
    record = {
        "status": "done",
        "run_id": f"id_{folder.name}",
        "config": config(tasks=list(by_task), **knobs),
        "overrides": [f"{key}={value}" for key, value in knobs.items()],
        "metrics": by_task,
        "n_effective": dict.fromkeys(by_task, n),
        "timing": {"eval_s": n / speed},
        "examples_per_sec": speed,
        "error": None,
    }
    write_record(folder, record)


def put_failed(folder: Path, message: str = "no GPU\nhere", **knobs: Any) -> None:
    error = {"type": "ConfigError", "message": message}
    fields = {"status": "failed", "run_id": f"id_{folder.name}", "metrics": {}, "error": error}
    write_record(folder, {**fields, "config": config(**knobs), "overrides": ["custom_cuda=true"]})


def acc(value: float, ppl: float = 2.0) -> dict[str, float]:
    return {"acc": value, "acc_stderr": 0.01, "perplexity": ppl, "perplexity_stderr": 0.05}


def put_grid(top: Path) -> None:
    """Block size times scale bits, where scale bits change nothing, and a baseline; written out of order."""
    for block_size, scale_bits in itertools.product((128, 8, 16), (8, 6)):
        metrics = acc(0.9 - block_size / 1000, 2 + block_size / 100)
        put(
            top / f"{block_size}-{scale_bits}",
            metrics,
            300 + block_size,
            block_size=block_size,
            scale_bits=scale_bits,
        )
    put(top / "base", acc(0.95, 1.5), speed=1000.0, format="none")


def test_bits_that_an_earlier_version_recorded_are_warned_of(tmp_path: Path) -> None:
    counts = {"bits_per_weight": 4.25, "block_weights": 1000, "block_weights_kept": 970}
    records = {
        "moe": counts,
        "dense": counts | {"block_weights_kept": 0},
        "today": counts | {"bits_per_quantized_weight": 4.25},
        "baseline": counts | {"bits_per_weight": "NaN", "block_weights_kept": 1000},
    }
    for name, diagnostics in records.items():
        put(tmp_path / name, acc(0.5))
        record = read_record(tmp_path / name / "result.json")
        write_record(tmp_path / name, record | {"diagnostics": diagnostics})
    warned = {row.run.path.name for row in read_results(tmp_path).rows if row.warnings}
    assert warned == {"moe"}
    assert "bits/weight (4.25) are over the quantized weights alone: 97.0% of" in terminal_text(read_results(tmp_path))


def test_warnings_of_runs_are_told(tmp_path: Path) -> None:
    for name, warnings in (("a", ["10 requests were cut", "small batches"]), ("b", ["small batches"])):
        put(tmp_path / name, acc(0.5), block_size={"a": 16, "b": 32}[name])
        record = read_record(tmp_path / name / "result.json")
        write_record(tmp_path / name, record | {"warnings": warnings})
    results = read_results(tmp_path)
    assert "Warnings\n  block size 16: 10 requests were cut\n  every run: small batches" in terminal_text(
        results
    )  # without ids, which stand in files
    expected = ["id_a: 10 requests were cut", "every run: small batches"]
    assert "## Warnings\n\n- " + "\n- ".join(expected) in markdown_text(results, {}).replace("\\", "")


def order(results: Results) -> list[str]:
    return [row.run.run_id for row in results.groups[0].rows]


def test_rows_are_in_natural_order_with_the_baseline_first(tmp_path: Path) -> None:
    put_grid(tmp_path)
    results = read_results([tmp_path])
    assert order(results) == [
        "id_base",
        *(f"id_{block_size}-{scale_bits}" for block_size in (8, 16, 128) for scale_bits in (6, 8)),
    ]
    assert results.shown == ["format", "block_size", "scale_bits"]


def test_table_has_a_row_per_run_and_task_with_types(tmp_path: Path) -> None:
    put_grid(tmp_path)
    put(
        tmp_path / "two",
        {"story": acc(0.5), "wikitext": {"word_perplexity": 60.0, "bits_per_byte": 1.1}},
        limit=0.25,
    )
    put_failed(tmp_path / "bad", block_size=16)
    table = load(tmp_path).set_index("run_id")
    assert len(table) == 7 + 2 + 1
    row = table.loc["id_16-6"]
    assert (row["format"], row["block_size"], row["scale_bits"], row["n"]) == ("w4a6", 16, 6, 1000)
    assert (row["acc"], row["acc_stderr"], row["ppl"], row["ppl_stderr"]) == (0.884, 0.01, 2.16, 0.05)
    assert (row["examples/sec"], row["eval_time_s"]) == (316.0, pytest.approx(1000 / 316))
    assert str(table["block_size"].dtype) == "Int64"
    assert str(table["custom_cuda"].dtype) == "boolean"
    wiki = table[table["task"] == "wikitext"].iloc[0]
    assert (wiki["ppl"], wiki["bits_per_byte"], wiki["limit"]) == (60.0, 1.1, 0.25)
    assert np.isnan(wiki["acc"])
    failed = table.loc["id_bad"]
    assert (failed["status"], failed["block_size"], failed["task"]) == ("failed", 16, "story")
    assert failed["reason"] == "ConfigError: no GPU\nhere"
    assert table.loc["id_base", "block_size"] is not None and np.isnan(table["block_size"].astype(float)["id_base"])


def test_a_knob_shows_only_where_it_tells_runs_apart(tmp_path: Path) -> None:
    put(tmp_path / "a", acc(0.5), custom_cuda=False)
    put(tmp_path / "b", acc(0.6), custom_cuda=True)  # so backend and arithmetic vary, too
    put(tmp_path / "c", acc(0.6), custom_cuda=True, rounding="even")
    put(tmp_path / "d", acc(0.6), custom_cuda=True, weight="int8")
    put(tmp_path / "e", acc(0.6), format="mxfp8_e4m3")
    results = read_results([tmp_path])
    assert results.shown == ["format", "custom_cuda", "format.weight", "rounding"]
    assert results.constants["block_size"] == 32
    columns = load([tmp_path]).columns
    assert {"backend", "arithmetic", "rounding", "format.weight"} <= set(columns)
    assert "seed" in columns  # files for programs hold every knob


def test_a_name_that_all_runs_share_is_spelt_out(tmp_path: Path) -> None:
    put(tmp_path / "a", acc(0.5), weight="int8")
    constants = read_results([tmp_path]).constants
    assert (constants["format"], constants["format.weight"]) == ("w4a6", "int8")
    assert "kv_quant.key" not in constants  # kv_quant=none says it


def test_an_override_common_to_all_runs_is_said_above_the_table(tmp_path: Path) -> None:
    put(tmp_path / "a", acc(0.5), rounding="even", block_size=16)
    put(tmp_path / "b", acc(0.5), rounding="even", block_size=32)
    text = terminal_text(read_results([tmp_path]))
    assert text.startswith("Same in every finished run that has them: format=w4a6, scale_bits=8, scale=e8m0")
    assert "rounding=even" in text.splitlines()[0]
    assert "seed" not in text


def test_scale_bits_mean_nothing_to_other_scales_than_e8m0(tmp_path: Path) -> None:
    put(tmp_path / "a", acc(0.5), scale="e5m3", scale_bits=8)
    put(tmp_path / "b", acc(0.5), scale="e8m0", scale_bits=6)
    results = read_results([tmp_path])
    assert results.shown == ["scale"]
    assert results.constants["scale_bits"] == 6


def test_differences_from_the_baseline(tmp_path: Path) -> None:
    put_grid(tmp_path)
    text = markdown_text(read_results([tmp_path]), {})
    best = next(line for line in text.splitlines() if line.endswith("id_8-6 |") or "| id_8-6" in line)
    for cell in ("0.8920 ± 0.0100", "-0.0580", "2.080 ± 0.050", "+0.580 (+38.7%)"):
        assert cell in best
    assert "Nothing is known of single examples" in text  # and so no config is called the best
    assert "not of hardware that has the format" in text
    assert "No baseline" not in text


def test_a_terminal_has_changes_with_their_marks_the_answer_and_no_ids(tmp_path: Path) -> None:
    put_study(tmp_path)
    text = collect(tmp_path).text
    table = text[text.index("Δ ppl") : text.index("p < 0.05")]
    assert "id_" not in table and "examples/sec" not in table
    assert table.count("%)∗") == 12
    assert (
        "Use: w4a6, block size 16, scale bits 6, KV unquantized (4.375 bits a weight of the decoder blocks)"
        in " ".join(text.split())
    )
    answer = text[text.index("Use: ") : text.index("How sure: ")]
    assert max(map(len, answer.splitlines())) <= 100


def test_only_a_run_with_nothing_quantized_is_a_baseline(tmp_path: Path) -> None:
    put(tmp_path / "a", acc(0.5), format="none", kv_quant="int8")
    put(tmp_path / "b", acc(0.5), format="none", modules={"*.down_proj": "mxfp8_e4m3"})
    results = read_results([tmp_path])
    assert not any(row.is_baseline for row in results.rows)
    for text in (terminal_text(results), markdown_text(results, {})):
        assert "No baseline among these runs" in text
        assert "format=none kv_quant=none" in text
    assert "*.down_proj=mxfp8_e4m3" in terminal_text(results)


def test_a_run_is_compared_with_the_nearest_baseline(tmp_path: Path) -> None:
    for dtype, value in (("float32", 0.9), ("bfloat16", 0.8)):
        put(tmp_path / f"base-{dtype}", acc(value), format="none", dtype=dtype)
        put(tmp_path / f"run-{dtype}", acc(value - 0.1), dtype=dtype)
    (group,) = read_results([tmp_path]).groups
    pairs = {row.run.run_id: group.baseline_for(row) for row in group.rows if not row.is_baseline}
    assert {name: base.run.run_id for name, base in pairs.items() if base} == {
        "id_run-float32": "id_base-float32",
        "id_run-bfloat16": "id_base-bfloat16",
    }


def test_what_cannot_be_compared_is_in_groups_of_its_own(tmp_path: Path) -> None:
    both = {"story": acc(0.5), "wikitext": {"word_perplexity": 60.0, "word_perplexity_stderr": None}}
    put(tmp_path / "base", both, format="none")
    put(tmp_path / "full", both)
    put(tmp_path / "quarter", acc(0.6), limit=0.25)
    put(tmp_path / "hundred", acc(0.6), limit=100)
    put(tmp_path / "shots", acc(0.7), shots=5)
    put(tmp_path / "other", acc(0.7), model="other")
    groups = {group.title: group for group in read_results([tmp_path]).groups}
    assert list(groups) == [
        "model=other, task=story, limit=none, task.num_fewshot=none",
        "model=tiny, task=story, limit=none, task.num_fewshot=none",
        "model=tiny, task=story, limit=none, task.num_fewshot=5",
        "model=tiny, task=story, limit=0.25, task.num_fewshot=none",
        "model=tiny, task=story, limit=100, task.num_fewshot=none",
        "model=tiny, task=wikitext, limit=none, task.num_fewshot=none",
    ]
    assert len({group.slug for group in groups.values()}) == 6
    with_baseline = [title for title, group in groups.items() if any(row.is_baseline for row in group.rows)]
    assert with_baseline == [list(groups)[1], list(groups)[5]]
    text = markdown_text(read_results([tmp_path]), {})
    assert text.count("No baseline among these runs") == 4
    assert "word ppl" in text


def test_nan_is_shown_and_never_the_best(tmp_path: Path) -> None:
    put(tmp_path / "nan", {"word_perplexity": math.nan, "word_perplexity_stderr": math.nan}, block_size=16)
    put(tmp_path / "inf", {"word_perplexity": math.inf}, block_size=32)
    put(tmp_path / "ok", {"word_perplexity": 50.25}, block_size=64)
    result = collect(tmp_path)
    assert "nan ± nan" in result.text and " inf" in result.text and "50.25" in result.text
    (study,) = study_groups(read_results(tmp_path))
    assert [config.row.run.run_id for config in study.verdict.configs] == ["id_ok"]
    rows = {row["run_id"]: row for row in csv.DictReader((tmp_path / "results.csv").open())}
    assert (rows["id_nan"]["ppl"], rows["id_inf"]["ppl"], rows["id_ok"]["acc"]) == ("nan", "inf", "")
    table = pyarrow.parquet.read_table(tmp_path / "results.parquet")
    assert table["ppl"].null_count == 0 and table["ppl_stderr"].null_count == 2


def test_files_of_a_grid(tmp_path: Path) -> None:
    put_grid(tmp_path)
    put_failed(tmp_path / "bad")
    result = collect([tmp_path], tmp_path / "out")
    assert (result.done, result.failed, result.missing, result.unreadable) == (7, 1, 0, 0)
    names = ["results.csv", "results.parquet", "results.md", "results.tex", "report.html"]
    names += [
        f"{y}_vs_{x}.{ext}"
        for y in ("accuracy", "perplexity")
        for x in ("block_size", "scale_bits")
        for ext in ("png", "svg", "pdf")
    ]
    assert [path.name for path in result.files] == names
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(names)
    svg = (tmp_path / "out" / "accuracy_vs_block_size.svg").read_text()
    for text in ("scale bits 6 or 8", "baseline", ">16<", ">128<", "accuracy", ">block size<"):
        assert text in svg
    assert (tmp_path / "out" / "perplexity_vs_block_size.png").read_bytes().startswith(PNG_START)
    report = (tmp_path / "out" / "results.md").read_text()
    assert "![accuracy vs block size](accuracy_vs_block_size.png)" in report
    rows = list(csv.DictReader((tmp_path / "out" / "results.csv").open()))
    assert len(rows) == 8 and rows[0]["run_id"] == "id_base" and rows[-1]["status"] == "failed"


def test_figures_of_one_block_size_tiles_and_the_whole_axis(tmp_path: Path) -> None:
    for i, block_size in enumerate((0, [16, 16], 48)):
        put(tmp_path / f"tile{i}", acc(0.5 + i / 10), block_size=block_size)
    for fmt in ("w4a6", "mxfp8_e4m3"):
        put(tmp_path / fmt, {"wikitext": {"word_perplexity": 9.0 + len(fmt)}}, format=fmt)
    results = read_results(tmp_path)
    files = written_files(draw_figures(study_groups(results), tmp_path))
    assert set(files) == {"story", "wikitext"}
    svg = (tmp_path / "accuracy_vs_block_size_story.svg").read_text()
    assert all(text in svg for text in ("whole axis", "16x16", ">48<"))
    svg = (tmp_path / "word_perplexity_vs_block_size_wikitext.svg").read_text()
    assert all(text in svg for text in (">w4a6<", ">mxfp8_e4m3<", ">32<"))
    assert list(load(tmp_path)["block_size"].unique()) == ["0", "48", "16x16", "32"]


def test_a_figure_of_values_that_are_all_nan_says_so(tmp_path: Path) -> None:
    put(tmp_path / "a", {"word_perplexity": math.nan}, block_size=16)
    draw_figures(study_groups(read_results(tmp_path)), tmp_path)
    assert "no value" in (tmp_path / "word_perplexity_vs_block_size.svg").read_text()


def test_an_unknown_metric_is_tabled_but_not_judged(tmp_path: Path) -> None:
    put(tmp_path / "a", {"bleu": 12.5, "bleu_stderr": 0.5})
    result = collect(tmp_path)
    assert "bleu" in result.text and "12.50 ± 0.50" in result.text
    (study,) = study_groups(read_results(tmp_path))
    assert study.verdict.lines == []
    assert load(tmp_path)["bleu"].tolist() == [12.5]


def test_metrics_with_a_filter_keep_their_errors(tmp_path: Path) -> None:
    metrics = {"exact_match,strict": 0.25, "exact_match_stderr,strict": 0.02}
    put(tmp_path / "a", metrics | {"exact_match,flexible": 0.5, "exact_match_stderr,flexible": 0.03})
    assert "0.2500 ± 0.0200" in collect(tmp_path).text
    assert (tmp_path / "exact_match_flexible_vs_block_size.svg").is_file()
    assert load(tmp_path)["exact_match,strict_stderr"].tolist() == [0.02]


def test_a_refused_config_does_not_change_the_columns_of_the_others(tmp_path: Path) -> None:
    put(tmp_path / "a", acc(0.5), block_size=16)
    put_failed(tmp_path / "b", block_size="auto", scale="auto", scale_bits=40, stamp="now")
    table = load(tmp_path)
    assert str(table["block_size"].dtype) == "Int64"
    assert table["scale_bits"].tolist() == [8, 40]
    assert "stamp" not in table.columns


def test_runs_that_are_not_done_are_listed_with_their_reasons(tmp_path: Path) -> None:
    put(tmp_path / "ok", acc(0.5))
    put_failed(tmp_path / "bad", message="a | b")
    (tmp_path / "started" / ".hydra").mkdir(parents=True)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "result.json").write_text("{")
    result = collect(tmp_path)
    assert (result.done, result.failed, result.missing, result.unreadable) == (1, 1, 1, 1)
    report = (tmp_path / "results.md").read_text()
    for text in (result.text, report):
        assert "1 done, 1 failed, 1 missing, 1 unreadable" in text
        assert "no result.json" in text and "not valid JSON" in text
    assert str(tmp_path / "broken") in result.text
    assert "broken" in report and str(tmp_path) not in report
    assert "ConfigError: a | b" in result.text and "ConfigError: a \\| b" in report
    assert sorted(load(tmp_path)["status"]) == ["done", "failed", "missing", "unreadable"]
    assert main([str(tmp_path)]) == main(["--status", str(tmp_path)]) == 0


def test_only_failures_still_give_every_file(tmp_path: Path) -> None:
    put_failed(tmp_path / "bad")
    result = collect(tmp_path)
    assert "0 done, 1 failed" in result.text and "ConfigError: no GPU here" in result.text
    names = ["results.csv", "results.parquet", "results.md", "results.tex", "report.html"]
    assert [path.name for path in result.files] == names


def test_odd_values_in_a_record_are_no_traceback(tmp_path: Path) -> None:
    fields: dict[str, Any] = {
        "status": "done",
        "run_id": "odd",
        "config": {"format": "w4a6", "task": {"names": [[]]}},
    }
    fields |= {"metrics": {"story": {"acc": "N/A", "alias": "story"}}, "timing": {"eval_s": "long"}}
    write_record(tmp_path / "a", fields | {"n_effective": None, "examples_per_sec": "fast"})
    write_record(tmp_path / "b", fields | {"status": "failed", "metrics": {}, "config": {}, "error": None})
    result = collect(tmp_path)
    assert "odd" in result.text and "no reason recorded" in result.text


def test_a_single_run_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(tmp_path, acc(0.5))
    assert main([str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "0.5000 ± 0.0100" in out and str(tmp_path / "results.md") in out


def test_several_folders_go_to_collected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("one", "two"):
        put(Path(name) / "0", acc(0.5))
    assert main(["one", "two"]) == 0
    assert len(load(["one", "two"])) == 2
    assert Path("collected/results.csv").is_file() and not Path("one/results.csv").exists()


def test_default_is_the_newest_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([]) == 2
    assert "no run below ./multirun or ./outputs" in capsys.readouterr().err
    put(Path("multirun/day/time/0"), acc(0.5))
    Path("multirun/day/time/sweep.json").write_text('{"schema": 1, "commands": [], "runs": []}')
    assert main([]) == 0
    assert "multirun/day/time: 1 done" in capsys.readouterr().out
    assert Path("multirun/day/time/results.md").is_file()


def test_no_run_is_one_message_and_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    assert main([str(tmp_path / "nowhere")]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert "no run in" in first and str(tmp_path) in first
    assert "no such folder" in second and "nowhere" in second
    with pytest.raises(CollectError, match="no run in"):
        collect(tmp_path)


def test_an_unwritable_output_is_one_message_after_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(tmp_path / "run", acc(0.5))
    (tmp_path / "file").write_text("")
    assert main([str(tmp_path), "--output", str(tmp_path / "file")]) == 1
    captured = capsys.readouterr()
    assert "0.5000 ± 0.0100" in captured.out and "Written" not in captured.out
    assert len(captured.err.splitlines()) == 1
    assert f"cannot write to {tmp_path / 'file'}" in captured.err and "--output" in captured.err


def test_collecting_imports_nothing_heavy(tmp_path: Path) -> None:
    put_grid(tmp_path)
    code = (
        "import sys; from mxsweep.collect import main; code = main([sys.argv[1]]); "
        "heavy = {'torch', 'transformers', 'lm_eval', 'altair'} & set(sys.modules); "
        "sys.exit(code or ('imported: ' + str(heavy) if heavy else 0))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "results.parquet" in done.stdout


@pytest.mark.parametrize(
    ("value", "stderr", "digits", "text"),
    [
        (None, None, None, "–"),
        (0.622356, 0.006754, 4, "0.6224 ± 0.0068"),
        (5.428514, 0.128561, None, "5.43 ± 0.13"),
        (165.580297, 15.863741, None, "166 ± 16"),
        (622.3149, None, None, "622.31"),
        (0.012345, None, None, "0.01235"),
        (3.0, 0.0, None, "3.00 ± 0"),
        (2.5e9, None, None, "2.500e+09"),
        (math.inf, None, None, "inf"),
    ],
)
def test_format_value(value: float | None, stderr: float | None, digits: int | None, text: str) -> None:
    assert format_value(value, stderr, digits) == text


def test_a_broken_package_of_the_report_takes_nothing_from_the_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str, *_: Any) -> None:
        asked.append(name)
        raise ValueError("numpy.dtype size changed")  # as pandas says beside another numpy

    asked: list[str] = []
    with monkeypatch.context() as patched:
        patched.setattr(builtins, "__import__", broken)
        import_report()
    assert asked == ["pandas"]
