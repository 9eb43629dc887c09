"""Weights under e5m3 scales stored for AutoRound: read back by our reader, and by its own layer."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.packed_folder import formats_by_layer, load_folder, tiny_llama, write_folder
from helpers.packed_weights import DTYPES, encoded_weight, equal_bits, mismatches, peer, with_nan_block

from mxsweep.export.targets import auto_round as target
from mxsweep.formats.recipe import LinearFormats
from mxsweep.numerics import MXFormat, decode

NAME = "model.layers.0.mlp.down_proj"
E5M3 = MXFormat("fp4_e2m1", 16, "e5m3")
FORMATS = [MXFormat("fp4_e2m1", size, "e5m3") for size in (16, 32, 64, 0, (8, 16))]
BY_ITS_RULE = MXFormat("fp4_e2m1", 16, "e5m3", scale_rule="auto_round")  # which reads 1 / (1 / s)


def config() -> dict[str, Any]:
    return target.quantization_config({NAME: LinearFormats(E5M3, E5M3)}, ["lm_head"])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_what_is_stored_is_read_back_bit_for_bit(fmt: MXFormat, dtype: torch.dtype) -> None:
    encoded = encoded_weight(fmt, dtype)
    assert decode(encoded).count_nonzero() > 500
    assert mismatches(target, NAME, encoded, config()) == 0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_the_package_reads_the_same_weights(fmt: MXFormat, dtype: torch.dtype) -> None:
    layer = peer("auto_round.experimental.qmodules.nvfp4_e5m3").NVFP4E5M3QuantLinear
    encoded = encoded_weight(fmt, dtype)
    stored = target.tensors(NAME, encoded)
    scheme = SimpleNamespace(group_size=16, act_group_size=16, act_bits=4)
    rows, columns = encoded.shape
    read = layer(
        columns, rows, scheme, stored[f"{NAME}.weight_packed"], stored[f"{NAME}.weight_scale"], dtype=torch.bfloat16
    ).weight
    assert equal_bits(read.to(dtype), decode(encoded))


def test_its_own_rule_is_held_in_bfloat16() -> None:
    assert mismatches(target, NAME, encoded_weight(BY_ITS_RULE, torch.bfloat16), config()) == 0
    with pytest.raises(ValueError, match=f"^{NAME}: auto-round: scale_rule auto_round reads values"):
        target.tensors(NAME, encoded_weight(BY_ITS_RULE, torch.float32))


def test_what_has_no_place_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=f"^{NAME}: auto-round: blocks that are NaN"):
        target.tensors(NAME, with_nan_block(E5M3))
    with pytest.raises(ValueError, match=f"^{NAME}: auto-round: activations beside .* cannot stay as they are"):
        target.quantization_config({NAME: LinearFormats(E5M3)})


def test_transformers_with_the_package_loads_the_same_model(tmp_path: Path) -> None:
    peer("auto_round")
    model = tiny_llama(torch.bfloat16)
    layers = formats_by_layer(model, [LinearFormats(E5M3, E5M3)])
    write_folder(tmp_path, target, model, layers)
    loaded = load_folder(tmp_path, torch.bfloat16)
    for name in layers:
        read = loaded.get_submodule(name).weight.to(torch.bfloat16)
        assert torch.equal(read, model.get_parameter(f"{name}.weight").detach()), name
