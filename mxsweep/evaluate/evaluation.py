"""Evaluate a loaded model: lm-eval's tasks and metrics, without its slow parts."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass, field
from typing import Any

import lm_eval
from lm_eval.api.task import Task
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mxsweep.evaluate.choices import choice_columns, margin_metrics
from mxsweep.evaluate.lm import FastLM
from mxsweep.evaluate.non_finite import explain_non_finite, overflow_is_infinite
from mxsweep.evaluate.quiet import quiet_lm_eval
from mxsweep.evaluate.repeated import explain_repeated, input_hash
from mxsweep.evaluate.request_cache import reuse_requests
from mxsweep.evaluate.standard_errors import closed_form_perplexity, weighted_perplexity_stderr
from mxsweep.evaluate.uniform_guess import ScoredTokens
from mxsweep.forward.losses import weighted_mean_stderr
from mxsweep.terminal.progress_callback import Progress, silent

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluation:
    """Hold what came out of an evaluation.

    Attributes:
        metrics: {task: {metric: value, metric_stderr: value}}; a task with several filters has "metric,filter".
        n_effective: examples evaluated, a task.
        samples: a row an example: task, doc_id, doc_hash, input_hash, filter, and its metrics (a perplexity's is its
            log-likelihood in nats), and of multiple choice what is known of its choices (see ``choices.py``).
        results: lm-eval's own results, without samples.
        prepare_s: seconds of building and tokenizing requests, which the first run of a process does for all.
        eval_s: seconds of the rest, to the last metric: what a run takes with these at hand.
        batch_tokens: tokens of a forward pass when scoring, as it turned out to fit.
        warnings: what a reader of the results should know, a sentence each.
        nats_per_token: of each task that is scored by log-likelihood, what a token of an example's likeliest answer
            costs on average; without tasks whose metrics a warning says to be NaN or infinite.
        counting_nats: of each task that scores whole texts, what a token costs by how often each came before.
    """

    metrics: dict[str, dict[str, float]]
    n_effective: dict[str, int]
    samples: list[dict[str, Any]]
    results: dict[str, Any]
    prepare_s: float
    eval_s: float
    batch_tokens: int
    warnings: list[str]
    nats_per_token: dict[str, float] = field(default_factory=dict)
    counting_nats: dict[str, float] = field(default_factory=dict)

    @property
    def examples_per_sec(self) -> float | None:
        """Return the examples evaluated a second; None where nothing was."""
        return sum(self.n_effective.values()) / self.eval_s if self.metrics else None


def make_lm(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    batch_tokens: int | None = None,
    batch_size: int = 32,
    max_length: int | None = None,
) -> FastLM:
    """Return lm-eval's model class around a loaded model.

    To be made before the model is quantized: it ties the model's weights once more, and would give an lm_head that
    shares the embedding's weight the quantized one.

    Args:
        batch_tokens: tokens of a forward pass when scoring; None for what suits the model's device.
        batch_size: sequences at a time when generating.
        max_length: tokens a sequence may have; None for the model's own limit.
    """
    quiet_lm_eval()
    return FastLM(model, tokenizer, batch_tokens=batch_tokens, batch_size=batch_size, max_length=max_length)


def evaluate(
    lm: FastLM,
    tasks: dict[str, Any],
    *,
    limit: int | float | None = None,
    apply_chat_template: bool = False,
    progress: Progress = silent,
) -> Evaluation:
    """Evaluate ``tasks`` (of :func:`mxsweep.evaluate.tasks.load_tasks`) on a model (of :func:`make_lm`).

    Args:
        limit: a fraction of each task below 1, or a count of examples; None for all.
        progress: called after each batch with how many requests are scored so far, and how many there are in all.
    """
    started = time.perf_counter()
    lm.scored = ScoredTokens()
    encoded_before, warned_before = lm.encode_s, len(lm.warnings)
    settings = (limit, apply_chat_template)
    with (
        closed_form_perplexity(),
        overflow_is_infinite(),
        reuse_requests(tasks["tasks"], lm.tokenizer, *settings) as building,
        lm.reporting(progress, tasks["tasks"].values()),
    ):
        results = lm_eval.evaluate(
            lm,
            task_dict=tasks,
            limit=limit,
            apply_chat_template=apply_chat_template,
            confirm_run_unsafe_code=False,
        )
    prepare_s = building.seconds + lm.encode_s - encoded_before
    eval_s = time.perf_counter() - started - prepare_s
    samples = results.pop("samples")
    metrics = {task: _metrics(values, samples.get(task, [])) for task, values in results["results"].items()}
    rows = {task: [_sample_row(task, tasks["tasks"].get(task), each) for each in of] for task, of in samples.items()}
    margins = {task: margin_metrics(task, of) for task, of in rows.items()}
    for task, (values, _) in margins.items():
        metrics[task] |= values
    explained = {task: explain_non_finite(task, metrics[task], samples.get(task, [])) for task in metrics}
    non_finite = [text for texts in explained.values() for text in texts]
    repeated = [text for task, rows in samples.items() if (text := explain_repeated(task, rows))]
    undefined = [text for _, texts in margins.values() for text in texts]
    for text in (*non_finite, *repeated, *undefined):
        log.warning(text)
    return Evaluation(
        metrics=metrics,
        n_effective={task: counts["effective"] for task, counts in results["n-samples"].items()},
        samples=[row for of in rows.values() for row in of],
        results=results,
        prepare_s=prepare_s,
        eval_s=eval_s,
        batch_tokens=lm.batch_tokens,
        warnings=[*lm.warnings[warned_before:], *non_finite, *repeated, *undefined],
        nats_per_token={task: n for task, n in lm.scored.nats_per_token().items() if not explained.get(task)},
        counting_nats=lm.scored.counting_nats(lm.model.config.get_text_config().vocab_size),
    )


def nothing_evaluated(lm: FastLM) -> Evaluation:
    """Return what comes of evaluating no task."""
    return Evaluation({}, {}, [], {}, prepare_s=0.0, eval_s=0.0, batch_tokens=lm.batch_tokens, warnings=[])


def _metrics(values: dict[str, Any], samples: list[dict[str, Any]]) -> dict[str, float]:
    """Return lm-eval's ``metric,filter`` and ``metric_stderr,filter`` numbers; one filter by itself is not named."""
    numbers = {key: value for key, value in values.items() if "," in key and isinstance(value, int | float)}
    filters = {key.split(",", 1)[1] for key in numbers}
    metrics = {key if len(filters) > 1 else key.split(",")[0]: float(value) for key, value in numbers.items()}
    for metric in ("word_perplexity", "byte_perplexity", "bits_per_byte"):
        if samples and metric in metrics and not math.isfinite(metrics.get(f"{metric}_stderr", math.nan)):
            sums, weights = zip(*(sample[metric] for sample in samples), strict=True)
            if metric == "bits_per_byte":
                metrics[f"{metric}_stderr"] = weighted_mean_stderr(sums, weights) / math.log(2)
            else:
                metrics[f"{metric}_stderr"] = weighted_perplexity_stderr(sums, weights)
    return metrics


def _sample_row(name: str, task: Task | None, sample: dict[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {"task": name}
    row |= {key: sample[key] for key in ("doc_id", "doc_hash")}
    row |= {"input_hash": input_hash(sample), "filter": sample["filter"]}
    for metric in sample["metrics"]:
        value = sample[metric]
        if metric == "perplexity":
            row["loglikelihood"] = value
        elif metric in ("word_perplexity", "byte_perplexity") and isinstance(value, tuple | list):
            row["loglikelihood"], row["words" if metric == "word_perplexity" else "bytes"] = value
        elif isinstance(value, int | float | bool):
            row[metric] = value
    return row | choice_columns(task, sample)
