"""Measure the loss that each part of a model brings: quantized alone, and left out alone.

The two need not agree. Alone, a part is judged in a model that is otherwise as it was: what the part breaks. Left out,
the part is judged among errors that the others make anyway: what giving the part more bits would mend. Where errors are
small the first adds up to the whole's loss, and both rank parts alike.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from mxsweep.formats.recipe import LinearFormats, Recipe
from mxsweep.forward.sequence_loss import Divergence, Shift
from mxsweep.model.operands import find_operands
from mxsweep.model.prepared import Prepared
from mxsweep.model.quantize import left_out, quantize_model
from mxsweep.model.sites import Site, find_sites
from mxsweep.statistics.paired_tests import MeanDifference, compare_log_perplexity
from mxsweep.terminal.progress_callback import Progress

LOSSES = ("kl", "loss")  # of a shift


@dataclass(frozen=True)
class Part:
    """Hold what is quantized, or left out, together.

    Attributes:
        place: among the parts, in the model's order.
        name: of the module, the layer or the kind; "keys" or "values".
        layer: number of the decoder block; None where it is in several or none.
        kind: as q or down; None where it is of several.
        modules: by name, with their formats; empty for keys and values.
        weights: how many elements the modules' weights have.
    """

    place: int
    name: str
    layer: int | None
    kind: str | None
    modules: Mapping[str, LinearFormats]
    weights: int = 0

    @property
    def formats(self) -> list[LinearFormats]:
        """Return the formats of the modules, each once."""
        return list(dict.fromkeys(self.modules.values()))


@dataclass(frozen=True)
class PartLoss:
    """Hold a part's losses: with the part alone quantized, and with all that the recipe quantizes but the part."""

    part: Part
    alone: Shift
    without: Shift


def interval_of(shift: Shift, loss: str) -> MeanDifference:
    """Return a loss ("kl" or "loss") of a shift with its 95 % interval; NaN ends of a single sequence.

    The interval is that of a ratio of sums over sequences, whose tokens are not independent, with Student's t. Both
    losses are differences from the unquantized model on the same tokens, so that it is paired.
    """
    if shift.sums is None:
        return MeanDifference(0, getattr(shift, loss), math.nan, math.nan, math.nan)
    sums = getattr(shift.sums, loss)
    return compare_log_perplexity(np.zeros_like(sums), -sums, shift.sums.positions)


def saved_by(whole: Shift, without: Shift, loss: str) -> MeanDifference:
    """Return how much less of a loss there is without a part, with its 95 % interval, paired over the sequences."""
    if whole.sums is None or without.sums is None:
        return MeanDifference(0, getattr(whole, loss) - getattr(without, loss), math.nan, math.nan, math.nan)
    return compare_log_perplexity(-getattr(without.sums, loss), -getattr(whole.sums, loss), whole.sums.positions)


@dataclass(frozen=True)
class Sensitivity:
    """Hold the losses of every part of a model, the worst first, and the loss with everything quantized."""

    by: str
    whole: Shift
    parts: tuple[PartLoss, ...]

    def rows(self) -> list[dict[str, Any]]:
        """Return a row for each part, for a CSV: losses in nats a token, with standard errors and 95 % intervals."""
        return [self._row(rank, loss) for rank, loss in enumerate(self.parts, 1)]

    def _row(self, rank: int, loss: PartLoss) -> dict[str, Any]:
        part, alone, without = loss.part, loss.alone, loss.without
        row: dict[str, Any] = {
            "rank": rank,
            "place": part.place,
            "by": self.by,
            "part": part.name,
            "layer": part.layer,
            "kind": part.kind,
            "modules": len(part.modules),
            "weights": part.weights,
            "formats": "; ".join(map(str, (_text(formats) for formats in part.formats))),
        }
        for name, shift in (("alone", alone), ("without", without), ("whole", self.whole)):
            for field in LOSSES:
                row |= {f"{field}_{name}": getattr(shift, field)}
                row |= {f"{field}_stderr_{name}": getattr(shift, f"{field}_stderr")}
                row |= _ends(f"{field}_{name}", interval_of(shift, field))
        for field in LOSSES:
            saved = saved_by(self.whole, without, field)
            row |= {f"{field}_saved": saved.difference} | _ends(f"{field}_saved", saved)
        return row | {"positions": alone.positions}


def measure(
    model: PreTrainedModel,
    recipe: Recipe,
    divergence: Divergence,
    by: str,
    prepared: Prepared,
    progress: Progress,
) -> Sensitivity:
    """Measure the losses of every part of what ``recipe`` quantizes.

    Args:
        model: unquantized, as ``divergence`` knows it; so it is afterwards.
        by: "module", "layer" or "kind": how linear layers are divided. Keys and values are a part each.
        prepared: what was worked out for the recipe.
        progress: called after each measurement.

    Raises:
        ConfigError: as :func:`mxsweep.model.quantize.quantize_model`.
    """
    parts = parts_of(model, recipe, by)
    operands = find_operands(model)
    nothing = dataclasses.replace(recipe, linear=LinearFormats(), modules=(), key=None, value=None)
    of_cache = _recipes_of_cache(recipe, nothing)
    done, total = 0, 2 * (len(parts) + len(of_cache)) + 1

    def measured() -> Shift:
        nonlocal done
        shift = divergence.measure()
        done += 1
        progress(done, total)
        return shift

    def measured_with(other: Recipe) -> Shift:
        with quantize_model(model, other, prepared=prepared):
            return measured()

    alone, without = {}, {}
    for part in parts:
        alone[part.name] = measured_with(dataclasses.replace(nothing, modules=tuple(part.modules.items())))
    with quantize_model(model, recipe, prepared=prepared):
        whole = measured()
        for part in parts:
            with left_out(model, [operands[name] for name in part.modules]):
                without[part.name] = measured()
    for name, (only, all_but) in of_cache.items():
        parts.append(Part(len(parts), name, None, name, {}))
        alone[name], without[name] = measured_with(only), measured_with(all_but)
    losses = [PartLoss(part, alone[part.name], without[part.name]) for part in parts]
    # NaN, which a block without a scale brings, is the worst.
    losses.sort(key=lambda loss: -math.inf if math.isnan(loss.alone.kl) else -loss.alone.kl)
    return Sensitivity(by, whole, tuple(losses))


def _recipes_of_cache(recipe: Recipe, nothing: Recipe) -> dict[str, tuple[Recipe, Recipe]]:
    """Return for keys and for values, where ``recipe`` quantizes them, the recipe of them alone and of all but them."""
    recipes = {}
    if recipe.key is not None:
        recipes["keys"] = dataclasses.replace(nothing, key=recipe.key), dataclasses.replace(recipe, key=None)
    if recipe.value is not None:
        recipes["values"] = dataclasses.replace(nothing, value=recipe.value), dataclasses.replace(recipe, value=None)
    return recipes


def parts_of(model: PreTrainedModel, recipe: Recipe, by: str) -> list[Part]:
    """Return the linear layers (and embeddings) that ``recipe`` quantizes as parts, in the model's order.

    An operand outside the decoder blocks, as an lm_head, is a part by itself; by module, those of one role in a
    layer's experts are one.
    """
    sites = find_sites(model, recipe)
    grouped: dict[str, list[Site]] = {}
    for site in sites:
        key = site.operand.group
        if site.operand.block is not None and by != "module":
            key = f"layer {site.operand.layer}" if by == "layer" else site.operand.kind
        grouped.setdefault(key, []).append(site)
    return [
        Part(
            place=place,
            name=key,
            layer=_only({site.operand.layer for site in group}),
            kind=_only({site.operand.kind for site in group}),
            modules={site.name: site.formats for site in group},
            weights=sum(site.operand.size for site in group),
        )
        for place, (key, group) in enumerate(grouped.items())
    ]


def _ends(name: str, measured: MeanDifference) -> dict[str, float]:
    return {f"{name}_low": measured.low, f"{name}_high": measured.high}


def _only(values: set[Any]) -> Any:
    return values.pop() if len(values) == 1 else None


def _text(formats: LinearFormats) -> str:
    return f"weights {formats.weight or 'as they are'}, inputs {formats.activation or 'as they are'}"
