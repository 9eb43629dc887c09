"""A model's weights by name and shape, read from its files' headers: no torch, no weights in memory."""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path

from mxsweep.checks import EMBEDDED
from mxsweep.model.recipe import Recipe, in_decoder_block
from mxsweep.numerics import MXFormat

DTYPE_BITS = {"F64": 64, "F32": 32, "F16": 16, "BF16": 16, "F8_E4M3": 8, "F8_E5M2": 8, "I8": 8, "U8": 8}


@dataclass(frozen=True)
class WeightEntry:
    """One tensor of a checkpoint."""

    name: str
    shape: tuple[int, ...]
    bits: int

    @property
    def size(self) -> int:
        return math.prod(self.shape)


def model_folder(path: str) -> Path | None:
    """The folder that a ``model.path`` names; None for a name on the hub."""
    folder = Path(__file__).resolve().parent.parent / "assets" / "tiny" if path == EMBEDDED else Path(path).expanduser()
    return folder if folder.is_dir() else None


def read_inventory(path: str) -> list[WeightEntry] | None:
    """The tensors of a model folder with safetensors files; None where there are none to read (a hub name)."""
    folder = model_folder(path)
    files = sorted(folder.glob("*.safetensors")) if folder else []
    return [entry for file in files for entry in _entries(file)] or None


def _entries(file: Path) -> list[WeightEntry]:
    # The safetensors format: 8 bytes of little-endian length, then that many bytes of JSON.
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(length))
    header.pop("__metadata__", None)
    return [WeightEntry(name, tuple(t["shape"]), DTYPE_BITS[t["dtype"]]) for name, t in header.items()]


@dataclass(frozen=True)
class Footprint:
    """What a recipe makes of a model.

    Attributes:
        bits_per_weight: over the weights that it quantizes, scales included; None where it quantizes none.
        stored_bytes: the whole model's, stored at those bits.
        simulated_bytes: the whole model's while it is simulated: every original, and beside it the quantized copies.
    """

    bits_per_weight: float | None
    stored_bytes: int
    simulated_bytes: int


def footprint(entries: list[WeightEntry], recipe: Recipe, dtype_bits: int | None = None) -> Footprint:
    """The footprint of a checkpoint under ``recipe``; ``dtype_bits`` where the run converts it, else its own."""
    quantized, quantized_bits = 0, 0.0
    stored_bits = simulated_bits = 0.0
    for entry in entries:
        bits = dtype_bits or entry.bits
        fmt = _weight_format(entry, recipe)
        stored_bits += entry.size * (fmt.bits_per_element if fmt else bits)
        simulated_bits += entry.size * bits * (2 if fmt else 1)
        if fmt:
            quantized += entry.size
            quantized_bits += entry.size * fmt.bits_per_element
    per_weight = quantized_bits / quantized if quantized else None
    return Footprint(per_weight, round(stored_bits / 8), round(simulated_bits / 8))


def _weight_format(entry: WeightEntry, recipe: Recipe) -> MXFormat | None:
    name = entry.name.removesuffix(".weight")
    if name == entry.name or len(entry.shape) != 2:  # a bias, or a norm's gain
        return None
    return recipe.formats_of(name, in_decoder_block(name)).weight
