"""Tell whether errors of quantizing in two runs are in one metric: those in a basis that is not orthogonal are not."""

from __future__ import annotations

from typing import Any

from mxsweep.formats.recipe import WUSH
from mxsweep.results.rows import Row

NOTE = (
    "Under rotation=wush weights and activations are measured in the basis of its matrices, which are not orthogonal: "
    "not to be compared with those in another basis."
)
_OF_LINEAR = ("weight", "activation")  # kinds of tensor that are multiplied by the matrices
_DECIDING = ("rotation", "rotation_block", "calibration")  # knobs, and groups of them, that the matrices come of


def has_own_metric(row: Row, kind: str) -> bool:
    """Return whether a run's tensors of this kind are quantized in a basis that is not orthogonal."""
    return kind in _OF_LINEAR and row.knobs.get("rotation") == WUSH


def are_comparable(one: Row, other: Row, kind: str) -> bool:
    """Return whether the errors of tensors of this kind, as ``sqnr_db`` and ``rmse``, are in one metric in two runs.

    A run whose basis is not orthogonal is comparable with one whose matrices come of the same knobs alone.
    """
    if not (has_own_metric(one, kind) or has_own_metric(other, kind)):
        return True
    return _deciding(one) == _deciding(other)


def _deciding(row: Row) -> dict[str, Any]:
    """Return the values of the knobs that decide what the matrices of a run's inputs are."""
    found = {name: value for name, value in row.knobs.items() if name.partition(".")[0] in _DECIDING}
    # The matrices are of the order of the blocks, where nothing else was said.
    return found | ({"block_size": row.knobs.get("block_size")} if found.get("rotation_block") == "mx" else {})
