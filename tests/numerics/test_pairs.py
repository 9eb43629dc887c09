"""Two bfloat16 numbers that are quantized at once (pairs.cu) become what each becomes in float32: all of them."""

from __future__ import annotations

import ctypes
import itertools

import pytest
import torch
from helpers.kernel_formats import FORMATS as KERNEL_FORMATS
from helpers.mx_host import host_library

from mxsweep.numerics import MXFormat

FORMATS = list(
    dict.fromkeys(
        [
            *KERNEL_FORMATS,
            *(
                MXFormat(element, 32, scale_bits=bits, rounding=rounding, scale_rounding=scale_rounding)
                for element, bits, rounding, scale_rounding in itertools.product(
                    ("fp4_e2m1", "fp6_e3m2", "fp6_e2m3", "fp8_e4m3", "fp8_e5m2"),
                    (8, 7, 3),
                    ("nearest", "even"),
                    ("floor", "even", "even0", "even7", "ceil", "rceil"),
                )
            ),
        ]
    )
)
# Maxima of blocks: no number at all, subnormals, around powers of two, the largest, Inf and NaN.
MAXIMA = [
    *(0x0000, 0x0001, 0x003F, 0x0040, 0x0041, 0x007F, 0x0080, 0x0081, 0x00FF, 0x0100, 0x01C0, 0x04FF),
    *(0x3C35, 0x3F7F, 0x3F80, 0x3FA1, 0x4060, 0x42E1, 0x7E80, 0x7EE1, 0x7F00, 0x7F60, 0x7F61, 0x7F7F, 0x7F80, 0x7FC0),
]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    folder = tmp_path_factory.mktemp("pairs")
    library = host_library(folder, FORMATS, torch.bfloat16, "pairs_host.cpp", ("mx.cu", "pairs.cu"))
    library.are_pairs.restype = ctypes.c_bool
    library.scales_differ.restype = library.elements_differ.restype = ctypes.c_long
    return library


def test_pairs_have_the_scales_and_become_the_numbers_that_each_has(pairs: ctypes.CDLL) -> None:
    taken = [index for index in range(len(FORMATS)) if pairs.are_pairs(index)]
    assert len(taken) > 200
    for index in taken:
        assert pairs.scales_differ(index) == -1, str(FORMATS[index])
        for amax in MAXIMA:
            assert pairs.elements_differ(index, amax) == -1, f"{FORMATS[index]}, of a maximum of {amax:#06x}"


def test_the_formats_of_training_are_taken_as_pairs(pairs: ctypes.CDLL) -> None:
    for element in ("fp4_e2m1", "fp6_e3m2", "fp6_e2m3", "fp8_e4m3", "fp8_e5m2"):
        for rounding in ("nearest", "even"):
            assert pairs.are_pairs(FORMATS.index(MXFormat(element, 32, rounding=rounding)))
    for other in (
        MXFormat("fp4_e2m1", 32, rounding="stochastic"),
        MXFormat("fp4_e3m0", 32, rounding="even"),
        MXFormat("int4", 32),  # whose scales are powers of two up to those of the maxima
        MXFormat("int8", 32),  # a sum with its grid's shift would take nine bits
        MXFormat("fp4_e2m1", 16, "e4m3"),
        MXFormat("fp4_e2m1", 32, symmetric=False),
    ):
        assert not pairs.are_pairs(FORMATS.index(other)), str(other)
