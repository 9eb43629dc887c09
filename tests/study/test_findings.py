"""Findings: each sentence where its data are, and none where they are not."""

import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from mxsweep.results.groups import Group
from mxsweep.results.record import RunFolder
from mxsweep.results.rows import Row
from mxsweep.results.tensor_errors import read_tensors
from mxsweep.statistics.paired_tests import AccuracyDifference, LogPerplexityDifference
from mxsweep.study.block_directions import Ends
from mxsweep.study.comparison import Comparison, Floor
from mxsweep.study.finding import Finding
from mxsweep.study.findings import list_findings
from mxsweep.study.knob_effects import KnobEffect


def a_row(path: Path, name: str, diagnostics: dict[str, Any] | None = None, **more: Any) -> Row:
    knobs = {"format": "w4a6", "block_size": 32, "scale_bits": 8, "kv_quant": "none"} | more.pop("knobs", {})
    baseline = more.pop("baseline", False)
    record = {"run_id": name, "config": {}, "metrics": {}, "environment": {"dtype": "bfloat16"}} | more
    record["diagnostics"] = diagnostics or {}
    return Row(RunFolder(path / name, "done", record), "story", knobs, {"acc": 0.5, "perplexity": 4.0}, baseline)


def an_effect(knob: str, *pairs: Comparison) -> KnobEffect:
    return KnobEffect(knob, "", list(pairs))


def told(rows: list[Row], *effects: KnobEffect, against: list[Comparison] = []) -> list[Finding]:  # noqa: B006
    return list_findings(Group("", "", rows), {pair.row.run.path: pair for pair in against}, effects)


def texts(found: list[Finding], kind: str) -> list[str]:
    return [finding.text for finding in found if finding.kind == kind]


def accuracy(difference: float) -> AccuracyDifference:
    return AccuracyDifference(1000, 0, 0, difference, difference - 0.01, difference + 0.01, 0.001)


def perplexity(difference: float) -> LogPerplexityDifference:
    return LogPerplexityDifference(1000, difference, difference - 0.01, difference + 0.01, 0.001)


WEIGHTS = {
    "weight_blocks": 100,
    "weight_blocks_scale_clamped": 0,
    "weights_quantized": 3200,
    "weights_saturated": 32,
    "weights_flushed": 320,
    "weight_exponent_min": -9,
    "weight_exponent_max": 4,
}


def tensors(**sqnr_db: float) -> dict[str, Any]:
    figures = {"elements": 1000, "blocks": 50, "saturated": 0, "flushed": 100, "clamped": 0, "unlike_exact": 3}
    spans = {"exponent_min": -5, "exponent_max": 3, "exponent_limit": 127}
    return {"tensors": {kind: figures | spans | {"sqnr_db": ratio} for kind, ratio in sqnr_db.items()}}


def test_scale_bits_that_agree_are_explained_by_the_exponents(tmp_path: Path) -> None:
    six, eight = (a_row(tmp_path, str(bits), WEIGHTS, knobs={"scale_bits": bits}) for bits in (6, 8))
    (text,) = texts(
        told([six, eight], an_effect("scale_bits", Comparison(eight, six, 1000, identical=True))), "no effect"
    )
    assert text == (
        "Scale bits 6 and 8 are identical in the 1 pair of runs that differ in nothing else: every one of the 1,000 "
        "examples has the same outcome to the last digit. The scale exponents of weights span −9…4, 6 bits hold ±31: "
        "no scale was clamped."
    )


def test_nothing_is_said_of_exponents_that_nobody_knows_or_of_clamped_scales(tmp_path: Path) -> None:
    for diagnostics in ({}, WEIGHTS | {"weight_blocks_scale_clamped": 1}):
        six, eight = (a_row(tmp_path, str(bits), diagnostics, knobs={"scale_bits": bits}) for bits in (6, 8))
        effect = an_effect("scale_bits", Comparison(eight, six, 1000, identical=True))
        (text,) = texts(told([six, eight], effect), "no effect")
        assert "identical" in text and "exponents" not in text


def test_runs_that_differ_are_not_called_identical(tmp_path: Path) -> None:
    a, b = a_row(tmp_path, "a", knobs={"block_size": 16}), a_row(tmp_path, "b")
    pair = Comparison(b, a, 1000, accuracy(-0.04), perplexity(0.1), 0.004, 0.004, floor=Floor(0.01, 0.2, 3, ""))
    found = told([a, b], an_effect("block_size", pair))
    assert not texts(found, "no effect")


def test_runs_that_could_not_be_compared_are_not_spoken_of(tmp_path: Path) -> None:
    a, b = a_row(tmp_path, "a", knobs={"block_size": 16}), a_row(tmp_path, "b")
    assert told([a, b], an_effect("block_size", Comparison(b, a, why_not="no samples"))) == []


def test_what_keys_and_values_cost_is_set_beside_what_came_before(tmp_path: Path) -> None:
    base, linear = a_row(tmp_path, "base", baseline=True), a_row(tmp_path, "linear")
    kv = a_row(tmp_path, "kv", knobs={"kv_quant": "fp4_e2m1"})
    found = told(
        [base, linear, kv],
        an_effect("kv_quant", Comparison(kv, linear, 1000, None, perplexity(0.6931), None, 0.001)),
        against=[Comparison(linear, base, 1000, None, perplexity(0.4055), None, 0.001)],
    )
    (text,) = texts(found, "effect")
    assert text == (
        "Quantizing keys and values to fp4_e2m1 multiplies perplexity by 2.000, on top of the 1.500 that the linear "
        "layers' formats cost alone."
    )


def test_where_error_enters_and_which_arithmetic_differs(tmp_path: Path) -> None:
    rows = [a_row(tmp_path, "a", tensors(weight=18.0, activation=31.0, key=17.5)), a_row(tmp_path, "b", WEIGHTS)]
    found = told(rows)
    assert "lowest for keys in 1 run: keys 17.5 dB, weights 18.0 dB, activations 31.0 dB." in texts(found, "error")[0]
    assert "weights, 10.00% became zero, and 0.00% to 1.00% were cut" in texts(found, "error")[1]
    (text,) = texts(found, "arithmetic")
    assert "in bfloat16" in text and "0.300% of the elements of weights, 0.300%" in text and text.endswith("in 1 run.")


def test_exact_runs_say_nothing_of_arithmetic(tmp_path: Path) -> None:
    figures = tensors(weight=18.0)
    figures["tensors"]["weight"]["unlike_exact"] = None
    assert not texts(told([a_row(tmp_path, "a", figures)]), "arithmetic")


def with_tensors(row: Row, *sqnr_db: float) -> Row:
    """Have a run's file of diagnostics hold the errors of three weights."""
    row.run.path.mkdir()
    names = ["model.layers.0.mlp.up_proj", "model.layers.1.mlp.up_proj", "model.layers.1.mlp.down_proj"]
    table = {
        "kind": ["weight"] * 3,
        "module": names,
        "layer": [0, 1, 1],
        "elements": [100] * 3,
        "blocks": [10] * 3,
        "sqnr_db": list(sqnr_db),
        "saturated": [0] * 3,
        "flushed": [0] * 3,
        "clamped": [0] * 3,
    }
    parquet.write_table(pa.table(table), row.run.path / "diagnostics.parquet")
    return row


def test_the_worst_tensor_is_named_from_the_file(tmp_path: Path) -> None:
    (text,) = texts(told([with_tensors(a_row(tmp_path, "a"), 18.0, 19.0, 12.0)]), "error")
    assert text.endswith(
        "weights of model.layers.1.mlp.down_proj in 1 run: 12.0 dB, where the median of weights is 18.0 dB."
    )


def test_the_order_in_which_squares_were_added_up_decides_nothing(tmp_path: Path) -> None:
    above = math.nextafter(12.0, 99)
    rows = [with_tensors(a_row(tmp_path, "a"), 12.0, 19.0, above), with_tensors(a_row(tmp_path, "b"), above, 19.0, 12)]
    (text,) = texts(told(rows), "error")
    assert "weights of model.layers.0.mlp.up_proj in 2 runs: 12.0 dB" in text
    rows = [a_row(tmp_path, "c", tensors(key=12.0, value=above)), a_row(tmp_path, "d", tensors(key=above, value=12.0))]
    assert "lowest for keys in 2 runs" in texts(told(rows), "error")[0]


def test_clamped_scales_are_told_with_what_the_bits_hold(tmp_path: Path) -> None:
    row = a_row(tmp_path, "a", WEIGHTS | {"weight_blocks_scale_clamped": 25}, knobs={"scale_bits": 4})
    assert texts(told([row]), "scale") == [
        "Scale bits 4 clamped the scales of 25.00% of the blocks of weights, whose exponents span −9…4 where ±7 can be "
        "held, in 1 run."
    ]


@pytest.mark.parametrize(("p", "kl", "said"), [(0.5, 0.2, True), (0.01, 0.2, False), (0.5, 0.101, False)])
def test_a_distance_is_told_where_accuracy_does_not_decide(tmp_path: Path, p: float, kl: float, said: bool) -> None:
    def distance(nats: float) -> dict[str, Any]:
        return {"distance": {"story": {"kl_nats": nats, "kl_nats_stderr": 0.01, "top1_agreement": 0.9}}}

    a, b = a_row(tmp_path, "a", distance(0.1), knobs={"block_size": 16}), a_row(tmp_path, "b", distance(kl))
    pair = Comparison(b, a, 1000, accuracy(-0.001), None, p)
    assert bool(texts(told([a, b], an_effect("block_size", pair)), "distance")) is said


def test_noise_is_told_of_quantized_and_unquantized_runs_apart(tmp_path: Path) -> None:
    noise = {"repeats": 2, "metrics": {"story": {"acc": [0.51, 0.49], "perplexity": [4.1, 4.0]}}}
    quiet = {"repeats": 2, "metrics": {"story": {"acc": [0.5, 0.5], "perplexity": [4.0, 4.0]}}}
    base, row = a_row(tmp_path, "base", baseline=True, noise=quiet), a_row(tmp_path, "a", noise=noise)
    found = texts(told([base, row]), "noise")
    assert found == [
        "Repeating an unquantized config with rounding-sized perturbations moves its accuracy not at all and "
        "perplexity by less than 0.01% (1 run, 2 repeats each).",
        "Repeating a quantized config with rounding-sized perturbations moves its accuracy by up to 0.01 and "
        "perplexity by up to 2.50% (1 run, 2 repeats each).",
    ]


@pytest.mark.parametrize("content", [b"", b"no parquet", b"PAR1" + b"x" * 100 + b"PAR1"])
def test_a_damaged_file_of_diagnostics_is_as_none(tmp_path: Path, content: bytes) -> None:
    row = a_row(tmp_path, "a", tensors(weight=18.0, activation=31.0))
    row.run.path.mkdir()
    (row.run.path / "diagnostics.parquet").write_bytes(content)
    assert read_tensors(row.run) == []
    assert len(texts(told([row]), "error")) == 3


@pytest.mark.parametrize(
    "odd",
    [
        {"tensors": {"weight": {}}},
        {"tensors": {"weight": None, "key": 3}},
        {"tensors": {"weight": {"elements": 0, "blocks": 0, "saturated": 0, "flushed": 0, "clamped": 0}}},
        {"tensors": {"weight": {"elements": 1, "blocks": 1, "saturated": "no", "flushed": 0, "clamped": 0}}},
        {"tensors": []},
        {"distance": {"story": {"kl_nats": 0.1}}},
        {"distance": {"story": {"kl_nats": None, "kl_nats_stderr": "x", "top1_agreement": 1}}},
        {"weight_blocks": 10},
    ],
)
def test_odd_records_are_not_spoken_of(tmp_path: Path, odd: dict[str, Any]) -> None:
    a, b = a_row(tmp_path, "a", odd, knobs={"block_size": 16}, environment=["?"]), a_row(tmp_path, "b", odd)
    found = told([a, b], an_effect("block_size", Comparison(b, a, 1000, accuracy(-0.001), None, 0.5)))
    assert found == []


@pytest.mark.parametrize("column", [{"kind": ["weights"]}, {"module": [None]}, {"layer": ["0"]}, {"sqnr_db": ["x"]}])
def test_a_file_with_other_values_is_as_none(tmp_path: Path, column: dict[str, Any]) -> None:
    good = {"kind": ["weight"], "module": ["model.layers.0.q"], "layer": [0], "elements": [10], "blocks": [1]}
    good |= {"sqnr_db": [18.0], "saturated": [0], "flushed": [0], "clamped": [0]}
    row = a_row(tmp_path, "a")
    row.run.path.mkdir()
    path = row.run.path / "diagnostics.parquet"
    parquet.write_table(pa.table(good), path)
    assert len(read_tensors(row.run)) == 1
    path.unlink()
    parquet.write_table(pa.table(good | column), path)
    assert read_tensors(row.run) == []


WUSH_MX = {"rotation": "wush", "rotation_block": "mx"}


@pytest.mark.parametrize(
    ("ours", "theirs", "kinds"),
    [
        ({"rotation": "hadamard"}, {"rotation": "none"}, "weights by +1.0 dB, of activations (sampled) by +1.0 dB and"),
        ({"rotation": "wush"}, {"rotation": "hadamard"}, None),
        ({"rotation": "none"}, {"rotation": "wush"}, None),
        ({"rotation": "wush", "rotation_block": 16}, {"rotation": "wush", "rotation_block": 32}, None),
        (WUSH_MX | {"block_size": 16}, WUSH_MX, None),
        ({"rotation": "wush", "scale_bits": 6}, {"rotation": "wush"}, "weights by +1.0 dB"),
    ],
)  # fmt: skip
def test_errors_in_two_metrics_are_not_compared(
    tmp_path: Path, ours: dict[str, Any], theirs: dict[str, Any], kinds: str | None
) -> None:
    a = a_row(tmp_path, "a", tensors(weight=18.0, activation=28.0, key=20.0), knobs=theirs)
    b = a_row(tmp_path, "b", tensors(weight=19.0, activation=29.0, key=21.0), knobs=ours)
    knob = next(name for name in ("block_size", "rotation_block", "scale_bits", "rotation") if name in ours)
    found = [text for text in texts(told([a, b], an_effect(knob, Comparison(b, a, 1000))), "error") if "chang" in text]
    assert len(found) == 1 and "keys (sampled) by +1.0 dB" in found[0]
    assert "activations" not in found[0] if kinds is None else kinds in found[0]


def test_a_metric_of_its_own_is_said_beside_its_figures(tmp_path: Path) -> None:
    figures = tensors(weight=18.0, activation=28.0, key=20.0)
    plain, own = (a_row(tmp_path, name, figures, knobs={"rotation": name}) for name in ("none", "wush"))
    of_both = [text for text in texts(told([plain, own]), "error") if "lowest" in text]
    assert [("not to be compared" in text, "1 run:" in text) for text in of_both] == [(False, True), (True, True)]


def test_smaller_blocks_are_not_held_against_larger_ones_in_another_metric(tmp_path: Path) -> None:
    for method, change in (("none", -2.0), ("wush", None)):
        knobs = {"rotation": method, "rotation_block": "mx"}
        small = a_row(tmp_path, "a", tensors(weight=18.0, key=18.0), knobs=knobs | {"block_size": 16})
        large = a_row(tmp_path, "b", tensors(weight=20.0, key=20.0), knobs=knobs)
        ends = Ends((), small, large)
        assert ends.change("key") == -2.0
        assert math.isnan(ends.change("weight")) if change is None else ends.change("weight") == change


def test_what_a_knob_does_to_the_error_of_each_kind(tmp_path: Path) -> None:
    a = a_row(tmp_path, "a", tensors(weight=18.7, activation=30.5), knobs={"block_size": 16})
    b = a_row(tmp_path, "b", tensors(weight=18.72, activation=28.9))
    found = texts(told([a, b], an_effect("block_size", Comparison(b, a, 1000))), "error")
    assert (
        found[0] == "Block size 16 → 32 changes the signal over quantization error of activations (sampled) by −1.6 dB."
    )
