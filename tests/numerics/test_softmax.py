"""What a softmax over rows of logits needs, as softmax.cu finds it: on the host, and where there is a GPU there."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from helpers.kernel_host import HostKernels
from torch import Tensor

from mxsweep.formats.backends import BackendUnavailable
from mxsweep.numerics.kernels import softmax_cuda
from mxsweep.numerics.kernels.compile import compile_source
from mxsweep.numerics.kernels.source import STORAGE

DTYPES = pytest.mark.parametrize("dtype", list(STORAGE), ids=str)


def special_rows(entries: int, dtype: torch.dtype) -> Tensor:
    """(8, entries), six logits apart from each other in memory: ties, infinities and NaN among ordinary ones."""
    logits = torch.randn((8, entries + 6), generator=torch.Generator().manual_seed(entries)) * 9
    logits = logits.to(dtype)[:, :entries]
    logits[1] = logits[1].round()  # many are equal
    logits[2, :-1] = -torch.inf
    logits[3, entries // 2] = torch.inf
    logits[4, entries // 2] = torch.nan
    logits[5] = -torch.inf
    logits[6, : entries // 2] = -torch.inf
    logits[7] = 0.0
    return logits


def assert_as_defined(logits: Tensor, found: tuple[Tensor, Tensor, Tensor]) -> None:
    """In float64; of rows with an Inf, a NaN or nothing else than -Inf, that log-probabilities are NaN."""
    largest, token, normalizer = (each.cpu() for each in found)
    wide = logits.cpu().double()
    sound = torch.tensor([0, 1, 2, 6, 7])
    assert torch.equal(largest[sound].double(), wide[sound].amax(1))
    first = [int((row == row.max()).nonzero()[0]) for row in wide[sound]]
    assert token[sound].tolist() == first
    expected = (wide[sound] - wide[sound].amax(1, keepdim=True)).exp().sum(1).log()
    torch.testing.assert_close(normalizer[sound].double(), expected, rtol=1.5e-7, atol=1.5e-7)
    assert normalizer[7] == pytest.approx(math.log(logits.shape[1]), rel=1e-6)
    assert (wide[:, 0] - largest - normalizer)[3:6].isnan().all()


@DTYPES
@pytest.mark.parametrize("entries", [1, 7, 50, 2_048, 50_257])
def test_the_kernel_on_the_host(
    entries: int, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = HostKernels(softmax_cuda.softmax_source(dtype), tmp_path, softmax_cuda.THREADS)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: None)
    monkeypatch.setattr(softmax_cuda, "_kernels", lambda *_: host)
    logits = special_rows(entries, dtype)
    assert_as_defined(logits, softmax_cuda.normalize_rows(logits))


@DTYPES
def test_the_kernel_compiles_without_a_gpu(dtype: torch.dtype) -> None:
    try:
        compiled = compile_source(softmax_cuda.softmax_source(dtype), "sm_90")
    except BackendUnavailable as error:
        pytest.skip(str(error))
    assert b"softmax_rows" in bytes(compiled.code)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@DTYPES
@pytest.mark.parametrize("entries", [1, 7, 50, 2_048, 50_257, 262_144])
def test_the_kernel_on_a_gpu(entries: int, dtype: torch.dtype) -> None:
    logits = special_rows(entries, dtype).to("cuda")
    assert softmax_cuda.takes_logits(logits)
    found = softmax_cuda.normalize_rows(logits)
    assert_as_defined(logits, found)
    alone = softmax_cuda.normalize_rows(logits[1:2])
    assert [each[0].item() for each in alone] == [each[1].item() for each in found]


def test_logits_are_read_by_operations_where_the_kernel_cannot_be_made(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA_ERROR_UNSUPPORTED_PTX_VERSION")

    monkeypatch.setattr(softmax_cuda, "backend_problem", lambda _: None)
    monkeypatch.setattr(softmax_cuda, "load_kernels", refuse)
    softmax_cuda._kernels.cache_clear()
    assert softmax_cuda._kernels(torch.float32, 0) is None
    softmax_cuda._kernels.cache_clear()
    assert "PyTorch's operations" in caplog.text and "UNSUPPORTED_PTX" in caplog.text
