"""Declare every column but those of metrics: knobs, measurements, what a run is compared with, where it lies.

To add a column, add a declaration to MEASURED: it then stands in every table, in results.csv and results.parquet, on
the page, and in docs/columns.md. The order is that of the tables. Metrics have their columns in metric_columns.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from mxsweep.formats.cached_bits import USUAL_CONTEXT
from mxsweep.formats.recipe import TENSOR_KINDS
from mxsweep.report.columns import (
    DATA_ONLY,
    EVERYWHERE,
    TABLES,
    Column,
    ComparedRow,
    Field,
    Output,
    Value,
    measured_column,
    ratio_field,
    ratio_to_baseline,
    recorded_column,
)
from mxsweep.report.wording import ABSENT, size, speed
from mxsweep.results.memory_taken import kv_bits_per_token
from mxsweep.results.rows import Row, label
from mxsweep.results.tensor_errors import KIND_TITLES
from mxsweep.study.change_words import format_bits
from mxsweep.study.comparison import Comparison


def knob_column(name: str) -> Column:
    """Declare the column of a knob; a knob without effect on a run has no value there."""
    return Column(
        name,
        "the knob, see knobs.md; empty where it has no effect on the run",
        lambda row: _plain(row.knobs.get(name)),
        lambda row: label(row.knobs[name]) if name in row.knobs else ABSENT,
        kind=None,
        outputs=EVERYWHERE - {Output.STEPS},
        is_text=True,
    )


def note_column(path: str) -> Column:
    """Declare the column of a knob that says what a run leaves besides its metrics, and so tells no rows apart."""
    text = "the knob, see knobs.md"
    return measured_column(path, text, lambda row: _plain(row.recorded("config", *path.split("."))), label, kind=None)


def _bytes(row: Row) -> float | None:
    return row.parameter_bytes


def _rate(row: Row) -> float | None:
    return row.examples_per_sec


def _training_speed(row: Row) -> float | None:
    return row.number("training", "tokens_per_s")


def _of_distance(name: str) -> Callable[[ComparedRow], Value]:
    return lambda entry: entry.row.number("diagnostics", "distance", entry.row.task or "", name)


PAGE_AND_DATA = frozenset({Output.PAGE, Output.DATA})
MEASURED: list[Column] = [
    measured_column(
        "kl_nats",
        "mean KL divergence of the unquantized model's next-token distribution from the run's, nats a position; with "
        "diagnostics=true",
        lambda row: row.kl_nats,
        "{:.4g}".format,
        title="KL, nats",
        outputs=PAGE_AND_DATA,
        more=(Field("kl_nats_stderr", "one standard error of kl_nats", float, _of_distance("kl_nats_stderr")),),
    ),
    measured_column(
        "top1_agreement",
        "share of positions where the likeliest token is the unquantized model's; with diagnostics=true",
        lambda row: row.top1_agreement,
        "{:.2%}".format,
        title="same top token",
        outputs=PAGE_AND_DATA,
        more=(
            Field(
                "top1_agreement_stderr",
                "one standard error of top1_agreement",
                float,
                _of_distance("top1_agreement_stderr"),
            ),
        ),
    ),
    measured_column(
        "bits_per_weight",
        "bits that a weight takes, scales included, over all weights of the decoder blocks, those that stay as they "
        "are included; where no weight is quantized, those of its dtype",
        lambda row: row.bits_per_weight,
        format_bits,
        title="bits/weight",
        outputs=EVERYWHERE - {Output.TERMINAL},
    ),
    recorded_column(
        "bits_per_quantized_weight",
        "the same over the weights that are quantized; empty where none is",
        "diagnostics",
        "bits_per_quantized_weight",
    ),
    recorded_column(
        "bits_per_parameter",
        "bits that a parameter of the whole model takes, those that stay unquantized included",
        "diagnostics",
        "bits_per_parameter",
    ),
    measured_column(
        "kv_bits_per_token",
        "bits that keys and values of a token take in the cache, in all layers together, scales included, and tokens "
        f"that stay as they are, in the mean over {USUAL_CONTEXT:,}, or as many as the model holds; empty where the "
        "model caches something else, or its run did not record what",
        kv_bits_per_token,
        "{:,.0f}".format,
        title="KV bits/token",
        outputs=PAGE_AND_DATA,
    ),
    Column(
        "products_rotated",
        "quantized products of the decoder blocks that are rotated, or under rotation=wush multiplied by matrices of "
        "their inputs' own; in tables of how many",
        lambda row: row.products_rotated,
        lambda row: ABSENT if row.products_rotated is None else f"{row.products_rotated:g} of {row.products or 0:g}",
        kind=int,
        title="products transformed",
        outputs=PAGE_AND_DATA | {Output.MARKDOWN},
        more=(Field("products", "quantized products of the decoder blocks", int, lambda entry: entry.row.products),),
    ),
    measured_column(
        "parameter_bytes",
        "bytes that the whole model's parameters take, scales and the float32 matrices of rotation=wush included",
        _bytes,
        size,
        kind=int,
        title="parameters, MB",
        outputs=PAGE_AND_DATA,
        more=(ratio_field("parameter_bytes", _bytes),),
    ),
    Column(
        "warnings",
        "what a reader of the run's results should know, as recorded; in tables how many, which are listed beside them",
        lambda row: " ".join(row.warnings) or None,
        lambda row: str(len(row.warnings)) if row.warnings else ABSENT,
        kind=str,
        outputs=EVERYWHERE - {Output.LATEX, Output.STEPS},
    ),
    measured_column(
        "diverged_at",
        "step at which the training came to a loss that is not finite or ran away; empty where it did not",
        lambda row: row.number("training", "diverged_at"),
        "step {:g}".format,
        kind=int,
        title="diverged",
        outputs=EVERYWHERE - {Output.STEPS},
    ),
    measured_column(
        "train_loss",
        "loss of the last step of the training, nats a token",
        lambda row: row.number("training", "loss"),
        "{:.4f}".format,
        title="training loss",
        outputs=PAGE_AND_DATA | {Output.MARKDOWN},
    ),
    recorded_column(
        "validation_loss",
        "loss of the trained model on the held-out sequences, nats a token; the metric loss of task validation",
        "training",
        "validation_loss",
    ),
    recorded_column("train_steps", "steps that the model was trained", "training", "steps", kind=int),
    recorded_column("train_tokens", "tokens that the model was trained on", "training", "tokens", kind=int),
    recorded_column("parameters", "parameters of the model that was trained", "training", "parameters", kind=int),
    recorded_column("train_s", "seconds that the training took", "training", "seconds"),
    measured_column(
        "tokens/sec",
        "tokens trained on per second: the speed of simulating formats",
        _training_speed,
        "{:,.0f}".format,
        outputs=EVERYWHERE - {Output.LATEX, Output.STEPS},
        change=ratio_to_baseline(_training_speed),
        change_title="training speed / baseline",
        change_in=EVERYWHERE - {Output.LATEX, Output.STEPS},
        more=(ratio_field("tokens/sec", _training_speed),),
    ),
    measured_column(
        "n",
        "examples that the metrics come from",
        lambda row: row.n,
        str,
        kind=int,
        keeps_empty=True,
        where_varied=frozenset({Output.TERMINAL, Output.MARKDOWN}),
        outputs=TABLES - {Output.LATEX},
    ),
    measured_column(
        "remedies_s",
        "seconds that working out the run's remedies took, here or before; empty where there was nothing to work out",
        lambda row: row.remedies_s,
        speed,
        outputs=frozenset({Output.STEPS, Output.DATA}),
    ),
    measured_column(
        "remedies_gpu_bytes",
        "most bytes of GPU memory that torch held while one of the run's remedies was worked out",
        lambda row: row.remedies_gpu_bytes,
        size,
        kind=int,
        title="remedies' GPU, MB",
        outputs=frozenset({Output.STEPS, Output.DATA}),
    ),
    recorded_column("load_s", "seconds that loading the model took", "timing", "load_s"),
    recorded_column("quantize_s", "seconds that quantizing the model took", "timing", "quantize_s"),
    measured_column(
        "eval_time_s",
        "seconds that evaluating took, all the run's tasks together",
        lambda row: row.eval_time_s,
        speed,
        keeps_empty=True,
        outputs=TABLES - {Output.LATEX, Output.TERMINAL, Output.PAGE},
    ),
    recorded_column("total_s", "seconds that the run took", "timing", "total_s"),
    measured_column(
        "examples/sec",
        "examples evaluated per second, all the run's tasks together: the speed of simulating a format",
        _rate,
        speed,
        keeps_empty=True,
        outputs=EVERYWHERE - {Output.LATEX, Output.STEPS, Output.TERMINAL, Output.PAGE},
        more=(ratio_field("examples/sec", _rate),),
    ),
    recorded_column(
        "peak_host_bytes", "most bytes of main memory that the process took", "memory", "peak_host_bytes", kind=int
    ),
    recorded_column("peak_gpu_bytes", "most bytes of GPU memory that torch held", "memory", "peak_gpu_bytes", kind=int),
    recorded_column(
        "batch_tokens_used", "tokens in a batch, as batch_tokens came out", "memory", "batch_tokens", kind=int
    ),
    measured_column(
        "is_baseline", "whether nothing is quantized", lambda row: row.is_baseline, label, kind=bool, outputs=DATA_ONLY
    ),
    measured_column(
        "status",
        "done, failed, running, missing or unreadable",
        lambda row: row.run.status,
        str,
        kind=str,
        outputs=DATA_ONLY,
    ),
    measured_column(
        "proven_by",
        "run_id of the run that proves what this one comes to, which was not evaluated and has no times; else empty",
        lambda row: row.text("proven_by", "run_id"),
        str,
        kind=str,
        title="proven by",
        is_text=True,
        outputs=PAGE_AND_DATA,
    ),
    measured_column("reason", "why the run is not done", lambda row: row.run.reason, str, kind=str, outputs=DATA_ONLY),
    recorded_column("started_at", "when the run began", "started_at", kind=str),
    recorded_column("device_name", "what it ran on", "environment", "device_name", kind=str),
    recorded_column("config_hash", "digest of what determines the run's result", "config_hash", kind=str),
    measured_column(
        "run_id",
        "the run's name, which its folder has, too",
        lambda row: row.run.run_id,
        str,
        kind=str,
        is_text=True,
        outputs=EVERYWHERE - {Output.LATEX, Output.TERMINAL},
    ),
    measured_column("folder", "where the run lies", lambda row: str(row.run.path), str, kind=str, outputs=DATA_ONLY),
]

COMPARED = (  # what a row is compared with, in files for programs
    Field(
        "baseline",
        "run_id of the baseline that the run is compared with",
        str,
        lambda entry: entry.baseline.run.run_id if entry.baseline else None,
    ),
    Field(
        "n_compared",
        "examples that the two were compared on, one by one",
        int,
        lambda entry: entry.comparison.n if entry.comparison else None,
    ),
    Field(
        "not_compared",
        "why the two could not be compared by example, or one metric of theirs",
        str,
        lambda entry: _why_not(entry.comparison),
    ),
)

_OWN_METRIC = (
    "; of weights and activations under rotation=wush in the basis of its matrices, which are not orthogonal: not to "
    "be compared with another basis"
)
TENSOR_FIGURES: dict[str, tuple[str, Callable[[dict[str, Any]], Any]]] = {
    "sqnr_db": (
        f"signal over quantization error, dB; with diagnostics=true{_OWN_METRIC}",
        lambda one: one.get("sqnr_db"),
    ),
    "rmse": (
        f"root mean square of the quantization error; with diagnostics=true{_OWN_METRIC}",
        lambda one: one.get("rmse"),
    ),
    "saturated": (
        "share of elements that were larger than the largest value",
        lambda one: one["saturated"] / one["elements"],
    ),
    "flushed": ("share of elements that became zero, and were not", lambda one: one["flushed"] / one["elements"]),
    "clamped": ("share of blocks whose scale was clamped", lambda one: one["clamped"] / one["blocks"]),
}


def tensor_columns(rows: Iterable[Row]) -> list[Column]:
    """Declare the columns of errors of quantizing, of each kind of tensor that some row measured."""
    kinds = {kind for row in rows for kind in row.tensors}
    return [_tensor_column(kind, name) for kind in TENSOR_KINDS if kind in kinds for name in TENSOR_FIGURES]


def _tensor_column(kind: str, name: str) -> Column:
    text, figure = TENSOR_FIGURES[name]

    def value(row: Row) -> float | None:
        figures = row.tensors.get(kind)
        number = None if figures is None else figure(figures)
        return None if number is None else float(number)

    return measured_column(f"{kind}_{name}", f"of {KIND_TITLES[kind]}: {text}", value, outputs=DATA_ONLY)


def _plain(value: Any) -> Value:
    """Return a knob's value as files hold it: a mapping or a list as a text."""
    return value if value is None or isinstance(value, bool | int | float | str) else label(value)


def _why_not(comparison: Comparison | None) -> str | None:
    return (comparison.why_not or comparison.note) if comparison else None
