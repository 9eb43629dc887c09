"""Make a row of what one run says about one task: its knobs and its metrics.

A knob is a config leaf under the name that the knob table gives it: a short label, or the path of the leaf
(`model.dtype`). A knob without effect on a run (the block size of a baseline) is absent from its row: it is neither a
value nor a difference.
"""

import math
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from mxsweep.config import effects, knobs
from mxsweep.formats.recipe import MOST_LEFT, TENSOR_KINDS
from mxsweep.results.metrics import accuracy_metric
from mxsweep.results.proven import PROVEN_BY
from mxsweep.results.record import RunFolder

# The keys of a record's diagnostics that say of all weights what diagnostics=true says of every kind of tensor.
WEIGHT_FIGURES = {
    "elements": "weights_quantized",
    "blocks": "weight_blocks",
    "saturated": "weights_saturated",
    "flushed": "weights_flushed",
    "clamped": "weight_blocks_scale_clamped",
    "exponent_min": "weight_exponent_min",
    "exponent_max": "weight_exponent_max",
}


@dataclass(frozen=True)
class Row:
    """Hold what one run measured on one task."""

    run: RunFolder
    task: str | None
    knobs: dict[str, Any]
    metrics: dict[str, float]
    is_baseline: bool

    @property
    def n(self) -> float | None:
        """Return the number of examples that the metrics come from."""
        return self.number("n_effective", self.task or "")

    @property
    def eval_time_s(self) -> float | None:
        """Return the seconds that the run's evaluation took, all its tasks together."""
        return self.number("timing", "eval_s")

    @property
    def remedies_s(self) -> float | None:
        """Return the seconds that working out the run's remedies took, what was kept of them from before with those
        that it took then; None where it had nothing to work out.
        """
        if of_each := self._of_remedies("seconds"):
            return sum(of_each) + sum(self._of_remedies("kept_seconds"))
        return self.number("timing", "remedies_s")  # which has the time to read calibration data, and to wait

    @property
    def remedies_gpu_bytes(self) -> float | None:
        """Return the most bytes of GPU memory that a remedy took to work out; None where none says."""
        return max(self._of_remedies("peak_gpu_bytes"), default=None)

    def _of_remedies(self, field: str) -> list[float]:
        """Return a number of each remedy whose account has it."""
        account = self.recorded("remedies")
        numbers = [self.number("remedies", name, field) for name in (account if isinstance(account, dict) else ())]
        return [number for number in numbers if number is not None]

    @property
    def examples_per_sec(self) -> float | None:
        """Return the examples evaluated per second, all the run's tasks together."""
        return self.number("examples_per_sec")

    @property
    def proven_by(self) -> dict[str, Any]:
        """Return, of a run that was not evaluated, which one proves what it comes to, and why; else nothing."""
        return self._mapping(PROVEN_BY)

    @property
    def ppl_name(self) -> str:
        """Return the metric that columns named ppl hold: perplexity, or the one per word."""
        return "perplexity" if "perplexity" in self.metrics else "word_perplexity"

    @cached_property
    def accuracy_name(self) -> str | None:
        """Return the metric that counts right answers, a filter's name included; None if there is none."""
        return accuracy_metric(self.metrics)

    @property
    def bits_per_weight(self) -> float | None:
        """Return the bits that a weight of the decoder blocks takes; where none is quantized, those of the dtype."""
        bits = self.number("diagnostics", "bits_per_weight")
        if bits is None or not math.isfinite(bits):
            bits = self.number("diagnostics", "bits_per_parameter")
        return bits

    @property
    def products_rotated(self) -> float | None:
        """Return how many quantized products of the decoder blocks are rotated; None without a rotation."""
        return self.number("diagnostics", "products_rotated")

    @property
    def products(self) -> float | None:
        """Return of how many products they are."""
        return self.number("diagnostics", "products")

    @property
    def warnings(self) -> list[str]:
        """Return what the run warns of, as recorded."""
        warnings = self.recorded("warnings")
        recorded = [str(warning) for warning in warnings] if isinstance(warnings, list) else []
        return [*recorded, *self._warnings_of_an_earlier_version()]

    def _warnings_of_an_earlier_version(self) -> list[str]:
        """Return what an earlier version did not say: its bits were over the quantized weights alone."""
        counts = [
            self.number("diagnostics", name) for name in ("bits_per_weight", "block_weights_kept", "block_weights")
        ]
        bits, kept, weights = (count or 0 for count in counts)
        says_all = "bits_per_quantized_weight" in self.diagnostics or not 0 < bits < math.inf
        if says_all or kept <= MOST_LEFT * weights:
            return []
        return [
            f"recorded by an earlier version, whose bits/weight ({bits:.4g}) are over the quantized weights alone: "
            f"{kept / weights:.1%} of the weights in the decoder blocks stay as they are. Run it anew for bits over all"
        ]

    @property
    def parameter_bytes(self) -> float | None:
        """Return the bytes that storing the whole model takes, what stays unquantized included."""
        return self.number("diagnostics", "parameter_bytes")

    @property
    def diagnostics(self) -> dict[str, Any]:
        """Return what quantizing did, as recorded (all the run's tasks together); empty where nothing was."""
        return self._mapping("diagnostics")

    @cached_property
    def tensors(self) -> dict[str, dict[str, Any]]:
        """Return what quantizing did by kind of tensor, over the layers; of weights also without diagnostics=true."""
        figures = dict(self._mapping("diagnostics", "tensors"))
        if "weight" not in figures and self.diagnostics.get("weight_blocks"):
            figures["weight"] = {name: self.diagnostics.get(key) for name, key in WEIGHT_FIGURES.items()}
        return {kind: figures[kind] for kind in TENSOR_KINDS if _is_whole(figures.get(kind))}

    @property
    def distance(self) -> dict[str, Any]:
        """Return how far the task's next-token distributions are from the unquantized model's; empty if unknown."""
        return self._mapping("diagnostics", "distance", self.task or "")

    @property
    def kl_nats(self) -> float | None:
        """Return the mean KL divergence of the unquantized model's next-token distribution from the run's, nats."""
        return self.number("diagnostics", "distance", self.task or "", "kl_nats")

    @property
    def top1_agreement(self) -> float | None:
        """Return the share of positions where the run's likeliest token is the unquantized model's."""
        return self.number("diagnostics", "distance", self.task or "", "top1_agreement")

    @cached_property
    def noise(self) -> dict[str, list[float]]:
        """Return each metric's values in the run's perturbed repeats; empty without repeats."""
        metrics = self._mapping("noise", "metrics", self.task or "")
        lists = {name: values for name, values in metrics.items() if isinstance(values, list)}
        return {
            _errors_last(name): [float(v) for v in values] for name, values in lists.items() if _all_numbers(values)
        }

    def number(self, *path: str) -> float | None:
        """Return the number that the run's record has at this path; None where it has none."""
        value = self.recorded(*path)
        return value if isinstance(value, int | float) and not isinstance(value, bool) else None

    def text(self, *path: str) -> str | None:
        """Return the text that the run's record has at this path; None where it has none."""
        value = self.recorded(*path)
        return value if isinstance(value, str) else None

    def _mapping(self, *path: str) -> dict[str, Any]:
        value = self.recorded(*path)
        return value if isinstance(value, dict) else {}

    def recorded(self, *path: str) -> Any:
        """Return what the run's record has at this path; None where it has nothing."""
        value: Any = self.run.record
        for name in path:
            value = value.get(name) if isinstance(value, dict) else None
        return value


def _is_whole(figures: Any) -> bool:
    """Return whether a record's figures of a kind of tensor are all there, and all numbers."""
    if not isinstance(figures, dict):
        return False
    counts = [figures.get(name) for name in ("elements", "blocks", "saturated", "flushed", "clamped")]
    others = [figures.get(name) for name in ("sqnr_db", "exponent_min", "exponent_max", "unlike_exact")]
    return (
        all(isinstance(count, int) for count in counts)
        and all(value is None or isinstance(value, int | float) for value in others)
        and min(figures["elements"], figures["blocks"]) > 0
    )


def label(value: Any) -> str:
    """Return a config value as tables and legends show it."""
    if value is None or value == {}:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return " ".join(f"{key}={label(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ",".join(map(label, value))
    return str(value)


def read_rows(run: RunFolder) -> list[Row]:
    """Return a run's rows: one for each task, and one without a task if the run left no record."""
    if run.record is None:
        return [Row(run, None, {}, {}, False)]
    leaves = {path: value for path, value in _leaves(run.record["config"]).items() if path not in knobs.notes()}
    is_baseline = all(leaves.get(path) == "none" for path in knobs.quantizers()) and not effects.quantizes(leaves)
    names = leaves.pop("task.names", None)
    named = leaves.pop("task.name", None)
    leaves = knobs.effective(leaves)
    values = {name: leaves.pop(path) for name, path in knobs.labels().items() if path in leaves} | leaves
    if run.status == "failed":  # a refused config has defaults in it that nobody worked out
        values = {name: value for name, value in values.items() if value != "auto"}
    planned = [str(name) for name in names] if isinstance(names, list) and names else [named]
    rows = []
    for task in run.record["metrics"] or planned:
        metrics = _numbers(run.record["metrics"].get(task))
        rows.append(Row(run, task, values | {"task": task}, metrics, is_baseline))
    return rows


def _leaves(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for key, value in config.items():
        path = prefix + str(key)
        if isinstance(value, dict) and path not in knobs.mappings():
            leaves |= _leaves(value, path + ".")
        elif path == "block_size" and isinstance(value, list):
            leaves[path] = "x".join(map(str, value))
        else:
            leaves[path] = value
    return leaves


def _numbers(metrics: dict[str, Any] | None) -> dict[str, float]:
    """Return the metrics that are numbers, each error under its metric's name and _stderr.

    Of a task with several filters lm-eval reports `exact_match,strict` and `exact_match_stderr,strict`.
    """
    numbers = {name: value for name, value in (metrics or {}).items() if isinstance(value, int | float)}
    return {_errors_last(name): float(value) for name, value in numbers.items()}


def _errors_last(name: str) -> str:
    return re.sub(r"_stderr(,.*)$", r"\1_stderr", name)


def _all_numbers(values: list[Any]) -> bool:
    return all(isinstance(value, int | float) for value in values)
