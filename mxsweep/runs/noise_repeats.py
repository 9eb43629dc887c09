"""Evaluate again under perturbations of the size of a rounding: how much of a difference is noise.

A quantized model is chaotic: another order of summation moves single examples a lot. The repeats of one config differ
by such perturbations alone, so that their spread is what a difference between two configs has to exceed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mxsweep.config.run_config import RunConfig
from mxsweep.evaluate.evaluation import Evaluation
from mxsweep.model.perturbation import perturbed
from mxsweep.runs.evaluator import Evaluator
from mxsweep.terminal.progress_callback import Progress


def evaluate_perturbed(evaluator: Evaluator, config: RunConfig, progress: Progress) -> list[Evaluation]:
    """Evaluate ``config.noise`` times, each time with a perturbation of its own of the model."""
    repeats = []
    for number in range(1, 1 + config.noise):
        with perturbed(evaluator.model, config.seed, number):
            repeats.append(evaluator.evaluate(config, in_turn(progress, number, 1 + config.noise)))
    return repeats


def in_turn(progress: Progress, number: int, count: int) -> Progress:
    """Return the callback of evaluation ``number`` (from 0) of ``count``, whose progress is told as that of one."""

    def report(done: int, total: int, _phase: str = "", /) -> None:
        progress(number * total + done, count * total)

    return report


def describe_repeats(repeats: Sequence[Evaluation]) -> dict[str, Any]:
    """Return the metrics of perturbed evaluations as a record holds them."""
    metrics = {
        task: {name: [repeat.metrics[task][name] for repeat in repeats] for name in names if "_stderr" not in name}
        for task, names in repeats[0].metrics.items()
    }
    seconds = sum(repeat.prepare_s + repeat.eval_s for repeat in repeats)
    return {"repeats": len(repeats), "metrics": metrics, "seconds": seconds}


def repeat_rows(repeats: Sequence[Evaluation]) -> list[dict[str, Any]]:
    """Return the samples of perturbed evaluations, each with the number of its repeat."""
    return [row | {"repeat": number} for number, repeat in enumerate(repeats, 1) for row in repeat.samples]
