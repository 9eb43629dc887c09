"""Kernels that are made of warps, compiled by the host's compiler, whose threads are the lanes: kernel_host.cpp."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest

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
        subprocess.run(
            [compiler, "-std=c++20", "-O1", "-ffp-contract=off", "-w", "-pthread", "-shared", "-fPIC",
             f'-DKERNEL_SOURCE="{written}"', *macros, "-o", built, HOST],
            check=True,
        )  # fmt: skip
        self._library = ctypes.CDLL(str(built))

    def launch(self, name: str, threads: int, *arguments: int) -> None:
        function = getattr(self._library, f"{name.removeprefix('mx_')}_on_host")
        function(ctypes.c_long(threads), *map(ctypes.c_ulonglong, (number % 2**64 for number in arguments)))
