"""Bits of cached keys and values, against counts by hand."""

import pytest

from mxsweep.formats.cached_bits import CacheFormats, CacheLayer
from mxsweep.formats.mxformat import MXFormat
from mxsweep.formats.recipe import KVOptions

LAYER = CacheLayer(heads=2, key_size=64, value_size=32, window=None, bits=16, layers=3)
FP4 = MXFormat(element="fp4_e2m1", block_size=32)  # 4 bits and 8 of a scale for each 32
INT8 = MXFormat(element="int8", block_size=32)
NVFP4 = MXFormat(element="fp4_e2m1", block_size=16, scale="e4m3", tensor_scale=True)


def test_as_it_is() -> None:
    assert CacheFormats().bits([LAYER], 10) == 10 * 3 * 2 * (64 + 32) * 16
    assert CacheFormats().bits_per_token([LAYER]) == 3 * 2 * (64 + 32) * 16


def test_keys_and_values_apart() -> None:
    key, value = 2 * (64 * 4 + 2 * 8), 2 * (32 * 8 + 8)
    assert CacheFormats(FP4, INT8).bits([LAYER], 10) == 10 * 3 * (key + value)
    assert CacheFormats(FP4).bits_per_token([LAYER]) == 3 * (key + 2 * 32 * 16)
    assert CacheFormats(value=INT8).bits_per_token([LAYER]) == 3 * (2 * 64 * 16 + value)


def test_a_shorter_last_block_has_a_whole_scale() -> None:
    assert CacheFormats(MXFormat(element="fp4_e2m1", block_size=48)).bits([LAYER], 1) == 3 * (
        2 * (64 * 4 + 2 * 8) + 2 * 32 * 16
    )


@pytest.mark.parametrize(
    ("scales", "bits"), [("block", 2 * (64 * 4 + 4 * 8) + 32), ("head", 2 * (64 * 4 + 8) + 2 * 32)]
)
def test_scales_of_tensors_and_of_heads(scales: str, bits: int) -> None:
    """A per-tensor scale is 32 bits a token or, of scales of heads, a head, which then has no blocks."""
    formats = CacheFormats(NVFP4, None, KVOptions(scales=scales))
    assert formats.bits_per_token([LAYER]) == 3 * (bits + 2 * 32 * 16)


def test_tokens_that_stay_as_they_are() -> None:
    plain, quantized = 2 * (64 + 32) * 16, 2 * (64 * 4 + 2 * 8) + 2 * (32 * 8 + 8)
    formats = CacheFormats(FP4, INT8, KVOptions(first=4, recent=32))
    assert formats.bits([LAYER], 100) == 3 * (36 * plain + 64 * quantized)
    assert formats.bits([LAYER], 20) == 3 * 20 * plain
    assert formats.bits_per_token([LAYER]) == 3 * (36 * plain + (8192 - 36) * quantized) / 8192


def test_what_rescue4_takes_is_what_its_page_says() -> None:
    layer = CacheLayer(heads=1, key_size=64, value_size=64, window=512, bits=16)  # of a window, which drops none here
    bits = CacheFormats(FP4, FP4, KVOptions(first=4, recent=32)).bits_per_token([layer]) / 128
    assert f"{bits:.2f}" == "4.30" and CacheFormats(FP4, FP4).bits_per_token([layer]) == 128 * 4.25


def test_a_block_of_tokens_counts_when_it_is_complete() -> None:
    formats = CacheFormats(FP4, None, KVOptions(key_axis="channel"))
    value = 2 * 32 * 16
    assert formats.bits([LAYER], 70) == 3 * (70 * value + 2 * 64 * (64 * 4 + 2 * 8) + 6 * 2 * 64 * 16)
    assert formats.bits_per_token([LAYER]) == 3 * (2 * 64 * 4.25 + value)


def test_windows() -> None:
    sliding = CacheLayer(2, 64, 32, window=50, bits=16)
    assert CacheFormats().bits([sliding], 1000) == 50 * 2 * 96 * 16
    assert CacheFormats().bits([sliding], 10) == 10 * 2 * 96 * 16
    assert CacheFormats().bits_per_token([sliding]) == 2 * 96 * 16
