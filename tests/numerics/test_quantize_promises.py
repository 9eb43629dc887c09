"""What `quantize` promises beside the values: any shape and axis, gradients, random numbers, refusals."""

import math
from fractions import Fraction

import pytest
import torch
from helpers.numerics_oracle import assert_same, float32, quantize_block, row, scale_of

from mxsweep.numerics import BackendUnavailable, MXFormat, block_statistics, parse_element, quantize
from mxsweep.numerics.philox import draw_key, uniform
from mxsweep.numerics.reference.rounding import round_exact
from mxsweep.numerics.reference.scales import tensor_scale_of

# --- Shapes, axes, blocks ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arithmetic", ["native", "exact"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("block_size", [1, 3, 8, 100, 0])
@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2, -3])
def test_any_axis_is_the_last_one_moved(axis: int, block_size: int, dtype: torch.dtype, arithmetic: str) -> None:
    x = torch.randn(5, 7, 11, generator=torch.Generator().manual_seed(1)).to(dtype)
    fmt = MXFormat("fp6_e3m2", block_size)
    moved = x.movedim(axis, -1).contiguous()
    length = block_size or moved.shape[-1]
    blocks = [quantize(part.contiguous(), fmt, arithmetic=arithmetic) for part in moved.split(length, dim=-1)]
    assert_same(quantize(x, fmt, axis, arithmetic=arithmetic), torch.cat(blocks, dim=-1).movedim(-1, axis))


@pytest.mark.parametrize("axis", [-1, -2, 1, 2])
@pytest.mark.parametrize("tile", [(2, 3), (1, 4), (5, 1), (16, 16)], ids=str)
def test_tiles_lie_on_the_last_two_dimensions(tile: tuple[int, int], axis: int) -> None:
    x = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(2))
    y = quantize(x, MXFormat("fp4_e2m1", tile), axis)
    for matrix, answer in zip(x, y, strict=True):
        for i in range(0, 5, tile[0]):
            for j in range(0, 7, tile[1]):
                part = (slice(i, i + tile[0]), slice(j, j + tile[1]))
                expected = quantize(matrix[part].reshape(-1), MXFormat("fp4_e2m1", 0))
                assert_same(answer[part].reshape(-1), expected)


def test_large_tensors_are_the_sum_of_their_rows() -> None:
    x = torch.randn(3, 130, 700, generator=torch.Generator().manual_seed(3))  # several pieces, ragged
    for axis in (0, 1, 2):
        y = quantize(x, MXFormat("fp4_e2m1", 32), axis)
        line = (slice(None), 100, 600) if axis == 0 else (2, slice(None), 600) if axis == 1 else (2, 100)
        assert_same(y[line], quantize(x[line].clone(), MXFormat("fp4_e2m1", 32)))


@pytest.mark.parametrize("shape", [(0,), (0, 4), (4, 0), (2, 0, 3)], ids=str)
@pytest.mark.parametrize("fmt", [MXFormat("int8", 0), MXFormat("fp4_e2m1", 16, "e4m3", tensor_scale=True)], ids=str)
def test_empty_tensors(shape: tuple[int, ...], fmt: MXFormat) -> None:
    for axis in range(len(shape)):
        assert quantize(torch.empty(shape), fmt, axis).shape == shape
        assert block_statistics(torch.empty(shape), fmt, axis).blocks == 0


@pytest.mark.parametrize(
    "make",
    [lambda x: x.t(), lambda x: x[:, ::2], lambda x: x[1:2].expand(4, -1), lambda x: x[:, 1:]],
    ids=["transposed", "strided", "expanded", "offset"],
)
@pytest.mark.parametrize("fmt", [MXFormat("fp4_e2m1", 8), MXFormat("int8", (2, 8), "e5m3")], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_strides_do_not_matter_and_the_input_stays(make, fmt: MXFormat, dtype: torch.dtype) -> None:  # type: ignore[no-untyped-def]
    x = make(torch.randn(24, 24, generator=torch.Generator().manual_seed(4)).to(dtype))
    before = x.clone()
    y = quantize(x, fmt)
    assert_same(y, quantize(before.contiguous(), fmt))
    assert_same(x, before)
    assert y.shape == x.shape
    y.zero_()
    assert_same(x, before)


@pytest.mark.parametrize("fmt", [MXFormat("fp4_e2m1", 4), MXFormat("int8", 4)], ids=str)
def test_results_lie_on_the_grid_and_quantize_to_themselves(fmt: MXFormat) -> None:
    x = torch.randn(64, 64, generator=torch.Generator().manual_seed(5))
    once = quantize(x, fmt, arithmetic="exact")
    grid = torch.tensor(fmt.element_format.values())
    scale = torch.tensor([scale_of(float(block.abs().max()), fmt) for block in x.reshape(-1, 4)])[:, None]
    assert torch.isin(once.reshape(-1, 4) / scale, grid).all()
    assert_same(quantize(once, fmt, arithmetic="exact"), once)


# --- Gradient --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("arithmetic", ["native", "exact"])
def test_gradient_is_the_identity_for_saturated_elements_too(arithmetic: str, dtype: torch.dtype) -> None:
    x = torch.tensor([7.9, -7.9, 0.01, 3.0], dtype=dtype, requires_grad=True)
    weight = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=dtype)
    y = quantize(x, MXFormat("fp4_e2m1"), arithmetic=arithmetic)
    assert y[0] == 6 and y[2] == 0
    (y * weight).sum().backward()
    assert x.grad is not None
    assert_same(x.grad, weight)


def test_no_graph_without_gradients() -> None:
    x = torch.randn(8, requires_grad=True)
    with torch.no_grad():
        assert not quantize(x, MXFormat("int8")).requires_grad
    assert not quantize(x.detach(), MXFormat("int8")).requires_grad
    with torch.inference_mode():
        quantize(x.detach().bfloat16(), MXFormat("int5"))
    # What inference mode may have cached works in training.
    trained = x.detach().bfloat16().requires_grad_()
    quantize(trained, MXFormat("int5")).sum().backward()
    assert trained.grad is not None


# --- Stochastic rounding -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fp4_e2m1", "int4", "fp4_e3m0"])
def test_stochastic_is_the_oracles_with_philox(name: str) -> None:
    fmt = MXFormat(name, 8, rounding="stochastic")
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(6))
    randoms = uniform(99, 32, torch.device("cpu")).view(4, 8).tolist()
    expected = [quantize_block(block, fmt, row) for block, row in zip(x.tolist(), randoms, strict=True)]
    assert_same(quantize(x, fmt, generator=99), torch.tensor(expected))


def test_stochastic_rounds_up_below_the_fraction_and_not_at_it() -> None:
    a, element = row(2.25, 2.25, -2.25, 2.0, 0.125), parse_element("fp4_e2m1")
    random = row(0.25, 0.25 - 2.0**-24, 0.0, 0.0, 0.25)
    assert_same(round_exact(a, element, "stochastic", random), row(2, 3, -3, 2, 0))


def test_stochastic_rounding_is_unbiased() -> None:
    # The first element sets the scale to 1; 2.3 lies 0.3 of the way from 2 to 3, -0.1 lies 0.2 of it from 0 to -0.5.
    x = torch.tensor([4.0, 2.3, -0.1, 1.0]).repeat(50_000)
    y = quantize(x, MXFormat("fp4_e2m1", 4, rounding="stochastic"), generator=7).view(-1, 4)
    assert (y[:, 0] == 4).all() and (y[:, 3] == 1).all()
    assert set(y[:, 1].tolist()) == {2.0, 3.0} and set(y[:, 2].tolist()) == {0.0, -0.5}
    # Five standard errors of a proportion over 50,000 draws.
    assert abs(float(y[:, 1].mean()) - 2.3) < 5 * math.sqrt(0.3 * 0.7 / 50_000)
    assert abs(float(y[:, 2].mean()) + 0.1) < 5 * 0.5 * math.sqrt(0.2 * 0.8 / 50_000)


@pytest.mark.parametrize("name", ["fp4_e2m1", "fp4_e3m0", "int4", "fp8_e4m3", "mint4"])
def test_over_all_random_numbers_the_mean_is_the_value(name: str) -> None:
    element = parse_element(name)
    random = ((torch.arange(2**16) + 0.5) * 2.0**-16).view(-1, 1).expand(-1, 8)
    a = torch.tensor([1.0, -0.71, 0.33, 0.05, 2.0**-9, -(2.0**-14), 2.0**-30, 0.0]) * element.smallest_normal

    def mean(a: torch.Tensor) -> torch.Tensor:
        return round_exact(a.expand(random.shape).contiguous(), element, "stochastic", random).double().mean(0)

    u = element.smallest_subnormal  # the spacing up to twice the smallest normal value
    assert_same(mean(a), (a.double() / u * 2**16).round() * u * 2.0**-16)  # what 16 bits can say of the fraction
    assert (mean(a) - a.double()).abs().max() <= u * 2.0**-17
    bfloat16 = a.bfloat16().float()
    assert_same(mean(bfloat16)[:4], bfloat16[:4].double())


def test_stochastic_rounding_is_reproducible() -> None:
    x, fmt = torch.randn(64, 64), MXFormat("fp4_e2m1", rounding="stochastic")
    first, second = (quantize(x, fmt, generator=torch.Generator().manual_seed(8)) for _ in range(2))
    assert_same(first, second)
    assert_same(first, quantize(x, fmt, generator=draw_key(torch.Generator().manual_seed(8))))
    assert not torch.equal(first, quantize(x, fmt, generator=torch.Generator().manual_seed(9)))
    generator = torch.Generator().manual_seed(8)
    assert not torch.equal(quantize(x, fmt, generator=generator), quantize(x, fmt, generator=generator))


@pytest.mark.parametrize("dims", [1, 2])
def test_numbered_examples_draw_for_themselves_however_they_are_split(dims: int) -> None:
    x, fmt = torch.randn(4, 3, 8, 32), MXFormat("fp4_e2m1", 16, rounding="stochastic")
    x[1:] = x[0, 0]
    whole = quantize(x, fmt, -2, generator=3, example_dims=dims, first_example=5)
    size = x.shape[:dims].numel() // 4
    for start, end in ((0, 1), (1, 4), (2, 3)):
        part = quantize(x[start:end], fmt, -2, generator=3, example_dims=dims, first_example=5 + start * size)
        assert_same(part, whole[start:end])
    examples = whole.flatten(0, dims - 1)
    assert all(not torch.equal(examples[-1], example) for example in examples[:-1])
    shared = quantize(x, fmt, -2, generator=3, example_dims=dims)
    assert_same(quantize(x, fmt, -2, generator=3, example_dims=dims, first_example=0)[:1, :1], shared[:1, :1])
    assert_same(shared[1], shared[2])


@pytest.mark.parametrize("first", [-1, 2**62 + 1, 1.0, True])
def test_other_numbers_of_examples_are_refused(first: object) -> None:
    with pytest.raises(ValueError, match=r"^first_example: .* allowed: None, or 0 to 2\^62$"):
        quantize(torch.zeros(4), MXFormat("int8"), first_example=first)  # type: ignore[arg-type]


@pytest.mark.parametrize("axis", [1, 2])
def test_an_example_rounds_alike_in_every_batch(axis: int) -> None:
    x, fmt = torch.randn(5, 6, 40), MXFormat("fp4_e2m1", 16, rounding="stochastic")
    batch = quantize(x, fmt, axis, generator=3, example_dims=1)
    for index in range(5):
        assert_same(batch[index : index + 1], quantize(x[index : index + 1], fmt, axis, generator=3, example_dims=1))
        assert_same(batch[index], quantize(x[index], fmt, axis - 1, generator=3))
    assert not torch.equal(batch[1], quantize(x, fmt, axis, generator=3)[1])


def test_the_element_index_is_row_major_whatever_the_strides() -> None:
    x, fmt = torch.randn(6, 40), MXFormat("fp4_e2m1", 16, rounding="stochastic")
    assert_same(quantize(x.t(), fmt, 0, generator=3), quantize(x.t().contiguous(), fmt, 0, generator=3))


# --- Per-tensor scale --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dims", "axis"), [((-1,), -1), ((1, 3), -1), ((2, 3), 2)])
def test_tensor_dims_make_the_answer_independent_of_the_batch(dims: tuple[int, ...], axis: int) -> None:
    x = (
        torch.randn(3, 2, 5, 24, generator=torch.Generator().manual_seed(10))
        * torch.logspace(-2, 2, 3)[:, None, None, None]
    )
    fmt = MXFormat("fp4_e2m1", 16, "e4m3", tensor_scale=True)
    batch = quantize(x, fmt, axis, tensor_dims=dims)
    for index in range(3):
        alone = quantize(x[index : index + 1], fmt, axis, tensor_dims=dims)
        assert_same(batch[index : index + 1], alone)
    whole = quantize(x, fmt, axis)
    assert not torch.equal(whole[0], quantize(x[:1], fmt, axis)[0])


def test_the_per_tensor_scale_is_one_division() -> None:
    amax = torch.rand(1000, generator=torch.Generator().manual_seed(12)) * 10
    fmt = MXFormat("fp4_e2m1", 16, "e4m3", tensor_scale=True)
    expected = [float32(Fraction(2688) / Fraction(value)) for value in amax.tolist()]
    assert_same(tensor_scale_of(amax, fmt), torch.tensor(expected))


def test_tensor_scale_is_the_oracles() -> None:
    x = torch.randn(6, 8, generator=torch.Generator().manual_seed(11))
    fmt = MXFormat("fp4_e2m1", 8, "e4m3", tensor_scale=True, rounding="even")
    g = float(torch.tensor(448.0 * 6) / x.abs().max())
    expected = [quantize_block(block, fmt, g=g) for block in x.tolist()]
    assert_same(quantize(x, fmt), torch.tensor(expected))


# --- Refusals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.int32, torch.float8_e4m3fn, torch.bool], ids=str)
def test_other_dtypes_are_refused_by_name(dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match=str(dtype)):
        quantize(torch.zeros(4).to(dtype), MXFormat("int8"))


@pytest.mark.parametrize(
    ("shape", "fmt", "arguments", "field"),
    [
        ((4, 4), MXFormat("int8"), {"axis": 2}, "axis"),
        ((), MXFormat("int8"), {}, "axis"),
        ((4,), MXFormat("int8", (2, 2)), {}, "axis"),
        ((4, 4, 4), MXFormat("int8", (2, 2)), {"axis": 0}, "axis"),
        ((4,), MXFormat("int8", rounding="stochastic"), {}, "generator"),
        ((4,), MXFormat("int8", rounding="stochastic"), {"generator": -1}, "generator"),
        ((4, 4), MXFormat("int8"), {"example_dims": 2}, "example_dims"),
        ((4, 4), MXFormat("int8", 4, "e4m3", tensor_scale=True), {"tensor_dims": (0,)}, "tensor_dims"),
        ((4, 4), MXFormat("int8", 4, "e4m3", tensor_scale=True), {"tensor_dims": (-1, 5)}, "tensor_dims"),
        ((4,), MXFormat("int8"), {"backend": "numpy"}, "backend"),
        ((4,), MXFormat("int8"), {"arithmetic": "fast"}, "arithmetic"),
    ],
    ids=[
        "axis out of range", "no dimension", "tile of a vector", "tile off the last two", "no generator",
        "negative key", "example_dims", "tensor_dims without the blocks", "tensor_dims out of range", "backend",
        "arithmetic",
    ],
)  # fmt: skip
def test_bad_arguments_are_refused_by_name(
    shape: tuple[int, ...],
    fmt: MXFormat,
    arguments: dict,
    field: str,  # type: ignore[type-arg]
) -> None:
    with pytest.raises(ValueError, match=f"^{field}: .*allowed"):
        quantize(torch.zeros(shape), fmt, **arguments)


@pytest.mark.parametrize(
    ("x", "fmt", "message"),
    [
        ([1.0], MXFormat("int8"), r"^x: \[1\.0\] is a list; allowed: Tensor$"),
        (torch.zeros(4), "fp4_e2m1", r"^fmt: 'fp4_e2m1' is a str; allowed: MXFormat$"),
    ],
)
def test_no_tensor_and_no_format_are_named(x: object, fmt: object, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        quantize(x, fmt)  # type: ignore[arg-type]


def test_the_cuda_backend_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BackendUnavailable, match=r"^backend 'cuda' needs a CUDA GPU, and none was found$"):
        quantize(torch.zeros(4), MXFormat("int8"), backend="cuda")


def test_native_arithmetic_is_refused_where_float16_holds_too_little() -> None:
    x, fmt = torch.linspace(-3, 3, 64, dtype=torch.float16), MXFormat("fp12_e6m5")
    with pytest.raises(
        ValueError,
        match=r"^arithmetic: 'native' computes in the tensors' dtype, and float16 does not .* fp12_e6m5; allowed here",
    ):
        quantize(x, fmt)
    assert quantize(x, fmt, arithmetic="exact").isfinite().all()
    for held in (quantize(x.bfloat16(), fmt), quantize(x, MXFormat("fp8_e5m2"))):
        assert held.isfinite().all()


def test_the_cuda_backend_has_no_native_arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mxsweep.numerics.dispatch.backend_problem", lambda backend: None)
    with pytest.raises(BackendUnavailable, match=r"^backend 'cuda' computes arithmetic exact and has no native$"):
        quantize(torch.zeros(4), MXFormat("int8"), backend="cuda", arithmetic="native")
    # A format that has none is exact whatever is asked; without it the kernels compute exact.
    for fmt, arguments in ((MXFormat("int8", scale="e5m3"), {"arithmetic": "native"}), (MXFormat("int8"), {})):
        with pytest.raises(BackendUnavailable, match="needs a tensor on a CUDA GPU"):
            quantize(torch.zeros(4), fmt, backend="cuda", **arguments)
