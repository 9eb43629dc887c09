"""Check a packed checkpoint against the run that it was written of.

Its files hold the run's weights bit for bit, read by mxsweep and, where it is installed, by the library of the target;
the model that is loaded from them answers with the run's logits bit for bit; and it scores the run's own rows as the
record says. Where one of these is not so, something is wrong; but the last is not so either where a machine adds up in
another order than the one that the run was on, and so it is said, and no error.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel

from mxsweep.calibrate.workbench import Preparation
from mxsweep.config.run_config import RunConfig
from mxsweep.export.folder import read_tensors, read_weights, target_module
from mxsweep.formats.export_targets import GGUF
from mxsweep.formats.recipe import Recipe
from mxsweep.model.attention_choice import transformers_name
from mxsweep.model.exported import load_state, state_of
from mxsweep.model.input_maxima import fixed_maxima
from mxsweep.model.load import LoadedModel, resolve_device
from mxsweep.model.operands import Operand
from mxsweep.model.prepared import Prepared
from mxsweep.model.quantize import quantize_model
from mxsweep.model.quantized_weights import quantize_weight
from mxsweep.model.shared_scales import shared_maxima
from mxsweep.model.sites import find_sites
from mxsweep.model.special_tokens import with_special_tokens
from mxsweep.numerics import Encoded, decode
from mxsweep.runs.evaluator import evaluator_of, load_configured_tasks
from mxsweep.runs.foreign_loader import compare_with_loader
from mxsweep.runs.gguf_loader import compare_with_packages
from mxsweep.runs.packed_model import PackedModel, stored_layer
from mxsweep.terminal.errors import ConfigError
from mxsweep.terminal.progress_callback import Progress

SAMPLE = (2, 48)  # sequences and tokens that logits are compared on


@dataclass(frozen=True)
class Reference:
    """Hold what a run's model is, to compare with: how it is quantized, its weights, and its answer.

    Attributes:
        prepared: what was worked out for the recipe, without weights.
        ids: (B, T) tokens.
        logits: (B, T, V) of the run's model to them, on the CPU.
        packed: what was written.
    """

    recipe: Recipe
    prepared: Prepared
    ids: Tensor
    logits: Tensor
    packed: PackedModel


@torch.no_grad()
def reference_of(model: PreTrainedModel, preparation: Preparation, packed: PackedModel) -> Reference:
    """Return what to compare with, of a run's model in the basis in which it is evaluated.

    Raises:
        RuntimeError: codes that do not stand for the weights that the run multiplies by, which is a fault of mxsweep.
    """
    recipe, prepared = preparation.recipe, preparation.prepared
    sites = find_sites(model, recipe)
    maxima = shared_maxima(sites, recipe)
    for site in sites:
        chosen = prepared.weights.get(site.name)
        weight = quantize_weight(site, recipe, False, chosen, maxima.get(site.name), measure=False)[0].cpu()
        whole = decode(packed.weights[stored_layer(site.operand, model)].encoded)
        if not same_values(_rows(site.operand, whole), weight):
            raise RuntimeError(f"the codes of {site.name} do not stand for the run's weight")
    ids = sample_ids(model)
    # By the codes, which stand for the run's weights: rounding these again takes longer than reading them.
    codes = _by_operand(model, recipe, {name: weight.encoded for name, weight in packed.weights.items()})
    with quantize_model(model, recipe, prepared=replace(prepared, weights=codes), measure=False):
        logits = model(input_ids=ids, use_cache=False).logits.cpu()
    return Reference(recipe, replace(prepared, weights={}), ids.cpu(), logits, packed)


def sample_ids(model: PreTrainedModel) -> Tensor:
    """Return tokens (B, T), the same ones always."""
    generator = torch.Generator().manual_seed(0)
    vocabulary = int(model.config.get_text_config().vocab_size)
    return torch.randint(0, vocabulary, SAMPLE, generator=generator).to(model.device)


def same_values(one: Tensor, other: Tensor) -> bool:
    """Return whether tensors are equal in shape, dtype and every value."""
    return one.dtype == other.dtype and torch.equal(one, other)


@torch.no_grad()
def verify_export(
    config: RunConfig, record: dict[str, Any], folder: Path, target: str, reference: Reference, progress: Progress
) -> dict[str, Any]:
    """Check a checkpoint; return what was found, for ``export.json``.

    Args:
        config: that the run evaluated its model with.
        target: whose loaders read the checkpoint.

    Raises:
        ConfigError: the files do not hold the run's model, or it answers otherwise.
    """
    weights, plain = read_weights(folder)
    found: dict[str, Any] = {"weights": _check_weights(weights, plain, reference.packed)}
    loaded = _load(config, folder, weights, plain)
    ids = reference.ids.to(loaded.model.device)
    by_operand = _by_operand(loaded.model, reference.recipe, weights)
    prepared = replace(reference.prepared, weights=by_operand)
    sites = find_sites(loaded.model, reference.recipe)
    maxima = fixed_maxima(sites, reference.recipe, prepared)
    by_layer = {stored_layer(site.operand, loaded.model): maxima[site.name] for site in sites if site.name in maxima}
    if scales := _check_input_scales(folder, target, reference.packed, by_layer):
        found["input_scales"] = scales
    with quantize_model(loaded.model, reference.recipe, prepared=prepared, measure=False):
        logits = loaded.model(input_ids=ids, use_cache=False).logits.cpu()
        if not torch.equal(logits, reference.logits):
            largest = float((logits.float() - reference.logits.float()).abs().max())
            raise ConfigError(f"export: what was written answers with other logits than the run, by up to {largest:g}")
        tokens, words = logits.shape[:-1].numel(), logits.shape[-1]
        found["logits"] = (
            f"{logits.numel():,} logits ({words:,} at each of {tokens:,} tokens) are the run's bit for bit"
        )
        if config.task.names:
            evaluator = evaluator_of(config, load_configured_tasks(config), loaded)
            evaluator.lm.warm_up(reference.recipe)
            found["metrics"] = compare_metrics(evaluator.evaluate(config, progress).metrics, record["metrics"])
    # Loaded anew: a model that is cast to bfloat16 has its rotary frequencies cast, too.
    arguments = {"dtype": torch.bfloat16, **_attention(config)}
    ours = load_state(folder, state_of(weights, plain), arguments, _code(config))[0].eval()
    options = {**_attention(config), **_code(config)}
    if target == GGUF:
        found["loader"] = compare_with_packages(folder, ours, weights, reference.ids, options)
    else:
        found["loader"] = compare_with_loader(folder, target, ours, reference.recipe, prepared, reference.ids, options)
    return found


def compare_metrics(found: Mapping[str, Mapping[str, Any]], recorded: Mapping[str, Mapping[str, Any]]) -> str:
    """Say whether the metrics of tasks are the record's."""
    differing = []
    for task, metrics in found.items():
        for name, value in metrics.items():
            before = recorded.get(task, {}).get(name)
            if before != value and not (before != before and value != value):
                differing.append(f"{task} {name} {before} -> {value}")
    if not differing:
        return "the run's to the last digit"
    return f"not the record's to the last digit: {'; '.join(differing)}"


def _check_weights(weights: Mapping[str, Encoded], plain: Mapping[str, Tensor], packed: PackedModel) -> str:
    elements = 0
    for name, weight in packed.weights.items():
        if name not in weights or not same_values(decode(weights[name]), decode(weight.encoded)):
            raise ConfigError(f"export: what was written for {name} does not stand for the run's weight")
        elements += weight.encoded.codes.numel()
    if plain.keys() != packed.plain.keys() or not all(same_values(plain[key], packed.plain[key]) for key in plain):
        raise ConfigError("export: tensors that were not quantized are not what was written")
    return f"0 of {elements:,} quantized weights differ, nor any of {sum(t.numel() for t in plain.values()):,} others"


def _check_input_scales(folder: Path, target: str, packed: PackedModel, maxima: Mapping[str, Tensor]) -> str | None:
    """Say that the numbers over scales of inputs are stored as the run has them; None where there are none.

    Args:
        maxima: what each layer's number is made from, where it is fixed.

    Raises:
        ConfigError: one is not, or does not bring the largest magnitude to where the largest block scale is.
    """
    expected = {name: weight for name, weight in packed.weights.items() if weight.input_scale is not None}
    if not expected:
        return None
    stored, module = read_tensors(folder), target_module(target)
    for name, weight in expected.items():
        number, activation = module.input_scale(name, stored), weight.formats.activation
        assert activation is not None and weight.input_scale is not None
        if number is None or not math.isclose(number, weight.input_scale, rel_tol=2**-23):
            raise ConfigError(
                f"export: the input of {name} is stored with {number}, and the run has {weight.input_scale}"
            )
        maximum = float(maxima[name]) if name in maxima else 0.0
        bound = activation.scale_format.largest * activation.element_format.largest
        if maximum > 0 and not 0.5 < number * maximum / bound < 2:  # not 1: rules round, and four_over_six leaves room
            raise ConfigError(
                f"export: the input of {name} is stored with {number:g}, and its maximum {maximum:g} needs about "
                f"{bound / maximum:g}"
            )
    return f"{len(expected)} layers have the run's scale of the input's tensor"


def _load(config: RunConfig, folder: Path, weights: Mapping[str, Encoded], plain: Mapping[str, Tensor]) -> LoadedModel:
    """Return the model of a checkpoint, its weights those that codes stand for, rotated ones as they are stored."""
    loaded = load_state(folder, state_of(weights, plain), {"dtype": "auto", **_attention(config)}, _code(config))[0]
    torch.nn.Module.to(loaded, resolve_device(config.model.device)).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=config.model.trust_remote_code)
    return LoadedModel(loaded, with_special_tokens(tokenizer, config.model.add_bos_token))


def _attention(config: RunConfig) -> dict[str, Any]:
    return {"attn_implementation": transformers_name(config.model.attention)}


def _code(config: RunConfig) -> dict[str, Any]:
    return {"trust_remote_code": config.model.trust_remote_code}


def _by_operand(model: PreTrainedModel, recipe: Recipe, weights: Mapping[str, Encoded]) -> dict[str, Encoded]:
    """Return codes and scales by operand; those of a matrix in a fused weight are cut out of it."""
    return {
        site.name: _cut(site.operand, weights[stored_layer(site.operand, model)]) for site in find_sites(model, recipe)
    }


def _cut(operand: Operand, encoded: Encoded) -> Encoded:
    """Return the rows of one matrix; a scale of the whole tensor is that of all."""
    rows: dict[str, Any] = {
        name: _rows(operand, tensor) for name, tensor in encoded.tensors().items() if name != "tensor_scale"
    }
    return replace(encoded, **rows)


def _rows(operand: Operand, stored: Tensor) -> Tensor:
    """Return the rows of an operand's matrix in what a checkpoint stores of its layer; of an expert's that is all."""
    return stored if operand.is_alone or operand.expert is not None else operand.matrix.of(stored)
