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

from mxsweep.numerics import MXFormat, quantize
from mxsweep.numerics.kernels import cuda
from mxsweep.numerics.kernels.cuda import TILE_KERNELS, tile_source
from mxsweep.numerics.kernels.source import kernel_source
from mxsweep.numerics.philox import Draws
from mxsweep.numerics.reference.definition import tensor_scale_over
from mxsweep.numerics.rescaled import quantize_rescaled

KEY = 2**63 + 11
NVFP4 = MXFormat("fp4_e2m1", 16, "e4m3", rounding="even", tensor_scale=True)
BETTER = replace(NVFP4, rounding="stochastic", four_over_six=True, inf="saturate")


@pytest.mark.parametrize(
    ("fmt", "dtype", "prescale"),
    [
        (MXFormat("fp4_e2m1", 32, rounding="stochastic"), torch.bfloat16, 0.75),
        (MXFormat("fp4_e2m1", 32, rounding="stochastic"), torch.float32, 1.0),
        (MXFormat("fp8_e4m3", 64, inf="saturate", scale_rounding="even7"), torch.bfloat16, 1.0),
        (BETTER, torch.bfloat16, 0.75),
        (BETTER, torch.float32, 1.0),
        (MXFormat("int4", 32, "fp32", symmetric=False, four_over_six=True, scale_floor="none"), torch.bfloat16, 1.0),
        (replace(NVFP4, scale_rule="compressed_tensors", rounding="ties_to_zero"), torch.bfloat16, 0.75),
        (replace(NVFP4, scale_rule="torchao", scale_floor="none", inf="saturate"), torch.float32, 1.0),
        (replace(NVFP4, scale="e5m3", scale_rule="modelopt"), torch.bfloat16, 1.0),
    ],
    ids=str,
)
def test_the_kernels_are_the_definition(
    fmt: MXFormat, dtype: torch.dtype, prescale: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = HostKernels(kernel_source(fmt, dtype, "blocks.cu", prescale=prescale), tmp_path, "-DMX_BLOCKS_ON_HOST")
    tiles = HostKernels(tile_source(fmt, dtype, prescale, 2, *TILE_KERNELS), tmp_path / "tiles", "-DMX_TILES_ON_HOST")
    used: list[str] = []
    monkeypatch.setattr(cuda, "_kernels", lambda *_: rows)
    monkeypatch.setattr(cuda, "_tile_kernels", lambda *_: tiles)
    monkeypatch.setattr(cuda, "takes", lambda *_: False)
    monkeypatch.setattr(  # the maxima of tensors, which threads that share memory find
        cuda, "_tensor_scales", lambda x, fmt, dims, amax: (
            tensor_scale_over(x, fmt, dims, amax).contiguous(), cuda._group_size(x, dims),
        ),
    )  # fmt: skip
    for kernels in (rows, tiles):
        launch = kernels.launch
        monkeypatch.setattr(
            kernels, "launch", lambda name, *rest, launch=launch: (used.append(name), launch(name, *rest))
        )
    x = adversarial(8 * 9 * 128, 2).view(8, 9, 128).to(dtype)
    long = adversarial(2 * 41 * 512, 3, finite=True).view(2, 41, 512).to(dtype)
    block, tile, large_tile = fmt, replace(fmt, block_size=(4, 32)), replace(fmt, block_size=(40, 64 * dtype.itemsize))
    for fmt, axis, dims, part in (
        (block, -1, (-1,), x),
        (block, -1, (-1,), x[..., :88]),  # blocks end short
        (block, -1, (-1,), x[..., :87]),  # and between the 16 bytes that a thread reads
        (block, -2, (-2, -1), x),
        (block, -2, (-2, -1), x[..., :87]),
        (tile, -2, (-2, -1), x),
        (large_tile, -1, (-2, -1), long),
        (replace(block, block_size=0), -2, (-2, -1), long[..., :24]),
    ):
        part = part.contiguous()
        y = torch.full_like(part, 7.0)
        dims = dims if fmt.tensor_scale else None
        cuda._launch(part, y, fmt, axis, dims, Draws(KEY, 1, 3), None, prescale)
        beside = {"generator": KEY, "example_dims": 1, "first_example": 3, "tensor_dims": dims}
        assert_same_bits(y, quantize_rescaled(part, fmt, axis, prescale=prescale, **beside))
        assert not y.isnan().all()
    by_column = "mx_tiles_by_thread" if block.four_over_six else "mx_long_columns"
    assert used == [
        *("mx_rows", "mx_vector_tiles_by_warp", "mx_tiles_by_warp"),
        *(by_column, "mx_tiles_by_thread", "mx_vector_tiles_by_warp", "mx_vector_tiles", by_column),
    ]


@pytest.mark.parametrize("block_size", [24, 48, 88, 248])
@pytest.mark.parametrize("symmetric", [True, False])
def test_blocks_of_any_number_of_vectors_are_read_once(
    block_size: int, symmetric: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 3, 6, 11 and 31 threads, of which a warp has as many as are whole blocks."""
    fmt = MXFormat("int4", block_size, "fp32", symmetric=symmetric)
    kernels = HostKernels(kernel_source(fmt, torch.bfloat16, "blocks.cu"), tmp_path, "-DMX_BLOCKS_ON_HOST")
    monkeypatch.setattr(cuda, "_kernels", lambda *_: kernels)
    x = adversarial(61 * 2 * block_size, 2).view(61, 2 * block_size).bfloat16()
    y = torch.full_like(x, 7.0)
    cuda._launch(x, y, fmt, -1, None, Draws(KEY, 0, 0), None)
    assert_same_bits(y, quantize(x, fmt, arithmetic="exact"))


def test_tiles_of_one_row_or_column_are_blocks() -> None:
    nvfp4 = replace(NVFP4, block_size=(1, 16))
    assert cuda._as_block(nvfp4, -2) == (NVFP4, -1)
    assert cuda._as_block(replace(nvfp4, block_size=(16, 1)), -1) == (NVFP4, -2)
    assert cuda._as_block(replace(nvfp4, block_size=(16, 2)), -1) == (replace(nvfp4, block_size=(16, 2)), -1)


def test_numbers_are_rounded_to_what_tensors_are_stored_in(tmp_path: Path) -> None:
    library = host_library(tmp_path, [NVFP4])
    x = adversarial(2**16, 5).abs()
    halves = torch.arange(2**15).to(torch.int16).view(torch.float16).float()  # and what lies midway
    x = torch.cat([x, halves, (halves[1:] + halves[:-1]) / 2, torch.tensor([math.inf, 65519.99, 65520.0, 0.0])])
    for storage, dtype in enumerate((torch.float32, torch.bfloat16, torch.float16)):
        y = torch.empty_like(x)
        library.rounded_to_storage(storage, pointer(x), pointer(y), ctypes.c_long(x.numel()))
        assert_same_bits(y, x.to(dtype).float())


def test_a_thread_has_numbers_of_one_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Long columns are read four float32 at a time: not where an example begins between these, and they are random."""
    fmt = MXFormat("fp8_e4m3", 7, rounding="stochastic")
    tiles = HostKernels(tile_source(fmt, torch.float32, 1.0, 1, *TILE_KERNELS), tmp_path, "-DMX_TILES_ON_HOST")
    used: list[str] = []
    launch = tiles.launch
    monkeypatch.setattr(tiles, "launch", lambda name, *rest: (used.append(name), launch(name, *rest)))
    monkeypatch.setattr(cuda, "_tile_kernels", lambda *_: tiles)
    x = adversarial(24 * 10 * 6, 2).view(24, 10, 6)
    for example_dims in (0, 1, 2):
        y = torch.full_like(x, 7.0)
        cuda._launch(x, y, fmt, 0, None, Draws(KEY, example_dims, 3), None)
        beside = {"generator": KEY, "example_dims": example_dims, "first_example": 3}
        assert_same_bits(y, quantize(x, fmt, 0, arithmetic="exact", **beside))
    assert used == ["mx_long_columns", "mx_long_columns", "mx_tiles_by_thread"]
