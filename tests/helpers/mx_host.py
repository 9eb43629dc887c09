"""mx.cu and gptq.cu compiled by the host's compiler, for comparing them with torch on machines without a GPU."""

import ctypes
import shutil
import subprocess
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import pytest
import torch

from mxsweep.numerics import MXFormat
from mxsweep.numerics.kernels.source import format_initializer

HOST = Path(__file__).parent / "mx_host.cpp"


def host_library(folder: Path, formats: Sequence[MXFormat]) -> ctypes.CDLL:
    """The functions of mx_host.cpp, which know a format by its index in `formats`."""
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler (g++ or c++) on this machine")
    (folder / "formats.inc").write_text("".join(f"{format_initializer(fmt, torch.float32)},\n" for fmt in formats))
    with resources.as_file(resources.files("mxsweep.numerics.kernels")) as sources:
        subprocess.run(
            [compiler, "-std=c++17", "-O2", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC",
             f'-DMX_SOURCE="{sources / "mx.cu"}"', f'-DGPTQ_SOURCE="{sources / "gptq.cu"}"',
             f'-DMX_FORMATS="{folder}/formats.inc"', "-o", folder / "mx_host.so", HOST],
            check=True,
        )  # fmt: skip
    return ctypes.CDLL(str(folder / "mx_host.so"))


def pointer(tensor: torch.Tensor | None) -> ctypes.c_void_p:
    """To the first element; null for None."""
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())
