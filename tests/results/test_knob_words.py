"""Configs in words: what is quantized alone, remedies that are off, values that came out the same."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from mxsweep.config.overrides import prepare
from mxsweep.config.recorded_config import recorded
from mxsweep.results.knob_words import (
    enumerate_names,
    goes_with_format,
    name_rows,
    usual_text,
    usual_values,
    value_text,
)
from mxsweep.results.kv_names import with_kv_options
from mxsweep.results.record import RunFolder
from mxsweep.results.rows import Row, label, read_rows
from mxsweep.sweeps.plan import plan


def row(**knobs: Any) -> Row:
    return Row(
        RunFolder(Path(), None, None), "story", {name.replace("__", "."): knobs[name] for name in knobs}, {}, False
    )


@pytest.mark.parametrize(
    ("fmt", "kv", "said"),
    [
        ("w4a6", "none", "w4a6, KV unquantized"),
        ("w4a6", "fp4_e2m1", "w4a6, KV fp4_e2m1"),
        ("none", "fp4_e2m1", "keys and values alone in fp4_e2m1"),
        ("none", "k:none,v:fp4_e2m1", "values alone in fp4_e2m1"),
        ("none", "k:int8,v:int4", "keys in int8 and values in int4 alone"),
        ("w:fp4_e2m1,a:none", "none", "weights alone in fp4_e2m1"),
        ("w:none,a:fp6_e2m3", "none", "activations alone in fp6_e2m3"),
        ("w:fp4_e2m1,a:none", "int8", "weights in fp4_e2m1, KV int8"),
        ("w:int8,a:int4", "none", "weights in int8 and activations in int4, KV unquantized"),
        ("w4a6", "k:int8,v:int4", "w4a6, keys in int8 and values in int4"),
        ("none", "none", "format none, KV unquantized"),
    ],
)
def test_what_is_quantized_alone_is_said_to_be(fmt: str, kv: str, said: str) -> None:
    assert name_rows([row(format=fmt, kv_quant=kv)], ["format", "kv_quant"]) == said


def test_nothing_is_alone_beside_modules_with_formats_of_their_own() -> None:
    knobs = {"format": "w:int8,a:none", "kv_quant": "none", "modules": {"lm_head": "int8"}}
    assert name_rows([row(**knobs)], ["format", "kv_quant"]) == "weights in int8, KV unquantized"


def test_remedies_that_are_off_go_unsaid_unless_nothing_else_is_said() -> None:
    names = ["kv_quant", "rotation", "kv_quant.first", "kv_quant.recent", "kv_quant.smooth"]
    off = {"kv_quant": "int4", "rotation": "none", "kv_quant__first": 0, "kv_quant__smooth": 0.0}
    assert name_rows([row(**off, kv_quant__recent=0)], names) == "KV int4"
    assert name_rows([row(**off, kv_quant__recent=32)], names) == "KV int4, last 32 tokens kept"
    assert name_rows([row(**off, kv_quant__recent=0)], ["kv_quant.first"]) == "no first tokens kept"
    assert name_rows([row(ptq="rtn", rotation="hadamard")], ["ptq", "rotation"]) == "rtn, rotation hadamard"


KV_OFF = {"key_axis": "token", "rope": "after", "rotation": "none", "scales": "block", "smooth": 0.0}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"first": 4, "recent": 32, "rotation": "hadamard"}, "mxfp4, KV rescue4"),
        ({"first": 4, "recent": 32}, "mxfp4, KV fp4_e2m1, first 4 tokens kept, last 32 tokens kept"),
        ({"recent": 32, "first": 0, "rotation": "hadamard"}, "mxfp4, KV fp4_e2m1, last 32 tokens kept, keys rotated"),
        ({"first": 0, "recent": 0}, "mxfp4, KV fp4_e2m1"),
    ],
)
def test_a_format_of_keys_and_values_is_not_said_without_what_is_done_beyond_it(
    options: dict[str, Any], said: str
) -> None:
    elements = {"kv_quant": "fp4_e2m1", "kv_quant__key": "fp4_e2m1", "kv_quant__value": "fp4_e2m1"}
    beyond = {f"kv_quant__{leaf}": value for leaf, value in (KV_OFF | options).items()}
    (kept,) = with_kv_options([row(format="mxfp4", **elements, **beyond)])
    assert name_rows([kept], ["format", "kv_quant"]) == said
    assert name_rows([kept], ["format", "kv_quant", *(f"kv_quant.{leaf}" for leaf in options)]) == said
    both = [row(format="mxfp4", kv_quant="none"), kept]
    assert name_rows(both, ["format", "kv_quant"]) == said.replace("KV", "KV unquantized or")
    assert name_rows([kept], ["format"]) == "mxfp4"


def test_usual_values_of_many_knobs_go_unsaid_and_are_named_once() -> None:
    names = ["format", "block_size", "scale_bits", "kv_quant", "ptq", "kv_quant.recent"]
    rows = [
        row(format=fmt, block_size=size, scale_bits=8, kv_quant=kv, ptq="rtn", kv_quant__recent=0)
        for fmt, size, kv in (("w4a6", 32, "none"), ("w4a6", 32, "int8"), ("mxfp4", 16, "none"))
    ]
    usual = usual_values(rows, names)
    assert usual == {"block_size": 32, "scale_bits": 8, "kv_quant.recent": 0}
    assert [name_rows([one], names, usual) for one in rows] == [
        "w4a6, KV unquantized, rtn",
        "w4a6, KV int8, rtn",
        "mxfp4, block size 16, KV unquantized, rtn",
    ]
    assert usual_text(usual) == "block size 32, scale bits 8" and usual_text(usual, rows[2]) == "scale bits 8"
    assert usual_values(rows, names[:4]) == {}
    even = [row(**one.knobs) for one in rows[1:]]
    assert "block_size" not in usual_values(even, names)


def test_a_remedy_that_is_off_is_said_where_most_have_it_on() -> None:
    names = ["format", "block_size", "kv_quant", "ptq", "rotation", "kv_quant.recent"]
    remedies = [("hadamard", 32), ("none", 32), ("hadamard", 0)]
    chosen = [(fmt, size, *remedies[0]) for fmt in ("w4a6", "mxfp4") for size in (16, 32)]
    chosen += [("w4a6", size, *each) for size, each in zip((16, 32), remedies[1:], strict=True)]
    rows = [
        row(format=fmt, block_size=size, kv_quant="int4", ptq="gptq", rotation=rotation, kv_quant__recent=recent)
        for fmt, size, rotation, recent in chosen
    ]
    usual = usual_values(rows, names)
    assert usual_text(usual) == "rotation hadamard, last 32 tokens kept"
    told = [name_rows([one], names, usual) for one in rows]
    assert len(set(told)) == len(rows)
    assert told[:2] == [f"w4a6, block size {size}, KV int4, gptq" for size in (16, 32)]
    assert told[4:] == [f"{told[0]}, rotation none", f"{told[1]}, no last tokens kept"]


def test_the_leaderboards_configs_have_names_of_their_own() -> None:
    grids, sweeps = prepare(["experiment=leaderboard"])
    configs = [one.config for one in plan(grids, sweeps).runs if one.config]
    records = [{"config": recorded(config), "metrics": {"story": {}}} for config in configs]
    read = [one for record in records for one in read_rows(RunFolder(Path(), "done", record)) if not one.is_baseline]
    rows = with_kv_options(read)
    assert {label(one.knobs["kv_quant"]) for one in rows} == {"none", "fp4_e2m1", "rescue4"}
    knobs = dict.fromkeys(name for one in rows for name in one.knobs)
    varying = [name for name in knobs if len({label(one.knobs.get(name)) for one in rows}) > 1]
    bound = goes_with_format(varying, rows)
    names = [name for name in varying if name not in bound]
    usual = usual_values(rows, names)
    assert usual["kv_quant.first"] == 4
    told = [name_rows([one], names, usual) for one in rows]
    assert len(told) == len(configs) - 1 and [name for name, count in Counter(told).items() if count > 1] == []


def test_values_that_came_out_the_same_are_all_named() -> None:
    both = [row(scale_bits=bits, kv_quant="none") for bits in (8, 6)]
    assert name_rows(both, ["scale_bits", "kv_quant"]) == "scale bits 6 or 8, KV unquantized"
    assert value_text("rounding", ["keys"]) == "rounding keys"


def test_names_with_commas_are_told_from_one_another() -> None:
    assert enumerate_names(["w4a6"], "and") == "w4a6" and enumerate_names(["w4a6", "mxfp4"]) == "w4a6, mxfp4"
    assert enumerate_names(["a", "b", "c"], "or") == "a, b or c"
    assert enumerate_names(["w4a6", "w4a6, seed 1"]) == "w4a6; w4a6, seed 1"
    assert enumerate_names(["w4a6, seed 1", "mxfp4, seed 2"], "and") == "w4a6, seed 1; and mxfp4, seed 2"
    assert value_text("matmuls.keep_high", ["embeddings", "last", "lm_head,embeddings"]) == (
        "matmuls keep high embeddings; last; or lm_head,embeddings"
    )
