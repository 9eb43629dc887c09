"""Measure where error enters a run, and how far the model's predictions moved: ``diagnostics=true``.

A pass of its own over a sample, after the evaluation, so that nothing of it is in the evaluation's way: while the
model is quantized, an observer measures what becomes of inputs, keys and values, and the logits at the sample's
scored positions are read; when the model is as it was, the same logits of the unquantized model, which are kept for
the process' next runs.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from lm_eval.api.task import Task
from torch import Tensor
from transformers import PreTrainedModel

from mxsweep.evaluate.diagnostic_sample import Sample, choose_samples
from mxsweep.evaluate.lm import FastLM
from mxsweep.evaluate.logit_distance import distance, keep_logits, kept_logits, read_logits
from mxsweep.formats.recipe import Recipe
from mxsweep.model.observer import TensorObserver
from mxsweep.model.quantization_report import QuantizationReport, weight_statistics
from mxsweep.model.quantize import observed
from mxsweep.model.tensor_statistics import TensorStatistics, pooled_by_kind
from mxsweep.terminal.errors import ConfigError
from mxsweep.terminal.logged_warnings import LoggedWarnings

log = logging.getLogger(__name__)


class Diagnostics:
    """Gather the diagnostics of one run in two steps.

    Args:
        lm: as it evaluated ``tasks``, whose requests are there by then.
        seed: of the sample.

    Attributes:
        warnings: what could not be measured, a sentence each.
    """

    def __init__(self, lm: FastLM, tasks: Mapping[str, Task], seed: int) -> None:
        self._samples = choose_samples(lm, tasks, seed)
        self._seed = seed
        self._logits: list[Tensor] = []
        self._tensors: list[TensorStatistics] = []
        self._distances: dict[str, dict[str, float]] = {}
        self.warnings = LoggedWarnings(log)

    def read_quantized(self, model: PreTrainedModel, report: QuantizationReport, recipe: Recipe) -> None:
        """Measure tensors and read logits while ``model`` is quantized: the first step."""
        self._tensors = weight_statistics(report.layers)
        observer = TensorObserver(recipe.arithmetic)
        try:
            for sample in self._samples:
                with observed(model, observer):
                    self._logits.append(read_logits(model, sample, observer.batch))
        except ConfigError as error:
            self._logits.clear()
            self.warnings.warn(f"diagnostics: activations, keys and values were not measured: {error}")
            return
        examples = sum(sample.measured for sample in self._samples)
        self._tensors += observer.statistics(examples, report.places)

    def read_unquantized(self, model: PreTrainedModel) -> None:
        """Read the logits of ``model`` as it was before, and compare: the second step."""
        try:
            for sample, quantized in zip(self._samples, self._logits, strict=False):
                unquantized = kept_logits(model, sample)
                if unquantized is None:
                    unquantized = read_logits(model, sample)
                    keep_logits(model, sample, unquantized)
                self._distances[sample.task] = distance(sample, unquantized, quantized).as_dict()
        except ConfigError as error:
            self.warnings.warn(f"diagnostics: the distance from the unquantized model was not measured: {error}")
        self._logits.clear()

    def as_dict(self) -> dict[str, Any]:
        """Return what goes into the record's ``diagnostics``."""
        return {
            "tensors": pooled_by_kind(self._tensors),
            "distance": self._distances,
            "sample": describe_samples(self._samples, self._seed),
        }

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows of diagnostics.parquet, one for each tensor."""
        return [tensor.row() for tensor in self._tensors]


def describe_samples(samples: Sequence[Sample], seed: int) -> str:
    """Return in a sentence how the samples were taken."""
    if not samples:
        return "weights alone, whole: no task is evaluated"
    tasks = ", ".join(f"{len(sample.examples):,} of {sample.of:,} examples of {sample.task}" for sample in samples)
    tokens, positions = (sum(getattr(sample, name) for sample in samples) for name in ("tokens", "positions"))
    measured = [example for sample in samples for example in sample.examples[: sample.measured]]
    measured_tokens = sum(len(passage.tokens) for example in measured for passage in example)
    return (
        f"{tasks}, chosen by a hash of the seed {seed}: {tokens:,} tokens with {positions:,} scored positions for the "
        f"distance from the unquantized model, and of these {len(measured):,} examples with {measured_tokens:,} tokens "
        "for activations, keys and values; weights whole"
    )
