"""Name the backends and arithmetics, and say which formats Microsoft's library has no answer for."""

from __future__ import annotations

from collections.abc import Iterable

from mxsweep.formats.mxformat import INF_IS_NAN, MXFormat

BACKENDS = ("torch", "cuda", "microxcaling")
ARITHMETICS = ("native", "exact")

# Of quantize's answers: raised whenever any of them changes, in any format, arithmetic or backend, and then only. It is
# part of the hash of every quantized run, so that a result of other numerics is not taken for a run's own.
# tests/config/test_identity.py notices a change.
NUMERICS_VERSION = 1
# Of the answers of stochastic rounding alone, beside that: of the random numbers and of what is done with them.
#   1  Philox4x32-10, 24 bits and a call to an element
#   2  Philox4x32-7, 16 bits to an element, eight elements to a call
STOCHASTIC_VERSION = 2

_LIBRARY_ELEMENTS = ("fp8_e5m2", "fp8_e4m3", "fp6_e3m2", "fp6_e2m3", "fp4_e2m1", "int8", "int4", "int2")
_LIBRARY_ROUNDINGS = ("nearest", "even", "floor")


class BackendUnavailable(RuntimeError):
    """Report that a backend cannot work here: missing hardware, a missing library, or a format it has no answer for."""


def numerics_versions(formats: Iterable[MXFormat | None]) -> list[int]:
    """Return the versions of what quantizing to ``formats`` depends on."""
    draws = any(fmt is not None and fmt.rounding == "stochastic" for fmt in formats)
    return [NUMERICS_VERSION, STOCHASTIC_VERSION] if draws else [NUMERICS_VERSION]


def check_backend(backend: str, arithmetic: str) -> None:
    """Raise ValueError for a backend or an arithmetic that does not exist."""
    for field, value, allowed in (("backend", backend, BACKENDS), ("arithmetic", arithmetic, ARITHMETICS)):
        if value not in allowed:
            raise ValueError(f"{field}: {value!r} is not known; allowed: {', '.join(allowed)}")


def microxcaling_problem(fmt: MXFormat, arithmetic: str) -> str | None:
    """Return what of `fmt` the library has no answer for, in one sentence; None if it has one. Needs no library."""
    tile = None if isinstance(fmt.block_size, int) else fmt.block_size
    refusals = (
        (
            fmt.element not in _LIBRARY_ELEMENTS,
            f"element {fmt.element}; it has {', '.join(_LIBRARY_ELEMENTS)}",
        ),
        (fmt.scale != "e8m0", f"scale {fmt.scale}; it has e8m0"),
        (fmt.scale_rounding != "floor", f"scale_rounding {fmt.scale_rounding}; it has floor"),
        (
            fmt.rounding not in _LIBRARY_ROUNDINGS,
            f"rounding {fmt.rounding}; it has {', '.join(_LIBRARY_ROUNDINGS)}",
        ),
        (not fmt.symmetric, "symmetric=False"),
        (not fmt.scale_emax, "scale_emax=False"),
        (fmt.inf != INF_IS_NAN, f"inf {fmt.inf}"),
        (tile is not None and tile[0] != tile[1], f"block_size {tile}; of tiles it has square ones"),
        (tile is not None and arithmetic == "exact", f"block_size {tile} with arithmetic exact, only native"),
    )
    for refused, what in refusals:
        if refused:
            return f"backend 'microxcaling' has no {what}"
    return None
