"""What quantizing did to a tensor, in numbers: how many scales were clamped, how many elements saturated.

A run that reports them explains itself: when `scale_bits` 6 and 8 agree to the last digit, it is because no
block's scale was clamped at either.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mxsweep.numerics.backends import check_backend
from mxsweep.numerics.blocks import block_regions, pieces
from mxsweep.numerics.definition import (
    center_blocks,
    elementwise_inputs,
    quantize_torch,
    tensor_scale_per_block,
)
from mxsweep.numerics.dispatch import check_arguments
from mxsweep.numerics.mxformat import MXFormat
from mxsweep.numerics.philox import draw_key
from mxsweep.numerics.scales import exact_exponent, exact_scale, native_exponent, native_scale, wanted_scale


@dataclass(frozen=True)
class BlockStatistics:
    """What quantizing one tensor did.

    Attributes:
        blocks: number of blocks.
        blocks_scale_clamped: blocks whose wanted scale lay outside what `scale_bits`, or the scale format,
            holds. A block that is all zero or holds NaN or Inf wants no scale and is not among them.
        elements: number of elements.
        elements_saturated: elements whose quotient x / s was larger than the largest element value.
        elements_flushed: elements that were not zero and became zero.
        exponent_min: smallest wanted `e8m0` exponent, before clamping; None without one.
        exponent_max: largest wanted `e8m0` exponent, before clamping; None without one.
        sqnr_db: 10 log10(sum x^2 / sum (x - y)^2) in decibels; inf where nothing was lost, NaN where y holds
            NaN.
    """

    blocks: int
    blocks_scale_clamped: int
    elements: int
    elements_saturated: int
    elements_flushed: int
    exponent_min: int | None
    exponent_max: int | None
    sqnr_db: float


def block_statistics(
    x: Tensor,
    fmt: MXFormat,
    axis: int = -1,
    *,
    arithmetic: str = "native",
    generator: torch.Generator | int = 0,
    tensor_dims: Sequence[int] | None = None,
    example_dims: int = 0,
    answer: Tensor | None = None,
) -> BlockStatistics:
    """Statistics of `quantize(x, fmt, axis, ...)`, whose arguments these are.

    Args:
        generator: for stochastic rounding only; it has a default here, since it sways none but `sqnr_db` and
            `elements_flushed`, and those little.
        answer: what `quantize` gave, where it is at hand, so that it is not computed again.

    Raises:
        TypeError, ValueError: as `quantize`.
    """
    check_backend("torch", arithmetic)
    check_arguments(x, fmt, axis, generator, tensor_dims, example_dims)
    x = x.detach()
    y = answer
    if y is None:
        key = draw_key(generator) if fmt.rounding == "stochastic" else None
        y = quantize_torch(x, fmt, axis, arithmetic, key, tensor_dims, example_dims)
    native = arithmetic == "native" and fmt.has_native_arithmetic
    totals = _Totals()
    if x.numel():
        beside = elementwise_inputs(x, fmt, None, tensor_dims, example_dims)
        for region in block_regions(x.shape, fmt.block_size, axis):
            views = [region.view(tensor) for tensor in (x, y, *beside)]
            for x_piece, y_piece, *beside_piece in pieces(views, region.block_dims):
                totals.add_elements(x_piece, y_piece)
                totals.add_blocks(x_piece, region.block_dims, fmt, native, beside_piece)
    return totals.result(x.numel())


@dataclass
class _Totals:
    blocks: int = 0
    clamped: int = 0
    saturated: int = 0
    flushed: int = 0
    signal: float = 0.0
    noise: float = 0.0
    exponents: list[int] = field(default_factory=list)

    def add_elements(self, x: Tensor, y: Tensor) -> None:
        self.flushed += int(((x != 0) & (y == 0)).sum())
        x_double = x.to(torch.float64)
        self.signal += float(x_double.square().sum())
        self.noise += float(x_double.sub_(y).square().sum())

    def add_blocks(
        self, x: Tensor, block_dims: tuple[int, ...], fmt: MXFormat, native: bool, beside: Sequence[Tensor]
    ) -> None:
        if native:
            amax, centered = x.abs().amax(block_dims, keepdim=True), x
            scale, exponent = native_scale(amax, fmt), native_exponent(amax, fmt)
        else:
            amax, centered, _ = center_blocks(x, block_dims, fmt)
            g = tensor_scale_per_block(block_dims, fmt, beside)
            scale = exact_scale(amax, fmt, g)
            exponent = exact_exponent(amax, fmt)
        self.blocks += amax.numel()
        self.saturated += int(((centered / scale).abs() > fmt.element_format.largest).sum())
        wants_scale = (amax > 0) & amax.isfinite()
        if fmt.scale == "e8m0":
            exponent = exponent[wants_scale]
            self.clamped += int((exponent.abs() > fmt.max_scale_exponent).sum())
            if exponent.numel():
                self.exponents += [int(exponent.min()), int(exponent.max())]
        else:
            wanted = wanted_scale(amax, fmt, g)[wants_scale]
            outside = (wanted < fmt.scale_format.smallest_subnormal) | (wanted > fmt.scale_format.largest)
            self.clamped += int(outside.sum())

    def result(self, elements: int) -> BlockStatistics:
        if self.noise == 0:
            sqnr_db = math.inf
        elif self.signal == 0:
            sqnr_db = -math.inf
        else:
            sqnr_db = 10 * math.log10(self.signal / self.noise)
        return BlockStatistics(
            blocks=self.blocks,
            blocks_scale_clamped=self.clamped,
            elements=elements,
            elements_saturated=self.saturated,
            elements_flushed=self.flushed,
            exponent_min=min(self.exponents, default=None),
            exponent_max=max(self.exponents, default=None),
            sqnr_db=sqnr_db,
        )
