"""Microscaling formats as plain data: what an element, a scale and a block are made of.

A microscaling (MX) format cuts a tensor into blocks and writes each block as one shared scale s and one
narrow number q per element; a value reads back as q * s. Three choices make a format:

* the element format (`ElementFormat`): a small float ("minifloat") with a sign, E exponent bits and M
  mantissa bits, or a signed integer read as a fixed-point fraction 1.xx (`mint<n>`: 0.xx);
* the scale format (`ScaleFormat`): a power of two (`e8m0`), a small unsigned float (`e5m3`, `e4m3`) or
  `fp32`;
* the block (`MXFormat.block_size`) and the roundings.

`MXFormat` ties them together. Nothing here imports torch: a configuration can be checked, printed and hashed
before torch is loaded.

The numbers come from the OCP Microscaling Formats (MX) Specification v1.0 (section 5.1 for the block, 5.2 for
the concrete formats, 5.3 for the elements, 5.4.1 for E8M0), from the OCP 8-bit Floating Point Specification
v1.0 (E4M3 and E5M2) and, for formats outside both, from the same construction:

    bias             2^(E-1) - 1
    normal value     (-1)^S * 2^(e - bias) * (1 + m / 2^M)          for exponent codes e >= 1
    subnormal value  (-1)^S * 2^(1 - bias) * (m / 2^M)              for exponent code 0

Formats with five or more exponent bits reserve the top exponent code for Inf and NaN, as IEEE 754 does. With
four or fewer a code is too valuable for that: every code is a number, except the two all-ones codes of
`fp8_e4m3`, which are NaN.
"""

from __future__ import annotations

import math
import re
import struct
from dataclasses import dataclass
from functools import lru_cache

ELEMENT_NAMES = (
    "fp8_e5m2", "fp8_e4m3", "fp6_e3m2", "fp6_e2m3", "fp4_e2m1", "fp4_e3m0", "int8", "int4", "int3", "int2", "mint4",
)  # fmt: skip
SCALE_NAMES = ("e8m0", "e5m3", "e4m3", "fp32")
ROUNDINGS = ("nearest", "even", "floor", "stochastic")
SCALE_ROUNDINGS = ("floor", "even", "ceil", "rceil")

# Limits of `fp<n>_e<E>m<M>`, `int<n>` and `mint<n>`: inside them, every intermediate of float32 arithmetic is exact.
MAX_ELEMENT_BITS = 16
MAX_EXPONENT_BITS = 7
# From this many exponent bits on, the top exponent code means Inf or NaN (IEEE 754, section 3.4).
RESERVING_EXPONENT_BITS = 5

# E8M0 (OCP MX v1.0, section 5.4.1): a biased exponent and nothing else; the all-ones code is NaN.
E8M0_BIAS = 127
SCALE_BITS = range(2, 9)
DEFAULT_SCALE_BITS = 8

MIDPOINT_BITS = 16  # an asymmetric block keeps its midpoint in bfloat16

_MINIFLOAT = re.compile(r"fp(\d+)_e(\d+)m(\d+)")
_INTEGER = re.compile(r"(m?)int(\d+)")
_ELEMENTS_ALLOWED = (
    f"{', '.join(ELEMENT_NAMES)}, or any fp<n>_e<E>m<M> with n = 1 + E + M <= {MAX_ELEMENT_BITS} and "
    f"1 <= E <= {MAX_EXPONENT_BITS}, or int<n> or mint<n> with 2 <= n <= {MAX_ELEMENT_BITS}"
)


@dataclass(frozen=True)
class ElementFormat:
    """The format of one element.

    An integer is a minifloat without exponent bits: `int<n>` holds k / 2^(n-2) for |k| < 2^(n-1), so that its
    largest value is just under 2 (OCP MX v1.0, section 5.3.4, with the asymmetric code -2 left unused as that
    section allows). `mint<n>` is MXINT as Mase has it (github.com/DeepWok/mase, `mxint`): k / 2^(n-1) for every
    two's complement k, from -1 to just under 1, under a scale 2^ceil(log2 amax). It is the one format whose most
    negative value has no positive counterpart.

    Attributes:
        name: as in `MXFormat.element`, such as "fp4_e2m1".
        exponent_bits: E; 0 for an integer.
        mantissa_bits: M, the stored fraction bits; n - 2 for an integer.
        is_fraction: whether an integer's values end at 1 (`mint<n>`), not at 2.
    """

    name: str
    exponent_bits: int
    mantissa_bits: int
    is_fraction: bool = False

    @property
    def is_integer(self) -> bool:
        return self.exponent_bits == 0

    @property
    def bits(self) -> int:
        """Width in bits: the sign, and for an integer the one bit in front of the point, included."""
        return (2 if self.is_integer else 1 + self.exponent_bits) + self.mantissa_bits

    @property
    def bias(self) -> int:
        """Exponent bias; 0 for an integer, whose point is fixed."""
        return 0 if self.is_integer else 2 ** (self.exponent_bits - 1) - 1

    @property
    def reserves_top_exponent(self) -> bool:
        return self.exponent_bits >= RESERVING_EXPONENT_BITS

    @property
    def min_exponent(self) -> int:
        """Exponent of the smallest normal value; below it the spacing stays what it is there. An integer's: of the
        largest power of two among its positive values, since it has one spacing.
        """
        return -int(self.is_fraction) if self.is_integer else 1 - self.bias

    @property
    def max_exponent(self) -> int:
        """Exponent of the largest magnitude (of a `mint<n>`, -1): what a block's scale exponent is lowered by (OCP MX
        v1.0, section 6.3).
        """
        if self.is_integer:
            return 0
        return self.bias if self.reserves_top_exponent else self.bias + 1

    @property
    def largest(self) -> float:
        significand = 2 - 2.0**-self.mantissa_bits
        if self.name == "fp8_e4m3":
            significand = 1.75  # the code above is NaN (OCP OFP8 v1.0, table 2)
        return 2.0 ** (self.max_exponent - self.is_fraction) * significand

    @property
    def lowest(self) -> float:
        """The most negative value."""
        return -1.0 if self.is_fraction else -self.largest

    @property
    def smallest_normal(self) -> float:
        return 2.0**self.min_exponent

    @property
    def smallest_subnormal(self) -> float:
        """The smallest positive value; with no mantissa bits there are no subnormals and it is the smallest normal."""
        return 2.0 ** (self.min_exponent - self.mantissa_bits)

    def decode(self, code: int) -> float:
        """The value of one code: sign, exponent, mantissa from the top bit down; two's complement for an
        integer.

        NaN also stands for the one code of an `int<n>` that is never written, -2.

        Raises:
            ValueError: the code does not fit into `bits`.
        """
        if not 0 <= code < 2**self.bits:
            raise ValueError(f"code: {code!r} is not a code of {self.name}; allowed: 0 to {2**self.bits - 1}")
        negative = code >> (self.bits - 1) == 1
        if self.is_integer:
            value = (code - 2**self.bits if negative else code) * self.smallest_subnormal
            return math.nan if value < self.lowest else value
        magnitude = code & (2 ** (self.bits - 1) - 1)
        value = _decode_minifloat(magnitude, self.mantissa_bits, self.bias)
        if self.reserves_top_exponent and magnitude >> self.mantissa_bits == 2**self.exponent_bits - 1:
            value = math.inf if magnitude & (2**self.mantissa_bits - 1) == 0 else math.nan
        elif value > self.largest:
            value = math.nan
        return -value if negative else value

    def values(self) -> tuple[float, ...]:
        """Every finite value, ascending, zero once."""
        return tuple(sorted({v for v in map(self.decode, range(2**self.bits)) if math.isfinite(v)}))


@dataclass(frozen=True)
class ScaleFormat:
    """The format of a block's shared scale, which is never negative.

    * `e8m0`: a power of two. OCP MX v1.0, section 5.4.1. `MXFormat.scale_bits` narrows its exponents.
    * `e5m3`: unsigned, bias 15. The top exponent is an ordinary one, only the all-ones code is NaN: largest
      114,688 = 2^16 * 1.75, smallest normal 2^-14, smallest subnormal 2^-17.
    * `e4m3`: OFP8's E4M3, as NVFP4 uses it: largest 448, smallest subnormal 2^-9. Its sign bit is stored.
    * `fp32`: IEEE 754 binary32, the ideal that the others are measured against.

    Attributes:
        name: as in `MXFormat.scale`.
        bits: stored width at full range.
        mantissa_bits: stored fraction bits.
        bias: exponent bias.
        largest: largest finite value.
    """

    name: str
    bits: int
    mantissa_bits: int
    bias: int
    largest: float

    @property
    def min_exponent(self) -> int:
        """Exponent of the smallest normal value; for `e8m0`, which has no subnormals, of the smallest value."""
        return -self.bias if self.name == "e8m0" else 1 - self.bias

    @property
    def smallest_subnormal(self) -> float:
        """The smallest positive value."""
        return 2.0 ** (self.min_exponent - self.mantissa_bits)

    @property
    def lowest(self) -> float:
        return 0.0

    def decode(self, code: int) -> float:
        """The value of one code, NaN included. Codes with the sign bit set, where there is one, are refused.

        Raises:
            ValueError: the code is negative or does not fit.
        """
        codes = 2 ** (self.bits - 1) if self.name in ("e4m3", "fp32") else 2**self.bits
        if not 0 <= code < codes:
            raise ValueError(f"code: {code!r} is not a scale of {self.name}; allowed: 0 to {codes - 1}")
        if self.name == "fp32":
            return float(struct.unpack("<f", struct.pack("<I", code))[0])
        if code == codes - 1:
            return math.nan
        if self.name == "e8m0":
            return 2.0 ** (code - self.bias)
        return _decode_minifloat(code, self.mantissa_bits, self.bias)


_FLOAT32_LARGEST = (2 - 2.0**-23) * 2.0**127
_SCALES = {
    "e8m0": ScaleFormat("e8m0", bits=8, mantissa_bits=0, bias=E8M0_BIAS, largest=2.0**127),
    "e5m3": ScaleFormat("e5m3", bits=8, mantissa_bits=3, bias=15, largest=114688.0),
    "e4m3": ScaleFormat("e4m3", bits=8, mantissa_bits=3, bias=7, largest=448.0),
    "fp32": ScaleFormat("fp32", bits=32, mantissa_bits=23, bias=127, largest=_FLOAT32_LARGEST),
}


def _decode_minifloat(magnitude: int, mantissa_bits: int, bias: int) -> float:
    exponent_code, mantissa = divmod(magnitude, 2**mantissa_bits)
    fraction = mantissa * 2.0**-mantissa_bits
    return 2.0 ** (1 - bias) * fraction if exponent_code == 0 else 2.0 ** (exponent_code - bias) * (1 + fraction)


def normalize_element(name: str) -> str:
    """`mxfp4_e2m1` and `mxint8` are read as `fp4_e2m1` and `int8`."""
    return name.removeprefix("mx")


@lru_cache(maxsize=256)
def parse_element(name: str) -> ElementFormat:
    """The element format called `name`, such as "fp4_e2m1", "int8" or "mxfp6_e2m3".

    Raises:
        ValueError: no such format, or one outside the limits of this module.
    """
    spelled = normalize_element(name)
    if match := _INTEGER.fullmatch(spelled):
        bits = int(match[2])
        if 2 <= bits <= MAX_ELEMENT_BITS and spelled == f"{match[1]}int{bits}":
            return ElementFormat(spelled, 0, bits - 2, is_fraction=bool(match[1]))
    elif match := _MINIFLOAT.fullmatch(spelled):
        bits, exponent_bits, mantissa_bits = map(int, match.groups())
        canonical = f"fp{bits}_e{exponent_bits}m{mantissa_bits}"
        fits = bits == 1 + exponent_bits + mantissa_bits <= MAX_ELEMENT_BITS and 1 <= exponent_bits <= MAX_EXPONENT_BITS
        if fits and spelled == canonical:
            return ElementFormat(spelled, exponent_bits, mantissa_bits)
    raise ValueError(f"element: {name!r} is not an element format; allowed: {_ELEMENTS_ALLOWED}")


def parse_scale(name: str) -> ScaleFormat:
    """The scale format called `name`.

    Raises:
        ValueError: no such format.
    """
    if name not in _SCALES:
        raise ValueError(f"scale: {name!r} is not a scale format; allowed: {', '.join(SCALE_NAMES)}")
    return _SCALES[name]
