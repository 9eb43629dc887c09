"""Round quotients onto an element format's grid.

Around a value a the grid's spacing is its ulp: u = 2^(max(floor(log2 |a|), emin) - M), with the format's
smallest normal exponent emin and its M mantissa bits. So a becomes a whole number of ulps, rounded, then held
to the largest value. Each arithmetic has its way to get there, which gives the same bits as its definition:

exact   float32 bit work. The exponent bits of a, clamped to the format's range, are the power of two
        t = u * 2^M.
        Ties to even: adding and taking away 1.5 * 2^23 * u leaves a float32 sum no bit below u, and the
        addition itself rounds to nearest even.
        Ties away: the same after setting the lowest bit of |a|, which lifts a tie, whose low bits are all zero,
        above itself, and moves nothing else across a tie: the float just below a tie has that bit set already.
        Ties to zero: the same on the float just below |a|, with the lowest bit of that set: a tie falls below itself,
        and a number just above one stays above it.
        Toward zero: the same, and one u back where rounding went up. Stochastic: up from there iff
        random < the fraction of u that is left, all exact.

native  what microxcaling's PyTorch path computes in the tensor's own dtype: the exponent is floor(log2 |a|),
        in that dtype's precision, and one half is one half. For 16-bit dtypes there are only 65,536 possible
        quotients: the definition is evaluated on all of them once, and a tensor is a table look-up. For
        float32, an exponent that log2 lifts matters only when rounding toward zero (otherwise a value so
        close under a power of two rounds to it from either side), which then runs the definition itself; the
        other roundings differ from exact for one magnitude only, the one just below half the smallest
        spacing.

None of it but the native definition needs a floor: on a CPU torch leaves that to a library that wakes threads for it.

A zero keeps the sign of what was rounded, in integer formats too.

Shapes: any; all functions are elementwise.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mxsweep.formats.element import ElementFormat
from mxsweep.formats.scale import ScaleFormat
from mxsweep.numerics.kept_tensors import kept_tensors

_SIGN, _MAGNITUDE = -0x80000000, 0x7FFFFFFF  # bits of a float32
_EXPONENT_MASK = 0x7F800000  # of a float32
_LARGEST = torch.finfo(torch.float32).max
MANTISSA_BITS = 23
EXPONENT_BIAS = 127
_HALF_BELOW = 0.5 - 2.0**-25  # the largest float32 below one half


def round_exact(a: Tensor, grid: ElementFormat | ScaleFormat, rounding: str, random: Tensor | None = None) -> Tensor:
    """Round `a` onto the format's grid by the exact definition; NaN stays NaN, Inf saturates.

    Args:
        a: float32 quotients; never changed.
        grid: whose values to round to.
        rounding: of ROUNDINGS.
        random: float32 in [0, 1), broadcastable to `a`; for "stochastic".
    """
    if rounding == "nearest":
        finite = a.clamp(-_LARGEST, _LARGEST)  # a bit more would make NaN of Inf
        return _ties_away(finite.view(torch.int32).bitwise_or_(1), grid)
    if rounding == "even":
        return _round_even(a, grid)
    if rounding == "ties_to_zero":
        bits = a.view(torch.int32)
        below = (bits & _MAGNITUDE).sub_(1).clamp_(min=0)
        return _ties_away(below.bitwise_or_(1).bitwise_or_(bits & _SIGN), grid)
    return _toward_zero(a, grid, random)


def round_native(a: Tensor, element: ElementFormat, rounding: str) -> Tensor:
    """Round `a` onto the format's grid by the native definition, in a's dtype; Inf stays Inf, NaN stays NaN.

    Args:
        a: quotients, float32, bfloat16 or float16; never changed.
        element: whose values to round to.
        rounding: "nearest", "even" or "floor".
    """
    if a.dtype != torch.float32:
        table = native_table(element, rounding, a.dtype, a.device)
        # Read as a signed number, a code is the table's index once shifted to start at zero.
        index = a.view(torch.int16).to(torch.int32).add_(2**15)
        return table.index_select(0, index.reshape(-1)).reshape(a.shape)
    if rounding == "floor":
        return native_definition(a, element, rounding)
    # Twice the bits drops the sign; two ulps more and the one magnitude that native rounds up is above its tie.
    bits = a.view(torch.int32)
    bits = torch.add(bits, (bits << 1) == 2 * bits_just_below_half(element.smallest_subnormal), alpha=2)
    return (
        _ties_away(bits.bitwise_or_(1), element) if rounding == "nearest" else _round_even(bits.view(a.dtype), element)
    )


def native_definition(a: Tensor, element: ElementFormat, rounding: str) -> Tensor:
    """Round by the native definition itself, with one rounding of a's dtype per operation. Slow; see `round_native`."""
    magnitude = a.abs()
    exponent = torch.log2(magnitude + (a == 0).to(a.dtype)).floor_().clamp_(min=element.min_exponent)
    # An integer's point is fixed.
    unit = torch.ones_like(a) if element.is_integer else 2.0**exponent
    ulps = magnitude / unit * 2**element.mantissa_bits
    if rounding == "floor":
        rounded = ulps.floor()
    else:
        rounded = (ulps + 0.5).floor_()
        if rounding == "even":
            rounded -= ((ulps - 0.5) % 2 == 0).to(a.dtype)
            if element.mantissa_bits == 0:  # between two powers of two, the one with the even code
                code = exponent - (element.min_exponent - 1)
                rounded -= ((ulps == 1.5) & (code % 2 == 0)).to(a.dtype)
    rounded = rounded / 2**element.mantissa_bits * unit
    rounded = rounded.clamp_(max=element.largest)
    return torch.where(a.isinf(), a, torch.copysign(rounded, a))


def spacing(a: Tensor, grid: ElementFormat | ScaleFormat) -> Tensor:
    """Return the spacing of the grid around values, float32: a new tensor, of finite numbers where `a` is finite."""
    return _power_of_two(a, grid).mul_(2.0**-grid.mantissa_bits)


def _power_of_two(a: Tensor, grid: ElementFormat | ScaleFormat) -> Tensor:
    """Return t = 2^floor(log2 |a|), held to the powers of two of the smallest normal and of the largest value."""
    t = a.view(torch.int32).bitwise_and(_EXPONENT_MASK).view(torch.float32)
    top = 2.0 ** (math.frexp(grid.largest)[1] - 1)
    return t.clamp_(2.0**grid.min_exponent, top)


def _round_even(a: Tensor, grid: ElementFormat | ScaleFormat, ties: bool = True) -> Tensor:
    """Round to nearest, ties to even. `ties`: whether `a` may lie midway between two values of the grid."""
    t = _power_of_two(a, grid)
    shift = 1.5 * 2.0 ** (MANTISSA_BITS - grid.mantissa_bits)
    rounded = torch.add(a, t, alpha=shift).sub_(t, alpha=shift)
    if ties and grid.mantissa_bits == 0:
        # Midway between t and 2t, of which the addition takes the even multiple of t. But the codes of t and 2t
        # differ in the exponent, and the even one of them is wanted.
        code = (t.view(torch.int32) >> MANTISSA_BITS) - (grid.min_exponent + EXPONENT_BIAS - 1)
        stays = (a.abs() == 1.5 * t) & (code % 2 == 0)
        rounded = torch.where(stays, t.copysign(a), rounded)
    return rounded.clamp_(grid.lowest, grid.largest).copysign_(a)


def _ties_away(bits: Tensor, grid: ElementFormat | ScaleFormat) -> Tensor:
    """Round to nearest, ties away from zero, given the bits (int32) of quotients, no ties."""
    return _round_even(bits.view(torch.float32), grid, ties=False)


def _toward_zero(a: Tensor, grid: ElementFormat | ScaleFormat, random: Tensor | None) -> Tensor:
    """Round toward zero, or where there are random numbers stochastically."""
    magnitude = a.abs()
    rounded = _round_even(a, grid, ties=False).abs_()
    u = spacing(a, grid)
    rounded -= u * (rounded > magnitude)
    if random is not None:
        # Where |a| lies above the grid's largest value, the clamp undoes what this does.
        rounded += u * (random < (magnitude - rounded).div_(u))
    return rounded.copysign_(a).clamp_(grid.lowest, grid.largest)


def bits_just_below_half(spacing: float) -> int:
    """Return the bits of the largest float32 below half a spacing that is a power of two."""
    return int(torch.tensor(_HALF_BELOW * spacing, dtype=torch.float32, device="cpu").view(torch.int32))


@kept_tensors(64)
def native_table(element: ElementFormat, rounding: str, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return what each of the 65,536 values of a 16-bit dtype becomes, indexed by its bits as int16 plus 2^15.

    Made on the CPU for every device, whose log2 may differ in the last bit.
    """
    codes = torch.arange(-(2**15), 2**15, dtype=torch.int32, device="cpu").to(torch.int16)
    return native_definition(codes.view(dtype), element, rounding).to(device)
