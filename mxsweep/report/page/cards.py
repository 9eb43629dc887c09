"""The headline's runs as cards: each with its differences from its baseline, and how it was chosen."""

from dataclasses import dataclass

from mxsweep.report.wording import (
    ABSENT,
    difference,
    format_value,
    interval,
    metric_cell,
    significance,
    size,
    speed,
)
from mxsweep.results.metrics import short_title
from mxsweep.study.group_study import Study
from mxsweep.study.headline import Pick


@dataclass(frozen=True)
class Metric:
    """A line of a card."""

    title: str
    value: str
    change: str = ""
    interval: str = ""
    verdict: str = ""


@dataclass(frozen=True)
class Card:
    """One of the headline's runs."""

    title: str
    config: str
    chosen: str
    run_id: str
    metrics: list[Metric]


def cards(study: Study) -> list[Card]:
    """The headline's runs, each with its differences from its baseline."""
    return [_card(study, pick) for pick in study.picks]


def _card(study: Study, pick: Pick) -> Card:
    row, comparison = pick.row, study.against.get(pick.row.run.path)
    metrics = []
    for name in study.group.metric_names():
        change = difference(row, pick.baseline, name)
        metrics.append(
            Metric(
                short_title(name),
                metric_cell(row, name),
                "" if change == ABSENT else change,
                interval(comparison, name),
                significance(comparison, name),
            )
        )
    base = pick.baseline
    if row.bits_per_weight is not None:
        metrics.append(Metric("bits per weight", format_value(row.bits_per_weight)))
    if row.parameter_bytes is not None:
        share = (
            f"{row.parameter_bytes / base.parameter_bytes:.0%} of the baseline" if base and base.parameter_bytes else ""
        )
        metrics.append(Metric("parameters", f"{size(row.parameter_bytes)} MB", share))
    if row.examples_per_sec is not None:
        rate = base.examples_per_sec if base else None
        times = f"{row.examples_per_sec / rate:.2f} × the baseline" if rate else ""
        metrics.append(Metric("simulated, examples/sec", speed(row.examples_per_sec), times))
    config = "nothing quantized" if row.is_baseline else study.config_text(row)
    return Card(pick.title, config, pick.chosen, row.run.run_id, metrics)
