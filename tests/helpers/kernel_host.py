"""Kernels compiled by the host's compiler, which runs their thread blocks: kernel_host.cpp."""

from __future__ import annotations

import ctypes
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from helpers.host_compiler import compiled
from mxsweep.numerics import MXFormat
from mxsweep.numerics.kernels import cuda
from mxsweep.numerics.kernels.compile import THREADS
from mxsweep.numerics.kernels.source import kernel_source
from mxsweep.numerics.kernels.ways import SOURCES, Threads, tile_source


class HostKernels:
    """Stand in for `Kernels`: a source compiled for the host, in thread blocks of ``block``.

    Attributes:
        library: what was compiled.
        path: where that is.
        launched: the names of kernels, in turn.
    """

    def __init__(self, source: str, folder: Path, block: int = THREADS) -> None:
        # Of headers C's alone: C++'s own around them take longer to read than a kernel takes to compile. Templates'
        # shared memory would be unique, one for all libraries of a process, of the size that the first one has.
        options = ("-std=c++20", "-O0", "-nostdinc++", "-fno-gnu-unique")
        warnings = ("-Wno-unknown-pragmas", "-Wno-unused-parameter")
        self.path = compiled("kernel_host.cpp", source, folder, *options, *warnings, compilers=("g++",))
        self.library, self._block = ctypes.CDLL(str(self.path)), block
        self.launched: list[str] = []

    def launch(self, name: str, threads: int, *arguments: int) -> None:
        self.launched.append(name)
        words = (ctypes.c_uint64 * len(arguments))(*(number % 2**64 for number in arguments))
        kernel = ctypes.cast(getattr(self.library, name), ctypes.c_void_p)
        sizes = ctypes.c_long(threads), ctypes.c_uint(self._block)
        self.library.launch_on_host(kernel, *sizes, words, ctypes.c_uint(len(words)))


# Kernels that go on with a loop where threads keep less than a block. Here they keep two vectors at most, so that
# blocks of some hundred vectors are enough for that.
_LOOPS = tuple(name for name in SOURCES["tiles.cu"] if "tiles" in name)


class HostBackend:
    """Stand in for the kernels of cuda.py, compiled for the host when they are asked for.

    Attributes:
        launched: the names of kernels that quantized, in turn.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._compiled = folder, dict[tuple[str, int], HostKernels]()
        self._launched: list[str] = []

    @property
    def launched(self) -> list[str]:
        return [name for name in self._launched if name != "mx_tensor_scales"]

    def replace(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(cuda, "_kernels", self._rows)
        monkeypatch.setattr(cuda, "_tile_kernels", self._tiles)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda _: SimpleNamespace(cuda_stream=0))

    def _rows(self, fmt: MXFormat, dtype: torch.dtype, device: int, prescale: float, keeps: bool) -> HostKernels:
        return self._kernels(kernel_source(fmt, dtype, "blocks.cu", prescale=prescale, keeps=keeps), THREADS)

    def _tiles(
        self, fmt: MXFormat, dtype: torch.dtype, device: int, prescale: float, threads: Threads, name: str, keeps: bool
    ) -> HostKernels:
        if name in _LOOPS:
            threads = replace(threads, kept=min(threads.kept, 2))
        return self._kernels(tile_source(fmt, dtype, prescale, threads, name, keeps=keeps), threads.block)

    def _kernels(self, source: str, block: int) -> HostKernels:
        if (source, block) not in self._compiled:
            kernels = HostKernels(source, self._folder / str(len(self._compiled)), block)
            kernels.launched = self._launched
            self._compiled[source, block] = kernels
        return self._compiled[source, block]
