"""Put a recipe into a model, and take it out again.

While it is in, each operand that the recipe changes is multiplied by an MX layer that stands in for its module, and
attention reads quantized keys and values. Originals are kept and never changed, so that taking the recipe out is exact.
Where a GPU has no room for both, the original weights wait in host memory meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext

from torch import Tensor, nn
from transformers import PreTrainedModel

from mxsweep.formats.recipe import Recipe
from mxsweep.model.attention import STATE, KVQuantizer, quantized_attention
from mxsweep.model.cache_shape import cache_layers
from mxsweep.model.coverage import Stored
from mxsweep.model.experts import MXExperts, stand_in_for
from mxsweep.model.input_maxima import fixed_maxima
from mxsweep.model.latents import holds_latents
from mxsweep.model.linear import InputQuantizer, MXLinear, stochastic_key
from mxsweep.model.observer import Observer
from mxsweep.model.offload import OffloadedWeights, parameters_without_room
from mxsweep.model.operands import Operand, find_operands, find_places
from mxsweep.model.positions import most_positions
from mxsweep.model.prepared import Prepared
from mxsweep.model.probe import probe_pass, refusing_unreached
from mxsweep.model.quantization_report import QuantizationReport
from mxsweep.model.quantized_weights import layer_reports, quantize_weight
from mxsweep.model.rotated_products import RotatedProducts
from mxsweep.model.shared_scales import shared_maxima
from mxsweep.model.sites import Site, find_sites
from mxsweep.numerics import PendingStatistics

NOTHING_PREPARED = Prepared()


@contextmanager
def quantize_model(
    model: PreTrainedModel,
    recipe: Recipe,
    *,
    prepared: Prepared = NOTHING_PREPARED,
    compare_exact: bool = False,
    keep_weights: bool = False,
    measure: bool = True,
) -> Iterator[QuantizationReport]:
    """Put ``recipe`` into ``model`` while the context lasts; afterwards the model is bit for bit as before.

    For inference: gradients reach the inputs (straight through), not the weights, which are quantized once.

    Args:
        model: a Hugging Face causal language model with linear layers, or experts of a declared layout, in its blocks.
        recipe: what each kind of tensor becomes.
        prepared: what was worked out for this recipe on calibration data, and takes the place of rounding to nearest.
        compare_exact: whether the statistics count the weights that exact arithmetic would have given another value.
        keep_weights: whether weights stay as they are, in the basis that the recipe says: for working something out.
        measure: whether there are block statistics, which take several times as long as the weights.

    Yields:
        What was replaced, with the block statistics of every quantized weight.

    Raises:
        ConfigError: a pattern of ``recipe.modules`` that matches nothing, a model without linear layers in its
            blocks, weights that were offloaded, attention whose keys and values cannot be reached, or inputs that are
            rounded stochastically and do not tell which example they are of. While the context lasts, a pass raises it
            that goes through modules which a short text does not reach.
        ValueError: weights that were prepared for what the model does not have; a rotation with matrices of each
            input's own, of which one was not prepared.
    """
    sites = find_sites(model, recipe, prepared.input_transforms)
    if prepared.weights and (unknown := sorted(prepared.weights.keys() - find_operands(model).keys())):
        raise ValueError(f"prepared.weights: no operand of {type(model).__name__} has the name {unknown[0]}")
    cached = cache_layers(model)
    stored, rotated = Stored.of(model, sites, recipe), RotatedProducts.of(sites, recipe)
    maxima = {} if keep_weights else shared_maxima(sites, recipe)
    inputs = InputQuantizer(recipe, fixed_maxima(sites, recipe, prepared))
    measured: list[PendingStatistics | None] = []
    # A parameter may hold several matrices: it can leave with the last of them.
    last_in = {(site.operand.module_name, id(site.operand.parameter)): site for site in sites}
    offloaded = OffloadedWeights(parameters_without_room(model, sites))
    with (
        inputs.following(model),
        nullcontext() if recipe.is_baseline else refusing_unreached(model),
        quantized_attention(
            model, recipe, lambda name: stochastic_key(recipe.seed, name), prepared.key_factors
        ) as attention,
    ):
        try:
            for site in sites:
                if keep_weights:
                    weight_mx, statistics = site.weight(), None
                else:
                    weight_mx, statistics = quantize_weight(
                        site, recipe, compare_exact, prepared.weights.get(site.name), maxima.get(site.name), measure
                    )
                _stand_in(model, site, weight_mx, inputs)
                if last_in[site.operand.module_name, id(site.operand.parameter)] is site:
                    offloaded.send_to_host(site.operand.parameter)
                measured.append(statistics)
            if inputs.draws and any(site.formats.activation for site in sites):
                probe_pass(model, examples=2)  # refuses inputs whose random numbers would depend on the batch
            layers = layer_reports(sites, measured, prepared.weights)
            latents = sum(holds_latents(model.get_submodule(name)) for name in attention)
            places = find_places(model, attention)
            yield QuantizationReport.of(
                recipe, layers, places, stored, offloaded.bytes, latents, rotated, cached, most_positions(model)
            )
        finally:
            inputs.forget()
            for site in sites:
                _put(model, site.operand.module_name, site.operand.module)
            offloaded.bring_back()  # the replacements are freed by now


@contextmanager
def left_out(model: PreTrainedModel, operands: Sequence[Operand]) -> Iterator[None]:
    """Leave ``operands`` as they were, in a quantized model, while the context lasts.

    Args:
        operands: as found before the model was quantized.
    """
    alone = [operand for operand in operands if operand.is_alone]
    replacements = {operand.name: model.get_submodule(operand.name) for operand in alone}
    moved: list[tuple[nn.Parameter, Tensor]] = []
    try:
        for operand in alone:
            quantized, parameter = next(replacements[operand.name].buffers(), None), operand.parameter
            if quantized is not None and parameter.device != quantized.device:  # no room: it waits in host memory
                moved.append((parameter, parameter.data))
                parameter.data = parameter.data.to(quantized.device)
            _put(model, operand.name, operand.module)
        with ExitStack() as stack:
            for operand in operands:
                if not operand.is_alone:
                    stand_in = model.get_submodule(operand.module_name)
                    if isinstance(stand_in, MXLinear | MXExperts):
                        stack.enter_context(stand_in.left_out(operand.name, operand.weight))
            yield
    finally:
        for parameter, data in moved:
            parameter.data = data
        for name, module in replacements.items():
            _put(model, name, module)


def _stand_in(model: nn.Module, site: Site, weight_mx: Tensor, inputs: InputQuantizer) -> None:
    """Have a quantized weight stand in for a site's: in a module of its own, or among the matrices of a module."""
    operand, name = site.operand, site.operand.module_name
    if isinstance(operand.module, nn.Embedding):
        embedding = nn.Embedding.from_pretrained(weight_mx, padding_idx=operand.module.padding_idx)
        _put(model, name, embedding.train(operand.module.training))
        return
    stand_in = model.get_submodule(name)
    if stand_in is operand.module:
        of_experts = operand.expert is not None
        stand_in = stand_in_for(stand_in, inputs) if of_experts else MXLinear(stand_in, operand.of_module, inputs)
        _put(model, name, stand_in)
    changed = weight_mx if site.rotation is not None or site.formats.weight is not None else None
    assert isinstance(stand_in, MXLinear | MXExperts)
    stand_in.put(site.name, operand.matrix, changed, site.formats.activation, site.basis)


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


@contextmanager
def observed(model: PreTrainedModel, observer: Observer) -> Iterator[None]:
    """Tell ``observer`` of every input, key and value that a quantized model quantizes, while the context lasts."""
    quantizers: list[InputQuantizer | KVQuantizer] = []
    for module in model.modules():
        quantizer = module.inputs if isinstance(module, MXLinear | MXExperts) else getattr(module, STATE, None)
        if isinstance(quantizer, InputQuantizer | KVQuantizer):
            quantizers.append(quantizer)
    try:
        for quantizer in quantizers:
            quantizer.observer = observer
        yield
    finally:
        for quantizer in quantizers:
            quantizer.observer = None
