"""Write the source of kernels for a format: mx.cu with macros in front, and the kernels' file behind it."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from importlib import resources

import torch

from mxsweep.formats.element import ROUNDINGS
from mxsweep.formats.mxformat import MXFormat
from mxsweep.formats.scale import SCALE_ROUNDINGS, ScaleFormat

VECTOR_BYTES = 16  # read by a thread at once
_STORAGE = {torch.float32: "FLOAT32", torch.bfloat16: "BFLOAT16", torch.float16: "FLOAT16"}


def kernel_source(fmt: MXFormat, dtype: torch.dtype, *files: str, more: Sequence[str] = ()) -> str:
    """Return mx.cu with the macros in front that make it a format's, `more` lines among them, and `files` behind it."""
    lines = (
        f"#define MX_FORMAT {format_initializer(fmt)}",
        f"#define MX_STORAGE {_STORAGE[dtype]}",
        f"#define MX_LANES {max(1, lanes_of(fmt, dtype))}",
        *more,
    )
    return "\n".join((*lines, *(f'#line 1 "{name}"\n{_text(name)}' for name in ("mx.cu", *files))))


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


def format_initializer(fmt: MXFormat) -> str:
    """Return mx.cu's `Format` of a format, as C++ source. Numbers are written in hexadecimal and so exactly."""
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
        SCALE_ROUNDINGS.index(fmt.scale_rounding),
        fmt.max_scale_exponent,
        grid(*scale_grid),
        f"{fmt.least_scale.hex()}f",
        str(fmt.symmetric).lower(),
        str(fmt.tensor_scale).lower(),
    )
    return "{" + ", ".join(map(str, fields)) + "}"


def _scale_kind(scale: ScaleFormat) -> str:
    """Return mx.cu's word for how a scale is computed."""
    return "E8M0" if scale.is_power_of_two else "FP32" if scale.is_float32 else "MINIFLOAT"
