"""Refuse values that cannot go together, though each alone is fine."""

from __future__ import annotations

from mxsweep.config.model_config import LISTENED_TO
from mxsweep.config.rules_config import THE_RUNS
from mxsweep.config.run_parts import RunParts
from mxsweep.config.training_combinations import check_training
from mxsweep.formats import microxcaling_problem
from mxsweep.formats.recipe import DYNAMIC, OF_A_MATRIX
from mxsweep.terminal.errors import ConfigError
from mxsweep.terminal.written_values import quoted, written

MOST_OF_A_TRANSFORM = 256  # channels: of an input of C channels the matrices take this many times C elements


def _check_budget(config: RunParts, budget: float) -> None:
    """Refuse a budget that no choice keeps, as far as that is known before the shapes are.

    Modules with formats of their own count, too, so that with any nothing can be said.
    """
    bits = [formats.weight.bits_per_element for formats in config.budget_formats.values() if formats.weight is not None]
    if not config.modules and budget < min(bits):
        raise ConfigError(
            f"ptq.budget: {budget:g} bits a weight cannot be kept with ptq.formats {', '.join(config.ptq.formats)}; "
            f"allowed: from {min(bits):g}, which is the least they take, to {max(bits):g}, the most"
        )


def _check_runtime(config: RunParts) -> None:
    """Refuse what a runtime does not do, beside formats, which are refused where they are made."""
    runtime = config.predicts
    if runtime is None:
        return
    if config.trains:
        raise ConfigError(
            f"runtime: {runtime.name!r} does not go with train={config.train.method}, whose recipe says what products "
            "compute; allowed with it: none"
        )
    if config.kv_quant.name != "none":
        raise ConfigError(
            f"kv_quant: {config.kv_quant.name} is nothing that runtime={runtime.name} computes, which has no keys and "
            "values in blocks; allowed with it: none"
        )
    if config.rotated_matmuls and not runtime.rotates:
        raise ConfigError(
            f"rotation: {config.rotation.method} is nothing that runtime={runtime.name} computes, which multiplies no "
            "inputs by Hadamard matrices; allowed with it: none, alone or with rotation.residual=true"
        )
    if config.transforms_inputs:
        raise ConfigError(
            f"rotation: wush is nothing that runtime={runtime.name} computes, which has one Hadamard matrix for all "
            "blocks; allowed with it: none, hadamard"
        )


def _check_transforms(config: RunParts) -> None:
    """Refuse blocks that are too long to have matrices of their own."""
    block = config.recipe.rotation.block if config.recipe.rotation is not None else 1
    if config.transforms_inputs and not 1 <= block <= MOST_OF_A_TRANSFORM:
        said = config.rotation_block if config.rotation_block == block else f"mx, which is {block} here,"
        raise ConfigError(
            f"rotation_block: {said} does not go with rotation=wush, where each block of each input has a matrix of "
            f"its own; allowed with it: 1 to {MOST_OF_A_TRANSFORM}"
        )


def _check_tensor_scales(config: RunParts) -> None:
    """Refuse words on per-tensor scales where there are none, or where tensors are those of a training.

    A format with such scales, of which a run has the other kind of tensor alone or none, is one part of a study of
    what costs what, to whose runs the words are given together: there they have no effect.
    """
    asked = (("share_tensor_scale", "weight", OF_A_MATRIX), ("activation_scale", "activation", DYNAMIC))
    for leaf, kind, usual in asked:
        value = config.further[f"format.{leaf}"]
        is_part = config.format.tensor_scale and getattr(config.format, kind) == "none"
        without = config.trains or not (config.has_tensor_scale(kind) or is_part)
        if value != usual and not config.is_baseline and without:
            raise ConfigError(
                f"format.{leaf}: {value!r} is of {kind}s with a per-tensor scale that are evaluated, and this run has "
                f"none; allowed with it: {usual}, or tensor_scale=true, as format=nvfp4 has it"
            )


def _check_search(config: RunParts) -> None:
    """Refuse rules of formats by which a search of scale roundings could not round all scales alike."""
    if not config.scale_roundings:
        return
    rules = (("scale_rounding", THE_RUNS), ("scale_emax", True))
    for rule, usual in rules:
        if (value := config.rules.values[rule]) != usual:
            raise ConfigError(
                f"format.{rule}: {quoted(value)} does not go with scale_rounding=search, which tries "
                f"{', '.join(config.scale_roundings)} for all tensors; allowed with it: {written(usual)}"
            )


def _check_finetuning(config: RunParts) -> None:
    """Refuse to finetune where no calibration sequence can be held back."""
    if config.quantizes_weights and config.ptq.start is not None and config.calibration.samples < 2:
        raise ConfigError(
            f"calibration.samples: {config.calibration.samples} does not go with ptq={config.ptq.method}, which trains "
            "on some sequences and checks on others; allowed with it: 2 or more"
        )


def _rounds_weights_stochastically(config: RunParts) -> bool:
    return config.rules.of("weight", config.rounding, config.scale_rounding)["rounding"] == "stochastic"


def check_combination(config: RunParts) -> None:
    """Raise ConfigError for values that cannot go together, though each alone is fine."""
    check_training(config)
    _check_runtime(config)
    _check_tensor_scales(config)
    _check_search(config)
    _check_transforms(config)
    _check_finetuning(config)
    if config.ptq.budget is not None:
        if not config.quantizes_weights:
            raise ConfigError(
                f"ptq.budget: {config.ptq.budget:g} is for the weights, and format={config.format.name} leaves them as "
                "they are; allowed with it: null"
            )
        _check_budget(config, config.ptq.budget)
    if config.kv_quant.name != "none" and config.model.attention not in LISTENED_TO:
        raise ConfigError(
            f"model.attention: {config.model.attention!r} does not go with kv_quant={config.kv_quant.name}, since "
            f"mxsweep cannot reach the keys and values of it; allowed with kv_quant: {', '.join(LISTENED_TO)}"
        )
    if config.quantizes_weights and config.ptq.is_solved and _rounds_weights_stochastically(config):
        raise ConfigError(
            f"rounding: 'stochastic' does not go with ptq={config.ptq.method}, which chooses each weight's value; "
            "allowed: nearest, even, floor, ties_to_zero"
        )
    if problem := config.recipe.kv.problem_with(config.recipe.key):
        raise ConfigError(problem)
    for fmt in config.formats():
        problem = microxcaling_problem(fmt, config.arithmetic) if config.backend == "microxcaling" else None
        if problem is not None:
            raise ConfigError(f"{problem.replace('backend ', 'backend: ', 1)} (asked for {fmt})")
    if config.backend == "cuda" and config.model.device in ("cpu", "mps") and not config.is_baseline:
        raise ConfigError(
            f"{config.backend_setting} needs a GPU, and model.device is {config.model.device!r}; allowed: auto, cuda"
        )
    if config.backend == "cuda" and config.arithmetic == "native":
        raise ConfigError("arithmetic: 'native' is not what the CUDA kernels compute; allowed: auto, exact")
