"""What elementwise.cu computes: held against transformers' own modules, and on a GPU bit for bit against operations."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers.kernel_host import HostKernels
from helpers.tensor_bytes import TensorBytes
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb

from mxsweep.formats.backends import BackendUnavailable
from mxsweep.numerics.kernels import elementwise_cuda as kernels
from mxsweep.numerics.kernels.compile import compile_source

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
DTYPES = pytest.mark.parametrize("dtype", kernels.DTYPES, ids=str)


@pytest.fixture
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def draw(*shape: int, dtype: torch.dtype, device: str = "cpu") -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape))).to(device, dtype)


def norm_of(channels: int, dtype: torch.dtype, device: str = "cpu") -> LlamaRMSNorm:
    norm = LlamaRMSNorm(channels, eps=1e-5)
    norm.weight.data = draw(channels, dtype=dtype, device=device)
    return norm


def same_bits(a: Tensor, b: Tensor) -> bool:
    return bool(((a.view(torch.int16) == b.view(torch.int16)) | (a.isnan() & b.isnan())).all())


@DTYPES
def test_operations_are_those_of_transformers(dtype: torch.dtype, no_gradients: None) -> None:
    norm, x = norm_of(96, dtype), draw(3, 5, 96, dtype=dtype)
    assert torch.equal(kernels.rms_norm_by_operations(x, norm.weight, 1e-5), norm(x))
    q, k = (draw(2, 7, heads, 32, dtype=dtype).transpose(1, 2) for heads in (4, 2))
    cos, sin = (draw(1, 7, 32, dtype=dtype) for _ in range(2))
    for x, expected in zip((q, k), apply_rotary_pos_emb(q, k, cos, sin), strict=True):
        found = kernels.rotate_by_operations(x, cos, sin)
        assert torch.equal(found, expected) and found.stride() == expected.stride() == x.stride()


@DTYPES
@pytest.mark.parametrize("held", [0, 16])
@pytest.mark.parametrize("arch", ["sm_75", "sm_90", "sm_120"])
def test_the_kernels_compile_without_a_gpu(arch: str, held: int, dtype: torch.dtype) -> None:
    try:
        compiled = compile_source(kernels.elementwise_source(dtype, held), arch)
    except BackendUnavailable as error:
        pytest.skip(str(error))
    assert all(name in bytes(compiled.code) for name in (b"rms_norm", b"silu_times", b"rotary"))


def on_host(dtype: torch.dtype, held: int, folder: Path) -> HostKernels:
    return HostKernels(kernels.elementwise_source(dtype, held), folder, kernels.THREADS)


@pytest.fixture
def host_is_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "current_device", lambda: None)


def mean_in_torchs_order(x: Tensor) -> Tensor:
    """The mean of squares (rows, 1) of x (rows, C), summed as torch sums a row of float32 on a GPU."""
    rows, channels = x.shape
    squares = F.pad(x.float().square(), (0, -channels % 128))
    by_sum = squares.view(rows, -1, 32, 4).transpose(2, 3) if channels >= 128 else squares.view(rows, -1, 4, 32)
    sums = torch.zeros(rows, 4, 32)
    for step in by_sum.unbind(1):
        sums = sums + step
    lanes = sums[:, 0] + sums[:, 1] + sums[:, 2] + sums[:, 3]
    while lanes.shape[1] > 1:
        half = lanes.shape[1] // 2
        lanes = lanes[:, :half] + lanes[:, half:]
    return lanes * (torch.tensor(float(rows)) / torch.tensor(float(rows * channels)))


@DTYPES
@pytest.mark.parametrize(("channels", "held"), [(64, 1), (128, 1), (136, 2), (640, 5), (640, 0)])
def test_norms_on_the_host(
    channels: int, held: int, dtype: torch.dtype, tmp_path: Path, no_gradients: None, host_is_the_device: None
) -> None:
    x, weight = draw(37, channels, dtype=dtype), draw(channels, dtype=dtype)  # a thread block has 16 rows
    means = torch.zeros(37, 1)
    found = kernels._launch_norm(on_host(dtype, held, tmp_path), x, weight, 1e-5, means)
    assert torch.equal(means, mean_in_torchs_order(x))
    expected = kernels.rms_norm_by_operations(x, weight, 1e-5)
    assert (found == expected).float().mean() > 0.99  # a reciprocal root is not the GPU's
    torch.testing.assert_close(found, expected, rtol=torch.finfo(dtype).eps, atol=0)


@DTYPES
def test_silu_and_rotary_embeddings_on_the_host(
    dtype: torch.dtype, tmp_path: Path, no_gradients: None, host_is_the_device: None
) -> None:
    host = on_host(dtype, 0, tmp_path)
    gate, up = draw(90, 24, dtype=dtype), draw(90, 24, dtype=dtype) + 1
    found = kernels._launch_silu(host, gate, up)
    torch.testing.assert_close(found, F.silu(gate) * up, rtol=2 * torch.finfo(dtype).eps, atol=0)
    for heads, examples in ((3, 1), (2, 4)):
        x = draw(4, 14, heads, 48, dtype=dtype).transpose(1, 2)
        cosines, sines = (draw(examples, 14, 48, dtype=dtype) for _ in range(2))
        found, expected = (
            kernels._launch_rotation(host, x, cosines, sines),
            kernels.rotate_by_operations(x, cosines, sines),
        )
        assert torch.equal(found, expected) and found.stride() == expected.stride()


def test_a_cpu_has_operations_only(no_gradients: None) -> None:
    x = draw(100, 64, dtype=torch.bfloat16)
    assert kernels.rms_norm(x, x[0], 1e-5) is None
    assert kernels.silu_times(x, x) is None
    assert kernels.rotate(x.view(1, 10, 10, 64).transpose(1, 2), x[None, :10], x[None, :10]) is None


@pytest.fixture
def tried_on_the_host(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Have trials of norms go by operations on a CPU; the list has the rows whose first number comes out wrong."""
    wrong: list[int] = []

    def launch(_: object, x: Tensor, weight: Tensor, epsilon: float, means: Tensor | None = None) -> Tensor:
        y = torch.empty_like(x)
        with _disable_current_modes():  # a kernel makes no tensors
            if means is not None:
                means.copy_(x.float().pow(2).mean(-1, keepdim=True))
            y.copy_(kernels.rms_norm_by_operations(x, weight, epsilon))
            y[wrong, 0] = -y[wrong, 0]
        return y

    monkeypatch.setattr(kernels, "_launch_norm", launch)
    monkeypatch.setattr(kernels, "_place", lambda _: torch.device("cpu"))
    monkeypatch.setattr(kernels, "_kernels", lambda *_: object())
    return wrong


@DTYPES
@pytest.mark.parametrize("rows", [64, 1001])
def test_a_trial_looks_at_every_row(
    rows: int, dtype: torch.dtype, tried_on_the_host: list[int], no_gradients: None
) -> None:
    def try_it() -> bool:
        return kernels._norms_alike.__wrapped__(rows, 64, 1e-5, dtype, 0)

    assert try_it()
    for row in (0, 5, rows // 2, rows - 1):
        tried_on_the_host[:] = [row]
        assert not try_it()


def test_a_trial_takes_no_more_memory_than_operations(tried_on_the_host: list[int], no_gradients: None) -> None:
    """It is made in the middle of a pass, whose batch may fill the GPU."""
    x, norm = draw(1000, 512, dtype=torch.bfloat16), norm_of(512, torch.bfloat16)
    with TensorBytes() as operations:
        norm(x)
    with TensorBytes() as trial:
        assert kernels._norms_alike.__wrapped__(1000, 512, 1e-5, torch.bfloat16, 0)
    assert operations.peak >= 8 * x.numel()
    assert trial.peak < 1.01 * operations.peak


def test_kernels_read_plain_tensors_only(no_gradients: None) -> None:
    class OnGpu(Tensor):
        is_cuda = True

    class Parameter(nn.Parameter):
        is_cuda = True

    x = draw(8, 8, dtype=torch.bfloat16)
    for other in (x.as_subclass(OnGpu), Parameter(x)):
        assert not kernels._take(other, other)


def test_a_trial_that_fails_leaves_the_work_to_operations_and_one_without_memory_is_made_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """No run needs a kernel of these."""
    raised: list[Exception] = []

    def launch(*_: object) -> Tensor:
        raise raised[-1]

    for name in ("_launch_norm", "_launch_silu", "_launch_rotation"):
        monkeypatch.setattr(kernels, name, launch)
    monkeypatch.setattr(kernels, "_place", lambda _: torch.device("cpu"))
    monkeypatch.setattr(kernels, "_kernels", lambda *_: object())
    shape, dtype, device = (64, 72, 1e-5), torch.float16, -1
    raised.append(torch.OutOfMemoryError("CUDA out of memory"))
    for _ in range(2):
        with pytest.raises(torch.OutOfMemoryError):
            kernels._norms_alike(*shape, dtype, device)
    raised.append(RuntimeError("CUDA's driver could not launch it: error 701"))
    with caplog.at_level(logging.INFO):
        assert not kernels._norms_alike(*shape, dtype, device)
        assert not kernels._silu_alike(dtype, device)
        assert not kernels._rotation_alike(dtype, device)
    assert caplog.text.count("are PyTorch's: CUDA's driver could not launch it: error 701") == 1


def test_what_kernels_did_is_counted_without_trials(
    tried_on_the_host: list[int], no_gradients: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "_take", lambda *_: True)
    monkeypatch.setattr(kernels, "_norms_alike", kernels._norms_alike.__wrapped__)
    x, before = draw(64, 64, dtype=torch.bfloat16), kernels.call_count()
    assert kernels.rms_norm(x, x[0], 1e-5) is not None
    tried_on_the_host[:] = [5]
    assert kernels.rms_norm(x, x[0], 1e-5) is None
    assert kernels.call_count() == before + 1


def test_rows_that_torch_splits_are_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []
    monkeypatch.setattr(kernels, "_take", lambda *tensors: tried.append(tensors[0].shape[-1]))
    for channels in (8184, 8192, 16384):
        x = draw(64, channels, dtype=torch.bfloat16)
        assert kernels.rms_norm(x, x[0], 1e-5) is None
    assert tried == [8184]


def test_other_bits_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    kernels._say_once.cache_clear()
    x = draw(10, dtype=torch.bfloat16)
    x[0], x[1] = torch.nan, 0.0
    other_nan, other_zero = x.clone(), x.clone()
    other_nan.view(torch.int16)[0] ^= 1
    other_zero[1] = -0.0
    with caplog.at_level(logging.INFO):
        assert kernels._alike(other_nan, x, "it") and not caplog.text
        assert not kernels._alike(other_zero, x, "it")
        assert not kernels._alike(other_zero, x, "it")
    assert caplog.text.count("it: 1 of 10 numbers come out otherwise") == 1
    kernels._say_once.cache_clear()


def test_the_factor_of_a_mean_is_torchs() -> None:
    # 896 x 65,537 is no float32, so that the quotient is not 1 / 896 rounded.
    wide = torch.tensor(65_537.0) / torch.tensor(896.0 * 65_537)
    assert kernels._factor(65_537, 896) == int(wide.view(torch.int32))
    assert kernels._factor(64, 2048) == int(torch.tensor(1 / 2048).view(torch.int32))


@pytest.mark.gpu
@on_gpu
@DTYPES
@pytest.mark.parametrize("shape", [(64, 64), (3, 50, 896), (2, 500, 2048), (1, 70, 3, 128), (1000, 1000), (100, 8128)])
def test_norms_on_a_gpu(shape: tuple[int, ...], dtype: torch.dtype, no_gradients: None) -> None:
    norm, x = norm_of(shape[-1], dtype, "cuda"), draw(*shape, dtype=dtype, device="cuda")
    x[0], x[-1, ..., 0] = 0.0, torch.inf
    found = kernels.rms_norm(x, norm.weight, 1e-5)
    assert found is not None and found.shape == x.shape
    assert same_bits(found, norm(x))
    plain = torch.randn(x.numel() // shape[-1], shape[-1]).to(dtype)
    assert torch.equal(plain.cuda().float().pow(2).mean(-1, keepdim=True).cpu(), mean_in_torchs_order(plain))


@pytest.mark.gpu
@on_gpu
def test_norms_that_are_left_to_operations(no_gradients: None) -> None:
    x = draw(100, 8192, dtype=torch.bfloat16, device="cuda")
    assert kernels.rms_norm(x, x[0], 1e-5) is None  # torch splits rows as long as these among warps
    narrow = x[:, :512]
    assert kernels.rms_norm(narrow, x[0, :512], 1e-5) is None  # with gaps between rows
    few = x[: kernels.LEAST_ROWS - 1, :512].contiguous()
    assert kernels.rms_norm(few, x[0, :512], 1e-5) is None
    whole = narrow.contiguous()
    assert kernels.rms_norm(whole, x[0, :512].float(), 1e-5) is None
    assert kernels.rms_norm(whole, x[0, 1:513], 1e-5) is None  # between 16-byte steps
    assert kernels.rms_norm(whole, x[0, :512], 1e-5) is not None
    with torch.enable_grad():
        assert kernels.rms_norm(whole, x[0, :512], 1e-5) is None


@pytest.mark.gpu
@on_gpu
@DTYPES
def test_silu_times_on_a_gpu(dtype: torch.dtype, no_gradients: None) -> None:
    gate, up = draw(3, 77, 1000, dtype=dtype, device="cuda"), draw(231, 1000, dtype=dtype, device="cuda")
    found = kernels.silu_times(gate, up.view(gate.shape))
    assert found is not None and same_bits(found, F.silu(gate) * up.view(gate.shape))
    assert kernels.silu_times(gate, up) is None
    assert kernels.silu_times(gate.transpose(0, 1), up.view(gate.shape).transpose(0, 1)) is None


@pytest.mark.gpu
@on_gpu
@DTYPES
@pytest.mark.parametrize("examples", [1, 5])
@pytest.mark.parametrize("dim", [16, 64, 128])
def test_rotary_embeddings_on_a_gpu(dim: int, examples: int, dtype: torch.dtype, no_gradients: None) -> None:
    q, k = (draw(5, 33, heads, dim, dtype=dtype, device="cuda").transpose(1, 2) for heads in (6, 2))
    cos, sin = (draw(examples, 33, dim, dtype=dtype, device="cuda") for _ in range(2))
    for x, expected in zip((q, k), apply_rotary_pos_emb(q, k, cos, sin), strict=True):
        found = kernels.rotate(x, cos, sin)
        assert found is not None and same_bits(found.contiguous(), expected.contiguous())
        assert found.stride() == expected.stride()
    assert kernels.rotate(q.contiguous(), cos, sin) is None
    assert kernels.rotate(q[:, :1], cos, sin) is None
    assert kernels.rotate(q, cos[..., : dim // 2], sin[..., : dim // 2]) is None
