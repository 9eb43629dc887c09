"""What one run says about one task, as a row: its knobs and its metrics.

A knob is a config leaf under the name that tables give it: a short label for those in KNOBS, the path of the
leaf (`model.dtype`) for the others. A knob without effect on a run (the block size of a baseline) is absent
from its row: it is neither a value nor a difference.
"""

import re
from dataclasses import dataclass
from typing import Any

from mxsweep.results.record import RunFolder

KNOBS = {  # label: path in the config
    "format": "format.name",
    "block_size": "block_size",
    "scale_bits": "scale_bits",
    "scale": "scale",
    "custom_cuda": "custom_cuda",
    "kv_quant": "kv_quant.name",
    "limit": "limit",
    "model": "model.name",
}
QUANTIZERS = ("format.weight", "format.activation", "kv_quant.key", "kv_quant.value")
# These say how to quantize, so they mean nothing where nothing is.
HOW_TO_QUANTIZE = (
    "block_size",
    "scale_bits",
    "scale",
    "tensor_scale",
    "custom_cuda",
    "rounding",
    "scale_rounding",
    "symmetric",
    "backend",
    "arithmetic",
)
HIGHER_IS_BETTER = ("f1", "exact_match", "acc_norm", "acc")  # the last is looked at first
LOWER_IS_BETTER = ("perplexity", "word_perplexity")
MAPPINGS = ("modules", "task.data")  # leaves, though mappings: their keys are the user's


@dataclass(frozen=True)
class Row:
    """What one run found on one task."""

    run: RunFolder
    task: str | None
    knobs: dict[str, Any]
    metrics: dict[str, float]
    is_baseline: bool

    @property
    def n(self) -> float | None:
        """How many examples the metrics come from."""
        return self._number("n_effective", self.task or "")

    @property
    def eval_time_s(self) -> float | None:
        """Seconds that the run's evaluation took, all its tasks together."""
        return self._number("timing", "eval_s")

    @property
    def examples_per_sec(self) -> float | None:
        """Examples evaluated per second, all the run's tasks together."""
        return self._number("examples_per_sec")

    @property
    def ppl_name(self) -> str:
        """The metric that columns named ppl hold: perplexity, or the one per word."""
        return "perplexity" if "perplexity" in self.metrics else "word_perplexity"

    def _number(self, *path: str) -> float | None:
        value: Any = self.run.record
        for name in path:
            value = value.get(name) if isinstance(value, dict) else None
        return value if isinstance(value, int | float) else None


def betterness(metric: str) -> int:
    """Above 0 if more of a metric is better, below 0 if less is, 0 if unknown; the greatest matters most."""
    name = metric.split(",")[0]  # a filter's name follows the comma
    if name in HIGHER_IS_BETTER:
        return HIGHER_IS_BETTER.index(name) + 1
    return -LOWER_IS_BETTER.index(name) - 1 if name in LOWER_IS_BETTER else 0


def label(value: Any) -> str:
    """A config value as tables and legends show it."""
    if value is None or value == {}:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return " ".join(f"{key}={label(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ",".join(map(label, value))
    return str(value)


def rows_of(run: RunFolder) -> list[Row]:
    """A run's rows: one for each task, and one without a task if the run left no record."""
    if run.record is None:
        return [Row(run, None, {}, {}, False)]
    leaves = _leaves(run.record["config"])
    is_baseline = all(leaves.get(name) == "none" for name in QUANTIZERS) and not leaves.get("modules")
    names = leaves.pop("task.names", None)
    named = leaves.pop("task.name", None)
    knobs = {name: leaves.pop(path) for name, path in KNOBS.items() if path in leaves} | leaves
    if run.status == "failed":  # a refused config has defaults in it that nobody worked out
        knobs = {name: value for name, value in knobs.items() if value != "auto"}
    if is_baseline:
        knobs = {name: value for name, value in knobs.items() if name not in HOW_TO_QUANTIZE}
    if knobs.get("scale", "e8m0") != "e8m0":
        knobs.pop("scale_bits", None)  # only the width of an e8m0 scale can be chosen
    planned = [str(name) for name in names] if isinstance(names, list) and names else [named]
    rows = []
    for task in run.record["metrics"] or planned:
        metrics = _numbers(run.record["metrics"].get(task))
        rows.append(Row(run, task, knobs | {"task": task}, metrics, is_baseline))
    return rows


def _leaves(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for key, value in config.items():
        path = prefix + str(key)
        if isinstance(value, dict) and path not in MAPPINGS:
            leaves |= _leaves(value, path + ".")
        elif path == "block_size" and isinstance(value, list):
            leaves[path] = "x".join(map(str, value))
        else:
            leaves[path] = value
    return leaves


def _numbers(metrics: dict[str, Any] | None) -> dict[str, float]:
    """The metrics that are numbers, each error under its metric's name and _stderr.

    Of a task with several filters lm-eval reports `exact_match,strict` and `exact_match_stderr,strict`.
    """
    numbers = {name: value for name, value in (metrics or {}).items() if isinstance(value, int | float)}
    return {re.sub(r"_stderr(,.*)$", r"\1_stderr", name): float(value) for name, value in numbers.items()}
