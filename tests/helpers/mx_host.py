"""mx.cu compiled by the host's compiler, for comparing it with torch on machines without a GPU."""

import ctypes
from collections.abc import Sequence
from pathlib import Path

import torch

from helpers.host_compiler import compiled
from mxsweep.numerics import MXFormat
from mxsweep.numerics.kernels.source import format_fields, joined_files


def host_library(
    folder: Path,
    formats: Sequence[MXFormat],
    dtype: torch.dtype = torch.float32,
    name: str = "mx_host.cpp",
    files: Sequence[str] = ("mx.cu",),
) -> ctypes.CDLL:
    """The functions of a C++ file behind kernels' files, which know a format by its index in `formats`."""
    macros = {"MX_FORMATS": tuple(format_fields(fmt, dtype) for fmt in formats)}
    return ctypes.CDLL(str(compiled(name, joined_files(*files, macros=macros), folder, "-std=c++17", "-O2")))


def pointer(tensor: torch.Tensor | None) -> ctypes.c_void_p:
    """To the first element; null for None."""
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())
