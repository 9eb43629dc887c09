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
from mxsweep.numerics.block_totals import measure_by_torch
from mxsweep.numerics.kernels.cpu_rows import MEASURES_SIZE, Asked, format_in_memory, measure_rows, quantize_rows
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
    """Load a library, and quantize and measure some elements by it, which must be done as by torch's operations.

    Raises:
        OSError: it cannot be loaded here.
        NoLibrary: it is not what it should be.
    """
    torch.set_flush_denormal(False)
    library = ctypes.CDLL(str(path))
    try:
        library.mx_compiler.restype = ctypes.c_char_p
        library.mx_format_size.restype = library.mx_measures_size.restype = ctypes.c_int64
        library.mx_quantize_rows.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
        library.mx_measure_rows.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int]
    except AttributeError as error:
        raise NoLibrary(f"what the compiler built is no library that quantizes: {error}") from None
    compiler = library.mx_compiler().decode(errors="replace")
    for what, takes, size in (
        ("a format", library.mx_format_size(), ctypes.sizeof(format_in_memory(_TRIED[0], torch.float32, 1.0))),
        ("measures", library.mx_measures_size(), MEASURES_SIZE),
    ):
        if takes != size:
            raise NoLibrary(f"what {compiler} built takes {takes} bytes for {what}, not {size}")
    if library.mx_flushes():
        raise NoLibrary(f"what {compiler} built makes zeros of subnormal numbers")
    if differs := _differs(library):
        raise NoLibrary(f"what {compiler} built does not {differs}, as torch's operations do")
    return library


def _differs(library: ctypes.CDLL) -> str:
    """Return the first thing that a library does otherwise than torch's operations do; "" where there is none.

    Bits are to be those of the definition; of what is measured, counts the same, and sums but for their order.
    """
    x = trial()
    ordinary = x.abs().amax(1) < 2.0**15  # which each dtype has, and of which sums are finite
    with not_kept(), torch.no_grad():
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            each = x.to(dtype)
            for fmt in _TRIED:
                dims = (-1,) if fmt.tensor_scale else None  # so that a NaN does not make all NaN
                draws = Draws(2**63 + 2**31 + 5, 1, 2**33 - 7) if fmt.rounding == "stochastic" else None
                for arithmetic in ("exact", "native"):
                    asked = Asked(fmt, -1, arithmetic, dims, draws=draws)
                    ours = quantize_rows(library, each, asked)
                    if ours is None:  # torch's logarithm is not as expected, which was logged
                        continue
                    expected = quantize_torch(each, fmt, -1, arithmetic, draws, dims)
                    in_which = f"{fmt}, {arithmetic} arithmetic of {dtype}"
                    if not _same_bits(ours, expected):
                        return f"quantize in {in_which}"
                    is_measured = fmt == _TRIED[0] or dtype == torch.float32  # one tensor a kind: torch takes a while
                    is_measured &= draws is None and not (asked.is_native and dtype != torch.float32)
                    if is_measured and not _measures_alike(library, each[ordinary], expected[ordinary], asked):
                        return f"measure in {in_which}"
    return ""


def _measures_alike(library: ctypes.CDLL, x: Tensor, y: Tensor, asked: Asked) -> bool:
    ours = measure_rows(library, x, y, asked, asked.is_native)
    if ours is None:
        return True
    (blocks, numbers), (expected_blocks, expected) = ours, measure_by_torch(x, y, asked, asked.is_native)
    same_sums = torch.allclose(numbers[:2], expected[:2], rtol=1e-12, atol=0.0)
    return blocks == expected_blocks and torch.equal(numbers[2:], expected[2:]) and same_sums


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
