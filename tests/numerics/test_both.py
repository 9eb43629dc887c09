"""Quantizing along rows and columns at once is quantizing twice; both.cu runs here, threads of the host being lanes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.adversarial import adversarial, assert_same_bits
from helpers.kernel_host import HostKernels

from mxsweep.numerics import BackendUnavailable, MXFormat, dispatch, quantize, quantize_both
from mxsweep.numerics.hadamard import SignedHadamard, hadamard
from mxsweep.numerics.kernels import both_cuda
from mxsweep.numerics.kernels.both_cuda import both_source, fits_draws, launch_both, takes, takes_both, takes_formats
from mxsweep.numerics.kernels.compile import compile_source
from mxsweep.numerics.philox import Draws
from mxsweep.numerics.reference.definition import tensor_scale_over
from mxsweep.numerics.rescaled import quantize_rescaled

FP4, FP8 = MXFormat("fp4_e2m1"), MXFormat("fp8_e4m3", 16, rounding="even", scale_rounding="rceil")
STOCHASTIC = MXFormat("fp4_e2m1", 32, rounding="stochastic")
NV = MXFormat("fp4_e2m1", 16, "e4m3", rounding="stochastic")
WIDE = MXFormat("int8", 64, "fp32", rounding="stochastic", symmetric=False)
SATURATING = MXFormat("fp4_e2m1", 16, "e5m3", rounding="ties_to_zero", scale_rule="vllm", inf="saturate")
NVFP4 = MXFormat("fp4_e2m1", 16, "e4m3", rounding="even", tensor_scale=True)
NVFP4_DRAWN = replace(NVFP4, rounding="stochastic")
ROTATION = SignedHadamard(16, 0b0110_1100_0101_1110)
BY_TOKEN_AND_SEQUENCE = ((-1,), (-2, -1))
KEYS = (2**63 + 11, 5)


@pytest.mark.parametrize(
    ("row_format", "column_format", "dtype", "shape", "example_dims"),
    [
        (FP4, STOCHASTIC, torch.bfloat16, (2, 64, 96), 1),  # the last tile has four vectors and not eight
        (NV, FP8, torch.bfloat16, (48, 64), 0),
        (WIDE, FP4, torch.bfloat16, (3, 32, 64), 1),
        (FP4, WIDE, torch.bfloat16, (2, 64, 32), 1),
        (STOCHASTIC, NV, torch.float32, (3, 32, 96), 1),  # half of a call's random numbers to a vector
        (MXFormat("fp6_e2m3", 64), FP8, torch.float32, (16, 64), 0),  # a row's block is 16 lanes
        (None, WIDE, torch.bfloat16, (2, 64, 40), 1),
        (None, STOCHASTIC, torch.float32, (32, 3, 20), 0),
        (SATURATING, SATURATING, torch.bfloat16, (32, 64), 0),
        (None, SATURATING, torch.float32, (48, 32), 0),
        (FP4, MXFormat("fp4_e2m1", 24), torch.bfloat16, (48, 64), 0),
        (None, MXFormat("fp4_e2m1", 48), torch.bfloat16, (2, 96, 40), 1),
        (None, MXFormat("int4", 128, "e5m3"), torch.bfloat16, (256, 24), 0),
    ],
    ids=str,
)
def test_the_kernel_is_two_calls(
    row_format: MXFormat | None,
    column_format: MXFormat,
    dtype: torch.dtype,
    shape: tuple[int, ...],
    example_dims: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    axis = 0 if row_format is None and len(shape) == 3 and example_dims == 0 else len(shape) - 2
    assert takes(row_format, column_format, torch.Size(shape), dtype, axis)
    kernels = HostKernels(both_source(row_format, column_format, dtype), tmp_path)
    monkeypatch.setattr(both_cuda, "_kernels", lambda *_: kernels)
    x = adversarial(torch.Size(shape).numel(), 4).view(shape).to(dtype)
    by_row = None if row_format is None else torch.full_like(x, 7.0)
    by_column = torch.full_like(x, 7.0)
    for first_example in (None, 2**32 - 1):
        draws = Draws(0, example_dims, first_example)
        launch_both(x, by_row, by_column, row_format, column_format, axis, *KEYS, draws)
        beside = {"arithmetic": "exact", "example_dims": example_dims, "first_example": first_example}
        assert_same_bits(by_column, quantize(x, column_format, axis, generator=KEYS[1], **beside))
        if by_row is not None and row_format is not None:
            assert_same_bits(by_row, quantize(x, row_format, generator=KEYS[0], **beside))


@pytest.mark.parametrize("dims", [(-2, -1), (0, 1, 2)], ids=str)
def test_columns_under_per_tensor_scales_that_are_given(
    dims: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels = HostKernels(both_source(None, NVFP4_DRAWN, torch.bfloat16), tmp_path)
    monkeypatch.setattr(both_cuda, "_kernels", lambda *_: kernels)
    x = adversarial(3 * 48 * 40, 4, finite=True).view(3, 48, 40).to(torch.bfloat16)
    y = torch.full_like(x, 7.0)
    scales = tensor_scale_over(x, NVFP4_DRAWN, dims).contiguous()
    group = x.numel() // scales.numel()
    launch_both(x, None, y, None, NVFP4_DRAWN, 1, 0, KEYS[1], Draws(0, 1, 9), scales=(scales.data_ptr(), group))
    beside = {"generator": KEYS[1], "example_dims": 1, "first_example": 9, "tensor_dims": dims}
    assert_same_bits(y, quantize(x, NVFP4_DRAWN, 1, arithmetic="exact", **beside))


@pytest.mark.parametrize("column_format", [STOCHASTIC, WIDE, SATURATING], ids=str)
def test_columns_under_a_prescale(column_format: MXFormat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = HostKernels(both_source(None, column_format, torch.bfloat16, 0.75), tmp_path)
    monkeypatch.setattr(both_cuda, "_kernels", lambda *_: kernels)
    x = adversarial(2 * 64 * 40, 4).view(2, 64, 40).to(torch.bfloat16)
    y = torch.full_like(x, 7.0)
    launch_both(x, None, y, None, column_format, 1, 0, KEYS[1], Draws(0, 1, 9), 0.75)
    beside = {"generator": KEYS[1], "example_dims": 1, "first_example": 9}
    assert_same_bits(y, quantize_rescaled(x, column_format, 1, prescale=0.75, **beside))


@pytest.mark.parametrize(
    ("row_format", "column_format", "dtype", "rotation"),
    [
        (NVFP4, NVFP4, torch.bfloat16, ROTATION),
        (NVFP4_DRAWN, NVFP4_DRAWN, torch.bfloat16, None),
        (
            NVFP4_DRAWN,
            STOCHASTIC,
            torch.float32,
            SignedHadamard(32, 0xA5A5_1234),
        ),  # two bits of a row's number are a lane's
        (FP4, NVFP4_DRAWN, torch.bfloat16, SignedHadamard(2, 1)),
    ],
    ids=str,
)
def test_per_tensor_scales_and_rotated_columns_are_those_of_two_calls(
    row_format: MXFormat,
    column_format: MXFormat,
    dtype: torch.dtype,
    rotation: SignedHadamard | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    order = 1 if rotation is None else rotation.order
    source = both_source(row_format, column_format, dtype, order=order)
    kernels = HostKernels(source, tmp_path)
    monkeypatch.setattr(both_cuda, "_kernels", lambda *_: kernels)
    ordinary = torch.randn(2, 64, 96, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 3, 96)
    for x in (ordinary.to(dtype), adversarial(2 * 64 * 96, 4, finite=True).view(2, 64, 96).to(dtype)):
        asked = None if rotation is None else order
        assert takes_both(row_format, column_format, x.shape, dtype, BY_TOKEN_AND_SEQUENCE, asked)
        by_row, by_column = torch.full_like(x, 7.0), torch.full_like(x, 7.0)
        launch_both(x, by_row, by_column, row_format, column_format, 1, *KEYS, Draws(0, 1, 3), rotation=rotation)
        rotated = x if rotation is None else _by_butterflies(x.mT, rotation).mT
        beside = {"arithmetic": "exact", "example_dims": 1, "first_example": 3}
        assert_same_bits(by_row, quantize(x, row_format, generator=KEYS[0], tensor_dims=(-1,), **beside))
        assert_same_bits(
            by_column, quantize(rotated, column_format, -2, generator=KEYS[1], tensor_dims=(-2, -1), **beside)
        )


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have tensors pass for a GPU's, and kernels run on the host."""
    monkeypatch.setattr(torch.Tensor, "is_cuda", True, raising=False)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: None)
    monkeypatch.setattr(dispatch, "_working", {"cuda"})
    both_cuda._launch.cache_clear()
    yield
    both_cuda._launch.cache_clear()


@pytest.mark.parametrize("column_format", [FP4, STOCHASTIC], ids=str)
@pytest.mark.usefixtures("as_on_a_gpu")
def test_what_is_launched_on_a_gpu_is_two_calls(
    column_format: MXFormat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels = HostKernels(both_source(STOCHASTIC, column_format, torch.bfloat16), tmp_path)
    monkeypatch.setattr(both_cuda, "_kernels", lambda *_: kernels)
    x = adversarial(2 * 64 * 96, 4).view(2, 64, 96).to(torch.bfloat16)
    for first_example, key in ((None, 1), (3, 1), (3, KEYS[0]), (5, 1)):
        beside: dict[str, Any] = {"example_dims": 1, "first_example": first_example}
        asked = STOCHASTIC, column_format
        by_row, by_column = quantize_both(
            x.requires_grad_(), *asked, backend="cuda", generators=(key, KEYS[1]), **beside
        )
        assert not by_row.requires_grad and not by_column.requires_grad
        beside["arithmetic"] = "exact"
        assert_same_bits(by_row, quantize(x.detach(), STOCHASTIC, generator=key, **beside))
        assert_same_bits(by_column, quantize(x.detach(), column_format, -2, generator=KEYS[1], **beside))


@pytest.mark.usefixtures("as_on_a_gpu")
def test_what_is_launched_on_a_gpu_asks_little_of_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step of training launches a hundred, and waits for Python."""
    monkeypatch.setattr(both_cuda, "_kernels", lambda *_: SimpleNamespace(launch=lambda *_: None))
    x, calls = torch.zeros(2, 64, 96, dtype=torch.bfloat16), []
    for _ in range(2):  # what is asked of all such tensors is known the second time
        calls.clear()
        sys.setprofile(lambda _frame, event, _argument: calls.append(event) if "call" in event else None)
        try:
            quantize_both(x, FP4, FP4, backend="cuda", example_dims=1, first_example=0)
        finally:
            sys.setprofile(None)
    assert len(calls) < 50


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"example_dims": 3}, "example_dims: 3 is not allowed"),
        ({"first_example": -1}, "first_example: -1 is not allowed"),
        ({"generators": (None, None)}, "generator: None does not go with stochastic rounding"),
        ({"arithmetic": "quick"}, "arithmetic: 'quick' is not known"),
        ({"row_format": "mxfp4"}, "fmt: 'mxfp4' is a str"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused_on_a_gpu_each_time(changes: dict[str, Any], message: str) -> None:
    asked: dict[str, Any] = {
        "row_format": FP4,
        "column_format": STOCHASTIC,
        "backend": "cuda",
        "generators": (None, 5),
    } | changes
    for _ in range(2):
        with pytest.raises((TypeError, ValueError), match=message):
            quantize_both(torch.zeros(2, 64, 96), **asked)


def _by_butterflies(x: torch.Tensor, rotation: SignedHadamard) -> torch.Tensor:
    """Multiply the last dimension as hadamard.cu does, whose sums are rounded in an order of their own."""
    rows = torch.arange(rotation.order)
    signs = torch.tensor([-1.0 if rotation.negative >> row & 1 else 1.0 for row in rows.tolist()])
    y = x.float().unflatten(-1, (-1, rotation.order)) * signs * rotation.order**-0.5
    for bit in range(rotation.order.bit_length() - 1):
        low, high = y[..., rows & ~(1 << bit)], y[..., rows | 1 << bit]
        y = torch.where(rows >> bit & 1 == 1, low - high, low + high)
    return y.flatten(-2).to(x.dtype)


def test_a_rotation_is_signs_and_a_hadamard_matrix() -> None:
    x = torch.randn(3, 64, 8, generator=torch.Generator().manual_seed(0))
    signs = torch.tensor([-1.0 if ROTATION.negative >> row & 1 else 1.0 for row in range(16)]).repeat(4)
    rotated = ROTATION.rotate(x, -2)
    assert torch.equal(rotated, hadamard((x * signs[:, None]).mT, 16).mT)
    torch.testing.assert_close(ROTATION.rotate(rotated, -2, inverse=True), x)
    torch.testing.assert_close(_by_butterflies(x.mT, ROTATION).mT, rotated)


def test_columns_are_rotated_before_they_are_quantized() -> None:
    x = torch.randn(3, 32, 40, generator=torch.Generator().manual_seed(0)).bfloat16()
    by_row, by_column = quantize_both(x, FP4, NVFP4, tensor_dims=(None, (-2, -1)), column_rotation=ROTATION)
    assert_same_bits(by_row, quantize(x, FP4))
    assert_same_bits(by_column, quantize(ROTATION.rotate(x, -2), NVFP4, -2, tensor_dims=(-2, -1)))


def test_tiles_of_one_format_are_made_once() -> None:
    x = torch.randn(2, 32, 48, generator=torch.Generator().manual_seed(0)).bfloat16()
    tile = replace(NVFP4, block_size=(16, 32))
    by_row, by_column = quantize_both(x, tile, tile, tensor_dims=((-2, -1), (1, 2)))
    assert by_row is by_column
    assert_same_bits(by_column, quantize(x, tile, -2, tensor_dims=(-2, -1)))
    for other, dims, rotation in (
        (tile, ((-2, -1), None), None),
        (tile, ((-2, -1), (-2, -1)), ROTATION),
        (replace(tile, rounding="stochastic"), ((-2, -1), (-2, -1)), None),
        (replace(tile, block_size=(32, 16)), ((-2, -1), (-2, -1)), None),
    ):
        by_row, by_column = quantize_both(
            x, tile, other, generators=(None, 5), tensor_dims=dims, column_rotation=rotation
        )
        rotated = x if rotation is None else rotation.rotate(x, -2)
        assert_same_bits(by_column, quantize(rotated, other, -2, generator=5, tensor_dims=dims[1]))
        assert by_row is not by_column


def test_which_per_tensor_scales_and_rotations_the_kernels_take() -> None:
    def taken(
        *, over: object = BY_TOKEN_AND_SEQUENCE, order: int = 16, column: MXFormat = NVFP4, ndim: int = 3
    ) -> bool:
        shape = torch.Size([*[2] * (ndim - 2), 32, 64])
        return takes_both(NVFP4, column, shape, torch.bfloat16, over, order or None)  # type: ignore[arg-type]

    assert taken() and taken(order=0) and taken(ndim=2) and taken(ndim=2, over=((1,), None)) and taken(order=4)
    assert taken(column=FP4, over=((2,), None)) and taken(column=FP4, order=32)
    assert not taken(over=((-1,), None)) and not taken(
        over=((-2, -1), (-2, -1))
    )  # a scale of the batch, and of a matrix
    assert not taken(over=((-1,), (-1, -2, -3))) and not taken(over=(None, (-2, -1)))
    assert not taken(order=32) and not taken(order=12) and not taken(order=1)
    assert not taken(column=replace(NVFP4, four_over_six=True))
    assert not takes_both(NVFP4, NVFP4, torch.Size((24, 64)), torch.bfloat16, (None, None), None)


def test_which_tensors_and_formats_the_kernel_takes() -> None:
    def taken(row: MXFormat | None, column: MXFormat, *shape: int, axis: int = -2) -> bool:
        return takes(row, column, torch.Size(shape), torch.bfloat16, axis % len(shape))

    assert taken(FP4, FP8, 5, 16, 32) and taken(None, FP8, 16, 5, 8, axis=0)
    assert not taken(FP4, FP8, 5, 24, 32)  # columns end short
    assert not taken(FP4, FP8, 16, 48)  # rows do
    assert not taken(None, FP8, 16, 3, 3, axis=0)  # no whole vectors
    assert not taken(FP4, FP8, 0, 32)
    for other in (MXFormat("int8", 8), MXFormat("int8", (32, 32)), MXFormat("int8", 0), MXFormat("int8", 128)):
        assert takes_formats(FP4, other, torch.bfloat16) == (other.block_size == 8)
        assert takes_formats(None, other, torch.bfloat16) == (other.block_size in (8, 128))
        assert not takes_formats(other, FP4, torch.bfloat16)
    assert not takes_formats(FP4, MXFormat("fp4_e2m1", 16, "e4m3", tensor_scale=True), torch.bfloat16)
    assert not takes_formats(FP4, MXFormat("fp4_e2m1", 16, "e4m3", four_over_six=True), torch.bfloat16)
    assert not takes_formats(FP4, SATURATING, torch.bfloat16)  # one reads an Inf, the other none
    sixty_four = MXFormat("int8", 64)
    assert takes_formats(FP4, sixty_four, torch.bfloat16) and takes_formats(sixty_four, FP4, torch.bfloat16)
    assert not takes_formats(sixty_four, sixty_four, torch.bfloat16)  # more than a thread holds
    assert not takes_formats(sixty_four, FP4, torch.float32)


def test_blocks_that_lie_over_two_examples_are_not_drawn_for_at_once() -> None:
    shape = torch.Size((4, 32, 64))
    assert fits_draws(None, FP4, shape, 1) and fits_draws(Draws(0, 1, 3), FP4, shape, 1)
    assert not fits_draws(Draws(0, 2, 3), FP4, shape, 1)


@pytest.mark.parametrize("arch", ["sm_75", "sm_90"])
def test_the_kernel_compiles(arch: str) -> None:
    pytest.importorskip("cuda.core", reason="cuda-core is not installed (pip install 'mxsweep[cuda]')")
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        for source in (
            both_source(NV, FP8, dtype),
            both_source(None, FP4, dtype),
            both_source(NVFP4, NV, dtype, order=16),
        ):
            assert b"mx_both" in compile_source(source, arch).code


def test_the_operator_can_be_traced() -> None:
    x = torch.empty(3, 64, 32, dtype=torch.bfloat16, device="meta").transpose(0, 1)
    both = torch.ops.mxsweep.quantize_both(x, str(FP4), str(FP4), 0, 0, 0, None)
    assert [(y.shape, y.dtype, y.is_contiguous()) for y in both] == [(x.shape, x.dtype, True)] * 2


@pytest.mark.parametrize("arithmetic", [None, "exact"])
def test_both_are_two_calls(arithmetic: str | None) -> None:
    x = torch.randn(3, 32, 40, generator=torch.Generator().manual_seed(0)).bfloat16().requires_grad_()
    nvfp4 = MXFormat("fp4_e2m1", 16, "e4m3", tensor_scale=True)
    beside = {"arithmetic": arithmetic, "example_dims": 1, "first_example": 4}
    both = quantize_both(x, nvfp4, STOCHASTIC, generators=(None, 9), tensor_dims=((-1,), None), **beside)
    assert_same_bits(both[0], quantize(x, nvfp4, -1, tensor_dims=(-1,), **beside).detach())
    assert_same_bits(both[1], quantize(x, STOCHASTIC, -2, generator=9, **beside).detach())
    assert not any(y.requires_grad for y in both)


def test_what_does_not_fit_is_refused_for_either() -> None:
    x = torch.randn(4, 32)
    for arguments, message in (
        ((x[0], FP4, FP4), r"^x: 1 dimensions are not allowed; allowed: at least two$"),
        ((x, FP4, STOCHASTIC), r"^generator: None does not go with stochastic rounding"),
    ):
        with pytest.raises(ValueError, match=message):
            quantize_both(*arguments)
    with pytest.raises(ValueError, match=r"^backend: "):
        quantize_both(x, FP4, FP4, backend="numpy")
    with pytest.raises(TypeError, match=r"^x: "):
        quantize_both([1.0], FP4, FP4)  # type: ignore[arg-type]
    if not torch.cuda.is_available():
        with pytest.raises(BackendUnavailable, match="needs a CUDA GPU"):
            quantize_both(x, FP4, FP4, backend="cuda")
