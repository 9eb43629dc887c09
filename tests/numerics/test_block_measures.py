"""Block statistics on blocks counted by hand."""

import dataclasses
import math

import pytest
import torch

from mxsweep.numerics import BlockStatistics, MXFormat, block_statistics, quantize

# Four blocks of two: maxima 2^10, 6 (saturates nothing), 7.9 (saturates), 0.
BLOCKS = torch.tensor([[1024.0, 1.0, 6.0, 0.1], [7.9, -7.0, 0.0, 0.0]])


def test_counts_by_hand() -> None:
    statistics = block_statistics(BLOCKS, MXFormat("fp4_e2m1", 2))
    y = torch.tensor([[1024.0, 0.0, 6.0, 0.0], [6.0, -6.0, 0.0, 0.0]])
    assert torch.equal(quantize(BLOCKS, MXFormat("fp4_e2m1", 2)), y)
    noise = float((BLOCKS.double() - y).square().sum())
    assert statistics == BlockStatistics(
        blocks=4,
        blocks_scale_clamped=0,
        elements=8,
        elements_saturated=2,
        elements_flushed=2,
        exponent_min=0,
        exponent_max=8,
        sqnr_db=10 * math.log10(float(BLOCKS.double().square().sum()) / noise),
    )


def test_statistics_are_equal_whose_sums_differ_in_the_last_bits_alone() -> None:
    """As those of the same values do that were added up in another order."""
    one = block_statistics(BLOCKS, MXFormat("fp4_e2m1", 2))
    other = dataclasses.replace(one, sqnr_db=math.nextafter(one.sqnr_db, 0), noise=math.nextafter(one.noise, 0))
    assert one == other and hash(one) == hash(other) and one.sqnr_db != other.sqnr_db
    assert one != dataclasses.replace(one, sqnr_db=one.sqnr_db + 1e-6)
    assert one != dataclasses.replace(one, elements_flushed=one.elements_flushed + 1)
    lost, kept = (dataclasses.replace(one, sqnr_db=ratio) for ratio in (math.nan, math.inf))
    assert lost == dataclasses.replace(lost) and kept == dataclasses.replace(kept) and lost != kept


@pytest.mark.parametrize("arithmetic", ["native", "exact"])
@pytest.mark.parametrize(("scale_bits", "clamped"), [(8, 0), (6, 0), (5, 0), (4, 1), (2, 1)])
def test_clamped_scales_explain_scale_bits(scale_bits: int, clamped: int, arithmetic: str) -> None:
    statistics = block_statistics(BLOCKS, MXFormat("fp4_e2m1", 2, scale_bits=scale_bits), arithmetic=arithmetic)
    assert statistics.blocks_scale_clamped == clamped
    assert (statistics.exponent_min, statistics.exponent_max) == (0, 8)
    assert math.isnan(statistics.sqnr_db) == (clamped > 0)  # above the range is NaN


def test_scales_below_the_bottom_are_clamped_too() -> None:
    statistics = block_statistics(BLOCKS * 2.0**-20, MXFormat("fp4_e2m1", 2, scale_bits=4))
    assert statistics.blocks_scale_clamped == 3
    assert (statistics.exponent_min, statistics.exponent_max) == (-20, -12)
    assert statistics.elements_flushed == 6


@pytest.mark.parametrize(
    ("fmt", "factor", "clamped"),
    [
        (MXFormat("fp4_e2m1", 2, "e5m3"), 1.0, 0),
        (MXFormat("fp4_e2m1", 2, "e5m3"), 2.0**10, 1),
        (MXFormat("fp4_e2m1", 2, "e5m3"), 2.0**-20, 2),
        (MXFormat("fp4_e2m1", 2, "fp32"), 2.0**-20, 0),
        (MXFormat("fp4_e2m1", 2, "e4m3", tensor_scale=True), 2.0**-20, 0),
    ],
    ids=["e5m3 inside", "e5m3 above", "e5m3 below", "fp32", "nvfp4"],
)
def test_other_scales_are_clamped_by_their_range(fmt: MXFormat, factor: float, clamped: int) -> None:
    statistics = block_statistics(BLOCKS * factor, fmt)
    assert statistics.blocks_scale_clamped == clamped
    assert statistics.exponent_min is None and statistics.exponent_max is None


@pytest.mark.parametrize("arithmetic", ["native", "exact"])
def test_blocks_without_a_scale_are_not_counted_as_clamped(arithmetic: str) -> None:
    x = torch.tensor([[0.0, 0.0, math.nan, 1.0, math.inf, 1.0, 1.0, 1.0]])
    statistics = block_statistics(x, MXFormat("fp4_e2m1", 2, scale_bits=3), arithmetic=arithmetic)
    assert statistics.blocks == 4 and statistics.blocks_scale_clamped == 0
    assert statistics.exponent_min == statistics.exponent_max == -2


def test_nothing_lost_is_infinite_and_zeros_lose_nothing() -> None:
    assert block_statistics(torch.ones(8), MXFormat("int8")).sqnr_db == math.inf
    assert block_statistics(torch.zeros(8), MXFormat("int8")).sqnr_db == math.inf


def test_an_element_that_becomes_infinite_is_infinite_noise() -> None:
    x = torch.tensor([65504.0, 4.0], dtype=torch.float16)
    fmt = MXFormat("fp4_e2m1", 2, scale_rounding="ceil")
    assert quantize(x, fmt, arithmetic="exact")[0].isinf()
    statistics = block_statistics(x, fmt, arithmetic="exact")
    assert statistics.noise == math.inf and statistics.sqnr_db == -math.inf


def test_regions_and_pieces_add_up() -> None:
    x = torch.randn(300, 700, generator=torch.Generator().manual_seed(1))
    fmt = MXFormat("int4", 32)
    statistics = block_statistics(x, fmt)
    y = quantize(x, fmt)
    assert statistics.blocks == 300 * 22
    assert statistics.elements_flushed == int(((x != 0) & (y == 0)).sum())
    noise = float((x.double() - y.double()).square().sum())
    assert statistics.sqnr_db == pytest.approx(10 * math.log10(float(x.double().square().sum()) / noise))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_other_dtypes(dtype: torch.dtype) -> None:
    x = torch.randn(64, 64, generator=torch.Generator().manual_seed(2))
    for arithmetic in ("native", "exact"):
        statistics = block_statistics(x.to(dtype), MXFormat("fp6_e2m3"), arithmetic=arithmetic)
        assert statistics.sqnr_db == pytest.approx(30.9, abs=0.5)


def test_stochastic_and_asymmetric_formats_need_no_more_arguments() -> None:
    x = torch.randn(64, 64, generator=torch.Generator().manual_seed(3)) + 5
    stochastic = block_statistics(x, MXFormat("int8", rounding="stochastic"))
    assert 20 < stochastic.sqnr_db < block_statistics(x, MXFormat("int8")).sqnr_db
    symmetric = block_statistics(x, MXFormat("int4")).sqnr_db
    assert block_statistics(x, MXFormat("int4", symmetric=False)).sqnr_db > symmetric + 3
