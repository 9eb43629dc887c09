"""Quantize and measure the weights of a recipe's sites.

Legend: W (N, C) the matrix of an operand, in the basis in which it is quantized, along C.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from torch import Tensor
from transformers import PreTrainedModel

from mxsweep.formats.recipe import Recipe
from mxsweep.model.linear import stochastic_key
from mxsweep.model.quantization_report import LayerReport
from mxsweep.model.shared_scales import shared_maxima
from mxsweep.model.sites import Site, find_sites
from mxsweep.numerics import Encoded, PendingStatistics, decode, fetch_statistics, measure_blocks, quantize
from mxsweep.terminal.errors import ConfigError


def measure_weights(model: PreTrainedModel, recipe: Recipe) -> list[LayerReport]:
    """Measure what ``recipe`` does to the weights of ``model``, also against exact arithmetic; nothing is replaced.

    Only one quantized weight is in memory at a time.

    Raises:
        ConfigError: as :func:`mxsweep.model.quantize.quantize_model`.
    """
    sites = find_sites(model, recipe)
    maxima = shared_maxima(sites, recipe)
    measured = [
        quantize_weight(site, recipe, compare_exact=True, tensor_amax=maxima.get(site.name))[1] for site in sites
    ]
    return layer_reports(sites, measured)


def quantize_weight(
    site: Site,
    recipe: Recipe,
    compare_exact: bool,
    prepared: Encoded | None = None,
    tensor_amax: Tensor | None = None,
    measure: bool = True,
) -> tuple[Tensor, PendingStatistics | None]:
    """Return the weight that stands in for a site's, and its block statistics (None where it stays as it is).

    Args:
        prepared: the codes and scales that a weight method chose; None to round to nearest.
        tensor_amax: what the per-tensor scale is made from, float32; None for the weight's own maximum.
        measure: False for no statistics of any weight.
    """
    if site.operand.parameter.device.type == "meta":
        raise ConfigError(
            f"model.device_map: {site.name} was offloaded from the GPUs, where its weight cannot be quantized; "
            "use more or larger GPUs, or model.device=cpu"
        )
    weight, fmt = site.weight(), site.formats.weight
    if fmt is None:
        return weight, None
    if prepared is not None:
        weight_mx = decode(prepared.to(weight.device)).to(weight.dtype)
    else:
        weight_mx = quantize(
            weight,
            fmt,
            axis=-1,
            backend=recipe.backend,
            arithmetic=recipe.arithmetic,
            generator=stochastic_key(recipe.seed, f"{site.name}.weight") if fmt.rounding == "stochastic" else None,
            tensor_amax=tensor_amax,
        )
    if not measure:
        return weight_mx, None
    measured = measure_blocks(
        weight,
        fmt,
        axis=-1,
        arithmetic=recipe.arithmetic,
        quantized=weight_mx,
        compare_exact=compare_exact,
        tensor_amax=tensor_amax,
    )
    return weight_mx, measured


def layer_reports(
    sites: Sequence[Site], measured: Sequence[PendingStatistics | None], prepared: Collection[str] = ()
) -> list[LayerReport]:
    """Return a report for each site, fetching all statistics from the device at once.

    Args:
        measured: of each site's weight, from :func:`quantize_weight`.
        prepared: the names of the sites whose weights a weight method chose.
    """
    fetched = iter(fetch_statistics([item for item in measured if item is not None]))
    return [
        LayerReport(
            site.name,
            site.operand.place,
            site.formats.weight,
            site.formats.activation,
            site.operand.shape,
            site.operand.bits,
            None if item is None else next(fetched),
            site.name in prepared,
        )
        for site, item in zip(sites, measured, strict=True)
    ]
