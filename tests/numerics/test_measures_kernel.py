"""What measures.cu counts and adds up is what torch's operations do: on the host, and on a GPU."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
import torch
from helpers.adversarial import adversarial
from helpers.kernel_formats import FORMATS
from helpers.kernel_host import HostKernels
from torch import Tensor

from mxsweep.formats.backends import BackendUnavailable
from mxsweep.numerics import MXFormat, block_measures
from mxsweep.numerics.block_totals import NUMBERS, measure_by_torch
from mxsweep.numerics.kernels import measures_cuda
from mxsweep.numerics.kernels.compile import compile_source, launch_count
from mxsweep.numerics.kernels.cpu_rows import Asked
from mxsweep.numerics.kernels.measures_cuda import launch, measure_by_kernel, measures_source, takes_format
from mxsweep.numerics.philox import Draws
from mxsweep.numerics.reference.definition import neighbours_under_one, quantize_torch, without_inf
from mxsweep.numerics.rescaled import quantize_rescaled

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
MXFP4 = MXFormat("fp4_e2m1")
# Neighbours in the list are alike.
SOME, FEW = FORMATS[::7], FORMATS[::41]
DRAWS = Draws(2**63 + 11, 1, None)


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> HostKernels:
    return HostKernels(measures_source(), tmp_path_factory.mktemp("measures"))


def cases(x: Tensor, fmt: MXFormat) -> list[tuple[Tensor, Tensor, Asked]]:
    """Return what is quantized, what it becomes, and what was asked for, of each arithmetic."""
    x = without_inf(x, fmt)
    dims = tuple(range(1, x.ndim)) if fmt.tensor_scale else None  # so that not all is NaN
    draws = DRAWS if fmt.rounding == "stochastic" else None
    found = [(x, quantize_torch(x, fmt, -1, "exact", draws, dims), Asked(fmt, -1, "exact", dims))]
    holds_elements = fmt.element_format.largest <= torch.finfo(x.dtype).max  # or torch's operations take none
    if fmt.has_native_arithmetic and x.dtype != torch.float32 and holds_elements:
        found.append((x, quantize_torch(x, fmt, -1, "native", None, None), Asked(fmt, -1, "native")))
    if draws is None:
        rescaled = Asked(fmt, -1, "exact", dims, None, 0.75)
        found.append((x, quantize_rescaled(x, fmt, -1, prescale=0.75, tensor_dims=dims), rescaled))
    if fmt.tensor_scale:
        given = torch.full([len(x)] + [1] * (x.ndim - 1), 8.0, dtype=torch.float32, device=x.device)
        found.append((x, quantize_torch(x, fmt, -1, "exact", draws, dims, given), Asked(fmt, -1, "exact", dims, given)))
    return found


def assert_alike(found: tuple[int, Tensor], expected: tuple[int, Tensor], asked: Asked) -> None:
    """Counts and ends are equal; sums have another order."""
    (blocks, numbers), (expected_blocks, wanted) = found, expected
    assert blocks == expected_blocks and numbers.dtype == wanted.dtype == torch.float64
    said = asked, dict(zip(NUMBERS, zip(numbers.tolist(), wanted.tolist(), strict=True), strict=True))
    assert torch.equal(numbers[2:], wanted[2:]), said
    torch.testing.assert_close(numbers[:2], wanted[:2], rtol=1e-12, atol=0.0, equal_nan=True, msg=lambda _: str(said))


def inputs(dtype: torch.dtype, device: str = "cpu") -> list[Tensor]:
    most = torch.finfo(dtype).max
    odd = adversarial(6 * 64 * 8, 3, device).view(48, 64)
    finite = adversarial(6 * 64 * 8, 4, device, finite=True).clamp(-(2.0**14), 2.0**14).view(12, 4, 64)
    generator = torch.Generator(device).manual_seed(6)
    usual = torch.randn(70, 130, generator=generator, device=device) * 1.2 ** torch.arange(-65, 65, device=device)
    return [x.clamp(-most, most).to(dtype) for x in (odd, finite, usual, torch.zeros(2, 32, device=device))]


@DTYPES
def test_on_the_host(dtype: torch.dtype, host: HostKernels) -> None:
    counted = torch.zeros(len(NUMBERS), dtype=torch.float64)
    for fmt in FEW:
        for x in inputs(dtype):
            for quantized, y, asked in cases(x, fmt):
                assert takes_format(quantized, asked)
                compares = asked.is_native
                expected = measure_by_torch(quantized, y, asked, compares)
                assert_alike(launch(host, quantized, y, asked, compares), expected, asked)  # type: ignore[arg-type]
                counted += expected[1].nan_to_num(0.0, 0.0, 0.0).abs()
    assert (counted[: NUMBERS.index("unlike")] > 0).all()
    assert (counted[NUMBERS.index("unlike")] > 0) == (dtype != torch.float32)


def test_what_became_wrong_is_counted(host: HostKernels) -> None:
    """Of elements that are not what the format makes of them, as any may be that are given."""
    x = torch.randn(40, 64, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    y = quantize_torch(x, MXFP4, -1, "native", None, None)
    y[3, 5], y[7, 9], y[8] = 1.0, torch.nan, 0.0
    asked = Asked(MXFP4, -1, "native")
    found = launch(host, x, y, asked, True)  # type: ignore[arg-type]
    assert_alike(found, measure_by_torch(x, y, asked, True), asked)
    numbers = dict(zip(NUMBERS, found[1].tolist(), strict=True))
    assert numbers["unlike"] > 2 and numbers["flushed"] >= 64 and numbers["noise"] != numbers["noise"]


@pytest.mark.parametrize(
    ("x", "asked"),
    [
        (torch.ones(0, 32), Asked(MXFP4, -1, "exact")),
        (torch.ones(4, 32), Asked(MXFP4, 0, "exact")),
        (torch.ones(4, 32), Asked(replace(MXFP4, block_size=(2, 16)), -1, "exact")),
        (torch.ones(4, 32), Asked(MXFP4, -1, "native")),
        (torch.ones(4, 32, dtype=torch.bfloat16), Asked(MXFP4, -1, "native", None, None, 0.5)),
        (torch.ones(4, 32), Asked(MXFP4, -1, "exact", None, None, 1.5)),
        (torch.ones(4, 2, 32), Asked(MXFormat("fp4_e2m1", 16, "e4m3", tensor_scale=True), -1, "exact", (0, 2))),
        (torch.ones(4, 32, dtype=torch.float64), Asked(MXFP4, -1, "exact")),
    ],
    ids=["nothing", "columns", "tiles", "native float32", "native, rescaled", "enlarged", "apart", "float64"],
)
def test_what_is_left_to_operations(x: Tensor, asked: Asked) -> None:
    assert not takes_format(x, asked)


def test_a_tensor_that_is_not_on_a_gpu_is_left_to_others() -> None:
    x = torch.ones(4, 32)
    assert measure_by_kernel(x, x, Asked(MXFP4, -1, "exact"), False) is None


def test_neighbours_under_one_scale() -> None:
    assert neighbours_under_one((2, 3, 4), None) == 24
    assert neighbours_under_one((2, 3, 4), (-1, 1)) == 12
    assert neighbours_under_one((2, 3, 4), (2,)) == 4
    assert neighbours_under_one((2, 3, 4), (0, 2)) is None


def test_a_kernel_that_cannot_be_made_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object, **__: object) -> object:
        raise BackendUnavailable("no compiler")

    monkeypatch.setattr(measures_cuda, "backend_problem", lambda _: None)
    monkeypatch.setattr(measures_cuda, "load_kernels", refuse)
    measures_cuda._kernels.cache_clear()
    measures_cuda._say_once.cache_clear()
    with caplog.at_level(logging.INFO):
        assert [measures_cuda._kernels(device) for device in (0, 1)] == [None, None]
    measures_cuda._kernels.cache_clear()
    assert [record.getMessage() for record in caplog.records] == [
        "what quantizing did is measured by PyTorch's operations: no compiler"
    ]


@pytest.mark.parametrize("arch", ["sm_75", "sm_90"])
def test_it_compiles(arch: str) -> None:
    pytest.importorskip("cuda.core", reason="cuda-core is not installed (pip install 'mxsweep[cuda]')")
    assert b"mx_measures" in bytes(compile_source(measures_source(), arch).code)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU on this machine")
@DTYPES
def test_on_a_gpu(dtype: torch.dtype) -> None:
    launched = launch_count()
    for fmt in SOME:
        for x in (*inputs(dtype, "cuda"), torch.randn(5000, 2048, device="cuda").to(dtype)[:, :2000]):
            for quantized, y, asked in cases(x, fmt):
                found = measure_by_kernel(quantized, y, asked, asked.is_native)
                assert found is not None
                assert_alike(found, measure_by_torch(quantized, y, asked, asked.is_native), asked)
                again = measure_by_kernel(quantized, y, asked, asked.is_native)
                assert again is not None
                assert torch.equal(again[1].nan_to_num(7.0), found[1].nan_to_num(7.0))  # sums have one order
    assert launch_count() == launched  # nothing was quantized


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU on this machine")
def test_what_is_asked_for_is_measured_by_it_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(64, 96, dtype=torch.bfloat16)
    expected = block_measures.block_statistics(x, MXFP4, arithmetic="native", compare_exact=True)
    monkeypatch.delattr(block_measures, "measure_by_torch")
    assert block_measures.block_statistics(x.cuda(), MXFP4, arithmetic="native", compare_exact=True) == expected
