"""What only a GPU can show: the torch definition gives the same bits there, and runs work on it."""

from __future__ import annotations

import pytest
import torch

from mxsweep import compose, run
from mxsweep.numerics import MXFormat, backend_problem, quantize

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU on this machine"),
]

FORMATS = [
    MXFormat("fp4_e2m1"),
    MXFormat("fp6_e2m3", block_size=16, rounding="even", scale_rounding="even"),
    MXFormat("fp8_e5m2", block_size=64, scale_rounding="rceil"),
    MXFormat("int8", scale_bits=5, scale_rounding="ceil"),
    MXFormat("fp4_e2m1", block_size=16, scale="e5m3", rounding="even"),
    MXFormat("fp4_e2m1", block_size=16, scale="e4m3", tensor_scale=True),
    MXFormat("int4", scale="fp32", symmetric=False),
    MXFormat("fp4_e2m1", rounding="stochastic"),
]


def sample(dtype: torch.dtype) -> torch.Tensor:
    """Random magnitudes over the whole range, ties, zeros, NaN and Inf among them; blocks of ordinary size too."""
    generator = torch.Generator().manual_seed(0)
    wide = torch.randint(-(2**15), 2**15, (256, 512), generator=generator).to(torch.int16).view(torch.bfloat16)
    ordinary = torch.randn(256, 512, generator=generator)
    ties = (torch.randint(-64, 65, (256, 512), generator=generator) / 8).float()
    return torch.cat([wide.float(), ordinary, ties]).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_exact_arithmetic_has_the_same_bits_on_cpu_and_gpu(fmt: MXFormat, dtype: torch.dtype) -> None:
    x = sample(dtype)
    on_cpu = quantize(x, fmt, arithmetic="exact", generator=7)
    on_gpu = quantize(x.cuda(), fmt, arithmetic="exact", generator=7).cpu()
    assert torch.equal(on_cpu.nan_to_num(nan=-1.25), on_gpu.nan_to_num(nan=-1.25))
    assert torch.equal(on_cpu.isnan(), on_gpu.isnan())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("fmt", FORMATS[:2], ids=str)
def test_native_arithmetic_is_microxcalings_on_the_gpu_too(fmt: MXFormat, dtype: torch.dtype) -> None:
    problem = backend_problem("microxcaling")
    if problem is not None:
        pytest.skip(problem)
    if fmt.scale_rounding != "floor":
        fmt = MXFormat("fp6_e2m3", block_size=16, rounding="even")
    x = sample(dtype)[256:].cuda()
    assert torch.equal(quantize(x, fmt), quantize(x, fmt, backend="microxcaling"))


def test_a_run_on_the_gpu_records_it() -> None:
    record = run(compose(["limit=50", "kv_quant=fp4_e2m1", "model.device=cuda"]))
    assert record["status"] == "done", record["error"]
    assert record["environment"]["device"] == "cuda:0"
    assert record["memory"]["peak_gpu_bytes"] > 1e6
