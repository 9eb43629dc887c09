"""Which backends and arithmetics there are, and whether one can work on this machine."""

from __future__ import annotations

from importlib.util import find_spec

BACKENDS = ("torch", "cuda", "microxcaling")
ARITHMETICS = ("native", "exact")

MICROXCALING_INSTALL = (
    "backend 'microxcaling' needs Microsoft's library (module mx), which is not on PyPI: install it with "
    "`pip install --no-deps git+https://github.com/microsoft/microxcaling` (without --no-deps it pins an old "
    "torch), or clone that repository and put the clone on PYTHONPATH; it also needs numpy and packaging"
)


class BackendUnavailable(RuntimeError):
    """A backend that cannot work here: missing hardware, a missing library, or something it has no answer for."""


def check_backend(backend: str, arithmetic: str) -> None:
    """Raises ValueError for a backend or an arithmetic that does not exist."""
    for field, value, allowed in (("backend", backend, BACKENDS), ("arithmetic", arithmetic, ARITHMETICS)):
        if value not in allowed:
            raise ValueError(f"{field}: {value!r} is not known; allowed: {', '.join(allowed)}")


def backend_problem(backend: str) -> str | None:
    """Why `backend` cannot work on this machine, in one sentence; None if it can. Only "torch" is answered
    without importing torch.

    Raises:
        ValueError: there is no such backend.
    """
    check_backend(backend, "exact")
    if backend == "cuda":
        return _cuda_problem()
    if backend == "microxcaling":
        return _microxcaling_problem()
    return None


def _cuda_problem() -> str:
    import torch

    if not torch.cuda.is_available():
        return "backend 'cuda' (custom_cuda=true) needs a CUDA GPU and none was found"
    return "backend 'cuda' (custom_cuda=true) is not there: this version of mxsweep has no CUDA kernel"


def _microxcaling_problem() -> str | None:
    # Other projects are called mx too, so the submodule is asked for; finding it imports the package mx.
    try:
        found = find_spec("mx.mx_ops") is not None
    except ImportError as error:
        missing = "" if error.name in (None, "mx") else f" (importing mx failed: {error})"
        return MICROXCALING_INSTALL + missing
    return None if found else MICROXCALING_INSTALL
