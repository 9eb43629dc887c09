"""Formats that weights are solved for in tests: every element, and every kind of scale, block and midpoint."""

from mxsweep.numerics import ELEMENT_NAMES, MXFormat

FORMATS = [
    *(MXFormat(element, 8, rounding="even") for element in ELEMENT_NAMES),
    MXFormat("fp4_e2m1", 16, scale="e5m3"),
    MXFormat("fp4_e2m1", 16, scale="e4m3", tensor_scale=True),
    MXFormat("int4", 32, scale="fp32", symmetric=False),
    MXFormat("mint4", 8, symmetric=False),
    MXFormat("int3", (4, 8)),
    MXFormat("fp4_e2m1", (3, 7), scale="fp32", symmetric=False),
    MXFormat("int4", 0),
    MXFormat("fp6_e2m3", 24, rounding="floor"),
]
