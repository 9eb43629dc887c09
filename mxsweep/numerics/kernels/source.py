"""Write the source of kernels for a format: macros, what all kernels need, and the kernels' files behind that."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from enum import IntEnum
from importlib import resources

import torch

from mxsweep.formats.element import ROUNDINGS
from mxsweep.formats.mxformat import INF_SATURATES, MXFormat
from mxsweep.formats.scale import SCALE_ROUNDINGS, ScaleFormat
from mxsweep.formats.scale_rules import DIVISOR, DIVISOR_BY_RECIPROCAL, FACTOR
from mxsweep.numerics.wanted_exponents import RANGE, RANGES

VECTOR_BYTES = 16  # read by a thread at once
WARP = 32

# The enumerations of mx.cu and, of storage, of bits.cu, in their order: the numbers are those that they compile to.
Scale = IntEnum("Scale", "E8M0 MINIFLOAT FP32", start=0)
Storage = IntEnum("Storage", "FLOAT32 BFLOAT16 FLOAT16", start=0)
TensorScale = IntEnum("TensorScale", "DIVISOR DIVISOR_BY_RECIPROCAL FACTOR", start=0)
Wanted = IntEnum("Wanted", "AG_OVER_E A_OVER_E_OVER_D A_OVER_ED G_A_OVER_E G_A_INVERSE_E", start=0)
Quotient = IntEnum("Quotient", "OVER_READ TIMES_INVERSE_D_OVER_S TIMES_INVERSE_S_INVERSE_G", start=0)
Read = IntEnum("Read", "S_OVER_G SD INVERSE_INVERSE_S_INVERSE_G", start=0)

STORAGE = {
    torch.float32: Storage.FLOAT32,
    torch.bfloat16: Storage.BFLOAT16,
    torch.float16: Storage.FLOAT16,
}
# What a rule says (formats/scale_rules.py) in mx.cu's words.
_TENSOR_SCALE = {
    DIVISOR: TensorScale.DIVISOR,
    DIVISOR_BY_RECIPROCAL: TensorScale.DIVISOR_BY_RECIPROCAL,
    FACTOR: TensorScale.FACTOR,
}
_WANTED = {
    "(a g) / E": Wanted.AG_OVER_E,
    "(a / E) / d": Wanted.A_OVER_E_OVER_D,
    "a / (E d)": Wanted.A_OVER_ED,
    "g (a / E)": Wanted.G_A_OVER_E,
    "g (a (1 / E))": Wanted.G_A_INVERSE_E,
}
_PRODUCT = {
    "x ((1 / d) / s)": Quotient.TIMES_INVERSE_D_OVER_S,
    "x (1 / (s (1 / g)))": Quotient.TIMES_INVERSE_S_INVERSE_G,
}
_READ = {
    "s / g": Read.S_OVER_G,
    "s d": Read.SD,
    "1 / (1 / (s (1 / g)))": Read.INVERSE_INVERSE_S_INVERSE_G,
}

# A struct of mx.cu, field by field: of structs, numbers, words and flags.
Fields = tuple["Fields | int | float | IntEnum | bool", ...]
Macro = Fields | int | float | IntEnum | str


def kernel_source(
    fmt: MXFormat, dtype: torch.dtype, *files: str, macros: Mapping[str, Macro] | None = None, prescale: float = 1.0,
    keeps: bool = False,
) -> str:  # fmt: skip
    """Return what all kernels that quantize need, for a format, and `files` behind it; the prescale is as
    `quantize_rescaled` has it.

    Args:
        macros: further ones, as for `joined_files`.
        keeps: whether the kernels keep what scales want, for which they have one more argument (`ranges_at`).
    """
    own: dict[str, Macro] = {
        "MX_FORMAT": format_fields(fmt, dtype, prescale),
        "STORAGE": STORAGE[dtype],
        "MX_LANES": max(1, lanes_of(fmt, dtype)),
    }
    if keeps:
        own |= {"MX_RANGES": RANGES, "MX_RANGE": RANGE}
    return joined_files("mx.cu", "pairs.cu", "storage.cu", "vectors.cu", *files, macros={**own, **(macros or {})})


def joined_files(*names: str, macros: Mapping[str, Macro] | None = None) -> str:
    """Return macros, bits.cu and files of this folder as one source, of which a compiler's messages name the file and
    the line.

    Args:
        macros: by their names; numbers and structs become C++, and strings are it.
    """
    values = {name: of if isinstance(of, str) else _literal(of) for name, of in (macros or {}).items()}
    files = (f'#line 1 "{name}"\n{_text(name)}' for name in ("bits.cu", *names))
    return "\n".join((*(f"#define {name} {value}" for name, value in values.items()), *files))


@functools.cache
def _text(name: str) -> str:
    return resources.files("mxsweep.numerics.kernels").joinpath(name).read_text(encoding="utf-8")


def block_length(fmt: MXFormat) -> int:
    """Return the length of a block along one dimension; 0 for a whole axis or a tile."""
    return fmt.block_size if isinstance(fmt.block_size, int) else 0


def lanes_of(fmt: MXFormat, dtype: torch.dtype) -> int:
    """Return how many threads share one block of neighbours, or a row of a tile, by halves; 0 where these cannot be."""
    columns = fmt.block_size if isinstance(fmt.block_size, int) else fmt.block_size[1]
    lanes, rest = divmod(columns * dtype.itemsize, VECTOR_BYTES)
    return lanes if not rest and lanes <= WARP and not lanes & (lanes - 1) else 0


def _literal(field: Fields | float) -> str:
    """Return a struct, an array or a number as C++ source; floats are in hexadecimal, and so exact."""
    if isinstance(field, tuple):
        return "{" + ", ".join(map(_literal, field)) + "}"
    if isinstance(field, IntEnum):
        return field.name
    return f"{field.hex()}f" if isinstance(field, float) else str(field).lower()


def format_fields(fmt: MXFormat, dtype: torch.dtype, prescale: float = 1.0) -> Fields:
    """Return mx.cu's `Format` of a format for a dtype, with a prescale."""
    element, scale = fmt.element_format, fmt.scale_format
    kind = _scale_kind(scale)
    minifloat = (scale.mantissa_bits, scale.min_exponent) if kind is Scale.MINIFLOAT else (0, 0)
    return (
        (element.mantissa_bits, element.min_exponent, element.largest, element.lowest),
        element.max_exponent if fmt.scale_emax else 0,
        ROUNDINGS.index(fmt.rounding),
        kind,
        SCALE_ROUNDINGS.index("even" if fmt.even_bits is not None else fmt.scale_rounding),
        fmt.max_scale_exponent,
        fmt.even_bits or 0,
        (*minifloat, float(scale.largest), 0.0),
        float(fmt.least_scale),
        _rule(fmt, dtype),
        *(fmt.symmetric, fmt.tensor_scale, fmt.inf == INF_SATURATES, fmt.four_over_six),
        float(prescale),
    )


def flat_fields(fields: Fields) -> Iterator[int | float | bool]:
    """Give the numbers and flags of a struct in the order in which they lie in memory."""
    for field in fields:
        if isinstance(field, tuple):
            yield from flat_fields(field)
        else:
            yield field


def _rule(fmt: MXFormat, dtype: torch.dtype) -> Fields:
    """Return mx.cu's `Rule` of a format."""
    rule = fmt.rule
    return (
        _TENSOR_SCALE[rule.tensor_scale],
        _WANTED[rule.wanted],
        Quotient.OVER_READ if rule.quotient == f"x / ({rule.read})" else _PRODUCT[rule.quotient],
        _READ[rule.read],
        STORAGE[dtype if rule.in_dtype else torch.float32],
        2.0**-fmt.scale_format.mantissa_bits if rule.zero_becomes_epsilon else 0.0,
    )


def _scale_kind(scale: ScaleFormat) -> Scale:
    """Return mx.cu's word for how a scale is computed."""
    return Scale.E8M0 if scale.is_power_of_two else Scale.FP32 if scale.is_float32 else Scale.MINIFLOAT
