"""Write the source of kernels for a format: macros, mx.cu and vectors.cu, and the kernels' file behind them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from importlib import resources

import torch

from mxsweep.formats.element import ROUNDINGS
from mxsweep.formats.mxformat import INF_SATURATES, MXFormat
from mxsweep.formats.scale import SCALE_ROUNDINGS, ScaleFormat
from mxsweep.formats.scale_rules import DIVISOR, DIVISOR_BY_RECIPROCAL, FACTOR

VECTOR_BYTES = 16  # read by a thread at once
_STORAGE = {torch.float32: "FLOAT32", torch.bfloat16: "BFLOAT16", torch.float16: "FLOAT16"}
# mx.cu's words for what a rule says (formats/scale_rules.py).
_TENSOR_SCALE = {DIVISOR: "DIVISOR", DIVISOR_BY_RECIPROCAL: "DIVISOR_BY_RECIPROCAL", FACTOR: "FACTOR"}
_WANTED = {
    "(a g) / E": "AG_OVER_E",
    "(a / E) / d": "A_OVER_E_OVER_D",
    "a / (E d)": "A_OVER_ED",
    "g (a / E)": "G_A_OVER_E",
    "g (a (1 / E))": "G_A_INVERSE_E",
}
_PRODUCT = {"x ((1 / d) / s)": "TIMES_INVERSE_D_OVER_S", "x (1 / (s (1 / g)))": "TIMES_INVERSE_S_INVERSE_G"}
_READ = {"s / g": "S_OVER_G", "s d": "SD", "1 / (1 / (s (1 / g)))": "INVERSE_INVERSE_S_INVERSE_G"}


def kernel_source(
    fmt: MXFormat, dtype: torch.dtype, *files: str, more: Sequence[str] = (), prescale: float = 1.0
) -> str:
    """Return mx.cu and vectors.cu with the macros in front that make them a format's, `more` lines among them, and
    `files` behind them; the prescale is as `quantize_rescaled` has it.
    """
    lines = (
        f"#define MX_FORMAT {format_initializer(fmt, dtype, prescale)}",
        f"#define MX_STORAGE {_STORAGE[dtype]}",
        f"#define MX_LANES {max(1, lanes_of(fmt, dtype))}",
        *more,
    )
    return "\n".join((*lines, *(f'#line 1 "{name}"\n{_text(name)}' for name in ("mx.cu", "vectors.cu", *files))))


@functools.cache
def _text(name: str) -> str:
    return resources.files("mxsweep.numerics.kernels").joinpath(name).read_text(encoding="utf-8")


def block_length(fmt: MXFormat) -> int:
    """Return the length of a block along one dimension; 0 for a whole axis or a tile."""
    return fmt.block_size if isinstance(fmt.block_size, int) else 0


def lanes_of(fmt: MXFormat, dtype: torch.dtype) -> int:
    """Return how many threads share one block of neighbours; 0 for a block that cannot be shared so."""
    lanes, rest = divmod(block_length(fmt) * dtype.itemsize, VECTOR_BYTES)
    return lanes if not rest and lanes in (1, 2, 4, 8, 16, 32) else 0


def format_initializer(fmt: MXFormat, dtype: torch.dtype, prescale: float = 1.0) -> str:
    """Return mx.cu's `Format` of a format for a dtype, with a prescale, as C++ source.

    Numbers are in hexadecimal, and so exact.
    """
    element, scale = fmt.element_format, fmt.scale_format
    kind = _scale_kind(scale)
    scale_grid = (
        (scale.mantissa_bits, scale.min_exponent, scale.largest) if kind == "MINIFLOAT" else (0, 0, scale.largest)
    )

    def grid(mantissa_bits: int, min_exponent: int, largest: float, lowest: float = 0.0) -> str:
        return f"{{{mantissa_bits}, {min_exponent}, {largest.hex()}f, {lowest.hex()}f}}"

    fields = (
        grid(element.mantissa_bits, element.min_exponent, element.largest, element.lowest),
        element.max_exponent if fmt.scale_emax else 0,
        ROUNDINGS.index(fmt.rounding),
        kind,
        SCALE_ROUNDINGS.index("even" if fmt.even_bits is not None else fmt.scale_rounding),
        fmt.max_scale_exponent,
        fmt.even_bits or 0,
        grid(*scale_grid),
        f"{fmt.least_scale.hex()}f",
        _rule(fmt, dtype),
        *(str(flag).lower() for flag in (fmt.symmetric, fmt.tensor_scale, fmt.inf == INF_SATURATES, fmt.four_over_six)),
        f"{float(prescale).hex()}f",
    )
    return "{" + ", ".join(map(str, fields)) + "}"


def _rule(fmt: MXFormat, dtype: torch.dtype) -> str:
    """Return mx.cu's `Rule` of a format."""
    rule = fmt.rule
    words = (
        _TENSOR_SCALE[rule.tensor_scale],
        _WANTED[rule.wanted],
        "OVER_READ" if rule.quotient == f"x / ({rule.read})" else _PRODUCT[rule.quotient],
        _READ[rule.read],
        _STORAGE[dtype if rule.in_dtype else torch.float32],
        f"{(2.0**-fmt.scale_format.mantissa_bits if rule.zero_becomes_epsilon else 0.0).hex()}f",
    )
    return "{" + ", ".join(words) + "}"


def _scale_kind(scale: ScaleFormat) -> str:
    """Return mx.cu's word for how a scale is computed."""
    return "E8M0" if scale.is_power_of_two else "FP32" if scale.is_float32 else "MINIFLOAT"
