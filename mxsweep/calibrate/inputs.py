"""Work out what the per-tensor scales of inputs are made from, on calibration data: the largest magnitudes there.

The model reads the calibration sequences as it is, unquantized, in the basis in which inputs are quantized.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mxsweep.calibrate.workbench import Workbench
from mxsweep.formats.recipe import DYNAMIC, LinearFormats, Recipe
from mxsweep.forward.batches import BatchLimits, Passage, batch_tokens_on
from mxsweep.forward.engine import Engine
from mxsweep.forward.sequence_loss import TOO_LONG
from mxsweep.model.experts import MXExperts
from mxsweep.model.input_maxima import has_scale
from mxsweep.model.linear import MXLinear
from mxsweep.model.prepared import Prepared
from mxsweep.model.quantize import NOTHING_PREPARED, quantize_model
from mxsweep.model.sites import find_sites
from mxsweep.terminal.errors import ConfigError


def calibrate_inputs(bench: Workbench) -> None:
    """Work out what the per-tensor scales of inputs are made from."""
    model, recipe = bench.model, bench.result.recipe
    artefact = bench.artefact("input_maxima", recipe)
    with artefact.lock(), bench.accounted("inputs", [artefact]) as account:
        maxima = artefact.load("maxima")
        account["cached"] = maxima is not None
        if maxima is None:
            maxima = measure_input_maxima(model, recipe, lambda: read_calibration(bench), bench.result.prepared)
            artefact.save("maxima", maxima)
        account["largest"] = max((float(maximum) for maximum in maxima.values()), default=0.0)
    for site in find_sites(model, recipe):
        maximum = maxima.get(site.input_name)
        if has_scale(site) and (maximum is None or not maximum.isfinite()):
            what = "is read by no calibration token" if maximum is None else "is not finite on the calibration tokens"
            raise ConfigError(
                f"format.activation_scale: the input of {site.name} {what}; allowed: dynamic, a number, or more "
                "calibration.samples"
            )
    bench.result.prepared = replace(bench.result.prepared, input_maxima=maxima)


def read_calibration(bench: Workbench) -> None:
    """Have the model read the calibration sequences as it is now, for what listens to its layers."""
    engine = Engine(bench.model, BatchLimits(batch_tokens_on(bench.model.device), padded=False), TOO_LONG)
    engine.decode([Passage(sequence) for sequence in bench.sequences])


@torch.no_grad()
def measure_input_maxima(
    model: PreTrainedModel, recipe: Recipe, read: Callable[[], object], prepared: Prepared = NOTHING_PREPARED
) -> dict[str, Tensor]:
    """Return the largest magnitude of every input that gets a per-tensor scale, in the basis in which it is quantized.

    Args:
        model: unquantized, as it is while it reads, but for rotations.
        read: has the model read the calibration sequences, without padding.
        prepared: with the matrices that inputs are multiplied by, where the recipe has any.

    Returns:
        float32 scalars in host memory, by :attr:`Site.input_name`; NaN where a NaN was read. An input that nothing
        reached is not there.
    """
    wanted = {site.name: site for site in find_sites(model, recipe) if has_scale(site)}
    seen: dict[str, Tensor] = {}

    def note(name: str, x: Tensor) -> None:
        if name in wanted and x.numel():
            largest, key = x.abs().amax().float(), wanted[name].input_name
            seen[key] = torch.maximum(seen[key], largest.to(seen[key].device)) if key in seen else largest

    def note_experts(_: str, reads: Sequence[tuple[tuple[str, ...], Tensor]]) -> None:
        for names, rows in reads:
            for name in names:
                note(name, rows)

    with quantize_model(
        model, weights_alone(recipe), prepared=Prepared(input_transforms=prepared.input_transforms), keep_weights=True
    ):
        for name, site in wanted.items():
            module = model.get_submodule(site.operand.module_name)
            if isinstance(module, MXLinear):
                module.taps[name] = partial(note, name)
            elif isinstance(module, MXExperts):
                module.tap = note_experts
        read()
    return {name: largest.to("cpu") for name, largest in seen.items()}


def weights_alone(recipe: Recipe) -> Recipe:
    """Return a recipe of the same operands that leaves inputs, keys and values as they are, but for rotations."""

    def alone(formats: LinearFormats) -> LinearFormats:
        return LinearFormats(weight=formats.weight or formats.activation)

    modules = tuple((pattern, alone(formats)) for pattern, formats in recipe.modules)
    return replace(recipe, linear=alone(recipe.linear), modules=modules, key=None, value=None, activation_scale=DYNAMIC)
