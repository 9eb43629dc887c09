"""Hold the scales of a weight's blocks fixed while its elements are chosen.

Rounding to nearest works a block's scale out and rounds the block's elements with it, in one step. What chooses better
scales (clip.py) or better elements (gptq.py) takes the two apart: `BlockScales` says what every element is divided by,
and its `quantize` rounds any values onto the grids that follow from it. `encode` gives the same as codes.

Legend: w (N, C) a weight, blocked along C; K = ceil(C / length) blocks in a row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mxsweep.formats.mxformat import MXFormat
from mxsweep.numerics.blocks import block_regions, blocks_shape
from mxsweep.numerics.encoding import Encoded
from mxsweep.numerics.reference.codes import element_codes, has_negative_zero, scale_codes, scale_values
from mxsweep.numerics.reference.definition import (
    center_blocks,
    elementwise_inputs,
    restore,
    tensor_scale_per_block,
    without_inf,
)
from mxsweep.numerics.reference.rounding import round_exact
from mxsweep.numerics.reference.scales import AppliedScale, applied_scale, stored_scale

ScaleAndMidpoint = tuple[Tensor, Tensor | None]


@dataclass(frozen=True)
class BlockScales:
    """Hold the scale of every block of a weight (N, C); column j of a row belongs to block j // length.

    Attributes:
        stored: (N, K) float32, what the scale format holds. The rows of a tile share a scale, which stands in each of
            them. NaN for a block that has none.
        midpoint: (N, K) float32, what is subtracted first and added back; None for a symmetric format.
        length: columns of a block; the last block may have fewer.
        tensor_scale: (1, 1) float32, the per-tensor scale (NVFP4), g or d as the format's rule has it; None where the
            format has none.
    """

    stored: Tensor
    midpoint: Tensor | None
    length: int
    tensor_scale: Tensor | None = None

    def applied(self, fmt: MXFormat) -> AppliedScale:
        """Return what elements are divided by and read back with, (N, K) each, given the format of these scales."""
        return applied_scale(self.stored, fmt, self.tensor_scale)

    @staticmethod
    def of(w: Tensor, fmt: MXFormat, tensor_amax: Tensor | None = None) -> BlockScales:
        """Return the scales of `quantize(w, fmt, arithmetic="exact", tensor_amax=tensor_amax)`; of 4 over 6, the first.

        Raises:
            ValueError: `w` is not a float32 matrix with elements, or `fmt` rounds stochastically.
        """
        check_weight(w, fmt)
        w = without_inf(w, fmt)

        def choose(views: Sequence[Tensor], block_dims: tuple[int, ...]) -> ScaleAndMidpoint:
            amax, _, midpoint = center_blocks(views[0], block_dims, fmt)
            return stored_scale(amax, fmt, tensor_scale_per_block(block_dims, fmt, views[1:])), midpoint

        return choose_scales(w, fmt, elementwise_inputs(w, fmt, None, None, tensor_amax), choose)

    @staticmethod
    def of_encoded(weight: Encoded) -> BlockScales:
        """Return the scales of a matrix (N, C) in codes, blocked along C."""
        fmt, (height, width) = weight.format, weight.shape
        rows, length = (1, fmt.block_size or width) if isinstance(fmt.block_size, int) else fmt.block_size

        def per_row(per_block: Tensor) -> Tensor:
            return per_block.to(torch.float32).repeat_interleave(rows, dim=0)[:height]

        stored = per_row(scale_values(weight.scales, fmt.scale_format))
        midpoint = None if weight.midpoints is None else per_row(weight.midpoints)
        return BlockScales(stored, midpoint, length, weight.tensor_scale)

    def per_element(self, fmt: MXFormat, width: int) -> tuple[AppliedScale, Tensor | None]:
        """Return what each element of ``width`` columns is divided by and read back with, and its midpoint, (N, C)."""
        scale = self.applied(fmt).each(lambda values: self._per_element(values, width))
        return scale, None if self.midpoint is None else self._per_element(self.midpoint, width)

    def quantize(self, w: Tensor, fmt: MXFormat) -> Tensor:
        """Return values (N, C) float32 on the grids of these scales: q((w - m) / s) * s + m, in exact arithmetic."""
        scale, midpoint = self.per_element(fmt, w.shape[1])
        return round_with_scale(without_inf(w, fmt), fmt, scale, midpoint)

    def encode(self, w: Tensor, fmt: MXFormat) -> Encoded:
        """Return the codes of what `quantize` returns, in float32."""
        element = fmt.element_format
        scale, midpoint = self.per_element(fmt, w.shape[1])
        q = round_on_grid(without_inf(w, fmt), fmt, scale, midpoint)
        rows = 1 if isinstance(fmt.block_size, int) else fmt.block_size[0]
        return Encoded(
            codes=element_codes(q, element),
            scales=scale_codes(self.stored[::rows].contiguous(), fmt.scale_format),
            format=fmt,
            axis=-1,
            dtype=w.dtype,
            tensor_scale=self.tensor_scale,
            midpoints=None if self.midpoint is None else self.midpoint[::rows].to(torch.bfloat16),
            negative_zeros=None if has_negative_zero(element) else (q == 0) & q.signbit(),
        )

    def encode_chosen(self, values: Tensor, fmt: MXFormat) -> Encoded:
        """Return the codes of values (N, C) float32 that lie on the grids of these scales already.

        (v - m) / s is within a rounding error of the element's value, which the nearest one is.
        """
        encoded = self.encode(values, replace(fmt, rounding="nearest"))
        return replace(encoded, format=fmt)

    def _per_element(self, per_block: Tensor, width: int) -> Tensor:
        """Return (N, C) of (N, K)."""
        return per_block.repeat_interleave(self.length, dim=1)[:, :width]


def round_with_scale(w: Tensor, fmt: MXFormat, scale: AppliedScale, midpoint: Tensor | None) -> Tensor:
    """Return q((w - m) / s) * s + m in exact arithmetic; float32, all of one shape or broadcastable to that of w."""
    return restore(round_on_grid(w, fmt, scale, midpoint), scale.read, midpoint)


def round_on_grid(w: Tensor, fmt: MXFormat, scale: AppliedScale, midpoint: Tensor | None) -> Tensor:
    """Return q((w - m) / s), values of the element format; arguments as for :func:`round_with_scale`."""
    centered = w if midpoint is None else w - midpoint
    return round_exact(scale.quotient(centered), fmt.element_format, fmt.rounding)


def choose_scales(
    w: Tensor,
    fmt: MXFormat,
    beside: Sequence[Tensor],
    choose: Callable[[Sequence[Tensor], tuple[int, ...]], ScaleAndMidpoint],
) -> BlockScales:
    """Put together what `choose` gives for each region of `w` that is cut evenly into blocks (see blocks.py).

    Args:
        beside: what else it needs, (N, C) each; of a format with a per-tensor scale, that one last.
        choose: returns (stored scale, midpoint or None) of each block, [..., k, 1, ...], for the regions [..., k, b,
            ...] of w and `beside`, and the dimensions that run inside a block.
    """
    scale = w.new_empty(blocks_shape(w.shape, fmt.block_size, -1))
    midpoint = None if fmt.symmetric else torch.empty_like(scale)
    for region in block_regions(w.shape, fmt.block_size, -1):
        of_region = choose([region.view(tensor) for tensor in (w, *beside)], region.block_dims)
        for whole, part in zip((scale, midpoint), of_region, strict=True):
            if whole is not None and part is not None:
                region.view_per_block(whole).copy_(part)
    rows, length = (1, fmt.block_size or w.shape[1]) if isinstance(fmt.block_size, int) else fmt.block_size

    def per_row(per_block: Tensor) -> Tensor:
        return per_block.repeat_interleave(rows, dim=0)[: len(w)]

    tensor_scale = beside[-1][:1, :1].clone() if fmt.tensor_scale else None
    return BlockScales(per_row(scale), None if midpoint is None else per_row(midpoint), length, tensor_scale)


def check_weight(w: Tensor, fmt: MXFormat) -> None:
    """Raise ValueError for a weight or a format for which scales cannot be held fixed."""
    if w.ndim != 2 or w.dtype != torch.float32 or w.numel() == 0:
        raise ValueError(
            f"w: {w.dtype} of shape {tuple(w.shape)} is not allowed; allowed: a float32 matrix with elements"
        )
    if fmt.rounding == "stochastic":
        raise ValueError(
            "rounding: 'stochastic' does not go with scales that are held fixed, under which each element's value is "
            "chosen; allowed: nearest, even, floor, ties_to_zero"
        )
