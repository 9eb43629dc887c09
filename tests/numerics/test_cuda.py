"""The CUDA backend as far as a machine without a GPU can show it.

The arithmetic of mx.cu is compiled by the host's compiler and must give the torch definition's bits; the kernels must
compile for every GPU architecture that is promised. What only a GPU can show is in test_gpu.py.
"""

import ctypes
import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.adversarial import adversarial, assert_same_bits, beside
from helpers.kernel_formats import COMPILED_FOR, FORMATS
from helpers.mx_host import host_library, pointer
from safetensors import safe_open

from mxsweep.numerics import (
    BackendUnavailable,
    MXFormat,
    availability,
    backend_problem,
    quantize,
)
from mxsweep.numerics.blocks import block_regions
from mxsweep.numerics.kernels.compile import compile_source
from mxsweep.numerics.kernels.cuda import quantize_cuda
from mxsweep.numerics.kernels.source import kernel_source, lanes_of
from mxsweep.numerics.kernels.ways import KERNELS, Threads, tile_source
from mxsweep.numerics.reference.definition import without_inf


def compile_kernels(fmt: MXFormat, dtype: torch.dtype, arch: str, cache: Any = None) -> Any:
    """Compile the kernels of rows of blocks for a format and a dtype."""
    return compile_source(kernel_source(fmt, dtype, "blocks.cu"), arch, cache)


@pytest.fixture(scope="session")
def on_host(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., torch.Tensor]:
    """`quantize` for a float32 tensor and one of `FORMATS` or of the recorded ones, by mx.cu compiled for the host."""
    formats = list(dict.fromkeys(FORMATS + RECORDED))
    library = host_library(tmp_path_factory.mktemp("mx_host"), formats)
    library.quantize_blocks.restype = ctypes.c_long

    def answer(
        x: torch.Tensor, fmt: MXFormat, axis: int = -1, key: int = 0, example_dims: int = 0, first_example: int = 0,
        tensor_amax: torch.Tensor | None = None,
    ) -> torch.Tensor:  # fmt: skip
        x = without_inf(x, fmt)  # as the kernels read it
        y, answer.quick_blocks = torch.empty_like(x), 0  # type: ignore[attr-defined]
        within = torch.Size(x.shape[example_dims:])
        index = torch.arange(within.numel()).view(within).expand(x.shape)
        batch = torch.Size(x.shape[:example_dims])
        example = (torch.arange(batch.numel()) + first_example).view(*batch, *[1] * len(within)).expand(x.shape)
        tensor_amax = (x.abs().amax() if tensor_amax is None else tensor_amax).expand(x.shape)
        for region in block_regions(x.shape, fmt.block_size, axis):
            inside = region.block_dims
            views = [region.view(tensor) for tensor in (x, y, index, example, tensor_amax)]
            outside = [dim for dim in range(views[0].ndim) if dim not in inside]
            blocks, target, indices, examples, maxima = (view.permute(*outside, *inside) for view in views)
            length = blocks.shape[len(outside) :].numel()
            rows, result = blocks.contiguous(), torch.empty(blocks.shape)
            places, numbers = indices.contiguous(), examples.contiguous()
            per_block = maxima.reshape(-1, length)[:, 0].contiguous()
            answer.quick_blocks += library.quantize_blocks(  # type: ignore[attr-defined]
                formats.index(fmt), pointer(rows), pointer(result), ctypes.c_long(rows.numel() // length),
                ctypes.c_long(length), pointer(per_block),
                pointer(places if fmt.rounding == "stochastic" else None), pointer(numbers), ctypes.c_ulonglong(key),
            )  # fmt: skip
            target.copy_(result)
        return y

    return answer


def recorded_cases(path: Path) -> list[tuple[dict[str, object], MXFormat]]:
    """The float32 cases of a file of microxcaling's answers."""
    with safe_open(path, "pt") as file:
        cases = json.loads(file.metadata()["cases"])
    return [
        (case, MXFormat(case["elem_format"], case["block_size"], scale_bits=case["scale_bits"], rounding=case["round"]))
        for case in cases
        if case["dtype"] == "float32"
    ]


# What the golden file asks, without the file, so that one library serves all tests.
RECORDED = [
    MXFormat(element, block, scale_bits=bits, rounding=rounding)
    for element, block, bits, rounding in itertools.product(
        ("fp8_e5m2", "fp8_e4m3", "fp6_e3m2", "fp6_e2m3", "fp4_e2m1", "int8", "int4", "int2"),
        (0, 8, 16, 32, 64),
        (4, 5, 6, 8),
        ("nearest", "even", "floor"),
    )
]


def test_golden_cases_on_the_host(shared_dir: Path, on_host: Callable[..., torch.Tensor]) -> None:
    path = shared_dir / "golden" / "microxcaling.safetensors"
    if not path.is_file():
        pytest.skip(f"no golden file at {path}")
    cases, wrong = recorded_cases(path), []
    with safe_open(path, "pt") as file:
        for case, fmt in cases:
            y, expected = on_host(file.get_tensor(case["input"]), fmt, case["axis"]), file.get_tensor(case["output"])
            if not torch.equal(y.nan_to_num(777.0), expected.nan_to_num(777.0)):
                wrong.append(case)
    assert len(cases) == 592
    assert not wrong, f"{len(wrong)} of {len(cases)} differ, the first: {wrong[0]}"


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_host_arithmetic_is_the_definitions(fmt: MXFormat, on_host: Callable[..., torch.Tensor]) -> None:
    for seed in range(2):
        x = adversarial(2**14, seed, finite=fmt.tensor_scale).view(16, -1)
        draws = {"example_dims": 1, "first_example": 2**32 - 5}  # and so past 32 bits
        ours = on_host(x, fmt, key=2**63 + 5, **draws)
        assert_same_bits(ours, quantize(x, fmt, arithmetic="exact", generator=2**63 + 5, **draws))


@pytest.mark.parametrize("fmt", [fmt for fmt in FORMATS if fmt.scale != "e8m0" and fmt.symmetric], ids=str)
def test_blocks_are_divided_quickly_where_they_may_be(fmt: MXFormat, on_host: Callable[..., torch.Tensor]) -> None:
    """Ordinary numbers, and tensors of widely different size, at which a per-tensor scale is ordinary or is not."""
    may = fmt.element_format.min_exponent > -16
    x = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    for exponent in (0, -12, 20, -60, 60, -110, 110):
        scaled = x * 2.0**exponent
        assert_same_bits(on_host(scaled, fmt, key=3), quantize(scaled, fmt, arithmetic="exact", generator=3))
        if fmt.rule.multiplies:  # and divides nothing
            assert on_host.quick_blocks == x.numel() // 16  # type: ignore[attr-defined]
        elif exponent == 0 or (abs(exponent) <= 20 and fmt.least_scale > 0):
            assert on_host.quick_blocks == (x.numel() // 16 if may else 0)  # type: ignore[attr-defined]
        elif exponent >= 60:
            assert on_host.quick_blocks == 0  # type: ignore[attr-defined]


def test_a_nan_or_inf_under_a_tensor_scale_is_the_definitions(on_host: Callable[..., torch.Tensor]) -> None:
    fmt = MXFormat("fp4_e2m1", 16, "e4m3", tensor_scale=True)
    for special in (torch.nan, torch.inf, -torch.inf):
        x = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
        x[1, 7] = special
        assert_same_bits(on_host(x, fmt), quantize(x, fmt, arithmetic="exact"))


@pytest.mark.parametrize("amax", [1.1, 3.7, 5.3e4, 7.9e-5])
def test_scales_beside_ties_are_the_definitions(amax: float, on_host: Callable[..., torch.Tensor]) -> None:
    """Of the formulas of rules the last bit decides there."""
    scales = torch.arange(1, 127, dtype=torch.uint8).view(torch.float8_e4m3fn).double()
    ties = (scales[1:] + scales[:-1]) / 2 * (6 * amax / 2688)
    steps = torch.arange(-2, 3).repeat_interleave(len(ties))
    maxima = beside(ties.float().repeat(5), steps)[:, None]
    x = maxima * torch.linspace(1, -0.9, 16)
    given = {"tensor_amax": torch.tensor(amax)}
    for fmt in (fmt for fmt in FORMATS if fmt.scale == "e4m3" and fmt.tensor_scale and fmt.element == "fp4_e2m1"):
        assert_same_bits(on_host(x, fmt, key=3, **given), quantize(x, fmt, arithmetic="exact", generator=3, **given))


@pytest.mark.parametrize("amax", [0.0, 1e-44, 1e-30, 0.3, 7.0, 3e38, torch.inf, torch.nan])
def test_a_maximum_that_is_given_is_the_definitions(amax: float, on_host: Callable[..., torch.Tensor]) -> None:
    for fmt in (fmt for fmt in FORMATS if fmt.tensor_scale and fmt.inf == "nan_block"):
        x = adversarial(6 * 64, 1).view(6, 64)
        given = {"tensor_amax": torch.tensor(amax)}
        assert_same_bits(on_host(x, fmt, key=3, **given), quantize(x, fmt, arithmetic="exact", generator=3, **given))


def test_midpoints_of_huge_values_do_not_overflow(on_host: Callable[..., torch.Tensor]) -> None:
    fmt = MXFormat("int4", 32, "e8m0", symmetric=False)
    x = torch.linspace(2e38, 3e38, 32)
    assert_same_bits(on_host(x, fmt), quantize(x, fmt, arithmetic="exact"))
    assert on_host(x, fmt).isfinite().all()


@pytest.mark.parametrize(("arch", "dtype"), COMPILED_FOR, ids=str)
def test_kernels_compile_for_every_architecture(arch: str, dtype: torch.dtype) -> None:
    pytest.importorskip("cuda.core", reason="cuda-core is not installed (pip install 'mxsweep[cuda]')")
    for fmt in (
        MXFormat("fp6_e2m3", 32, rounding="even", scale_rounding="rceil"),
        MXFormat("fp4_e2m1", 16, "e5m3"),
        MXFormat("fp4_e2m1", 16, "e4m3", tensor_scale=True),
        MXFormat("int4", (8, 8), "fp32", rounding="stochastic", symmetric=False),
        MXFormat("fp4_e2m1", 16, "e4m3", tensor_scale=True, scale_rule="compressed_tensors", inf="saturate"),
        MXFormat("fp4_e2m1", 16, "e5m3", rounding="stochastic", scale_rule="torchao", four_over_six=True),
    ):
        code = compile_kernels(fmt, dtype, arch).code
        assert code[:4] == b"\x7fELF"
        assert all(name in code for name in (b"mx_rows", b"mx_tensor_scales"))


@pytest.mark.parametrize("arch", ["sm_75", "sm_90"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_kernels_for_tiles_compile(arch: str, dtype: torch.dtype) -> None:
    pytest.importorskip("cuda.core", reason="cuda-core is not installed (pip install 'mxsweep[cuda]')")
    fmt = MXFormat("int4", (8, 8), "fp32", rounding="stochastic", symmetric=False, four_over_six=True)
    code = compile_source(tile_source(fmt, dtype, 1.0, Threads(2), *KERNELS), arch).code
    assert all(name.encode() in code for name in KERNELS)
    for unit in (4, 2) if dtype.itemsize == 2 else (4,):
        blocks = replace(fmt, block_size=20, four_over_six=False)
        source = tile_source(blocks, dtype, 1.0, Threads(3, 2, unit), "mx_short_blocks")
        assert b"mx_short_blocks" in compile_source(source, arch).code


def test_products_and_sums_are_not_contracted(monkeypatch: pytest.MonkeyPatch) -> None:
    core = pytest.importorskip("cuda.core", reason="cuda-core is not installed (pip install 'mxsweep[cuda]')")
    asked = {}

    def options(**given: object) -> object:
        asked.update(given)
        return made(**given)

    made = core.ProgramOptions
    monkeypatch.setattr(core, "ProgramOptions", options)
    compile_kernels(MXFormat("int8"), torch.float32, "sm_90")
    assert asked["fma"] is False


def test_a_failed_compilation_is_a_sentence() -> None:
    pytest.importorskip("cuda.core", reason="cuda-core is not installed (pip install 'mxsweep[cuda]')")
    with pytest.raises(BackendUnavailable, match=r"^backend 'cuda' could not compile its kernels for sm_12: "):
        compile_kernels(MXFormat("int8"), torch.float32, "sm_12")


def test_a_cache_that_cannot_be_written_costs_nothing_but_time(caplog: pytest.LogCaptureFixture) -> None:
    utils = pytest.importorskip("cuda.core.utils", reason="cuda-core is not installed (pip install 'mxsweep[cuda]')")

    class Full(utils.InMemoryProgramCache):  # type: ignore[misc, name-defined]
        def __setitem__(self, key: object, value: object) -> None:
            raise OSError(28, "No space left on device")

    assert compile_kernels(MXFormat("int8"), torch.float32, "sm_90", Full()).code[:4] == b"\x7fELF"
    assert "a compiled CUDA kernel was not kept: [Errno 28] No space left on device" in caplog.text


def test_a_damaged_cache_is_compiled_anew(tmp_path: Path) -> None:
    utils = pytest.importorskip("cuda.core.utils", reason="cuda-core is not installed (pip install 'mxsweep[cuda]')")
    cache = utils.FileStreamProgramCache(tmp_path)
    code = compile_kernels(MXFormat("int8"), torch.float32, "sm_90", cache).code
    for path in [path for path in tmp_path.rglob("*") if path.is_file()]:
        path.write_bytes(b"")
    assert compile_kernels(MXFormat("int8"), torch.float32, "sm_90", cache).code == code


def test_compiled_kernels_are_kept(tmp_path: Path) -> None:
    utils = pytest.importorskip("cuda.core.utils", reason="cuda-core is not installed (pip install 'mxsweep[cuda]')")
    cache = utils.FileStreamProgramCache(tmp_path)
    codes = {compile_kernels(MXFormat("int8", block), torch.float32, "sm_90", cache).code for block in (16, 32, 16)}
    assert (
        len(codes) == len([path for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_size > 1000]) == 2
    )


@pytest.mark.parametrize(
    ("block_size", "dtype", "lanes"),
    [
        (32, torch.bfloat16, 4),
        (32, torch.float32, 8),
        (8, torch.float16, 1),
        (256, torch.bfloat16, 32),
        (512, torch.bfloat16, 0),  # more than a warp
        (48, torch.bfloat16, 0),  # not by halves
        (4, torch.bfloat16, 0),  # less than what a thread reads
        (0, torch.bfloat16, 0),
        ((4, 8), torch.bfloat16, 1),  # of a row of a tile
    ],
)
def test_lanes_of_a_block(block_size: int | tuple[int, int], dtype: torch.dtype, lanes: int) -> None:
    assert lanes_of(MXFormat("int8", block_size), dtype) == lanes


def test_a_tensor_that_is_not_on_a_gpu_is_refused() -> None:
    with pytest.raises(BackendUnavailable, match=r"^backend 'cuda' needs a tensor on a CUDA GPU, .* on cpu$"):
        quantize_cuda(torch.zeros(4), MXFormat("int8"), -1, None, None)


def test_the_operator_can_be_traced() -> None:
    x = torch.empty(4, 6, dtype=torch.bfloat16, device="meta").t()
    y = torch.ops.mxsweep.quantize(x, "int8-b2-e8m0", -1, None, 0, 0, None, None)
    assert (y.shape, y.dtype, y.device.type, y.is_contiguous()) == (x.shape, x.dtype, "meta", True)


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert backend_problem("cuda") == "backend 'cuda' needs a CUDA GPU, and none was found"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0) if index == 0 else (7, 0))
    assert "compute capability 7.5 or more, and cuda:1 is older" in (backend_problem("cuda") or "")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(availability, "_can_find", lambda name: False)
    assert "needs cuda.core: install it with `pip install 'mxsweep[cuda]'`" in (backend_problem("cuda") or "")
