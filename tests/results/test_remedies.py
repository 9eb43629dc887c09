"""Remedies: which knobs are, what old records mean, what runs with them are called, what they found."""

from pathlib import Path
from typing import Any

import pytest
from helpers.made_runs import REMEDIES, outcomes, put

from mxsweep.results.groups import Results, read_results
from mxsweep.results.remedies import applied, remedy_sentences, remedy_text
from mxsweep.study.knob_effects import find_knob_effects

CHANNEL = {"key_axis": "channel", "rope": "before", "first": 4, "recent": 0, "scales": "block", "smooth": 0.0}
TOKEN = {"key_axis": "token", "rope": "after", "first": 0, "recent": 0, "scales": "block", "smooth": 0.0}


def put_all(folder: Path, *names: str, **knobs: Any) -> Results:
    """Runs with these remedies; each is a little worse than the one before, so that none is the same."""
    for index, name in enumerate(names):
        put(folder / name, outcomes([-0.1 * index - 0.01 * n for n in range(1, 30)]), **REMEDIES[name], **knobs)
    return read_results(folder)


def pairs(results: Results) -> dict[str, list[tuple[str, str]]]:
    (group,) = results.groups
    return {
        effect.knob: [(pair.other.run.path.name, pair.row.run.path.name) for pair in effect.comparisons]
        for effect in find_knob_effects(results, group)
    }


def test_remedies_are_columns_where_they_vary(tmp_path: Path) -> None:
    put(tmp_path / "base", outcomes([-1.0, -2.0]), format="none", **REMEDIES["rtn"])
    results = put_all(tmp_path, "rtn", "gptq", "search")
    assert results.shown == ["format", "ptq", "rotation"]
    (group,) = results.groups
    assert group.rows[0].is_baseline
    assert not {"ptq", "rotation", "ptq.budget", "rotation_block", "calibration"} & group.rows[0].knobs.keys()


def test_what_nobody_varied_is_no_column(tmp_path: Path) -> None:
    results = put_all(tmp_path, "rtn")
    assert results.shown == [] and results.constants["ptq"] == "rtn" and results.constants["rotation"] == "none"


def test_an_old_record_was_rounded_to_nearest(tmp_path: Path) -> None:
    results = put_all(tmp_path, "old", "gptq", kv_quant="fp4_e2m1", kv=TOKEN)
    assert [row.knobs["ptq"] for row in results.rows] == ["rtn", "gptq"]
    assert results.shown == ["ptq"] and pairs(results) == {"ptq": [("old", "gptq")]}


def test_an_old_record_s_keys_and_values_were_plain(tmp_path: Path) -> None:
    put(tmp_path / "old", outcomes([-1.0, -2.0]), kv_quant="fp4_e2m1")
    put(tmp_path / "new", outcomes([-1.0, -2.1]), kv_quant="fp4_e2m1", kv=TOKEN)
    put(tmp_path / "channel", outcomes([-1.0, -2.2]), kv_quant="fp4_e2m1", kv=TOKEN | {"key_axis": "channel"})
    results = read_results(tmp_path)
    assert results.shown == ["kv_quant.key_axis"]
    assert len({row.knobs["kv_quant.key_axis"] for row in results.rows}) == 2


def test_a_knob_that_only_one_of_two_has_is_no_difference(tmp_path: Path) -> None:
    """Damping and calibration mean nothing where weights are rounded, matmuls nothing without a rotation."""
    put_all(tmp_path, "rtn", "clip", "gptq", "search")
    put(tmp_path / "damped", outcomes([-3.0] * 29), **_with(REMEDIES["gptq"], damping=0.1))
    put(tmp_path / "more", outcomes([-4.0] * 29), **(REMEDIES["gptq"] | {"calibration": {"samples": 512}}))
    results = read_results(tmp_path)
    assert {"ptq", "rotation", "ptq.damping", "calibration.samples"} <= set(results.shown)
    found = pairs(results)
    assert found["ptq"][0] == ("rtn", "clip")
    assert {("clip", "gptq"), ("clip", "damped")} <= set(found["ptq"])
    assert len(found["ptq"]) == len(set(found["ptq"]))
    assert found["rotation"] == [("gptq", "search")]
    assert found["ptq.damping"] == [("gptq", "damped")]
    assert found["calibration.samples"] == [("gptq", "more")]


def test_what_quantizing_keys_and_values_does_whatever_their_options(tmp_path: Path) -> None:
    put(tmp_path / "no", outcomes([-1.0, -2.0]), kv=CHANNEL)  # which says nothing: they are not quantized
    put(tmp_path / "plain", outcomes([-1.0, -2.1]), kv_quant="fp4_e2m1", kv=TOKEN)
    put(tmp_path / "channel", outcomes([-1.0, -2.2]), kv_quant="fp4_e2m1", kv=TOKEN | {"key_axis": "channel"})
    found = pairs(read_results(tmp_path))
    assert sorted(found["kv_quant"]) == [("no", "channel"), ("no", "plain")]
    assert found["kv_quant.key_axis"] == [("channel", "plain")]


def test_rounding_weights_means_nothing_where_none_is_quantized(tmp_path: Path) -> None:
    put(tmp_path / "kv", format="none", kv_quant="fp4_e2m1", kv=CHANNEL, **REMEDIES["gptq"])
    (row,) = read_results(tmp_path).rows
    assert not row.is_baseline and not [name for name in row.knobs if name.startswith("ptq")]
    assert row.knobs["kv_quant.first"] == 4


def test_blocks_of_keys_and_values_are_the_run_s(tmp_path: Path) -> None:
    for block in (16, 32):
        put(tmp_path / f"b{block}", kv_quant="fp4_e2m1", kv=TOKEN, block_size=block)
    assert read_results(tmp_path).shown == ["block_size"]
    put(tmp_path / "own", kv_quant="fp4_e2m1", kv=TOKEN | {"block_size": 64}, block_size=32)
    assert read_results(tmp_path).shown == ["block_size", "kv_quant.block_size"]


@pytest.mark.parametrize(
    ("knobs", "text"),
    [
        (REMEDIES["rtn"], "rtn"),
        (REMEDIES["old"], "rtn"),
        (REMEDIES["clip"], "clip"),
        (REMEDIES["search"], "gptq + rotation search"),
        (
            REMEDIES["rtn"] | {"rotation": {"method": "hadamard", "residual": True}},
            "rtn + rotation + residual stream rotated",
        ),
        ({"ptq": {"method": "gptq"}, "rotation": {"method": "wush"}}, "gptq + WUSH"),
        ({"ptq": {"method": "gptq", "budget": 4.5}}, "gptq + budget of 4.5 bits"),
        ({"format": "none", "kv_quant": "int4", "kv": TOKEN}, "plain"),
        (
            {"format": "none", "kv_quant": "int4", "kv": CHANNEL},
            "keys by channel + keys before RoPE + first 4 tokens kept",
        ),
        (
            {"kv_quant": "int4", "kv": TOKEN | {"recent": 32, "smooth": 0.5}},
            "rtn + last 32 tokens kept + keys smoothed by 0.5",
        ),
        ({"kv_quant": "int4", "kv": TOKEN | {"block_size": 64}}, "rtn + kv_quant.block_size=64"),
        ({"kv_quant": "int4", "kv": TOKEN | {"rotation": "hadamard"}}, "rtn + keys rotated"),
        ({"kv_quant": "int4", "kv": TOKEN, "rotation": {"method": "hadamard"}}, "rtn + rotation + keys rotated"),
        ({"kv_quant": "int4", "kv": TOKEN, "rotation": {"method": "hadamard", "matmuls": "q+k"}}, "rtn + rotation"),
        ({"kv_quant": "int4", "kv": TOKEN, "rotation": {"method": "hadamard", "matmuls": "qk"}}, "rtn + rotation"),
        (
            {"kv_quant": "int4", "kv": TOKEN, "rotation": {"method": "wush", "matmuls": "q+k+v+o+gate+up+down+qk"}},
            "rtn + WUSH + keys rotated",
        ),
        ({"ptq": {"method": "new", "budget": "x"}}, "new + ptq.budget=x"),
    ],
)
def test_what_runs_are_called(tmp_path: Path, knobs: dict[str, Any], text: str) -> None:
    put(tmp_path / "run", **knobs)
    (row,) = read_results(tmp_path).rows
    assert remedy_text(row.knobs) == text
    assert bool(applied(row.knobs)) == (text not in ("rtn", "plain"))


STEPS = [
    {"round": 1, "matmul": "q", "loss": 2.2, "kept": False},
    {"round": 1, "matmul": "k", "loss": 2.1, "kept": True},
    {"round": 1, "matmul": "v", "loss": 2.4, "kept": False},
    {"round": 2, "matmul": "q", "loss": 2.05, "kept": True},
    {"round": 2, "matmul": "v", "loss": 2.3, "kept": False},
    {"round": 3, "matmul": "v", "loss": 2.3, "kept": False},
]


def test_what_a_search_found_and_in_which_order() -> None:
    found = {"found": ["q", "k"], "steps": STEPS, "loss_before": 2.3, "loss_after": 2.05, "seconds": 3.21}
    assert remedy_sentences({"remedies": {"rotation": found}}) == [
        "The search took, from a calibration loss of 2.3000 nats a token on, k (2.1000), then q (2.0500); "
        "not v (7 losses, 3.2 s)."
    ]
    (text,) = remedy_sentences({"remedies": {"rotation": found | {"steps": STEPS[-1:], "cached": True}}})
    assert text == (
        "The search changed nothing: none of v lowers the calibration loss of 2.3000 nats a token significantly "
        "(2 losses, kept from before)."
    )
    kept = found | {"cached": True, "seconds": 0.01, "kept_seconds": 12.34}
    (text,) = remedy_sentences({"remedies": {"search": kept}})
    assert text.endswith("(7 losses, kept from before, 12.3 s then).")
    (text,) = remedy_sentences({"remedies": {"search": kept | {"cached": False, "seconds": 1.0}}})
    assert text.endswith("(7 losses, 1.0 s and 12.3 s before).")


def test_what_a_search_of_scale_roundings_found_with_its_interval() -> None:
    changed = {"loss": 2.1, "difference": -0.2, "low": -0.25, "high": -0.15, "p": 1e-9}
    steps = [
        {"round": 1, "change": "q", "kept": False, **changed},
        {"round": 1, "change": "scale_rounding=even", "kept": True, **changed},
    ]
    found = {"found": [], "scale_rounding": "even", "steps": steps, "loss_before": 2.3, "loss_after": 2.1}
    found |= {"looked_at": 5}
    assert remedy_sentences({"remedies": {"search": found}}) == [
        "The search took, from a calibration loss of 2.3000 nats a token on, scale_rounding=even (2.1000, -0.2000 "
        "[-0.2500, -0.1500]); not q (5 losses)."
    ]


def test_what_is_left_of_a_search_with_the_runs_own_weights() -> None:
    found = {"found": ["k"], "steps": STEPS, "loss_before": 2.3, "loss_after": 2.05}
    compared = [
        {"choice": "q, k rotated", "loss": 2.2, "difference": 0.1, "low": -0.01, "high": 0.21, "kept": False},
        {"choice": "k rotated", "loss": 1.9, "difference": -0.2, "low": -0.25, "high": -0.15, "kept": True},
    ]
    found["confirmed"] = {"weights": "gptq", "loss_before": 2.1, "compared": compared}
    (text,) = remedy_sentences({"remedies": {"search": found}})
    assert text.endswith(
        "(7 losses). With gptq's weights, from a loss of 2.1000 on: q, k rotated (2.2000, +0.1000 [-0.0100, +0.2100]), "
        "undone; k rotated (1.9000, -0.2000 [-0.2500, -0.1500]), kept."
    )


def test_what_matrices_of_inputs_take() -> None:
    account = {"inputs": 12, "matrix_elements": 61440, "largest_condition": 57.33, "seconds": 2.0}
    assert remedy_sentences({"remedies": {"wush": account}}) == [
        "WUSH gives the blocks of 12 inputs matrices of their own, 61,440 numbers beside the weights, with condition "
        "numbers up to 57.3, 2.0 s."
    ]
    assert remedy_sentences({"remedies": {"wush": account | {"inputs": None}}}) == []


def test_what_a_budget_was_spent_on() -> None:
    modules = {f"model.layers.{i}.mlp.up_proj": "mxfp4" for i in range(5)} | {"model.layers.0.mlp.down_proj": "mxint8"}
    assert remedy_sentences(
        {"remedies": {"budget": {"bits_per_weight": 4.49, "modules": modules, "seconds": 2.0}}}
    ) == ["The budget (4.49 bits a weight, 2.0 s) gives mxint8 to layers.0.mlp.down_proj, mxfp4 to the other 5."]
    many = {f"a{i}": "int8" for i in range(10)} | {f"b{i}": "int4" for i in range(11)}
    (text,) = remedy_sentences({"remedies": {"budget": {"modules": many}}})
    assert text.startswith("The budget (bits unknown) gives int8 to a0, a1, ") and "a7 and 2 more, int4 to" in text
    (text,) = remedy_sentences({"remedies": {"budget": {"bits_per_weight": 4.25, "modules": {"a": "int4"}}}})
    assert text == "The budget (4.25 bits a weight) gives int4 to all 1."


@pytest.mark.parametrize(
    "account",
    [
        None,
        3,
        {},
        {"rotation": None},
        {"rotation": {"found": []}},
        {"budget": {"modules": []}},
        {"rotation": {"steps": [1]}},
    ],
)
def test_what_is_not_known_is_not_told(account: Any) -> None:
    assert remedy_sentences({"remedies": account}) == []


def _with(knobs: dict[str, Any], **ptq: Any) -> dict[str, Any]:
    return knobs | {"ptq": knobs["ptq"] | ptq}
