"""Load the weight method that a name stands for, as a function of a weight.

A method NAME is a module with

    def solve(
        weight: Tensor,
        fmt: MXFormat,
        hessian: Tensor | None,
        options: Mapping[str, Any],
        tensor_amax: Tensor | None = None,
    ) -> Encoded

which returns codes and scales for the weight (N, C) float32, of that dtype. The Hessian H = 2 x^T x / tokens (C, C)
float32 of the inputs x is there where the method's declaration (config/weight_methods.py) says that it is needed, else
None; ``options`` are those of the knobs below ``ptq`` that the declaration names. ``tensor_amax``, float32, is given
where the weight shares its per-tensor scale with others: the scale is made from it, not from the weight's maximum.
``solve`` raises ValueError for a weight, a format or a Hessian that it has no answer for.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any, Protocol, cast

from torch import Tensor

from mxsweep.config.weight_methods import WEIGHT_METHODS
from mxsweep.formats.mxformat import MXFormat
from mxsweep.numerics.encoding import Encoded


class Solve(Protocol):
    """Choose the quantized values of a weight; see the module's text."""

    def __call__(
        self,
        weight: Tensor,
        fmt: MXFormat,
        hessian: Tensor | None,
        options: Mapping[str, Any],
        tensor_amax: Tensor | None = None,
    ) -> Encoded: ...


def load_method(name: str) -> Solve:
    """Import the module of the weight method called ``name`` and return its ``solve``."""
    return cast(Solve, import_module(WEIGHT_METHODS[name].solver_module).solve)
