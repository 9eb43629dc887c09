"""Name the rules by which others choose and apply a block's scale, where it is no power of two.

A rule says four things of a block with the largest magnitude a, under a tensor's largest magnitude A. E and S are the
largest values of the element and of the scale format, as 6 and 448 of NVFP4; every operation is rounded to float32.

    tensor scale    what lies over the block scales: g = S E / A, by which they are divided, or d = A / (S E), by which
                    they are multiplied; a format without one has g = d = 1, which changes nothing
    wanted          what the block scale s is rounded from, to nearest even, held to what the scale format has
    quotient        what an element x is rounded from
    read            what an element is multiplied by when it is read back

    rule                 tensor scale    wanted          floor       quotient               read
    mxsweep              g = S E / A     (a g) / E       subnormal   x / (s / g)            s / g
    torchao              d = A / (S E)   (a / E) / d     normal      x ((1 / d) / s)        s d
    modelopt             d = A / (S E)   a / (E d)       subnormal   x / (s d)              s d
    compressed_tensors   g = S E (1 / A) g (a / E)       none        x / (s / g)            s / g
    vllm                 g = S E (1 / A) g (a (1 / E))   none        x (1 / (s (1 / g)))    s / g
    auto_round           g = S E (1 / A) g (a (1 / E))   none        x (1 / (s (1 / g)))    1 / (1 / (s (1 / g)))
    quark                d = A / (S E)   (a / E) / d     none        x / (s d)              s d

`compressed_tensors` computes g and a / E in x's dtype, each operation rounded to it. The floor is the least scale that
a block gets, the smallest subnormal or normal value of the scale format. Without one a scale can be 0, and its block is
then zero, but in `compressed_tensors`, where the scale becomes 2^-M, M being the scale format's mantissa bits.

What each of them computes was found by comparing with the libraries themselves: torchao 0.18 (its scale of one level is
this rule without a tensor scale), nvidia-modelopt 0.47, compressed-tensors 0.20, the references of vLLM in PyTorch,
auto-round 0.16, amd-quark 0.13.
"""

from __future__ import annotations

from dataclasses import dataclass

OWN_RULE = "mxsweep"
DIVISOR, DIVISOR_BY_RECIPROCAL, FACTOR = "divisor", "divisor_by_reciprocal", "factor"
SUBNORMAL, NORMAL, NO_FLOOR = "subnormal", "normal", "none"
OWN_FLOOR = "auto"  # the rule's own
SCALE_FLOORS = (OWN_FLOOR, SUBNORMAL, NORMAL, NO_FLOOR)


@dataclass(frozen=True)
class ScaleRule:
    """Say how a block's scale is chosen and applied; numerics/reference/scales.py computes it.

    Attributes:
        tensor_scale: DIVISOR: g = S E / A; DIVISOR_BY_RECIPROCAL: g = S E (1 / A); FACTOR: d = A / (S E).
        wanted: the formula of the block scale, as the table above has it.
        floor: what `MXFormat.scale_floor` is where it is "auto": SUBNORMAL, NORMAL or NO_FLOOR.
        quotient: the formula of what an element is rounded from.
        read: the formula of what an element is multiplied by when it is read back.
        in_dtype: whether g and a / E are computed in x's dtype.
        zero_becomes_epsilon: whether a scale that is 0 becomes 2^-M.
    """

    tensor_scale: str
    wanted: str
    floor: str
    quotient: str
    read: str
    in_dtype: bool = False
    zero_becomes_epsilon: bool = False

    @property
    def divides_by_tensor_scale(self) -> bool:
        """Return whether the tensor scale is g, by which a block scale is divided when it is read; else it is d."""
        return self.tensor_scale != FACTOR

    @property
    def multiplies(self) -> bool:
        """Return whether an element is multiplied by a reciprocal, and not divided."""
        return self.quotient in ("x ((1 / d) / s)", "x (1 / (s (1 / g)))")


_VLLM = ScaleRule(DIVISOR_BY_RECIPROCAL, "g (a (1 / E))", NO_FLOOR, "x (1 / (s (1 / g)))", "s / g")
SCALE_RULES = {
    OWN_RULE: ScaleRule(DIVISOR, "(a g) / E", SUBNORMAL, "x / (s / g)", "s / g"),
    "torchao": ScaleRule(FACTOR, "(a / E) / d", NORMAL, "x ((1 / d) / s)", "s d"),
    "modelopt": ScaleRule(FACTOR, "a / (E d)", SUBNORMAL, "x / (s d)", "s d"),
    "compressed_tensors": ScaleRule(
        DIVISOR_BY_RECIPROCAL, "g (a / E)", NO_FLOOR, "x / (s / g)", "s / g", in_dtype=True, zero_becomes_epsilon=True
    ),
    "vllm": _VLLM,
    "auto_round": ScaleRule(_VLLM.tensor_scale, _VLLM.wanted, _VLLM.floor, _VLLM.quotient, "1 / (1 / (s (1 / g)))"),
    "quark": ScaleRule(FACTOR, "(a / E) / d", NO_FLOOR, "x / (s d)", "s d"),
}
SCALE_RULE_NAMES = tuple(SCALE_RULES)
