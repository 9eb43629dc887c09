"""Compute what is to be said of a group of runs, once, for every table, figure and sentence about it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mxsweep.formats.cached_bits import USUAL_CONTEXT
from mxsweep.results.groups import Group, Results
from mxsweep.results.knob_words import goes_with_format, name_rows, usual_values
from mxsweep.results.rows import Row, label
from mxsweep.study.attribution import Attribution, describe_attributions, find_attributions
from mxsweep.study.attribution_verdict import asks_what_costs_what, say_what_costs_what
from mxsweep.study.block_directions import describe_block_sizes
from mxsweep.study.comparison import Comparison, compare_with_baselines
from mxsweep.study.finding import Finding, run_ids
from mxsweep.study.findings import list_findings
from mxsweep.study.headline import loss_metric
from mxsweep.study.knob_effects import KnobEffect, find_knob_effects
from mxsweep.study.remedy_steps import RemedySteps, arrange_remedy_steps, describe_remedy_steps
from mxsweep.study.silent_tasks import say_nothing_told, tells_nothing
from mxsweep.study.trained_configs import has_seeds
from mxsweep.study.training_ranking import TrainingStudy, describe_trainings, study_trainings
from mxsweep.study.value_pairs import Examples, KnobValues, study_values
from mxsweep.study.verdict import Verdict, give_verdict
from mxsweep.study.verdict_words import VerdictLine

MOST_SAID = 5  # of trainings, in the verdict
TRAINING, BASELINE, TASK = "Training", "Baseline", "Task"  # titles of lines
OF_ONE_SEED = (
    "Each of these runs is one seed of its config, and what a config does over its seeds is said of its validation "
    "loss, so none is chosen or ranked here."
)
WITHOUT_BASELINE = (
    "The unquantized model knows no more of this task than a guess does, so differences from it say nothing of what "
    "quantizing costs, and no config is chosen. The warning of the baseline names likely causes."
)


@dataclass(frozen=True)
class Study:
    """Hold a group, its comparisons, and what is drawn from them."""

    results: Results
    group: Group
    comparisons: dict[Path, Comparison]  # each quantized run with its baseline, by the run's folder
    effects: list[KnobEffect]
    values: list[KnobValues]
    verdict: Verdict
    remedy_steps: list[RemedySteps]
    findings: list[Finding]
    loss_metric: str | None
    attributions: list[Attribution]
    training: TrainingStudy | None = None  # of a group of the held-out losses of trained models
    asks_what_costs_what: bool = False  # the runs were made to take configs apart

    @property
    def rows(self) -> list[Row]:
        """Return the group's rows."""
        return self.group.rows

    @property
    def has_baseline(self) -> bool:
        """Return whether there is anything to compare with."""
        return any(row.is_baseline for row in self.rows)

    @cached_property
    def baselines(self) -> dict[Path, Row | None]:
        """Return the baseline that each run is compared with, by the run's folder."""
        return {row.run.path: self.group.baseline_for(row) for row in self.rows}

    @cached_property
    def examples(self) -> Examples:
        """Return what the runs answered to the same examples."""
        return Examples(self.group)

    @cached_property
    def swept(self) -> list[str]:
        """Return the knobs that have more than one value among the quantized runs."""
        return self._varying([row for row in self.rows if not row.is_baseline])

    @cached_property
    def naming(self) -> list[str]:
        """Return the swept knobs that name a config in words: those that go with the format do not."""
        bound = goes_with_format(self.swept, [row for row in self.rows if not row.is_baseline])
        return [name for name in self.swept if name not in bound]

    @cached_property
    def usual(self) -> dict[str, Any]:
        """Return the values that go unsaid where a config is named by many knobs."""
        return usual_values([row for row in self.rows if not row.is_baseline], self.naming)

    @cached_property
    def _swept_baselines(self) -> list[str]:
        return self._varying([row for row in self.rows if row.is_baseline])

    def _varying(self, rows: Sequence[Row]) -> list[str]:
        return [name for name in self.results.shown if count_values(rows, name) > 1]

    def config_text(self, row: Row, without: Sequence[str] = ()) -> str:
        """Return the knobs that tell a row from others of its kind, quantized or not; its format, if none does."""
        names = self._swept_baselines if row.is_baseline else self.swept
        return name_rows([row], [name for name in names if name not in without], self.usual)


def study_group(results: Results, group: Group, context: int = USUAL_CONTEXT) -> Study:
    """Compare the runs of a group with their baselines and with each other.

    Args:
        context: the tokens whose keys and values count as memory.
    """
    comparisons, effects = compare_with_baselines(group), find_knob_effects(results, group)
    steps = arrange_remedy_steps(results, group)
    attributions = find_attributions(results, group, comparisons)
    training = study_trainings(results, group)
    said = describe_trainings(training) if training is not None else []
    values = study_values(results, group)
    lines = [VerdictLine(TRAINING, finding.text, finding.runs) for finding in said[:MOST_SAID]] or _withheld(group)
    asked = asks_what_costs_what(group, attributions)
    answers = say_what_costs_what(results, group, attributions) if asked else []
    verdict = Verdict(lines, None, []) if lines else give_verdict(results, group, comparisons, values, answers, context)
    return Study(
        results,
        group,
        comparisons,
        effects,
        values,
        verdict,
        steps,
        [
            *said,
            *describe_attributions(attributions),
            *describe_remedy_steps(steps),
            *describe_block_sizes(results.shown, group),
            *list_findings(group, comparisons, effects, results.shown),
        ],
        loss_metric(group),
        attributions,
        training,
        asked,
    )


def _withheld(group: Group) -> list[VerdictLine]:
    """Return a line that says why there is no verdict by example on a group; none where there may be one."""
    if guessing := group.guessing_baselines():
        return [VerdictLine(BASELINE, WITHOUT_BASELINE, run_ids(guessing))]
    if has_seeds(group):
        return [VerdictLine(TRAINING, OF_ONE_SEED, [])]
    return [VerdictLine(TASK, say_nothing_told(group), run_ids(group.rows))] if tells_nothing(group) else []


def study_groups(results: Results, context: int = USUAL_CONTEXT) -> list[Study]:
    """Study each group, with memory counted at a context of so many tokens."""
    return [study_group(results, group, context) for group in results.groups]


def count_values(rows: Sequence[Row], name: str) -> int:
    """Count the values that a knob has in rows; having no effect is none."""
    return len({label(row.knobs[name]) for row in rows if name in row.knobs})
