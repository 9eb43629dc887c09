"""Describe scale formats: what the scale that a block's elements share is stored as. A scale is never negative.

* `e8m0`: a power of two, OCP MX v1.0, section 5.4.1. `MXFormat.scale_bits` narrows its exponents.
* `e5m3`: unsigned, bias 15. The top exponent is an ordinary one, only the all-ones code is NaN: largest
  114,688 = 2^16 * 1.75, smallest normal 2^-14, smallest subnormal 2^-17.
* `e4m3`: OFP8's E4M3, as NVFP4 uses it: largest 448, smallest subnormal 2^-9. Its sign bit is stored.
* `fp32`: IEEE 754 binary32, the ideal that the others are measured against.

A new small float is one call of `register_scale`, and an option in conf/scale/ for the command line.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass

from mxsweep.formats.element import decode_magnitude
from mxsweep.formats.registry import Names

SCALE_ROUNDINGS = ("floor", "even", "ceil", "rceil")  # of a power of two, see numerics/reference/scales.py
MOST_EVEN_BITS = 22  # of float32's 23 mantissa bits, that `even` may keep
EVEN_BITS = tuple(f"even{bits}" for bits in range(MOST_EVEN_BITS + 1))  # `even` with a mantissa of its own
SCALE_ROUNDINGS_ALLOWED = f"{', '.join(SCALE_ROUNDINGS)}, even0 to even{MOST_EVEN_BITS}"
SCALE_BITS = range(2, 9)  # widths that a power of two may be stored in
DEFAULT_SCALE_BITS = 8

_FLOAT32_MANTISSA_BITS = 23
_FLOAT32_LARGEST = (2 - 2.0**-23) * 2.0**127


@dataclass(frozen=True)
class ScaleFormat:
    """Describe the format of a block's shared scale.

    Attributes:
        name: as in `MXFormat.scale`.
        bits: stored width at full range.
        mantissa_bits: stored fraction bits; 0 for a power of two.
        bias: what an exponent code is lowered by.
        stores_sign: whether the top bit is a sign, which is never set.
        takes_tensor_scale: whether a float32 scale per tensor may lie over the blocks' scales.
    """

    name: str
    bits: int
    mantissa_bits: int
    bias: int
    stores_sign: bool = False
    takes_tensor_scale: bool = False

    @property
    def is_power_of_two(self) -> bool:
        """Return whether a scale is an exponent and nothing else."""
        return self.mantissa_bits == 0

    @property
    def is_float32(self) -> bool:
        """Return whether scales are stored as they are computed."""
        return self.mantissa_bits == _FLOAT32_MANTISSA_BITS

    @property
    def min_exponent(self) -> int:
        """Return the exponent of the smallest normal value; of a power of two, of the smallest value."""
        return -self.bias if self.is_power_of_two else 1 - self.bias

    @property
    def smallest_subnormal(self) -> float:
        """Return the smallest positive value."""
        return 2.0 ** (self.min_exponent - self.mantissa_bits)

    @property
    def largest(self) -> float:
        """Return the largest finite value."""
        return _FLOAT32_LARGEST if self.is_float32 else self.decode(self.codes - 2)

    @property
    def smallest_normal(self) -> float:
        """Return the smallest value with a leading one."""
        return float(2.0**self.min_exponent)

    @property
    def lowest(self) -> float:
        """Return the least value that a scale is held to."""
        return 0.0

    @property
    def codes(self) -> int:
        """Return how many codes there are without the sign bit set."""
        return int(2 ** (self.bits - self.stores_sign))

    def decode(self, code: int) -> float:
        """Return the value of one code: NaN for the last one, or of fp32 for all that IEEE 754 has.

        Raises:
            ValueError: the code is negative, does not fit, or has a sign bit that is set.
        """
        if not 0 <= code < self.codes:
            raise ValueError(f"code: {code!r} is not a scale of {self.name}; allowed: 0 to {self.codes - 1}")
        if self.is_float32:
            return float(struct.unpack("<f", struct.pack("<I", code))[0])
        if code == self.codes - 1:
            return math.nan
        return (
            2.0 ** (code - self.bias) if self.is_power_of_two else decode_magnitude(code, self.mantissa_bits, self.bias)
        )


SCALES: dict[str, ScaleFormat] = {}
SCALE_NAMES = Names(lambda: SCALES)


def register_scale(scale: ScaleFormat) -> None:
    """Make a scale format known, after those that are.

    Raises:
        ValueError: another one has its name.
    """
    if SCALES.setdefault(scale.name, scale) != scale:
        raise ValueError(f"scale: {scale.name!r} stands for another format already; allowed: a new name")


for _scale in (
    ScaleFormat("e8m0", bits=8, mantissa_bits=0, bias=127),
    ScaleFormat("e5m3", bits=8, mantissa_bits=3, bias=15, takes_tensor_scale=True),
    ScaleFormat("e4m3", bits=8, mantissa_bits=3, bias=7, stores_sign=True, takes_tensor_scale=True),
    ScaleFormat("fp32", bits=32, mantissa_bits=_FLOAT32_MANTISSA_BITS, bias=127, stores_sign=True),
):
    register_scale(_scale)


def parse_scale(name: str) -> ScaleFormat:
    """Return the scale format called `name`.

    Raises:
        ValueError: no such format.
    """
    if name not in SCALES:
        raise ValueError(f"scale: {name!r} is not a scale format; allowed: {', '.join(SCALE_NAMES)}")
    return SCALES[name]
