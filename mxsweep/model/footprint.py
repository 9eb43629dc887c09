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
        bits_per_weight: over all weights of the decoder blocks and what else it quantizes, scales included; None where
            it quantizes none.
        stored_bytes: the whole model's, stored at those bits, and those of the matrices of inputs, where it has any.
        simulated_bytes: the whole model's while it is simulated: every original, and beside it the quantized copies.
        warnings: what a reader of the results should know.
    """

    bits_per_weight: float | None
    stored_bytes: int
    simulated_bytes: int
    warnings: tuple[str, ...] = ()


def footprint(model: PreTrainedModel, recipe: Recipe, budget: float | None = None) -> Footprint:
    """Return the footprint of ``model``, loaded or on the meta device, under ``recipe``.

    Args:
        budget: the most bits that a weight may take on average, where formats are chosen under a budget: then the bits
            a weight, and the stored bytes, are the most that come of it.

    Raises:
        ConfigError: as :func:`mxsweep.model.sites.find_sites`.
    """
    from mxsweep.model.coverage import Stored
    from mxsweep.model.rotated_products import RotatedProducts
    from mxsweep.model.sites import find_sites

    sites = find_sites(model, recipe)
    stored = Stored.of(model, sites, recipe)
    originals = sum(parameter.nbytes for parameter in model.parameters())
    # A parameter that holds many experts is copied whole.
    copied = {
        (site.operand.module_name, id(site.operand.parameter)): site.operand.parameter.nbytes
        for site in sites
        if site.formats.weight is not None
    }
    bits, total = stored.bits_per_weight, float(stored.bits)
    if bits is not None and budget is not None:
        bits, total = budget, stored.bits_under(budget)
    rotated = RotatedProducts.of(sites, recipe)
    warnings = (*stored.warnings, *(rotated.warnings if rotated else []))
    return Footprint(bits, round((total + stored.input_matrix_bits) / 8), originals + sum(copied.values()), warnings)
