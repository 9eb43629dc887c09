"""Write and read weights as AMD's Quark stores them, which vLLM and transformers (with amd-quark) load.

Read in amd-quark 0.13. Beside a module's name stand

    weight        fp4: u8 (N, C/2); both fp6: u8 (N, 3C/4)
    weight_scale  u8 (N, C/32): exponent + 127

It computes in the model's dtype, in which all of these weights are exact.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mxsweep.export.targets.bits import (
    checked_packing,
    group_scales,
    pack_bits,
    read_back,
    refuse_input_scale,
    stored_codes,
)
from mxsweep.formats.export_targets import packing_of
from mxsweep.formats.mxformat import MXFormat
from mxsweep.formats.recipe import LinearFormats
from mxsweep.numerics import Encoded

NAME = "quark"
_VERSION = "0.13"  # of amd-quark, whose config this is
_DTYPES = {"fp4_e2m1": "fp4"}  # Quark's words for elements, where they are not ours
_ELEMENTS = {word: element for element, word in _DTYPES.items()}


def tensors(name: str, encoded: Encoded, input_scale: float | None = None) -> dict[str, Tensor]:
    """Return what is stored for one weight; see `export/targets/__init__.py`."""
    refuse_input_scale(NAME, name, input_scale)
    packing = checked_packing(NAME, name, encoded)
    return {
        f"{name}.weight": pack_bits(encoded.codes, encoded.format.element_format.bits),
        f"{name}.weight_scale": group_scales(encoded, packing.group),
    }


def decode(name: str, stored: Mapping[str, Tensor], config: Mapping[str, Any], dtype: torch.dtype) -> Encoded:
    """Return one weight; see `export/targets/__init__.py`."""
    if name in config["exclude"]:
        raise ValueError(f"{name}: the config excludes it; allowed: a layer that is quantized")
    of_weight = config["layer_quant_config"].get(name, config["global_quant_config"])["weight"]
    fmt = MXFormat(_ELEMENTS.get(of_weight["dtype"], of_weight["dtype"]), of_weight["group_size"], "e8m0")
    codes, scales = stored_codes(name, stored, "weight", fmt.element_format.bits, of_weight["group_size"])
    return read_back(name, codes, fmt, scales, dtype, 1.0)


def quantization_config(layers: Mapping[str, LinearFormats], kept: Sequence[str] = ()) -> dict[str, Any]:
    """Return what stands so called in config.json; see `export/targets/__init__.py`.

    The formats of most layers are those of all; the other layers are named.
    """
    if not layers:
        raise ValueError(f"{NAME}: no layer is quantized; allowed: one at least")
    common = Counter(layers.values()).most_common(1)[0][0]
    return {
        "quant_method": NAME,
        "quant_mode": "eager_mode",
        "version": _VERSION,
        "global_quant_config": _of_layer(common),
        "layer_quant_config": {name: _of_layer(formats) for name, formats in layers.items() if formats != common},
        "layer_type_quant_config": {},
        "exclude": list(kept),
        "algo_config": None,
        "softmax_quant_spec": None,
        "kv_cache_quant_config": {},
        "kv_cache_post_rope": False,
        "export": {
            "kv_cache_group": [],
            "min_kv_scale": 0.0,
            "pack_method": "reorder",
            "weight_format": "real_quantized",
            "weight_merge_groups": None,
        },
    }


def _of_layer(formats: LinearFormats) -> dict[str, Any]:
    assert formats.weight is not None
    packing_of(NAME, formats.weight)
    activation = formats.activation
    return {
        "weight": _of_tensor(formats.weight.element, dynamic=False),
        "input_tensors": None if activation is None else _of_tensor(activation.element, dynamic=True),
        "output_tensors": None,
        "bias": None,
        "target_device": None,
    }


def _of_tensor(element: str, dynamic: bool) -> dict[str, Any]:
    return {
        "dtype": _DTYPES.get(element, element),
        "is_dynamic": dynamic,
        "qscheme": "per_group",
        "ch_axis": -1,
        "group_size": 32,
        "block_size": None,
        "symmetric": None,
        "round_method": "half_even",
        "scale_type": "float",
        "scale_format": "e8m0",
        "scale_calculation_mode": "even",
        "zero_point_type": "int32",
        "mx_element_dtype": None,
        "observer_cls": "PerBlockMXObserver",
        "is_scale_quant": False,
    }
