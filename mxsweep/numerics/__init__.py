"""Quantize tensors in microscaling formats: pure functions of tensors.

Importing this package imports no torch, so that a configuration can be checked before torch is loaded; the
names that need it are loaded when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mxsweep.formats import (
    ARITHMETICS,
    BACKENDS,
    ELEMENT_NAMES,
    NUMERICS_VERSION,
    ROUNDINGS,
    SCALE_NAMES,
    SCALE_ROUNDINGS,
    BackendUnavailable,
    ElementFormat,
    MXFormat,
    ScaleFormat,
    microxcaling_problem,
    parse_element,
    parse_scale,
)
from mxsweep.numerics.availability import backend_problem

if TYPE_CHECKING:
    from mxsweep.numerics.block_measures import (
        BlockStatistics,
        PendingStatistics,
        block_statistics,
        fetch_statistics,
        measure_blocks,
        sqnr_db,
    )
    from mxsweep.numerics.both import quantize_both
    from mxsweep.numerics.dispatch import quantize
    from mxsweep.numerics.encoding import Encoded, decode, encode

_LAZY = {
    "quantize": "mxsweep.numerics.dispatch",
    "quantize_both": "mxsweep.numerics.both",
    "Encoded": "mxsweep.numerics.encoding",
    "decode": "mxsweep.numerics.encoding",
    "encode": "mxsweep.numerics.encoding",
    "BlockStatistics": "mxsweep.numerics.block_measures",
    "PendingStatistics": "mxsweep.numerics.block_measures",
    "block_statistics": "mxsweep.numerics.block_measures",
    "fetch_statistics": "mxsweep.numerics.block_measures",
    "measure_blocks": "mxsweep.numerics.block_measures",
    "sqnr_db": "mxsweep.numerics.block_measures",
}

__all__ = [
    "ARITHMETICS",
    "BACKENDS",
    "ELEMENT_NAMES",
    "NUMERICS_VERSION",
    "ROUNDINGS",
    "SCALE_NAMES",
    "SCALE_ROUNDINGS",
    "BackendUnavailable",
    "BlockStatistics",
    "ElementFormat",
    "Encoded",
    "MXFormat",
    "PendingStatistics",
    "ScaleFormat",
    "backend_problem",
    "block_statistics",
    "decode",
    "encode",
    "fetch_statistics",
    "measure_blocks",
    "microxcaling_problem",
    "parse_element",
    "parse_scale",
    "quantize",
    "quantize_both",
    "sqnr_db",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_LAZY[name]), name)
    globals()[name] = value  # found without this function from now on
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
