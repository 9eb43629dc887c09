"""Count the bits and bytes that a recipe makes of a model, from its shapes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mxsweep.formats.recipe import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Footprint:
    """Count what a recipe makes of a model.

    Attributes:
        bits_per_weight: over the weights that it quantizes, scales included; None where it quantizes none.
        stored_bytes: the whole model's, stored at those bits.
        simulated_bytes: the whole model's while it is simulated: every original, and beside it the quantized copies.
    """

    bits_per_weight: float | None
    stored_bytes: int
    simulated_bytes: int


def footprint(model: PreTrainedModel, recipe: Recipe) -> Footprint:
    """Return the footprint of ``model``, loaded or on the meta device, under ``recipe``.

    Raises:
        ConfigError: as :func:`mxsweep.model.sites.find_sites`.
    """
    from mxsweep.model.quantization_report import Stored
    from mxsweep.model.sites import find_sites

    sites = find_sites(model, recipe)
    quantized = [(site.operand, site.formats.weight) for site in sites if site.formats.weight is not None]
    size = sum(operand.size for operand, _ in quantized)
    bits = sum(fmt.stored_bits(operand.shape) for operand, fmt in quantized)
    originals = sum(parameter.nbytes for parameter in model.parameters())
    copies = sum(operand.weight.nbytes for operand, _ in quantized)
    return Footprint(bits / size if size else None, round(Stored.of(model, sites).bits / 8), originals + copies)
