"""The library that quantizes on a CPU: the torch definition's bits, and what is left to torch's operations."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import logging
import os
import subprocess
import sys
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import torch
from helpers.adversarial import adversarial, assert_same_bits
from helpers.kernel_formats import FORMATS
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from mxsweep.files.kept_texts import keep_content
from mxsweep.numerics import BlockStatistics, MXFormat, block_measures, dispatch, quantize
from mxsweep.numerics.kernels import cpu, cpu_build, cpu_check, cpu_library, cpu_rows, native_tables
from mxsweep.numerics.kernels.cpu_library import LIBRARY, CpuLibrary
from mxsweep.numerics.kernels.cpu_rows import Asked
from mxsweep.numerics.philox import Draws, draws_of
from mxsweep.numerics.reference import rounding
from mxsweep.numerics.reference.definition import quantize_torch, without_inf
from mxsweep.numerics.reference.scales import native_exponent
from mxsweep.numerics.rescaled import quantize_rescaled
from mxsweep.numerics.wanted_exponents import keeping_exponents

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MXFP4 = MXFormat("fp4_e2m1", 32)
NVFP4 = MXFormat("fp4_e2m1", 16, "e4m3", rounding="even", tensor_scale=True)
EXACT = Asked(MXFP4, -1, "exact")
TAKEN = [fmt for fmt in FORMATS if fmt.rounding != "stochastic"]
# What stands in the command against options that change bits.
GUARDS = (
    "-fno-fast-math", "-fno-unsafe-math-optimizations", "-fno-finite-math-only", "-fno-associative-math",
    "-fno-reciprocal-math", "-fsigned-zeros", "-fno-rounding-math", "-ffp-contract=off", "-nostartfiles",
)  # fmt: skip
NATIVE = [fmt for fmt in TAKEN if fmt.has_native_arithmetic]


@pytest.fixture(autouse=True)
def library() -> ctypes.CDLL:
    built = LIBRARY.build()
    if built is None:
        pytest.skip("no C++ compiler on this machine")
    return built


def with_dtypes(formats: Iterable[MXFormat]) -> list[tuple[MXFormat, torch.dtype]]:
    """Give each format one dtype, in turns that shift every three: the list of formats repeats after three to five."""
    return [(fmt, DTYPES[(number + number // 3) % 3]) for number, fmt in enumerate(formats)]


def by_library(x: Tensor, fmt: MXFormat, axis: int = -1, arithmetic: str = "exact", *beside: object) -> Tensor:
    asked = Asked(fmt, axis, arithmetic, *beside)  # type: ignore[arg-type]
    assert cpu.supports(x, asked), fmt
    y = cpu.quantize_by_library(x, asked)
    assert y is not None
    return y


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_exact_arithmetic_is_the_definition(dtype: torch.dtype) -> None:
    x = adversarial(6 * 64 * 8, 3).view(48, 64).to(dtype)
    for fmt in TAKEN:
        dims = (-1,) if fmt.tensor_scale else None  # so that not all is NaN
        expected = quantize_torch(x, fmt, -1, "exact", None, dims)
        assert not expected.isnan().all(), fmt
        try:
            assert_same_bits(by_library(x, fmt, -1, "exact", dims), expected)
        except AssertionError as error:
            raise AssertionError(f"{fmt}: {error}") from None


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_stochastic_rounding_is_the_definition(dtype: torch.dtype) -> None:
    stochastic = [fmt for fmt in FORMATS if fmt.rounding == "stochastic" and not fmt.four_over_six]
    stochastic += [
        dataclasses.replace(fmt, rounding="stochastic")
        for fmt in (NVFP4, MXFormat("int4", 48, "fp32", symmetric=False))
    ]
    key = 2**63 + 2**31 + 5
    x = adversarial(6 * 64 * 8, 3).view(6, 4, 8, 16).to(dtype)
    for fmt in stochastic:
        for draws in (
            Draws(key, 0, None),
            Draws(key, 1, None),
            Draws(key, 2, 2**33 - 3),
            Draws(key - 1, 3, 2**62),
            Draws(0, 0, 7),
        ):
            dims = (-1,) if fmt.tensor_scale else None
            expected = quantize_torch(x, fmt, -1, "exact", draws, dims)
            assert_same_bits(by_library(x, fmt, -1, "exact", dims, None, 1.0, draws), expected)
            assert not cpu.supports(x, Asked(fmt, 1, "exact", (1,) if dims else None, draws=draws))
        ours = quantize_rescaled(x, fmt, prescale=0.75, generator=5, tensor_dims=(-1,) if fmt.tensor_scale else None)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(LIBRARY, "for_elements", lambda _: None)
            theirs = quantize_rescaled(
                x, fmt, prescale=0.75, generator=5, tensor_dims=(-1,) if fmt.tensor_scale else None
            )
        assert_same_bits(ours, theirs)


def test_stochastic_rounding_draws_alike_in_any_layout_and_by_any_threads() -> None:
    x = torch.randn(3001, 7, 52, generator=torch.Generator().manual_seed(8))
    fmt, draws, before = MXFormat("fp4_e2m1", 32, rounding="stochastic"), Draws(77, 1, 2), torch.get_num_threads()
    for each in (x, x.transpose(0, 2), x[:, ::2, 3:], x[:1].expand(5, -1, -1)):
        expected = quantize_torch(each, fmt, -1, "exact", draws, None)
        try:
            for threads in (1, 3):
                torch.set_num_threads(threads)
                assert_same_bits(by_library(each, fmt, -1, "exact", None, None, 1.0, draws), expected)
        finally:
            torch.set_num_threads(before)
    assert (
        len({float(one) for one in by_library(torch.full((1, 4096), 0.3), fmt, -1, "exact", None, None, 1.0, draws)[0]})
        == 2
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_native_arithmetic_is_the_definition(dtype: torch.dtype) -> None:
    x = adversarial(6 * 64 * 16, 4).view(96, 64).to(dtype)
    most = torch.finfo(dtype).max  # which torch's operations want to hold the largest element, too
    taken = [fmt for fmt in NATIVE if fmt.element_format.largest <= most and cpu.supports(x, Asked(fmt, -1, "native"))]
    assert len(taken) > 20 and {fmt.rounding for fmt in taken} >= {"nearest", "even"}
    for fmt in taken:
        try:
            assert_same_bits(by_library(x, fmt, -1, "native"), quantize_torch(x, fmt, -1, "native", None, None))
        except AssertionError as error:
            raise AssertionError(f"{fmt}: {error}") from None


def test_native_exponents_rise_where_torchs_logarithm_does() -> None:
    """Beside every power of two that a float32 can be, the scale of a block is that of its maximum's own logarithm."""
    exponents = torch.arange(-149, 128)
    powers = torch.where(exponents < -126, 1 << (exponents + 149).clamp(max=22), (exponents + 127) << 23)
    bits = (powers[:, None] + torch.arange(-300, 300)).clamp(1, 0x7F7FFFFF).to(torch.int32)
    maxima = bits.view(torch.float32).reshape(-1, 1)
    fmt = MXFormat("int8", 1, scale_bits=8)
    assert_same_bits(by_library(maxima, fmt, -1, "native"), quantize_torch(maxima, fmt, -1, "native", None, None))
    assert (native_exponent(maxima, fmt) != torch.frexp(maxima.double())[1] - 1).any()  # it is not the exact exponent


@pytest.mark.parametrize("arithmetic", ["exact", "native"])
@pytest.mark.parametrize(
    "fmt", [MXFP4, MXFormat("fp6_e2m3", 0), NVFP4, MXFormat("int4", 48, "fp32", symmetric=False)], ids=str
)
def test_blocks_lie_along_any_axis_of_any_layout(fmt: MXFormat, arithmetic: str) -> None:
    x = torch.randn(6, 70, 90, generator=torch.Generator().manual_seed(5))
    layouts = {
        "contiguous": x, "transposed": x.transpose(1, 2), "gaps": x[:, ::2, 3:], "expanded": x[:1].expand(4, -1, -1),
        "backwards in memory": x.permute(2, 1, 0), "one row": x.reshape(-1)[None, 1:], "one dimension": x[0, 0, 1:],
        "channels last": x[None].contiguous(memory_format=torch.channels_last),
    }  # fmt: skip
    for name, each in layouts.items():
        for axis in range(each.ndim):
            before = each.clone()
            for dtype in DTYPES:
                ours = by_library(each.to(dtype), fmt, axis, arithmetic)
                expected = quantize_torch(each.to(dtype), fmt, axis, arithmetic, None, None)
                assert_same_bits(ours, expected)
                assert ours.stride() == expected.stride(), name
            assert torch.equal(each, before), name


def test_a_tensors_scale_is_over_what_is_asked_for_or_is_given() -> None:
    x = torch.randn(3, 40, 64) * torch.tensor([1.0, 1e3, 1e-3])[:, None, None]
    for axis, dims, amax in (
        (-1, None, None), (-1, (1, 2), None), (2, (2,), None), (1, (0, 1), None), (-1, (-1,), torch.tensor(2.0)),
        (1, (1, 2), torch.tensor([1.0, 0.0, torch.inf])[:, None, None]),
    ):  # fmt: skip
        expected = quantize_torch(x, NVFP4, axis, "exact", None, dims, amax)
        assert_same_bits(by_library(x, NVFP4, axis, "exact", dims, amax), expected)


def test_maxima_of_tensor_scales_are_the_definitions_whoever_takes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    x = adversarial(6 * 64 * 8, 3).view(6, 8, 2, 32)
    x[0, 1, 0, 3], x[2, 0, 1, 5], x[4] = torch.nan, torch.inf, 0.0
    mine, own = [], cpu_rows.tensor_scale_over
    monkeypatch.setattr(cpu_rows, "tensor_scale_over", lambda *of: (mine.append(of), own(*of))[1])
    layouts = (
        (x, -1, (-1,), True), (x, -1, (2, 3), True), (x, 3, (1, -2, -1), True), (x, -1, None, True), (x, 1, (1,), True),
        (x, 2, (1, 2), False), (x, -1, (0, 3), False), (x[:, :1, :1], -1, (0, 3), True), (x[0, 0, 0], 0, (0,), True),
        (x.expand(64, -1, -1, -1, -1), -1, (0, 1, 2, 3, 4), False), (x.transpose(1, 2), -1, (2, 3), True),
    )  # fmt: skip
    for each, axis, dims, by_library_too in layouts:
        for fmt, dtype in with_dtypes(fmt for fmt in TAKEN if fmt.tensor_scale):
            mine.clear()
            ours = by_library(each.to(dtype), fmt, axis, "exact", dims)
            assert bool(mine) != by_library_too, (each.shape, axis, dims)
            assert_same_bits(ours, quantize_torch(each.to(dtype), fmt, axis, "exact", None, dims))


def measured(x: Tensor, asked: Asked, by_torch: bool) -> BlockStatistics:
    """Return what quantizing x did, by the library or by torch's operations."""
    with pytest.MonkeyPatch.context() as patch:
        ways: list[object] = []
        own = block_measures.measure_by_library
        patch.setattr(
            block_measures, "measure_by_library", lambda *of: (ways.append(None if by_torch else own(*of)), ways[-1])[1]
        )
        if asked.is_native:
            y = quantize_torch(x, asked.fmt, asked.axis, "native", None, None)
        else:
            y = quantize_rescaled(x, asked.fmt, asked.axis, prescale=asked.prescale, tensor_dims=asked.tensor_dims)
        fmt, axis, arithmetic, *_ = asked
        more = {"prescale": asked.prescale, "tensor_dims": asked.tensor_dims, "compare_exact": True, "quantized": y}
        statistics = block_measures.block_statistics(x, fmt, axis, arithmetic=arithmetic, **more)
        assert [way is None for way in ways] == [by_torch]
    return statistics


def assert_same_measures(x: Tensor, asked: Asked) -> BlockStatistics:
    ours, expected = (measured(x, asked, by_torch) for by_torch in (False, True))
    assert ours == expected, asked
    for name in ("signal", "noise"):
        assert getattr(ours, name) == pytest.approx(getattr(expected, name), rel=1e-13, nan_ok=True), (name, asked)
    return ours


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_quantizing_did_is_measured_as_torchs_operations_measure_it(dtype: torch.dtype) -> None:
    odd = adversarial(6 * 64 * 8, 3).view(48, 64)
    usual = torch.randn(70, 130, generator=torch.Generator().manual_seed(6)) * 1.5 ** torch.arange(-65, 65)
    for fmt in (fmt for fmt, its_dtype in with_dtypes(TAKEN) if its_dtype == dtype):
        dims = (-1,) if fmt.tensor_scale else None
        most = torch.finfo(dtype).max
        native = fmt.has_native_arithmetic and fmt.rounding != "floor" and dtype == torch.float32
        for arithmetic in ("exact", "native") if native else ("exact",):
            for x in (odd, usual, usual[:, 3:].T, torch.zeros(2, 32)):
                x = x.clamp(-most, most).to(dtype)
                found = assert_same_measures(x, Asked(fmt, -1, arithmetic, dims))
                assert (found.unlike_exact is not None) == (arithmetic == "native")
        assert_same_measures(usual.to(dtype), Asked(fmt, 0, "exact", (0,) if dims else None, None, 0.75))


def test_inf_is_taken_out_of_what_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each time takes another tensor of its size."""
    x, fmt, taken_out = torch.randn(48, 64), MXFormat("fp4_e2m1", 32, inf="saturate"), []
    x[3, 4], x[5, 6] = torch.inf, -torch.inf
    assert assert_same_measures(x, Asked(fmt, -1, "exact")).noise < torch.inf
    y = quantize(x, fmt)
    for module in (block_measures, cpu_rows):
        monkeypatch.setattr(module, "without_inf", lambda *of: (taken_out.append(of), without_inf(*of))[1])
    block_measures.measure_blocks(x, fmt, quantized=y)
    assert len(taken_out) == 1


@pytest.mark.parametrize("together", [2**14, 2**6], ids=["few sums", "more than torch adds up in one thread"])
def test_what_is_measured_does_not_depend_on_threads_nor_on_what_takes_them(
    together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_rows, "_TOGETHER", together)
    x = torch.randn(3000, 512, generator=torch.Generator().manual_seed(7))
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 3, 3):
            torch.set_num_threads(threads)
            found.append(measured(x, Asked(MXFP4, -1, "native"), False))
    finally:
        torch.set_num_threads(before)
    assert len({(one.signal, one.noise, one.elements_flushed) for one in found}) == 1


def test_measuring_notes_no_exponents() -> None:
    """What exact arithmetic would have given is none of a run's tensors."""
    x = torch.full((1, 32), torch.nextafter(torch.tensor(4.0), torch.tensor(0.0)).item())
    for by_torch in (False, True):
        with keeping_exponents() as kept:
            y = quantize_torch(x, MXFP4, -1, "native", None, None)
            noted = kept.range()
            with pytest.MonkeyPatch.context() as patch:
                if by_torch:
                    patch.setattr(LIBRARY, "for_elements", lambda _: None)
                block_measures.measure_blocks(x, MXFP4, quantized=y, compare_exact=True)
        assert kept.range() == noted


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_make_no_difference_nor_what_they_note(threads: int, library: ctypes.CDLL) -> None:
    x = adversarial(6 * 64 * 3000, 8).view(-1, 64)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for arithmetic, dtype in (("exact", torch.float32), ("native", torch.float32), ("native", torch.float16)):
            each = x.to(dtype)
            ranges, significands = [], []
            for by in (by_library, lambda *of: quantize_torch(*of, None, None)):
                with keeping_exponents() as kept:
                    y = by(each, MXFP4, -1, arithmetic)
                ranges.append(kept.range())
                significands.append(kept.largest_significand())
                assert kept.is_complete and kept.notes
            assert ranges[0] == ranges[1] and (ranges[0] is None) == (dtype == torch.float16)
            assert significands[0] == significands[1] and (significands[0] is None) == (arithmetic == "native")
            assert_same_bits(y, by_library(each, MXFP4, -1, arithmetic))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("fmt", "arithmetic"), [(MXFP4, "exact"), (MXFP4, "native"), (MXFormat("int8"), "native")])
def test_the_range_of_wanted_exponents_is_the_definitions(fmt: MXFormat, arithmetic: str) -> None:
    for x in (
        torch.tensor([[1e-40] * 32, [2.0**-126] * 32]), torch.tensor([[0.0] * 32, [2.0**90] * 32]), torch.zeros(2, 32),
        torch.tensor([[torch.nan] * 32, [torch.inf] * 32, [3e-30] * 32]), torch.full((1, 32), 3.4028e38),
        torch.tensor([[1.5] * 32, [-3.25] * 32, [4.0] * 32]),
    ):  # fmt: skip
        ranges = []
        for by in (by_library, lambda *of: quantize_torch(*of, None, None)):
            with keeping_exponents() as kept:
                by(x, fmt, -1, arithmetic)
            ranges.append((kept.range(), kept.largest_significand()))
        assert ranges[0] == ranges[1]


def test_quantize_asks_the_library_and_its_gradient_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    whole = cpu.quantize_by_library
    monkeypatch.setattr(dispatch, "quantize_by_library", lambda *of: (asked.append(of), whole(*of))[1])
    parameter = nn.Parameter(torch.randn(4, 64))
    y = quantize(parameter, MXFP4)
    y.sum().backward()
    assert len(asked) == 1 and torch.equal(parameter.grad, torch.ones(4, 64))  # type: ignore[arg-type]
    with torch.inference_mode():
        z = quantize(parameter, MXFP4)
    assert z.is_inference() and len(asked) == 2
    assert torch.equal(y, z) and torch.equal(z, quantize_torch(parameter.detach(), MXFP4, -1, "native", None, None))


@pytest.mark.parametrize(
    ("fmt", "arithmetic", "shape"),
    [
        (MXFormat("fp4_e2m1", 16, "e4m3", rounding="stochastic", four_over_six=True), "exact", (4, 64)),
        (MXFormat("fp4_e2m1", (4, 4)), "exact", (4, 64)),
        (MXFormat("fp4_e2m1", rounding="floor"), "native", (4, 64)),
        (MXFP4, "exact", (0, 64)),
    ],
    ids=str,
)
def test_what_the_library_does_not_take_is_torchs(fmt: MXFormat, arithmetic: str, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    assert not cpu.supports(x, Asked(fmt, -1, arithmetic))
    expected = quantize_torch(x, fmt, -1, arithmetic, draws_of(fmt, 5, 0, None), None)
    assert_same_bits(quantize(x, fmt, arithmetic=arithmetic, generator=5), expected)


def test_tensors_that_stand_for_others_are_torchs() -> None:
    with FakeTensorMode() as mode:
        fake = mode.from_tensor(torch.zeros(2, 32))
        assert not cpu.supports(fake, EXACT) and quantize(fake, MXFP4).shape == (2, 32)
    assert not cpu.supports(torch.zeros(2, 32, device="meta"), EXACT)
    negative = torch.complex(torch.ones(2, 32), torch.ones(2, 32)).conj().imag
    assert negative.is_neg() and not cpu.supports(negative, EXACT)
    assert torch.equal(quantize(negative, MXFP4), -torch.ones(2, 32))
    taken: list[bool] = []
    torch.func.vmap(lambda row: (taken.append(cpu.supports(row, EXACT)), row)[1])(torch.ones(2, 32))
    assert taken == [False]


@contextlib.contextmanager
def flushing() -> Iterator[None]:
    if not torch.set_flush_denormal(True):
        pytest.skip("this CPU flushes nothing")
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def test_a_thread_that_flushes_subnormals_is_left_to_torch() -> None:
    x = torch.tensor([[0.0] * 32, [1e-40] * 32])
    with flushing():
        assert cpu.quantize_by_library(x, EXACT) is None
        assert_same_bits(quantize(x, MXFP4, arithmetic="exact"), quantize_torch(x, MXFP4, -1, "exact", None, None))
    assert cpu.quantize_by_library(x, EXACT) is not None


@pytest.mark.parametrize("prescale", [1.0, 0.75])
def test_a_prescale_is_the_definitions(prescale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    x = adversarial(6 * 64 * 4, 9).view(24, 64)
    for fmt in (MXFP4, NVFP4, MXFormat("int4", 16, symmetric=False), MXFormat("mint4", rounding="even")):
        dims = (-1,) if fmt.tensor_scale else None
        ours = by_library(x, fmt, -1, "exact", dims, None, prescale)
        monkeypatch.setattr(LIBRARY, "for_elements", lambda _: None)
        assert_same_bits(ours, quantize_rescaled(x, fmt, prescale=prescale, tensor_dims=dims))
        monkeypatch.undo()


def test_a_prescale_above_1_is_torchs() -> None:
    """Products may be beyond what float32 holds."""
    x = torch.full((1, 32), 3.3e38)
    before = cpu.call_count()
    quantize_rescaled(x, MXFP4, prescale=1.25)
    assert cpu.call_count() == before and not cpu.supports(x, EXACT._replace(prescale=1.25))
    quantize_rescaled(x, MXFP4, prescale=0.75)
    assert cpu.call_count() == before + 1


def test_the_library_is_built_once_it_is_worth_it_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    fresh = CpuLibrary()
    assert fresh.for_elements(1000) is None and fresh.built_by is None
    assert not list(tmp_path.rglob("*.so"))
    fresh.for_elements(cpu_library.WORTH_BUILDING)
    assert fresh.build() is not None and fresh.built_by
    (kept,) = tmp_path.rglob("*.so")
    monkeypatch.setattr(cpu_library, "_built_library", lambda _: pytest.fail("built again"))
    assert CpuLibrary().for_elements(1) is not None
    kept.write_bytes(kept.read_bytes()[:5000])  # cut short
    assert CpuLibrary().for_elements(1) is None


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CpuLibrary:
    """Return what knows of no library yet, in an empty cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return CpuLibrary()


def warnings_of(library: CpuLibrary, caplog: pytest.LogCaptureFixture, named: str) -> list[str]:
    """Return what is logged where a compiler is named by which none comes to be, however often it is asked for."""
    with pytest.MonkeyPatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setenv("CXX", named)
        caplog.clear()
        for _ in range(2):
            assert library.for_elements(1) is None and library.build() is None and library.built_by is None
    return [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ("no-such-compiler", "there is no program 'no-such-compiler'"),
        (f"{sys.executable} -m", "built none"),
        ('g++ -DX="a', "cannot be split into words"),
        ("c++ -Dmx_quantize_rows=other", "is no library that quantizes"),
        ("c++ -Dmx_compiler=other", "is no library that quantizes"),
    ],
)
def test_a_compiler_that_is_named_and_builds_none_is_one_warning(
    named: str, said: str, fresh: CpuLibrary, caplog: pytest.LogCaptureFixture
) -> None:
    (warning,) = warnings_of(fresh, caplog, named)
    assert said in warning and f"CXX={named!r}" in warning


def test_no_compiler_may_be_asked_for(fresh: CpuLibrary, caplog: pytest.LogCaptureFixture) -> None:
    assert not warnings_of(fresh, caplog, "")


@pytest.mark.parametrize(
    ("where", "what"),
    [
        ("threading.Thread.start", RuntimeError("can't start new thread")),
        ("tempfile.TemporaryDirectory", OSError(28, "No space left on device")),
        ("pathlib.Path.stat", OSError(5, "Input/output error")),
    ],
    ids=["thread", "folder", "stat"],
)
def test_whatever_goes_wrong_is_one_warning(
    where: str, what: Exception, fresh: CpuLibrary, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise what

    named = cpu_build.compiler()[0]
    monkeypatch.setattr(where, fail)
    (warning,) = warnings_of(fresh, caplog, named)
    monkeypatch.undo()
    assert str(what) in warning


@pytest.mark.parametrize("option", ["-ffast-math", "-Ofast -freciprocal-math"])
def test_options_that_change_bits_are_undone(option: str, fresh: CpuLibrary, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", f"{cpu_build.compiler()[0]} {option}")
    built = fresh.build()
    assert built is not None and not built.mx_flushes()
    x = adversarial(6 * 64 * 4, 3).view(24, 64)
    for fmt in TAKEN[::7]:
        dims = (-1,) if fmt.tensor_scale else None
        ours = cpu_rows.quantize_rows(built, x, Asked(fmt, -1, "exact", dims))
        assert ours is not None
        assert_same_bits(ours, quantize_torch(x, fmt, -1, "exact", None, dims))


@pytest.mark.parametrize(
    ("option", "said", "kept"),
    [
        ("-ffast-math", "subnormal", True),
        ("-ffast-math -nostartfiles", "does not quantize in fp4_e2m1-b32-e8m0, ", False),
        ("-freciprocal-math", "does not quantize in ", True),
        ("    float prescale;|    double prescale;", "bytes for a format", False),
        ("double saturated, |double rounded_up, saturated, ", "bytes for measures, not 176", False),
        ("found.flushed += flushed;|found.flushed += saturated;", "does not measure in fp4_e2m1-b32-e8m0, exact", True),
        ("found.unlike += unlike;|", "does not measure in fp4_e2m1-b32-e8m0, native", False),
        ("+= error * error;|+= float(error * error);", "does not measure in fp4_e2m1-b32-e8m0, exact", False),
    ],
    ids=str,
)
def test_a_library_with_other_bits_is_not_used_and_not_kept(
    option: str,
    said: str,
    kept: bool,
    fresh: CpuLibrary,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if option.startswith("-"):
        unguarded = [flag for flag in cpu_build.FLAGS if flag not in GUARDS]
        monkeypatch.setattr(cpu_build, "FLAGS", (*unguarded, *option.split()))
    else:
        text, (here, instead) = cpu_build.source(), option.split("|")
        assert text.count(here) == 1
        monkeypatch.setattr(cpu_build, "source", lambda: text.replace(here, instead))
    if kept:
        cpu_build.Compilation().build(tmp_path / "rows.so")
        keep_content(cpu_build.library_name(), (tmp_path / "rows.so").read_bytes())
    (warning,) = warnings_of(fresh, caplog, cpu_build.compiler()[0])
    assert said in warning and "CXX=" in warning and LIBRARY.built_by in warning  # type: ignore[operator]
    assert (torch.tensor([1e-40]) * 1).item() > 0  # nothing flushes subnormals here, nor in threads begun from here
    assert len(list((tmp_path / "mxsweep").rglob("*.so"))) == kept


def test_trying_a_library_notes_no_exponents(library: ctypes.CDLL) -> None:
    with keeping_exponents() as kept:
        assert cpu_check._differs(library) == ""
    assert not kept.notes


def test_a_default_device_is_not_where_tables_are() -> None:
    x = adversarial(6 * 64, 5).view(-1, 32)
    for cached in (
        native_tables.native_tables, native_tables._least_bits, cpu_rows.format_in_memory, rounding.native_table
    ):  # fmt: skip
        cached.cache_clear()
    for dtype in DTYPES:
        for arithmetic in ("exact", "native"):
            with torch.device("meta"), keeping_exponents() as kept:
                ours = by_library(x.to(dtype), MXFP4, -1, arithmetic)
                definition = quantize_torch(x.to(dtype), MXFP4, -1, arithmetic, None, None)
            assert kept.notes
            assert_same_bits(ours, definition)


def test_a_library_is_tried_and_loaded_under_a_default_device(fresh: CpuLibrary) -> None:
    with torch.device("meta"):
        assert fresh.build() is not None and CpuLibrary().for_elements(1) is not None


def test_a_process_ends_without_its_compiler(tmp_path: Path) -> None:
    if not Path("/proc/self/stat").exists():
        pytest.skip("processes are looked for in /proc")
    slow, temporary, started = tmp_path / "slow", tmp_path / "temporary", tmp_path / "started"
    temporary.mkdir()
    slow.write_text(f"#!/bin/sh\nsleep 1000 &\necho $$ $! > {started}.new\nmv {started}.new {started}\nwait\n")
    slow.chmod(0o755)
    code = (
        "import time; from pathlib import Path; from mxsweep.numerics.kernels.cpu_library import LIBRARY\n"
        f"LIBRARY.for_elements(2**40)\nwhile not Path({str(started)!r}).exists(): time.sleep(0.01)"
    )
    environment = os.environ | {"CXX": str(slow), "TMPDIR": str(temporary), "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, timeout=100, check=True, capture_output=True, text=True
    )
    assert not done.stderr and not list(temporary.iterdir())
    for process in started.read_text().split():
        with contextlib.suppress(FileNotFoundError):
            assert Path(f"/proc/{process}/stat").read_text().split(")")[-1].split()[0] == "Z"


def test_what_a_thread_may_still_read_is_held_as_long_as_its_work(monkeypatch: pytest.MonkeyPatch) -> None:
    left = []
    monkeypatch.setattr(cpu_rows, "in_threads", lambda work, _: (left.append(work), work()))
    by_library(torch.ones(1, 32), MXFP4)
    held = weakref.ref(cpu_rows.format_in_memory(MXFP4, torch.float32, 1.0))
    cpu_rows.format_in_memory.cache_clear()
    assert held() is not None
    left.clear()
    assert held() is None


def test_a_logarithm_that_is_not_as_expected_leaves_native_arithmetic_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    right = torch.log2
    monkeypatch.setattr(torch, "log2", lambda x: right(x) - 1e-3)
    native_tables.native_tables.cache_clear()
    native_tables._least_bits.cache_clear()
    try:
        assert cpu.quantize_by_library(torch.ones(1, 32), Asked(MXFP4, -1, "native")) is None
    finally:
        monkeypatch.undo()
        native_tables.native_tables.cache_clear()
        native_tables._least_bits.cache_clear()
    assert cpu.quantize_by_library(torch.ones(1, 32), Asked(MXFP4, -1, "native")) is not None


def test_a_format_lies_in_memory_as_the_library_reads_it(library: ctypes.CDLL) -> None:
    assert {ctypes.sizeof(cpu_rows.format_in_memory(fmt, torch.float32, 1.0)) for fmt in TAKEN} == {
        library.mx_format_size()
    }


def test_processes_that_build_at_once_do_not_disturb_each_other(tmp_path: Path) -> None:
    code = "from mxsweep.numerics.kernels.cpu_library import LIBRARY; assert LIBRARY.build(); print(LIBRARY.built_by)"
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
    command = [sys.executable, "-c", code]
    started = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [each.communicate()[0].strip() for each in started] == [LIBRARY.built_by] * 2
    assert len(list(tmp_path.rglob("*.so"))) == 1
