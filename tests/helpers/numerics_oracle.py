"""Quantization of single blocks in plain Python, from lists of representable values: slow and independent.

Nothing here rounds with floating-point tricks: an element is looked up among the values that its format has, a
scale exponent is found by comparing rational numbers. Only the quotients and products of `exact` arithmetic are
rounded to float32, as its definition says.
"""

import math
import struct
from bisect import bisect_left
from fractions import Fraction

import torch

from mxsweep.numerics import ElementFormat, MXFormat, ScaleFormat


def float32(value: float | Fraction) -> float:
    """The float32 nearest to a number, ties to even; exact for Fractions of any size, Inf beyond the range."""
    exact = Fraction(value) if not isinstance(value, float) or math.isfinite(value) else None
    if exact is None or exact == 0:
        return float(value)
    exponent = max(floor_log2(abs(exact)), -126)
    ulp = Fraction(2) ** (exponent - 23)
    rounded = round(exact / ulp) * ulp  # round() of a Fraction takes ties to even
    return math.copysign(math.inf, exact) if abs(rounded) >= Fraction(2) ** 128 else float(rounded)


def bfloat16(value: float) -> float:
    """The bfloat16 nearest to a float32, ties to even."""
    bits = struct.unpack("<I", struct.pack("<f", value))[0]
    bits = (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000
    return float(struct.unpack("<f", struct.pack("<I", bits))[0])


def floor_log2(value: Fraction) -> int:
    exponent = value.numerator.bit_length() - value.denominator.bit_length()
    return exponent if Fraction(2) ** exponent <= value else exponent - 1


def ceil_log2(value: Fraction) -> int:
    exponent = floor_log2(value)
    return exponent if Fraction(2) ** exponent == value else exponent + 1


def magnitudes(grid: ElementFormat | ScaleFormat, negative: bool = False) -> list[float]:
    """The values >= 0 of a format, or the magnitudes of those <= 0, in the order of their codes."""
    if isinstance(grid, ElementFormat):
        return sorted(abs(value) for value in grid.values() if (value <= 0 if negative else value >= 0))
    values = (grid.decode(code) for code in range(2 ** (grid.bits - (grid.name == "e4m3"))))
    return [value for value in values if not math.isnan(value)]


def round_to(grid_values: list[float], a: float, rounding: str, random: float = 0.0) -> float:
    """`a` among a format's magnitudes, which list index = code."""
    magnitude = abs(Fraction(a))
    above = bisect_left(grid_values, magnitude)
    if above == len(grid_values):
        return math.copysign(grid_values[-1], a)
    if grid_values[above] == magnitude or above == 0:
        return math.copysign(grid_values[above], a)
    low, high = Fraction(grid_values[above - 1]), Fraction(grid_values[above])
    distance = (magnitude - low) / (high - low)
    if rounding == "floor":
        up = False
    elif rounding == "stochastic":
        up = random < distance
    else:
        tie_up = rounding == "nearest" or above % 2 == 0
        up = distance > Fraction(1, 2) or (distance == Fraction(1, 2) and tie_up)
    return math.copysign(float(high if up else low), a)


def e8m0_exponent(amax: float, fmt: MXFormat) -> int:
    """The wanted exponent of a block whose maximum is positive and finite."""
    element = fmt.element_format
    exact = Fraction(amax)
    if fmt.scale_rounding == "floor":
        return floor_log2(exact) - element.max_exponent
    if fmt.scale_rounding == "ceil":
        return ceil_log2(exact) - element.max_exponent
    if fmt.scale_rounding == "rceil":
        quotient = Fraction(float32(exact / Fraction(element.largest)))
        return ceil_log2(quotient) if quotient else -1000
    exponent = floor_log2(exact)
    half_ulp = Fraction(2) ** (exponent - element.mantissa_bits - 1)
    return floor_log2(exact + half_ulp) - element.max_exponent


def scale_of(amax: float, fmt: MXFormat, g: float | None = None) -> float:
    """The scale of a block in exact arithmetic; NaN where it has none."""
    if not math.isfinite(amax):
        return math.nan
    if fmt.scale == "e8m0":
        limit = fmt.max_scale_exponent
        exponent = e8m0_exponent(amax, fmt) if amax > 0 else -1000
        return math.nan if exponent > limit else 2.0 ** max(exponent, -limit)
    largest = Fraction(fmt.element_format.largest)
    product = Fraction(amax) if g is None else Fraction(float32(Fraction(amax) * Fraction(g)))
    wanted = float32(product / largest)
    held = min(max(wanted, fmt.scale_format.smallest_subnormal), fmt.scale_format.largest)
    if fmt.scale != "fp32":
        held = round_to(magnitudes(fmt.scale_format), held, "even")
    return held if g is None else float32(Fraction(held) / Fraction(g))


def quantize_block(
    block: list[float], fmt: MXFormat, randoms: list[float] | None = None, g: float | None = None
) -> list[float]:
    """One block of float32 values in exact arithmetic."""
    if not all(map(math.isfinite, block)):
        return [math.nan] * len(block)
    midpoint = 0.0
    if not fmt.symmetric:
        midpoint = bfloat16(float32(Fraction(min(block)) / 2 + Fraction(max(block)) / 2))
    centered = [float32(Fraction(value) - Fraction(midpoint)) for value in block]
    scale = scale_of(max(map(abs, centered)), fmt, g)
    if math.isnan(scale):
        return [math.nan] * len(block)
    grids = [magnitudes(fmt.element_format, negative) for negative in (False, True)]
    answer = []
    for value, random in zip(centered, randoms or [0.0] * len(block), strict=True):
        q = round_to(grids[value < 0], float32(Fraction(value) / Fraction(scale)), fmt.rounding, random)
        product = float32(Fraction(q) * Fraction(scale))
        answer.append(float32(Fraction(product) + Fraction(midpoint)) if math.isfinite(product) else product)
    return answer


def assert_same(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal bit for bit, NaN to NaN; the sign of zero does not matter."""
    assert actual.dtype == expected.dtype
    torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)


def row(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32)
