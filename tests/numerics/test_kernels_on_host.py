"""The kernels of blocks.cu as a host runs them: formats with rules of their own, in blocks of every kind."""

from __future__ import annotations

import ctypes
import math
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.adversarial import adversarial, assert_same_bits
from helpers.kernel_host import HostBackend, HostKernels
from helpers.mx_host import host_library, pointer

from mxsweep.numerics import MXFormat, quantize
from mxsweep.numerics.kernels import cuda
from mxsweep.numerics.kernels.source import joined_files
from mxsweep.numerics.kernels.ways import way_of
from mxsweep.numerics.philox import Draws
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
def test_the_kernels_are_the_definition(fmt: MXFormat, dtype: torch.dtype, prescale: float, host: HostBackend) -> None:
    x = adversarial(8 * 9 * 128, 2).view(8, 9, 128).to(dtype)
    long = adversarial(2 * 41 * 512, 3, finite=True).view(2, 41, 512).to(dtype)
    block, tile = fmt, replace(fmt, block_size=(4, 24))
    wide_tile, large_tile = replace(fmt, block_size=(8, 88)), replace(fmt, block_size=(40, 64 * dtype.itemsize))
    for fmt, axis, dims, part in (
        (block, -1, (-2, -1), x),
        (block, -1, (-1,), x[..., :88]),  # blocks end short
        (replace(block, four_over_six=False, rounding="even"), -1, (-1,), x[..., :87]),  # and between 16 bytes
        (block, -2, (-2, -1), x),
        (block, -2, (-2, -1), x[..., :87]),
        (tile, -2, (-2, -1), x),
        (wide_tile, -2, (-2, -1), x),
        (large_tile, -1, (-2, -1), long),
        (replace(block, block_size=0), -2, (-2, -1), long[..., :24]),
    ):
        check(part, fmt, axis, dims, prescale)
    by_column = "mx_tiles_by_thread" if block.four_over_six else "mx_long_columns"
    assert host.launched == [
        "mx_groups" if block.tensor_scale else "mx_rows",
        *("mx_short_blocks", "mx_short_blocks", by_column, "mx_tiles_by_thread"),
        *("mx_vector_tiles_by_warp", "mx_vector_tiles_by_warp", "mx_vector_tiles", by_column),
    ]


def check(
    x: torch.Tensor, fmt: MXFormat, axis: int, dims: tuple[int, ...] | None = None, prescale: float = 1.0
) -> None:
    """Hold what the kernels make of a tensor against the definition."""
    x, dims = x.contiguous(), dims if fmt.tensor_scale else None
    y = torch.full_like(x, 7.0)
    cuda._launch(x, y, fmt, axis, dims, Draws(KEY, 1, 3), None, prescale)
    beside = {"generator": KEY, "example_dims": 1, "first_example": 3, "tensor_dims": dims}
    assert_same_bits(y, quantize_rescaled(x, fmt, axis, prescale=prescale, **beside))
    assert not y.isnan().all()


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HostBackend:
    """The kernels that cuda.py launches, on the host; but of columns those of ways.py."""
    backend = HostBackend(tmp_path)
    backend.replace(monkeypatch)
    monkeypatch.setattr(cuda, "takes", lambda *_: False)
    return backend


BLOCKS = MXFormat("fp4_e2m1", 48)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize(
    ("fmt", "widths"),
    [
        (BLOCKS, (96, 200, 202, 203, 8)),
        (replace(BLOCKS, block_size=20), (200, 16)),
        (replace(BLOCKS, block_size=17), (200, 1)),
        (replace(BLOCKS, block_size=63), (203,)),
        (replace(BLOCKS, block_size=4), (66,)),
        (replace(BETTER, block_size=40), (200,)),
        (replace(NVFP4, block_size=36), (200,)),
        (MXFormat("int4", 48, "fp32", symmetric=False), (200, 203)),
    ],
    ids=str,
)
def test_short_blocks_of_rows_of_any_length(
    fmt: MXFormat, widths: tuple[int, ...], dtype: torch.dtype, host: HostBackend
) -> None:
    for width in widths:
        check(adversarial(3 * 37 * width, width).view(3, 37, width).to(dtype), fmt, -1, (-2, -1))
    assert host.launched == ["mx_short_blocks"] * len(widths)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("fmt", [replace(BLOCKS, block_size=0), replace(NVFP4, block_size=0)], ids=str)
def test_short_rows_are_blocks(fmt: MXFormat, dtype: torch.dtype, host: HostBackend) -> None:
    """Of whatever length, which the format does not say."""
    for width in (64, 37, 8, 1):
        check(adversarial(3 * 37 * width, width).view(3, 37, width).to(dtype), fmt, -1, (-2, -1))
    assert host.launched == ["mx_vector_tiles_by_warp", "mx_tiles_by_warp"] * 2


@pytest.mark.parametrize("size", range(1, 257))
def test_a_thread_keeps_its_share_of_a_block_of_a_column(size: int) -> None:
    """Which it has no loop for."""
    of_length = way_of(torch.Size((2, 512, 64)), torch.bfloat16, replace(BLOCKS, block_size=size), 1, 0)
    whole = way_of(torch.Size((2, size, 64)), torch.bfloat16, replace(BLOCKS, block_size=0), 1, 0)
    for way in (of_length, whole):
        kept, block = way.threads.kept, way.threads.block
        assert way.kernel == "mx_long_columns"
        assert kept <= 8
        assert block in range(32, 257, 32)
        assert size <= kept * block // 8
        assert way.count == way.arguments[0] * -(-way.arguments[1] // size) * block
    assert of_length.threads.kept * of_length.threads.block // 8 < size + 4 + size // 8
    assert whole.threads.kept.bit_count() == 1


def test_a_thread_keeps_its_share_of_a_part_of_a_column() -> None:
    for height in range(257, 5000):
        way = way_of(torch.Size((height, 8)), torch.bfloat16, replace(BLOCKS, block_size=0), 0, 0)
        assert way.kernel == "mx_columns_by_parts"
        assert -(-height // way.arguments[0]) <= way.threads.kept * way.threads.block // 8


def test_parts_of_a_column_are_of_what_there_is_of_it() -> None:
    """And not of a longer block, of which the first part would have it all."""
    longer, whole = (
        way_of(torch.Size((2, 600, 64)), torch.bfloat16, replace(BLOCKS, block_size=size), 1, 0) for size in (10_000, 0)
    )
    assert longer == whole
    assert longer.kernel == "mx_columns_by_parts"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize(
    "fmt",
    [
        MXFormat("fp4_e2m1", (16, 16)),
        MXFormat("fp4_e2m1", (5, 32)),
        replace(BETTER, block_size=(8, 8)),
        MXFormat("int4", (16, 16), "fp32", symmetric=False, rounding="stochastic"),
    ],
    ids=str,
)
def test_a_warp_has_several_small_tiles(fmt: MXFormat, dtype: torch.dtype, host: HostBackend) -> None:
    for width in (64, 200):
        check(adversarial(3 * 37 * width, width).view(3, 37, width).to(dtype), fmt, -1, (-2, -1))
    assert host.launched == ["mx_small_tiles"] * 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize(
    "fmt",
    [
        BLOCKS,
        replace(NVFP4, rounding="stochastic", inf="saturate"),
        MXFormat("int4", 32, "fp32", symmetric=False),
        MXFormat("int4", 32, "fp32", symmetric=False, inf="saturate"),
    ],
    ids=str,
)
def test_long_columns_are_quantized_in_parts(fmt: MXFormat, dtype: torch.dtype, host: HostBackend) -> None:
    x = adversarial(2 * 600 * 72, 2, finite=fmt.tensor_scale).view(2, 600, 72).to(dtype)
    for block_size in (0, 500):
        check(x, replace(fmt, block_size=block_size), -2, (-2, -1))
    assert host.launched == ["mx_column_extremes", "mx_columns_by_parts"] * 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_a_tensor_has_the_maximum_of_the_extremes_of_its_columns(
    dtype: torch.dtype, host: HostBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From which per-tensor scales are made, where they are of whole matrices: with no further reading."""
    found = []
    own = cuda._tensor_scales
    monkeypatch.setattr(cuda, "_tensor_scales", lambda *all_: (found.append(all_[-1]), own(*all_))[-1])
    x = torch.randn(2, 3, 300, 16, generator=torch.Generator().manual_seed(0)).to(dtype)
    for symmetric in (True, False):
        check(x, replace(NVFP4, block_size=0, symmetric=symmetric), -2, (-2, -1))
        assert torch.equal(found.pop().abs().amax(-1), x.abs().amax((-2, -1)).flatten())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("fmt", [NVFP4, BETTER, replace(NVFP4, scale_rule="compressed_tensors")], ids=str)
def test_a_group_under_one_scale_is_read_once(fmt: MXFormat, dtype: torch.dtype, host: HostBackend) -> None:
    for finite in (True, False):
        x = adversarial(5 * 7 * 208, 3, finite=finite).view(5, 7, 208).to(dtype)
        check(x, fmt, -1, (-1,))
        check(x, fmt, -1, (-2, -1))
    assert host.launched == ["mx_groups_by_warp", "mx_groups"] * 2


@pytest.mark.parametrize(
    ("does", "said"),
    [
        ("if (threadIdx.x % 32) __shfl_sync(ALL, 1, 0)", "lanes of a warp wait for different things"),
        ("threadIdx.x % 2 ? __shfl_sync(ALL, 1, 0) : __shfl_xor_sync(ALL, 1, 1)", "lanes of a warp wait"),
        ("if (threadIdx.x % 32) __syncthreads()", "lanes of a warp wait for different things"),
        ("if (threadIdx.x < 32) __syncthreads()", "warps of a thread block wait for different things"),
        ("__shfl_sync(1u, 1, 0)", "lanes 0x1 read of lane 0"),
        ("__shfl_xor_sync(ALL, 1, 32)", "lanes 0xffffffff read of lane 63"),
        ("__syncthreads(), __shfl_sync(ALL, 1, 0)", ""),
    ],
)
def test_what_a_gpu_promises_no_answer_of_ends_the_process(does: str, said: str, tmp_path: Path) -> None:
    """Of the host that tests run kernels on."""
    source = joined_files() + f'\nextern "C" __global__ void kernel() {{ {does}; }}'
    call = f"""
import ctypes
library = ctypes.CDLL({str(HostKernels(source, tmp_path).path)!r})
kernel = ctypes.cast(library.kernel, ctypes.c_void_p)
library.launch_on_host(kernel, ctypes.c_long(128), ctypes.c_uint(64), None, 0)
"""
    process = subprocess.run([sys.executable, "-c", call], capture_output=True, text=True, check=False)
    assert process.returncode == (-signal.SIGABRT if said else 0)
    assert process.stderr.startswith(said)


@pytest.mark.parametrize("other", ["(thread + 1) % 64", "(thread + 63) % 64", "thread ^ 32", "thread ^ 1"])
def test_what_a_thread_reads_without_waiting_is_found_to_be_wrong(other: str, tmp_path: Path) -> None:
    """In some of a few launches, even of one thread block, on the host that tests run kernels on."""
    wrong = []
    for number, waits in enumerate(("", "__syncthreads();")):
        source = (
            joined_files()
            + f"""
extern "C" __global__ void kernel(unsigned* y) {{
    __shared__ unsigned written[64];
    const unsigned thread = threadIdx.x;
    written[thread] = thread;
    {waits}
    y[blockIdx.x * 64 + thread] = written[{other}];
}}"""
        )
        kernels = HostKernels(source, tmp_path / str(number), 64)
        answers = torch.zeros(4, 64, dtype=torch.int32)
        for answer in answers:
            kernels.launch("kernel", 64, answer.data_ptr())
        expected = torch.tensor([eval(other, {"thread": thread}) for thread in range(64)])
        wrong.append(int((answers != expected).any(1).sum()))
    assert wrong[0] and not wrong[1]


def test_libraries_of_kernels_share_no_memory(tmp_path: Path) -> None:
    """Of templates the shared memory would be that of the library which was loaded first, and as small."""
    kernels = []
    for count in (1, 64):
        source = (
            joined_files()
            + f"""
template <int COUNT>
FUNCTION unsigned* shared_memory() {{
    __shared__ unsigned values[{count}];
    return values;
}}
extern "C" __global__ void kernel(unsigned* y) {{
    shared_memory<0>()[threadIdx.x % {count}] = threadIdx.x;
    __syncthreads();
    y[threadIdx.x] = shared_memory<0>()[threadIdx.x % {count}];
}}"""
        )
        kernels.append(HostKernels(source, tmp_path / str(count), 64))
    y = torch.zeros(64, dtype=torch.int32)
    kernels[1].launch("kernel", 64, y.data_ptr())
    assert torch.equal(y, torch.arange(64, dtype=torch.int32))
    symbols = subprocess.run(["nm", kernels[1].path], capture_output=True, text=True, check=True).stdout
    assert "shared_memory" in symbols and " u " not in symbols


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


def test_a_thread_has_numbers_of_one_example(host: HostBackend) -> None:
    """Long columns are read four float32 at a time: not where an example begins between these, and they are random."""
    fmt = MXFormat("fp8_e4m3", 7, rounding="stochastic")
    x = adversarial(24 * 10 * 6, 2).view(24, 10, 6)
    for example_dims in (0, 1, 2):
        y = torch.full_like(x, 7.0)
        cuda._launch(x, y, fmt, 0, None, Draws(KEY, example_dims, 3), None)
        beside = {"generator": KEY, "example_dims": example_dims, "first_example": 3}
        assert_same_bits(y, quantize(x, fmt, 0, arithmetic="exact", **beside))
    assert host.launched == ["mx_long_columns", "mx_long_columns", "mx_tiles_by_thread"]
