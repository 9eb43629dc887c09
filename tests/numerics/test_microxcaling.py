"""The microxcaling backend: what it refuses, and, where the library is present, that both answer alike."""

import sys

import pytest
import torch

from mxsweep.numerics import BackendUnavailable, MXFormat, backend_problem, quantize
from mxsweep.numerics.microxcaling import microxcaling_problem

ELEMENTS = ("fp8_e5m2", "fp8_e4m3", "fp6_e3m2", "fp6_e2m3", "fp4_e2m1", "int8", "int4", "int2")
ROUNDINGS = ("nearest", "even", "floor")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)

needs_library = pytest.mark.skipif(
    backend_problem("microxcaling") is not None, reason="Microsoft's library (module mx) is not on PYTHONPATH"
)
# The library indexes with a list where an axis is padded, which newer torch warns about.
pytestmark = pytest.mark.filterwarnings("ignore:Using a non-tuple sequence")


def assert_alike(x: torch.Tensor, fmt: MXFormat, axis: int = -1) -> None:
    ours = quantize(x, fmt, axis)
    theirs = quantize(x, fmt, axis, backend="microxcaling")
    assert theirs.dtype == x.dtype
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)


def random_bits(dtype: torch.dtype, count: int, seed: int) -> torch.Tensor:
    """Any bit pattern at all: every exponent, subnormals, Inf and NaN."""
    generator = torch.Generator().manual_seed(seed)
    if dtype == torch.float32:
        return torch.randint(-(2**31), 2**31, (count,), generator=generator).to(torch.int32).view(dtype)
    return torch.randint(-(2**15), 2**15, (count,), generator=generator).to(torch.int16).view(dtype)


def beside_powers_of_two(dtype: torch.dtype, count: int, seed: int) -> torch.Tensor:
    """Powers of two and the few numbers on each side, where a logarithm may round to an integer."""
    generator = torch.Generator().manual_seed(seed)
    powers = 2.0 ** torch.randint(-12, 13, (count,), generator=generator).float()
    steps = torch.randint(-40, 5, (count,), generator=generator)
    if dtype == torch.float32:
        values = (powers.view(torch.int32) + steps.to(torch.int32)).view(dtype)
    else:
        values = (powers.to(dtype).view(torch.int16) + (steps % 5 - 4).to(torch.int16)).view(dtype)
    return values * (torch.randint(0, 2, (count,), generator=generator) * 2 - 1).to(dtype)


def ties(dtype: torch.dtype, count: int, seed: int) -> torch.Tensor:
    """Multiples of 1/128 under a common scale, and halves of a format's smallest steps less one ulp."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(-512, 513, (count,), generator=generator) / 128
    tiny = 2.0 ** -torch.randint(1, 12, (count,), generator=generator).float() * (1 - 2.0**-24)
    return torch.where(torch.rand(count, generator=generator) < 0.3, tiny, values).to(dtype)


@needs_library
@pytest.mark.parametrize("make", [random_bits, beside_powers_of_two, ties], ids=lambda make: make.__name__)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("element", ELEMENTS)
def test_adversarial_blocks(element: str, rounding: str, dtype: torch.dtype, make) -> None:  # type: ignore[no-untyped-def]
    assert_alike(make(dtype, 4096, 1).view(-1, 8), MXFormat(element, 4, rounding=rounding))


@needs_library
@pytest.mark.parametrize("scale_bits", [2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_scale_bits(dtype: torch.dtype, scale_bits: int) -> None:
    x = random_bits(dtype, 4096, 2).view(-1, 8)
    for element in ("fp4_e2m1", "fp8_e5m2", "int8"):
        assert_alike(x, MXFormat(element, 2, scale_bits=scale_bits))


@needs_library
@pytest.mark.parametrize("axis", [-1, 0, 1])
@pytest.mark.parametrize("block_size", [0, 1, 7, 16, 32, (2, 2), (5, 5)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_shapes(dtype: torch.dtype, block_size: int | tuple[int, int], axis: int) -> None:
    x = torch.randn(9, 21, 40, generator=torch.Generator().manual_seed(3)).to(dtype)
    if not isinstance(block_size, int) and axis == 0:
        axis = -2
    assert_alike(x, MXFormat("fp6_e2m3", block_size), axis)


@needs_library
def test_scale_and_element_quirks_over_all_bfloat16_maxima() -> None:
    maxima = torch.arange(0, 2**15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    x = torch.stack((maxima, maxima * 0.3, maxima * -0.77), dim=1)
    for element in ("fp4_e2m1", "int4", "fp8_e4m3"):
        assert_alike(x, MXFormat(element, 3))


@needs_library
def test_gradient_and_empty_tensors() -> None:
    x = torch.randn(4, 32, requires_grad=True)
    quantize(x, MXFormat("fp4_e2m1"), backend="microxcaling").sum().backward()
    assert x.grad is not None and (x.grad == 1).all()
    assert quantize(torch.empty(0, 4), MXFormat("int8"), backend="microxcaling").shape == (0, 4)


@pytest.mark.parametrize(
    ("fmt", "what"),
    [
        (MXFormat("fp4_e3m0"), "element fp4_e3m0"),
        (MXFormat("int3"), "element int3"),
        (MXFormat("int8", scale="e5m3"), "scale e5m3"),
        (MXFormat("fp4_e2m1", 16, "e4m3", tensor_scale=True), "scale e4m3"),
        (MXFormat("int8", scale_rounding="ceil"), "scale_rounding ceil"),
        (MXFormat("int8", rounding="stochastic"), "rounding stochastic"),
        (MXFormat("int8", symmetric=False), "symmetric=False"),
        (MXFormat("int8", (4, 8)), "block_size (4, 8)"),
    ],
    ids=str,
)
def test_what_the_library_has_no_word_for_is_refused_by_name(fmt: MXFormat, what: str) -> None:
    problem = microxcaling_problem(fmt, "native")
    assert problem is not None and what in problem
    if backend_problem("microxcaling") is None:
        with pytest.raises(BackendUnavailable, match="microxcaling") as error:
            quantize(torch.zeros(8, 8), fmt, backend="microxcaling", generator=1)
        assert what in str(error.value)


@needs_library
def test_exact_needs_a_gpu() -> None:
    with pytest.raises(BackendUnavailable, match="arithmetic exact only in its CUDA kernels"):
        quantize(torch.zeros(8), MXFormat("int8"), backend="microxcaling", arithmetic="exact")


def test_without_the_library_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mx", None)
    monkeypatch.setitem(sys.modules, "mx.mx_ops", None)
    problem = backend_problem("microxcaling")
    assert problem is not None and "https://github.com/microsoft/microxcaling" in problem and "PyPI" in problem
    with pytest.raises(BackendUnavailable, match="not on PyPI"):
        quantize(torch.zeros(8), MXFormat("int8"), backend="microxcaling")
