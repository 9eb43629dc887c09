"""The kernels of blocks.cu as a host runs them: formats with rules of their own, in blocks of every kind."""

from __future__ import annotations

import ctypes
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.adversarial import adversarial, assert_same_bits
from helpers.kernel_host import HostKernels
from helpers.mx_host import host_library, pointer

from mxsweep.numerics import MXFormat
from mxsweep.numerics.kernels import cuda
from mxsweep.numerics.kernels.source import kernel_source
from mxsweep.numerics.philox import Draws
from mxsweep.numerics.reference.definition import tensor_scale_over
from mxsweep.numerics.rescaled import quantize_rescaled

KEY = 2**63 + 11
NVFP4 = MXFormat("fp4_e2m1", 16, "e4m3", rounding="even", tensor_scale=True)
BETTER = replace(NVFP4, rounding="stochastic", four_over_six=True, inf="saturate")


@pytest.mark.parametrize("prescale", [1.0, 0.75])
@pytest.mark.parametrize(
    ("fmt", "dtype"),
    [
        (MXFormat("fp4_e2m1", 32, rounding="stochastic"), torch.bfloat16),
        (MXFormat("fp4_e2m1", 32, rounding="stochastic"), torch.float32),
        (MXFormat("fp8_e4m3", 64, inf="saturate", scale_rounding="even7"), torch.bfloat16),
        (BETTER, torch.bfloat16),
        (BETTER, torch.float32),
        (MXFormat("int4", 32, "fp32", symmetric=False, four_over_six=True, scale_floor="none"), torch.bfloat16),
        (replace(NVFP4, scale_rule="compressed_tensors", rounding="ties_to_zero"), torch.bfloat16),
        (replace(NVFP4, scale_rule="torchao", scale_floor="none", inf="saturate"), torch.float32),
        (replace(NVFP4, scale="e5m3", scale_rule="modelopt"), torch.bfloat16),
    ],
    ids=str,
)
def test_the_kernels_are_the_definition(
    fmt: MXFormat, dtype: torch.dtype, prescale: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = kernel_source(fmt, dtype, "blocks.cu", prescale=prescale)
    kernels, used = HostKernels(source, tmp_path, "-DMX_BLOCKS_ON_HOST"), []
    monkeypatch.setattr(cuda, "_kernels", lambda *_: kernels)
    monkeypatch.setattr(cuda, "takes", lambda *_: False)
    monkeypatch.setattr(  # the maxima of tensors, which threads that share memory find
        cuda, "_tensor_scales", lambda x, fmt, _, dims, amax: (
            tensor_scale_over(x, fmt, dims, amax).contiguous(), cuda._group_size(x, dims),
        ),
    )  # fmt: skip
    launch = kernels.launch
    monkeypatch.setattr(kernels, "launch", lambda name, *rest: (used.append(name), launch(name, *rest)))
    x = adversarial(8 * 9 * 128, 2).view(8, 9, 128).to(dtype)
    for axis, dims, part in ((-1, (-1,), x), (-1, (-1,), x[..., :88]), (-2, (-2, -1), x)):
        part = part.contiguous()
        y = torch.full_like(part, 7.0)
        dims = dims if fmt.tensor_scale else None
        cuda._launch(part, y, fmt, axis, dims, Draws(KEY, 1, 3), None, prescale)
        beside = {"generator": KEY, "example_dims": 1, "first_example": 3, "tensor_dims": dims}
        assert_same_bits(y, quantize_rescaled(part, fmt, axis, prescale=prescale, **beside))
        assert not y.isnan().all()
    assert used == ["mx_rows", "mx_tiles_by_warp", "mx_tiles_by_thread"]


def test_numbers_are_rounded_to_what_tensors_are_stored_in(tmp_path: Path) -> None:
    library = host_library(tmp_path, [NVFP4])
    x = adversarial(2**16, 5).abs()
    halves = torch.arange(2**15).to(torch.int16).view(torch.float16).float()  # and what lies midway
    x = torch.cat([x, halves, (halves[1:] + halves[:-1]) / 2, torch.tensor([math.inf, 65519.99, 65520.0, 0.0])])
    for storage, dtype in enumerate((torch.float32, torch.bfloat16, torch.float16)):
        y = torch.empty_like(x)
        library.rounded_to_storage(storage, pointer(x), pointer(y), ctypes.c_long(x.numel()))
        assert_same_bits(y, x.to(dtype).float())
