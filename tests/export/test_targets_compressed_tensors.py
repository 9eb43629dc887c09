"""Weights stored for compressed-tensors: read back by our reader, by the package itself, and by plain transformers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.packed_folder import formats_by_layer, load_folder, tiny_llama, write_folder
from helpers.packed_weights import COLUMNS, DTYPES, encoded_weight, equal_bits, mismatches, peer, weight, with_nan_block

from mxsweep.export.targets import compressed_tensors as target
from mxsweep.export.targets.bits import pack_bits, under_one_scale, unpack_bits
from mxsweep.formats.recipe import LinearFormats
from mxsweep.numerics import MXFormat, decode, encode

NAME = "model.layers.0.mlp.down_proj"
MX = [
    MXFormat(element, size)
    for element in ("fp4_e2m1", "fp6_e2m3", "fp8_e4m3")
    for size in (32, 64, 128, 0, (8, 32), (5, 64), (24, 192))
]
NVFP4 = MXFormat("fp4_e2m1", 16, "e4m3", tensor_scale=True)
UNDER_E4M3 = [
    NVFP4,
    replace(NVFP4, tensor_scale=False),
    replace(NVFP4, block_size=48),
    replace(NVFP4, block_size=(2, 16)),
    MXFormat("fp4_e2m1", 16),
    replace(NVFP4, scale_rule="compressed_tensors"),
    replace(NVFP4, scale_rule="vllm"),
    replace(NVFP4, four_over_six=True),
]
INTEGERS = [MXFormat(f"{kind}{bits}", size) for kind in ("int", "mint") for bits in range(2, 9) for size in (32, 96)]
FORMATS = [*MX, *UNDER_E4M3, *INTEGERS]


def config_of(fmt: MXFormat) -> dict[str, Any]:
    return target.quantization_config({NAME: LinearFormats(fmt)}, ["lm_head"])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_what_is_stored_is_read_back_bit_for_bit(fmt: MXFormat, dtype: torch.dtype) -> None:
    encoded = encoded_weight(fmt, dtype)
    assert decode(encoded).count_nonzero() > 100
    assert mismatches(target, NAME, encoded, config_of(fmt)) == 0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_the_package_reads_the_same_weights(fmt: MXFormat, dtype: torch.dtype) -> None:
    compressors = peer("compressed_tensors.compressors")
    quantization = peer("compressed_tensors.quantization")
    encoded = encoded_weight(fmt, dtype)
    config = quantization.QuantizationConfig.model_validate(config_of(fmt))
    scheme = config.config_groups["group_0"]
    stored = target.tensors(NAME, encoded)
    local = {name.removeprefix(f"{NAME}."): tensor for name, tensor in stored.items()}
    compressor = compressors.BaseCompressor.get_value_from_registry(scheme.format)
    assert set(local) == set(compressor.compression_param_names(scheme))
    read = compressor.decompress(local, scheme)["weight"]
    expected = decode(encoded)
    if encoded.negative_zeros is not None:
        read, expected = read + 0.0, expected + 0.0
    assert read.dtype == torch.bfloat16  # whatever the model's dtype, it computes in that
    assert equal_bits(read, expected.to(torch.bfloat16))


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("columns", (1, 7, 8, 31, 32, 33, 64))
def test_bits_are_packed_one_after_the_other(bits: int, columns: int) -> None:
    codes = torch.randint(0, 2**bits, (3, columns), generator=torch.Generator().manual_seed(bits)).to(torch.uint8)
    packed = pack_bits(codes, bits)
    number = [sum(int(code) << (bits * place) for place, code in enumerate(row)) for row in codes]
    assert packed.tolist() == [list(value.to_bytes(-(-columns * bits // 8), "little")) for value in number]
    assert torch.equal(unpack_bits(packed, bits, columns), codes)


@pytest.mark.parametrize("fmt", [MX[0], NVFP4, MXFormat("int4")], ids=str)
def test_a_block_that_is_nan_is_refused_by_name(fmt: MXFormat) -> None:
    with pytest.raises(ValueError, match=f"^{NAME}: compressed-tensors: blocks that are NaN"):
        target.tensors(NAME, with_nan_block(fmt))


def test_powers_of_two_too_far_apart_for_e4m3_are_refused_and_seventeen_binades_are_not() -> None:
    x = torch.ones(2, 32)
    x[1, 16:] = 2.0**-17
    fmt = MXFormat("fp4_e2m1", 16)
    assert mismatches(target, NAME, encode(x, fmt), config_of(fmt)) == 0
    x[1, 16:] = 2.0**-18
    with pytest.raises(ValueError, match=f"^{NAME}: the scales of blocks are .* 17 binades"):
        target.tensors(NAME, encode(x, fmt))
    x[1, 16:] = 0.0  # a block of zeros has the least scale there is, which says nothing
    assert mismatches(target, NAME, encode(x, fmt), config_of(fmt)) == 0


def test_powers_of_two_of_several_weights_go_under_one_scale_that_changes_no_value() -> None:
    fmt = MXFormat("fp4_e2m1", 16)
    weights = {"q": encode(weight(torch.float32, 1.0), fmt), "k": encode(weight(torch.float32, 1.0) * 2.0**-6, fmt)}
    moved = under_one_scale(weights, 16)
    assert moved["q"].tensor_scale is not None and torch.equal(moved["q"].tensor_scale, moved["k"].tensor_scale)
    for name, encoded in moved.items():
        assert encoded.format.scale == "e4m3" and torch.equal(decode(encoded), decode(weights[name]))
    apart = weights | {"v": encode(weight(torch.float32, 1.0) * 2.0**-18, fmt)}
    with pytest.raises(ValueError, match=r"^q, k, v: the scales of blocks .* 17 binades apart at most"):
        under_one_scale(apart, 16)


def test_scales_of_rows_have_no_place() -> None:
    encoded = encode(weight(torch.float32, 4.0), NVFP4, tensor_dims=[-1])
    with pytest.raises(ValueError, match="rows have scales of their own"):
        target.tensors(NAME, encoded)


def test_rules_that_multiply_by_the_scale_of_the_tensor_are_held_in_bfloat16() -> None:
    for rule in ("modelopt", "torchao", "quark"):
        fmt = replace(NVFP4, scale_rule=rule)
        assert mismatches(target, NAME, encode(weight(torch.bfloat16, 4.0), fmt), config_of(fmt)) == 0
        with pytest.raises(ValueError, match="another order"):
            target.tensors(NAME, encode(weight(torch.float32, 10.0) * 0.77, fmt))


def test_blocks_along_rows_have_no_place() -> None:
    encoded = encode(torch.randn(64, 64), MX[0], axis=0)
    with pytest.raises(ValueError, match="along dimension 0"):
        target.tensors(NAME, encoded)


def test_a_mixed_recipe_names_the_layers_of_each_format() -> None:
    layers = {
        "model.layers.0.mlp.down_proj": LinearFormats(MX[0], MXFormat("fp4_e2m1")),
        "model.layers.1.mlp.down_proj": LinearFormats(NVFP4),
        "model.layers.2.mlp.down_proj": LinearFormats(MXFormat("int4")),
        "model.layers.3.mlp.down_proj": LinearFormats(MX[0]),
    }
    config = target.quantization_config(layers, ["lm_head"])
    assert config["format"] == "mixed-precision" and len(config["config_groups"]) == 4
    for name, formats in layers.items():
        assert formats.weight is not None
        assert mismatches(target, name, encoded_weight(formats.weight, torch.bfloat16), config) == 0
    with pytest.raises(ValueError, match=r"^model\.layers\.4\.mlp\.down_proj: no config group"):
        target.decode("model.layers.4.mlp.down_proj", {}, config, torch.bfloat16)
    with pytest.raises(ValueError, match=r"^lm_head: no config group"):
        target.decode("lm_head", {}, config_of(MX[0]), torch.bfloat16)


BY_LAYER = {
    "mxfp4": [LinearFormats(MXFormat("fp4_e2m1"))],
    "mxfp4 with inputs": [LinearFormats(MXFormat("fp4_e2m1"), MXFormat("fp4_e2m1"))],
    "mxfp6": [LinearFormats(MXFormat("fp6_e2m3"), MXFormat("fp6_e2m3"))],
    "mxfp6a8": [LinearFormats(MXFormat("fp6_e2m3"), MXFormat("fp8_e4m3"))],
    "mxfp8": [LinearFormats(MXFormat("fp8_e4m3"), MXFormat("fp8_e4m3"))],
    "nvfp4": [LinearFormats(NVFP4)],
    "nvfp4 with inputs": [LinearFormats(NVFP4, replace(NVFP4, tensor_scale=False))],
    "int4": [LinearFormats(MXFormat("int4"))],
    "int3": [LinearFormats(MXFormat("int3"))],
    "mixed": [LinearFormats(fmt) for fmt in (MX[0], NVFP4, MXFormat("fp8_e4m3"), MXFormat("int8"))],
}


@pytest.mark.parametrize("formats", BY_LAYER.values(), ids=BY_LAYER)
def test_plain_transformers_loads_the_same_model(tmp_path: Path, formats: list[LinearFormats]) -> None:
    peer("compressed_tensors")
    model = tiny_llama(torch.bfloat16)
    write_folder(tmp_path, target, model, formats_by_layer(model, formats))
    loaded = load_folder(tmp_path, torch.bfloat16)
    tokens = torch.arange(12).unsqueeze(0)
    with torch.no_grad():
        logits = loaded(tokens).logits  # the first pass decompresses
        expected = model(tokens).logits
    different = [
        name
        for name, parameter in model.named_parameters()
        if not torch.equal(loaded.get_parameter(name).detach(), parameter.detach())
    ]
    assert different == []
    assert torch.isfinite(logits).all()
    if all(of_layer.activation is None for of_layer in formats):
        assert torch.equal(logits, expected)
    else:
        assert not torch.equal(logits, expected)  # its inputs are quantized as well


@pytest.mark.parametrize("block", (16, 64))
def test_a_rotation_of_inputs_is_the_one_that_the_package_applies(block: int) -> None:
    transform = peer("compressed_tensors.transform")
    from mxsweep.numerics.hadamard import hadamard

    layer = torch.nn.Sequential(torch.nn.Linear(COLUMNS, 8, bias=False))
    config = transform.TransformConfig.model_validate(target.transform_config({block: ["0"]}))
    transform.apply_transform_config(layer, config)
    x = torch.randn(5, COLUMNS, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(layer(x), hadamard(x, block) @ layer[0].weight.T, atol=1e-5)
    with pytest.raises(ValueError, match="powers of two"):
        target.transform_config({48: ["0"]})
