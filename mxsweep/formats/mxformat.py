"""Describe block formats: an element format, a scale format, a block shape and their roundings, checked together.

A microscaling (MX) format cuts a tensor into blocks and writes each block as one shared scale s and one narrow number q
per element; a value reads back as q * s (OCP Microscaling Formats (MX) Specification v1.0, section 5.1). Three choices
make a format: the element format (element.py), the scale format (scale.py), and the block with its roundings.

A format's text, `str(fmt)`, says all of it: `MXFormat.parse(str(fmt)) == fmt`. The text is also what a config's hash
holds of a format, so that it stays as it is for every format that exists.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mxsweep.formats.element import ROUNDINGS, ElementFormat, normalize_element, parse_element
from mxsweep.formats.format_text import parse_fields
from mxsweep.formats.scale import (
    DEFAULT_SCALE_BITS,
    EVEN_BITS,
    SCALE_BITS,
    SCALE_ROUNDINGS,
    SCALE_ROUNDINGS_ALLOWED,
    SCALES,
    ScaleFormat,
    parse_scale,
)
from mxsweep.formats.scale_rules import (
    NO_FLOOR,
    NORMAL,
    OWN_FLOOR,
    OWN_RULE,
    SCALE_FLOORS,
    SCALE_RULE_NAMES,
    SCALE_RULES,
    SUBNORMAL,
    ScaleRule,
)

BlockSize = int | tuple[int, int]

INF_IS_NAN, INF_SATURATES = INFS = ("nan_block", "saturate")
FLOAT16_LARGEST = 65504.0
MIDPOINT_BITS = 16  # an asymmetric block keeps its midpoint in bfloat16


@dataclass(frozen=True)
class MXFormat:
    """Describe a block format. An instance is hashable, and checks and normalizes its fields.

    Attributes:
        element: name of the element format; `mxfp4_e2m1` becomes `fp4_e2m1`.
        block_size: how many elements along the axis share a scale; 0 for the whole axis; (rows, columns) for
            a tile of the last two dimensions.
        scale: name of the scale format.
        scale_bits: width of an `e8m0` scale, 2 to 8. n bits hold exponents of ±(2^(n-1) - 1); a block that
            wants more becomes NaN, one that wants less gets the bottom. Other scale formats have one width:
            the field says nothing there and becomes 8, so that equal formats are equal.
        rounding: of elements. "nearest" (ties away from zero), "even" (ties to even), "ties_to_zero" (to nearest, too),
            "floor" (toward zero) or "stochastic" (up with the probability of the distance).
        scale_rounding: how an `e8m0` exponent follows from the block's maximum, see numerics/reference/scales.py;
            becomes "floor" for other scale formats, which always round to nearest even, and "ceil" for `mint<n>`.
            "even" rounds the maximum to the element's mantissa bits, "even0" to "even22" to so many.
        symmetric: if false, the block's midpoint, kept in bfloat16, is subtracted first and added back.
        tensor_scale: whether a float32 scale per tensor lies over the block scales (NVFP4); `scale="e4m3"` or "e5m3".
        scale_rule: whose rule says how a scale that is no power of two is chosen and applied, see scale_rules.py.
        scale_floor: the least such scale: "subnormal" or "normal", the smallest of these of the scale format; "none":
            blocks may have the scale 0, and be zero; "auto": as the rule has it, which the rule's own becomes, too.
        scale_emax: whether the exponent of an `e8m0` scale is lowered by that of the element's largest value; if not, a
            block's maximum becomes 1 to 2 whatever the element holds.
        inf: "nan_block": an Inf makes its block NaN; "saturate": it counts as the largest finite value of the dtype.
        four_over_six: whether each block takes the better of two scales by its squared error, of which the second is
            1.5 times the first, so that a block's maximum becomes 6 or 4 in `fp4_e2m1`; see definition.py. For scales
            that are no powers of two.

    Raises:
        ValueError: a field, or a combination, that is not allowed; the message names field, value and choice.
    """

    element: str
    block_size: BlockSize = 32
    scale: str = "e8m0"
    scale_bits: int = DEFAULT_SCALE_BITS
    rounding: str = "nearest"
    scale_rounding: str = "floor"
    symmetric: bool = True
    tensor_scale: bool = False
    scale_rule: str = OWN_RULE
    scale_floor: str = OWN_FLOOR
    scale_emax: bool = True
    inf: str = INF_IS_NAN
    four_over_six: bool = False

    def __post_init__(self) -> None:
        for field in ("element", "scale", "rounding", "scale_rounding", "scale_rule", "scale_floor", "inf"):
            value = getattr(self, field)
            if not isinstance(value, str):
                raise ValueError(f"{field}: {value!r} is not a name; allowed: a string")
        for field in ("symmetric", "tensor_scale", "scale_emax", "four_over_six"):
            value = getattr(self, field)
            if not isinstance(value, bool):
                raise ValueError(f"{field}: {value!r} is not a yes or no; allowed: true, false")
        parse_element(self.element)
        parse_scale(self.scale)
        _check_choice("rounding", self.rounding, ROUNDINGS)
        if self.scale_rounding not in (*SCALE_ROUNDINGS, *EVEN_BITS):
            raise ValueError(
                f"scale_rounding: {self.scale_rounding!r} is not known; allowed: {SCALE_ROUNDINGS_ALLOWED}"
            )
        _check_choice("scale_rule", self.scale_rule, SCALE_RULE_NAMES)
        _check_choice("scale_floor", self.scale_floor, SCALE_FLOORS)
        _check_choice("inf", self.inf, INFS)
        if not _is_int(self.scale_bits) or self.scale_bits not in SCALE_BITS:
            low, high = SCALE_BITS[0], SCALE_BITS[-1]
            raise ValueError(f"scale_bits: {self.scale_bits!r} is not allowed; allowed: {low} to {high}")
        if self.tensor_scale and not self.scale_format.takes_tensor_scale:
            taking = ", ".join(name for name, scale in SCALES.items() if scale.takes_tensor_scale)
            raise ValueError(f"tensor_scale: true does not go with scale {self.scale!r}; allowed: scale {taking}")
        if self.element_format.scale_rounding and not self.scale_format.is_power_of_two:
            raise ValueError(f"scale: {self.scale!r} does not go with element {self.element}; allowed: e8m0")
        if self.four_over_six and self.scale_format.is_power_of_two:
            others = ", ".join(name for name, scale in SCALES.items() if not scale.is_power_of_two)
            raise ValueError(f"four_over_six: true does not go with scale {self.scale!r}; allowed: scale {others}")
        if not self.scale_emax and self.scale_rounding == "rceil":
            raise ValueError(
                "scale_emax: false does not go with scale_rounding rceil, which divides by the largest element; "
                "allowed: scale_rounding floor, even, ceil"
            )
        self._normalize()

    def _normalize(self) -> None:
        assign = object.__setattr__  # the one place that writes to the frozen object
        assign(self, "element", normalize_element(self.element))
        assign(self, "block_size", _checked_block_size(self.block_size))
        if not self.scale_format.is_power_of_two:
            assign(self, "scale_bits", DEFAULT_SCALE_BITS)
            assign(self, "scale_rounding", "floor")
            assign(self, "scale_emax", True)
            if self.scale_floor == self.rule.floor:
                assign(self, "scale_floor", OWN_FLOOR)
            return
        assign(self, "scale_rule", OWN_RULE)
        assign(self, "scale_floor", OWN_FLOOR)
        if self.element_format.max_exponent == 0:
            assign(self, "scale_emax", True)  # by which there is nothing to lower
        if self.scale_rounding == f"even{self.element_format.mantissa_bits}":
            assign(self, "scale_rounding", "even")
        if self.element_format.scale_rounding:
            assign(self, "scale_rounding", self.element_format.scale_rounding)

    @property
    def element_format(self) -> ElementFormat:
        """Return the format of an element."""
        return parse_element(self.element)

    @property
    def scale_format(self) -> ScaleFormat:
        """Return the format of a block's scale."""
        return parse_scale(self.scale)

    @property
    def rule(self) -> ScaleRule:
        """Return the rule of a scale that is no power of two."""
        return SCALE_RULES[self.scale_rule]

    @property
    def least_scale(self) -> float:
        """Return the least scale, that is no power of two, of a block; 0 where there may be any."""
        floor = self.rule.floor if self.scale_floor == OWN_FLOOR else self.scale_floor
        scale = self.scale_format
        return {SUBNORMAL: scale.smallest_subnormal, NORMAL: scale.smallest_normal, NO_FLOOR: 0.0}[floor]

    @property
    def even_bits(self) -> int | None:
        """Return how many mantissa bits of the maximum `scale_rounding` rounds to; None for other than "even"."""
        if not self.scale_rounding.startswith("even"):
            return None
        return int(self.scale_rounding.removeprefix("even") or self.element_format.mantissa_bits)

    @property
    def lifted_from(self) -> float:
        """Return the least significand of a block's maximum for which `scale_rounding` is not `floor`; 2 where none is.

        It is so in exact arithmetic of scales from 2^-100 on, where maxima and quotients are normal numbers of float32.
        """
        if self.scale_rounding == "floor":
            return 2.0
        if self.even_bits is not None:
            return 2 - 2.0 ** -(self.even_bits + 1)
        # Divided by the largest element, a maximum is more than 1/2, and more than 1 beyond that one's significand.
        held = 2 * math.frexp(self.element_format.largest)[0] if self.scale_rounding == "rceil" else 1.0
        return held + 2.0**-23

    @property
    def max_scale_exponent(self) -> int:
        """Return the largest exponent that an `e8m0` scale of `scale_bits` holds; its negative is the smallest."""
        return int(2 ** (self.scale_bits - 1) - 1)

    @property
    def has_native_arithmetic(self) -> bool:
        """Return whether `arithmetic="native"` differs from "exact" by definition.

        Native arithmetic is what microxcaling's PyTorch path does, so it is defined for what that path
        offers: `e8m0` scales chosen by "floor", symmetric blocks, deterministic rounding. Everything else is
        exact.
        """
        floor_of_log2 = self.scale_format.is_power_of_two and self.scale_rounding == "floor" and self.scale_emax
        has_rounding = self.rounding not in ("stochastic", "ties_to_zero")
        return floor_of_log2 and self.symmetric and has_rounding and self.inf == INF_IS_NAN

    def is_native(self, arithmetic: str) -> bool:
        """Return whether what is asked for is native arithmetic, and not the exact one that others have, too."""
        return arithmetic == "native" and self.has_native_arithmetic

    def native_float16_problem(self) -> str | None:
        """Return why native arithmetic cannot be had of float16 tensors, in whose dtype it computes; None if it can."""
        if not self.has_native_arithmetic or self.element_format.largest <= FLOAT16_LARGEST:
            return None
        return f"'native' computes in the tensors' dtype, and float16 does not hold the largest value of {self.element}"

    @property
    def bits_per_element(self) -> float:
        """Return the stored bits per element, with the block's share of scale and midpoint.

        The float32 per-tensor scale of `tensor_scale` is not counted: it is 32 bits per weight tensor or per
        token. Neither is the scale of `block_size=0`, whose share depends on the length of the axis.
        """
        if self.block_size == 0:
            return float(self.element_format.bits)
        size = self.block_size if isinstance(self.block_size, int) else self.block_size[0] * self.block_size[1]
        return self.element_format.bits + self._bits_beside_elements / size

    def stored_bits(self, shape: Sequence[int]) -> int:
        """Return the bits of a whole tensor of `shape` blocked along its last axis (a tile: its last two), shorter last
        blocks and all; without the per-tensor scale.
        """
        if isinstance(self.block_size, int):
            blocks = math.prod(shape[:-1]) * math.ceil(shape[-1] / (self.block_size or shape[-1] or 1))
        else:
            rows, columns = self.block_size
            blocks = math.prod(shape[:-2]) * math.ceil(shape[-2] / rows) * math.ceil(shape[-1] / columns)
        return math.prod(shape) * self.element_format.bits + blocks * self._bits_beside_elements

    @property
    def _bits_beside_elements(self) -> int:
        """Return the bits of one block's scale and, where it has one, its midpoint."""
        scale = self.scale_bits if self.scale_format.is_power_of_two else self.scale_format.bits
        return scale if self.symmetric else scale + MIDPOINT_BITS

    def __str__(self) -> str:
        """Return a short and unique text: `fp4_e2m1-b32-e8m0`, with a suffix for everything that is not the default."""
        block = str(self.block_size) if isinstance(self.block_size, int) else "x".join(map(str, self.block_size))
        parts = [self.element, f"b{block}", self.scale]
        if self.tensor_scale:
            parts.append("tensor")
        if self.scale_bits != DEFAULT_SCALE_BITS:
            parts.append(f"sb{self.scale_bits}")
        if self.scale_rounding != (self.element_format.scale_rounding or "floor"):
            parts.append(f"scale_{self.scale_rounding}")
        if self.rounding != "nearest":
            parts.append(f"round_{self.rounding}")
        if not self.symmetric:
            parts.append("asym")
        if self.scale_rule != OWN_RULE:
            parts.append(f"rule_{self.scale_rule}")
        if self.scale_floor != OWN_FLOOR:
            parts.append(f"floor_{self.scale_floor}")
        if not self.scale_emax:
            parts.append("noemax")
        if self.inf != INF_IS_NAN:
            parts.append(f"inf_{self.inf}")
        if self.four_over_six:
            parts.append("4over6")
        return "-".join(parts)

    @classmethod
    def parse(cls, text: str) -> MXFormat:
        """Return the format of which `text` is the `str()`.

        What is left out behind the element is the default, as `fp4_e2m1` for `fp4_e2m1-b32-e8m0`. Parts may stand in
        any order behind it.

        Raises:
            ValueError: a part that is not known or stands there twice, or fields that do not go together; the message
                names the part or the field, and what is allowed.
        """
        element, fields = parse_fields(text)
        return cls(element, **fields)


def _check_choice(field: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{field}: {value!r} is not known; allowed: {', '.join(allowed)}")


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _checked_block_size(value: object) -> BlockSize:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    if isinstance(value, tuple | list) and len(value) == 2 and all(_is_int(n) and n >= 1 for n in value):
        return (value[0], value[1])
    allowed = "a whole number >= 1, 0 for the whole axis, or (rows, columns)"
    raise ValueError(f"block_size: {value!r} is not allowed; allowed: {allowed}")
