"""Measure the sensitivity of the model that a config names, with what the config works out beforehand."""

from __future__ import annotations

from contextlib import ExitStack

from lm_eval.models.utils import resolve_max_length

from mxsweep.calibrate.prepare import prepare
from mxsweep.calibrate.texts import calibration_tokens
from mxsweep.config.calibration_data import resolve_calibration
from mxsweep.config.run_config import RunConfig
from mxsweep.evaluate.input_limits import refuse_unknown_tokens, refuse_unlearned_positions
from mxsweep.forward.sequence_loss import Divergence
from mxsweep.measure.sensitivity import Sensitivity, measure
from mxsweep.model.load import load_configured
from mxsweep.model.prepared import Prepared
from mxsweep.model.residual import rotated_residual
from mxsweep.terminal.progress_callback import Progress, in_phase


def measure_config(config: RunConfig, by: str, progress: Progress) -> tuple[Sensitivity, str, tuple[str, ...]]:
    """Return the losses of the model's parts, a description of the texts, and warnings of how the model was loaded.

    Args:
        config: the model, the formats, and what is calibrated on.
        by: the parts: "module", "layer" or "kind".
        progress: called with how much of a phase is done.

    Raises:
        ConfigError: a model or texts that cannot be had.
    """
    calibrated_on = resolve_calibration(config.calibration, config.model)  # whatever else needs it, this does
    loaded = load_configured(config.model)
    model = loaded.model
    refuse_unlearned_positions(model, config.model.max_length)
    length = config.model.max_length or resolve_max_length(model.config, loaded.tokenizer)  # as a run has it
    with ExitStack() as stack:
        if config.rotation.residual:
            stack.enter_context(rotated_residual(model))
        recipe, prepared = config.recipe, Prepared()
        if config.needs_calibration or config.ptq.is_solved:
            made = prepare(model, loaded.tokenizer, config, {}, length, progress)
            recipe, prepared = made.recipe, made.prepared
        calibration = calibration_tokens(calibrated_on, config.model, loaded.tokenizer, length)
        refuse_unknown_tokens(calibration.sequences, model, loaded.tokenizer)
        divergence = Divergence(model, calibration.sequences)
        measured = measure(model, recipe, divergence, by, prepared, in_phase(progress, f"losses by {by}"))
    return measured, calibration.description, loaded.warnings
