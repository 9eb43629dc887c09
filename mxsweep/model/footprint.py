"""The bits and bytes that a recipe makes of a checkpoint, from the headers of its files. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase

from mxsweep.files.checkpoints import WeightEntry
from mxsweep.formats.mxformat import MXFormat
from mxsweep.formats.recipe import Recipe, in_decoder_block


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
    quantized = quantized_bits = simulated_bits = 0
    stored: dict[tuple[str, MXFormat | None], int] = {}  # tied tensors once a format, as model/report.py counts them
    for entry in entries:
        fmt, plain = _weight_format(entry, recipe), entry.size * (dtype_bits or entry.bits)
        bits = fmt.stored_bits(entry.shape) if fmt else plain
        stored[entry.tied_to or entry.name, fmt] = bits
        simulated_bits += plain * ((entry.tied_to is None) + (fmt is not None))
        if fmt:
            quantized += entry.size
            quantized_bits += bits
    per_weight = quantized_bits / quantized if quantized else None
    return Footprint(per_weight, round(sum(stored.values()) / 8), round(simulated_bits / 8))


def unmatched_patterns(entries: list[WeightEntry], recipe: Recipe) -> list[str]:
    """The patterns of ``recipe.modules`` that match no weight of a checkpoint."""
    names = [entry.name.removesuffix(".weight") for entry in entries if len(entry.shape) == 2]
    return [pattern for pattern, _ in recipe.modules if not any(fnmatchcase(name, pattern) for name in names)]


def _weight_format(entry: WeightEntry, recipe: Recipe) -> MXFormat | None:
    name = entry.name.removesuffix(".weight")
    if name == entry.name or len(entry.shape) != 2:  # a bias, or a norm's gain
        return None
    return recipe.formats_of(name, in_decoder_block(name)).weight
