"""Write report.html: one file that opens from disk, needs no network, and is readable without JavaScript.

Figures are drawn by Vega, whose scripts vl-convert carries. A Content-Security-Policy forbids every request and every
script but the page's own three, known by their hashes: a text of a user's that got past the escaping would still not
run. Vega then evaluates its expressions by interpreting them, since the policy forbids eval as well.

Tables are HTML, with a script of the page's own to sort, filter and group them. The bundle of DataTables that comes
with itables does not suit: it is an ES module, to be imported from a blob, which the policy would have to allow; it is
725 kB, most of it for what is not used here; and it takes the rows that it does not show out of the page, and so from
print.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from mxsweep.files.atomic import write_atomically
from mxsweep.machine.versions import version_of
from mxsweep.report.attribution_tables import COST_NOTE, SUM_NOTE, cost_table, sum_table
from mxsweep.report.figures.costs import ABOUT as VERDICT
from mxsweep.report.figures.error_heat_map import MEASURES, HeatMap
from mxsweep.report.figures.figure import Figure
from mxsweep.report.figures.figure_files import Drawn
from mxsweep.report.figures.trade_off import ABOUT as TRADE_OFF
from mxsweep.report.figures.training_figures import ABOUT as TRAINING
from mxsweep.report.memory_tables import MEMORY_TITLE, memory_front
from mxsweep.report.page import evidence
from mxsweep.report.page.environments import environments
from mxsweep.report.page.knob_views import VALUES_NOTE, KnobView, knob_views
from mxsweep.report.page.run_views import RunTable, run_views
from mxsweep.report.page.scripts import as_json, closed, policy, vega
from mxsweep.report.result_texts import (
    COMPARED_NOTE,
    NO_BASELINE,
    OF_TRAININGS_NOTE,
    SEVERAL_TASKS_NOTE,
    SPEED_NOTE,
    STATUS_TITLES,
    WON_BACK_NOTE,
    has_several_tasks,
    published_tables,
    summary,
    warnings,
)
from mxsweep.report.shared_paths import without_homes
from mxsweep.report.study_title import about_group, measured_text, study_title
from mxsweep.report.summary_tables import page_failure_table, remedy_outcomes, won_back_table
from mxsweep.report.table import Table
from mxsweep.report.training_tables import PAIRS_NOTE, RANKING_NOTE, pair_table, ranking_table
from mxsweep.results.groups import Results
from mxsweep.results.rows import label
from mxsweep.study.attribution import ATTRIBUTION_TITLE
from mxsweep.study.comparison import explain_groups
from mxsweep.study.finding import Finding
from mxsweep.study.group_study import Study
from mxsweep.study.memory_terms import DEFAULT_TERMS, Terms
from mxsweep.study.published import Reference
from mxsweep.study.training_ranking import TrainingStudy
from mxsweep.study.verdict import Verdict

REPORT_NAME = "report.html"
HERE = Path(__file__).parent
MOST_FINDINGS = 6  # of a kind, before the others fold away
MOST_NOTED = 8  # runs of a Pareto front, before the others fold away
MOST_NAMED = 30  # runs that a finding rests on and that are named
NOTES = {  # and titles, by their names in the template
    "baseline": NO_BASELINE.replace("`", ""),
    "speed": SPEED_NOTE,
    "compared": COMPARED_NOTE,
    "trainings": OF_TRAININGS_NOTE,
    "knobs": VALUES_NOTE,
    "won_back": WON_BACK_NOTE,
    "memory_title": MEMORY_TITLE,
    "costs_title": ATTRIBUTION_TITLE,
    "costs": COST_NOTE,
    "sums": SUM_NOTE,
    "ranking": RANKING_NOTE,
    "pairs": PAIRS_NOTE,
}


@dataclass(frozen=True)
class TrainingView:
    """Hold what the template shows of a group's trainings."""

    ranking: Table
    pairs: Table
    said: str  # of the pairs
    figures: list[Figure]
    notes: list[str]
    unread: list[str]


@dataclass(frozen=True)
class GroupView:
    """Hold what the template shows of a group."""

    id: str
    study: Study
    heading: str
    about: str  # what was measured, in words
    verdict: Verdict
    no_verdict: str  # said where it has no line
    costs_figure: Figure | None
    values: list[KnobView]
    findings: list[Finding]
    more_findings: list[Finding]  # of a kind that has MOST_FINDINGS already
    trade_off: Figure | None
    heat: HeatMap | None
    training: TrainingView | None
    costs: Table | None  # of each kind of tensor by itself
    sums: Table | None  # of such costs beside that of all together
    memory: tuple[Table, str] | None  # what memory buys
    table: RunTable
    speeds: Table
    effects: list[tuple[str, str, Table]]  # a knob, how many pairs of runs, and what they differ by
    won_back: Table | None
    remedy_outcomes: list[tuple[str, str]]  # of searches and budgets: a run's config, and a sentence
    errors: Table | None
    distances: Table | None
    samples: list[str]
    noise: Table | None
    floors: Table | None
    not_compared: list[str]

    @property
    def numbers(self) -> dict[str, int]:
        """Return the number of each run in the full table, by its id; of two with one id, the last."""
        return {run.run_id: run.number for run in self.table.runs}


def write_page(
    results: Results,
    studied: Sequence[Study],
    drawn: Drawn,
    reference: Reference | None,
    folder: Path,
    terms: Terms = DEFAULT_TERMS,
) -> list[Path]:
    """Write report.html to `folder`, and return its path in a list. Raises OSError."""
    alone = len(studied) == 1
    groups = [_group(index, study, drawn, folder, terms, alone) for index, study in enumerate(studied, 1)]
    data = _drawn_data(groups)
    drawing = vega() if data["figures"] else None
    scripts = [*([drawing] if drawing else []), closed((HERE / "report.js").read_text(encoding="utf-8"))]
    html = (
        _environment()
        .get_template("report.html.jinja")
        .render(
            title=study_title(results),
            version=version_of("mxsweep"),
            written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            policy=policy(scripts),
            style=Markup((HERE / "report.css").read_text(encoding="utf-8")),
            scripts=[Markup(script) for script in scripts],
            data=Markup(as_json(data)),
            results=results,
            summary=summary(results),
            constants={name: label(value) for name, value in results.constants.items()},
            why_groups=explain_groups(results),
            groups=groups,
            reference=_reference(results, reference),
            environments=environments(results),
            warnings=warnings(results),
            undone=[
                (title, page_failure_table(runs))
                for status, title in STATUS_TITLES.items()
                if (runs := results.with_status(status))
            ],
            notes=NOTES | {"tasks": SEVERAL_TASKS_NOTE if has_several_tasks(results) else ""},
            most_named=MOST_NAMED,
            most_noted=MOST_NOTED,
            measures={name: title for name, (title, _) in MEASURES.items()},
        )
    )
    path = folder / REPORT_NAME
    write_atomically(path, without_homes(html), durable=False)
    return [path]


def _drawn_data(groups: Sequence[GroupView]) -> dict[str, dict[str, Any]]:
    """Return what the page's script draws: the chart of each figure and the runs of each heat map, by their stems."""
    figures = [figure for group in groups for knob in group.values for figure in knob.figures]
    figures += [group.trade_off for group in groups if group.trade_off]
    figures += [figure for group in groups if group.training for figure in group.training.figures]
    figures += [group.heat.figure for group in groups if group.heat]
    figures += [group.costs_figure for group in groups if group.costs_figure]
    return {
        "figures": {figure.stem: figure.page_spec() for figure in figures},
        "heat": {group.heat.figure.stem: _heat(group.heat) for group in groups if group.heat},
    }


def _environment() -> Environment:
    loader = PackageLoader("mxsweep.report", "page")
    environment = Environment(
        loader=loader,
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment


def _group(index: int, study: Study, drawn: Drawn, folder: Path, terms: Terms, alone: bool) -> GroupView:
    figures, heat = drawn.get(study.group.slug, ([], None))
    shown = [finding for kind in _by_kind(study.findings) for finding in kind[:MOST_FINDINGS]]
    reasons = [c.why_not or c.note for c in study.comparisons.values()]
    return GroupView(
        id=f"group-{index}",
        study=study,
        heading=_sentence(measured_text(study.group)),
        about=about_group(study.group, alone),
        verdict=study.verdict,
        no_verdict=_no_verdict(study),
        costs_figure=next((figure for figure in figures if figure.about == VERDICT), None),
        values=knob_views(study, figures),
        findings=[finding for finding in study.findings if finding in shown],
        more_findings=[finding for finding in study.findings if finding not in shown],
        trade_off=next((figure for figure in figures if figure.about == TRADE_OFF), None),
        heat=heat,
        training=_training(study.training, [figure for figure in figures if figure.about == TRAINING]),
        costs=cost_table(study.attributions) if study.attributions else None,
        sums=sum_table(study.attributions) if any(one.sums for one in study.attributions) else None,
        memory=memory_front(study, terms),
        table=run_views(study, folder),
        speeds=evidence.speed_table(study),
        won_back=won_back_table(study.group, study.remedy_steps) if study.remedy_steps else None,
        remedy_outcomes=remedy_outcomes(study),
        effects=[evidence.effect_view(study, effect) for effect in study.effects],
        errors=evidence.error_table(study),
        distances=evidence.distance_table(study),
        samples=evidence.sample_descriptions(study),
        noise=evidence.noise_table(study),
        floors=evidence.floor_table(study),
        not_compared=list(dict.fromkeys(reason for reason in reasons if reason))[:5],
    )


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}"


def _no_verdict(study: Study) -> str:
    """Say why there is no answer, where there is none."""
    if study.training is not None and study.training.ranked:
        return "See what training in these formats costs, below."
    if all(row.is_baseline for row in study.rows):
        return "Nothing is quantized in these runs, so there is no cost to measure."
    return "No quantized run has a metric that can be judged."


def _training(study: TrainingStudy | None, figures: list[Figure]) -> TrainingView | None:
    if study is None:
        return None
    pairs, said = pair_table(study)
    return TrainingView(ranking_table(study), pairs, said, figures, study.notes, study.unread)


def _by_kind(findings: Sequence[Finding]) -> list[list[Finding]]:
    return [[one for one in findings if one.kind == kind] for kind in dict.fromkeys(one.kind for one in findings)]


def _heat(heat: HeatMap) -> dict[str, Any]:
    return {
        "runs": heat.runs,
        "columns": heat.columns,
        "layers": heat.layers,
        "widths": heat.widths,
        "parts": heat.parts,
        "pieces": heat.pieces,
        "measures": [{"name": name, "title": title} for name, (title, _) in MEASURES.items()],
    }


def _reference(results: Results, reference: Reference | None) -> dict[str, Any] | None:
    if reference is None:
        return None
    tables = [
        (replace(table, caption=f"Published by {reference.source}" if reference.rows else ""), said)
        for table, said in published_tables(results, reference)
    ]
    conditions = ", ".join(f"{name} {label(value)}" for name, value in reference.conditions.items())
    return {"tables": tables, "source": reference.source, "conditions": conditions}
