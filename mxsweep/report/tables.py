"""Results as text: the table in the terminal, results.md, results.csv and results.parquet.

results.tex is in latex.py; how a number is written, in text.py; which runs the headline names, in headline.py.
"""

import csv
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from tabulate import tabulate

from mxsweep.report.wording import (
    ABSENT,
    difference,
    format_value,
    interval,
    metric_cell,
    one_line,
    p_of,
    p_value,
    significance,
    size,
    speed,
)
from mxsweep.results.groups import Group, Results, columns
from mxsweep.results.metrics import betterness, short_title
from mxsweep.results.record import RunFolder
from mxsweep.results.remedies import what_was_found
from mxsweep.results.rows import Row, label
from mxsweep.study.compare import Comparison, why_groups
from mxsweep.study.group_study import Study, studies
from mxsweep.study.published import Reference, match
from mxsweep.study.won_back import Step, WonBack, share_text, won_back

NO_BASELINE = (
    "No baseline among these runs, so no differences are given. A baseline is the same model, task and limit "
    "with nothing quantized: run it with `format=none kv_quant=none` and collect both folders together."
)
HEADLINE_NOTE = (
    "A difference is the run minus the baseline, computed when the results were collected; ± is one standard "
    "error of the run by itself."
)
COMPARED_NOTE = (
    "[…] is the 95 % interval of the difference, paired over the same examples (of a perplexity: of its ratio); p is "
    "of McNemar's exact test for accuracy and of a paired t test for log-perplexity, adjusted by Holm's method over "
    "the runs of a table."
)
WON_BACK_NOTE = (
    "Δ is the difference from the step before, the best of the runs with some of its remedies or weaker forms of them "
    "(clip than gptq, a rotation of all than one searched); […] is its 95 % interval, paired over "
    "the same examples (of a perplexity: of its ratio); significant after Holm's correction over the steps of a group. "
    "The gap is that in log-perplexity which quantizing without remedies opens to the baseline; the interval of the "
    "share closed is that of a ratio of paired sums, linearized (the delta method)."
)
MOST_STEPS = 24  # of remedies, in a terminal
SPEED_NOTE = (
    "examples/sec is the speed of simulating a format on this computer, not of hardware that has the format; single "
    "runs vary, and on a GPU a process's first one, often the baseline, takes longer than it would later."
)
SEVERAL_TASKS_NOTE = "eval_time_s and examples/sec are those of the whole run, all its tasks together."
STATUS_TITLES = {
    "failed": "Failed",
    "running": "Running",
    "missing": "Missing (no result.json)",
    "unreadable": "Unreadable",
}


def summary(results: Results) -> str:
    """How many runs there are, by what became of them."""
    counts = {status: len(results.with_status(status)) for status in ("done", *STATUS_TITLES)}
    return ", ".join(f"{count} {status}" for status, count in counts.items() if count or status == "done")


def constants_line(results: Results) -> str:
    """The knobs that the tables leave out because they are the same in every run."""
    knobs = (f"{name}={label(value)}" for name, value in results.constants.items())
    return "Same in every finished run: " + ", ".join(knobs)


def terminal_text(results: Results, reference: Reference | None = None) -> str:
    """What `python -m mxsweep.collect` prints: a table for each group, then what is not done and why."""
    parts = [constants_line(results)] if results.constants else []
    for group in results.groups:
        table = tabulate(full_table(results, group), headers="keys", tablefmt="simple", disable_numparse=True)
        parts.append(f"{heading(group)}\n\n{table}")
        if not any(row.is_baseline for row in group.rows):
            parts.append(NO_BASELINE.replace("`", ""))
        steps = won_back_table(group, won_back(results, group))
        if 0 < len(steps) <= MOST_STEPS:
            cells = [{name: cell for name, cell in step.items() if name != "run_id"} for step in steps]
            table = tabulate(cells, headers="keys", tablefmt="simple", disable_numparse=True)
            parts += ["What the remedies win back", table]
    if results.groups:
        parts.append(SPEED_NOTE)
    if reference is not None:
        rows, said = reference_table(results, reference)
        table = tabulate(rows, headers="keys", disable_numparse=True)
        parts += [f"Published: {reference.source}", table, said]
    if has_several_tasks(results):
        parts.append(SEVERAL_TASKS_NOTE)
    if warned := warnings(results):
        parts.append("\n".join(["Warnings", *(f"  {line}" for line in warned)]))
    for status, title in STATUS_TITLES.items():
        if runs := results.with_status(status):
            lines = [f"{title}: {len(runs)}"]
            for run in runs:
                lines.append(f"  {run.path}  {' '.join(run.overrides)}".rstrip())
                lines.append(f"      {one_line(run.reason, 300)}")
            parts.append("\n".join(lines))
    return "\n\n".join(parts)


def markdown_text(
    results: Results,
    figures: Mapping[str, Sequence[Path]],
    studied: Sequence[Study] | None = None,
    reference: Reference | None = None,
) -> str:
    """results.md: for each group headline, findings, full table and `figures` (by slug), then the runs not done."""
    parts = ["# Results", f"Runs: {summary(results)}."]
    if results.constants:
        parts.append(escape(constants_line(results)) + ".")
    if why := why_groups(results):
        parts.append(escape(why))
    for study in studies(results) if studied is None else studied:
        group = study.group
        parts += [f"## {escape(heading(group))}", "### Headline", markdown(headline_table(study))]
        if not study.has_baseline:
            parts.append(NO_BASELINE)
        parts.append(f"{HEADLINE_NOTE} {SPEED_NOTE}")
        chosen = {pick.title.split(" (")[0]: pick.chosen for pick in study.picks if pick.chosen}
        parts.append("\n".join(f"- {escape(title)}: {escape(how)}." for title, how in chosen.items()))
        if study.findings:
            parts += ["### What the numbers say", "\n".join(f"- {escape(found.text)}" for found in study.findings)]
        parts += _won_back_parts(study)
        parts += ["### All runs", markdown(full_table(results, group, study.against))]
        if any(comparison.n for comparison in study.against.values()):
            parts.append(COMPARED_NOTE)
        if has_several_tasks(results):
            parts.append(SEVERAL_TASKS_NOTE)
        parts += [
            f"![{path.stem.replace('_', ' ')}]({path.name})"
            for path in figures.get(group.slug, [])
            if path.suffix == ".png"
        ]
    if reference is not None:
        rows, said = reference_table(results, reference)
        parts += ["## Against published numbers", escape(reference.source), markdown(rows), escape(said)]
    if warned := warnings(results):
        parts += ["## Warnings", "\n".join(f"- {escape(line)}" for line in warned)]
    for status, title in STATUS_TITLES.items():
        if runs := results.with_status(status):
            parts += [f"## {title}: {len(runs)}", markdown([failure(run) for run in runs])]
    return "\n\n".join(part for part in parts if part) + "\n"


def _won_back_parts(study: Study) -> list[str]:
    found = [f"- {escape(config)}: {escape(text)}" for config, text in found_by_remedies(study)]
    parts = [markdown(won_back_table(study.group, study.won_back)), WON_BACK_NOTE] if study.won_back else []
    parts += ["\n".join(found)] if found else []
    return ["### What the remedies win back", *parts] if parts else []


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Every row and column. An empty cell has no value; a metric that came out NaN reads nan."""
    table = columns(rows)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(table)
        writer.writerows(zip(*table.values(), strict=True))


def write_parquet(path: Path, rows: Sequence[Row]) -> None:
    """Every row and column, typed. Written without pandas, which would make one thing of null and NaN."""
    import pyarrow as pa
    import pyarrow.parquet

    pa.parquet.write_table(pa.table(columns(rows)), path)


def has_several_tasks(results: Results) -> bool:
    """Whether any run evaluated more than one task."""
    return any(len((run.record or {}).get("metrics", {})) > 1 for run in results.with_status("done"))


def warnings(results: Results) -> list[str]:
    """What finished runs warn of, each once, with the runs that do: all, or by their ids."""
    done = results.with_status("done")
    by_message: dict[str, list[str]] = {}
    for run in done:
        told = (run.record or {}).get("warnings")
        for message in told if isinstance(told, list) else []:
            by_message.setdefault(one_line(str(message), 300), []).append(run.run_id)
    return [
        f"{'every run' if len(ids) == len(done) else ', '.join(ids)}: {message}" for message, ids in by_message.items()
    ]


def heading(group: Group) -> str:
    """A group's title, with the number of examples where it is the same in all its runs."""
    counts = {row.n for row in group.rows}
    return group.title + (f" (n = {counts.pop()})" if len(counts) == 1 and None not in counts else "")


def knob_cells(results: Results, row: Row) -> dict[str, str]:
    """The knobs that tell runs apart."""
    return {name: label(row.knobs[name]) if name in row.knobs else ABSENT for name in results.shown}


def full_table(
    results: Results, group: Group, against: Mapping[Path, Comparison] | None = None
) -> list[dict[str, str]]:
    """Every run of a group; with `against`, also intervals and p values of the differences from the baseline."""
    same_n = len({row.n for row in group.rows}) == 1
    has_baseline = any(row.is_baseline for row in group.rows)
    metrics = group.metric_names()
    compared = {name for name in metrics for c in (against or {}).values() if p_of(c, name) is not None}
    has_bits = against is not None and any(row.bits_per_weight is not None for row in group.rows)
    table = []
    for row in group.rows:
        cells = knob_cells(results, row)
        baseline = group.baseline_for(row)
        comparison = (against or {}).get(row.run.path)
        for name in metrics:
            title = short_title(name)
            cells[title] = metric_cell(row, name)
            if has_baseline and betterness(name):
                delta = [difference(row, baseline, name), interval(comparison, name)]
                cells[f"Δ {title}"] = " ".join(filter(None, delta))
            if name in compared:
                cells[f"p {title}"] = p_value(p_of(comparison, name))
        if has_bits:
            cells["bits/weight"] = format_value(row.bits_per_weight)
        if not same_n:
            cells["n"] = ABSENT if row.n is None else str(row.n)
        cells["eval_time_s"] = speed(row.eval_time_s)
        cells["examples/sec"] = speed(row.examples_per_sec)
        table.append(cells | {"run_id": row.run.run_id})
    return table


def won_back_table(group: Group, found: Sequence[WonBack]) -> list[dict[str, str]]:
    """Of each base configuration the baseline, the run without remedies, and the steps from there."""
    metrics = [name for name in group.metric_names() if betterness(name)]
    steps_before = [step.before for one in found for step in one.steps]
    compared = {name for name in metrics if any(p_of(each, name) is not None for each in steps_before)}
    timed = any(step.row.remedies_s is not None for one in found for step in one.steps)
    table = []
    for one in found:
        config = {"config": one.config} if one.config else {}
        steps = ([Step(one.baseline, "baseline")] if one.baseline is not None else []) + one.steps
        for step in steps:
            cells = config | {"remedies": step.text, "step before": step.before_text or ABSENT}
            for name in metrics:
                title = short_title(name)
                cells[title] = metric_cell(step.row, name)
                if name in compared:
                    change = difference(step.row, step.before.other, name) if step.before else ABSENT
                    cells[f"Δ {title}"] = " ".join(filter(None, [change, interval(step.before, name)]))
                    cells[f"Δ {title} is"] = significance(step.before, name) or ABSENT
            cells["gap closed"] = share_text(step.closed) or ABSENT
            cells["bits/weight"] = format_value(step.row.bits_per_weight)
            if timed:
                cells["remedies_s"] = speed(step.row.remedies_s)
            table.append(cells | {"run_id": step.row.run.run_id})
    return table


def found_by_remedies(study: Study) -> list[tuple[str, str]]:
    """What searches and budgets found: a run's config, and a sentence."""
    return [(study.config_text(row), text) for row in study.rows for text in what_was_found(row.run.record)]


def headline_table(study: Study) -> list[dict[str, str]]:
    """The picks, each metric followed by its difference from the pick's baseline."""
    group = study.group
    known = [name for name in group.metric_names() if betterness(name)]
    sized = any(pick.row.parameter_bytes is not None for pick in study.picks)
    table = []
    for pick in study.picks:
        cells = {"": pick.title, **knob_cells(study.results, pick.row)}
        comparison = study.against.get(pick.row.run.path)
        for name in known:
            title = short_title(name)
            cells[title] = metric_cell(pick.row, name)
            delta = [difference(pick.row, pick.baseline, name), interval(comparison, name)]
            cells[f"Δ {title}"] = " ".join([*filter(None, delta)])
            if study.against and any(significance(c, name) for c in study.against.values()):
                cells[f"Δ {title} is"] = significance(comparison, name) or ABSENT
        if sized:
            cells["bits/weight"] = format_value(pick.row.bits_per_weight)
            cells["parameters, MB"] = size(pick.row.parameter_bytes)
        cells["examples/sec"] = speed(pick.row.examples_per_sec)
        base = pick.baseline.examples_per_sec if pick.baseline else None
        rate = pick.row.examples_per_sec
        cells["speed / baseline"] = f"{rate / base:.2f}" if rate is not None and base else ABSENT
        table.append(cells | {"run_id": pick.row.run.run_id})
    return table


def reference_table(results: Results, reference: Reference) -> tuple[list[dict[str, str]], str]:
    """Published runs beside ours with the same knobs, and a sentence on what stands alone."""
    pairs = match(results, reference)
    published = [pair for pair in pairs if pair.theirs is not None]
    knobs = list(dict.fromkeys(name for pair in published if pair.theirs for name in pair.theirs.knobs))
    names = [name for row in reference.rows for name in row.metrics if not name.endswith("_stderr")]
    table = []
    for pair in published:
        theirs, ours = pair.theirs, pair.ours
        if theirs is None:
            continue
        cells = {name: label(theirs.knobs[name]) if name in theirs.knobs else ABSENT for name in knobs}
        for name in dict.fromkeys(names):
            title, digits = short_title(name), 4 if betterness(name) > 0 else None
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
    return table, said


def failure(run: RunFolder) -> dict[str, str]:
    """A run that is not done, and why."""
    overrides = " ".join(run.overrides) or ABSENT
    return {"folder": str(run.path), "overrides": overrides, "reason": one_line(run.reason)}


def escape(text: str) -> str:
    """A text as it stands, in Markdown."""
    return re.sub(r"([|*<`\\])", r"\\\1", text)


def markdown(table: list[dict[str, str]]) -> str:
    """A GitHub table; of nothing, a sentence."""
    if not table:
        return "None."
    escaped = [{key: escape(cell) for key, cell in row.items()} for row in table]
    return tabulate(escaped, headers="keys", tablefmt="github", disable_numparse=True)
