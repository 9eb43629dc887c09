"""Describe microscaling formats: elements, scales, blocks, and which tensor gets which. Plain data, no torch."""

from mxsweep.formats.backends import (
    ARITHMETICS,
    BACKENDS,
    NUMERICS_VERSION,
    STOCHASTIC_VERSION,
    BackendUnavailable,
    microxcaling_problem,
    numerics_versions,
)
from mxsweep.formats.element import (
    ELEMENT_NAMES,
    ROUNDINGS,
    ElementFormat,
    parse_element,
)
from mxsweep.formats.mxformat import MXFormat
from mxsweep.formats.scale import SCALE_NAMES, SCALE_ROUNDINGS, ScaleFormat, parse_scale

__all__ = [
    "ARITHMETICS",
    "BACKENDS",
    "ELEMENT_NAMES",
    "NUMERICS_VERSION",
    "ROUNDINGS",
    "SCALE_NAMES",
    "SCALE_ROUNDINGS",
    "STOCHASTIC_VERSION",
    "BackendUnavailable",
    "ElementFormat",
    "MXFormat",
    "ScaleFormat",
    "microxcaling_problem",
    "numerics_versions",
    "parse_element",
    "parse_scale",
]
