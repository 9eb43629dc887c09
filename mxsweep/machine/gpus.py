"""Count the GPUs without torch: planning a sweep must not wait for that to be imported."""

from __future__ import annotations

import ctypes
import functools
import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version

_DRIVER = "libcuda.so.1"
_COUNT = f"""
import ctypes
driver, count = ctypes.CDLL({_DRIVER!r}), ctypes.c_int()
print(0 if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)) else count.value)
"""
_PATIENCE_S = 60  # a driver without a persistence daemon takes seconds to wake its GPUs


def visible_gpu_count() -> int:
    """Return how many GPUs torch can use here, under CUDA_VISIBLE_DEVICES; 0 for a CPU build of torch, and on macOS."""
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "cuda"):
        return int(torch.cuda.device_count()) if torch.cuda.is_available() else 0
    return _gpus_of_driver(os.environ.get("CUDA_VISIBLE_DEVICES"))


def device_type(device: str) -> str:
    """Return the device type of a ``model.device`` here: "auto" is "cuda" or "cpu", "cuda:1" is "cuda"."""
    if device == "auto":
        return "cuda" if visible_gpu_count() else "cpu"
    return device.partition(":")[0]


@functools.cache
def _gpus_of_driver(visible: str | None) -> int:
    """Ask the driver how many GPUs there are.

    Args:
        visible: CUDA_VISIBLE_DEVICES, the key of the cached answer; the child reads it from the environment.
    """
    if not _torch_has_cuda():
        return 0
    try:
        ctypes.CDLL(_DRIVER)
    except OSError:
        return 0
    # Asked in a child: a process in which the driver has begun cannot be told another CUDA_VISIBLE_DEVICES, nor can its
    # forks use a GPU.
    try:
        answer = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _COUNT], capture_output=True, text=True, check=True, timeout=_PATIENCE_S
        )
        return int(answer.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        return 0


def _torch_has_cuda() -> bool:
    """Return whether the installed torch is one that can use CUDA."""
    try:
        return not version("torch").endswith("+cpu")
    except PackageNotFoundError:
        return False
