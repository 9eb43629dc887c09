"""Try a library that was built for the CPU before it is used: options of a compiler may change what it computes.

It is loaded and tried in a thread that a caller makes for that: some compilers put code into a library that, when it is
loaded, has the thread make zeros of subnormal numbers, which threads that are started from it would inherit.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from mxsweep.formats.mxformat import MXFormat
from mxsweep.numerics.kernels.cpu_rows import Asked, format_in_memory, quantize_rows
from mxsweep.numerics.philox import Draws
from mxsweep.numerics.reference.definition import quantize_torch
from mxsweep.numerics.wanted_exponents import not_kept


class NoLibrary(Exception):
    """Say why there is no library, though one might be expected."""


# Of each way in which rows.cpp computes an element or a scale.
_TRIED = tuple(
    MXFormat.parse(text)
    for text in (
        "fp4_e2m1-b32-e8m0", "fp6_e2m3-b32-e8m0-round_even", "int8-b32-e8m0-scale_even-round_ties_to_zero",
        "fp4_e2m1-b16-e4m3-tensor-round_even", "fp8_e4m3-b32-fp32-round_floor", "int4-b32-fp32-asym",
        "int4-b16-e4m3-tensor-round_ties_to_zero-rule_torchao-4over6", "fp4_e2m1-b16-e4m3-rule_auto_round",
        "fp4_e2m1-b32-e8m0-round_stochastic", "int4-b16-e4m3-tensor-asym-round_stochastic",
    )
)  # fmt: skip


def load_and_try(path: Path) -> ctypes.CDLL:
    """Load a library, and quantize some elements by it, which must become what torch's operations make of them.

    Raises:
        OSError: it cannot be loaded here.
        NoLibrary: it is not what it should be.
    """
    torch.set_flush_denormal(False)
    library = ctypes.CDLL(str(path))
    try:
        library.mx_compiler.restype = ctypes.c_char_p
        library.mx_format_size.restype = ctypes.c_int64
        library.mx_quantize_rows.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
        library.mx_measure_rows.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int]
    except AttributeError as error:
        raise NoLibrary(f"what the compiler built is no library that quantizes: {error}") from None
    compiler = library.mx_compiler().decode(errors="replace")
    size = ctypes.sizeof(format_in_memory(_TRIED[0], torch.float32, 1.0))
    if library.mx_format_size() != size:
        raise NoLibrary(f"what {compiler} built takes {library.mx_format_size()} bytes for a format, not {size}")
    if library.mx_flushes():
        raise NoLibrary(f"what {compiler} built makes zeros of subnormal numbers")
    if differs := _differs(library):
        raise NoLibrary(f"what {compiler} built does not quantize as torch's operations do: {differs}")
    return library


def _differs(library: ctypes.CDLL) -> str:
    """Return the first format and dtype in which a library has other bits than the definition; "" where in none."""
    x = trial()
    with not_kept(), torch.no_grad():
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            each = x.to(dtype)
            for fmt in _TRIED:
                dims = (-1,) if fmt.tensor_scale else None  # so that a NaN does not make all NaN
                draws = Draws(2**63 + 2**31 + 5, 1, 2**33 - 7) if fmt.rounding == "stochastic" else None
                for arithmetic in ("exact", "native"):
                    ours = quantize_rows(library, each, Asked(fmt, -1, arithmetic, dims, draws=draws))
                    if ours is None:  # torch's logarithm is not as expected, which was logged
                        continue
                    if not _same_bits(ours, quantize_torch(each, fmt, -1, arithmetic, draws, dims)):
                        return f"{fmt}, {arithmetic} arithmetic of {dtype}"
    return ""


def trial() -> Tensor:
    """Return what is easily got wrong, float32 [66, 32], the same every time.

    Ties and powers of two, each also an ulp further and nearer; subnormals; bits without a pattern; Inf and NaN.
    """
    at = torch.arange(8 * 32, dtype=torch.int64, device="cpu")
    column, row = at % 32 - 16, at // 32
    ties = column.float() / 4 * (row * 30 - 120).float().exp2()
    powers = (column + row * 20 - 70).float().exp2() * (1 - 2 * (at % 2))
    mixed = at * 2654435761 % 2**32  # Knuth's multiplicative hash
    ordinary = mixed & 0x7FFFFF | 110 + mixed // 2**9 % 24 << 23
    bits = [of.float().view(torch.int32) + ulps for of in (ties, powers) for ulps in (0, 1, -1)]
    bits = [torch.where(of.abs() > 2**31 - 2, 0, of) for of in bits]  # zero has no neighbour below
    finite = torch.cat([*bits, (mixed % 2**24 >> at % 24), ordinary]).to(torch.int32).view(torch.float32)
    special = torch.tensor([torch.inf, -torch.inf, 1e-45, 0.0], dtype=torch.float32, device="cpu").repeat(8)
    return torch.cat([finite, special, special * 0.0]).view(-1, 32)


def _same_bits(ours: Tensor, expected: Tensor) -> bool:
    """Return whether bits are the same, where a NaN is as good as another."""
    code = torch.int32 if ours.dtype == torch.float32 else torch.int16
    same = (ours.view(code) == expected.view(code)) | (ours.isnan() & expected.isnan())
    return bool(same.all())
