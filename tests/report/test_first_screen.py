"""The first screen: each of its sentences says what was tested, of which runs, and on how many examples."""

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.made_report import put_study
from helpers.made_runs import outcomes, put

from mxsweep.report.collection import collect
from mxsweep.report.figures.costs import cost_figure
from mxsweep.report.page.evidence import effect_table
from mxsweep.report.page.knob_views import knob_views
from mxsweep.results.groups import read_results
from mxsweep.study.change_words import format_bits
from mxsweep.study.compared_metric import metric_test
from mxsweep.study.comparison import compare_pairs
from mxsweep.study.group_study import Study, study_groups

N = 200
TASK = 5153
BASE = np.random.default_rng(5).normal(-1, 0.5, N).clip(max=-1e-3)
COSTS = {16: 0.2, 32: 0.21, 64: 0.22}


def noisy(cost: float, spread: float, seed: int) -> np.ndarray:
    """The log-likelihoods of a run that costs exactly so many nats on average."""
    drawn = np.random.default_rng(seed).normal(0, spread, N)
    return BASE - cost - (drawn - drawn.mean())


def put_blocks(top: Path, *, whole: int | None = TASK, limit: int | None = N, noise: bool = False) -> None:
    """Three block sizes that cannot be told apart, with two scale bits that change nothing, and a worse cache."""
    runs: list[tuple[str, np.ndarray, dict[str, Any]]] = [("base", BASE, {"format": "none"})]
    for block, cost in COSTS.items():
        for kv, more in (("none", 0.0), ("fp4_e2m1", 1.0)):
            drawn = noisy(cost + more, 0.4, block + len(kv))
            for bits in (6, 8):
                runs.append((f"{block}{kv}{bits}", drawn, {"block_size": block, "scale_bits": bits, "kv_quant": kv}))
    for name, drawn, knobs in runs:
        quantized = "block_size" in knobs
        bits_a_weight = 4 + knobs["scale_bits"] / knobs["block_size"] if quantized else 16.0
        ppl = math.exp(-drawn.mean())
        metrics = {"acc": 0.3 if not quantized else 0.29, "perplexity": ppl, "perplexity_stderr": ppl / 10}
        record: dict[str, Any] = {
            "diagnostics": {"bits_per_weight": bits_a_weight, "parameter_bytes": 1e6 * bits_a_weight}
        }
        if noise and quantized:
            repeats = {"acc": [0.29, 0.29], "perplexity": [ppl * 1.001, ppl * 0.999]}
            record["noise"] = {"repeats": 2, "metrics": {"story": repeats}, "seconds": 1.0}
        rows = outcomes(list(drawn), [int(i < metrics["acc"] * N) for i in range(N)])
        put(top / name, rows, {"story": metrics}, record=record, limit=limit, **knobs)
        if whole is not None:
            counts = {"n-samples": {"story": {"original": whole, "effective": N}}}
            (top / name / "lm_eval.json").write_text(json.dumps(counts))


def study_of(top: Path) -> Study:
    (study,) = study_groups(read_results(top))
    return study


def line(study: Study, title: str) -> str:
    return next(line.text for line in study.verdict.lines if line.title == title)


def test_accuracy_has_what_its_own_tests_say(tmp_path: Path) -> None:
    """Perplexity is significantly worse in all configs, accuracy in none."""
    put_blocks(tmp_path)
    said = line(study_of(tmp_path), "Cost")
    assert "all 6 configs significantly worse. Accuracy 0.300 becomes 0.290: none of 6 significantly different" in said
    assert said.endswith("on 200 examples.")


def test_accuracy_of_what_to_use_stands_beside_that_of_all(tmp_path: Path) -> None:
    put_study(tmp_path, noise=False)
    study = study_of(tmp_path)
    assert study.verdict.use is not None
    values = [one.row.metrics["acc"] for one in study.verdict.configs]
    own = study.verdict.use.row.metrics["acc"]
    assert f"becomes {max(values):.3f} to {min(values):.3f} ({own:.3f} for what to use)" in line(study, "Cost")


def test_the_baseline_s_own_perplexity_stands_beside_its_changes(tmp_path: Path) -> None:
    put_blocks(tmp_path)
    ppl = math.exp(-BASE.mean())
    assert line(study_of(tmp_path), "Cost").startswith(
        f"Perplexity {ppl:.2f} (standard error {ppl / 10:.2f}) unquantized: +"
    )


def test_never_more_examples_than_the_task_has_are_advised(tmp_path: Path) -> None:
    put_blocks(tmp_path)
    said = line(study_of(tmp_path), "How sure")
    here, whole = (math.log1p(float(size) / 100) for size in re.findall(r" ([0-9.]+)%", said))
    assert f"; all {TASK:,} of the task, one of about " in said
    assert whole == pytest.approx(here * math.sqrt(N / TASK), rel=0.05)
    assert set(re.findall(r"\d,\d{3}|\d{4,}", said)) == {f"{TASK:,}"}


@pytest.mark.parametrize(
    ("whole", "limit", "said"),
    [(N, N, "the task has no more examples"), (None, None, "the task has no more examples"), (None, N, "")],
    ids=["limit beyond the task", "no limit", "unknown"],
)
def test_a_task_that_was_measured_whole_has_no_more(
    tmp_path: Path, whole: int | None, limit: int | None, said: str
) -> None:
    put_blocks(tmp_path, whole=whole, limit=limit)
    study = study_of(tmp_path)
    assert said in line(study, "How sure") and "of the task, one of" not in line(study, "How sure")
    assert "and is not measurably worse on 200 examples (" in line(study, "Use")


def test_what_to_use_says_what_it_saves_beside_what_it_may_cost(tmp_path: Path) -> None:
    put_blocks(tmp_path)
    study = study_of(tmp_path)
    use, best = study.verdict.use, study.verdict.configs[0]
    assert use is not None and use.name == "block size 64, scale bits 6 or 8, KV unquantized" and use is not best
    saved = (best.row.bits_per_weight or 0) - (use.row.bits_per_weight or 0)
    share = saved / (best.row.bits_per_weight or 1)
    said = line(study, "Use")
    assert "%], significantly worse than the baseline. " in said
    assert f"It saves {format_bits(saved)} bits a weight ({share:.1%} of the model) against block size 16, " in said
    assert "and is, until more than 200 examples are measured, not measurably worse (" in said


def test_a_knob_s_difference_says_what_it_is_averaged_over(tmp_path: Path) -> None:
    put_blocks(tmp_path)
    study = study_of(tmp_path)
    said = line(study, "Knobs")
    assert "KV fp4_e2m1 against unquantized, averaged over block size: +" in said
    assert "Block size 16, 32, 64, averaged over KV: no difference shown, within [" in said
    assert "scale bits 6 or 8: identical" in said
    (blocks,) = [each for each in study.values if each.knob == "block_size"]
    measured = [pair.tests["perplexity"].measured for pair in blocks.pairs]
    low, high = min(one.low for one in measured), max(one.high for one in measured)
    assert f"within [{math.expm1(low):+.1%}, {math.expm1(high):+.1%}]".replace("-", "−") in said


def test_the_smallest_difference_is_of_the_configs_that_are_not_told_apart(tmp_path: Path) -> None:
    put_blocks(tmp_path)
    study = study_of(tmp_path)
    said = line(study, "How sure")
    assert said.startswith("Too few examples to tell block size 16, 32 or 64, KV unquantized apart: 200 examples ")
    first, *others = study.verdict.configs[:3]
    compared = compare_pairs(study.group, [(one.row, first.row) for one in others])
    paired = [test.paired for each in compared if (test := metric_test(each, "perplexity")).paired]
    halves = sorted((one.high - one.low) / 2 for one in paired)
    size = math.expm1(halves[len(halves) // 2] * (1.959964 + 0.841621) / 1.959964)
    assert f"typically show a difference of {size:.1%} in perplexity in 4 of 5 cases, a smaller one less often" in said


def test_a_table_of_changes_has_one_kind_of_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where one perplexity is 20 times its baseline's or more, each is said as a factor of it, the small ones too."""
    monkeypatch.setitem(COSTS, 16, 0.02)
    for worst, kind in ((0.5, r"[+−][\d.]+%"), (4.0, r"[×÷][\d.]+")):
        monkeypatch.setitem(COSTS, 64, worst)
        put_blocks(tmp_path / kind)
        study = study_of(tmp_path / kind)
        drawn = cost_figure(study)
        assert drawn is not None
        shown = [text for cells in drawn.cells for text in cells[1:3]]
        (table,) = [view.table for view in knob_views(study, {}) if view.title == "block size"]
        assert table is not None
        at = [index for index, name in enumerate(table.columns) if name.startswith("Δ ppl")]
        shown += [row[index].text for row in table.rows for index in at]
        assert len(shown) == 2 * 6 + 2 * 3
        assert all(re.fullmatch(rf"{kind}|\[{kind}, {kind}\]", text) for text in shown), shown
    assert drawn.cells[0][1] == "×1.020"


@pytest.mark.parametrize(("noise", "words"), [(False, "was not measured (noise=4 does)"), (True, "was measured")])
def test_certainty_says_whether_the_numerical_noise_is_known(tmp_path: Path, noise: bool, words: str) -> None:
    put_blocks(tmp_path, noise=noise)
    assert f"Numerical noise {words}" in line(study_of(tmp_path), "How sure")


def test_the_figure_explains_the_colours_that_it_has(tmp_path: Path) -> None:
    put_blocks(tmp_path / "told")
    put(tmp_path / "untold" / "base", outcomes(list(BASE)), format="none")
    put(tmp_path / "untold" / "b16", outcomes(list(noisy(0.0, 0.5, 1))), block_size=16)
    captions = []
    for name in ("told", "untold"):
        drawn = cost_figure(study_of(tmp_path / name))
        assert drawn is not None
        captions.append(drawn.caption)
    assert "Blue" in captions[0] and "Orange" not in captions[0]
    assert "Blue" not in captions[1] and "Orange, hollow: not measurably different" in captions[1]
    assert all("The least costly by its estimate first." in caption for caption in captions)


def test_the_page_says_that_intervals_are_not_corrected(tmp_path: Path) -> None:
    put_blocks(tmp_path)
    collect(tmp_path)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "an interval may exclude 0 where nothing is called significant" in page


def test_the_proof_says_of_which_runs_it_is_and_calls_no_finding_an_error(tmp_path: Path) -> None:
    put_study(tmp_path, noise=False)
    collect(tmp_path)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert '<span class="tag">tensors</span>' in page and '<span class="tag">error</span>' not in page
    assert (
        "Block size: 8 pairs of runs at neighbouring values that differ in nothing else; 4 came out as others did"
        in page
    )
    assert "A column without cells is of a kind that this run leaves as it is." in page
    assert '<details class="print"><summary>How to read differences</summary>' in page
    assert "no run is, by its estimate" not in page


def test_a_difference_below_zero_has_a_minus_sign(tmp_path: Path) -> None:
    put_blocks(tmp_path)
    study = study_of(tmp_path)
    drawn = cost_figure(study)
    tables = [view.table for view in knob_views(study, []) if view.table is not None]
    cells = [cell.text for table in tables for row in table.rows for cell in row]
    assert drawn is not None and any("−" in text for text in cells)
    signed = [text for text in [*cells, *(text for row in drawn.cells for text in row)] if "%" in text]
    assert signed and not any("-" in text for text in signed)


def test_a_change_is_a_factor_where_an_end_of_its_interval_is_one(tmp_path: Path) -> None:
    """A perplexity a twelfth as high, or from a fifth to less than a twentieth."""
    put(tmp_path / "base", outcomes(list(BASE)), format="none")
    put(tmp_path / "wide", outcomes(list(noisy(0.2, 0.1, 1))), block_size=32)
    put(tmp_path / "narrow", outcomes(list(noisy(0.2 + math.log(12), 5, 2))), block_size=16)
    study = study_of(tmp_path)
    (view,), (effect,) = knob_views(study, []), study.effects
    assert view.table is not None
    for table in (view.table, effect_table(study, effect)):
        (row,) = table.rows
        cells = {column: cell.text for column, cell in zip(table.columns, row, strict=True)}
        assert cells["Δ ppl"] == "÷12"
        assert re.fullmatch(r"\[÷[\d.]+, ÷[\d.]+\]", cells["Δ ppl, 95 %"])


@pytest.mark.parametrize(("bits", "text"), [(4.125, "4.125"), (4.375, "4.375"), (4.25, "4.25"), (16.0, "16")])
def test_bits_are_not_rounded_to_what_no_format_takes(bits: float, text: str) -> None:
    assert format_bits(bits) == text
