"""Keep what a model says of each choice of a multiple-choice question, and by how much the right one wins.

A margin is the log-likelihood of the right choice minus the largest of the others', in nats. Above 0 lm-eval's ``acc``
counts the example as right, below 0 as wrong; at 0 the first choice wins. A margin says by how much, so that it tells
formats apart that answer as many questions right. Where several choices are right, the likeliest of them counts. A
margin_norm is the same of log-likelihoods divided by the choices' lengths in characters, as in lm-eval's ``acc_norm``.

Shapes: an example has c >= 2 choices, and its first c requests score them; further ones (the choices without the
question, which ``acc_mutual_info`` needs) are no choices.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from lm_eval.api.task import ConfigurableTask, Task

from mxsweep.files.sample_columns import LOGLIKELIHOODS, RIGHT

MARGIN, MARGIN_NORM = "margin", "margin_norm"


def choice_columns(task: Task | None, sample: Mapping[str, Any]) -> dict[str, Any]:
    """Return what samples.parquet says of an example's choices; nothing of a task that is no multiple choice.

    Args:
        task: that the sample is of; None of a group.
        sample: as lm-eval logs it.

    Returns:
        LOGLIKELIHOODS, a list of nats in the order of the choices; RIGHT, the numbers of the right ones, from 0; MARGIN
        and, of a task with acc_norm, MARGIN_NORM. The last three are left out where the task has code of its own that
        says what is right; margins are NaN where no choice is right, or all are.
    """
    if not isinstance(task, ConfigurableTask) or task.OUTPUT_TYPE != "multiple_choice":
        return {}
    choices = task.doc_to_choice(sample["doc"])
    # The answers as scored, not as filtered: of each request the first, (log-likelihood, is it greedy).
    values = [float(answers[0][0]) for answers in sample["resps"][: len(choices)]]
    columns: dict[str, Any] = {LOGLIKELIHOODS: values}
    if callable(task.config.process_results):
        return columns
    right = _right_choices(task, sample["doc"], choices)
    columns |= {RIGHT: right, MARGIN: _margin(values, right)}
    if "acc_norm" in task.aggregation():
        with np.errstate(divide="ignore", invalid="ignore"):
            by_length = np.divide(values, [float(len(choice)) for choice in choices])
        columns[MARGIN_NORM] = _margin(by_length.tolist(), right)
    return columns


def margin_metrics(task: str, rows: Sequence[Mapping[str, Any]]) -> tuple[dict[str, float], list[str]]:
    """Return the mean margins of a task's rows of samples with their standard errors, and what to warn of.

    A task that does not say of every example what is right has no mean margin: one over the others would mean something
    else than its accuracy, which counts all.
    """
    rows = list({row["doc_id"]: row for row in rows}.values())  # a task with several filters has more rows
    if not rows or MARGIN not in rows[0]:
        return {}, []
    undefined = sum(not 0 < len(set(row[RIGHT])) < len(row[LOGLIKELIHOODS]) for row in rows)
    if undefined:
        return {}, [
            f"{task}: {undefined:,} of {len(rows):,} examples have no right choice among their choices, or no wrong "
            "one, so that there is no margin of the right choice"
        ]
    metrics: dict[str, float] = {}
    for name in (MARGIN, MARGIN_NORM):
        if name in rows[0]:
            values = np.array([row[name] for row in rows], dtype=np.float64)
            with np.errstate(invalid="ignore"):
                metrics[name] = float(values.mean())
                metrics[f"{name}_stderr"] = (
                    float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan
                )
    return metrics, []


def _right_choices(task: ConfigurableTask, doc: dict[str, Any], choices: Sequence[str]) -> list[int]:
    """Return the numbers of the right choices, as lm-eval's own ``process_results`` finds them."""
    read: Callable[[dict[str, Any]], Any] = task.doc_to_text if task.multiple_input else task.doc_to_target
    gold = read(doc)
    named = gold if isinstance(gold, list) else [gold]
    numbers = [list(choices).index(one) if isinstance(one, str) and one in choices else one for one in named]
    return [int(one) for one in numbers if isinstance(one, int) and 0 <= one < len(choices)]


def _margin(values: Sequence[float], right: Sequence[int]) -> float:
    """Return the largest of the values of right choices minus the largest of the others; NaN where one is NaN."""
    of_right = [value for number, value in enumerate(values) if number in right]
    of_others = [value for number, value in enumerate(values) if number not in right]
    if not of_right or not of_others or any(map(math.isnan, values)):
        return math.nan
    best, other = max(of_right), max(of_others)
    return best - other if math.isfinite(best) or math.isfinite(other) else math.nan
