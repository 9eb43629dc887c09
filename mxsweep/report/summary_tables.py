"""Make the tables beside those of all runs: remedies, published numbers, runs that are not done."""

from collections.abc import Sequence

from mxsweep.report.column_table import MEASURED
from mxsweep.report.columns import Column, ComparedRow, Output
from mxsweep.report.metric_columns import metric_column
from mxsweep.report.run_table import lay_out
from mxsweep.report.shared_paths import shared_path
from mxsweep.report.table import Cell, Table, text_cells
from mxsweep.report.wording import ABSENT, format_value, metric_cell, one_line, speed
from mxsweep.results.groups import Group, Results
from mxsweep.results.metrics import decimals, short_title
from mxsweep.results.record import RunFolder
from mxsweep.results.remedies import remedy_sentences
from mxsweep.results.rows import label
from mxsweep.study.group_study import Study
from mxsweep.study.published import Reference, match_reference
from mxsweep.study.remedy_steps import RemedyStep, RemedySteps, format_share


def won_back_table(group: Group, won: Sequence[RemedySteps]) -> Table:
    """Return of each base configuration the baseline, the run without remedies, and the steps from there."""
    steps = [
        (one, step)
        for one in won
        for step in ([RemedyStep(one.baseline, "baseline")] if one.baseline is not None else []) + one.steps
    ]
    rows = [step.row for _, step in steps]
    entries = [ComparedRow(step.row, step.before.other if step.before else None, step.before) for _, step in steps]
    metrics = [metric_column(name) for name in group.metric_names()]
    closed = {id(step.row): format_share(step.closed) or ABSENT for _, step in steps}
    gap = Column("gap_closed", "", lambda row: None, lambda row: closed[id(row)], title="gap closed", keeps_empty=True)
    columns = [column for column in (*metrics, *MEASURED) if column.shows(rows, Output.STEPS)]
    columns.insert(sum(column in metrics for column in columns), gap)
    names = {"config": [one.config for one, _ in steps]} if any(one.config for one in won) else {}
    names |= {"remedies": [step.text for _, step in steps], "step before": [s.before_text or ABSENT for _, s in steps]}
    return _with_columns_before(lay_out(columns, entries, Output.STEPS), names)


def remedy_outcomes(study: Study) -> list[tuple[str, str]]:
    """List what searches and budgets found: a run's config, and a sentence."""
    return [(study.config_text(row), text) for row in study.rows for text in remedy_sentences(row.run.record)]


def reference_table(results: Results, reference: Reference) -> tuple[Table, str]:
    """Return published runs beside ours with the same knobs, and a sentence on what stands alone."""
    pairs = match_reference(results, reference)
    published = [pair for pair in pairs if pair.theirs is not None]
    knobs = list(dict.fromkeys(name for pair in published if pair.theirs for name in pair.theirs.knobs))
    names = [name for row in reference.rows for name in row.metrics if not name.endswith("_stderr")]
    table: list[dict[str, str]] = []
    for pair in published:
        theirs, ours = pair.theirs, pair.ours
        if theirs is None:
            continue
        cells = {name: label(theirs.knobs[name]) if name in theirs.knobs else ABSENT for name in knobs}
        for name in dict.fromkeys(names):
            title, digits = short_title(name), decimals(name)
            value = theirs.metrics.get(name)
            cells[f"{title}, theirs"] = format_value(value, theirs.metrics.get(f"{name}_stderr"), digits)
            cells[f"{title}, ours"] = metric_cell(ours, name) if ours else ABSENT
            delta = pair.difference.get(name) if pair.same_examples else None
            cells[f"Δ {title}"] = ABSENT if delta is None else f"{delta:+.{4 if digits else 3}f}"
        cells["eval_time_s, theirs"] = speed(theirs.eval_time_s)
        cells["eval_time_s, ours"] = speed(ours.eval_time_s if ours else None)
        seconds = pair.difference.get("eval_time_s") if pair.same_examples else None
        cells["Δ eval_time_s"] = ABSENT if seconds is None else f"{seconds:+.1f}"
        cells["n, theirs"] = ABSENT if theirs.n is None else str(theirs.n)
        cells["n, ours"] = ABSENT if ours is None or ours.n is None else str(ours.n)
        differing = [name for name, each in pair.conditions.items() if each.match is False]
        same = [name for name, each in pair.conditions.items() if each.match]
        cells["other conditions"] = (pair.note or "") if ours is None else ", ".join(differing) or "none"
        cells["same conditions"] = ", ".join(same) or ABSENT
        table.append(cells | {"run_id": ours.run.run_id if ours else ABSENT})
    with_ours = {id(pair.theirs) for pair in published if pair.ours is not None}
    elsewhere = {id(pair.theirs) for pair in published if pair.ours is not None and not pair.same_examples}
    alone = sum(pair.theirs is None for pair in pairs)
    said = (
        "Δ is ours minus theirs, where both are of the same task, limit and number of examples. Of "
        f"{len(reference.rows)} published rows, {len(with_ours)} have ours beside them, which agree in every knob that "
        f"the reference names ({len(elsewhere)} of them on other examples only); {alone} rows of ours have no "
        "published one."
    )
    return _as_table(table), said


def failure_table(runs: Sequence[RunFolder]) -> Table:
    """Return the runs that are not done, and why."""
    rows = [[shared_path(run.path), " ".join(run.overrides) or ABSENT, one_line(run.reason)] for run in runs]
    return Table("", ["folder", "overrides", "reason"], [text_cells(row) for row in rows])


def page_failure_table(runs: Sequence[RunFolder]) -> Table:
    """Return the same for the page, whose cells wrap: ids and whole reasons."""
    rows = [
        [
            Cell(run.path.name),
            Cell(" ".join(run.overrides) or ABSENT),
            Cell(run.reason or ABSENT),
            Cell(shared_path(run.path)),
        ]
        for run in runs
    ]
    return Table("", ["run", "overrides", "why", "folder"], rows)


def _with_columns_before(table: Table, columns: dict[str, list[str]]) -> Table:
    """Return the table with columns of texts on its left."""
    beside = zip(*columns.values(), strict=True)
    rows = [[*text_cells(texts), *row] for texts, row in zip(beside, table.rows, strict=True)]
    return Table(table.caption, [*columns, *table.columns], rows)


def _as_table(rows: Sequence[dict[str, str]]) -> Table:
    """Return texts by title as a table; a row lacks what it does not name."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return Table("", columns, [[Cell(row.get(name, "")) for name in columns] for row in rows])
