"""Say what a group's numbers mean, each sentence from the data of the runs that it speaks of and from nothing else.

Significant means p < 0.05 after Holm's correction over a knob's comparisons; see `mxsweep.study.comparison`.

A sentence is left out, never guessed, where what it would rest on was not measured: no statement on single examples
without their outcomes, none on activations, keys or values without diagnostics, none on noise without repeats.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from mxsweep.results.groups import Group
from mxsweep.results.metrics import MARGIN
from mxsweep.results.rows import Row
from mxsweep.study.comparison import Comparison
from mxsweep.study.finding import Finding, format_range, format_runs, join_with_and, run_ids
from mxsweep.study.knob_effects import KnobEffect
from mxsweep.study.knob_findings import (
    describe_cost_of_kv,
    describe_distance,
    describe_error_change,
    describe_no_effect,
)
from mxsweep.study.tensor_findings import (
    describe_clamped_scales,
    describe_largest_error,
    describe_lost_elements,
    describe_native_arithmetic,
    describe_worst_tensor,
)


def list_findings(
    group: Group, comparisons: Mapping[Path, Comparison], effects: Sequence[KnobEffect], shown: Sequence[str] = ()
) -> list[Finding]:
    """List what can be said of a group of runs.

    Args:
        comparisons: each run compared with its baseline, by the run's folder.
        effects: neighbours in each knob, compared.
        shown: the knobs that tell runs apart.
    """
    quantized = [row for row in group.rows if not row.is_baseline]
    findings = [finding for effect in effects for finding in describe_no_effect(effect)]
    return [
        *findings,
        *describe_cost_of_kv(effects, comparisons),
        *describe_error_change(effects),
        *describe_largest_error(quantized),
        *describe_worst_tensor(quantized),
        *describe_lost_elements(quantized),
        *describe_clamped_scales(quantized),
        *describe_native_arithmetic(quantized),
        *describe_distance(effects, shown),
        *_describe_noise(group),
        *_describe_repeats(comparisons),
    ]


def _describe_repeats(comparisons: Mapping[Path, Comparison]) -> Iterable[Finding]:
    """Say that tests leave out examples that ask the same as others."""
    repeated = [comparison for comparison in comparisons.values() if comparison.repeats]
    if repeated:
        most = max(repeated, key=lambda comparison: comparison.repeats)
        text = (
            f"{most.repeats:,} of {most.repeats + most.n:,} examples ask the same as another one. Differences are "
            f"tested over the {most.n:,} that differ, and their intervals are of those; metrics and their standard "
            "errors count every example."
        )
        yield Finding("examples", text, run_ids(comparison.row for comparison in repeated))


def _describe_noise(group: Group) -> Iterable[Finding]:
    """Say how far repeats of one config differ."""
    repeated = [row for row in group.rows if row.noise]
    for name, rows in (
        ("an unquantized", [row for row in repeated if row.is_baseline]),
        ("a quantized", [row for row in repeated if not row.is_baseline]),
    ):
        accuracies = [spread[0] for row in rows if (spread := _largest_deviation(row, row.accuracy_name)) is not None]
        perplexities = [spread[1] for row in rows if (spread := _largest_deviation(row, row.ppl_name)) is not None]
        most = max(accuracies, default=0.0)
        parts = [f"accuracy {f'by up to {most:.2g}' if most else 'not at all'}"] if accuracies else []
        size = max(perplexities, default=0.0)
        parts += [f"perplexity by {f'up to {size:.2%}' if size >= 5e-5 else 'less than 0.01%'}"] if perplexities else []
        margins = [spread[0] for row in rows if (spread := _largest_deviation(row, MARGIN)) is not None]
        parts += [f"mean margin by up to {max(margins):.2g} nats"] if margins else []
        if parts:
            repeats = [len(next(iter(row.noise.values()))) for row in rows]
            text = (
                f"Repeating {name} config with rounding-sized perturbations moves its {join_with_and(parts)} "
                f"({format_runs(len(rows))}, {format_range(repeats, 'd')} repeats each)."
            )
            yield Finding("noise", text, run_ids(rows))


def _largest_deviation(row: Row, metric: str | None) -> tuple[float, float] | None:
    """Return how far repeats are from the unperturbed metric at most, absolutely and relatively; None without any."""
    if metric not in row.metrics or metric not in row.noise:
        return None
    value = row.metrics[metric]
    most = max((abs(repeat - value) for repeat in row.noise[metric]), default=math.nan)
    return (most, most / value if value else math.inf) if math.isfinite(most) else None
