"""Write and read fp4_e2m1 weights in the blocks of GGUF, ggml's file format, which llama.cpp loads.

Read in gguf 0.19. A weight is u8 (N, bytes of a row). A block lies together:

    MXFP4  17 bytes of 32 elements: the scale, exponent + 127, then byte j with the elements j (low) and j + 16
    NVFP4  36 bytes of 64 elements: four scales e4m3, of 16 elements each, then for each of these eight bytes, byte j
           with the elements j (low) and j + 8; where t is not 1 beside the weight NAME.scale f32 (1,), t, by which
           llama.cpp multiplies what the weight gave

Its decoder reads a negative zero as 0. Inputs are quantized by whatever kernel llama.cpp takes, which no file says.
transformers dequantizes the blocks by the package gguf, and leaves out NAME.scale without a word.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mxsweep.export.targets.bits import checked_packing, group_scales, read_back, refuse_input_scale, stored_shape
from mxsweep.export.targets.global_scale import e4m3_scales, read_by_product, scales_last
from mxsweep.formats.export_targets import GGUF, packing_of, why_not
from mxsweep.formats.mxformat import MXFormat
from mxsweep.formats.recipe import LinearFormats
from mxsweep.numerics import Encoded

NAME = GGUF
_MX, _NV = "MXFP4", "NVFP4"
_GROUPS = {_MX: 1, _NV: 4}  # that a block holds
_SIZES = {_MX: 32, _NV: 16}  # elements of a group


def tensors(name: str, encoded: Encoded, input_scale: float | None = None) -> dict[str, Tensor]:
    """Return what is stored for one weight; see `export/targets/__init__.py`.

    Names are transformers', and so is the order of rows.
    """
    refuse_input_scale(NAME, name, input_scale)
    packing = checked_packing(NAME, name, encoded)
    if packing.name == _MX:
        return {f"{name}.weight": _blocks(encoded.codes, group_scales(encoded, packing.group), _MX)}
    scales, t = e4m3_scales(name, NAME, encoded, packing.group, scales_last)
    stored = {f"{name}.weight": _blocks(encoded.codes, scales, _NV)}
    if t != 1:
        stored[f"{name}.scale"] = torch.tensor([t], dtype=torch.float32)
    return stored


def decode(name: str, stored: Mapping[str, Tensor], config: Mapping[str, Any], dtype: torch.dtype) -> Encoded:
    """Return one weight; see `export/targets/__init__.py`."""
    if name not in config["types"]:
        raise ValueError(f"{name}: is stored in no blocks; allowed: {', '.join(config['types'])}")
    kind = config["types"][name]
    blocks = stored[f"{name}.weight"]
    size, groups = _SIZES[kind], _GROUPS[kind]
    rows, _ = stored_shape(f"{name}.weight", blocks, (None, None))
    parts = blocks.view(rows, -1, groups + groups * size // 2)
    scales = parts[:, :, :groups].reshape(rows, -1)
    bytes_ = parts[:, :, groups:].reshape(rows, -1, 1, size // 2)
    codes = torch.cat((bytes_ & 0xF, bytes_ >> 4), dim=2).view(rows, -1)
    if kind == _MX:
        return read_back(name, codes, MXFormat("fp4_e2m1", size, "e8m0"), scales, dtype, 1.0)
    t = stored.get(f"{name}.scale")
    return read_by_product(name, codes, scales, 1.0 if t is None else float(t), dtype, scales_last)


def quantization_config(layers: Mapping[str, LinearFormats], kept: Sequence[str] = ()) -> dict[str, Any]:
    """Return ggml's type of each weight, by name of the layer; see `export/targets/__init__.py`.

    In a file it stands with each tensor. No input has a format.
    """
    types = {}
    for name, formats in layers.items():
        assert formats.weight is not None
        if problem := why_not(NAME, formats.weight, formats.activation):
            raise ValueError(f"{name}: {problem}")
        types[name] = packing_of(NAME, formats.weight).name
    return {"quant_method": NAME, "types": types}


def _blocks(codes: Tensor, scales: Tensor, kind: str) -> Tensor:
    """Return the bytes of rows: codes (N, C), scales (N, C / group), both uint8."""
    rows, size, groups = len(codes), _SIZES[kind], _GROUPS[kind]
    halves = codes.view(rows, -1, 2, size // 2)  # of each group
    packed = (halves[:, :, 0] | halves[:, :, 1] << 4).view(rows, -1, groups * size // 2)
    return torch.cat((scales.view(rows, -1, groups), packed), dim=2).view(rows, -1)
