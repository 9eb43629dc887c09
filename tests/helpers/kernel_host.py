"""Kernels that are made of warps, compiled by the host's compiler, whose threads are the lanes: kernel_host.cpp."""

import ctypes
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mxsweep.numerics import MXFormat
from mxsweep.numerics.kernels.compile import THREADS
from mxsweep.numerics.kernels.source import WARP
from mxsweep.numerics.kernels.ways import SOURCES, Threads, tile_source

HOST = Path(__file__).parent / "kernel_host.cpp"


class HostKernels:
    """Stand in for `Kernels`: the kernel compiled for the host."""

    def __init__(self, source: str, folder: Path, *macros: str) -> None:
        compiler = shutil.which("g++")
        if compiler is None:
            pytest.skip("no g++ on this machine")
        folder.mkdir(exist_ok=True)
        written, built = folder / "kernel.cu", folder / "kernel.so"
        written.write_text(source, encoding="utf-8")
        # Of headers C's alone: C++'s own around them take longer to read than a kernel takes to compile.
        subprocess.run(
            [compiler, "-std=c++20", "-nostdinc++", "-O0", "-ffp-contract=off", "-w", "-shared", "-fPIC",
             f'-DKERNEL_SOURCE="{written}"', *macros, "-o", built, HOST],
            check=True,
        )  # fmt: skip
        self._library = ctypes.CDLL(str(built))

    def launch(self, name: str, threads: int, *arguments: int) -> None:
        function = getattr(self._library, f"{name.removeprefix('mx_')}_on_host")
        function(ctypes.c_long(threads), *map(ctypes.c_ulonglong, (number % 2**64 for number in arguments)))


# Those that go on with a loop where threads keep less than a block, and those that do not, of threads that share
# memory: here a warp keeps what all of these do.
LOOPS = tuple(name for name in SOURCES["tiles.cu"] if "tiles" in name)
WITHOUT_LOOPS = ("mx_groups", *(name for name in SOURCES["tiles.cu"] if "column" in name))


class HostWays:
    """Stand in for cuda.py's `_tile_kernels`: compile kernels of ways.py when they are asked for, and note which were.

    Thread blocks are a warp here, which keeps what all threads of a group keep elsewhere.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._compiled = folder, dict[object, HostKernels]()
        self.used: list[str] = []

    def __call__(
        self, fmt: MXFormat, dtype: torch.dtype, device: int, prescale: float, threads: Threads, name: str, keeps: bool
    ) -> "_HostWay":
        build = Threads(2) if name in LOOPS else threads
        if name in WITHOUT_LOOPS:
            build = replace(threads, kept=threads.kept * threads.block // WARP)
        key = fmt, dtype, prescale, build, name, keeps
        if key not in self._compiled:
            source = tile_source(fmt, dtype, prescale, build, name, keeps=keeps)
            self._compiled[key] = HostKernels(source, self._folder / f"way_{len(self._compiled)}")
        self.used.append(name)
        return _HostWay(self._compiled[key], threads.block)


class _HostWay:
    def __init__(self, kernels: HostKernels, block: int) -> None:
        self._kernels, self._block = kernels, block

    def launch(self, name: str, threads: int, *arguments: int) -> None:
        self._kernels.launch(name, threads // self._block * THREADS if self._block < THREADS else threads, *arguments)
