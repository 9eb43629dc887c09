"""Write and read NVFP4 weights as NVIDIA's ModelOpt stores them, which vLLM and TensorRT-LLM load.

Read in nvidia-modelopt 0.47. Beside a module's name stand

    weight          u8 (N, C/2)
    weight_scale    e4m3 (N, C/16)
    weight_scale_2  f32 (), by which scales are multiplied
    input_scale     f32 (), likewise of activations, where these are quantized

Its decoder reads a negative zero as 0. It has one scheme for all layers here: NVFP4, or W4A16_NVFP4 where activations
stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mxsweep.export.targets.bits import (
    checked_packing,
    pack_bits,
    read_back,
    refuse_ignored,
    stored_codes,
    stored_shape,
)
from mxsweep.export.targets.global_scale import e4m3_scales, scales_first
from mxsweep.formats.export_targets import packing_of
from mxsweep.formats.mxformat import MXFormat
from mxsweep.formats.recipe import LinearFormats
from mxsweep.numerics import Encoded

NAME = "modelopt"
CONFIG_FILE = "hf_quant_config.json"  # which loaders read beside config.json
_VERSION = "0.47.0"  # of nvidia-modelopt, whose files these are
_BITS, _GROUP = 4, 16


def tensors(name: str, encoded: Encoded, input_scale: float | None = None) -> dict[str, Tensor]:
    """Return what is stored for one weight; see `export/targets/__init__.py`."""
    packing = checked_packing(NAME, name, encoded)
    scales, t = e4m3_scales(name, NAME, encoded, packing.group, scales_first)
    stored = {
        f"{name}.weight": pack_bits(encoded.codes, _BITS),
        f"{name}.weight_scale": scales.view(torch.float8_e4m3fn),
        f"{name}.weight_scale_2": torch.tensor(t, dtype=torch.float32),
    }
    if input_scale is not None:
        stored[f"{name}.input_scale"] = torch.tensor(1 / input_scale, dtype=torch.float32)
    return stored


def decode(name: str, stored: Mapping[str, Tensor], config: Mapping[str, Any], dtype: torch.dtype) -> Encoded:
    """Return one weight; see `export/targets/__init__.py`."""
    refuse_ignored(name, config)
    codes, scales = stored_codes(name, stored, "weight", _BITS, _GROUP)
    t = stored[f"{name}.weight_scale_2"]
    stored_shape(f"{name}.weight_scale_2", t, ())
    fmt = MXFormat("fp4_e2m1", _GROUP, "e4m3", tensor_scale=True, scale_rule="modelopt")
    return read_back(name, codes, fmt, scales.view(torch.uint8), dtype, float(t))


def input_scale(name: str, stored: Mapping[str, Tensor]) -> float | None:
    """Return by what scales of a layer's input are divided; see `export/targets/__init__.py`."""
    factor = stored.get(f"{name}.input_scale")
    return None if factor is None else 1 / float(factor)


def quantization_config(layers: Mapping[str, LinearFormats], kept: Sequence[str] = ()) -> dict[str, Any]:
    """Return what stands so called in config.json; see `export/targets/__init__.py`.

    Inputs of all layers are quantized, or of none.
    """
    algorithm = _algorithm(layers)
    arguments = {"dynamic": False, "num_bits": _BITS, "type": "float", "group_size": _GROUP}
    inputs = {"input_activations": arguments} if algorithm == "NVFP4" else {}
    return {
        "quant_method": NAME,
        "quant_algo": algorithm,
        "config_groups": {"group_0": {**inputs, "weights": arguments, "targets": ["Linear"]}},
        "ignore": list(kept),
        "producer": {"name": NAME, "version": _VERSION},
    }


def extra_files(layers: Mapping[str, LinearFormats], kept: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """Return JSON files that stand beside config.json, by name. Arguments and errors are `quantization_config`'s."""
    return {
        CONFIG_FILE: {
            "producer": {"name": NAME, "version": _VERSION},
            "quantization": {
                "quant_algo": _algorithm(layers),
                "kv_cache_quant_algo": None,
                "group_size": _GROUP,
                "exclude_modules": list(kept),
            },
        }
    }


def _algorithm(layers: Mapping[str, LinearFormats]) -> str:
    with_input = set()
    for formats in layers.values():
        assert formats.weight is not None
        packing_of(NAME, formats.weight)
        with_input.add(formats.activation is not None)
    if len(with_input) != 1:
        raise ValueError(f"{NAME}: inputs are quantized in some layers only; allowed: in all of them, or in none")
    return "NVFP4" if with_input.pop() else "W4A16_NVFP4"
