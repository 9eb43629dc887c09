"""Refuse values of a training that cannot go together, or have no effect where somebody surely meant one."""

from __future__ import annotations

from mxsweep.config.rules_config import SEARCHED
from mxsweep.config.run_parts import RunParts
from mxsweep.config.train_config import FINETUNE, FROM_SCRATCH
from mxsweep.config.train_knobs import NO_RECIPE, PLAIN_RECIPE
from mxsweep.config.weight_methods import ROUND_TO_NEAREST
from mxsweep.formats.training import LayerFormats
from mxsweep.terminal.errors import ConfigError
from mxsweep.terminal.written_values import quoted

TRAINS = "train=from_scratch or finetune"


def check_training(config: RunParts) -> None:
    """Raise ConfigError for values of a training that cannot go together, or that no training is there for."""
    if not config.trains:
        _check_untrained(config)
        return
    _check_length_of_training(config)
    _check_weights(config)
    _check_evaluation(config)
    _check_device(config)
    for pattern, formats in (("", config.matmuls.linear), *config.matmuls.modules.items()):
        where = f" of modules[{pattern}]" if pattern else ""
        _check_sequences(config.train.length, formats, where)
        _check_prescales(config.backend, formats, where)


def _check_untrained(config: RunParts) -> None:
    if not config.task.names:
        raise ConfigError(f"task: [] must be one or more names of lm-eval tasks; task=none goes with {TRAINS}")
    if config.recipe_name not in (NO_RECIPE, PLAIN_RECIPE):
        raise ConfigError(
            f"recipe: {config.recipe_name!r} is of a training, and train=none trains nothing; add {TRAINS}, or choose "
            "formats by format="
        )
    if path := config.matmuls.first_set:
        raise ConfigError(f"{path}: is of a training, and train=none trains nothing; add {TRAINS}, or leave it out")


def _check_length_of_training(config: RunParts) -> None:
    train = config.train
    if (train.tokens is None) == (train.steps is None):
        given = "both are given" if train.steps is not None else "neither is given"
        raise ConfigError(
            f"train.steps: {quoted(train.steps)} does not go with train.tokens={quoted(train.tokens)}, where {given}; "
            "allowed: one of the two, and null for the other"
        )
    if train.warmup + train.decay > 1 and train.schedule == "wsd":
        raise ConfigError(
            f"train.decay: {train.decay:g} and train.warmup={train.warmup:g} are more than all steps; allowed: shares "
            "that come to 1 at most"
        )
    if isinstance(train.micro_batch, int) and train.micro_batch > train.batch:
        raise ConfigError(
            f"train.micro_batch: {train.micro_batch} is more than train.batch={train.batch}; allowed: as many, or fewer"
        )
    if train.batch % train.processes:
        raise ConfigError(
            f"train.processes: {train.processes} cannot share train.batch={train.batch}; allowed: a divisor of it"
        )


def _check_device(config: RunParts) -> None:
    model = config.model
    if model.device_map is not None:
        raise ConfigError(
            f"model.device_map: {model.device_map!r} does not go with train={config.train.method}, which trains a "
            "model on one device, or on several with train.processes; allowed: null"
        )
    if config.train.processes > 1 and (model.device == "mps" or model.device.startswith("cuda:")):
        raise ConfigError(
            f"model.device: {model.device!r} is one GPU, and train.processes={config.train.processes} take one each; "
            "allowed: auto, cuda"
        )


def _check_weights(config: RunParts) -> None:
    method, source = config.train.method, config.init.source
    if method == FINETUNE and config.init.is_random:
        raise ConfigError("init: random weights cannot be finetuned; allowed with train=finetune: model")
    if method == FROM_SCRATCH and not config.init.is_random:
        raise ConfigError(f"init: {source!r} does not go with train=from_scratch; allowed: a size, or train=finetune")


def _check_evaluation(config: RunParts) -> None:
    """Refuse what is done to a model for its evaluation alone: the trained one is evaluated as it was trained."""
    solved = config.ptq.method != ROUND_TO_NEAREST or config.ptq.budget is not None
    rotated = config.rotation.method != "none" or config.rotation.residual
    for knob, is_set, off in (
        ("ptq", solved, ROUND_TO_NEAREST),
        ("rotation", rotated, "none"),
        ("scale_rounding", config.scale_rounding == SEARCHED, "floor"),
        ("kv_quant", config.kv_quant.name != "none", "none"),
    ):
        if is_set:
            raise ConfigError(
                f"{knob}: does not go with train={config.train.method}, since a trained model is evaluated as it was "
                f"trained; allowed: {off}, and then a run of its own with model=FOLDER/model"
            )


def _check_sequences(length: int, formats: LayerFormats, where: str) -> None:
    """Refuse sequences that do not hold whole blocks of those that run along their tokens."""
    for name, tokens in formats.along_tokens():
        if length % tokens:
            raise ConfigError(
                f"train.length: {length} is no multiple of {tokens}, which matmuls.{name}{where} takes "
                "together: blocks would cross sequences, so that gradients would depend on how a batch is split; "
                f"allowed: a multiple of {tokens}"
            )


def _check_prescales(backend: str, formats: LayerFormats, where: str) -> None:
    """Refuse prescales for Microsoft's library, which multiplies nothing by them."""
    for name, operand in formats.operands():
        if backend == "microxcaling" and operand is not None and operand.prescale != 1:
            raise ConfigError(
                f"matmuls.{name}.prescale: {operand.prescale:g}{where} does not go with backend=microxcaling, which "
                "has none; allowed: 1, or backend=torch or cuda"
            )
