"""Weights stored for Quark: read back by our reader, by Quark itself, and by plain transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.packed_folder import formats_by_layer, load_folder, tiny_llama, write_folder
from helpers.packed_weights import DTYPES, encoded_weight, mismatches, peer, with_nan_block

from mxsweep.export.targets import quark as target
from mxsweep.formats.recipe import LinearFormats
from mxsweep.numerics import MXFormat, decode

NAME = "model.layers.0.mlp.down_proj"
ELEMENTS = ("fp4_e2m1", "fp6_e2m3", "fp6_e3m2")
FORMATS = [MXFormat(element, size) for element in ELEMENTS for size in (32, 64, 128, 0, (8, 32), (5, 64))]
MXFP4, E2M3, E3M2 = (MXFormat(element) for element in ELEMENTS)


def config_of(fmt: MXFormat) -> dict[str, Any]:
    return target.quantization_config({NAME: LinearFormats(fmt)}, ["lm_head"])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_what_is_stored_is_read_back_bit_for_bit(fmt: MXFormat, dtype: torch.dtype) -> None:
    encoded = encoded_weight(fmt, dtype)
    assert decode(encoded).count_nonzero() > 100
    assert mismatches(target, NAME, encoded, config_of(fmt)) == 0


def test_nan_and_scales_of_activations_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=f"^{NAME}: quark: blocks that are NaN"):
        target.tensors(NAME, with_nan_block(MXFP4))
    with pytest.raises(ValueError, match=f"^{NAME}: quark: a scale of the whole activation"):
        target.tensors(NAME, encoded_weight(MXFP4, torch.float32), input_scale=1.0)
    with pytest.raises(ValueError, match=r"^lm_head: the config excludes it"):
        target.decode("lm_head", {}, config_of(MXFP4), torch.float32)


BY_LAYER = {
    "mxfp4": [LinearFormats(MXFP4)],
    "w4a6": [LinearFormats(MXFP4, E2M3)],
    "mxfp6_e3m2": [LinearFormats(E3M2, E3M2)],
    "mxfp6_e2m3": [LinearFormats(E2M3)],
    "w4a8": [LinearFormats(MXFP4, MXFormat("fp8_e4m3"))],
    "mixed": [LinearFormats(MXFP4), LinearFormats(E2M3), LinearFormats(E3M2)],
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("formats", BY_LAYER.values(), ids=BY_LAYER)
def test_plain_transformers_loads_the_same_model(
    tmp_path: Path, formats: list[LinearFormats], dtype: torch.dtype
) -> None:
    peer("quark.torch")
    model = tiny_llama(dtype)
    layers = formats_by_layer(model, formats)
    write_folder(tmp_path, target, model, layers)
    loaded = load_folder(tmp_path, dtype)
    for name in layers:
        layer = loaded.get_submodule(name)
        assert layer.weight.dtype in (torch.uint8, torch.float8_e4m3fn)
        read = layer.weight_quantizer(layer.weight.data)
        assert torch.equal(read.to(dtype), model.get_parameter(f"{name}.weight").detach()), name
    tokens = torch.arange(12).unsqueeze(0)
    with torch.no_grad():
        equal = torch.equal(loaded(tokens).logits, model(tokens).logits)
    assert equal is all(of_layer.activation is None for of_layer in formats)
