"""What only a GPU can show: the torch definition gives the same bits there, and runs work on it."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.adversarial import adversarial, assert_same_bits
from helpers.hessian_loss import hessian_loss
from helpers.kernel_formats import FORMATS as KERNEL_FORMATS
from safetensors import safe_open
from transformers import LlamaConfig, LlamaForCausalLM

from mxsweep import LinearFormats, Recipe, compose, quantize_model, run
from mxsweep.formats.scale_rules import SCALE_RULE_NAMES
from mxsweep.model import offload
from mxsweep.model.operands import find_operands
from mxsweep.model.quantize import left_out
from mxsweep.numerics import BackendUnavailable, MXFormat, backend_problem, decode, encode, quantize, quantize_both
from mxsweep.numerics.hadamard import SignedHadamard
from mxsweep.numerics.kernels import cuda
from mxsweep.numerics.kernels.both_cuda import takes
from mxsweep.numerics.kernels.compile import launch_count
from mxsweep.numerics.philox import uniform_of_calls
from mxsweep.numerics.reference.rounding import round_exact
from mxsweep.numerics.reference.scales import stored_scale
from mxsweep.numerics.rescaled import quantize_rescaled
from mxsweep.solvers.block_scales import BlockScales
from mxsweep.solvers.clip import search_scales
from mxsweep.solvers.gptq import GROUP, gptq

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
    MXFormat("fp4_e2m1", 16, "e4m3", four_over_six=True),
    MXFormat("fp4_e2m1", 16, "e5m3", tensor_scale=True, scale_rule="quark", four_over_six=True, inf="saturate"),
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


KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.mark.parametrize("fmt", KERNEL_FORMATS, ids=str)
def test_the_kernels_are_the_definition(fmt: MXFormat) -> None:
    for seed, dtype in enumerate(KERNEL_DTYPES):
        x = adversarial(2**21, seed, "cuda", finite=fmt.tensor_scale).view(512, -1).to(dtype)
        if fmt.tensor_scale:
            x = x.nan_to_num(posinf=1.0, neginf=1.0)
        arguments = {"generator": 2**63 + seed, "example_dims": 1, "first_example": 2**32 - 5, "tensor_dims": (-1,)}
        assert_same_bits(
            quantize(x, fmt, backend="cuda", **arguments), quantize(x, fmt, arithmetic="exact", **arguments)
        )


@pytest.mark.parametrize("fmt", KERNEL_FORMATS[::5], ids=str)
def test_the_kernels_are_what_codes_say_and_codes_are_those_of_the_cpu(fmt: MXFormat) -> None:
    for seed, dtype in enumerate(KERNEL_DTYPES):
        x = adversarial(2**16, seed, "cuda", finite=fmt.tensor_scale).view(64, -1).to(dtype)
        if fmt.tensor_scale:
            x = x.nan_to_num(posinf=1.0, neginf=1.0)
        arguments = {"generator": 2**63 + seed, "example_dims": 1, "tensor_dims": (-1,)}
        on_gpu, on_cpu = encode(x, fmt, **arguments), encode(x.cpu(), fmt, **arguments)
        assert_same_bits(decode(on_gpu), quantize(x, fmt, backend="cuda", **arguments))
        for name in ("codes", "scales", "tensor_scale", "midpoints", "negative_zeros"):
            ours, expected = getattr(on_gpu, name), getattr(on_cpu, name)
            assert (ours is None) == (expected is None)
            if expected is not None:
                torch.testing.assert_close(ours.cpu(), expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("fmt", [fmt for fmt in KERNEL_FORMATS if fmt.tensor_scale], ids=str)
def test_the_kernels_are_the_definition_under_ordinary_tensor_scales(fmt: MXFormat) -> None:
    generator = torch.Generator("cuda").manual_seed(0)
    for exponent, dtype in itertools.product((0, -10, 10), KERNEL_DTYPES):
        x = (torch.randn(1024, 2048, generator=generator, device="cuda") * 2.0**exponent).to(dtype)
        ours = quantize(x, fmt, backend="cuda", generator=5)
        assert_same_bits(ours, quantize(x, fmt, arithmetic="exact", generator=5))


@pytest.mark.parametrize("dims", [None, (-1,), (1, 2)], ids=str)
def test_a_maximum_that_is_given_takes_the_place_of_the_measured_one(dims: tuple[int, ...] | None) -> None:
    x = torch.randn(8, 32, 64, generator=torch.Generator("cuda").manual_seed(0), device="cuda")
    x[0, 1, 5], x[2, 3, 20] = torch.nan, torch.inf
    nvfp4 = MXFormat("fp4_e2m1", 16, "e4m3", tensor_scale=True)
    maxima = (7.0, 0.0, torch.inf, torch.nan, 1e-44, torch.rand(8, 1, 1).add_(1))
    for amax, rule, better in itertools.product(maxima, SCALE_RULE_NAMES, (False, True)):
        amax = torch.as_tensor(amax)
        if amax.ndim and dims is None:
            continue
        fmt = replace(nvfp4, scale_rule=rule, four_over_six=better, inf="saturate" if better else "nan_block")
        more = {"tensor_dims": dims, "tensor_amax": amax.cuda()}
        expected = quantize(x, fmt, **more)
        assert_same_bits(quantize(x, fmt, backend="cuda", **more), expected)
        assert_same_bits(expected.cpu(), quantize(x.cpu(), fmt, tensor_dims=dims, tensor_amax=amax))


@pytest.mark.slow
@pytest.mark.parametrize("fmt", KERNEL_FORMATS[:: len(KERNEL_FORMATS) // 48], ids=str)
def test_the_kernels_are_the_definition_on_many_more_numbers(fmt: MXFormat) -> None:
    for seed in range(100, 102):
        for dtype in KERNEL_DTYPES:
            x = adversarial(2**25, seed, "cuda", finite=fmt.tensor_scale).view(8192, -1).to(dtype)
            ours = quantize(x, fmt, backend="cuda", generator=seed)
            assert_same_bits(ours, quantize(x, fmt, arithmetic="exact", generator=seed))


@pytest.mark.parametrize("dtype", KERNEL_DTYPES, ids=str)
def test_the_kernels_on_recorded_inputs(shared_dir: Path, dtype: torch.dtype) -> None:
    path = shared_dir / "golden" / "microxcaling.safetensors"
    if not path.is_file():
        pytest.skip(f"no golden file at {path}")
    count = 0
    with safe_open(path, "pt") as recorded:
        for case in json.loads(recorded.metadata()["cases"]):
            fmt = MXFormat(
                case["elem_format"], case["block_size"], scale_bits=case["scale_bits"], rounding=case["round"]
            )
            x = recorded.get_tensor(case["input"]).to(dtype).cuda()
            ours = quantize(x, fmt, case["axis"], backend="cuda")
            assert_same_bits(ours, quantize(x, fmt, case["axis"], arithmetic="exact"))
            if case["dtype"] == "float32" == str(dtype).removeprefix("torch."):
                assert torch.equal(ours.cpu().nan_to_num(7e7), recorded.get_tensor(case["output"]).nan_to_num(7e7))
                count += 1
    assert count == (592 if dtype == torch.float32 else 0)


LAYOUTS = {
    "transposed": lambda x: x.transpose(0, 2),
    "strided": lambda x: x[..., ::2],
    "expanded": lambda x: x[:, :1].expand(-1, 5, -1),
    "misaligned": lambda x: x.reshape(-1)[1:-4].view(-1, 5),
    "ragged": lambda x: x[..., :37],
    "one row": lambda x: x[0, 0],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("block_size", [32, 16, 1, 7, 0, 512, (4, 8), (1, 16), (3, 1)], ids=str)
def test_the_kernels_take_any_shape_axis_and_stride(block_size: int | tuple[int, int], layout: str) -> None:
    for dtype in KERNEL_DTYPES:
        x = LAYOUTS[layout](adversarial(6 * 10 * 64, 3, "cuda").view(6, 10, 64).to(dtype))
        before = x.clone()
        for axis in range(x.ndim) if isinstance(block_size, int) else [-1]:
            if not isinstance(block_size, int) and x.ndim < 2:
                continue
            for fmt in (
                MXFormat("fp6_e2m3", block_size),
                MXFormat("fp4_e2m1", block_size, "e5m3", symmetric=False),
                MXFormat("fp8_e4m3", block_size, rounding="stochastic"),
                MXFormat("fp4_e2m1", block_size, "e4m3", rounding="stochastic", four_over_six=True, inf="saturate"),
            ):
                for example_dims, first in itertools.product(range(x.ndim), (None, 3)):
                    arguments = {"generator": 11, "example_dims": example_dims, "first_example": first}
                    ours = quantize(x, fmt, axis, backend="cuda", **arguments)
                    assert_same_bits(ours, quantize(x, fmt, axis, arithmetic="exact", **arguments))
        assert_same_bits(x, before)


@pytest.mark.parametrize("dims", [None, (-1,), (1, 2), (0, 1, 2)], ids=str)
@pytest.mark.parametrize("shape", [(3, 5, 48), (2, 70, 2064), (1, 3, 100_000), (3, 2, 20_001), (2, 3, 33)], ids=str)
def test_the_kernels_per_tensor_scale(shape: tuple[int, ...], dims: tuple[int, ...] | None) -> None:
    nvfp4 = MXFormat("fp4_e2m1", 16, "e4m3", tensor_scale=True)
    others = [
        replace(nvfp4, inf="saturate", four_over_six=True),
        replace(nvfp4, scale_rule="compressed_tensors"),
        replace(nvfp4, scale_rule="quark", scale="e5m3", four_over_six=True),
    ]
    for dtype, fmt in itertools.product(KERNEL_DTYPES, (*others, nvfp4)):
        x = torch.randn(shape, device="cuda").to(dtype)
        x[0, 0] = 0
        ours = quantize(x, fmt, backend="cuda", tensor_dims=dims)
        assert_same_bits(ours, quantize(x, fmt, arithmetic="exact", tensor_dims=dims))
        for special in (torch.nan, torch.inf, -torch.inf):
            x[-1, -1, -1] = special
            ours = quantize(x, fmt, backend="cuda", tensor_dims=dims)
            assert_same_bits(ours, quantize(x, fmt, arithmetic="exact", tensor_dims=dims))
    with pytest.raises(BackendUnavailable, match=r"over the last dimensions, and tensor_dims is \(0, 2\) of 3"):
        quantize(x, fmt, backend="cuda", tensor_dims=(0, 2))


@pytest.mark.parametrize("shape", [(0,), (0, 4), (4, 0), (2, 0, 3)], ids=str)
def test_the_kernels_on_empty_tensors(shape: tuple[int, ...]) -> None:
    for fmt in (MXFormat("int8"), MXFormat("fp4_e2m1", 16, "e4m3", tensor_scale=True)):
        x = torch.empty(shape, device="cuda", dtype=torch.bfloat16)
        assert quantize(x, fmt, backend="cuda").shape == shape


@pytest.mark.slow
@pytest.mark.parametrize(
    "fmt",
    [MXFormat("fp4_e2m1"), MXFormat("fp4_e2m1", 48), MXFormat("fp4_e2m1", rounding="stochastic")],
    ids=str,
)
def test_the_kernels_on_more_than_two_to_the_31_elements(fmt: MXFormat) -> None:
    rows, length = 2**19 + 8, 4096 + 64 * 3 * 4  # a multiple of 48 and of 64
    assert rows * length > 2**31
    if torch.cuda.mem_get_info()[0] < 6 * rows * length:
        pytest.skip("needs 15 GB of free GPU memory")
    x = torch.empty(rows, length, dtype=torch.bfloat16, device="cuda").normal_()
    y = quantize(x, fmt, backend="cuda", generator=5)
    for start in (0, rows // 2, rows - 16):
        part = slice(start, start + 16)
        if fmt.rounding != "stochastic":
            assert_same_bits(y[part], quantize(x[part], fmt, arithmetic="exact"))
            continue
        # Eight elements of the whole draw from counter n, which a part alone does not know: the definition by hand.
        n = torch.arange(start * length // 8, (start + 16) * length // 8, device="cuda")
        random = uniform_of_calls(5, n, torch.zeros_like(n)).view(16, length)
        blocks = x[part].float().unflatten(-1, (-1, 32))
        scale = stored_scale(blocks.abs().amax(-1, keepdim=True), fmt)
        q = round_exact(blocks / scale, fmt.element_format, "stochastic", random.unflatten(-1, (-1, 32)))
        assert_same_bits(y[part], (q * scale).flatten(-2).to(torch.bfloat16))


def test_the_kernels_run_on_the_current_stream_and_pass_gradients() -> None:
    x = torch.randn(64, 64, device="cuda", requires_grad=True)
    before = launch_count()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(10_000_000)
        y = (x * 2).detach().requires_grad_()
        z = quantize(y, MXFormat("fp4_e2m1"), backend="cuda")
        z.sum().backward()
    torch.cuda.synchronize()
    assert_same_bits(z.detach(), quantize((2 * x).detach(), MXFormat("fp4_e2m1"), arithmetic="exact"))
    assert torch.equal(y.grad, torch.ones_like(x))
    assert launch_count() == before + 1


NVFP4 = MXFormat("fp4_e2m1", 16, "e4m3", tensor_scale=True, rounding="even")


@pytest.mark.parametrize(
    "block_size", [17, 20, 24, 48, 63, 100, 128, 300, 0, (16, 16), (5, 32), (16, 24), (100, 64), (128, 256)], ids=str
)
def test_tiles_and_blocks_of_every_length_are_the_definition(block_size: int | tuple[int, int]) -> None:
    """Which whole thread blocks share, which are quantized in parts, or of which a warp has a few at a time."""
    for dtype, shape in itertools.product(KERNEL_DTYPES, ((2, 384, 768), (3, 301, 520), (2, 37, 519))):
        # Once from a 16-byte step on, once not, and once with blocks that have a NaN or Inf.
        count, start, finite = torch.Size(shape).numel(), int(shape[-1] == 520), shape[-1] != 519
        x = adversarial(count + start, 3, "cuda", finite=finite).to(dtype)[start:].view(shape)
        x = x.nan_to_num(posinf=1.0, neginf=1.0) if finite else x
        for fmt, axis in itertools.product(
            (
                MXFormat("fp4_e2m1", block_size),
                replace(NVFP4, block_size=block_size),
                replace(NVFP4, block_size=block_size, rounding="stochastic", four_over_six=True),
                MXFormat("int4", block_size, "fp32", symmetric=False),
            ),
            (-1, -2, 0) if isinstance(block_size, int) else (-1,),
        ):
            dims = (-2, -1) if axis else None
            beside = {"generator": 7, "example_dims": 1, "first_example": 3, "tensor_dims": dims}
            ours = quantize(x, fmt, axis, backend="cuda", **beside)
            assert_same_bits(ours, quantize(x, fmt, axis, arithmetic="exact", **beside))


MX, INT4 = MXFormat("fp4_e2m1", 48), MXFormat("int4", 48, "fp32", symmetric=False)
BETTER = replace(NVFP4, rounding="stochastic", four_over_six=True, inf="saturate")
KERNEL_OF = [
    # Kernel, block size, shape, axis, dimensions of a per-tensor scale.
    # Short blocks, of which a thread reads 16, 4 or 2 bytes at once, and short rows.
    *(
        ("mx_short_blocks", size, (3, 37, width), -1, (-1,))
        for size, width in ((48, 200), (20, 202), (40, 201), (63, 203))
    ),
    *(("mx_short_blocks", size, (3, 37, width), -1, (-2, -1)) for size, width in ((640, 1288), (4, 66), (300, 8))),
    ("mx_vector_tiles_by_warp", 0, (3, 37, 64), -1, (-1,)),
    ("mx_tiles_by_warp", 0, (3, 37, 37), -1, (-1,)),
    # Whole rows and blocks that thread blocks of 64, 128 and 256 keep, and longer ones.
    *(("mx_vector_tiles", 0, (2, 3, width), -1, (-1,)) for width in (3080, 6152, 16_392, 60_008)),
    ("mx_vector_tiles", (40, 520), (2, 57, 1048), -1, (-2, -1)),
    # Small tiles: 1 to 32 lanes a row, 1 to 8 rows a lane, taller and wider than the tensor.
    *(("mx_small_tiles", size, (3, 37, 264), -1, (-2, -1)) for size in ((2, 8), (16, 16), (3, 32), (32, 32), (16, 64))),
    *(("mx_small_tiles", size, (3, 5, 136), -1, (-2, -1)) for size in ((16, 16), (5, 128), (8, 64))),
    # Columns that a thread block keeps, and parts of longer ones: more of them than are read at once, short ends.
    *(("mx_long_columns", size, (2, 257, 72), -2, (-2, -1)) for size in (100, 256)),
    *(("mx_columns_by_parts", size, (2, 9000, 24), -2, (-2, -1)) for size in (0, 8999, 600, 10_000)),
    ("mx_columns_by_parts", 0, (1, 2, 520, 1032), -2, (-3, -2, -1)),
    ("mx_columns_by_parts", 300, (2, 700, 3, 8), 1, (-3, -2, -1)),
    ("mx_tiles_by_thread", 0, (2, 300, 37), -2, (-2, -1)),
]


@pytest.mark.parametrize(("kernel", "block_size", "shape", "axis", "dims"), KERNEL_OF, ids=str)
def test_each_kernel_of_other_blocks_is_the_definition(
    kernel: str, block_size: int | tuple[int, int], shape: tuple[int, ...], axis: int, dims: tuple[int, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Of numbers with NaN and Inf among them, too, which a maximum of maxima must not lose."""
    used = kernels_used(monkeypatch)
    formats = [
        MX,
        replace(MX, rounding="stochastic", inf="saturate"),
        INT4,
        replace(INT4, rounding="stochastic"),
        NVFP4,
    ]
    formats += [BETTER] * (axis == -1 and block_size != 0)
    for dtype, finite, fmt in itertools.product(KERNEL_DTYPES, (False, True), formats):
        x = adversarial(torch.Size(shape).numel(), 3, "cuda", finite=finite).view(shape).to(dtype)
        x = x.nan_to_num(posinf=1.0, neginf=1.0) if finite else x
        fmt, over = replace(fmt, block_size=block_size), dims if fmt.tensor_scale else None
        beside = {"generator": 2**63 + 7, "example_dims": 1, "first_example": 2**32 - 1, "tensor_dims": over}
        ours = quantize(x, fmt, axis, backend="cuda", **beside)
        assert_same_bits(ours, quantize(x, fmt, axis, arithmetic="exact", **beside))
        if fmt.rounding != "stochastic":  # of which a thread's 16 bytes have to be of one example
            assert used[-1] == kernel


@pytest.mark.parametrize("prescale", [1.0, 0.75])
@pytest.mark.parametrize(
    ("kernel", "shape", "dims"),
    [
        ("mx_groups_by_warp", (5, 7, 16), (-1,)),
        ("mx_groups_by_warp", (5, 7, 496), (-1,)),
        *(("mx_groups", (3, 5, width), (-1,)) for width in (2032, 3072, 8176)),
        ("mx_groups", (3, 5, 1616), (-2, -1)),
        ("mx_rows", (3, 5, 16_400), (-1,)),
    ],
    ids=str,
)
def test_groups_under_a_scale_of_their_own_are_the_definition(
    kernel: str, shape: tuple[int, ...], dims: tuple[int, ...], prescale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = kernels_used(monkeypatch)
    formats = (NVFP4, BETTER, replace(NVFP4, rounding="stochastic"), replace(NVFP4, symmetric=False))
    for dtype, finite, fmt in itertools.product(KERNEL_DTYPES, (False, True), formats):
        x = adversarial(torch.Size(shape).numel(), 3, "cuda", finite=finite).view(shape).to(dtype)
        x = x.nan_to_num(posinf=1.0, neginf=1.0) if finite else x
        for example_dims, first in ((0, None), (1, 3), (2, 2**32 - 2)):
            beside = {"generator": 2**63 + 7, "example_dims": example_dims, "first_example": first}
            before = len(used)
            ours = quantize_rescaled(x, fmt, prescale=prescale, backend="cuda", tensor_dims=dims, **beside)
            assert used[before:] == ([] if kernel == "mx_rows" else [kernel])
            assert_same_bits(ours, quantize_rescaled(x, fmt, prescale=prescale, tensor_dims=dims, **beside))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kernel", "fmt", "shape", "axis", "dims"),
    [
        ("mx_short_blocks", replace(MX, block_size=63), (2**15, 65_539), -1, None),
        ("mx_small_tiles", replace(MX, block_size=(16, 16)), (2**12, 200, 2640), -1, None),
        ("mx_vector_tiles", replace(MX, block_size=(64, 64)), (2**12, 200, 2640), -1, None),
        ("mx_long_columns", replace(MX, block_size=100), (2**12, 200, 2640), -2, None),
        ("mx_columns_by_parts", replace(NVFP4, block_size=0), (2**11, 400, 2640), -2, (-2, -1)),
        ("mx_groups", NVFP4, (2**18, 8208), -1, (-1,)),
    ],
    ids=str,
)
def test_other_blocks_of_more_than_two_to_the_31_elements(
    kernel: str, fmt: MXFormat, shape: tuple[int, ...], axis: int, dims: tuple[int, ...] | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    elements, used = torch.Size(shape).numel(), kernels_used(monkeypatch)
    assert elements > 2**31
    if torch.cuda.mem_get_info()[0] < 6 * elements:
        pytest.skip("needs 15 GB of free GPU memory")
    x = torch.empty(shape, dtype=torch.bfloat16, device="cuda").normal_()
    y = quantize(x, fmt, axis, backend="cuda", tensor_dims=dims)
    assert used[-1] == kernel
    for part in (slice(0, 3), slice(len(x) // 2 - 1, len(x) // 2 + 2), slice(len(x) - 3, len(x))):
        assert_same_bits(y[part], quantize(x[part], fmt, axis, arithmetic="exact", tensor_dims=dims))


def kernels_used(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list to which the name of each kernel of ways.py is added that is launched from now on."""
    used: list[str] = []
    own = cuda._tile_kernels
    monkeypatch.setattr(cuda, "_tile_kernels", lambda *asked: (used.append(asked[5]), own(*asked))[-1])
    return used


@pytest.mark.parametrize("rotation", [None, SignedHadamard(16, 0b0110_1100_0101_1110), SignedHadamard(4, 5)], ids=str)
@pytest.mark.parametrize("rounding", ["even", "stochastic"])
def test_per_tensor_scales_and_rotated_columns_take_two_kernels(rounding: str, rotation: SignedHadamard | None) -> None:
    fmt = replace(NVFP4, rounding=rounding)
    for dtype, shape in itertools.product(KERNEL_DTYPES, ((3, 128, 192), (64, 4096), (2, 5, 64, 336), (48, 144))):
        x = adversarial(torch.Size(shape).numel(), len(shape), "cuda", finite=True).view(shape).to(dtype)
        x = x.nan_to_num(posinf=1.0, neginf=1.0)
        beside = {"example_dims": len(shape) - 2, "first_example": 5 if len(shape) > 2 else None}
        dims = ((-1,), (-2, -1))
        before = launch_count()
        both = quantize_both(
            x, fmt, fmt, backend="cuda", generators=(2**63 + 1, 2), tensor_dims=dims, column_rotation=rotation, **beside
        )
        assert launch_count() == before + 2
        columns = x if rotation is None else rotation.rotate(x, -2)
        for y, of, axis, key, over in zip(both, (x, columns), (-1, -2), (2**63 + 1, 2), dims, strict=True):
            assert_same_bits(y, quantize(of, fmt, axis, arithmetic="exact", generator=key, tensor_dims=over, **beside))


BOTH = [
    (MXFormat("fp4_e2m1"), MXFormat("fp4_e2m1", rounding="stochastic")),
    (MXFormat("fp4_e2m1", 16, "e4m3", rounding="stochastic"), MXFormat("fp8_e5m2", 64, rounding="even")),
    (MXFormat("fp4_e3m0", 64, scale_rounding="ceil"), MXFormat("fp4_e2m1", 16, "e5m3")),
    (MXFormat("int4", 32, "fp32", symmetric=False), MXFormat("fp6_e2m3", 32, symmetric=False)),
    (MXFormat("int8", 16, rounding="stochastic"), MXFormat("mint4", 32, rounding="stochastic")),
    (MXFormat("fp4_e2m1", 16, "e4m3", scale_rule="quark", inf="saturate"), MXFormat("fp8_e4m3", 32, inf="saturate")),
    (MXFormat("fp4_e2m1", 16, "e4m3", tensor_scale=True), MXFormat("fp4_e2m1", (16, 16))),  # by two calls
    (MXFormat("fp4_e2m1", 16, "e4m3", four_over_six=True), MXFormat("fp4_e2m1", 16, "e4m3", four_over_six=True)),
]


@pytest.mark.parametrize(("row_format", "column_format"), BOTH, ids=str)
def test_rows_and_columns_at_once_are_the_definition(row_format: MXFormat, column_format: MXFormat) -> None:
    for dtype, shape in itertools.product(KERNEL_DTYPES, ((3, 128, 192), (64, 4096), (2, 5, 64, 320), (48, 40))):
        x = adversarial(torch.Size(shape).numel(), len(shape), "cuda", finite=row_format.tensor_scale).view(shape)
        x = x.to(dtype).nan_to_num(posinf=1.0, neginf=1.0) if row_format.tensor_scale else x.to(dtype)
        for example_dims, first in itertools.product(range(len(shape) - 1), (None, 2**32 - 2)):
            beside = {"example_dims": example_dims, "first_example": first}
            before = launch_count()
            both = quantize_both(x, row_format, column_format, backend="cuda", generators=(2**63 + 1, 2), **beside)
            if takes(row_format, column_format, x.shape, dtype, x.ndim - 2):
                assert launch_count() == before + 1
            for y, fmt, axis, key in zip(both, (row_format, column_format), (-1, -2), (2**63 + 1, 2), strict=True):
                assert_same_bits(y, quantize(x, fmt, axis, arithmetic="exact", generator=key, **beside))
                assert_same_bits(y, quantize(x, fmt, axis, backend="cuda", generator=key, **beside))


@pytest.mark.parametrize("dtype", KERNEL_DTYPES, ids=str)
@pytest.mark.parametrize(
    "fmt",
    [
        MXFormat("fp4_e2m1", 32, rounding="stochastic", scale_rounding="even"),
        MXFormat("int8", 64, "fp32", rounding="stochastic", symmetric=False),
        MXFormat("fp4_e2m1", 16, "e4m3", tensor_scale=True, four_over_six=True),
        MXFormat("fp4_e2m1", (8, 4), rounding="even"),
    ],
    ids=str,
)
def test_the_kernels_under_a_prescale(fmt: MXFormat, dtype: torch.dtype) -> None:
    x = adversarial(3 * 128 * 192, 3, "cuda", finite=fmt.tensor_scale).view(3, 128, 192).to(dtype)
    x = x.nan_to_num(posinf=1.0, neginf=1.0) if fmt.tensor_scale else x
    beside = {"prescale": 0.75, "generator": 2**63 + 1, "example_dims": 1, "first_example": 2**32 - 2}
    for axis in (-1, -2):
        before = launch_count()
        y = quantize_rescaled(x, fmt, axis, backend="cuda", **beside)
        assert launch_count() > before
        assert_same_bits(y, quantize_rescaled(x, fmt, axis, **beside))


def test_the_operator_is_a_proper_torch_operator() -> None:
    x = torch.randn(4, 64, device="cuda")
    arguments = (x, "fp4_e2m1-b32-e8m0", -1, None, 0, 0, None, None)
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.mxsweep.quantize.default, arguments, test_utils=tests)
    fmt = str(MXFormat("fp4_e2m1"))
    x = torch.randn(64, 64, device="cuda")
    torch.library.opcheck(torch.ops.mxsweep.quantize_both.default, (x, fmt, fmt, 0, 0, 0, None), test_utils=tests)


@pytest.mark.parametrize("dtype", KERNEL_DTYPES, ids=str)
@pytest.mark.parametrize("rounding", ["nearest", "even", "floor"])
@pytest.mark.parametrize(
    "element", ["fp8_e5m2", "fp8_e4m3", "fp6_e3m2", "fp6_e2m3", "fp4_e2m1", "int8", "int4", "int2"]
)
def test_the_kernels_are_microxcalings(element: str, rounding: str, dtype: torch.dtype) -> None:
    if problem := backend_problem("microxcaling"):
        pytest.skip(problem)
    for block_size in (16, 32, 64):
        for bits in (4, 6, 8):
            fmt = MXFormat(element, block_size, scale_bits=bits, rounding=rounding)
            x = (
                torch.randn(512, 1024, device="cuda")
                .mul(2.0 ** torch.randint(-20, 21, (512, 1), device="cuda"))
                .to(dtype)
            )
            for inputs in (x, adversarial(2**18, bits, "cuda").view(-1, 1024).to(dtype)):
                theirs = quantize(inputs, fmt, backend="microxcaling", arithmetic="exact")
                ours = quantize(inputs, fmt, backend="cuda")
                assert torch.equal(ours.nan_to_num(7e7), theirs.nan_to_num(7e7))


def test_original_weights_wait_in_host_memory_where_the_gpu_has_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    config = LlamaConfig(
        vocab_size=128, hidden_size=512, intermediate_size=2048, num_hidden_layers=2, num_attention_heads=8
    )
    model = LlamaForCausalLM(config).cuda().eval()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    weights = sum(parameter.nbytes for name, parameter in model.named_parameters() if "proj" in name)
    recipe = Recipe(LinearFormats(MXFormat("fp4_e2m1"), MXFormat("fp6_e2m3")), backend="cuda", arithmetic="exact")
    tokens = torch.arange(24, device="cuda").view(2, 12)
    with torch.no_grad(), quantize_model(model, recipe) as report:
        assert report.as_dict()["originals_on_host_bytes"] == 0
        beside = model(tokens).logits
    torch.cuda.synchronize()
    allocated = torch.cuda.memory_allocated()
    monkeypatch.setattr(offload, "_memory", lambda device: (weights / 2, 1e6))
    operand = find_operands(model)["model.layers.0.mlp.up_proj"]
    up = operand.module
    with torch.no_grad(), quantize_model(model, recipe) as report:
        assert report.as_dict()["originals_on_host_bytes"] == weights
        assert torch.cuda.memory_allocated() < allocated + weights / 10
        assert torch.equal(model(tokens).logits, beside)
        assert up.weight.device.type == "cpu"
        with left_out(model, [operand]):
            assert model.get_submodule(operand.name) is up and up.weight.is_cuda
            assert not torch.equal(model(tokens).logits, beside)
        assert up.weight.device.type == "cpu" and torch.equal(model(tokens).logits, beside)
    for name, parameter in model.named_parameters():
        assert parameter.is_cuda and torch.equal(parameter, before[name])


@pytest.mark.parametrize("overrides", [["experiment=ex3"], ["custom_cuda=true", "kv_quant=fp4_e2m1"]], ids=str)
def test_custom_cuda_runs_through_the_kernels(overrides: list[str]) -> None:
    record = run(compose([*overrides, "limit=200"]))
    assert record["status"] == "done", record["error"]
    assert (record["config"]["backend"], record["config"]["arithmetic"]) == ("cuda", "exact")
    launches = record["diagnostics"]["cuda_kernel_launches"]
    assert launches > record["diagnostics"]["layers_replaced"]  # the weights, once each, and inputs, keys and values
    same = run(compose([*overrides, "limit=200", "backend=torch", "arithmetic=exact"]))
    assert same["diagnostics"]["cuda_kernel_launches"] == 0
    assert same["metrics"] == record["metrics"]


def test_a_run_on_the_gpu_records_it() -> None:
    record = run(compose(["limit=50", "kv_quant=fp4_e2m1", "model.device=cuda"]))
    assert record["status"] == "done", record["error"]
    assert record["environment"]["device"] == "cuda:0"
    assert record["memory"]["peak_gpu_bytes"] > 1e6


GPTQ_FORMATS = [
    MXFormat("fp4_e2m1", rounding="even"),
    MXFormat("mint4"),
    MXFormat("fp4_e2m1", block_size=16, scale="e4m3", tensor_scale=True),
    MXFormat("int4", scale="fp32", symmetric=False),
    MXFormat("int3", block_size=(4, 16)),
]


def weight_and_hessian(rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight and the Hessian of correlated inputs, on the CPU."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2 * columns, columns, generator=generator)
    x = x @ (torch.randn(columns, columns, generator=generator) * torch.linspace(1, 0.05, columns)).T
    return 0.02 * torch.randn(rows, columns, generator=generator), 2 * x.T @ x / len(x)


@pytest.mark.parametrize("fmt", GPTQ_FORMATS, ids=str)
def test_gptq_on_the_gpu_is_that_on_the_cpu(fmt: MXFormat) -> None:
    w, hessian = weight_and_hessian(300, 448)
    scales = [search_scales(w.to(device), fmt, hessian.diagonal().to(device)) for device in ("cpu", "cuda")]
    assert (scales[0].stored == scales[1].stored.cpu()).float().mean() > 0.999  # near ties of errors summed otherwise
    on_gpu = [BlockScales.of(w.cuda(), fmt), BlockScales.of(w, fmt)]
    assert torch.equal(on_gpu[0].stored.cpu(), on_gpu[1].stored)
    before = launch_count()
    ours = gptq(w.cuda(), hessian.cuda(), fmt, on_gpu[0]).cpu()
    assert launch_count() > before
    expected = gptq(w, hessian, fmt, on_gpu[1])
    losses = [hessian_loss(w, q, hessian) for q in (ours, expected)]
    assert losses[0] == pytest.approx(losses[1], rel=0.005)
    assert (ours == expected).float().mean() > 0.9  # sums of another order turn a tie now and then, and its row with it
    diagonal = gptq(w.cuda(), hessian.diagonal().diag().cuda(), fmt, on_gpu[0]).cpu()
    assert torch.equal(diagonal, on_gpu[1].quantize(w, fmt))


def test_gptq_without_its_kernel_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    w, hessian = (tensor.cuda() for tensor in weight_and_hessian(300, 448))
    fmt = GPTQ_FORMATS[0]
    scales = BlockScales.of(w, fmt)
    with_kernel = gptq(w, hessian, fmt, scales)
    monkeypatch.setattr("mxsweep.solvers.gptq._has_kernel", lambda device: False)
    without = gptq(w, hessian, fmt, scales)
    assert hessian_loss(w, with_kernel, hessian) == pytest.approx(hessian_loss(w, without, hessian), rel=0.005)


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "columns"), [(3072, 2048), (2048, 8192)])
def test_gptq_goes_through_a_large_weight_by_groups_of_columns(rows: int, columns: int) -> None:
    w = 0.02 * torch.randn(rows, columns, device="cuda")
    x = torch.randn(2 * columns, columns, device="cuda") * torch.linspace(2, 0.1, columns, device="cuda")
    hessian, fmt = 2 * x.T @ x / len(x), GPTQ_FORMATS[0]
    scales = search_scales(w, fmt, hessian.diagonal())
    before = launch_count()
    q = gptq(w, hessian, fmt, scales)
    assert columns // GROUP <= launch_count() - before < columns // 4
    assert hessian_loss(w, q, hessian) < hessian_loss(w, scales.quantize(w, fmt), hessian)
