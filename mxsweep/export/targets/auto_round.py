"""Write and read fp4_e2m1 weights under e5m3 scales as Intel's AutoRound stores them; experimental there.

Read in auto-round 0.16.1. Beside a module's name stand

    weight_packed  u8 (N, C/2)
    weight_scale   u8 (N, C/16), whose bytes are the codes of `e5m3`

Its layers quantize their inputs to the same format, always.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mxsweep.export.targets.bits import (
    checked_packing,
    group_scales,
    pack_bits,
    read_back,
    refuse_ignored,
    refuse_input_scale,
    stored_codes,
)
from mxsweep.export.targets.global_scale import check_plain
from mxsweep.formats.export_targets import why_not
from mxsweep.formats.mxformat import MXFormat
from mxsweep.formats.recipe import LinearFormats
from mxsweep.numerics import Encoded

NAME = "auto-round"
_FORMAT = "nvfp4-e5m3-pack-quantized"
_BITS, _GROUP = 4, 16


def tensors(name: str, encoded: Encoded, input_scale: float | None = None) -> dict[str, Tensor]:
    """Return what is stored for one weight; see `export/targets/__init__.py`."""
    refuse_input_scale(NAME, name, input_scale)
    packing = checked_packing(NAME, name, encoded)
    check_plain(name, NAME, encoded)
    return {
        f"{name}.weight_packed": pack_bits(encoded.codes, _BITS),
        f"{name}.weight_scale": group_scales(encoded, packing.group),
    }


def decode(name: str, stored: Mapping[str, Tensor], config: Mapping[str, Any], dtype: torch.dtype) -> Encoded:
    """Return one weight; see `export/targets/__init__.py`."""
    refuse_ignored(name, config)
    codes, scales = stored_codes(name, stored, "weight_packed", _BITS, _GROUP)
    return read_back(name, codes, MXFormat("fp4_e2m1", _GROUP, "e5m3"), scales, dtype, 1.0)


def quantization_config(layers: Mapping[str, LinearFormats], kept: Sequence[str] = ()) -> dict[str, Any]:
    """Return what stands so called in config.json; see `export/targets/__init__.py`.

    Each layer has a format for its input, too.
    """
    for name, formats in layers.items():
        assert formats.weight is not None
        if problem := why_not(NAME, formats.weight, formats.activation):
            raise ValueError(f"{name}: {problem}")
    return {
        "quant_method": "compressed-tensors",
        "format": _FORMAT,
        "quantization_status": "compressed",
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": _arguments(False),
                "input_activations": _arguments("local"),
                "output_activations": None,
            }
        },
        "ignore": list(kept),
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }


def _arguments(dynamic: bool | str) -> dict[str, Any]:
    return {
        "num_bits": _BITS,
        "type": "float",
        "symmetric": True,
        "strategy": "tensor_group",
        "group_size": _GROUP,
        "dynamic": dynamic,
        "observer": "minmax",
    }
