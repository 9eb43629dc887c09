"""Write and read weights as the package compressed-tensors stores them, which vLLM and transformers load.

Read in compressed-tensors 0.20.0. Beside a module's name stand

    mxfp4-pack-quantized  weight_packed u8 (N, C/2), weight_scale u8 (N, C/32): exponent + 127
    mxfp6-pack-quantized  weight_packed u8 (N, 3C/4), weight_scale as above
    mxfp8-quantized       weight e4m3 (N, C), weight_scale as above
    nvfp4-pack-quantized  weight_packed u8 (N, C/2), weight_scale e4m3 (N, C/16), weight_global_scale f32 (1,), by which
                          scales are divided; input_global_scale f32 (1,), likewise of activations
    pack-quantized        weight_packed i32 (N, ceil(C n/32)): code + 2^(n-1); weight_scale bf16 (N, C/32), by which the
                          integer is multiplied; weight_shape i64 (2,)

Its own decompressor computes floats in bfloat16, or rounds them to that: a float32 model's NVFP4 weights are stored
exactly, and are rounded where that decompressor reads them. Integers it computes in the dtype of the scales.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mxsweep.export.targets.bits import (
    checked_packing,
    group_scales,
    groups_of_zeros,
    pack_bits,
    read_back,
    stored_codes,
    stored_shape,
    unpack_bits,
)
from mxsweep.export.targets.global_scale import divided, e4m3_scales
from mxsweep.formats.element import parse_element
from mxsweep.formats.export_targets import Packing, packing_of
from mxsweep.formats.mxformat import MXFormat
from mxsweep.formats.recipe import LinearFormats
from mxsweep.numerics import Encoded

NAME = "compressed-tensors"
_INTEGERS = "pack-quantized"
_MIXED = "mixed-precision"
_EXPERTS = ".experts."
_LINEAR = "Linear"  # every linear layer, as a group's target
_EXPONENT_BIAS, _INTEGER_GROUP = 127, 32


def tensors(name: str, encoded: Encoded, input_scale: float | None = None) -> dict[str, Tensor]:
    """Return what is stored for one weight; see `export/targets/__init__.py`."""
    packing = checked_packing(NAME, name, encoded)
    element = encoded.format.element_format
    if packing.name == _INTEGERS:
        return _prefixed(name, _integers(name, encoded, packing))
    stored: dict[str, Tensor] = {}
    if element.bits == 8:
        stored["weight"] = encoded.codes.contiguous().view(torch.float8_e4m3fn)
    else:
        stored["weight_packed"] = pack_bits(encoded.codes, element.bits)
    if packing.tensor_scale:
        scales, g = e4m3_scales(name, NAME, encoded, packing.group, divided)
        stored["weight_scale"] = scales.view(torch.float8_e4m3fn)
        stored["weight_global_scale"] = torch.tensor([g], dtype=torch.float32)
        if input_scale is not None:
            stored["input_global_scale"] = torch.tensor([input_scale], dtype=torch.float32)
    else:
        stored["weight_scale"] = group_scales(encoded, packing.group)
    return _prefixed(name, stored)


def decode(name: str, stored: Mapping[str, Tensor], config: Mapping[str, Any], dtype: torch.dtype) -> Encoded:
    """Return one weight; see `export/targets/__init__.py`."""
    group = _group_of(name, config)
    weights, kind = group["weights"], group["format"]
    size, bits = weights["group_size"], weights["num_bits"]
    scales = stored[f"{name}.weight_scale"]
    rows, count = stored_shape(f"{name}.weight_scale", scales, (None, None))
    columns = count * size
    if kind == _INTEGERS:
        shape = tuple(stored[f"{name}.weight_shape"].tolist())
        if shape != (rows, columns):
            raise ValueError(f"{name}.weight_shape: {shape} is stored; allowed: {(rows, columns)}, as of its scales")
        return _read_integers(name, stored[f"{name}.weight_packed"], scales, bits, dtype)
    if bits == 8:
        codes = stored[f"{name}.weight"].view(torch.uint8)
    else:
        codes, _ = stored_codes(name, stored, "weight_packed", bits, size)
    element = {4: "fp4_e2m1", 6: "fp6_e2m3", 8: "fp8_e4m3"}[bits]
    if weights["strategy"] == "tensor_group":
        g = stored[f"{name}.weight_global_scale"]
        stored_shape(f"{name}.weight_global_scale", g, (1,))
        fmt = MXFormat(element, size, "e4m3", tensor_scale=True)
        return read_back(name, codes, fmt, scales.view(torch.uint8), dtype, float(g))
    return read_back(name, codes, MXFormat(element, size, "e8m0"), scales, dtype, 1.0)


def input_scale(name: str, stored: Mapping[str, Tensor]) -> float | None:
    """Return by what scales of a layer's input are divided; see `export/targets/__init__.py`."""
    number = stored.get(f"{name}.input_global_scale")
    return None if number is None else float(number)


def quantization_config(layers: Mapping[str, LinearFormats], kept: Sequence[str] = ()) -> dict[str, Any]:
    """Return what stands so called in config.json; see `export/targets/__init__.py`.

    Layers of one format are named as all linear layers but `kept`, as vLLM's fused layers and experts are found by;
    where there are several formats, each group names its layers. All experts have one format.
    """
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    schemes: dict[tuple[str, str], dict[str, Any]] = {}
    for name, formats in layers.items():
        assert formats.weight is not None
        scheme = _scheme(formats.weight, formats.activation)
        key = (scheme["format"], repr(scheme))
        groups[key].append(name)
        schemes[key] = scheme
    alone = len(groups) == 1
    # transformers takes the first group for all experts.
    by_experts = sorted(groups, key=lambda key: not any(_EXPERTS in name for name in groups[key]))
    of_experts = [key for key in by_experts if any(_EXPERTS in name for name in groups[key])]
    if len(of_experts) > 1:
        raise ValueError(f"{NAME}: experts have {len(of_experts)} formats; allowed: one for all of them")
    config_groups = {
        f"group_{number}": {"targets": [_LINEAR] if alone else groups[key], **schemes[key]}
        for number, key in enumerate(by_experts)
    }
    kinds = {scheme["format"] for scheme in schemes.values()}
    return {
        "quant_method": NAME,
        "format": kinds.pop() if len(kinds) == 1 else _MIXED,
        "quantization_status": "compressed",
        "config_groups": config_groups,
        "ignore": list(kept),
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }


def transform_config(rotations: Mapping[int, Sequence[str]]) -> dict[str, Any]:
    """Return what stands as `transform_config` within the quantization config, for inputs that are rotated as they run.

    A weight is stored as it was quantized, rotated; what remains is x R for its input, R block-diagonal with
    Sylvester's matrix, which is the one of `mxsweep.numerics.hadamard` for powers of two. vLLM applies it; transformers
    does not read it.

    Args:
        rotations: names of linear layers by the order of the blocks of R.

    Raises:
        ValueError: an order that is no power of two.
    """
    for block in rotations:
        if problem := why_not_rotation(block):
            raise ValueError(problem)
    return {
        "config_groups": {
            f"rotation_{block}": {
                "type": "hadamard",
                "head_dim": block,
                "precision": "torch.float32",
                "apply": [{"targets": list(names), "location": "input", "inverse": False}],
            }
            for block, names in rotations.items()
        }
    }


def why_not_rotation(block: int) -> str | None:
    """Return why inputs cannot be rotated in blocks of that order by the loader; None where they can."""
    if block >= 1 and block & (block - 1) == 0:
        return None
    return f"{NAME}: rotations in blocks of {block} have no place; allowed: powers of two"


def _scheme(weight: MXFormat, activation: MXFormat | None) -> dict[str, Any]:
    """Return a group without its targets."""
    packing = packing_of(NAME, weight)
    arguments = {
        "num_bits": weight.element_format.bits,
        "type": "int" if packing.name == _INTEGERS else "float",
        "symmetric": True,
        "strategy": "tensor_group" if packing.tensor_scale else "group",
        "group_size": packing.group,
        "dynamic": False,
    }
    if packing.name != _INTEGERS:
        arguments["scale_dtype"] = _scale_dtype(packing)
    inputs = None
    if activation is not None:
        bits = activation.element_format.bits
        inputs = arguments | {"num_bits": bits, "dynamic": "local" if packing.tensor_scale else True}
    return {
        "format": packing.name,
        "weights": arguments,
        "input_activations": inputs,
        "output_activations": None,
    }


def _scale_dtype(packing: Packing) -> str:
    return "torch.float8_e4m3fn" if packing.tensor_scale else "torch.uint8"


def _group_of(name: str, config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the group that a loader finds for a linear layer: by its name, else by its class.

    Raises:
        ValueError: there is none.
    """
    groups = config["config_groups"].values()
    if not _names(config["ignore"], name):
        for group in groups:
            if _names(group["targets"], name):
                return dict(group)
        for group in groups:
            if _LINEAR in group["targets"]:
                return dict(group)
    raise ValueError(f"{name}: no config group holds it; allowed: a name that one targets, and that is not ignored")


def _names(targets: Sequence[str], name: str) -> bool:
    return any(
        re.match(target[3:], name) is not None if target.startswith("re:") else target == name for target in targets
    )


def _integers(name: str, encoded: Encoded, packing: Packing) -> dict[str, Tensor]:
    element = encoded.format.element_format
    unsigned = encoded.codes ^ (1 << (element.bits - 1))  # two's complement, moved up by half
    packed = pack_bits(unsigned, element.bits)
    words = torch.nn.functional.pad(packed, (0, -packed.shape[1] % 4)).view(torch.int32)
    exponents = group_scales(encoded, packing.group).to(torch.float64) - _EXPONENT_BIAS
    exponents.masked_fill_(groups_of_zeros(encoded, packing.group), 0.0)
    scales = (torch.exp2(exponents) * element.smallest_subnormal).to(torch.bfloat16)
    if (scales == 0).any():
        raise ValueError(f"{name}: {NAME}: a scale below 2^-133 has no place in bfloat16")
    return {
        "weight_packed": words,
        "weight_scale": scales,
        "weight_shape": torch.tensor(encoded.shape, dtype=torch.int64),
    }


def _read_integers(name: str, packed: Tensor, scales: Tensor, bits: int, dtype: torch.dtype) -> Encoded:
    """Return integers as `int<n>` where that has them all, else as `mint<n>`."""
    rows, columns = scales.shape[0], scales.shape[1] * _INTEGER_GROUP
    stored_shape(f"{name}.weight_packed", packed, (rows, -(-columns * bits // 32)))
    codes = unpack_bits(packed.view(torch.uint8), bits, columns) ^ (1 << (bits - 1))
    exponents = torch.log2(scales.to(torch.float64))
    element = parse_element(f"int{bits}")
    least = exponents.min() - math.log2(element.smallest_subnormal) if exponents.numel() else 0
    if (codes == 1 << (bits - 1)).any() or least < -_EXPONENT_BIAS:
        element = parse_element(f"mint{bits}")
    stored = exponents - math.log2(element.smallest_subnormal) + _EXPONENT_BIAS
    fmt = MXFormat(element.name, _INTEGER_GROUP, "e8m0")
    return read_back(name, codes, fmt, stored.to(torch.uint8), dtype, 1.0)


def _prefixed(name: str, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{name}.{part}": tensor for part, tensor in stored.items()}
