"""Round to nearest: every element by itself, with the scale that the format's rule gives its block.

What the other methods are compared with. A run with ``ptq=rtn`` solves for nothing: a layer rounds its weight itself,
in the run's backend and arithmetic, as it does every other tensor. In exact arithmetic the values are those of `solve`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mxsweep.formats.mxformat import MXFormat
from mxsweep.numerics.encoding import Encoded, encode


def solve(
    weight: Tensor,
    fmt: MXFormat,
    hessian: Tensor | None,
    options: Mapping[str, Any],
    tensor_amax: Tensor | None = None,
) -> Encoded:
    """Return the weight (N, C) float32 with each element rounded; see `solvers/methods.py`."""
    return encode(weight, fmt, arithmetic="exact", tensor_amax=tensor_amax)
