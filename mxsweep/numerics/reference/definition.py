"""Define fake quantization: what a tensor becomes in a microscaling format, in plain torch.

For each block of x, with the element format's rounding function q(.):

    amax = max |x|          the block's largest magnitude
    s = scale(amax)         see scales.py
    y = q(x / s) * s        see rounding.py

The result lies on the format's grid but has x's shape and dtype, so that a model runs on it as on any other
tensor. `encode` (numerics/encoding.py) gives q and s as codes instead.

Two arithmetics answer for this. `exact` computes in float32 throughout: the IEEE quotient x / s, its exact
rounding, the IEEE product, one rounding to x's dtype at the end. It is the definition that a CUDA kernel
reproduces bit for bit. `native` computes what the PyTorch path of Microsoft's microxcaling library computes,
in x's own dtype, quirks included: bit for bit the same on a CPU. It is defined for what that library offers
(`MXFormat.has_native_arithmetic`); other formats are exact in both.

Options beyond the library's:

* Not symmetric: m = bfloat16((min + max) / 2) of the block is subtracted first and added last,
  y = q((x - m) / s) * s + m with amax = max |x - m|, each operation rounded to float32. The halves of min
  and max are added, so that the sum cannot overflow, and m is held to bfloat16's largest value.
* A per-tensor scale (NVFP4): the block scale is relative to one float32 scale per `tensor_dims`; see
  scales.py.
* Another's rule for scales that are no powers of two, by which x / s may be a product with a reciprocal, and what y
  is read back with another number than that; formats/scale_rules.py.
* Four over six: each block has the better of two scales, by the sum of squared errors of its elements: one that puts
  the maximum at the largest value, 6 for fp4_e2m1, and one that puts it at two thirds of that, 4, below which the grid
  is finer for what is near the maximum (Cook et al., arXiv 2512.02010). Where both are equally good, the first. A
  per-tensor scale leaves room for the second: it brings the largest block scale of e4m3 to 256 instead of 448, as
  1.5 * 256 = 384 is a value of e4m3. Errors are relative to the power of two of the block's maximum, in fixed point,
  so that their sum does not depend on the order of its terms and devices agree on the better scale.
* Stochastic rounding: |x / s| is rounded up to the next grid value iff u < f, f being its exact distance from
  the value below in units of the spacing there, u the random number of the element; see philox.py.

NaN and Inf: a block that holds one has no scale and becomes NaN throughout; under a per-tensor scale
everything below that scale does. With `inf="saturate"` an Inf is the largest finite value of x's dtype before
all else. A block whose wanted e8m0 exponent lies above what `scale_bits` holds becomes NaN too. A result beyond
the largest value of x's dtype, which a maximum close to that value and a scale rounded up can produce, becomes
Inf. In native arithmetic an all-zero float16 block becomes NaN, as do float16 blocks whose scale float16 does
not hold (scales.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mxsweep.formats.mxformat import INF_SATURATES, MXFormat
from mxsweep.numerics.blocks import block_regions
from mxsweep.numerics.philox import Draws, random_numbers
from mxsweep.numerics.piece_threads import on_pieces
from mxsweep.numerics.reference.rounding import round_exact, round_native
from mxsweep.numerics.reference.scales import (
    applied_scale,
    exponent_of,
    native_scale,
    power_of_two,
    stored_scale,
    tensor_scale_of,
)

SECOND = 1.5  # how much larger the second scale of four over six is
_ERROR_BITS, _MOST_ERROR = 40, 4.0  # of a squared error relative to the maximum's: bits behind the point, and the most
_BFLOAT16_LARGEST = torch.finfo(torch.bfloat16).max


def quantize_torch(
    x: Tensor,
    fmt: MXFormat,
    axis: int,
    arithmetic: str,
    draws: Draws | None,
    tensor_dims: Sequence[int] | None,
    tensor_amax: Tensor | None = None,
) -> Tensor:
    """Quantize without checks and gradient; `draws` is for stochastic rounding."""
    y = torch.empty_like(x)
    if x.numel() == 0:
        return y
    x = without_inf(x, fmt)
    beside = elementwise_inputs(x, fmt, draws, tensor_dims, tensor_amax)
    for region in block_regions(x.shape, fmt.block_size, axis):
        views = [region.view(tensor) for tensor in (x, y, *beside)]
        if fmt.is_native(arithmetic):
            _quantize_native(views[0], views[1], region.block_dims, fmt)
        else:
            quantize_exact(views, region.block_dims, fmt)
    return y


def without_inf(x: Tensor, fmt: MXFormat) -> Tensor:
    """Return x with the largest finite value of its dtype for Inf, where the format wants that; else x itself."""
    if fmt.inf != INF_SATURATES:
        return x
    largest = torch.finfo(x.dtype).max
    return x.clamp(-largest, largest)


def elementwise_inputs(
    x: Tensor,
    fmt: MXFormat,
    draws: Draws | None,
    tensor_dims: Sequence[int] | None,
    tensor_amax: Tensor | None = None,
) -> list[Tensor]:
    """Return what an element needs beside x, expanded to x's shape: its random number, then its per-tensor scale g."""
    inputs = []
    if draws is not None:
        inputs.append(random_numbers(x, draws))
    if fmt.tensor_scale:
        inputs.append(tensor_scale_over(x, fmt, tensor_dims, tensor_amax).expand(x.shape))
    return inputs


def tensor_scale_over(
    x: Tensor, fmt: MXFormat, tensor_dims: Sequence[int] | None, tensor_amax: Tensor | None = None
) -> Tensor:
    """Return the per-tensor scale g, float32, of x's shape but 1 long in `tensor_dims` (None: in all).

    Args:
        tensor_amax: takes the place of x's largest magnitudes; float32, broadcastable to that shape.
    """
    shape = reduced_shape(x.shape, tensor_dims)
    if tensor_amax is not None:
        if fmt.inf == INF_SATURATES:
            tensor_amax = tensor_amax.clamp(max=torch.finfo(x.dtype).max)
        return tensor_scale_of(tensor_amax.expand(shape), fmt, x.dtype)
    if x.numel() == 0:
        return torch.ones(shape, dtype=torch.float32, device=x.device)  # nothing has no maximum
    dims = tuple(range(x.ndim)) if tensor_dims is None else tuple(tensor_dims)
    return tensor_scale_of(x.abs().amax(dims, keepdim=True).to(torch.float32), fmt, x.dtype)


def reduced_shape(shape: Sequence[int], tensor_dims: Sequence[int] | None) -> list[int]:
    """Return the shape of a tensor that has a scale of its own for everything in `tensor_dims` (None: one in all)."""
    dims = range(len(shape)) if tensor_dims is None else {dim % len(shape) for dim in tensor_dims}
    return [1 if dim in dims else length for dim, length in enumerate(shape)]


def neighbours_under_one(shape: Sequence[int], tensor_dims: Sequence[int] | None) -> int | None:
    """Return how many neighbours of a contiguous tensor share a per-tensor scale; None where others are between."""
    dims = sorted({dim % len(shape) for dim in (range(len(shape)) if tensor_dims is None else tensor_dims)})
    first = len(shape) - len(dims)
    return math.prod(shape[first:]) if dims == list(range(first, len(shape))) else None


def _quantize_native(x: Tensor, y: Tensor, block_dims: tuple[int, ...], fmt: MXFormat) -> None:
    """Write to y [..., k, b, ...] what x [..., k, b, ...] becomes in native arithmetic."""
    scale = native_scales(x, block_dims, fmt)

    def work(x: Tensor, y: Tensor, scale: Tensor) -> None:
        torch.mul(round_native(x / scale, fmt.element_format, fmt.rounding), scale, out=y)

    on_pieces(work, (x, y, scale), block_dims)


def native_scales(x: Tensor, block_dims: tuple[int, ...], fmt: MXFormat) -> Tensor:
    """Return what native arithmetic divides the blocks of x [..., k, b, ...] by: [..., k, 1, ...], in x's dtype."""
    amax = x.new_empty([1 if dim in block_dims else length for dim, length in enumerate(x.shape)])

    def work(x: Tensor, amax: Tensor) -> None:
        torch.amax(x.abs(), block_dims, keepdim=True, out=amax)

    on_pieces(work, (x, amax), block_dims)
    # At once for all blocks: each logarithm on a CPU wakes the threads of torch's mathematical library.
    return native_scale(amax, fmt)


def quantize_exact(views: Sequence[Tensor], block_dims: tuple[int, ...], fmt: MXFormat, prescale: float = 1.0) -> None:
    """Write to y [..., k, b, ...] what x [..., k, b, ...] becomes in exact arithmetic.

    Args:
        views: x, y and `elementwise_inputs`, all in that shape.
        prescale: as for `round_blocks`.
    """

    def work(x: Tensor, y: Tensor, *beside: Tensor) -> None:
        blocks = round_blocks(x, block_dims, fmt, beside, prescale)
        y.copy_(restore(blocks.q, blocks.scale, blocks.midpoint))

    on_pieces(work, views, block_dims)


class RoundedBlocks(NamedTuple):
    """Hold blocks in exact arithmetic, all float32: values of the format's grids, not yet codes.

    Attributes:
        q: [..., k, b, ...], values of the element format, or NaN where the block has no scale.
        stored: [..., k, 1, ...], what the scale format holds.
        scale: [..., k, 1, ...], what elements are read back with; `stored` but for a per-tensor scale.
        midpoint: [..., k, 1, ...], values of bfloat16; None for a symmetric format.
    """

    q: Tensor
    stored: Tensor
    scale: Tensor
    midpoint: Tensor | None


def round_blocks(
    x: Tensor, block_dims: tuple[int, ...], fmt: MXFormat, beside: Sequence[Tensor], prescale: float = 1.0
) -> RoundedBlocks:
    """Round x [..., k, b, ...] in exact arithmetic.

    Args:
        beside: `elementwise_inputs` in the same shape.
        prescale: what elements are multiplied by under the scales that they have without it, their midpoint, too.
    """
    amax, centered, midpoint = center_blocks(x, block_dims, fmt)
    if prescale != 1:
        centered, midpoint = centered * prescale, None if midpoint is None else midpoint * prescale
    g = tensor_scale_per_block(block_dims, fmt, beside)
    random = beside[0] if fmt.rounding == "stochastic" else None

    def under(amax: Tensor) -> RoundedBlocks:
        stored = stored_scale(amax, fmt, g, x.dtype)
        scale = applied_scale(stored, fmt, g)
        q = round_exact(scale.quotient(centered), fmt.element_format, fmt.rounding, random)
        return RoundedBlocks(q, stored, scale.read, midpoint)

    if not fmt.four_over_six:
        return under(amax)
    return _better(under(amax), under(amax * SECOND), centered, amax, block_dims)


def _better(
    first: RoundedBlocks, second: RoundedBlocks, x: Tensor, amax: Tensor, block_dims: tuple[int, ...]
) -> RoundedBlocks:
    """Return for each block the one with the smaller sum of squared errors, of equal ones the first.

    Args:
        x: what was rounded, [..., k, b, ...] float32.
        amax: the blocks' largest magnitudes, [..., k, 1, ...] float32.
    """
    inverse = power_of_two(-exponent_of(amax))

    def error(of: RoundedBlocks) -> Tensor:
        """Return the sums, whole numbers of 2^-_ERROR_BITS: adding these is exact in any order."""
        squared = (of.q * of.scale).sub_(x).mul_(inverse).square_()
        squared = torch.fmin(squared, squared.new_tensor(_MOST_ERROR)).mul_(2.0**_ERROR_BITS)  # which NaN counts as
        return squared.to(torch.int64).sum(block_dims, keepdim=True)

    is_second = error(second) < error(first)
    q, stored, scale = (torch.where(is_second, new, old) for new, old in zip(second[:3], first[:3], strict=True))
    return RoundedBlocks(q, stored, scale, first.midpoint)


def round_blocks_native(x: Tensor, scale: Tensor, fmt: MXFormat) -> RoundedBlocks:
    """Round x [..., k, b, ...] in native arithmetic, given its `native_scales`.

    The scale of a block is NaN where all of it becomes NaN: also where x's dtype does not hold it, which makes 0 or Inf
    of it, and NaN of every product.
    """
    q = round_native(x / scale, fmt.element_format, fmt.rounding).to(torch.float32)
    stored = scale.to(torch.float32)
    stored = stored.masked_fill((stored == 0) | stored.isinf(), torch.nan)
    return RoundedBlocks(q.masked_fill_(stored.isnan(), torch.nan), stored, stored, None)


def restore(q: Tensor, scale: Tensor, midpoint: Tensor | None) -> Tensor:
    """Return q * s + m, each operation rounded to float32, in q's memory: what blocks are read back as."""
    q.mul_(scale)
    return q if midpoint is None else q.add_(midpoint)


def center_blocks(x: Tensor, block_dims: tuple[int, ...], fmt: MXFormat) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return (largest magnitude, x less its midpoint, midpoint or None) of blocks x [..., k, b, ...], all float32."""
    x = x.to(torch.float32)
    if fmt.symmetric:
        return x.abs().amax(block_dims, keepdim=True), x, None
    low, high = x.amin(block_dims, keepdim=True), x.amax(block_dims, keepdim=True)
    middle = (low * 0.5 + high * 0.5).clamp_(-_BFLOAT16_LARGEST, _BFLOAT16_LARGEST)
    midpoint = middle.to(torch.bfloat16).to(torch.float32)
    # Subtraction rounds monotonically, so that the extremes of x are the extremes of the difference.
    return torch.maximum(high - midpoint, midpoint - low), x - midpoint, midpoint


def tensor_scale_per_block(block_dims: tuple[int, ...], fmt: MXFormat, beside: Sequence[Tensor]) -> Tensor | None:
    """Return the per-tensor scale g of each block [..., k, 1, ...]; None where the format has none."""
    if not fmt.tensor_scale:
        return None
    g = beside[-1]
    for dim in block_dims:
        g = g.narrow(dim, 0, 1)
    return g
