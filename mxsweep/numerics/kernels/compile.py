"""Compile CUDA source for a GPU and launch its kernels on torch's current stream.

The source is compiled by NVRTC through `cuda.core`, once for each GPU architecture, in a few tenths of a second, and
kept on disk in the cache folder (`mxsweep.files.cache`).
"""

from __future__ import annotations

import functools
import logging
from typing import Any

import torch

from mxsweep.files.cache import cache_folder
from mxsweep.formats.backends import BackendUnavailable

log = logging.getLogger(__name__)

THREADS = 256  # of a thread block, as the __launch_bounds__ of kernels that quantize say
CACHE_BYTES = 64 * 2**20
_CUBIN_MAGIC = b"\x7fELF"

_launches = 0


def launch_count() -> int:
    """Return how many kernels this process launched so far; the difference shows that a run used them."""
    return _launches


class Kernels:
    """Launch the kernels of a compiled source (one format and dtype, say) on one GPU, in thread blocks of ``block``."""

    def __init__(self, module: Any, device: int, block: int = THREADS) -> None:
        self._module, self._device, self._block = module, device, block
        self._kernels: dict[str, Any] = {}

    def launch(self, name: str, threads: int, *arguments: Any) -> None:
        """Launch on torch's current stream. Pointers and numbers are 64 bits wide, as in mx.cu."""
        global _launches
        from cuda.core import launch

        kernel = self._kernels.get(name)
        if kernel is None:
            kernel = self._kernels[name] = self._module.get_kernel(name)
        config = _launch_config(-(-threads // self._block), self._block)
        stream = _stream(self._device, torch.cuda.current_stream(self._device).cuda_stream)
        launch(stream, config, kernel, *map(_as_int64, arguments))
        _launches += 1


def _as_int64(value: int) -> Any:
    import numpy as np

    return np.uint64(value) if value >= 2**63 else np.int64(value)


@functools.lru_cache(maxsize=1024)
def _launch_config(thread_blocks: int, block: int) -> Any:
    from cuda.core import LaunchConfig

    return LaunchConfig(grid=thread_blocks, block=block)


@functools.lru_cache(maxsize=64)
def _stream(device: int, handle: int) -> Any:
    """Wrap a stream of a device; the device counts, since every one's default stream has the same handle."""
    from cuda.core import Stream

    return Stream.from_handle(handle)


def load_kernels(source: str, device: int, block: int = THREADS) -> Kernels:
    """Compile CUDA source for a GPU, or take it from the folder that keeps what was compiled.

    Raises:
        BackendUnavailable: as :func:`compile_source`.
    """
    from cuda.core import Device

    Device(device).set_current()
    major, minor = torch.cuda.get_device_capability(device)
    return Kernels(compile_source(source, f"sm_{major}{minor}", _disk_cache()), device, block)


def compile_source(source: str, arch: str, cache: Any = None) -> Any:
    """Compile CUDA source to a `cuda.core.ObjectCode` for `arch` (such as "sm_90"). Needs no GPU.

    Raises:
        BackendUnavailable: cuda-core or NVRTC is missing, or the compiler refused.
    """
    try:
        from cuda.core import Program, ProgramOptions

        # A product and a sum must stay two roundings.
        program = Program(source, "c++", ProgramOptions(arch=arch, std="c++17", fma=False))
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
