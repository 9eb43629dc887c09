"""mx.cu compiled by the host's compiler, for comparing it with torch on machines without a GPU."""

import ctypes
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from mxsweep.numerics import MXFormat
from mxsweep.numerics.kernels.source import format_initializer, joined_files

HOST = Path(__file__).parent / "mx_host.cpp"


def host_library(folder: Path, formats: Sequence[MXFormat]) -> ctypes.CDLL:
    """The functions of mx_host.cpp, which know a format by its index in `formats`."""
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler (g++ or c++) on this machine")
    (folder / "formats.inc").write_text("".join(f"{format_initializer(fmt, torch.float32)},\n" for fmt in formats))
    (folder / "mx.cu").write_text(joined_files("mx.cu"))
    subprocess.run(
        [compiler, "-std=c++17", "-O2", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-Wno-unused-function",
         "-shared", "-fPIC", f'-DMX_SOURCE="{folder}/mx.cu"', f'-DMX_FORMATS="{folder}/formats.inc"',
         "-o", folder / "mx_host.so", HOST],
        check=True,
    )  # fmt: skip
    return ctypes.CDLL(str(folder / "mx_host.so"))


def pointer(tensor: torch.Tensor | None) -> ctypes.c_void_p:
    """To the first element; null for None."""
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())
