"""Read what a run with ``diagnostics=true`` says of each quantized tensor, from its diagnostics.parquet."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from mxsweep.formats.mxformat import MXFormat
from mxsweep.formats.recipe import TENSOR_KINDS
from mxsweep.results.parquet_files import open_parquet
from mxsweep.results.record import DIAGNOSTICS_NAME, RunFolder

KIND_TITLES = {"weight": "weights", "activation": "activations", "key": "keys", "value": "values"}
_COUNTS = ("saturated", "flushed", "clamped")
_NUMBERS = ("elements", "blocks", *_COUNTS)
_READ = ("kind", "module", "layer", "elements", "blocks", "sqnr_db", *_COUNTS, "part")


@dataclass(frozen=True)
class TensorError:
    """Hold one tensor of a run: how large its quantization error is, and what the error comes from.

    Attributes:
        kind: one of TENSOR_KINDS.
        module: the module whose weight, input, keys or values it is.
        layer: the decoder block's number; None outside the blocks.
        part: the module's name within its block, as short as it can be.
        sqnr_db: 10 log10(signal / noise) in decibels.
        saturated, flushed: shares of the elements that were larger than the largest element value, and that were not
            zero and became zero.
        clamped: share of the blocks whose wanted scale the scale format does not hold.
        width: bits of an element, scales not counted; None in files of earlier versions.
    """

    kind: str
    module: str
    layer: int | None
    part: str
    sqnr_db: float
    saturated: float
    flushed: float
    clamped: float
    width: int | None = None


def read_tensors(run: RunFolder) -> list[TensorError]:
    """Read the tensors of a run, in the model's order; none without diagnostics, or where the file is damaged."""
    path = run.path / DIAGNOSTICS_NAME
    try:
        return _read(path, path.stat().st_mtime_ns)
    except (OSError, ValueError, KeyError, TypeError):  # pyarrow's errors are of these types, too
        return []


@lru_cache(maxsize=4096)
def _read(path: Path, _written: int) -> list[TensorError]:
    with open_parquet(path) as file:
        # Files of earlier versions have neither: there the last part of a module's name stands for its part.
        later = [name for name in ("part", "format") if name in file.schema_arrow.names]
        table = file.read([*_READ[:-1], *later]).to_pydict()
    formats = table.pop("format", [None] * len(table["kind"]))
    known = {text: element_width(text) for text in set(formats) if isinstance(text, str)}
    widths = [known.get(text) for text in formats]
    table.setdefault("part", [str(module).rpartition(".")[2] for module in table["module"]])
    # A file that somebody else wrote: what is of another type is no file of diagnostics.
    texts, numbers = [*table["kind"], *table["module"], *table["part"]], [n for name in _NUMBERS for n in table[name]]
    if not (
        set(table["kind"]) <= set(TENSOR_KINDS)
        and all(isinstance(text, str) for text in texts)
        and all(isinstance(number, int) for number in numbers)
        and all(layer is None or isinstance(layer, int) for layer in table["layer"])
        and all(ratio is None or isinstance(ratio, float) for ratio in table["sqnr_db"])
    ):
        raise ValueError(f"{path} holds no diagnostics")
    return [
        TensorError(
            kind=kind,
            module=module,
            layer=layer,
            part=part,
            sqnr_db=math.nan if sqnr_db is None else sqnr_db,
            saturated=saturated / elements if elements else 0.0,
            flushed=flushed / elements if elements else 0.0,
            clamped=clamped / blocks if blocks else 0.0,
            width=width,
        )
        for kind, module, layer, elements, blocks, sqnr_db, saturated, flushed, clamped, part, width in zip(
            *(table[name] for name in _READ), widths, strict=True
        )
    ]


def element_width(text: str) -> int | None:
    """Return how many bits an element has in a format that is written as text; None of a text that is no format."""
    try:
        return MXFormat.parse(text).element_format.bits
    except ValueError:
        return None


def in_order_of_kinds(kinds: Iterable[str]) -> list[str]:
    """Return kinds in the order of TENSOR_KINDS, each once."""
    present = set(kinds)
    return [kind for kind in TENSOR_KINDS if kind in present]
