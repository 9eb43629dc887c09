"""Which backends and arithmetics there are, and whether one can work on this machine."""

from __future__ import annotations

from importlib.util import find_spec

from mxsweep.formats.mxformat import MXFormat

BACKENDS = ("torch", "cuda", "microxcaling")
ARITHMETICS = ("native", "exact")

# Of quantize's answers: raised whenever any of them changes, in any format, arithmetic or backend, and then only. It is
# part of the hash of every quantized run, so that a result of other numerics is not taken for a run's own.
# tests/config/test_identity.py notices a change.
NUMERICS_VERSION = 1

MICROXCALING_INSTALL = (
    "backend 'microxcaling' needs Microsoft's library (module mx), which is not on PyPI: install it with "
    "`pip install --no-deps git+https://github.com/microsoft/microxcaling` (without --no-deps it pins an old "
    "torch), or clone that repository and put the clone on PYTHONPATH; it also needs numpy and packaging"
)

CUDA_INSTALL = "install it with `pip install 'mxsweep[cuda]'`, or cuda-core and NVRTC as your CUDA version has them"
_OLDEST_GPU = (7, 5)  # compute capability; that of a T4

_LIBRARY_ELEMENTS = ("fp8_e5m2", "fp8_e4m3", "fp6_e3m2", "fp6_e2m3", "fp4_e2m1", "int8", "int4", "int2")
_LIBRARY_ROUNDINGS = ("nearest", "even", "floor")


class BackendUnavailable(RuntimeError):
    """Report that a backend cannot work here: missing hardware, a missing library, or a format it has no answer for."""


def check_backend(backend: str, arithmetic: str) -> None:
    """Raise ValueError for a backend or an arithmetic that does not exist."""
    for field, value, allowed in (("backend", backend, BACKENDS), ("arithmetic", arithmetic, ARITHMETICS)):
        if value not in allowed:
            raise ValueError(f"{field}: {value!r} is not known; allowed: {', '.join(allowed)}")


def backend_problem(backend: str) -> str | None:
    """Return why `backend` cannot work on this machine, in one sentence; None if it can. Only for "torch" is torch not
    imported.

    Raises:
        ValueError: there is no such backend.
    """
    check_backend(backend, "exact")
    if backend == "cuda":
        return _cuda_problem()
    if backend == "microxcaling":
        return _microxcaling_problem()
    return None


def _cuda_problem() -> str | None:
    import torch

    if not torch.cuda.is_available():
        return "backend 'cuda' needs a CUDA GPU, and none was found"
    old = [index for index in range(torch.cuda.device_count()) if torch.cuda.get_device_capability(index) < _OLDEST_GPU]
    if old:
        return f"backend 'cuda' needs a GPU of compute capability 7.5 or more, and cuda:{old[0]} is older"
    missing = [name for name in ("cuda.core", "cuda.bindings.nvrtc") if not _can_find(name)]
    return f"backend 'cuda' needs {missing[0]}: {CUDA_INSTALL}" if missing else None


def _can_find(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ImportError:  # of a package above it
        return False


def _microxcaling_problem() -> str | None:
    # Other projects are called mx too, so the submodule is asked for; finding it imports the package mx.
    try:
        is_there = find_spec("mx.mx_ops") is not None
    except ImportError as error:
        missing = "" if error.name in (None, "mx") else f" (importing mx failed: {error})"
        return MICROXCALING_INSTALL + missing
    return None if is_there else MICROXCALING_INSTALL


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
        (tile is not None and tile[0] != tile[1], f"block_size {tile}; of tiles it has square ones"),
        (tile is not None and arithmetic == "exact", f"block_size {tile} with arithmetic exact, only native"),
    )
    for refused, what in refusals:
        if refused:
            return f"backend 'microxcaling' has no {what}"
    return None
