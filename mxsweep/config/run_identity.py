"""Identify a run by all that decides its result, and derive the hash and the id.

The identity is of formats, not of knobs, so that runs that mean the same are the same run. Nothing without an effect is
in it: no path, device index, batch or label; of a baseline, nothing of formats. Each knob says in the table which entry
it decides, with others (`PLACES`), or, as every knob that is added may, stands there by itself under its path, unless
it is off or without effect.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from typing import Any

from mxsweep.config import knobs
from mxsweep.config.calibration_data import calibration_identity
from mxsweep.config.checks import file_digest
from mxsweep.config.knob import UNSET, Scope
from mxsweep.config.knob_defaults import defaults
from mxsweep.config.kv_options import kv_option
from mxsweep.config.recorded_config import values_of
from mxsweep.config.run_parts import RunParts
from mxsweep.config.runtimes import NO_RUNTIME
from mxsweep.config.training_data import corpus_identity, init_identity
from mxsweep.config.weight_methods import ROUND_TO_NEAREST
from mxsweep.formats import MXFormat, numerics_versions
from mxsweep.formats.recipe import KVOptions, LinearFormats
from mxsweep.formats.training import FIXED, HIGH_PRECISION, LayerFormats
from mxsweep.machine.gpus import device_type

# Of the remedies' answers (calibration, searched scales, GPTQ, rotations): raised whenever those of most models change.
# It is part of the hash of every run that has one, and of the key of everything that is cached of them; what is cached
# has a version of its own besides, for changes that leave most runs what they were.
REMEDIES_VERSION = 1
WUSH_RULE = 1  # which matrices come of a model and its calibration data: raised with them, for runs with these alone
SEARCH_RULE = 4  # which words a search looks at, and what it keeps: raised whenever it changes, for searches alone
TRAINING_VERSION = 1  # raised whenever the same config comes to another trained model
MOST_OF_A_NAME = 40  # characters of a format in a run's id

Entries = dict[str, Any]


def identity_of(config: RunParts) -> Entries:
    """Return what determines a run's result; plain data.

    Raises:
        ConfigError: a file of the model or of the data vanished or cannot be read.
    """
    entries = _entries(config, OF_EVERY_RUN) | entries_alone(config, Scope.BASELINE)
    entries["quantized"] = None
    if not config.is_baseline:
        remedies = _entries(config, OF_REMEDIES)
        version = {"remedies": REMEDIES_VERSION} if remedies else {}
        formats = formats_entries(config) | _entries(config, OF_TRAINING)
        entries["quantized"] = formats | remedies | version | entries_alone(config, Scope.RUN)
    plain: Entries = json.loads(json.dumps(entries))
    return plain


def _entries(config: RunParts, places: dict[str, Callable[[RunParts], Entries]]) -> Entries:
    return {name: value for entries in places.values() for name, value in entries(config).items()}


def entries_alone(config: RunParts, scope: Scope) -> Entries:
    """Return the knobs that stand in an identity by themselves: those that are neither off nor without effect.

    A knob that no typed part has a field for stands by itself whatever its place says: the makers of the places read
    fields, so that two of the knob's values would otherwise be one run.
    """
    values = values_of(config)
    return {
        knob.path: values[knob.path]
        for knob in knobs.all_knobs()
        if knob.scope is scope and (knob.place is None or knob.path in config.further) and knob.path in values
        if (knob.off is UNSET or values[knob.path] != knob.off) and knob.effect(values)
    }


def _model_entries(config: RunParts) -> Entries:
    if config.trains and config.init.is_random:  # no weights are loaded
        return {"model": {"init": init_identity(config.init, config.corpus), "dtype": config.model.dtype}}
    return {"model": config.model.identity()}


def _attention_entries(config: RunParts) -> Entries:
    # transformers picks sdpa wherever it can be asked for, and eager where asking for sdpa is refused
    # (PreTrainedModel.get_correct_attn_implementation): no two results have one hash, and runs of versions whose
    # default was sdpa stay the runs that they were. Loading refuses a model that picks otherwise.
    attention = config.model.attention
    return {"attention": "sdpa" if attention == "auto" else attention}


def _length_entries(config: RunParts) -> Entries:
    return {"max_length": config.model.max_length}


def _device_entries(config: RunParts) -> Entries:
    # Spread over GPUs; where it is planned, as on a cluster's login node, there may be none.
    return {"device": "cuda" if config.model.device_map else device_type(config.model.device)}


def _task_entries(config: RunParts) -> Entries:
    task = config.task
    return {"task": [task.names, task.num_fewshot, task.apply_chat_template]}


def _data_entries(config: RunParts) -> Entries:
    return {"data": {name: file_digest(file) for name, file in config.task.data.items()}}


def _own_task_entries(config: RunParts) -> Entries:
    task = config.task
    files = {name: task.own.digests(name) for name in task.own_names} if task.own is not None else {}
    return {"own_tasks": files} if files else {}


def formats_entries(config: RunParts) -> Entries:
    """Return what all knobs of formats decide together: the format of each kind of tensor, and who computes."""
    recipe = config.recipe
    layers = (("", recipe.linear), *recipe.modules)  # no module has the name ""
    return {
        "layers": [[name, *_linear_texts(formats)] for name, formats in layers],
        "kv": [format_text(recipe.key), format_text(recipe.value)],
        "computed": [recipe.backend, recipe.arithmetic, *numerics_versions(recipe.formats())],
    }


def training_entries(config: RunParts) -> Entries:
    """Return what the operands of each product become while the model is trained; nothing where none is."""
    if not config.trains:
        return {}
    recipe = config.training_recipe
    layers = (("", recipe.linear), *recipe.modules)
    products = [product for _, formats in layers for product in (formats.fprop, formats.dgrad, formats.wgrad)]
    operands = [operand for product in products for operand in (product.first, product.second)]
    versions = numerics_versions(operand.fmt for operand in operands if operand is not None)[1:]
    requantizes = any(not formats.fprop.is_plain for _, formats in layers)
    return {
        "training": {
            "layers": [[name, *_layer_texts(formats)] for name, formats in layers],
            "kept": sorted(set(recipe.keep_high)),
            "backward": recipe.backward if requantizes else HIGH_PRECISION,
            "signs": recipe.signs if any(product.hadamard for product in products) else FIXED,
            **({"heldout": "by token"} if any(formats.input_tile for _, formats in layers) else {}),
            **({"stochastic": versions} if versions else {}),
        }
    }


def _layer_texts(formats: LayerFormats) -> list[Any]:
    products = (formats.fprop, formats.dgrad, formats.wgrad)
    return [[*(operand and str(operand) for operand in (one.first, one.second)), one.hadamard] for one in products]


def train_entries(config: RunParts) -> Entries:
    """Return how the model is trained, on what, and from which weights; nothing where it is not trained."""
    if not config.trains:
        return {}
    values = values_of(config)
    train = {
        knob.path.removeprefix("train."): values[knob.path]
        for knob in knobs.leaves("train")
        if knob.scope is Scope.BASELINE and knob.path in values and knob.effect(values)
    }
    train |= {"tokens": None, "steps": config.train.total_steps}
    return {"train": {**train, "corpus": corpus_identity(config.corpus), "version": TRAINING_VERSION}}


def _kv_entries(config: RunParts) -> Entries:
    options = config.recipe.kv
    return {} if options == KVOptions() else {"kv_options": options.as_dict()}


def _rotation_entries(config: RunParts) -> Entries:
    entries: Entries = {}
    if config.recipe.rotation is not None:
        entries["rotation"] = config.recipe.rotation.as_dict()
    if config.transforms_inputs:
        entries["wush_rule"] = WUSH_RULE
    if config.candidates:
        entries["rotation_search"] = [candidate.as_dict() for candidate in config.candidates]
    if config.scale_roundings:
        entries["scale_rounding_search"] = list(config.scale_roundings)
    if config.searches:
        entries["rotation_judge"], *confirming = config.judges
        if confirming:
            entries["search_confirmed_by"] = confirming
        entries["search_positions"] = config.rotation.positions
        entries["search_rule"] = SEARCH_RULE
    if config.rotation.residual:
        entries["residual"] = True
    return entries


def _ptq_entries(config: RunParts) -> Entries:
    ptq = config.ptq.as_dict()
    if not config.quantizes_weights or ptq == {"method": ROUND_TO_NEAREST}:
        return {}
    if config.ptq.budget is not None:
        ptq["formats"] = [[name, *_linear_texts(formats)] for name, formats in config.budget_formats.items()]
    return {"ptq": ptq | config.ptq.rule}


def _calibration_entries(config: RunParts) -> Entries:
    return {"calibration": calibration_identity(config.calibration)} if config.needs_calibration else {}


# What knobs decide together, by the place that the table gives them.
OF_EVERY_RUN: dict[str, Callable[[RunParts], Entries]] = {
    "model": _model_entries,
    "attention": _attention_entries,
    "max_length": _length_entries,
    "device": _device_entries,
    "task": _task_entries,
    "data": _data_entries,
    "own_tasks": _own_task_entries,
    "train": train_entries,
}
OF_REMEDIES: dict[str, Callable[[RunParts], Entries]] = {
    "kv_options": _kv_entries,
    "rotation": _rotation_entries,
    "ptq": _ptq_entries,
    "calibration": _calibration_entries,
}
OF_TRAINING: dict[str, Callable[[RunParts], Entries]] = {"training": training_entries}
PLACES = {*OF_EVERY_RUN, *OF_REMEDIES, *OF_TRAINING, "formats", "the knobs that it sets"}


def _linear_texts(formats: LinearFormats) -> list[str | None]:
    return [format_text(formats.weight), format_text(formats.activation)]


def format_text(fmt: MXFormat | None) -> str | None:
    """Return one text for formats whose answers are the same, beyond what MXFormat makes equal by itself."""
    if fmt is None:
        return None
    if fmt.scale_rounding == "rceil" and fmt.element_format.mantissa_bits == 0:
        fmt = dataclasses.replace(fmt, scale_rounding="ceil")  # they differ where the largest is no power of two
    if isinstance(fmt.block_size, tuple) and fmt.block_size[0] == 1:
        fmt = dataclasses.replace(fmt, block_size=fmt.block_size[1])  # only weights have tiles, and blocks in rows
    return str(fmt)


def run_id(config: RunParts, stamp: str, config_hash: str) -> str:
    """Return a name for the run's folder, such as ``20260207_220640_w4a6_kvfp4e2m1_bs16_sb6_ccfalse_3fa91c04``.

    When, formats, the habitual knobs, and the beginning of the hash. Keys and values that stay as they are go unsaid,
    and so do a runtime of none and the usual seed.
    Of a run that trains: when, how it trains, its recipe, its seed, and the beginning of the hash.
    """
    if config.trains:
        recipe = _in_file_name(config.recipe_label)
        return "_".join([stamp, config.train.method, recipe, f"s{config.seed}", config_hash[:8]])
    size = config.format.block_size
    block = "x".join(map(str, size)) if isinstance(size, tuple) else size
    modules = "+modules" if any(formats != LinearFormats() for _, formats in config.recipe.modules) else ""
    runtime = [] if config.runtime == NO_RUNTIME else [_in_file_name(config.runtime)]
    kv = [] if config.kv_quant.name == "none" else [f"kv{_in_file_name(_kv_name(config))}"]
    habitual = [f"bs{block}", f"sb{config.scale_bits}", f"cc{str(config.custom_cuda).lower()}"]
    seed = [] if config.seed == defaults()["seed"] else [f"s{config.seed}"]
    format_name = _in_file_name(config.format.name) + modules
    return "_".join([stamp, format_name, *runtime, *kv, *habitual, *seed, config_hash[:8]])


def _kv_name(config: RunParts) -> str:
    return kv_option(values_of(config)) or config.kv_quant.name


def _in_file_name(name: str) -> str:
    """Return a format's name as any file system takes it, without what separates the parts of a run's id."""
    return re.sub(r"[^A-Za-z0-9.-]", "", name.replace(",", "-"))[:MOST_OF_A_NAME] or "format"
