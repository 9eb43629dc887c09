"""Native arithmetic by Triton: tried before it is used, and left where it does not give the definition's bits."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from helpers.adversarial import assert_same_bits
from torch import Tensor

from mxsweep.numerics import MXFormat, native_triton, quantize
from mxsweep.numerics.native_triton import DTYPES, call_count, quantize_fused, trial
from mxsweep.numerics.reference.definition import quantize_torch
from mxsweep.numerics.reference.scales import native_exponent
from mxsweep.numerics.wanted_exponents import WantedExponents, keeping_exponents

CPU = torch.device("cpu")
FORMAT = MXFormat("fp4_e2m1", 32)


@pytest.fixture(autouse=True)
def nothing_is_ready() -> Iterator[None]:
    for cached in (native_triton._fused, native_triton._say_once):
        cached.cache_clear()
    yield
    native_triton._fused.cache_clear()


def stand_in(change: Tensor | None = None, lifted: int = 0) -> type:
    """What takes the place of `Fused`: PyTorch's operations, `change` added to the bits of the first elements, and
    `lifted` to the exponents that are kept.
    """

    class StandIn:
        def __init__(self, fmt: MXFormat, *_: Any) -> None:
            self.fmt = fmt

        def __call__(self, x: Tensor, kept: WantedExponents | None) -> Tensor:
            y = quantize_torch(x, self.fmt, -1, "native", None, None)
            if kept is not None:
                amax = x.abs().amax(1)
                kept.note(amax, native_exponent(amax, self.fmt) + lifted, is_exact=False)
            if change is not None:
                y.view(torch.int16).flatten()[: len(change)].add_(change)
            return y

    return StandIn


def test_a_shortage_of_memory_while_it_is_tried_is_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> Tensor:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(native_triton, "Fused", stand_in())
    with monkeypatch.context() as context:
        context.setattr(native_triton, "trial", full)
        with pytest.raises(torch.OutOfMemoryError):
            native_triton._fused(FORMAT, torch.bfloat16, CPU, False)
    assert native_triton._fused(FORMAT, torch.bfloat16, CPU, False) is not None


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("block", [8, 32, 256])
def test_it_is_tried_on_every_largest_magnitude_and_others_beside_it(block: int, dtype: torch.dtype) -> None:
    x = trial(block, dtype, CPU)
    assert x.shape == (65536, block) and x.dtype == dtype
    codes = x.view(torch.int16).to(torch.int32) & 0x7FFF
    assert torch.equal(codes[:, 0], codes.amax(1))
    assert x[:, 0].view(torch.int16).unique().numel() == 65536
    finite = x.isfinite().all(1)
    assert len(x[finite].view(torch.int16).unique()) > 0.9 * finite.sum()
    quotients = (x / quantize_torch(x, FORMAT, -1, "native", None, None).abs().amax(1, keepdim=True))[finite]
    assert (quotients.abs() > 0.1).float().mean() > 0.2  # not all of them become zero


def test_what_has_the_bits_of_pytorchs_operations_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_triton, "Fused", stand_in())
    for keeps in (False, True):
        assert native_triton._fused(FORMAT, torch.bfloat16, CPU, keeps) is not None


def test_what_has_not_is_left_and_said_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(native_triton, "Fused", stand_in(torch.tensor([0] * 70 + [1], dtype=torch.int16)))
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            assert native_triton._fused(FORMAT, torch.bfloat16, CPU, False) is None
    (message,) = caplog.messages
    assert "1 of 2097152 elements come out otherwise in fp4_e2m1-b32-e8m0 of torch.bfloat16" in message


def test_where_the_exponents_are_others_it_is_left(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(native_triton, "Fused", stand_in(lifted=1))
    with caplog.at_level(logging.INFO):
        assert native_triton._fused(FORMAT, torch.bfloat16, CPU, True) is None
    assert "the exponents that blocks want are not those of fp4_e2m1-b32-e8m0" in caplog.messages[0]
    assert native_triton._fused(FORMAT, torch.bfloat16, CPU, False) is not None  # which keeps none


def test_where_triton_cannot_work_pytorchs_operations_do(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any) -> None:
        raise ModuleNotFoundError("No module named 'triton'\nand more")

    monkeypatch.setattr(native_triton, "Fused", broken)
    with caplog.at_level(logging.INFO):
        assert native_triton._fused(FORMAT, torch.bfloat16, CPU, False) is None
    assert caplog.messages == [
        "Triton does not fuse PyTorch's operations: ModuleNotFoundError: No module named 'triton'"
    ]


def test_on_a_cpu_it_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_triton, "Fused", stand_in())
    before = call_count()
    assert quantize_fused(trial(32, torch.bfloat16, CPU), FORMAT, -1, "native") is None and call_count() == before


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU on this machine")
class TestOnGPU:
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize(
        "fmt",
        [
            FORMAT,
            MXFormat("fp6_e2m3", 16, rounding="even"),
            MXFormat("int8", 64, rounding="floor"),
            MXFormat("fp8_e5m2", 8, scale_bits=5),
            MXFormat("fp4_e3m0", 256),
        ],
        ids=str,
    )
    def test_the_answer_is_that_of_pytorchs_operations(self, fmt: MXFormat, dtype: torch.dtype) -> None:
        x = torch.randn(5, 3, 7, 512, generator=torch.Generator().manual_seed(1)).to(dtype).cuda()
        views = (x, x.transpose(1, 2), x[:, :, ::2], x[..., ::2], x[:, :1].expand(5, 4, 7, 512))
        for view in views:
            before = call_count()
            y = quantize(view, fmt, arithmetic="native")
            expected = quantize_torch(view, fmt, -1, "native", None, None)
            assert call_count() == before + 1
            assert_same_bits(y, expected)
            assert y.stride() == expected.stride()

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("fmt", [FORMAT, MXFormat("int8", 64), MXFormat("fp8_e5m2", 8, scale_bits=5)], ids=str)
    def test_it_keeps_what_pytorchs_operations_note(self, fmt: MXFormat, dtype: torch.dtype) -> None:
        """Of tensors whose ends one block has, one that a program has to itself among them."""
        ordinary = torch.randn(129, 512, generator=torch.Generator().manual_seed(1)).cuda()
        before = call_count()
        for place, value in ((0, 2.0**14), (-1, 2.0**15), (512 * 70, -(2.0**13)), (5, torch.inf), (5, torch.nan)):
            for scale, zeros in ((1.0, False), (2.0**-6, False), (1.0, True)):
                x = (ordinary * scale).to(dtype)
                x.view(-1)[place] = value
                if zeros:
                    x[3] = 0.0
                ranges = []
                for by in (quantize, quantize_torch):
                    with keeping_exponents() as kept:
                        y = (
                            by(x, fmt, -1, arithmetic="native")
                            if by is quantize
                            else by(x, fmt, -1, "native", None, None)
                        )
                    ranges.append(kept.range())
                assert ranges[0] == ranges[1]
                assert (ranges[0] is None) == (zeros and dtype == torch.float16)
                assert_same_bits(quantize(x, fmt, arithmetic="native"), y)
        assert call_count() == before + 30

    def test_what_it_does_not_take(self) -> None:
        x = torch.randn(6, 96, device="cuda", dtype=torch.bfloat16)
        before = call_count()
        quantize(x[:, :40], FORMAT, arithmetic="native")
        quantize(x, FORMAT, arithmetic="exact")
        quantize(x.float(), FORMAT, arithmetic="native")
        quantize(x.T, FORMAT, 0, arithmetic="native")
        assert call_count() == before
