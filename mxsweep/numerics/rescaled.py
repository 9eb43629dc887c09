"""Quantize blocks under another scale than their format alone would choose, in exact arithmetic.

A **prescale** p shrinks the elements of a block under the scale that the block has without it, so that what is read
back stands for p x:

    y = q(p x / s) * s

With p = 3/4 no element of fp4_e2m1 is beyond the largest value, since a power-of-two scale leaves a maximum below 8,
and stochastic rounding has no bias (Tseng et al., arXiv 2502.20586, algorithm 3). The product of such operands is
divided by p.

**Four over six** gives each block the better of two scales, by the sum of squared errors of its elements: one that puts
the maximum at the largest value, 6 for fp4_e2m1, and one that puts it at two thirds of that, 4, below which the grid is
finer for what is near the maximum (Cook et al., arXiv 2512.02010). Where both are equally good, the first. It is for
scales that are no powers of two. A scale of the tensor then leaves room for the second: it brings the largest block
scale to 256 instead of 448, as 1.5 * 256 = 384 is a value of e4m3.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mxsweep.formats.mxformat import MXFormat
from mxsweep.numerics.blocks import block_regions, pieces
from mxsweep.numerics.dispatch import check_arguments, draws_of
from mxsweep.numerics.reference.definition import (
    center_blocks,
    elementwise_inputs,
    restore,
    tensor_scale_per_block,
)
from mxsweep.numerics.reference.rounding import round_exact
from mxsweep.numerics.reference.scales import divisor, stored_scale

_SECOND = 1.5  # how much larger the second scale is
_LARGEST_FIRST = 256.0  # scale of a block under a scale of the tensor, of the two the smaller


def quantize_rescaled(
    x: Tensor,
    fmt: MXFormat,
    axis: int = -1,
    *,
    prescale: float = 1.0,
    four_over_six: bool = False,
    generator: torch.Generator | int | None = None,
    tensor_dims: Sequence[int] | None = None,
    example_dims: int = 0,
    first_example: int | None = None,
) -> Tensor:
    """Return what `prescale` times x becomes, in x's shape and dtype; there is no gradient.

    Args:
        prescale: a positive number, of which x / s is multiplied by.
        four_over_six: whether each block takes the better of two scales.
        generator: and all others are as for :func:`mxsweep.numerics.quantize`.

    Raises:
        TypeError, ValueError: as `quantize`, and for four_over_six with a power-of-two scale.
    """
    check_arguments(x, fmt, axis, generator, tensor_dims, example_dims, first_example)
    if four_over_six and fmt.scale_format.is_power_of_two:
        raise ValueError(f"four_over_six: True does not go with {fmt}; allowed: a scale that is no power of two")
    x = x.detach()
    y = torch.empty_like(x)
    if x.numel() == 0:
        return y
    beside = elementwise_inputs(x, fmt, draws_of(fmt, generator, example_dims, first_example), tensor_dims)
    if four_over_six and fmt.tensor_scale:
        beside[-1] = beside[-1] * (_LARGEST_FIRST / fmt.scale_format.largest)
    for region in block_regions(x.shape, fmt.block_size, axis):
        views = [region.view(tensor) for tensor in (x, y, *beside)]
        for x_piece, y_piece, *beside_piece in pieces(views, region.block_dims):
            y_piece.copy_(_rescaled(x_piece, region.block_dims, fmt, beside_piece, prescale, four_over_six))
    return y


def _rescaled(
    x: Tensor,
    block_dims: tuple[int, ...],
    fmt: MXFormat,
    beside: Sequence[Tensor],
    prescale: float,
    four_over_six: bool,
) -> Tensor:
    """Return what blocks x [..., k, b, ...] become, float32; `beside` as in `round_blocks`."""
    amax, centered, midpoint = center_blocks(x, block_dims, fmt)
    g = tensor_scale_per_block(block_dims, fmt, beside)
    random = beside[0] if fmt.rounding == "stochastic" else None
    wanted = centered if prescale == 1 else centered * prescale

    def under(amax: Tensor) -> Tensor:
        scale = divisor(stored_scale(amax, fmt, g), g)
        return restore(round_exact(wanted / scale, fmt.element_format, fmt.rounding, random), scale, None)

    y = under(amax)
    if four_over_six:
        other = under(amax * _SECOND)
        errors = [(tried - wanted).square_().sum(block_dims, keepdim=True) for tried in (y, other)]
        y = torch.where(errors[1] < errors[0], other, y)
    if midpoint is None:
        return y
    return y.add_(midpoint if prescale == 1 else midpoint * prescale)
