"""Microscaling formats: what an element, a scale and a block are, and which tensor gets which. Plain data, no torch."""

from mxsweep.formats.backends import (
    ARITHMETICS,
    BACKENDS,
    NUMERICS_VERSION,
    BackendUnavailable,
    backend_problem,
    microxcaling_problem,
)
from mxsweep.formats.element_formats import (
    ELEMENT_NAMES,
    ROUNDINGS,
    SCALE_NAMES,
    SCALE_ROUNDINGS,
    ElementFormat,
    ScaleFormat,
    parse_element,
    parse_scale,
)
from mxsweep.formats.mxformat import MXFormat

__all__ = [
    "ARITHMETICS",
    "BACKENDS",
    "ELEMENT_NAMES",
    "NUMERICS_VERSION",
    "ROUNDINGS",
    "SCALE_NAMES",
    "SCALE_ROUNDINGS",
    "BackendUnavailable",
    "ElementFormat",
    "MXFormat",
    "ScaleFormat",
    "backend_problem",
    "microxcaling_problem",
    "parse_element",
    "parse_scale",
]
