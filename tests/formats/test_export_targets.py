"""What each target of a packed checkpoint has a place for, and what is said of what it has none for."""

from __future__ import annotations

import re

import pytest

from mxsweep.formats import MXFormat
from mxsweep.formats.export_targets import TARGET_NAMES, why_not, why_not_weight

MXFP4, MXFP6, MXFP8 = MXFormat("fp4_e2m1"), MXFormat("fp6_e2m3"), MXFormat("fp8_e4m3")
NVFP4 = MXFormat("fp4_e2m1", 16, "e4m3", tensor_scale=True)
E5M3 = MXFormat("fp4_e2m1", 16, "e5m3")

HELD = {
    "compressed-tensors": [
        MXFP4,
        MXFP6,
        MXFP8,
        NVFP4,
        MXFormat("fp4_e2m1", 16),
        MXFormat("int4"),
        MXFormat("mint8", 64),
    ],
    "quark": [MXFP4, MXFP6, MXFormat("fp6_e3m2"), MXFormat("fp6_e3m2", (8, 128))],
    "modelopt": [NVFP4, MXFormat("fp4_e2m1", 16), MXFormat("fp4_e2m1", 16, "e4m3")],
    "gguf": [MXFP4, MXFormat("fp4_e2m1", 0), NVFP4],
    "auto-round": [E5M3, MXFormat("fp4_e2m1", 64, "e5m3")],
}
NOWHERE = [
    (MXFormat("fp8_e5m2"), "elements fp8_e5m2"),
    (MXFormat("fp4_e2m1", scale="fp32"), "scales fp32"),
    (MXFormat("fp4_e2m1", symmetric=False), "midpoints"),
    (MXFormat("fp4_e2m1", 8), "block_size 8|scales e8m0"),
    (MXFormat("fp4_e2m1", (16, 8)), r"block_size \(16, 8\)|scales e8m0"),
    (MXFormat("fp4_e2m1", 32, scale_bits=4, symmetric=False), "midpoints"),
]


@pytest.mark.parametrize(("target", "fmt"), [(target, fmt) for target in HELD for fmt in HELD[target]])
def test_formats_that_are_held(target: str, fmt: MXFormat) -> None:
    assert why_not_weight(target, fmt, (7, 128)) is None


@pytest.mark.parametrize("target", TARGET_NAMES)
@pytest.mark.parametrize(("fmt", "what"), NOWHERE, ids=str)
def test_formats_without_a_place_anywhere(target: str, fmt: MXFormat, what: str) -> None:
    problem = why_not(target, fmt)
    assert problem is not None and problem.startswith(f"{target}: ")
    assert re.search(f"{what}|elements", problem)


def test_shapes_without_a_place() -> None:
    assert "48 input channels are no multiple of the 32" in (why_not("quark", MXFP4, shape=(8, 48)) or "")
    assert "no multiple of the 64" in (why_not("gguf", NVFP4, shape=(8, 48)) or "")
    assert "matrices" in (why_not("quark", MXFP4, shape=(3, 8, 32)) or "")
    with pytest.raises(ValueError, match="'onnx' is no target; allowed: compressed-tensors, quark"):
        why_not("onnx", MXFP4)


def test_activations() -> None:
    assert why_not("quark", MXFP4, MXFP6) is None
    assert why_not("quark", MXFP4, MXFP8) is None
    assert "allowed: fp4_e2m1, fp6_e2m3, fp6_e3m2" in (why_not("quark", MXFP8) or "")
    assert "allowed: fp4_e2m1-b32-e8m0" in (why_not("compressed-tensors", MXFP4, MXFP6) or "")
    assert why_not("compressed-tensors", MXFP6, MXFP8) is None
    assert why_not("compressed-tensors", MXFP4, MXFormat("fp4_e2m1", rounding="even", scale_rounding="even")) is None
    assert why_not("compressed-tensors", MXFormat("fp4_e2m1", 64), MXFormat("fp4_e2m1", 64)) is not None
    assert "allowed: none" in (why_not("compressed-tensors", MXFormat("int4"), MXFormat("int4")) or "")
    assert why_not("auto-round", E5M3, E5M3) is None
    assert "cannot stay as they are" in (why_not("auto-round", E5M3) or "")
    assert "allowed: none" in (why_not("gguf", MXFP4, MXFP4) or "")


def test_a_scale_of_each_token_is_nothing_that_can_be_stored() -> None:
    assert "format.activation_scale=static" in (why_not("compressed-tensors", NVFP4, NVFP4) or "")
    assert why_not("compressed-tensors", NVFP4, NVFP4, static_input=True) is None
    assert why_not("compressed-tensors", NVFP4, MXFormat("fp4_e2m1", 16, "e4m3")) is None
