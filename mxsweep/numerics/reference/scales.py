"""Choose the scale that a block's elements are divided by, from the maximum of the block.

`e8m0` (OCP MX v1.0, section 6.3, step 1 and 2): the scale is 2^e, where amax is the block's largest
magnitude, emax the exponent of the element format's largest value, and `scale_rounding` says

    floor   e = floor(log2 amax) - emax         the specification's; the largest elements may saturate
    even    as floor, after adding half an element-mantissa ulp to amax's bits: amax is rounded to the
            element's precision first, so that the carry of a maximum that rounds up is not lost
    ceil    e = ceil(log2 amax) - emax          nothing saturates
    rceil   e = ceil(log2(amax / largest))      the smallest scale with which nothing saturates; the quotient
                                                is a float32 division

e is then held to ±(2^(scale_bits-1) - 1): above, the block becomes NaN; below, it gets the bottom.

In exact arithmetic these are integer operations on the float32 bits of amax. In native arithmetic floor(log2
amax) is computed in the tensor's own dtype, as microxcaling's PyTorch path does. That lifts the exponent of a
maximum so close under a power of two that its logarithm rounds to an integer; and float16, which does not
hold the tiny value that stands in for an all-zero block's maximum, turns such a block into NaN.

`e5m3`, `e4m3`, `fp32`: the scale is amax / largest (float32 division), clamped to what the format holds and
rounded to nearest even. With a per-tensor scale (NVFP4) g = 448 * largest / amax_tensor brings the tensor
into the range of its e4m3 scales, s = e4m3(clamp(amax * g / largest)), and elements are divided by t = s / g.

A block that holds NaN or Inf has the scale NaN; with a per-tensor scale one such value does that to
everything under it.

Shapes: amax and the results [..., k, 1, ...], one value per block.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mxsweep.formats.mxformat import MXFormat
from mxsweep.numerics.reference.rounding import EXPONENT_BIAS, MANTISSA_BITS, round_exact

_SMALLEST_NORMAL = 2.0**-126
_NORMAL_BITS = 0x00800000  # of 2^-126
_BOTTOM_BITS = 0x00400000  # of 2^-127, a subnormal
_FLOAT32_LARGEST = torch.finfo(torch.float32).max


def exact_exponent(amax: Tensor, fmt: MXFormat) -> Tensor:
    """Return the exponent that an `e8m0` scale wants, before `scale_bits` limits it.

    Args:
        amax: float32, not negative.

    Returns:
        float32 whole numbers; NaN where amax is NaN or Inf. A maximum below 2^-127, zero included, counts as
        2^-127, which no `scale_bits` tells from anything smaller, as no element's `max_exponent` is negative.
    """
    element = fmt.element_format
    offset = 0 if fmt.scale_rounding == "rceil" else element.max_exponent
    bits = (_quotient(amax, element.largest) if fmt.scale_rounding == "rceil" else amax).view(torch.int32)
    # Subnormals from 2^-127 up, rewritten as if exponent code 0 had an implicit one like the others.
    bits = torch.where(bits < _NORMAL_BITS, (2 * bits - _NORMAL_BITS).clamp_(min=0), bits)
    if fmt.scale_rounding == "even":
        bits = bits + (1 << (MANTISSA_BITS - 1 - element.mantissa_bits))
    elif fmt.scale_rounding in ("ceil", "rceil"):
        bits = bits + ((1 << MANTISSA_BITS) - 1)
    exponent = (bits >> MANTISSA_BITS).to(torch.float32) - (EXPONENT_BIAS + offset)
    return exponent.masked_fill_(~amax.isfinite(), torch.nan)


def native_exponent(amax: Tensor, fmt: MXFormat) -> Tensor:
    """Return the same in native arithmetic: amax and result in the tensor's dtype, Inf and -Inf possible."""
    stand_in = (amax == 0).to(amax.dtype) * _SMALLEST_NORMAL
    return torch.log2(amax + stand_in).floor_() - fmt.element_format.max_exponent


def held_exponent(exponent: Tensor, fmt: MXFormat) -> Tensor:
    """Return the exponent that a scale of `scale_bits` stores: NaN above its range, the bottom below it."""
    limit = fmt.max_scale_exponent
    return torch.where(exponent > limit, torch.nan, exponent.clamp(min=-limit))


def exact_scale(amax: Tensor, fmt: MXFormat, tensor_scale: Tensor | None = None) -> Tensor:
    """Return what exact arithmetic divides a block by: float32, positive or NaN.

    Args:
        amax: float32, not negative.
        tensor_scale: g of the per-tensor scale, float32, broadcastable to amax; where `fmt` has one.
    """
    return divisor(stored_scale(amax, fmt, tensor_scale), tensor_scale)


def stored_scale(amax: Tensor, fmt: MXFormat, tensor_scale: Tensor | None = None) -> Tensor:
    """Return what the scale format holds for a block: float32, positive or NaN. Arguments are as for `exact_scale`."""
    scale = fmt.scale_format
    if scale.is_power_of_two:
        return power_of_two(held_exponent(exact_exponent(amax, fmt), fmt))
    wanted = wanted_scale(amax, fmt, tensor_scale)
    held = wanted.clamp(scale.smallest_subnormal, scale.largest)
    if not scale.is_float32:
        held = round_exact(held, scale, "even")
    return held.masked_fill_(~amax.isfinite(), torch.nan)


def divisor(stored: Tensor, tensor_scale: Tensor | None) -> Tensor:
    """Return what a block's elements are divided by, given what its scale is stored as: t = s / g, or s without g."""
    return stored if tensor_scale is None else stored / tensor_scale


def wanted_scale(amax: Tensor, fmt: MXFormat, tensor_scale: Tensor | None = None) -> Tensor:
    """Return the value that an `e5m3`, `e4m3` or `fp32` scale is rounded from: float32."""
    largest = fmt.element_format.largest
    return _quotient(amax if tensor_scale is None else amax * tensor_scale, largest)


def native_scale(amax: Tensor, fmt: MXFormat) -> Tensor:
    """Return what native arithmetic divides a block by: in amax's dtype, where 0, Inf and NaN are possible."""
    return 2.0 ** held_exponent(native_exponent(amax, fmt), fmt)


def tensor_scale_of(amax: Tensor, fmt: MXFormat) -> Tensor:
    """Return the per-tensor scale g = 448 * largest / amax, 1 where amax is 0; float32, held to the largest value.

    Args:
        amax: float32 maxima of whole tensors (or tokens).
    """
    largest = torch.full_like(amax, fmt.scale_format.largest * fmt.element_format.largest)
    return torch.where(amax == 0, 1.0, (largest / amax).clamp_(max=_FLOAT32_LARGEST))


def _quotient(dividend: Tensor, divisor: float) -> Tensor:
    """Return the IEEE quotient. torch multiplies by a reciprocal where one operand is a number: number / tensor
    everywhere, tensor / number on a GPU.
    """
    return dividend / torch.full_like(dividend, divisor)


def power_of_two(exponent: Tensor) -> Tensor:
    """Return 2^exponent for whole numbers from -127 to 127, NaN for NaN, put together from bits: exact everywhere."""
    biased = exponent.nan_to_num(0.0).to(torch.int32) + EXPONENT_BIAS
    bits = (biased << MANTISSA_BITS).clamp_(min=_BOTTOM_BITS)
    return bits.view(torch.float32).masked_fill_(exponent.isnan(), torch.nan)
