"""The range of exponents that kernels keep is the definition's, of blocks of every kind. A host runs them here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from helpers.adversarial import adversarial, assert_same_bits
from helpers.kernel_host import HostBackend, HostKernels
from torch import Tensor

from mxsweep.numerics import MXFormat, quantize, quantize_both
from mxsweep.numerics.hadamard import SignedHadamard
from mxsweep.numerics.kernels import both_cuda, cuda
from mxsweep.numerics.kernels.both_cuda import both_source, launch_both
from mxsweep.numerics.kernels.compile import compile_source, launch_count
from mxsweep.numerics.kernels.source import kernel_source
from mxsweep.numerics.kernels.ways import KERNELS, SOURCES, Threads, tile_source
from mxsweep.numerics.philox import Draws
from mxsweep.numerics.wanted_exponents import RANGES, keeping_exponents

pytestmark = pytest.mark.long

KEY = 2**63 + 11
MXFP4 = MXFormat("fp4_e2m1")
FORMATS = [
    (MXFP4, torch.bfloat16),  # two numbers at once
    (replace(MXFP4, rounding="stochastic", scale_rounding="ceil"), torch.float32),
    (MXFormat("fp8_e4m3", 64, inf="saturate", scale_rounding="rceil", scale_bits=5), torch.float32),
    (MXFormat("int4", 16, symmetric=False, scale_rounding="even"), torch.bfloat16),
]
NVFP4 = MXFormat("fp4_e2m1", 16, "e4m3")
ROTATION = SignedHadamard(16, 0b0110_1100_0101_1110)


def by_launch(x: Tensor, fmt: MXFormat, axis: int) -> Tensor:
    """Quantize as a GPU would, its kernels being what the test put in their place."""
    y = torch.full_like(x, 7.0)
    cuda._launch(x, y, fmt, axis, None, Draws(KEY, 0, None), None)
    return y


def kept_by(quantizes: Callable[[], object]) -> tuple[tuple[int, int] | None, float | None]:
    """Return the range and the largest significand."""
    with keeping_exponents() as kept:
        quantizes()
    return kept.range(), kept.largest_significand()


def hostile(shape: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
    """Return tensors whose ends are one block's, and at whose edges are zeros, NaN and Inf."""
    size = torch.Size(shape).numel()
    ordinary = torch.randn(size, generator=torch.Generator().manual_seed(0)).clamp(-4, 4).view(shape)
    few = [ordinary.clone() for _ in range(5)]
    few[0].flatten()[-1] = 2.0**12
    few[1].flatten()[0] = -(2.0**14)
    few[2][0] *= 2.0**-13
    few[3][-1] = 0.0
    few[3].flatten()[size // 2] = torch.nan
    few[3].flatten()[1] = torch.inf
    few[4] = few[4].sign() * few[4].abs().add(1e-3).log2().floor().exp2()  # powers of two, and one maximum that is none
    few[4].flatten()[size // 3] = 24.0
    return [x.to(dtype) for x in (*few, ordinary * 2.0**-6, torch.zeros(shape), adversarial(size, 4).view(shape))]


@pytest.mark.parametrize(("fmt", "dtype"), FORMATS, ids=str)
def test_of_rows_and_tiles(fmt: MXFormat, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = HostBackend(tmp_path)
    host.replace(monkeypatch)
    monkeypatch.setattr(cuda, "takes", lambda *_: False)
    tile, large_tile = replace(fmt, block_size=(4, 24)), replace(fmt, block_size=(40, 64 * dtype.itemsize))
    for asked, axis, shape in (
        (fmt, -1, (9, 128)),
        (fmt, -1, (9, 88)),  # blocks end short
        (replace(fmt, rounding="even"), -1, (9, 87)),  # and between 16 bytes
        (fmt, -2, (9, 72)),
        (fmt, -2, (9, 87)),
        (replace(fmt, block_size=(8, 8)), -2, (37, 72)),
        (tile, -2, (9, 120)),
        (replace(fmt, block_size=(4, 21)), -2, (9, 87)),
        (large_tile, -1, (41, 512)),
        (replace(fmt, block_size=0), -2, (600, 24)),
    ):
        for x in hostile(shape, dtype):
            expected = kept_by(partial(quantize, x, asked, axis, arithmetic="exact", generator=KEY))
            assert None not in expected
            assert kept_by(partial(by_launch, x, asked, axis)) == expected
    assert {*host.launched} == {"mx_rows", *KERNELS} - {*SOURCES["groups.cu"]}  # which are for per-tensor scales
    with keeping_exponents() as kept:  # which kernels add to what operations noted, on whatever devices
        quantize(torch.full((1, 64), 2.0**20), replace(MXFP4, block_size=64), arithmetic="exact")
        y = by_launch(x := hostile((9, 128), dtype)[4], fmt, -1)
    low, high = kept.range() or (0, 0)
    assert low < 0 and high == 18
    assert_same_bits(y, quantize(x, fmt, arithmetic="exact", generator=KEY))


@pytest.mark.parametrize(
    ("row_format", "column_format", "dtype", "rotation"),
    [
        (MXFP4, replace(MXFP4, rounding="stochastic"), torch.bfloat16, None),
        (MXFormat("fp6_e2m3", 64), MXFormat("int4", 16, symmetric=False), torch.float32, ROTATION),
        (NVFP4, MXFormat("fp8_e4m3", 16, scale_rounding="rceil"), torch.bfloat16, ROTATION),
        (MXFP4, NVFP4, torch.float32, None),
        (None, MXFP4, torch.bfloat16, None),
        (None, MXFormat("int4", 48), torch.bfloat16, None),
    ],
    ids=str,
)
def test_of_columns_and_both(
    row_format: MXFormat | None, column_format: MXFormat, dtype: torch.dtype, rotation: SignedHadamard | None,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    order = 1 if rotation is None else rotation.order
    kernels = HostKernels(both_source(row_format, column_format, dtype, order=order, keeps=True), tmp_path)
    asked = []
    monkeypatch.setattr(both_cuda, "_kernels", lambda *of: (asked.append(of[-1]), kernels)[1])
    both_cuda._launch.cache_clear()
    width = 40 if row_format is None else 64 if row_format.block_size == 64 else 96
    for x in hostile((96, width), dtype):  # of bfloat16 the last tile has four vectors, or five, and not eight
        by_row, by_column = None if row_format is None else torch.full_like(x, 7.0), torch.full_like(x, 7.0)
        with keeping_exponents() as ours:
            launch_both(
                x, by_row, by_column, row_format, column_format, 0, KEY, KEY, Draws(0, 0, None), rotation=rotation
            )
        with keeping_exponents() as expected:
            if row_format is not None:
                quantize(x, row_format, arithmetic="exact", generator=KEY)
            rotated = x if rotation is None else rotation.rotate(x, -2)
            quantize(rotated, column_format, -2, arithmetic="exact", generator=KEY)
        assert expected.range() is not None
        assert ours.range() == expected.range()
        if rotation is None:  # whose sums have another order here
            assert ours.largest_significand() == expected.largest_significand()
    assert {*asked} == {True}
    both_cuda._launch.cache_clear()


def test_where_nothing_is_kept_kernels_are_as_they_were() -> None:
    """Their source, and so what is launched, has nothing of it."""
    for fmt in (MXFP4, NVFP4):
        plain = kernel_source(fmt, torch.bfloat16, "blocks.cu")
        assert "#define MX_RANGES" not in plain.split("#line")[0]
        assert f"#define MX_RANGES {RANGES}" in kernel_source(fmt, torch.bfloat16, "blocks.cu", keeps=True)


def test_scales_that_are_no_powers_of_two_ask_for_no_other_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Nothing:
        def launch(self, name: str, threads: int, *arguments: int) -> None:
            asked.append(len(arguments))

    monkeypatch.setattr(cuda, "_kernels", lambda *of: (asked.append(of[-1]), Nothing())[1])
    x = torch.ones(4, 32)
    for fmt in (NVFP4, MXFP4):
        with keeping_exponents() as kept:
            by_launch(x, fmt, -1)
        assert kept.range() is None  # of what was launched and kept nothing, too
    by_launch(x, MXFP4, -1)
    assert asked == [False, 8, True, 9, False, 8]


@pytest.mark.parametrize(
    ("fmt", "dtype", "arch"),
    [*((*of, "sm_90") for of in FORMATS), (MXFP4, torch.float16, "sm_90"), (*FORMATS[0], "sm_75")],
    ids=str,
)
def test_they_compile(fmt: MXFormat, dtype: torch.dtype, arch: str) -> None:
    pytest.importorskip("cuda.core", reason="cuda-core is not installed (pip install 'mxsweep[cuda]')")
    for source in (
        kernel_source(fmt, dtype, "blocks.cu", keeps=True),
        tile_source(fmt, dtype, 1.0, Threads(8, 2), *KERNELS, keeps=True),
        both_source(None, fmt, dtype, keeps=True),
    ):
        assert compile_source(source, arch).code[:4] == b"\x7fELF"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU on this machine")
class TestOnGPU:
    @pytest.mark.parametrize(
        ("fmt", "dtype"), [*FORMATS, (MXFP4, torch.float16), (FORMATS[2][0], torch.float16)], ids=str
    )
    def test_the_kernels_keep_what_the_definition_notes(self, fmt: MXFormat, dtype: torch.dtype) -> None:
        """And quantize as it does."""
        for asked, axis, width in (
            (fmt, -1, 384),
            (fmt, -2, 336),
            (replace(fmt, block_size=48), -1, 336),  # of which a warp has five, and two threads have none
            (replace(fmt, block_size=0), -2, 336),
            (replace(fmt, block_size=(8, 40)), -1, 336),
        ):
            for x in (x.cuda() for x in hostile((96, width), dtype)):
                answers, ranges, before = [], [], launch_count()
                for backend in ("torch", "cuda"):
                    with keeping_exponents() as kept:
                        answers.append(quantize(x, asked, axis, backend=backend, arithmetic="exact", generator=KEY))
                    ranges.append((kept.range(), kept.largest_significand()))
                assert launch_count() > before and None not in ranges[0]
                assert ranges[0] == ranges[1]
                assert_same_bits(*answers)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    def test_one_block_of_a_large_tensor_is_found(self, dtype: torch.dtype) -> None:
        """Wherever it is, and whatever was kept before it."""
        x = torch.randn(4096, 4096, generator=torch.Generator("cuda").manual_seed(0), device="cuda").to(dtype)
        ordinary = kept_by(partial(quantize, x, MXFP4, backend="cuda"))[0]
        for place in (0, 4096 * 2048 + 77, 4096 * 4096 - 1):
            for exponent in (16, 33):
                x.view(-1)[place] = 2.0**exponent
                for axis in (-1, -2):
                    low, high = kept_by(partial(quantize, x, MXFP4, axis, backend="cuda"))[0] or (0, 0)
                    assert high == exponent - 2
                x.view(-1)[place] = 0.5
        x[-1, -32:] = 2.0**-29
        low, high = kept_by(partial(quantize, x, MXFP4, backend="cuda"))[0] or (0, 0)
        assert (low, high) == (-31, (ordinary or (0, 0))[1])

    def test_rows_and_columns_at_once(self) -> None:
        x = torch.randn(3, 96, 416, device="cuda", dtype=torch.bfloat16)
        x[2, 95, 400] = 2.0**40
        stochastic = replace(MXFP4, rounding="stochastic")
        ranges = []
        for backend in ("torch", "cuda"):
            for column_format in (stochastic, NVFP4):
                both = partial(
                    quantize_both, x, MXFP4, column_format, backend=backend, arithmetic="exact",
                    generators=(None, KEY if column_format is stochastic else None),
                )  # fmt: skip
                ranges.append(kept_by(both))
        assert ranges[:2] == ranges[2:] and all(None not in one for one in ranges)

    def test_a_graph_keeps_what_it_sees_when_it_is_replayed(self) -> None:
        x = torch.randn(64, 64, device="cuda")
        with keeping_exponents() as kept:
            quantize(x, MXFP4, backend="cuda")
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                quantize(x, MXFP4, backend="cuda")
            x[3, 3] = 2.0**50
            graph.replay()
        assert kept.range() is not None and kept.range()[1] == 48
