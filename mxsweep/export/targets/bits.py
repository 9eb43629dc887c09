"""Pack codes of few bits into bytes, and what every target does alike with the scales of blocks.

Rows of a weight are packed alone. A row is one string of bits, the lowest first: code i of n bits takes the bits n i to
n i + n - 1, and byte j holds the bits 8 j to 8 j + 7, its lowest bit first. So of 4 bits, code 2 j is in the low nibble
of byte j; of 6 bits, four codes take three bytes. All targets but GGUF lay codes out so; the rest of the layout is
theirs.

Legend: W (N, C) a weight, blocks along C; a group is the columns that share a stored scale.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mxsweep.formats.export_targets import POWERS_IN_E4M3, Packing, packing_of, why_not_weight
from mxsweep.formats.mxformat import MXFormat
from mxsweep.formats.scale import parse_scale
from mxsweep.numerics import Encoded

_AT_ONCE = 8  # codes: n bits each are n bytes together
_BIAS = parse_scale("e8m0").bias
_LARGEST_SHIFT = 126  # so that neither 2^shift nor its reciprocal is a subnormal


def pack_bits(codes: Tensor, bits: int) -> Tensor:
    """Return codes (N, C) uint8 of so many bits, 1 to 8, as bytes (N, ceil(C bits / 8)); bits left over are 0."""
    rows, columns = codes.shape
    padded = torch.nn.functional.pad(codes, (0, -columns % _AT_ONCE)).view(rows, -1, _AT_ONCE)
    words = torch.zeros(padded.shape[:2], dtype=torch.int64, device=codes.device)
    for place in range(_AT_ONCE):
        words |= padded[:, :, place].to(torch.int64) << (bits * place)
    packed = words.view(torch.uint8).view(rows, -1, _AT_ONCE)[:, :, :bits].reshape(rows, -1)
    return packed[:, : -(-columns * bits // 8)].contiguous()


def unpack_bits(packed: Tensor, bits: int, columns: int) -> Tensor:
    """Return the codes (N, C) uint8 that `pack_bits` packed.

    Raises:
        ValueError: there are too few bytes for so many columns.
    """
    rows, size = packed.shape
    if size * 8 < columns * bits:
        raise ValueError(f"packed: {size} bytes a row are too few; allowed: {-(-columns * bits // 8)} or more")
    groups = -(-columns // _AT_ONCE)
    filled = torch.nn.functional.pad(packed, (0, max(0, groups * bits - size)))[:, : groups * bits]
    parts = torch.nn.functional.pad(filled.reshape(rows, groups, bits), (0, _AT_ONCE - bits))
    words = parts.contiguous().view(torch.int64).squeeze(-1)
    codes = torch.empty((rows, groups, _AT_ONCE), dtype=torch.uint8, device=packed.device)
    for place in range(_AT_ONCE):
        codes[:, :, place] = (words >> (bits * place)) & (2**bits - 1)
    return codes.view(rows, -1)[:, :columns].contiguous()


def checked_packing(target: str, name: str, encoded: Encoded) -> Packing:
    """Return how a target stores a weight, after a look at its format, its shape and its scales.

    Raises:
        ValueError: it has no place for the weight; the message begins with the weight's name.
    """
    problem = why_not_weight(target, encoded.format, encoded.shape)
    if problem is None and encoded.axis % len(encoded.shape) != len(encoded.shape) - 1:
        problem = f"{target}: blocks along dimension {encoded.axis} have no place; allowed: along the last one"
    if problem is None and (encoded.scales == encoded.format.scale_format.codes - 1).any():
        problem = f"{target}: blocks that are NaN have no place, and this weight has some"
    if problem is not None:
        raise ValueError(f"{name}: {problem}")
    return packing_of(target, encoded.format)


def group_scales(encoded: Encoded, group: int) -> Tensor:
    """Return the codes of scales (N, C / group) uint8: each block's, once for every group that lies in it."""
    rows, columns = encoded.shape
    size = encoded.format.block_size
    tall, wide = (1, size) if isinstance(size, int) else size
    scales = encoded.scales
    if tall > 1:
        scales = scales.repeat_interleave(tall, 0)[:rows]
    if (wide or columns) != group:
        block = torch.arange(0, columns, group, device=scales.device) // (wide or columns)
        scales = scales.index_select(1, block)
    return scales.contiguous()


def groups_of_zeros(encoded: Encoded, group: int) -> Tensor:
    """Return which groups hold zeros alone: bool (N, C / group). Their scales say nothing."""
    element = encoded.format.element_format
    zero = (encoded.codes == 0) if element.is_integer else (encoded.codes & (element.codes // 2 - 1)) == 0
    return zero.view(len(zero), -1, group).all(-1)


def powers_in_e4m3(name: str, encoded: Encoded, group: int) -> tuple[Tensor, int]:
    """Return scales that are powers of two as e4m3 codes (N, C / group) uint8 of these times 2^shift, and that shift.

    It moves the largest to 2^8. The scale of a group of zeros says nothing, and becomes what e4m3 has.

    Raises:
        ValueError: they span more binades than e4m3 has powers of two.
    """
    low, high = _counted_exponents(encoded, group)
    shift = min(POWERS_IN_E4M3[-1] - high, _LARGEST_SHIFT)
    _check_binades(name, low, high, shift)
    return _moved_powers(encoded, group, shift), shift


def under_one_scale(weights: Mapping[str, Encoded], group: int) -> dict[str, Encoded]:
    """Return weights whose scales are powers of two, with e4m3 scales under one and the same scale of the tensor.

    Their values are the same, and so are those of the layer that they are together where a loader has one number for
    all of them.

    Args:
        weights: by name.
        group: how many columns share an e4m3 scale.

    Raises:
        ValueError: together they span more binades than e4m3 has powers of two.
    """
    spans = [_counted_exponents(encoded, group) for encoded in weights.values()]
    low, high = min(low for low, _ in spans), max(high for _, high in spans)
    shift = min(POWERS_IN_E4M3[-1] - high, _LARGEST_SHIFT)
    _check_binades(", ".join(weights), low, high, shift)
    return {
        name: read_back(
            name,
            encoded.codes,
            MXFormat(encoded.format.element, group, "e4m3", tensor_scale=True),
            _moved_powers(encoded, group, shift),
            encoded.dtype,
            2.0**shift,
        )
        for name, encoded in weights.items()
    }


def _counted_exponents(encoded: Encoded, group: int) -> tuple[int, int]:
    """Return the least and the largest exponent of scales, those of groups of zeros aside where there are others."""
    exponents = group_scales(encoded, group).to(torch.int32) - _BIAS
    counted = ~groups_of_zeros(encoded, group)
    low, high = (exponents[counted] if counted.any() else exponents).aminmax()
    return int(low), int(high)


def _check_binades(name: str, low: int, high: int, shift: int) -> None:
    if low + shift < POWERS_IN_E4M3[0]:
        raise ValueError(
            f"{name}: the scales of blocks are 2^{low} to 2^{high}; allowed where they are stored as e4m3: "
            f"{len(POWERS_IN_E4M3) - 1} binades apart at most"
        )


def _moved_powers(encoded: Encoded, group: int, shift: int) -> Tensor:
    """Return scales times 2^shift as e4m3 codes (N, C / group) uint8; those of groups of zeros as near as there are."""
    powers = torch.arange(POWERS_IN_E4M3[0], POWERS_IN_E4M3[-1] + 1, dtype=torch.float32, device=encoded.scales.device)
    codes = torch.exp2(powers).to(torch.float8_e4m3fn).view(torch.uint8)
    places = group_scales(encoded, group).to(torch.int32) - _BIAS + (shift - POWERS_IN_E4M3[0])
    return codes[places.clamp_(0, len(codes) - 1).to(torch.int64)]


def stored_codes(name: str, stored: Mapping[str, Tensor], part: str, bits: int, group: int) -> tuple[Tensor, Tensor]:
    """Return a weight's codes (N, C) uint8, unpacked, and its scales (N, C / group), as they are stored.

    Args:
        stored: tensors by full name, the weight's `part` and `weight_scale` among them.
        part: the name of the packed codes behind the weight's.

    Raises:
        ValueError: shapes that do not go together.
    """
    scales, packed = stored[f"{name}.weight_scale"], stored[f"{name}.{part}"]
    rows, count = stored_shape(f"{name}.weight_scale", scales, (None, None))
    columns = count * group
    stored_shape(f"{name}.{part}", packed, (rows, columns * bits // 8))
    return unpack_bits(packed, bits, columns), scales


def refuse_ignored(name: str, config: Mapping[str, Any]) -> None:
    """Raise ValueError where `quantization_config` lists a layer under "ignore": it was left as it is."""
    if name in config["ignore"]:
        raise ValueError(f"{name}: the config ignores it; allowed: a layer that is quantized")


def refuse_input_scale(target: str, name: str, input_scale: float | None) -> None:
    """Raise ValueError for a scale of the whole activation tensor, which the target stores none of."""
    if input_scale is not None:
        raise ValueError(f"{name}: {target}: a scale of the whole activation tensor has no place")


def read_back(name: str, codes: Tensor, fmt: MXFormat, scales: Tensor, dtype: torch.dtype, over: float) -> Encoded:
    """Return what is stored as `Encoded`: codes (N, C), scales (N, C / group), and the scale of the tensor, where
    the format has one.

    Raises:
        ValueError: shapes that do not go together.
    """
    assert isinstance(fmt.block_size, int)
    expected = (codes.shape[0], -(-codes.shape[1] // fmt.block_size))
    if tuple(scales.shape) != expected:
        raise ValueError(f"{name}: scales of shape {tuple(scales.shape)} are stored; allowed: {expected}")
    scale = torch.full((1, 1), over, dtype=torch.float32, device=codes.device) if fmt.tensor_scale else None
    return Encoded(codes, scales, fmt, -1, dtype, tensor_scale=scale)


def stored_shape(name: str, tensor: Tensor, sizes: Sequence[int | None]) -> tuple[int, ...]:
    """Return a stored tensor's shape.

    Raises:
        ValueError: it is not of these sizes, where they are given.
    """
    shape = tuple(tensor.shape)
    if len(shape) != len(sizes) or any(size not in (None, n) for n, size in zip(shape, sizes, strict=True)):
        raise ValueError(f"{name}: shape {shape} is stored; allowed: {tuple(sizes)}")
    return shape
