"""The verdict and what each knob does: the cheaper of what cannot be told apart, all pairs averaged, interactions."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.made_report import put_study
from helpers.made_runs import outcomes, put

from mxsweep.report.collection import collect
from mxsweep.report.result_texts import markdown_text, terminal_text
from mxsweep.report.single_run import cost_text
from mxsweep.results.groups import read_results
from mxsweep.results.knob_words import name_rows
from mxsweep.statistics.paired_tests import compare_log_perplexity
from mxsweep.study.change_words import format_size, format_with_span, percent
from mxsweep.study.compared_metric import metric_test
from mxsweep.study.comparison import compare_pairs
from mxsweep.study.group_study import Study, study_groups
from mxsweep.study.memory_front import find_memory_front
from mxsweep.study.memory_terms import Terms
from mxsweep.study.value_words import describe_values

N = 400
DRAWN = np.random.default_rng(5)
BASE = DRAWN.normal(-1, 0.5, N).clip(max=-1e-3)


def put_run(
    top: Path,
    name: str,
    loglikelihood: np.ndarray,
    bits: float = 32.0,
    more: dict[str, Any] | None = None,
    **knobs: Any,
) -> None:
    metrics = {"acc": float((loglikelihood > -1).mean()), "perplexity": math.exp(-loglikelihood.mean())}
    record = {"diagnostics": {"bits_per_weight": bits}} | (more or {})
    put(top / name, outcomes(list(loglikelihood)), {"story": metrics}, record=record, **knobs)


def noisy(cost: float, spread: float, seed: int) -> np.ndarray:
    return BASE - cost - np.random.default_rng(seed).normal(0, spread, N)


def study_of(top: Path) -> Study:
    (study,) = study_groups(read_results(top))
    return study


def line(study: Study, title: str) -> str:
    return next(line.text for line in study.verdict.lines if line.title == title)


def test_of_configs_that_cannot_be_told_apart_the_cheaper_is_named(tmp_path: Path) -> None:
    put_run(tmp_path, "base", BASE, format="none")
    put_run(tmp_path, "b16", noisy(0.20, 0.5, 1), 4.5, block_size=16)
    put_run(tmp_path, "b32", noisy(0.20, 0.5, 2), 4.25, block_size=32)
    put_run(tmp_path, "b64", noisy(0.60, 0.5, 3), 4.125, block_size=64)
    study = study_of(tmp_path)
    assert study.verdict.use is not None and study.verdict.use.name == "block size 32"
    said = line(study, "Use")
    assert said.startswith("Too few examples to choose; for now: w4a6, block size 32 (4.25 bits a weight of the deco")
    assert "cannot be told from block size 16" in said or "not measurably worse on 400 examples" in said
    assert line(study, "Smallest").startswith("w4a6, block size 64 (4.125 bits a weight of the decoder blocks)")
    assert "Too few examples to tell block size" in line(study, "How sure")


LAYERS = [{"heads": 4, "key_size": 64, "value_size": 64, "window": None, "bits": 16, "layers": 4}]


def put_sized(top: Path, name: str, cost: float, spread: float, megabytes: float = 60.0, **knobs: Any) -> None:
    """Put a run of 20 examples that costs exactly so many nats on average, and of which all memory is known."""
    drawn = np.random.default_rng(len(name)).normal(0, spread, 20)
    kv = ["fp4_e2m1-b32-e8m0"] * 2 if knobs.get("kv_quant") == "fp4_e2m1" else [None, None]
    quantized = {"layers": [["", name, None]], "kv": kv, "computed": ["torch", "native"]} if spread else None
    more = {
        "identity": {"model": "m", "quantized": quantized},
        "diagnostics": {"bits_per_weight": 4.25, "parameter_bytes": megabytes * 1e6, "cache_layers": LAYERS},
    }
    put_run(top, name, BASE[:20] - cost - (drawn - drawn.mean()), more=more, **knobs)


def test_what_another_config_beats_in_memory_and_by_its_estimate_is_not_recommended(tmp_path: Path) -> None:
    """Of quantized keys and values the better and smaller is worse than the best, and the noisier not measurably."""
    put_sized(tmp_path, "base", 0.0, 0.0, format="none")
    put_sized(tmp_path, "plain", 0.03, 0.05, 28.8)
    put_sized(tmp_path, "keys", 0.37, 0.1, 28.8, kv_quant="fp4_e2m1")
    put_sized(tmp_path, "wush", 0.48, 1.2, 31.8, kv_quant="fp4_e2m1", rotation="wush")
    study = study_of(tmp_path)
    by_name = {one.row.run.path.name: one for one in study.verdict.configs}
    against = compare_pairs(study.group, [(by_name[name].row, by_name["plain"].row) for name in ("keys", "wush")])
    lows = [one.perplexity.low for one in against if one.perplexity is not None]
    assert lows[0] > 0 > lows[1]  # so that of their intervals alone the noisier one's reaches 0
    front = find_memory_front(study.group, study.comparisons, Terms())
    assert front is not None and [one.row.run.path.name for one in front.front] == ["keys", "plain"]
    assert study.verdict.use is by_name["plain"]
    said, (smallest,) = line(study, "Use"), [each for each in study.verdict.lines if each.title == "Smallest"]
    assert said.startswith("Too few examples to choose; for now: w4a6, KV unquantized")
    assert said.endswith(" the cheapest of those that no other config beats in memory and in perplexity.")
    assert smallest.runs == ["id_keys"]


def test_what_is_cheaper_goes_by_the_context_at_which_memory_is_counted(tmp_path: Path) -> None:
    """Matrices of 3 MB are less than quantized keys and values save in a long sequence, and more than in a short."""
    put_sized(tmp_path, "base", 0.0, 0.0, format="none")
    put_sized(tmp_path, "plain", 0.10, 0.5, 28.8)
    put_sized(tmp_path, "wush", 0.15, 0.5, 31.8, kv_quant="fp4_e2m1", rotation="wush")
    long, short = (" ".join(collect(tmp_path, terms=Terms(context=size)).text.split()) for size in (8192, 16))
    assert "for now: w4a6, KV fp4_e2m1, rotation wush" in long and "less memory than KV unquantized" in long
    assert "for now: w4a6, KV unquantized" in short


def test_what_only_quantized_runs_have_and_all_of_them_is_named(tmp_path: Path) -> None:
    off = {"key_axis": "token", "rope": "after", "scales": "block", "smooth": 0.0, "latent": "cache"}
    kept = off | {"first": 4, "recent": 32}
    linear = {"method": "wush", "matmuls": "q+k+v+o+gate+up+down"}
    cached = {"method": "wush", "matmuls": "q+k+v+o+gate+up+down+qk"}
    said = ["format=w4a6", "limit=100", "stamp=now", "dry_run=false"]
    again = {name: {"overrides": [*said, f"kv_quant={name}"]} for name in ("none", "rescue4")}
    put_run(tmp_path, "base", BASE, format="none")
    put_run(tmp_path, "linear", noisy(0.20, 0.5, 1), 4.25, again["none"], rotation={"method": "none"})
    wushed = noisy(0.60, 0.5, 4)
    put_run(tmp_path, "linear_wush", wushed, 4.25, again["none"], rotation=linear)
    both = {"kv_quant": "fp4_e2m1", "rotation": {"method": "none"}}
    rescued = noisy(0.001, 0.01, 2)
    put_run(tmp_path, "rescue4", rescued, 4.25, again["rescue4"], **both, kv=kept | {"rotation": "hadamard"})
    put_run(tmp_path, "wush", noisy(0.90, 0.5, 3), 4.25, again["rescue4"], **both | {"rotation": cached}, kv=kept)
    study = study_of(tmp_path)
    options = {"kv_quant.first": 4, "kv_quant.recent": 32, "kv_quant.rotation": "hadamard"}
    assert options.items() <= study.results.constants.items()
    assert not {f"kv_quant.{name}" for name in off} & {*study.results.constants}  # which do nothing
    assert not {*options} & {*study.results.shown}  # WUSH rotates keys, so that it is no run without that
    (use,) = (line for line in study.verdict.lines if line.title == "Use")
    assert use.text.startswith("w4a6, KV rescue4 (")
    assert use.command == "python -m mxsweep format=w4a6 limit=100 kv_quant=rescue4"
    assert f"\n  {use.command}\n" in terminal_text(study.results)
    assert f" `{use.command}`\n" in markdown_text(study.results, {})


def test_options_of_one_of_several_formats_of_keys_and_values_are_shown(tmp_path: Path) -> None:
    put_run(tmp_path, "base", BASE, format="none")
    put_run(tmp_path, "rescue4", noisy(0.001, 0.01, 2), 4.25, kv_quant="fp4_e2m1", kv={"first": 4, "recent": 32})
    put_run(tmp_path, "int8", noisy(0.60, 0.5, 3), 4.25, kv_quant="int8", kv={"first": 0, "recent": 0})
    study = study_of(tmp_path)
    assert {"kv_quant", "kv_quant.first", "kv_quant.recent"} <= {*study.results.shown}
    assert line(study, "Use").startswith("w4a6, KV fp4_e2m1, first 4 tokens kept, last 32 tokens kept (")


def test_there_is_no_verdict_against_a_baseline_that_guesses(tmp_path: Path) -> None:
    for name in ("base", "b16", "b32"):
        bits = {"base": 32.0, "b16": 4.5, "b32": 4.25}[name]
        knobs = {"format": "none"} if name == "base" else {"block_size": int(name[1:])}
        put_run(tmp_path, name, noisy(0.2, 0.5, int(bits * 4)), bits, **knobs)
    assert study_of(tmp_path).verdict.lines[0].title == "Use"
    record = json.loads((tmp_path / "base" / "result.json").read_text())
    (tmp_path / "base" / "result.json").write_text(json.dumps(record | {"guessed": ["another"]}))
    assert study_of(tmp_path).verdict.use is not None
    (tmp_path / "base" / "result.json").write_text(json.dumps(record | {"guessed": ["story"]}))
    study = study_of(tmp_path)
    assert [each.title for each in study.verdict.lines] == ["Baseline"] and study.verdict.use is None
    assert "say nothing of what quantizing costs" in line(study, "Baseline")
    assert study.verdict.lines[0].runs == ["id_base"]
    assert find_memory_front(study.group, study.comparisons, Terms()) is None
    assert "The unquantized model knows no more" in cost_text(tmp_path)


def test_a_dearer_config_is_named_where_the_cheaper_is_worse_by_more_than_chance(tmp_path: Path) -> None:
    put_run(tmp_path, "base", BASE, format="none")
    put_run(tmp_path, "b16", noisy(0.2, 0.1, 1), 4.5, block_size=16)
    put_run(tmp_path, "b32", noisy(0.4, 0.1, 2), 4.25, block_size=32)
    study = study_of(tmp_path)
    assert study.verdict.use is not None and study.verdict.use.name == "block size 16"
    assert "Every other config is significantly worse than it." in line(study, "Use")
    assert "both configs significantly worse" in line(study, "Cost")
    assert "Enough examples to tell the best" in line(study, "How sure")


def test_what_only_a_correction_calls_equal_is_not_recommended(tmp_path: Path) -> None:
    """A cheap config is worse by its own interval, and not after Holm's correction over many."""
    put_run(tmp_path, "base", BASE, format="none")
    put_run(tmp_path, "b1", noisy(0.2, 0.5, 1), 4.9, block_size=1)
    put_run(tmp_path, "b2", noisy(0.32, 0.5, 2), 4.1, block_size=2)
    for more in range(3, 9):
        put_run(tmp_path, f"b{more}", noisy(0.2, 0.5, more), 4.9, block_size=more)
    study = study_of(tmp_path)
    (cheap,) = [one for one in study.verdict.configs if one.name == "block size 2"]
    best = study.verdict.configs[0]
    compared = compare_pairs(study.group, [(one.row, best.row) for one in study.verdict.configs[1:]])
    (of_cheap,) = [metric_test(each, "perplexity") for each in compared if each.row is cheap.row]
    assert of_cheap.paired is not None and of_cheap.paired.low > 0  # what is to be told from the best alone
    assert study.verdict.use is not None and study.verdict.use is not cheap


def test_runs_that_came_out_the_same_are_one_config_and_the_cheaper_stands_for_it(tmp_path: Path) -> None:
    put_study(tmp_path, noise=False)
    verdict = study_of(tmp_path).verdict
    assert len(verdict.configs) == 6 and all(len(config.rows) == 2 for config in verdict.configs)
    assert verdict.configs[0].name == "block size 16, scale bits 6 or 8, KV unquantized"
    assert verdict.use is not None and verdict.use.one_name == "w4a6, block size 16, scale bits 6, KV unquantized"


def test_a_runtime_is_no_choice(tmp_path: Path) -> None:
    """Who computes costs something, which is said; what to use is said of each runtime that has several configs."""
    put_run(tmp_path, "base", BASE, format="none")
    for name, runtime, cost in (("own", "none", 0.1), ("vllm", "vllm", 0.3)):
        put_run(tmp_path, name, noisy(cost, 0.1, len(name)), 4.25, block_size=32, runtime=runtime)
    verdict = study_of(tmp_path).verdict
    assert verdict.use is None and [each.title for each in verdict.lines] == ["Cost", "How sure", "Knobs"]
    put_run(tmp_path, "vllm16", noisy(0.1, 0.1, 16), 4.5, block_size=16, runtime="vllm")
    study = study_of(tmp_path)
    (said,) = [each for each in study.verdict.lines if each.title == "Use"]
    assert said.lead.startswith(
        "as vLLM computes it: w4a6, block size 16 (4.5 bits a weight of the decoder blocks): perplexity +"
    )
    assert said.lead.endswith("%]") and said.text.startswith(f"{said.lead}, significantly worse than the baseline. ")
    assert said.runs == ["id_vllm16"] and "runtime" not in said.text and study.verdict.use is None
    put_run(tmp_path, "own16", noisy(0.1, 0.1, 16), 4.5, block_size=16, runtime="none")
    leads = [each.lead for each in study_of(tmp_path).verdict.lines if each.title == "Use"]
    assert [lead.split(" (")[0] for lead in leads] == [
        "by the run's own rules: Too few examples to choose; for now: w4a6, block size 32",
        "as vLLM computes it: w4a6, block size 16",
    ]


def test_what_to_use_says_what_all_configs_have_in_common_and_what_was_left_as_it_is_not(tmp_path: Path) -> None:
    put_run(tmp_path, "base", BASE, format="none")
    for block in (16, 32):
        put_run(tmp_path, f"b{block}", noisy(block / 100, 0.1, block), 4.0, block_size=block, ptq="gptq")
    use = study_of(tmp_path).verdict.use
    assert use is not None and (use.name, use.one_name) == ("block size 16", "w4a6, gptq, block size 16")
    top = tmp_path / "cached"
    put_run(top, "base", BASE, format="none")
    for first in (0, 4):
        knobs: dict[str, Any] = {"format": "none", "kv_quant": "int4", "kv_quant.first": first}
        put_run(top, f"first{first}", noisy(0.1 + first / 10, 0.1, first), 16.0, **knobs)
    use = study_of(top).verdict.use
    assert use is not None and use.one_name == "KV int4"


def test_no_best_is_named_where_nothing_is_known_of_examples(tmp_path: Path) -> None:
    put_study(tmp_path, samples=False, noise=False)
    study = study_of(tmp_path)
    assert "Nothing is known of single examples" in line(study, "Use")
    assert {line.title for line in study.verdict.lines}.isdisjoint({"Cost", "Knobs", "How sure"})


def test_the_smallest_difference_is_that_of_power_four_fifths(tmp_path: Path) -> None:
    """Of 2,000 samples with a true difference of the size said, four in five are significant."""
    put_run(tmp_path, "base", BASE, format="none")
    put_run(tmp_path, "b16", BASE - 0.2, 4.5, block_size=16)
    put_run(tmp_path, "b32", BASE - 0.2 - np.random.default_rng(2).normal(0.4, 0.5, N), 4.25, block_size=32)
    said = line(study_of(tmp_path), "How sure")
    size = math.log1p(float(said.split("a difference of ")[1].split("%")[0]) / 100)
    drawn = np.random.default_rng(3).normal(size, 0.5, (2000, N))
    found = np.mean([compare_log_perplexity(each, np.zeros(N)).p < 0.05 for each in drawn])
    assert found == pytest.approx(0.8, abs=0.06)


def test_all_pairs_of_values_are_compared_and_averaged_over_the_other_knobs(tmp_path: Path) -> None:
    put_study(tmp_path, noise=False)
    values = {each.knob: each for each in study_of(tmp_path).values}
    pairs = values["block_size"].pairs
    assert [(pair.low, pair.high) for pair in pairs] == [("16", "32"), ("16", "64"), ("32", "64")]
    assert all(len(pair.runs) == 4 for pair in pairs)
    first, ends, last = (pair.tests["perplexity"].measured for pair in pairs)
    assert ends.difference == pytest.approx(first.difference + last.difference)
    logs = [math.log(high.metrics["perplexity"] / low.metrics["perplexity"]) for low, high in pairs[1].runs]
    assert ends.difference == pytest.approx(sum(logs) / 4)
    assert ends.low < ends.difference < ends.high and pairs[1].tests["perplexity"].tells_apart
    assert values["scale_bits"].pairs[0].identical
    assert describe_values(values["scale_bits"]) == [
        "scale bits 6 or 8: every example has the same outcome, to the last digit."
    ]


def test_what_another_knob_changes_is_named_once_with_the_effect_at_either_value(tmp_path: Path) -> None:
    put_study(tmp_path, noise=False, scale_bits=(8,))
    values = study_of(tmp_path).values
    found = [(each.knob, one.other) for each in values for one in each.interactions]
    assert found == [("block_size", "kv_quant")]
    (one,) = values[0].interactions
    assert [value for value, _ in one.at] == ["none", "fp4_e2m1"] and one.p < 0.05
    assert one.at[1][1].difference > 2 * one.at[0][1].difference > 0
    assert "depends on KV: perplexity +" in describe_values(values[0])[-1]


def test_an_effect_that_was_measured_elsewhere_at_one_value_is_no_interaction(tmp_path: Path) -> None:
    """Keys and values cost more with blocks of 64, which were run with 6 scale bits alone: the bits change nothing."""
    put_run(tmp_path, "base", BASE, format="none")
    for block, bits in ((16, 6), (64, 6), (16, 8)):
        for kv in ("none", "int8"):
            cost = block / 100 + (block / 100 if kv == "int8" else 0)
            samples = noisy(cost, 0.05, block + (kv == "int8"))
            put_run(tmp_path, f"{block}{bits}{kv}", samples, 4.0, block_size=block, scale_bits=bits, kv_quant=kv)
    values = study_of(tmp_path).values
    assert {(each.knob, one.other) for each in values for one in each.interactions} == {("block_size", "kv_quant")}
    assert any(len(each.pairs[0].runs) == 3 for each in values if each.knob == "kv_quant")


def test_effects_that_add_up_are_no_interaction(tmp_path: Path) -> None:
    put_run(tmp_path, "base", BASE, format="none")
    for block, kv in ((16, "none"), (16, "int8"), (32, "none"), (32, "int8")):
        cost = 0.1 * (block == 32) + 0.2 * (kv == "int8")
        put_run(
            tmp_path,
            f"{block}{kv}",
            noisy(cost, 0.05, block + 100 * (kv == "int8")),
            4.0,
            block_size=block,
            kv_quant=kv,
        )
    assert all(each.interactions == [] for each in study_of(tmp_path).values)


def test_a_difference_that_is_not_there_is_bounded_and_not_claimed(tmp_path: Path) -> None:
    put_run(tmp_path, "base", BASE, format="none")
    put_run(tmp_path, "b16", noisy(0.2, 0.2, 1), 4.5, block_size=16)
    put_run(tmp_path, "b32", noisy(0.2, 0.2, 2), 4.25, block_size=32)
    (values,) = study_of(tmp_path).values
    (said,) = describe_values(values)
    assert said.startswith("block size 16, 32: no difference shown, within [−") and said.endswith("%] of perplexity.")
    measured = values.pairs[0].tests["perplexity"].measured
    assert f"[−{-math.expm1(measured.low):.1%}, +{math.expm1(measured.high):.1%}]" in said


def test_values_of_which_no_two_are_told_apart_are_one_line(tmp_path: Path) -> None:
    put_run(tmp_path, "base", BASE, format="none")
    for block in (16, 32, 64):
        put_run(tmp_path, f"b{block}", noisy(0.2, 0.2, block), 4.5, block_size=block)
    study = study_of(tmp_path)
    (said,) = describe_values(study.values[0])
    ends = [
        end for pair in study.values[0].pairs for m in [pair.tests["perplexity"].measured] for end in (m.low, m.high)
    ]
    within = f"within [−{-math.expm1(min(ends)):.1%}, +{math.expm1(max(ends)):.1%}]"
    assert said == f"block size 16, 32, 64: no difference shown, {within} of perplexity."
    assert line(study, "Knobs") == f"B{said[1:].removesuffix(' of perplexity.')}."


def test_rows_that_are_not_all_combinations_are_named_by_the_first(tmp_path: Path) -> None:
    put_run(tmp_path, "a", BASE, block_size=16, scale_bits=6)
    put_run(tmp_path, "b", BASE, block_size=32, scale_bits=8)
    rows = read_results(tmp_path).groups[0].rows
    assert name_rows(rows, ["block_size", "scale_bits"]) == "block size 16, scale bits 6 (and 1 equal to it)"
    assert name_rows(rows, []) == "w4a6"


@pytest.mark.parametrize(
    ("factor", "text"),
    [
        (1.5, "+50.0%"),
        (19.9, "+1890.0%"),
        (20.0, "×20"),
        (14397.0, "×14,397"),
        (3e7, "×3e+07"),
        (0.06, "-94.0%"),
        (1 / 45, "÷45"),
        (1 / 11671, "÷11,671"),
    ],
)
def test_changes_by_factors_are_written_as_such(factor: float, text: str) -> None:
    assert percent(math.log(factor)) == text


def test_factors_that_no_float_holds_are_no_error() -> None:
    assert format_with_span("perplexity", math.log(40), math.log(13.7), math.log(122)) == "×40 [×13.7, ×122]"
    assert format_with_span("perplexity", math.log(2), math.log(0.5), math.log(4)) == "+100.0% [−50.0%, +300.0%]"
    assert (percent(1e4), percent(-math.inf), percent(math.nan)) == ("> ×10^300", "> ÷10^300", "+nan%")


def test_formats_are_compared_with_the_block_size_that_goes_with_them(tmp_path: Path) -> None:
    put_run(tmp_path, "base", BASE, format="none")
    for cost, fmt, block in ((0.1, "w4a6", 16), (0.2, "mxfp4", 32), (0.4, "mint4", 32)):
        for bits in (6, 8):
            put_run(tmp_path, f"{fmt}{bits}", BASE - cost - bits / 100, format=fmt, block_size=block, scale_bits=bits)
    (study,) = study_groups(read_results(tmp_path))
    formats, *others = study.values
    assert {(pair.low, pair.high) for pair in formats.pairs} == {
        ("mint4", "mxfp4"),
        ("mint4", "w4a6"),
        ("mxfp4", "w4a6"),
    }
    assert formats.bound == ["block_size"] and [each.knob for each in others] == ["scale_bits"]  # no pair differs in it
    assert "block size goes with the format, and differs" in describe_values(formats)[0]
    pair = next(pair for pair in formats.pairs if (pair.low, pair.high) == ("mxfp4", "w4a6"))
    assert pair.tests["perplexity"].measured.difference == pytest.approx(-0.1)


@pytest.mark.parametrize(
    "ratio, text",
    [
        (1.021, "2.1%"),
        (1.49, "49.0%"),
        (1.5, "a factor of 1.5"),
        (2.01, "a factor of 2.01"),
        (1e5, "a factor of 100,000"),
    ],
)
def test_a_size_that_no_perplexity_falls_by_is_a_factor(ratio: float, text: str) -> None:
    assert format_size("perplexity", math.log(ratio)) == text
    assert format_size("perplexity", 1e4) == "a factor of more than 10^300"
    assert format_size("acc", 2.0) == "2"


def test_a_knob_that_another_turns_round_is_not_said_to_do_nothing(tmp_path: Path) -> None:
    put_run(tmp_path, "base", BASE, format="none")
    costs = {(16, 6): 0.1, (32, 6): 0.3, (16, 8): 0.3, (32, 8): 0.1}
    for (block, bits), cost in costs.items():
        put_run(tmp_path, f"b{block}s{bits}", noisy(cost, 0.05, block + bits), block_size=block, scale_bits=bits)
    study = study_of(tmp_path)
    assert [one.other for each in study.values for one in each.interactions] == ["scale_bits"]
    said = line(study, "Knobs")
    assert "but what it does depends on scale bits" in said and "but what it does depends on block size" in said


def put_equal_but_for_noise(top: Path) -> None:
    """Two configs of which one is worse by 5 % of perplexity, certainly, while noise alone makes more, of a limit."""
    noise = {"metrics": {"story": {"perplexity": [3.5, 2.2, 2.8, 3.4], "acc": [0.5, 0.52, 0.48, 0.5]}}}
    better = noisy(0.2, 0.1, 1)
    worse = better - 0.05 - np.random.default_rng(9).normal(0, 0.05, N)
    put_run(top, "base", BASE, more={"noise": noise}, format="none", limit=N)
    put_run(top, "b16", better, 4.5, {"noise": noise}, block_size=16, limit=N)
    put_run(top, "b32", worse, 4.25, {"noise": noise}, block_size=32, limit=N)
    for folder in top.iterdir():
        (folder / "lm_eval.json").write_text(json.dumps({"n-samples": {"story": {"original": 5000}}}))


def test_noise_is_not_taken_for_too_few_examples(tmp_path: Path) -> None:
    put_equal_but_for_noise(tmp_path)
    study = study_of(tmp_path)
    said = line(study, "Use")
    assert study.verdict.use is not None and study.verdict.use.name == "block size 32"
    assert "and is not worse by more than the numerical noise (+5." in said and "until" not in said
    assert "Too few" not in line(study, "How sure") and "Enough" not in line(study, "How sure")


def test_an_interval_without_0_within_the_noise_is_said_to_be_noise(tmp_path: Path) -> None:
    put_equal_but_for_noise(tmp_path)
    study = study_of(tmp_path)
    assert study.values[0].pairs[0].tests["perplexity"].measured.low > 0
    said = line(study, "Knobs")
    assert said.startswith("Block size 16, 32: no difference that the numerical noise would not make, within [+")


def test_examples_are_enough_only_where_the_adjusted_tests_tell_all_from_the_best(tmp_path: Path) -> None:
    """Three configs are worse by their own intervals alone, so that Holm's correction tells none from the best."""
    best = noisy(0.2, 0.1, 1)
    put_run(tmp_path, "base", BASE, format="none")
    put_run(tmp_path, "b16", best, 4.5, block_size=16)
    for seed, block in enumerate((32, 64, 128)):
        cost = np.random.default_rng(20 + seed).normal(0, 0.1, N)
        put_run(tmp_path, f"b{block}", best - (cost - cost.mean() + 0.0105), 4 + 8 / block, block_size=block)
    study = study_of(tmp_path)
    assert "Every other config is worse than it, by its own interval" in line(study, "Use")
    assert line(study, "How sure").startswith("400 examples typically show a difference of ")


def test_identical_configs_are_not_said_to_take_more_examples(tmp_path: Path) -> None:
    """Without a baseline they are not one config; of 6, 8 and 12 scale bits, 6 and 8 are the same, or 8 and 12."""
    best, other = noisy(0.2, 0.1, 1), noisy(0.2, 0.1, 4)
    assert best.mean() > other.mean()
    for top, of in (("first", (best, best, other)), ("last", (best, other, other))):
        for bits, loglikelihood in zip((6, 8, 12), of, strict=True):
            put_run(tmp_path / top, f"s{bits}", loglikelihood, 4.5, scale_bits=bits)
    assert "Too few examples to tell scale bits 6 or 12 apart" in line(study_of(tmp_path / "first"), "How sure")
    assert "Too few examples to tell scale bits 6 or 8 apart" in line(study_of(tmp_path / "last"), "How sure")


def test_identical_answers_of_which_only_right_and_wrong_is_known_are_called_the_same(tmp_path: Path) -> None:
    right = np.random.default_rng(1).integers(0, 2, N)
    for name, answers, bits in (("base", np.ones(N, int), 32.0), ("b16", right, 4.5), ("b32", right, 4.25)):
        knobs: dict[str, Any] = {"format": "none"} if name == "base" else {"block_size": int(name[1:])}
        frame = outcomes([-1.0] * N, list(answers)).drop(columns="loglikelihood")
        record = {"diagnostics": {"bits_per_weight": bits}}
        put(tmp_path / name, frame, {"story": {"acc": float(answers.mean())}}, record=record, **knobs)
    study = study_of(tmp_path)
    assert study.verdict.use is not None and study.verdict.use.name == "block size 32"
    assert "against block size 16, and comes out the same on every example." in line(study, "Use")
    assert "identical" in line(study, "Knobs")
    assert "How sure" not in [each.title for each in study.verdict.lines]


@pytest.mark.parametrize(("cost", "asked"), [(-0.1, False), (0.1, True)])
def test_a_remedy_is_asked_for_where_something_can_be_won_back(tmp_path: Path, cost: float, asked: bool) -> None:
    put_run(tmp_path, "base", BASE, format="none")
    put_run(tmp_path, "b32", noisy(cost, 0.1, 1), 4.25, block_size=32)
    said = line(study_of(tmp_path), "Use")
    assert f"significantly {'worse' if asked else 'better'} than the baseline" in said
    assert ("No remedy was tried" in said) is asked


def test_no_remedy_is_asked_for_of_a_training_which_takes_none(tmp_path: Path) -> None:
    trained: dict[str, Any] = {"training": {"steps": 10}}
    put_run(tmp_path, "base", BASE, more=trained, format="none", train="from_scratch")
    put_run(tmp_path, "b32", noisy(0.1, 0.1, 1), 4.25, more=trained, block_size=32, train="from_scratch")
    said = line(study_of(tmp_path), "Use")
    assert "significantly worse than the baseline." in said and "No remedy" not in said


def test_of_one_example_the_cheapest_is_not_called_as_good(tmp_path: Path) -> None:
    put_run(tmp_path, "base", BASE[:1], format="none")
    put_run(tmp_path, "b16", BASE[:1] - 0.2, 4.5, block_size=16)
    put_run(tmp_path, "b32", BASE[:1] - 0.3, 4.25, block_size=32)
    study = study_of(tmp_path)
    assert study.verdict.use is not None and study.verdict.use.name == "block size 16"
    assert line(study, "Use").endswith(
        ". The examples are too few for an interval, so whether it is better than the next is not known."
    )


@pytest.mark.parametrize(
    ("guessed", "written", "withheld"),
    [
        (["a", "b", "c"], True, True),
        (["a", "b", "c"], False, True),
        (["a", "c"], True, False),
        (["a", "c"], False, False),
        (["other"], True, False),
        ([], True, False),
    ],
)
def test_a_baseline_guesses_on_a_group_of_tasks_where_it_does_on_all_its_members(
    tmp_path: Path, guessed: list[str], written: bool, withheld: bool
) -> None:
    """The group has a and a group of b and c; without lm-eval's file its members are those that have examples."""
    for name, acc in (("base", 0.25), ("b16", 0.26), ("b32", 0.24)):
        knobs: dict[str, Any] = {"format": "none"} if name == "base" else {"block_size": int(name[1:])}
        record: dict[str, Any] = {"n_effective": dict.fromkeys("abc", 100)}
        if name == "base" and guessed:
            record["guessed"] = guessed
        put(
            tmp_path / name, None, {"all": {"acc": acc}}, record=record, task={"name": "all", "names": ["all"]}, **knobs
        )
        if written:
            groups = {"all": ["a", "inner"], "inner": ["b", "c"]}
            (tmp_path / name / "lm_eval.json").write_text(json.dumps({"group_subtasks": groups}))
    titles = [each.title for each in study_of(tmp_path).verdict.lines]
    assert titles == (["Baseline"] if withheld else ["Use"])


def test_groups_of_tasks_that_hold_each_other_end(tmp_path: Path) -> None:
    for name in ("base", "b16"):
        knobs: dict[str, Any] = {"format": "none"} if name == "base" else {"block_size": 16}
        put(tmp_path / name, None, {"all": {"acc": 0.5}}, record={"guessed": ["a"]}, **knobs)
        groups = {"all": ["inner", "a", 1], "inner": ["all", "inner"]}
        (tmp_path / name / "lm_eval.json").write_text(json.dumps({"group_subtasks": groups}))
    assert [each.title for each in study_of(tmp_path).verdict.lines] == ["Baseline"]


def test_examples_that_ask_the_same_are_said_to_be_left_out(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    base = -rng.gamma(0.7, 2, 200)
    base[100:] = base[:100]
    asked = [f"i{i % 100}" for i in range(200)]
    for name, lost, knobs in (("base", 0.0, {"format": "none"}), ("a", 0.5, {}), ("b", 1.0, {"block_size": 64})):
        samples = outcomes(base - lost * (1 + np.arange(200) % 100 / 100)).assign(input_hash=asked)
        put(tmp_path / name, samples, **knobs)
    assert "Left out, since they ask what others do: 100 examples." in line(study_of(tmp_path), "How sure")
