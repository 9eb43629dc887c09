"""Compile CUDA source for a GPU and launch its kernels on torch's current stream.

The source is compiled by NVRTC through `cuda.core`, once for each GPU architecture, in a few tenths of a second, and
kept on disk in the cache folder (`mxsweep.files.cache`).
"""

from __future__ import annotations

import ctypes
import functools
import logging
import sys
import threading
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from mxsweep.files.cache import cache_folder
from mxsweep.formats.backends import BackendUnavailable
from mxsweep.machine.out_of_memory import is_out_of_memory

log = logging.getLogger(__name__)

THREADS = 256  # of a thread block, as the __launch_bounds__ of kernels that quantize say
CACHE_BYTES = 64 * 2**20
_CUBIN_MAGIC = b"\x7fELF"

_launches = 0


def launch_count() -> int:
    """Return how many kernels this process launched so far that quantize, or help to; the difference shows that a run
    used them.
    """
    return _launches


class Kernels:
    """Launch the kernels of a compiled source (one format and dtype, say) on one GPU, in thread blocks of ``block``.

    Args:
        counted: whether `launch_count` counts them.
    """

    def __init__(self, module: Any, device: int, block: int = THREADS, *, counted: bool = True) -> None:
        self._module, self._device, self._block, self._counts = module, device, block, int(counted)
        self._kernels: dict[str, tuple[Any, int]] = {}  # with the driver's handles

    def launch(self, name: str, threads: int, *arguments: int) -> None:
        """Launch on torch's current stream. Pointers and numbers are 64 bits wide, as in mx.cu.

        The driver is called itself, in a few microseconds: of a step of training that is a good part.
        """
        global _launches
        if name not in self._kernels:
            kernel = self._module.get_kernel(name)
            self._kernels[name] = kernel, int(kernel.handle)
        _, handle = self._kernels[name]
        pointers = _parameters.of(arguments)
        stream = torch._C._cuda_getCurrentRawStream(self._device)
        grid = -(-threads // self._block)
        status = _driver().cuLaunchKernel(handle, grid, 1, 1, self._block, 1, 1, 0, stream, pointers, None)
        if status:
            raise RuntimeError(f"CUDA's driver could not launch {name}: error {status}")
        _launches += self._counts


class _Parameters(threading.local):
    """Hold what the driver reads a kernel's arguments from, for each number of them, since to make it takes a while.

    A thread has its own: the driver is called without Python's lock.
    """

    def __init__(self) -> None:
        self._kept: dict[int, tuple[Any, Any]] = {}

    def of(self, arguments: tuple[int, ...]) -> Any:
        """Return an array of the addresses at which the arguments stand until the next call."""
        count = len(arguments)
        if count not in self._kept:
            values = (ctypes.c_int64 * count)()
            first = ctypes.addressof(values)
            self._kept[count] = values, (ctypes.c_void_p * count)(*range(first, first + 8 * count, 8))
        values, pointers = self._kept[count]
        values[:] = arguments  # which wraps numbers from 2^63 on, as it is wanted here
        return pointers


_parameters = _Parameters()
_NOTHING = nullcontext()


def on(device: torch.device) -> AbstractContextManager[object]:
    """Return a context in which a GPU is the current one, with less ado than torch's where it is already."""
    return _NOTHING if torch.cuda.current_device() == device.index else torch.cuda.device(device)


@functools.cache
def _driver() -> Any:
    driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    sizes = [ctypes.c_uint] * 7  # of the grid and of a thread block, and bytes of shared memory
    driver.cuLaunchKernel.argtypes = [ctypes.c_void_p, *sizes, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
    return driver


def load_kernels(source: str, device: int, block: int = THREADS, *, counted: bool = True) -> Kernels:
    """Compile CUDA source for a GPU, or take it from the folder that keeps what was compiled.

    Args:
        block, counted: as for `Kernels`.

    Raises:
        BackendUnavailable: as :func:`compile_source`, or the driver does not load what was compiled.
    """
    from cuda.core import Device

    major, minor = torch.cuda.get_device_capability(device)
    arch = f"sm_{major}{minor}"
    with on(torch.device("cuda", device)):  # afterwards the GPU is the current one that was
        Device(device).set_current()
        compiled = compile_source(source, arch, _disk_cache())
        try:
            _ = compiled.handle  # has the driver load it: now, and not at the first launch, when nobody can do without
        except Exception as error:
            if is_out_of_memory(error):
                raise
            raise BackendUnavailable(f"backend 'cuda' could not load its kernels for {arch}: {error}") from error
    return Kernels(compiled, device, block, counted=counted)


def compile_source(source: str, arch: str, cache: Any = None) -> Any:
    """Compile CUDA source to a `cuda.core.ObjectCode` for `arch` (such as "sm_90"). Needs no GPU.

    Raises:
        BackendUnavailable: cuda-core or NVRTC is missing, or the compiler refused.
    """
    try:
        from cuda.core import Program, ProgramOptions

        # A product and a sum must stay two roundings; functions without a word before them, as lambdas, are the GPU's.
        options = ProgramOptions(arch=arch, std="c++17", fma=False, device_as_default_execution_space=True)
        program = Program(source, "c++", options)
        if cache is not None:
            try:
                kept = program.compile("cubin", cache=cache)
                if bytes(kept.code[: len(_CUBIN_MAGIC)]) == _CUBIN_MAGIC:  # and not a file that something cut short
                    return kept
            except OSError as error:
                log.warning("a compiled CUDA kernel was not kept: %s", error)  # a full disk, say
        return program.compile("cubin")
    except Exception as error:  # NVRTC's, the loader's and cuda.core's own have no common ancestor below this
        raise BackendUnavailable(f"backend 'cuda' could not compile its kernels for {arch}: {error}") from error


@functools.cache
def _disk_cache() -> Any:
    """Return the cache of compiled kernels on disk; None, and a compilation a process, where it cannot be written."""
    from cuda.core.utils import FileStreamProgramCache

    try:
        return FileStreamProgramCache(cache_folder("kernels"), max_size_bytes=CACHE_BYTES)
    except OSError as error:  # a folder that cannot be written, or no home to have one in
        log.warning("compiled CUDA kernels are not kept: %s", error)
        return None
