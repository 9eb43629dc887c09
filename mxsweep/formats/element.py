"""Describe element formats: the narrow numbers that a block's elements are written in.

There are two kinds. A minifloat (`Minifloat`, fp<n>_e<E>m<M>) has a sign, E exponent bits and M mantissa bits. The
numbers come from the OCP Microscaling Formats (MX) Specification v1.0 (section 5.3), from the OCP 8-bit Floating Point
Specification v1.0 (E4M3 and E5M2) and, for formats outside both, from the same construction:

    bias             2^(E-1) - 1
    normal value     (-1)^S * 2^(e - bias) * (1 + m / 2^M)          for exponent codes e >= 1
    subnormal value  (-1)^S * 2^(1 - bias) * (m / 2^M)              for exponent code 0

Formats with five or more exponent bits reserve the top exponent code for Inf and NaN, as IEEE 754 does. With four or
fewer a code is too valuable for that: every code is a number, except the two all-ones codes of `fp8_e4m3`, which are
NaN.

An integer is read as a fixed-point fraction 1.xx (`Integer`, int<n>) or 0.xx (`Fraction`, mint<n>).

Every kind gives a grid: values that lie u = 2^(max(exponent, min_exponent) - mantissa_bits) apart, from `lowest` to
`largest`. Rounding (numerics/reference/rounding.py) and the CUDA kernels read nothing else of an element format, and
`encode` reads `decode`. So a new kind is a subclass of `ElementFormat` and one call of `register_element_kind`.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from mxsweep.formats.registry import Names

ROUNDINGS = ("nearest", "even", "floor", "stochastic", "ties_to_zero")

# Limits of element formats: inside them, every intermediate of float32 arithmetic is exact.
MAX_ELEMENT_BITS = 16
MAX_EXPONENT_BITS = 7
# From this many exponent bits on, the top exponent code means Inf or NaN (IEEE 754, section 3.4).
RESERVING_EXPONENT_BITS = 5


@dataclass(frozen=True)
class ElementFormat(ABC):
    """Describe the format of one element.

    Attributes:
        name: as in `MXFormat.element`, such as "fp4_e2m1".
        bits: width of a code, sign included.
        mantissa_bits: fraction bits behind the leading one; of an integer, behind the point.
    """

    name: str
    bits: int
    mantissa_bits: int

    @property
    def is_integer(self) -> bool:
        """Return whether the values have one spacing."""
        return False

    @property
    def scale_rounding(self) -> str | None:
        """Return the scale rounding that the format is defined with (of a power of two); None where any will do."""
        return None

    @property
    @abstractmethod
    def min_exponent(self) -> int:
        """Return the exponent of the smallest normal value, below which the spacing stays what it is there; of an
        integer, that of the largest power of two among its values.
        """

    @property
    @abstractmethod
    def max_exponent(self) -> int:
        """Return what a block's scale exponent is lowered by (OCP MX v1.0, section 6.3), at least 0: the exponent of
        the largest power of two that is not above `largest`; for `mint<n>`, of the one above.
        """

    @property
    @abstractmethod
    def largest(self) -> float:
        """Return the largest value."""

    @property
    def lowest(self) -> float:
        """Return the most negative value."""
        return -self.largest

    @property
    def smallest_normal(self) -> float:
        """Return the smallest positive value with a leading one."""
        return 2.0**self.min_exponent

    @property
    def smallest_subnormal(self) -> float:
        """Return the smallest positive value, which without mantissa bits is the smallest normal."""
        return 2.0 ** (self.min_exponent - self.mantissa_bits)

    @property
    def codes(self) -> int:
        """Return how many codes there are."""
        return int(2**self.bits)

    def decode(self, code: int) -> float:
        """Return the value of one code; NaN for a code that is never written.

        Raises:
            ValueError: the code does not fit into `bits`.
        """
        if not 0 <= code < self.codes:
            raise ValueError(f"code: {code!r} is not a code of {self.name}; allowed: 0 to {self.codes - 1}")
        return self._decode(code)

    @abstractmethod
    def _decode(self, code: int) -> float: ...

    def values(self) -> tuple[float, ...]:
        """Return every finite value, ascending, zero once."""
        return tuple(sorted({v for v in map(self.decode, range(self.codes)) if math.isfinite(v)}))


@dataclass(frozen=True)
class Minifloat(ElementFormat):
    """Describe a small float: sign, exponent, mantissa from the top bit down.

    Attributes:
        exponent_bits: E.
    """

    exponent_bits: int

    @property
    def bias(self) -> int:
        """Return what an exponent code is lowered by."""
        return 2 ** (self.exponent_bits - 1) - 1

    @property
    def reserves_top_exponent(self) -> bool:
        """Return whether the top exponent code stands for Inf and NaN."""
        return self.exponent_bits >= RESERVING_EXPONENT_BITS

    @property
    def min_exponent(self) -> int:
        return 1 - self.bias

    @property
    def max_exponent(self) -> int:
        return self.bias if self.reserves_top_exponent else self.bias + 1

    @property
    def largest(self) -> float:
        significand = 2 - 2.0**-self.mantissa_bits
        if self.name == "fp8_e4m3":
            significand = 1.75  # the code above is NaN (OCP OFP8 v1.0, table 2)
        return 2.0**self.max_exponent * significand

    def _decode(self, code: int) -> float:
        negative = code >> (self.bits - 1) == 1
        magnitude = code & (2 ** (self.bits - 1) - 1)
        value = decode_magnitude(magnitude, self.mantissa_bits, self.bias)
        if self.reserves_top_exponent and magnitude >> self.mantissa_bits == 2**self.exponent_bits - 1:
            value = math.inf if magnitude & (2**self.mantissa_bits - 1) == 0 else math.nan
        elif value > self.largest:
            value = math.nan
        return -value if negative else value


@dataclass(frozen=True)
class Integer(ElementFormat):
    """Describe `int<n>`, k / 2^(n-2) for |k| < 2^(n-1), in two's complement, so that the largest value is just under 2.

    OCP MX v1.0, section 5.3.4, with the asymmetric code -2 left unused as that section allows: `decode` gives NaN.
    There is one zero, and no negative one.
    """

    @property
    def is_integer(self) -> bool:
        return True

    @property
    def min_exponent(self) -> int:
        return 0

    @property
    def max_exponent(self) -> int:
        return 0

    @property
    def largest(self) -> float:
        return 2 - 2.0**-self.mantissa_bits

    def _decode(self, code: int) -> float:
        negative = code >> (self.bits - 1) == 1
        value = (code - 2**self.bits if negative else code) * self.smallest_subnormal
        return math.nan if value < self.lowest else value


@dataclass(frozen=True)
class Fraction(Integer):
    """Describe `mint<n>`, MXINT as Mase has it (github.com/DeepWok/mase, `mxint`): k / 2^(n-1) for every two's
    complement k, from -1 to just under 1, under a scale 2^ceil(log2 amax).

    The one format whose most negative value has no positive counterpart.
    """

    @property
    def scale_rounding(self) -> str | None:
        return "ceil"

    @property
    def min_exponent(self) -> int:
        return -1

    @property
    def largest(self) -> float:
        return 1 - 2.0 ** -(self.mantissa_bits + 1)

    @property
    def lowest(self) -> float:
        return -1.0


@dataclass(frozen=True)
class ElementKind:
    """Describe a family of element formats that are called alike.

    Attributes:
        pattern: matches the family's names.
        parse: returns the format of a match; None for a name outside the family's limits.
        allowed: the family and its limits in words, for messages.
        examples: the names that are listed, offered and tested.
    """

    pattern: re.Pattern[str]
    parse: Callable[[re.Match[str]], ElementFormat | None]
    allowed: str
    examples: tuple[str, ...]


def _minifloat(match: re.Match[str]) -> ElementFormat | None:
    bits, exponent_bits, mantissa_bits = map(int, match.groups())
    fits = bits == 1 + exponent_bits + mantissa_bits <= MAX_ELEMENT_BITS and 1 <= exponent_bits <= MAX_EXPONENT_BITS
    canonical = match[0] == f"fp{bits}_e{exponent_bits}m{mantissa_bits}"  # and not fp04
    return Minifloat(match[0], bits, mantissa_bits, exponent_bits) if fits and canonical else None


def _integer(match: re.Match[str]) -> ElementFormat | None:
    bits = int(match[2])
    if not 2 <= bits <= MAX_ELEMENT_BITS or match[0] != f"{match[1]}int{bits}":
        return None
    return (Fraction if match[1] else Integer)(match[0], bits, bits - 2)


ELEMENT_KINDS = [
    ElementKind(
        re.compile(r"fp(\d+)_e(\d+)m(\d+)"),
        _minifloat,
        f"any fp<n>_e<E>m<M> with n = 1 + E + M <= {MAX_ELEMENT_BITS} and 1 <= E <= {MAX_EXPONENT_BITS}",
        ("fp8_e5m2", "fp8_e4m3", "fp6_e3m2", "fp6_e2m3", "fp4_e2m1", "fp4_e3m0"),
    ),
    ElementKind(
        re.compile(r"(m?)int(\d+)"),
        _integer,
        f"int<n> or mint<n> with 2 <= n <= {MAX_ELEMENT_BITS}",
        ("int8", "int4", "int3", "int2", "mint4"),
    ),
]
ELEMENT_NAMES = Names(lambda: (name for kind in ELEMENT_KINDS for name in kind.examples))


def register_element_kind(kind: ElementKind) -> None:
    """Make a family of element formats known, after those that are."""
    ELEMENT_KINDS.append(kind)


def decode_magnitude(magnitude: int, mantissa_bits: int, bias: int) -> float:
    """Return the value of a minifloat's code without its sign bit, every exponent code an ordinary one."""
    exponent_code, mantissa = divmod(magnitude, 2**mantissa_bits)
    fraction = mantissa * 2.0**-mantissa_bits
    return 2.0 ** (1 - bias) * fraction if exponent_code == 0 else 2.0 ** (exponent_code - bias) * (1 + fraction)


def normalize_element(name: str) -> str:
    """Return `fp4_e2m1` for `mxfp4_e2m1`, `int8` for `mxint8`, and every other name as it is."""
    plain = name.removeprefix("mx")
    return plain if plain != name and _read(plain) else name


@lru_cache(maxsize=256)
def parse_element(name: str) -> ElementFormat:
    """Return the element format called `name`, such as "fp4_e2m1", "int8" or "mxfp6_e2m3".

    Raises:
        ValueError: no such format, or one outside its family's limits.
    """
    if element := _read(normalize_element(name)):
        return element
    allowed = ", or ".join((", ".join(ELEMENT_NAMES), *(kind.allowed for kind in ELEMENT_KINDS)))
    raise ValueError(f"element: {name!r} is not an element format; allowed: {allowed}")


def _read(name: str) -> ElementFormat | None:
    """Return the element format that a plain name spells; None where no family has it."""
    for kind in ELEMENT_KINDS:
        if (match := kind.pattern.fullmatch(name)) and (element := kind.parse(match)):
            return element
    return None
