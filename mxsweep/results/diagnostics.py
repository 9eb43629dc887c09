"""What a run with ``diagnostics=true`` says of each quantized tensor, read back from its diagnostics.parquet."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from mxsweep.results.record import RunFolder

DIAGNOSTICS_NAME = "diagnostics.parquet"
KINDS = ("weight", "activation", "key", "value")
KIND_TITLES = {"weight": "weights", "activation": "activations", "key": "keys", "value": "values"}


@dataclass(frozen=True)
class TensorError:
    """One tensor of a run: how large its quantization error is, and what it comes from.

    Attributes:
        kind: one of KINDS.
        module: the module whose weight, input, keys or values it is.
        layer: the decoder block's number; None outside the blocks.
        sqnr_db: 10 log10(signal / noise) in decibels.
        saturated, flushed: shares of the elements that were larger than the largest element value, and that were not
            zero and became zero.
        clamped: share of the blocks whose wanted scale the scale format does not hold.
    """

    kind: str
    module: str
    layer: int | None
    sqnr_db: float
    saturated: float
    flushed: float
    clamped: float

    @property
    def projection(self) -> str:
        """The module's name without its decoder block: `self_attn.q_proj`; keys and values share one module."""
        parts = self.module.split(".")
        digits = [index for index, part in enumerate(parts) if part.isdigit()]
        return ".".join(parts[digits[0] + 1 :] if digits else parts)


def read_tensors(run: RunFolder) -> list[TensorError]:
    """The tensors of a run, in the model's order; none where it was run without diagnostics.

    Raises:
        OSError, ValueError: the file is damaged.
    """
    path = run.path / DIAGNOSTICS_NAME
    return _read(path, path.stat().st_mtime_ns) if path.is_file() else []


@lru_cache(maxsize=4096)
def _read(path: Path, _written: int) -> list[TensorError]:
    import pyarrow.parquet as parquet

    names = ["kind", "module", "layer", "elements", "blocks", "sqnr_db", "saturated", "flushed", "clamped"]
    return [
        TensorError(
            kind=row["kind"],
            module=row["module"],
            layer=row["layer"],
            sqnr_db=math.nan if row["sqnr_db"] is None else row["sqnr_db"],
            saturated=row["saturated"] / row["elements"] if row["elements"] else 0.0,
            flushed=row["flushed"] / row["elements"] if row["elements"] else 0.0,
            clamped=row["clamped"] / row["blocks"] if row["blocks"] else 0.0,
        )
        for row in parquet.read_table(path, columns=names).to_pylist()
    ]


def kinds_of(kinds: Iterable[str]) -> list[str]:
    """Kinds in the order of KINDS, each once."""
    found = set(kinds)
    return [kind for kind in KINDS if kind in found]
