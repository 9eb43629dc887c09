"""Encoded weights in an artefact: what comes back is what was kept, and what was kept otherwise is not taken for it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.adversarial import assert_same_bits

from mxsweep.calibrate.artefacts import Artefact
from mxsweep.calibrate.encoded_weights import as_tensors, from_tensors
from mxsweep.formats.recipe import LinearFormats, Recipe
from mxsweep.model.load import load_model
from mxsweep.model.sites import find_sites
from mxsweep.numerics import MXFormat, decode, encode


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "fmt",
    [
        MXFormat("fp4_e2m1"),
        MXFormat("fp4_e2m1", 16, "e4m3", tensor_scale=True),
        MXFormat("int4", 20, "fp32", symmetric=False),
        MXFormat("fp12_e4m7", (4, 16), "e5m3"),
    ],
    ids=str,
)
def test_what_is_kept_comes_back(fmt: MXFormat, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    sites = find_sites(load_model("embedded", device="cpu", dtype=dtype).model, Recipe(LinearFormats(fmt)))[:3]
    weights = {site.name: encode(site.weight(), fmt) for site in sites}
    Artefact({"key": 1}).save("part", as_tensors(weights))
    kept = Artefact({"key": 1}).load("part")
    assert kept is not None
    again = from_tensors(kept, sites)
    assert again is not None and again.keys() == weights.keys()
    for name, weight in weights.items():
        assert replace(again[name], **weight.tensors()) == replace(weight)
        assert_same_bits(decode(again[name]), decode(weight))
    assert from_tensors(kept, sites[:2]) is None
    assert from_tensors({name: decode(weight) for name, weight in weights.items()}, sites) is None  # as once kept


def test_where_it_is_kept_says_how(tmp_path: Path) -> None:
    weight = encode(torch.ones(2, 32), MXFormat("fp4_e2m1"))
    assert sorted(as_tensors({"a.b": weight})) == ["a.b/codes", "a.b/scales"]
