"""Choose the scale that a block's elements are divided by, from the maximum of the block.

`e8m0` (OCP MX v1.0, section 6.3, step 1 and 2): the scale is 2^e, where amax is the block's largest
magnitude, emax the exponent of the element format's largest value, and `scale_rounding` says

    floor   e = floor(log2 amax) - emax         the specification's; the largest elements may saturate
    even    as floor, after adding half an element-mantissa ulp to amax's bits: amax is rounded to the
            element's precision first, so that the carry of a maximum that rounds up is not lost; evenN rounds to
            N mantissa bits
    ceil    e = ceil(log2 amax) - emax          nothing saturates
    rceil   e = ceil(log2(amax / largest))      the smallest scale with which nothing saturates; the quotient
                                                is a float32 division

Without `scale_emax` nothing is subtracted.

e is then held to ±(2^(scale_bits-1) - 1): above, the block becomes NaN; below, it gets the bottom.

In exact arithmetic these are integer operations on the float32 bits of amax. In native arithmetic floor(log2
amax) is computed in the tensor's own dtype, as microxcaling's PyTorch path does. That lifts the exponent of a
maximum so close under a power of two that its logarithm rounds to an integer; and float16, which does not
hold the tiny value that stands in for an all-zero block's maximum, turns such a block into NaN.

`e5m3`, `e4m3`, `fp32`: the scale is amax / largest (float32 division), clamped to what the format holds and
rounded to nearest even. With a per-tensor scale (NVFP4) g = 448 * largest / amax_tensor brings the tensor
into the range of its e4m3 scales, s = e4m3(clamp(amax * g / largest)), and elements are divided by t = s / g.
That is mxsweep's own rule; formats/scale_rules.py has the others' formulas, which are computed here.

A block that holds NaN or Inf has the scale NaN; with a per-tensor scale one such value does that to
everything under it.

Shapes: amax and the results [..., k, 1, ...], one value per block.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from mxsweep.formats.mxformat import MXFormat
from mxsweep.formats.scale_rules import DIVISOR_BY_RECIPROCAL, FACTOR
from mxsweep.numerics.reference.rounding import EXPONENT_BIAS, MANTISSA_BITS, round_exact
from mxsweep.numerics.wanted_exponents import note_exponents

_SMALLEST_NORMAL = 2.0**-126
_NORMAL_BITS = 0x00800000  # of 2^-126
_BOTTOM_BITS = 0x00400000  # of 2^-127, a subnormal
_FLOAT32_SMALLEST = 2.0**-149
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
    offset = 0 if fmt.scale_rounding == "rceil" or not fmt.scale_emax else element.max_exponent
    bits = (_quotient(amax, element.largest) if fmt.scale_rounding == "rceil" else amax).view(torch.int32)
    # Subnormals from 2^-127 up, rewritten as if exponent code 0 had an implicit one like the others.
    bits = torch.where(bits < _NORMAL_BITS, (2 * bits - _NORMAL_BITS).clamp_(min=0), bits)
    if fmt.even_bits is not None:
        bits = bits + (1 << (MANTISSA_BITS - 1 - fmt.even_bits))
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


class AppliedScale(NamedTuple):
    """Hold what follows from the stored scale of each block, float32, shaped as that.

    Attributes:
        by: what elements are divided by, or multiplied by where `multiplies`.
        read: what elements are multiplied by when they are read back.
        multiplies: whether the rule takes a reciprocal.
    """

    by: Tensor
    read: Tensor
    multiplies: bool

    def quotient(self, x: Tensor) -> Tensor:
        """Return what elements are rounded from, float32; NaN only where x or the block's scale is."""
        return x * self.by if self.multiplies else x / self.by

    def each(self, change: Callable[[Tensor], Tensor]) -> AppliedScale:
        """Return the same with both numbers changed, as into another shape."""
        read = change(self.read)
        return AppliedScale(read if self.by is self.read else change(self.by), read, self.multiplies)


def applied_scale(stored: Tensor, fmt: MXFormat, tensor_scale: Tensor | None = None) -> AppliedScale:
    """Return what a block's elements are divided by and read back with, given what its scale is stored as.

    Args:
        stored: float32 values of the scale format, or NaN.
        tensor_scale: as `tensor_scale_of` returns it, broadcastable to `stored`; None where `fmt` has none.
    """
    rule = fmt.rule
    read = _READ[rule.read](stored, tensor_scale)
    if rule.quotient == f"x / ({rule.read})" and fmt.least_scale > 0 and rule.divides_by_tensor_scale:
        return AppliedScale(read, read, False)  # which is not 0, as a product with a small d can be
    by = _BY[rule.quotient](stored, tensor_scale)
    if rule.multiplies:  # with 0, an infinite reciprocal would be no number
        by = by.clamp(max=_FLOAT32_LARGEST).masked_fill_(read == 0, 0.0)
    else:
        by = by.masked_fill(by == 0, torch.inf)
    return AppliedScale(by, read, rule.multiplies)


def stored_scale(
    amax: Tensor, fmt: MXFormat, tensor_scale: Tensor | None = None, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Return what the scale format holds for a block: float32, not negative or NaN; 0 only for rules without a floor.

    Args:
        amax: float32, not negative.
        tensor_scale: as `tensor_scale_of` returns it, broadcastable to amax; None where `fmt` has none.
        dtype: of the tensor, in which some rules compute.
    """
    scale = fmt.scale_format
    if scale.is_power_of_two:
        exponent = exact_exponent(amax, fmt)
        note_exponents(amax, exponent, is_exact=True)
        return power_of_two(held_exponent(exponent, fmt))
    wanted = wanted_scale(amax, fmt, tensor_scale, dtype)
    held = wanted.clamp(fmt.least_scale, scale.largest)
    if not scale.is_float32:
        held = round_exact(held, scale, "even")
    if fmt.rule.zero_becomes_epsilon:
        held = held.masked_fill(held == 0, 2.0**-scale.mantissa_bits)
    return held.masked_fill_(~amax.isfinite(), torch.nan)


def wanted_scale(
    amax: Tensor, fmt: MXFormat, tensor_scale: Tensor | None = None, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Return the value that an `e5m3`, `e4m3` or `fp32` scale is rounded from: float32. Arguments as `stored_scale`."""
    largest = torch.full_like(amax, fmt.element_format.largest)
    within = dtype if fmt.rule.in_dtype else torch.float32
    return _WANTED[fmt.rule.wanted](amax, largest, tensor_scale, within)


def _in(dtype: torch.dtype, x: Tensor) -> Tensor:
    """Return x rounded to a dtype, float32."""
    return x.to(dtype).to(torch.float32)


def _times(x: Tensor, tensor_scale: Tensor | None) -> Tensor:
    return x if tensor_scale is None else x * tensor_scale


def _over(x: Tensor, tensor_scale: Tensor | None) -> Tensor:
    return x if tensor_scale is None else x / tensor_scale


def _inverse(x: Tensor) -> Tensor:
    return x.reciprocal()


# The formulas of formats/scale_rules.py, by their text. `t` is g or d, as the rule has it; None without a tensor scale.
_WANTED: dict[str, Callable[[Tensor, Tensor, Tensor | None, torch.dtype], Tensor]] = {
    "(a g) / E": lambda a, largest, t, _: _times(a, t) / largest,
    "(a / E) / d": lambda a, largest, t, _: _over(a / largest, t),
    "a / (E d)": lambda a, largest, t, _: a / _times(largest, t),
    "g (a / E)": lambda a, largest, t, dtype: _times(_in(dtype, a / largest), t),
    "g (a (1 / E))": lambda a, largest, t, _: _times(a * _inverse(largest), t),
}
_BY: dict[str, Callable[[Tensor, Tensor | None], Tensor]] = {
    "x / (s / g)": _over,
    "x / (s d)": _times,
    "x ((1 / d) / s)": lambda s, t: _inverse(s) if t is None else _inverse(t) / s,
    "x (1 / (s (1 / g)))": lambda s, t: _inverse(s if t is None else s * _inverse(t)),
}
_READ: dict[str, Callable[[Tensor, Tensor | None], Tensor]] = {
    "s / g": _over,
    "s d": _times,
    "1 / (1 / (s (1 / g)))": lambda s, t: _inverse(_inverse(s if t is None else s * _inverse(t))),
}


def native_scale(amax: Tensor, fmt: MXFormat) -> Tensor:
    """Return what native arithmetic divides a block by: in amax's dtype, where 0, Inf and NaN are possible."""
    exponent = native_exponent(amax, fmt)
    note_exponents(amax, exponent, is_exact=False)
    return native_power(exponent, fmt)


def native_power(exponent: Tensor, fmt: MXFormat) -> Tensor:
    """Return the scale that native arithmetic makes of what `native_exponent` gives, in the same dtype."""
    return 2.0 ** held_exponent(exponent, fmt)


def tensor_scale_of(amax: Tensor, fmt: MXFormat, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the per-tensor scale as the format's rule has it: g or d of scale_rules.py; float32, positive and finite.

    It is 1 where amax is 0.

    Args:
        amax: float32 maxima of whole tensors (or tokens).
        dtype: of the tensor, in which some rules compute.
    """
    bounds = torch.full_like(amax, fmt.scale_format.largest * fmt.element_format.largest)
    kind = fmt.rule.tensor_scale
    if kind == FACTOR:
        scale = (amax / bounds).clamp_(min=_FLOAT32_SMALLEST)
    elif kind == DIVISOR_BY_RECIPROCAL:
        within = dtype if fmt.rule.in_dtype else torch.float32
        scale = _in(within, bounds * _in(within, _inverse(amax))).clamp_(max=torch.finfo(within).max)
    else:
        scale = (bounds / amax).clamp_(max=_FLOAT32_LARGEST)
    if fmt.four_over_six:
        scale = _with_room_for_a_second(scale, fmt)
    return torch.where(amax == 0, 1.0, scale)


def _with_room_for_a_second(scale: Tensor, fmt: MXFormat) -> Tensor:
    """Return a per-tensor scale under which 1.5 times the largest block scale is one, too.

    The largest block scale is then a power of two: of e4m3, whose largest is 448, 256, and 384 the second.
    """
    largest = fmt.scale_format.largest
    room = 2.0 ** (math.frexp(largest)[1] - 1) / largest
    return scale * room if fmt.rule.divides_by_tensor_scale else _quotient(scale, room)


def _quotient(dividend: Tensor, divisor: float) -> Tensor:
    """Return the IEEE quotient. torch multiplies by a reciprocal where one operand is a number: number / tensor
    everywhere, tensor / number on a GPU.
    """
    return dividend / torch.full_like(dividend, divisor)


def exponent_of(magnitude: Tensor) -> Tensor:
    """Return the exponent of the power of two not above each float32, as whole float32; -126 for subnormals and 0."""
    biased = (magnitude.view(torch.int32) >> MANTISSA_BITS).clamp_(1, 2 * EXPONENT_BIAS)
    return biased.to(torch.float32) - EXPONENT_BIAS


def power_of_two(exponent: Tensor) -> Tensor:
    """Return 2^exponent for whole numbers from -127 to 127, NaN for NaN, put together from bits: exact everywhere."""
    biased = exponent.nan_to_num(0.0).to(torch.int32) + EXPONENT_BIAS
    bits = (biased << MANTISSA_BITS).clamp_(min=_BOTTOM_BITS)
    return bits.view(torch.float32).masked_fill_(exponent.isnan(), torch.nan)
