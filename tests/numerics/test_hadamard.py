"""Hadamard rotations: the matrices against their definition, the transforms against the matrices.

Kernels run here compiled by the host's compiler; what only a GPU shows is marked so.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from helpers.kernel_formats import COMPILED_FOR
from helpers.kernel_host import HostKernels

from benchmarks import hadamard as benchmark
from mxsweep.numerics.hadamard import hadamard, matrix
from mxsweep.numerics.kernels import compile as kernels
from mxsweep.numerics.kernels import dense_cuda, hadamard_cuda
from mxsweep.numerics.kernels.dense_cuda import ROW_THREADS, dense_source, kernel_of
from mxsweep.numerics.kernels.dense_tiles import dense_plan
from mxsweep.numerics.kernels.hadamard_cuda import MAX_LOG_ORDER, Plan, can_transform, plan_of, transformed_to
from mxsweep.numerics.kernels.source import STORAGE
from mxsweep.numerics.paley import base_factor, paley, powers_of_a_generator, prime_power, quadratic_characters

LOG_ORDERS = range(1, MAX_LOG_ORDER + 1)
# The multiples of 4 up to 300 that Paley's constructions, with Sylvester's, leave out.
NOT_PALEY = {92, 116, 156, 172, 184, 188, 232, 236, 260, 268, 292}
# Sizes of Llama-2-7B, TinyLlama, Llama-3-8B, Qwen2.5-0.5B, -1.5B and -7B, and the order of their dense factor.
MODEL_SIZES = {11008: 344, 5632: 44, 14336: 28, 4864: 76, 8960: 140, 18944: 148, 3072: 12, 896: 28, 1536: 12, 3584: 28}
# Largest difference that two orders of summation leave in an element of a transformed N(0, 1) row, in float32.
ROUNDING = 2e-6


def randn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("order", [*range(1, 301), *MODEL_SIZES])
def test_factors_are_orthogonal_and_flat(order: int) -> None:
    base = base_factor(order)
    size = len(base)
    assert order % size == 0
    assert (order // size).bit_count() == 1
    np.testing.assert_allclose(base @ base.T, np.eye(size), atol=1e-12)
    flatness = np.abs(base).max() * math.sqrt(size)
    assert flatness <= math.sqrt(2) + 1e-12
    if order <= 2 or (order % 4 == 0 and order not in NOT_PALEY):
        np.testing.assert_allclose(np.abs(base), 1 / math.sqrt(size), rtol=1e-15)
    else:
        assert flatness > 1.01


@pytest.mark.parametrize("order", [1, 2, 3, 4, 12, 20, 23, 36, 64, 92, 96, 100, 300])
def test_matrices_are_orthogonal(order: int) -> None:
    r = matrix(order, torch.float64)
    torch.testing.assert_close(r @ r.T, torch.eye(order, dtype=torch.float64), rtol=0, atol=1e-13)
    torch.testing.assert_close(matrix(order), r.float(), rtol=0, atol=0)


@pytest.mark.parametrize("size", MODEL_SIZES)
def test_dense_factors_of_models_are_small(size: int) -> None:
    assert len(base_factor(size)) == MODEL_SIZES[size]


@pytest.mark.parametrize("log_order", range(11))
def test_powers_of_two_are_sylvesters(log_order: int) -> None:
    expected = torch.from_numpy(scipy.linalg.hadamard(2**log_order)).double() / math.sqrt(2**log_order)
    torch.testing.assert_close(matrix(2**log_order, torch.float64), expected, rtol=1e-15, atol=0)


@pytest.mark.parametrize("q", [3, 5, 7, 9, 11, 25, 27, 49, 81, 121, 243])
def test_fields(q: int) -> None:
    """Half of the elements are squares; -1 is one iff q = 1 mod 4; characters of different rows correlate to -1."""
    field = prime_power(q)
    assert field is not None
    powers = powers_of_a_generator(*field)
    assert len(set(powers)) == q - 1
    characters = quadratic_characters(*field).astype(int)
    assert (characters.sum(1) == 0).all()
    assert np.array_equal(characters.T, characters if q % 4 == 1 else -characters)
    assert np.array_equal(characters @ characters.T, q * np.eye(q, dtype=int) - 1)


def test_prime_powers() -> None:
    found = {q: field for q in range(1, 130) if (field := prime_power(q))}
    assert {q: field for q, field in found.items() if field[1] > 1} == {
        4: (2, 2), 8: (2, 3), 9: (3, 2), 16: (2, 4), 25: (5, 2), 27: (3, 3), 32: (2, 5), 49: (7, 2), 64: (2, 6),
        81: (3, 4), 121: (11, 2), 125: (5, 3), 128: (2, 7),
    }  # fmt: skip
    assert sum(power == 1 for _, power in found.values()) == 31  # primes up to 127
    assert paley(92) is None
    assert paley(6) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("order", [1, 2, 3, 4, 7, 8, 12, 31, 32, 64, 92, 96, 128, 172, 1024, 1536, 4096])
def test_the_transform_is_the_product_with_the_matrix(order: int, dtype: torch.dtype) -> None:
    x = randn(3, 2, order, dtype=dtype)
    before = x.clone()
    for inverse in (False, True):
        y, r = hadamard(x, inverse=inverse), matrix(order, torch.float64)
        exact = x.double() @ (r.T if inverse else r)
        assert (y.shape, y.dtype, y.is_contiguous()) == (x.shape, dtype, True)
        if dtype.itemsize == 2:  # float32 inside, and rounded once: next to the exact answer, and nearly always at it
            assert (y.double() - exact).abs().max() <= 2**-8 * exact.abs().max()
            assert (y == exact.to(dtype)).float().mean() > 0.97
        else:
            bound = ROUNDING if dtype == torch.float32 else 1e-13
            torch.testing.assert_close(y.double(), exact, rtol=0, atol=bound)
    assert torch.equal(x, before)


@pytest.mark.parametrize("columns", [1, 5, 16, 96, 200, 4864])
@pytest.mark.parametrize("block", [0, 1, 6, 16, 32, 100, 8192])
def test_blocks_and_the_way_back(columns: int, block: int) -> None:
    x = randn(4, columns, dtype=torch.float64)
    y = hadamard(x, block)
    size = min(block or columns, columns)
    for first in range(0, columns, size):
        piece = x[:, first : first + size]
        expected = hadamard(piece) if columns > 300 else piece @ matrix(piece.shape[1], torch.float64)
        torch.testing.assert_close(y[:, first : first + size], expected, rtol=0, atol=1e-13)
    torch.testing.assert_close(hadamard(y, block, inverse=True), x, rtol=0, atol=1e-13)
    torch.testing.assert_close(y.norm(dim=1), x.norm(dim=1))


def test_products_are_kept() -> None:
    x, w = randn(5, 11008), randn(7, 11008, seed=1)
    for block in (0, 32, 100):
        product = hadamard(x, block).double() @ hadamard(w, block).double().T
        torch.testing.assert_close(product, x.double() @ w.double().T, rtol=0, atol=1e-3)


def test_an_outlier_is_spread_evenly() -> None:
    x = torch.zeros(896)
    x[17] = 100.0
    torch.testing.assert_close(hadamard(x).abs(), torch.full((896,), 100 / math.sqrt(896)))


def test_large_numbers_do_not_overflow_on_the_way() -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        largest = torch.finfo(dtype).max
        x = torch.zeros(4096, dtype=dtype)
        x[::64] = largest
        y = hadamard(x)
        assert y.isfinite().all()
        torch.testing.assert_close(y[0].double(), torch.tensor(largest).double(), rtol=1e-3, atol=0)


@pytest.mark.parametrize("block", [0, 8, 20])
def test_strides_and_emptiness(block: int) -> None:
    x = randn(48, 6, 10)
    for view in (x.transpose(0, 2), x.permute(1, 2, 0), x[1:, ::2, 1:], x[:, :1].expand(48, 6, 10)):
        assert torch.equal(hadamard(view, block), hadamard(view.contiguous(), block))
    for shape in ((0,), (3, 0), (0, 64), (2, 0, 20)):
        empty = torch.empty(shape, dtype=torch.bfloat16)
        assert hadamard(empty, block).shape == shape
        assert hadamard(empty, block).dtype == torch.bfloat16
    alone = randn(8)
    assert hadamard(alone, 1).data_ptr() != alone.data_ptr()


@pytest.mark.parametrize(("columns", "block"), [(16, 0), (12, 0), (22, 0), (20, 8)])
def test_gradients(columns: int, block: int) -> None:
    x = randn(3, columns, dtype=torch.float64).requires_grad_()
    for inverse in (False, True):
        assert torch.autograd.gradcheck(lambda x, inverse=inverse: hadamard(x, block, inverse=inverse), (x,))
        assert torch.autograd.gradgradcheck(lambda x, inverse=inverse: hadamard(x, block, inverse=inverse) ** 2, (x,))
    upstream = randn(3, columns, dtype=torch.float64, seed=1)
    hadamard(x, block).backward(upstream)
    assert x.grad is not None
    torch.testing.assert_close(x.grad, hadamard(upstream, block, inverse=True))


def test_no_gradient_where_none_is_wanted() -> None:
    x = randn(2, 24).requires_grad_()
    with torch.no_grad():
        assert not hadamard(x).requires_grad
    with torch.inference_mode():  # the first to ask for this order, whose factors are kept
        hadamard(randn(2, 2 * 28))
    y = randn(2, 2 * 28).requires_grad_()
    hadamard(y).sum().backward()
    assert y.grad is not None


def test_what_is_refused() -> None:
    with pytest.raises(TypeError, match=r"^x: dtype torch\.int64 cannot be rotated; allowed: floating-point dtypes$"):
        hadamard(torch.arange(4))
    with pytest.raises(ValueError, match=r"^block: -1 is not allowed; allowed: 0 for the whole dimension"):
        hadamard(torch.zeros(4), -1)
    with pytest.raises(ValueError, match=r"^x: a tensor without dimensions"):
        hadamard(torch.tensor(1.0))
    with pytest.raises(ValueError, match=r"^order: 0 is not allowed"):
        matrix(0)


# Bytes of shared memory, and where in it, in floats, a thread's element is: as read and written, or exchanged.
PLACES = """
extern "C" int shared_bytes() { return EXCHANGED ? 4 * SHARED : 0; }
extern "C" int place_in_shared(int thread, int i, bool exchanged) {
    return exchanged ? with_gaps(thread_exchanged(thread)) + with_gaps(number_exchanged(i))
                     : with_gaps(thread_as_read(thread)) + with_gaps(number_as_read(i));
}
"""


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Plan], HostKernels]:
    """The kernels that hadamard_cuda.py launches, on the host."""

    @functools.cache
    def kernels_of(plan: Plan, device: int | None = None) -> HostKernels:
        return HostKernels(plan.source + PLACES, tmp_path / f"{plan.log_order}_{plan.read}_{plan.dtype}", plan.threads)

    monkeypatch.setattr(torch.cuda, "current_device", lambda: None)
    monkeypatch.setattr(hadamard_cuda, "_kernels", kernels_of)
    return kernels_of


@pytest.mark.parametrize("dtype", list(STORAGE), ids=str)
@pytest.mark.parametrize("log_order", LOG_ORDERS)
@pytest.mark.usefixtures("host")
def test_the_kernel_is_the_transform(log_order: int, dtype: torch.dtype) -> None:
    elements = plan_of(log_order, dtype).elements
    # Two thread blocks and a part of a third: whole rows, and whole 16-byte vectors.
    step = max(2**log_order, 16 // dtype.itemsize)
    x = randn((2 * elements + elements // 3) // step * step + step, dtype=dtype)
    y = transformed_to(x, 2**log_order, dtype)
    expected = hadamard(x, 2**log_order)
    if dtype == torch.float32:
        torch.testing.assert_close(y, expected, rtol=0, atol=ROUNDING)
    else:
        assert (y == expected).float().mean() > 0.99
        assert (y.float() - expected.float()).abs().max() <= 2**-6  # a step at the largest of some 10^4 numbers


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("log_order", [2, 5, 8, 11, 14])
@pytest.mark.usefixtures("host")
def test_float32_is_written_of_what_is_narrower_as_of_float32(log_order: int, dtype: torch.dtype) -> None:
    order = 2**log_order
    x = randn(plan_of(log_order, torch.float32, dtype).elements + order, dtype=dtype)
    assert torch.equal(*(transformed_to(read, order, torch.float32) for read in (x, x.float())))


@pytest.mark.parametrize("dtype", list(STORAGE), ids=str)
@pytest.mark.parametrize("log_order", LOG_ORDERS)
def test_no_two_lanes_meet_in_a_bank(log_order: int, dtype: torch.dtype, host: Callable[[Plan], HostKernels]) -> None:
    plan = plan_of(log_order, dtype)
    library = host(plan).library
    library.place_in_shared.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_bool]
    assert library.shared_bytes() <= 48 * 1024
    if not library.shared_bytes():
        assert log_order < 10
        return
    for exchanged in (False, True):
        places = np.array(
            [
                [library.place_in_shared(thread, i, exchanged) for i in range(2**plan.log_kept)]
                for thread in range(plan.threads)
            ]
        )
        assert len(np.unique(places)) == places.size
        assert places.max() < library.shared_bytes() // 4
        for warp in places.reshape(-1, 32, 2**plan.log_kept):
            assert all(len(np.unique(warp[:, i] % 32)) == 32 for i in range(2**plan.log_kept))


@pytest.mark.parametrize(
    ("order", "dtype", "inverse"),
    [
        (12, torch.bfloat16, False),
        (12, torch.float32, True),
        (20, torch.bfloat16, True),
        (24, torch.float32, False),
        (7, torch.bfloat16, False),
        (56, torch.bfloat16, True),
        (96, torch.float32, True),
        (384, torch.bfloat16, False),
    ],
    ids=str,
)
def test_rows_are_multiplied_in_the_order_of_the_factors_rows(
    order: int, dtype: torch.dtype, inverse: bool, tmp_path: Path
) -> None:
    """Sums and differences over each bit, then fused multiply-adds; as many rows as end between 16 bytes."""
    base = base_factor(order)
    factor, rows, size = torch.from_numpy(base.T if inverse else base).float(), 13 if order < 90 else 3, len(base)
    kernel = HostKernels(dense_source(order, inverse, dtype), tmp_path, ROW_THREADS)
    x = randn(rows, order, dtype=dtype)
    y = torch.full((rows + 1, order), 7.0, dtype=dtype)
    threads = -(-rows * order // size)  # at least
    kernel.launch("dense_rows", threads, x.data_ptr(), y.data_ptr(), x.numel())
    assert (y[rows] == 7).all()

    inner = order // size
    value = (x.float() * 2 ** (-math.log2(inner) / 2)).view(rows, size, inner)
    for bit in range(inner.bit_length() - 1):
        pairs = value.view(rows, size, -1, 2, 2**bit)
        a, b = pairs[..., 0, :], pairs[..., 1, :]
        value = torch.stack([a + b, a - b], -2).view(rows, size, inner)
    fused = ctypes.CDLL(None).fmaf
    fused.restype, fused.argtypes = ctypes.c_float, [ctypes.c_float] * 3
    expected = torch.zeros(rows, size, inner)
    for row, j, i in itertools.product(range(rows), range(size), range(inner)):
        total = 0.0
        for k in range(size):
            total = fused(factor[k, j].item(), value[row, k, i].item(), total)
        expected[row, j, i] = total
    assert torch.equal(y[:rows], expected.view(rows, order).to(dtype))
    torch.testing.assert_close(y[:rows], hadamard(x, inverse=inverse), rtol=0, atol=2**-6)


def rows_of_three_sizes(rows: int, order: int, dtype: torch.dtype) -> torch.Tensor:
    """Ordinary numbers, but in two rows: of the one sums would leave the range of float32, or of the elements."""
    x = randn(rows, order, dtype=dtype)
    large, small = (1e37, 1e-34) if dtype == torch.bfloat16 else (1e4, 0.1)
    x[1] *= large
    x[2] *= small
    return x


BY_TENSOR_CORES = [size for size in MODEL_SIZES if size not in (896, 1536)]  # which are short


def test_by_which_kernel_a_dense_factor_is_multiplied() -> None:
    for order in BY_TENSOR_CORES:
        assert {kernel_of(order, dtype) for dtype in (torch.bfloat16, torch.float16)} == {"dense_tiles"}
        expected = "dense_factor" if len(base_factor(order)) <= 44 else None
        assert kernel_of(order, torch.float32) == expected
    for dtype in STORAGE:
        assert [kernel_of(order, dtype) for order in (12, 896, 2816)] == ["dense_rows"] * 3
        # Without a factor, with one of other entries than signs, with too short runs.
        assert [kernel_of(order, dtype) for order in (4096, 59 * 64, 47 * 64)] == [None] * 3
        assert kernel_of(12 * 2**14, dtype) == "dense_factor"  # of 1,536 runs
    assert kernel_of(896, torch.float64) is None


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize(
    ("order", "dtype", "changes"),
    [
        (3072, torch.bfloat16, {}),
        (4864, torch.float16, {}),
        (12 * 512, torch.bfloat16, {}),
        (11008, torch.bfloat16, {}),
        (11008, torch.bfloat16, {"warps": 1, "tiles": 11, "parts": 2, "depth": 16}),
        (44 * 128, torch.bfloat16, {"warps": 1, "tiles": 2, "parts": 2, "depth": 2}),
        (28 * 256, torch.float16, {"warps": 1, "tiles": 2, "parts": 3, "depth": 3}),
        (344 * 64, torch.bfloat16, {"depth": 5}),
    ],
    ids=str,
)
def test_tensor_cores_multiply_by_the_dense_factor(
    order: int, dtype: torch.dtype, changes: dict[str, int], inverse: bool, tmp_path: Path
) -> None:
    """What a GPU has instructions for is done by the host."""
    planned = dense_plan(order, dtype)
    assert planned is not None
    plan = replace(planned, **changes)
    kernel = HostKernels(plan.source, tmp_path, plan.threads)
    x = rows_of_three_sizes(3, order, dtype)
    y = torch.full((4, order), 7.0, dtype=dtype)
    signs = plan.signs(inverse)
    kernel.launch("dense_tiles", 3 * plan.parts * plan.threads, x.data_ptr(), y.data_ptr(), signs.data_ptr())
    assert (y[3] == 7).all()
    assert_is_rounded(y[:3], hadamard(x.double(), inverse=inverse))


def test_plans_of_tensor_cores_cover_the_factor() -> None:
    """And no thread block holds more than it may: 48 KB of shared memory, and a register for each sum and 48 beside."""
    dense = (12, 20, 28, 36, 44, 52, 60, 76, 84, 108, 140, 148, 212, 252, 344, 380, 548, 620, 788, 828)
    for size, log_inner in itertools.product(dense, range(5, 14)):
        order = size << log_inner
        plan = dense_plan(order, torch.bfloat16)
        assert (plan is None) == (size << max(0, log_inner - 7) > 1024)
        if plan is None:
            continue
        deep, run, stages = -(-plan.size // 16), order // plan.size, -(-plan.size // (16 * plan.depth))
        assert plan.tiles * plan.warps * plan.parts >= deep
        assert plan.tiles * plan.warps * (plan.parts - 1) < deep
        assert stages * plan.depth >= deep
        assert min(2, stages) * plan.depth * 16 * run * 2 <= 48 * 1024
        assert plan.threads * (plan.tiles * run // 2 + 48) <= 2**16


def assert_is_rounded(y: torch.Tensor, exact: torch.Tensor) -> None:
    """Hold rows that were added up in float32, and rounded once, against what is exact."""
    rounding = ROUNDING * exact.abs().amax(-1, keepdim=True)
    wrong = (y.double() - exact).abs() > torch.finfo(y.dtype).eps / 2 * exact.abs() * (1 + 1e-6) + rounding
    assert not wrong.any()
    assert (y == exact.to(y.dtype)).float().mean() > 0.99


@pytest.mark.parametrize(("arch", "dtype"), COMPILED_FOR, ids=str)
def test_the_kernel_compiles_for_every_architecture(arch: str, dtype: torch.dtype) -> None:
    pytest.importorskip("cuda.core", reason="cuda-core is not installed (pip install 'mxsweep[cuda]')")
    for log_order in (1, 5, 9, 10, 13, 14):
        code = kernels.compile_source(plan_of(log_order, dtype).source, arch).code
        assert code[:4] == b"\x7fELF"
        assert b"hadamard" in code


@pytest.mark.parametrize("dtype", list(STORAGE), ids=str)
def test_the_kernels_for_a_dense_factor_compile(dtype: torch.dtype) -> None:
    pytest.importorskip("cuda.core", reason="cuda-core is not installed (pip install 'mxsweep[cuda]')")
    orders = ((3, "rows"), (56, "rows"), (12 * 256, "factor"), (28 * 128, "factor"))
    for order, name in orders:
        for inverse in (False, True):
            source = dense_source(order, inverse, dtype)
            assert f"dense_{name}".encode() in kernels.compile_source(source, "sm_90").code
    by_tensor_cores = (
        *((order, "sm_90") for order in (3072, 4864, 11008, 28672, 53248)),
        (11008, "sm_80"),
        (14336, "sm_100"),
    )
    for order, arch in by_tensor_cores if dtype != torch.float32 else ():
        plan = dense_plan(order, dtype)
        assert plan is not None
        assert b"dense_tiles" in kernels.compile_source(plan.source, arch).code
    assert b"hadamard" in kernels.compile_source(plan_of(4, torch.float32, torch.float16).source, "sm_90").code


def test_the_kernel_is_asked_for_what_it_can_do_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mxsweep.numerics.kernels.hadamard_cuda.kernels_can_work", lambda: True)

    class OnGPU:
        """A tensor's figures, as if on a GPU."""

        is_cuda = True

        def __init__(self, elements: int, dtype: torch.dtype) -> None:
            self.dtype, self.nbytes = dtype, elements * dtype.itemsize

    def can(elements: int, dtype: torch.dtype, order: int) -> bool:
        return can_transform(OnGPU(elements, dtype), order)  # type: ignore[arg-type]

    assert can(64, torch.bfloat16, 32)
    assert can(2**14, torch.float16, 2**14)
    assert not can(2**15, torch.float16, 2**15)
    assert not can(96, torch.bfloat16, 12)
    assert not can(64, torch.float64, 32)
    assert not can(12, torch.bfloat16, 4)
    assert can(16, torch.bfloat16, 4)
    assert not can_transform(torch.zeros(64), 32)


def test_the_operators_can_be_traced() -> None:
    x = torch.empty(48, 64, dtype=torch.bfloat16, device="meta").t()
    for y in (torch.ops.mxsweep.hadamard(x, 4), torch.ops.mxsweep.dense_hadamard(x, 48, False)):
        assert (y.shape, y.dtype, y.device.type, y.is_contiguous()) == (x.shape, x.dtype, "meta", True)


def test_the_benchmark_measures_what_it_is_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--device", "cpu", "--rows", "8", "--columns", "64", "--blocks", "16,12", "--dtypes", "float32"]
    assert benchmark.main([*sizes, "--json", str(tmp_path / "figures.json")]) == 0
    rows = json.loads((tmp_path / "figures.json").read_text())["rows"]
    assert [(row["block"], row["dense"], row["rows"], row["columns"]) for row in rows] == [
        (16, 1, 8, 64),
        (12, 12, 42, 12),
    ]
    assert all(row["rotation_s"] > 0 and row["copy_s"] > 0 for row in rows)
    assert "| 12    |           12 | 42 x 12 | float32 |" in capsys.readouterr().out


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU on this machine")
class TestOnGPU:
    @pytest.mark.parametrize("dtype", list(STORAGE), ids=str)
    @pytest.mark.parametrize(
        "order", [*(2**log for log in LOG_ORDERS), 3, 12, 24, 44, 92, 96, 768, 896, 4864, 5632, 11008, 2**15]
    )
    def test_the_answer_is_the_cpus(self, order: int, dtype: torch.dtype) -> None:
        x = randn(33 * max(1, 2048 // order), order, dtype=dtype)
        before = kernels.launch_count()
        for inverse in (False, True):
            y, expected = hadamard(x.cuda(), inverse=inverse).cpu(), hadamard(x, inverse=inverse)
            if dtype == torch.float32:
                torch.testing.assert_close(y, expected, rtol=0, atol=ROUNDING)
            else:
                assert (y == expected).float().mean() > 0.99
                assert (y.float() - expected.float()).abs().max() <= 2**-6
        if order in (2**log for log in range(3, MAX_LOG_ORDER + 1)):
            assert kernels.launch_count() == before + 2

    @pytest.mark.parametrize(
        ("order", "dtype", "launches"),
        [
            *itertools.product((48, 384, 768, 896, 1152, 1536, 2560, 2816), STORAGE, [1]),
            *itertools.product((3072, 5120, 5632), [torch.float32], [2]),
            *itertools.product((12 * 2**14,), STORAGE, [2]),
        ],
        ids=str,
    )
    def test_a_dense_factor_has_the_bits_of_torchs_product(
        self, order: int, dtype: torch.dtype, launches: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        x = randn(37, order, dtype=dtype).cuda()
        before = kernels.launch_count()
        answers = [hadamard(x, inverse=inverse) for inverse in (False, True)]
        assert kernels.launch_count() == before + 2 * launches
        monkeypatch.setattr(dense_cuda, "can_multiply", lambda *_: False)
        for inverse, y in zip((False, True), answers, strict=True):
            assert torch.equal(y, hadamard(x, inverse=inverse))

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
    @pytest.mark.parametrize(
        "order", [*BY_TENSOR_CORES, 5120, 13824, 17408, 22016, 27648, 28672, 36864, 53248, 12 * 2**13]
    )
    def test_tensor_cores_multiply_by_the_dense_factor(self, order: int, dtype: torch.dtype) -> None:
        x = rows_of_three_sizes(301, order, dtype).cuda()
        for inverse in (False, True):
            before = kernels.launch_count()
            y = hadamard(x, inverse=inverse)
            assert kernels.launch_count() == before + 1
            assert_is_rounded(y, hadamard(x.double(), inverse=inverse))
            assert torch.equal(y[:37], hadamard(x[:37], inverse=inverse))

    @pytest.mark.parametrize("dtype", list(STORAGE), ids=str)
    @pytest.mark.parametrize("order", [12, 20, 28, 36, 44])
    def test_rows_as_short_as_a_dense_factor(self, order: int, dtype: torch.dtype) -> None:
        # Not torch's bits: for these orders its product sums in an order that depends on the number of rows.
        x = randn(3001, order, dtype=dtype).cuda()
        before = kernels.launch_count()
        for inverse in (False, True):
            y = hadamard(x, inverse=inverse)
            expected = hadamard(x.double(), inverse=inverse)
            torch.testing.assert_close(y.double(), expected, rtol=torch.finfo(dtype).eps, atol=ROUNDING)
            assert torch.equal(y[:37], hadamard(x[:37], inverse=inverse))
        assert kernels.launch_count() == before + 4

    def test_strides_blocks_and_gradients(self) -> None:
        x = randn(6, 200, 5).cuda().transpose(1, 2).requires_grad_()
        for block in (0, 32, 64, 7):
            torch.testing.assert_close(hadamard(x, block).cpu(), hadamard(x.cpu(), block), rtol=0, atol=ROUNDING)
        (gradient,) = torch.autograd.grad(hadamard(x, 64).square().sum() / 2, x)
        torch.testing.assert_close(gradient, x.detach(), rtol=0, atol=ROUNDING)
        shifted = randn(257).cuda()[1:]
        torch.testing.assert_close(hadamard(shifted).cpu(), hadamard(shifted.cpu()), rtol=0, atol=ROUNDING)

    def test_streams_and_graphs(self) -> None:
        x = randn(64, 4096, dtype=torch.bfloat16).cuda()
        expected = hadamard(x)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            assert torch.equal(hadamard(x), expected)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = hadamard(x)
        x.mul_(2)
        graph.replay()
        assert torch.equal(y, 2 * expected)

    def test_no_odd_one_out_in_a_large_tensor(self) -> None:
        x = torch.randn(2**18, 2**14, device="cuda", dtype=torch.bfloat16)  # 8 GiB: indices beyond 32 bits
        y = hadamard(x)
        assert torch.equal(y[-3:], hadamard(x[-3:].clone()))
