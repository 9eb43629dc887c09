"""What is computed of a group of runs, once, for every table, figure and sentence about it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from mxsweep.results.groups import Group, Results
from mxsweep.results.rows import Row, label
from mxsweep.study.compare import Comparison, KnobEffect, against_baselines, knob_effects
from mxsweep.study.findings import Finding, findings
from mxsweep.study.headline import Pick, headline, loss_metric, pareto_front
from mxsweep.study.won_back import WonBack, sentences, won_back


@dataclass(frozen=True)
class Study:
    """A group, its comparisons, and what is drawn from them."""

    results: Results
    group: Group
    against: dict[Path, Comparison]  # each quantized run with its baseline, by the run's folder
    effects: list[KnobEffect]
    won_back: list[WonBack]
    picks: list[Pick]
    findings: list[Finding]
    front: list[Row]  # of effective bits per weight and loss
    loss_metric: str | None

    @property
    def rows(self) -> list[Row]:
        """The group's rows."""
        return self.group.rows

    @property
    def has_baseline(self) -> bool:
        """Whether there is anything to compare with."""
        return any(row.is_baseline for row in self.rows)

    @cached_property
    def baselines(self) -> dict[Path, Row | None]:
        """The baseline that each run is compared with, by the run's folder."""
        return {row.run.path: self.group.baseline_for(row) for row in self.rows}

    @cached_property
    def swept(self) -> list[str]:
        """The knobs that have more than one value among the quantized runs."""
        return self._varying([row for row in self.rows if not row.is_baseline])

    @cached_property
    def _swept_baselines(self) -> list[str]:
        return self._varying([row for row in self.rows if row.is_baseline])

    def _varying(self, rows: Sequence[Row]) -> list[str]:
        return [name for name in self.results.shown if values_of(rows, name) > 1]

    def config_text(self, row: Row, without: Sequence[str] = ()) -> str:
        """The knobs that tell a quantized row from the others, or a baseline from others; its format, if none does."""
        names = self._swept_baselines if row.is_baseline else self.swept
        words = [f"{name}={label(row.knobs[name])}" for name in names if name in row.knobs and name not in without]
        return " ".join(words) or f"format={label(row.knobs.get('format'))}"


def study(results: Results, group: Group) -> Study:
    """Compare the runs of a group with their baselines and with each other."""
    against, effects, won = against_baselines(group), knob_effects(results, group), won_back(results, group)
    return Study(
        results,
        group,
        against,
        effects,
        won,
        headline(group),
        sentences(won) + findings(group, against, effects, results.shown),
        pareto_front(group),
        loss_metric(group),
    )


def studies(results: Results) -> list[Study]:
    """A study of each group."""
    return [study(results, group) for group in results.groups]


def values_of(rows: Sequence[Row], name: str) -> int:
    """How many values a knob has in rows; that it has no effect is none."""
    return len({label(row.knobs[name]) for row in rows if name in row.knobs})
