"""Encode a tensor as the codes that a checkpoint or a tensor core holds, and decode them.

`quantize` is `decode(encode(x))` in the same arithmetic, bit for bit, without making the codes in between: both round
with `round_blocks` or `round_blocks_native` (reference/definition.py), and a value on a format's grid survives its code
(reference/codes.py). A scale is a power of two in native arithmetic, so that its product in x's dtype is the float32
product rounded to that dtype, which is how codes are read back. What a code cannot say:

* NaN of an element: it is its block's scale that is NaN, and the element's code is 0.
* The sign of an integer's zero. `quantize` keeps it, two's complement has no place for it, so it stands in
  `Encoded.negative_zeros`. Where that is left out, as in a file, values stay equal and such zeros become positive.
* What is beyond x's dtype: the product of a code and its scale is rounded to `Encoded.dtype`, where it may be Inf.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from mxsweep.formats.backends import check_backend
from mxsweep.formats.mxformat import MXFormat
from mxsweep.numerics.blocks import Region, block_regions, blocks_shape
from mxsweep.numerics.dispatch import check_arguments
from mxsweep.numerics.philox import draws_of, random_numbers
from mxsweep.numerics.piece_threads import on_pieces
from mxsweep.numerics.reference.codes import (
    code_dtype,
    element_codes,
    element_values,
    has_negative_zero,
    scale_codes,
    scale_values,
)
from mxsweep.numerics.reference.definition import (
    native_scales,
    restore,
    round_blocks,
    round_blocks_native,
    tensor_scale_over,
    tensor_scale_per_block,
    without_inf,
)
from mxsweep.numerics.reference.scales import applied_scale


@dataclass(frozen=True)
class Encoded:
    """Hold a tensor in a microscaling format.

    Attributes:
        codes: of the elements, of the tensor's shape: uint8, or uint16 for elements wider than 8 bits. The n bits of an
            element are the lowest ones; `format.element_format.decode` says what they mean.
        scales: of the blocks, one each, along the dimensions that are blocked; uint8, for `fp32` float32. A power of
            two is its exponent plus 127, whatever `scale_bits`; 255 is NaN.
        format: the format.
        axis: the dimension that blocks extend along.
        dtype: of the tensor: float32, bfloat16 or float16.
        tensor_scale: g, by which block scales are divided when they are read (NVFP4), or by some rules d, by which they
            are multiplied (`format.rule.divides_by_tensor_scale`); float32, 1 long in the dimensions that it is taken
            over; None where the format has none.
        midpoints: of the blocks, bfloat16, shaped as `scales`; None for a symmetric format.
        negative_zeros: bool, of the tensor's shape: which zeros have a sign, where codes cannot say so; None where they
            can, or where nobody cares.
    """

    codes: Tensor
    scales: Tensor
    format: MXFormat
    axis: int
    dtype: torch.dtype
    tensor_scale: Tensor | None = None
    midpoints: Tensor | None = None
    negative_zeros: Tensor | None = None

    @property
    def shape(self) -> torch.Size:
        """Return the tensor's shape."""
        return self.codes.shape

    def to(self, device: torch.device | str) -> Encoded:
        """Return the same on a device."""
        moved: dict[str, Any] = {name: tensor.to(device) for name, tensor in self.tensors().items()}
        return replace(self, **moved)

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors that are there, by the names of their fields."""
        named = ((field.name, getattr(self, field.name)) for field in fields(self))
        return {name: value for name, value in named if isinstance(value, Tensor)}

    def split(self, rows: Sequence[int]) -> list[Encoded]:
        """Return the parts of a matrix that has so many rows each; of one whose rows share no scale.

        Raises:
            ValueError: a tile or a per-tensor scale, or rows that are not those of the matrix.
        """
        if self.tensor_scale is not None or not isinstance(self.format.block_size, int):
            raise ValueError(f"format: {self.format} has scales over several rows, which cannot be split")
        cut = {name: tensor.split(list(rows)) for name, tensor in self.tensors().items()}
        return [replace(self, **dict(zip(cut, parts, strict=True))) for parts in zip(*cut.values(), strict=True)]


def encode(
    x: Tensor,
    fmt: MXFormat,
    axis: int = -1,
    *,
    arithmetic: str = "exact",
    generator: torch.Generator | int | None = None,
    tensor_dims: Sequence[int] | None = None,
    example_dims: int = 0,
    first_example: int | None = None,
    tensor_amax: Tensor | None = None,
) -> Encoded:
    """Return `x` in the codes of `fmt`. `x` is not changed, and gets no gradient.

    Arguments and errors are those of `quantize`.

    Raises:
        ValueError: also for native arithmetic in a dtype that does not hold the element format's largest value and the
            power of two above it: elements would become values that have no code.
    """
    check_arguments(x, fmt, axis, generator, tensor_dims, example_dims, first_example, tensor_amax)
    native = _is_native(arithmetic, x, fmt)
    x = without_inf(x.detach(), fmt)
    element = fmt.element_format
    per_block = blocks_shape(x.shape, fmt.block_size, axis)
    encoded = Encoded(
        codes=torch.empty(x.shape, dtype=code_dtype(element), device=x.device),
        scales=torch.empty(per_block, dtype=code_dtype(fmt.scale_format), device=x.device),
        format=fmt,
        axis=axis,
        dtype=x.dtype,
        tensor_scale=tensor_scale_over(x, fmt, tensor_dims, tensor_amax) if fmt.tensor_scale else None,
        midpoints=None if fmt.symmetric else torch.empty(per_block, dtype=torch.bfloat16, device=x.device),
        negative_zeros=None if has_negative_zero(element) else torch.empty(x.shape, dtype=torch.bool, device=x.device),
    )
    if x.numel() == 0:
        return encoded
    beside = []
    if draws := draws_of(fmt, generator, example_dims, first_example):
        beside.append(random_numbers(x, draws))
    if encoded.tensor_scale is not None:
        beside.append(encoded.tensor_scale.expand(x.shape))
    for region in block_regions(x.shape, fmt.block_size, axis):
        views = [region.view(tensor) for tensor in (x, *beside)]
        if native:
            views.append(native_scales(views[0], region.block_dims, fmt))
        work = functools.partial(_encode_piece, len(views), region.block_dims, fmt, native)
        on_pieces(work, [*views, *_targets(encoded, region)], region.block_dims)
    return encoded


def _encode_piece(given: int, block_dims: tuple[int, ...], fmt: MXFormat, native: bool, *parts: Tensor) -> None:
    """Write the codes of a piece: of x and what an element needs beside it (`given` tensors) to those of `_targets`."""
    if native:
        blocks = round_blocks_native(parts[0], parts[1], fmt)
    else:
        blocks = round_blocks(parts[0], block_dims, fmt, parts[1:given])
    codes, scales, *rest = parts[given:]  # as `_targets` has them; taken from the end below
    codes.copy_(element_codes(blocks.q, fmt.element_format))
    scales.copy_(scale_codes(blocks.stored, fmt.scale_format))
    if not has_negative_zero(fmt.element_format):
        torch.logical_and(blocks.q == 0, blocks.q.signbit(), out=rest.pop())
    if blocks.midpoint is not None:
        rest.pop().copy_(blocks.midpoint)


def decode(encoded: Encoded) -> Tensor:
    """Return the tensor that the codes stand for, in its shape and dtype, contiguous."""
    fmt = encoded.format
    y = torch.empty(encoded.shape, dtype=encoded.dtype, device=encoded.codes.device)
    if y.numel() == 0:
        return y
    beside = [] if encoded.tensor_scale is None else [encoded.tensor_scale.expand(y.shape)]
    for region in block_regions(y.shape, fmt.block_size, encoded.axis):
        views = [region.view(tensor) for tensor in (y, *beside)]
        work = functools.partial(_decode_piece, encoded, region.block_dims, len(views))
        on_pieces(work, [*views, *_targets(encoded, region)], region.block_dims)
    return y


def _decode_piece(encoded: Encoded, block_dims: tuple[int, ...], given: int, *parts: Tensor) -> None:
    """Write a piece of the tensor, the first of `parts`, of which codes and the like begin behind the `given` first."""
    codes, scales, *rest = parts[given:]  # likewise
    q = element_values(codes, encoded.format.element_format)
    if encoded.negative_zeros is not None:
        q = torch.where(rest.pop(), -0.0, q)
    g = tensor_scale_per_block(block_dims, encoded.format, parts[1:given])
    scale = applied_scale(scale_values(scales, encoded.format.scale_format), encoded.format, g).read
    midpoint = None if encoded.midpoints is None else rest.pop().to(torch.float32)
    parts[0].copy_(restore(q, scale, midpoint))


def _is_native(arithmetic: str, x: Tensor, fmt: MXFormat) -> bool:
    """Return whether native arithmetic is asked for, and differs from exact; refuse what it has no codes for."""
    check_backend("torch", arithmetic)
    if not fmt.is_native(arithmetic):
        return False
    # A quotient is below 2^(max_exponent + 1); what a dtype does not hold becomes Inf, or is rounded off the grid.
    largest, beyond = fmt.element_format.largest, 2.0 ** (fmt.element_format.max_exponent + 1)
    if torch.tensor([largest, beyond], dtype=torch.float64, device="cpu").to(x.dtype).tolist() != [largest, beyond]:
        raise ValueError(
            f"arithmetic: 'native' rounds {fmt.element} to values of {x.dtype} that it has no codes for; allowed: exact"
        )
    return True


def _targets(encoded: Encoded, region: Region) -> list[Tensor]:
    """Return a region of what is encoded: codes, scales and, where the format has them, midpoints, negative zeros."""
    views = [region.view(encoded.codes), region.view_per_block(encoded.scales)]
    if encoded.midpoints is not None:
        views.append(region.view_per_block(encoded.midpoints))
    if encoded.negative_zeros is not None:
        views.append(region.view(encoded.negative_zeros))
    return views
