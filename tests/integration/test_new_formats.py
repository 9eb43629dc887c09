"""A scale format, and a kind of elements, cost one declaration each: those registered here are known everywhere."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from helpers.adversarial import adversarial, assert_same_bits
from helpers.mx_host import host_library, pointer
from helpers.numerics_oracle import assert_same, quantize_block

from mxsweep import compose
from mxsweep.config.run_config import RunConfig
from mxsweep.formats.element import ELEMENT_KINDS, ElementKind, Integer, parse_element, register_element_kind
from mxsweep.formats.scale import SCALES, ScaleFormat, register_scale
from mxsweep.numerics import ELEMENT_NAMES, SCALE_NAMES, MXFormat, block_statistics, decode, encode, quantize
from mxsweep.solvers.block_scales import BlockScales
from mxsweep.terminal.errors import ConfigError


@pytest.fixture
def e4m4() -> Iterator[None]:
    """An unsigned scale with four mantissa bits: values up to 2^8 * 1.875, the all-ones code NaN."""
    register_scale(ScaleFormat("e4m4", bits=8, mantissa_bits=4, bias=7))
    yield
    del SCALES["e4m4"]


@dataclass(frozen=True)
class Wide(Integer):
    """`wide<n>`: k / 2^(n-3) for |k| < 2^(n-1), so that the largest value is just under 4."""

    @property
    def min_exponent(self) -> int:
        return 1

    @property
    def max_exponent(self) -> int:
        return 1

    @property
    def largest(self) -> float:
        return 4 - 2.0 ** -(self.bits - 3)


@pytest.fixture
def wide() -> Iterator[None]:
    def parse(match: re.Match[str]) -> Wide | None:
        bits = int(match[1])
        return Wide(match[0], bits, bits - 2) if 2 <= bits <= 8 else None

    kind = ElementKind(re.compile(r"wide([1-9]\d*)"), parse, "wide<n> with 2 <= n <= 8", ("wide4",))
    register_element_kind(kind)
    yield
    ELEMENT_KINDS.remove(kind)
    parse_element.cache_clear()


def check_numerics(fmt: MXFormat, folder: Path) -> None:
    """The torch definition against the oracle, codes, frozen scales, statistics, text, and the CUDA arithmetic."""
    x = adversarial(2**12, 5, finite=True).view(-1, 16)
    y = quantize(x, fmt, arithmetic="exact")
    assert_same(y, torch.tensor([quantize_block(block, fmt) for block in x.tolist()]))
    assert_same_bits(decode(encode(x, fmt)), y)
    assert_same_bits(BlockScales.of(x, fmt).quantize(x, fmt), y)
    assert block_statistics(x, fmt, arithmetic="exact").blocks == len(x)
    assert MXFormat.parse(str(fmt)) == fmt
    folder /= str(fmt)  # a library is loaded once from a path
    folder.mkdir()
    library, on_host = host_library(folder, [fmt]), torch.empty_like(x)
    maxima = x.abs().amax(1).contiguous()
    library.quantize_blocks(
        0, pointer(x), pointer(on_host), ctypes.c_long(len(x)), ctypes.c_long(16), pointer(maxima), pointer(None),
        ctypes.c_ulonglong(0),
    )  # fmt: skip
    assert_same_bits(on_host, y)


def weight(config: RunConfig) -> MXFormat | None:
    return config.recipe.linear.weight


def test_a_new_scale_format_is_known_everywhere(e4m4: None, tmp_path: Path) -> None:
    assert tuple(SCALE_NAMES)[-1] == "e4m4"
    fmt = MXFormat("fp4_e2m1", 16, "e4m4")
    check_numerics(fmt, tmp_path)
    assert fmt.scale_format.largest == 448 / 1.75 * 1.875
    assert fmt.bits_per_element == 4.5

    # conf/scale/ offers a name in tab completion and --help; the command line takes every registered one.
    config = compose(["format=mxfp4", "scale=e4m4", "block_size=16", "kv_quant=int8", "kv_quant.scale=e4m4"])
    assert weight(config) == MXFormat("fp4_e2m1", 16, "e4m4")
    assert config.recipe.key == MXFormat("int8", 16, "e4m4")
    assert config.config_hash != compose(["format=mxfp4", "scale=e5m3", "block_size=16", "kv_quant=int8"]).config_hash
    modules = compose(["format=mxfp4", "modules={lm_head: {weight: int8, scale: e4m4}}"]).recipe.modules
    assert modules[0][1].weight == MXFormat("int8", 32, "e4m4")
    for words in (["scale=e9m9"], ["kv_quant=int8", "kv_quant.scale=e9m9"]):
        with pytest.raises(ConfigError, match="scale: 'e9m9' is not known; allowed: e8m0, e5m3, e4m3, fp32, e4m4"):
            compose(words)
    with pytest.raises(ValueError, match="SCALE: e8m0, e5m3, e4m3, fp32, e4m4"):
        MXFormat.parse("int8-b32-e9m9")


def test_a_scale_formats_name_stands_for_one(e4m4: None) -> None:
    register_scale(ScaleFormat("e4m4", bits=8, mantissa_bits=4, bias=7))  # the same once more
    with pytest.raises(ValueError, match=r"^scale: 'e4m4' stands for another format already"):
        register_scale(ScaleFormat("e4m4", bits=8, mantissa_bits=4, bias=8))


@pytest.mark.parametrize("scale", ["e8m0", "e5m3", "fp32"])
def test_a_new_kind_of_elements_is_known_everywhere(wide: None, scale: str, tmp_path: Path) -> None:
    assert tuple(ELEMENT_NAMES)[-1] == "wide4"
    fmt = MXFormat("wide4", 16, scale)
    check_numerics(fmt, tmp_path)
    check_numerics(MXFormat("wide7", 16, scale, rounding="even", scale_rounding="rceil"), tmp_path)

    config = compose(["format=wide4", "block_size=16", f"scale={scale}", "kv_quant=wide7"])
    assert weight(config) == fmt and config.recipe.value == MXFormat("wide7", 16, scale)
    assert config.format.name == "wide4"
    for name in ("wide9", "wide1", "fp4"):
        with pytest.raises(ConfigError, match=r"wide4, or any fp<n>.*, or wide<n> with 2 <= n <= 8"):
            compose([f"format={name}"])
