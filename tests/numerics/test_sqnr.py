"""The signal-to-quantization-noise ratio of normal data, the same figure for every implementation of a format."""

import math

import pytest
import torch

from mxsweep.numerics import MXFormat, quantize


@pytest.fixture(scope="module")
def normal() -> torch.Tensor:
    generator_state = torch.get_rng_state()
    torch.manual_seed(0)
    x = torch.randn(4096, 4096)
    torch.set_rng_state(generator_state)
    return x


def sqnr_db(x: torch.Tensor, fmt: MXFormat) -> float:
    noise = quantize(x, fmt, arithmetic="exact").sub_(x)
    # Row sums in float32 lose nothing that three decimals show.
    return 10 * math.log10(float(x.square().sum(1).double().sum()) / float(noise.square_().sum(1).double().sum()))


@pytest.mark.parametrize(
    ("fmt", "decibels"),
    [
        *((MXFormat("int8", b, rounding="even"), db) for b, db in ((16, 42.784), (32, 41.664), (64, 41.009))),
        *((MXFormat("int4", b, rounding="even"), db) for b, db in ((16, 18.635), (32, 17.558), (64, 16.921))),
        *((MXFormat("fp8_e4m3", b, rounding="even"), db) for b, db in ((16, 29.926), (32, 30.648), (64, 31.227))),
        *((MXFormat("fp6_e2m3", b, rounding="even"), db) for b, db in ((16, 30.996), (32, 30.938), (64, 30.893))),
        *((MXFormat("fp4_e2m1", b, rounding="even"), db) for b, db in ((16, 18.580), (32, 18.786), (64, 18.930))),
        (MXFormat("fp4_e2m1", 32, rounding="even", scale_rounding="even"), 19.024),
        (MXFormat("fp4_e2m1", 32, rounding="even", scale_rounding="rceil"), 18.753),
        (MXFormat("fp4_e2m1", 32, rounding="even", scale_rounding="ceil"), 16.820),
        (MXFormat("fp4_e2m1", 16, "fp32", rounding="even"), 20.524),
        (MXFormat("fp4_e2m1", 16, "e4m3", rounding="even", tensor_scale=True), 20.436),
        (MXFormat("fp4_e2m1", 16, "e5m3", rounding="even"), 20.435),
    ],
    ids=str,
)
def test_sqnr_of_normal_data(normal: torch.Tensor, fmt: MXFormat, decibels: float) -> None:
    assert sqnr_db(normal, fmt) == pytest.approx(decibels, abs=0.0006)
