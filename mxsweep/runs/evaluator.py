"""Load what a config names, its model and its tasks, and evaluate it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from mxsweep.config.refusals import no_chat_template
from mxsweep.config.run_config import RunConfig
from mxsweep.evaluate.evaluation import Evaluation, evaluate, make_lm, nothing_evaluated
from mxsweep.evaluate.fewshot import check_fewshot
from mxsweep.evaluate.input_limits import refuse_missing_special_tokens, refuse_unlearned_positions
from mxsweep.evaluate.lm import FastLM
from mxsweep.evaluate.tasks import load_tasks
from mxsweep.model.load import LoadedModel, load_configured
from mxsweep.terminal.errors import ConfigError
from mxsweep.terminal.progress_callback import Progress

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluator:
    """Hold what evaluates a config.

    Attributes:
        model: kept between runs; quantized only while a run has it so.
        lm: lm-eval's model class around it.
        tasks: as :func:`mxsweep.evaluate.tasks.load_tasks` returns them.
        warnings: what a reader of the results should know of few-shot examples and of the model's checkpoint, a
            sentence each.
        quantized_from: how the checkpoint stores the weights, where that is quantized.
    """

    model: PreTrainedModel
    lm: FastLM
    tasks: dict[str, Any]
    warnings: tuple[str, ...] = ()
    quantized_from: dict[str, Any] | None = None

    def evaluate(self, config: RunConfig, progress: Progress) -> Evaluation:
        """Evaluate the tasks on the model as it is now; nothing comes of none."""
        if not self.tasks["tasks"]:
            return nothing_evaluated(self.lm)
        return evaluate(
            self.lm,
            self.tasks,
            limit=config.limit,
            apply_chat_template=config.task.apply_chat_template,
            progress=progress,
        )


def load_configured_tasks(config: RunConfig) -> dict[str, Any]:
    """Return the tasks of a config as :func:`mxsweep.evaluate.tasks.load_tasks` does. Raises ConfigError."""
    task = config.task
    if not task.names:
        return {"tasks": {}}
    return load_tasks(
        task.names, data=task.data, fields=task.fields, num_fewshot=task.num_fewshot, seed=config.seed, own=task.own
    )


def load_evaluator(config: RunConfig) -> Evaluator:
    """Load the tasks and the model of a config. Raises ConfigError."""
    tasks = load_configured_tasks(config)
    of_examples = check_fewshot(tasks["tasks"], config.task.fewshot_evaluated, config.task.data)
    return evaluator_of(config, tasks, load_configured(config.model), of_examples)


def evaluator_of(
    config: RunConfig, tasks: dict[str, Any], loaded: LoadedModel, of_examples: Sequence[str] = ()
) -> Evaluator:
    """Return what evaluates a config's tasks on a model that was loaded. Raises ConfigError."""
    task, model = config.task, config.model
    refuse_unlearned_positions(loaded.model, model.max_length)
    refuse_missing_special_tokens(tasks["tasks"], loaded.tokenizer)
    if task.apply_chat_template and not loaded.tokenizer.chat_template:
        raise ConfigError(no_chat_template(model.label))
    lm = make_lm(
        loaded.model,
        loaded.tokenizer,
        batch_tokens=None if config.batch_tokens == "auto" else config.batch_tokens,
        batch_size=config.batch_size,
        max_length=model.max_length,
    )
    warnings = (*of_examples, *loaded.warnings)
    for warning in warnings:
        log.warning(warning)
    return Evaluator(loaded.model, lm, tasks, warnings, loaded.quantized_from)
