"""Hold statistics of every quantized tensor of a model, as rows of a table and pooled by kind. Plain data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mxsweep.formats.recipe import TENSOR_KINDS
from mxsweep.model.operands import Place
from mxsweep.numerics import BlockStatistics, MXFormat

# The columns of diagnostics.parquet, with their types in pandas; Int64 is the one that has room for "none".
COLUMNS = {
    "kind": "string",
    "module": "string",
    "layer": "Int64",
    "part": "string",
    "role": "string",
    "format": "string",
    "elements": "int64",
    "blocks": "int64",
    "signal": "float64",
    "noise": "float64",
    "sqnr_db": "float64",
    "rmse": "float64",
    "saturated": "int64",
    "flushed": "int64",
    "clamped": "int64",
    "exponent_min": "Int64",
    "exponent_max": "Int64",
    "exponent_limit": "Int64",
    "unlike_exact": "Int64",
    "examples": "Int64",
    "tokens": "Int64",
}


@dataclass(frozen=True)
class TensorStatistics:
    """Hold what quantizing one tensor did.

    Attributes:
        kind: one of TENSOR_KINDS.
        module: whose weight, input, keys or values it is; of several modules that read one tensor, the first.
        place: where in the model that module is.
        tokens: tokens that the statistics are of; None for a weight.
        examples: that the tokens are from; None for a weight.
    """

    kind: str
    module: str
    place: Place
    fmt: MXFormat
    statistics: BlockStatistics
    tokens: int | None = None
    examples: int | None = None

    @property
    def layer(self) -> int | None:
        """Return the number of the decoder block; None outside the blocks."""
        return self.place.layer

    @property
    def exponent_limit(self) -> int | None:
        """Return the largest exponent, of either sign, that the scale holds; None if the scale is no power of two."""
        return self.fmt.max_scale_exponent if self.fmt.scale == "e8m0" else None

    def row(self) -> dict[str, Any]:
        """Return a row with the columns COLUMNS."""
        return {
            "kind": self.kind,
            "module": self.module,
            "layer": self.layer,
            "part": self.place.part,
            "role": self.place.role,
            "format": str(self.fmt),
            **_numbers(self.statistics),
            "exponent_limit": self.exponent_limit,
            "examples": self.examples,
            "tokens": self.tokens,
        }


def pooled_by_kind(tensors: Sequence[TensorStatistics]) -> dict[str, dict[str, Any]]:
    """Return the numbers of each kind of tensor over all layers, without the sums, which mean nothing to a reader.

    ``tokens`` and ``examples`` are those that every tensor of the kind saw. ``exponent_limit`` is None where the
    tensors of a kind have different ones.
    """
    pooled = {}
    for kind in TENSOR_KINDS:
        of_kind = [tensor for tensor in tensors if tensor.kind == kind]
        if of_kind:
            numbers = _numbers(BlockStatistics.pooled(tensor.statistics for tensor in of_kind))
            limits = {tensor.exponent_limit for tensor in of_kind}
            pooled[kind] = {name: value for name, value in numbers.items() if name not in ("signal", "noise")} | {
                "exponent_limit": limits.pop() if len(limits) == 1 else None,
                "examples": max((x.examples for x in of_kind if x.examples is not None), default=None),
                "tokens": max((x.tokens for x in of_kind if x.tokens is not None), default=None),
            }
    return pooled


def _numbers(statistics: BlockStatistics) -> dict[str, Any]:
    return {
        "elements": statistics.elements,
        "blocks": statistics.blocks,
        "signal": statistics.signal,
        "noise": statistics.noise,
        "sqnr_db": statistics.sqnr_db,
        "rmse": statistics.rmse,
        "saturated": statistics.elements_saturated,
        "flushed": statistics.elements_flushed,
        "clamped": statistics.blocks_scale_clamped,
        "exponent_min": statistics.exponent_min,
        "exponent_max": statistics.exponent_max,
        "unlike_exact": statistics.unlike_exact,
    }
