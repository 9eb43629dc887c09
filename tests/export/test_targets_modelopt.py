"""NVFP4 weights stored for ModelOpt, which multiplies by the scale of the tensor: read back by our reader and by it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers.packed_weights import encoded_weight, mismatches, peer, weight, with_nan_block

from mxsweep.export.targets import modelopt as target
from mxsweep.export.targets.global_scale import divided, e4m3_scales, scales_first, scales_last
from mxsweep.formats.recipe import LinearFormats
from mxsweep.numerics import Encoded, MXFormat, decode, encode

NAME = "model.layers.0.mlp.down_proj"
NVFP4 = MXFormat("fp4_e2m1", 16, "e4m3", tensor_scale=True)
PLAIN = replace(NVFP4, tensor_scale=False)
FORMATS = [NVFP4, PLAIN, replace(NVFP4, block_size=48), replace(NVFP4, block_size=(2, 16)), MXFormat("fp4_e2m1", 16)]
EVERY_SCALE = torch.arange(1, 127, dtype=torch.uint8)
TIED = 1.3671875  # the significand of a maximum whose values lie on ties of bfloat16


def config_of(fmt: MXFormat) -> dict[str, Any]:
    return target.quantization_config({NAME: LinearFormats(fmt)}, ["lm_head"])


def read_by_the_package(encoded: Encoded) -> torch.Tensor:
    """Return a weight as ModelOpt's own class decodes it, in the weight's dtype; its zeros have no sign."""
    tensor = peer("modelopt.torch.quantization.qtensor").NVFP4QTensor
    stored = target.tensors(NAME, encoded)
    packed = tensor(encoded.shape, encoded.dtype, stored[f"{NAME}.weight"])
    read: torch.Tensor = packed.dequantize(
        scale=stored[f"{NAME}.weight_scale"], double_scale=stored[f"{NAME}.weight_scale_2"], block_sizes={-1: 16}
    )
    return read


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_what_is_stored_is_read_back_bit_for_bit(fmt: MXFormat) -> None:
    encoded = encoded_weight(fmt, torch.bfloat16)
    assert decode(encoded).count_nonzero() > 1000
    assert mismatches(target, NAME, encoded, config_of(fmt)) == 0


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_the_package_reads_the_same_weights(fmt: MXFormat) -> None:
    encoded = encoded_weight(fmt, torch.bfloat16)
    assert torch.equal(read_by_the_package(encoded), decode(encoded))


@pytest.mark.parametrize("fmt", [PLAIN, MXFormat("fp4_e2m1", 16)], ids=str)
def test_in_float32_powers_of_two_are_held(fmt: MXFormat) -> None:
    encoded = encoded_weight(fmt, torch.float32)
    assert mismatches(target, NAME, encoded, config_of(fmt)) == 0
    assert torch.equal(read_by_the_package(encoded), decode(encoded))


def test_in_float32_other_scales_of_the_tensor_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=f"^{NAME}: modelopt has another order.*model.dtype=bfloat16"):
        target.tensors(NAME, encode(weight(torch.float32, 10.0) * 0.77, NVFP4))


@pytest.mark.parametrize("product", [scales_first, scales_last, divided])
@pytest.mark.parametrize("rule", ["mxsweep", "modelopt", "vllm"])
def test_every_maximum_of_a_bfloat16_weight_but_one_has_a_number(rule: str, product: Any) -> None:
    fmt = replace(NVFP4, scale_rule=rule)
    without = []
    for significand in torch.arange(128, 256) / 128:
        over = 2688 / significand if fmt.rule.divides_by_tensor_scale else significand / 2688
        scales = EVERY_SCALE.repeat(2, 1)
        codes = torch.full((2, 16 * 126), 3, dtype=torch.uint8)
        encoded = Encoded(codes, scales, fmt, -1, torch.bfloat16, tensor_scale=over.view(1, 1))
        try:
            e4m3_scales(NAME, "a target", encoded, 16, product)
        except ValueError:
            without.append(float(significand))
    same_order = product is (divided if fmt.rule.divides_by_tensor_scale else scales_first)
    assert len(without) <= (0 if same_order else 1)
    if rule == "mxsweep" and product is scales_first:
        assert without == [TIED]


@pytest.mark.parametrize("rule", ["modelopt", "torchao", "quark"])
def test_rules_that_multiply_are_held_in_any_dtype(rule: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        fmt = replace(NVFP4, scale_rule=rule)
        encoded = encode((weight(torch.float32, 10.0) * 0.77).to(dtype), fmt)
        assert mismatches(target, NAME, encoded, config_of(fmt)) == 0
        assert torch.equal(read_by_the_package(encoded), decode(encoded))


def test_the_maximum_without_a_multiplier_is_refused_only_where_its_ties_occur() -> None:
    x = weight(torch.bfloat16, 10.0)
    x = x.clamp(-8 * TIED, 8 * TIED)
    x[0, 0] = 8 * TIED
    with pytest.raises(ValueError, match=f"^{NAME}: modelopt has another order"):
        target.tensors(NAME, encode(x, NVFP4))
    x = torch.full((2, 16), 8 * TIED, dtype=torch.bfloat16)
    assert mismatches(target, NAME, encode(x, NVFP4), config_of(NVFP4)) == 0


def test_nan_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=f"^{NAME}: modelopt: blocks that are NaN"):
        target.tensors(NAME, with_nan_block(NVFP4))


def test_configs_are_those_that_the_package_writes() -> None:
    layers = {NAME: LinearFormats(NVFP4, PLAIN)}
    files = target.extra_files(layers, ["lm_head"])
    ours = target.quantization_config(layers, ["lm_head"])
    assert ours["quant_algo"] == "NVFP4" and config_of(NVFP4)["quant_algo"] == "W4A16_NVFP4"
    stored = target.tensors(NAME, encoded_weight(PLAIN, torch.bfloat16), input_scale=4.0)
    assert float(stored[f"{NAME}.input_scale"]) == 0.25
    with pytest.raises(ValueError, match="in some layers only"):
        target.quantization_config(layers | {"model.layers.1.mlp.down_proj": LinearFormats(NVFP4)})
    converted = peer("modelopt.torch.export.convert_hf_config").convert_hf_quant_config_format
    assert converted(files[target.CONFIG_FILE]) == ours
