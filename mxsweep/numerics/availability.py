"""Find out whether a backend can work on this machine. Importing this imports no torch; asking for "cuda" does."""

from __future__ import annotations

import sys
from importlib.util import find_spec

from mxsweep.formats.backends import check_backend

MICROXCALING_INSTALL = (
    "backend 'microxcaling' needs Microsoft's library (module mx), which is not on PyPI: install it with "
    "`pip install --no-deps git+https://github.com/microsoft/microxcaling` (without --no-deps it pins an old "
    "torch), or clone that repository and put the clone on PYTHONPATH; it also needs numpy and packaging"
)

CUDA_INSTALL = "install it with `pip install 'mxsweep[cuda]'`, or cuda-core and NVRTC as your CUDA version has them"
_OLDEST_GPU = (7, 5)  # compute capability; that of a T4


def backend_problem(backend: str) -> str | None:
    """Return why `backend` cannot work on this machine, in one sentence; None if it can.

    Only "torch" is answered without importing torch.

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
        return module in sys.modules or find_spec(module) is not None
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
