"""Write results as texts: what `python -m mxsweep.collect` prints, and results.md.

Tables are made in summary_tables.py and run_table.py; how a number is written stands in wording.py.
"""

import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from mxsweep.report.attribution_tables import (
    COST_NOTE,
    SUM_NOTE,
    brief_tables,
    cost_table,
    sum_table,
)
from mxsweep.report.columns import Output
from mxsweep.report.memory_tables import MEMORY_TITLE, memory_front
from mxsweep.report.plain_table import TERMINAL_WIDTH, plain
from mxsweep.report.run_table import run_table
from mxsweep.report.run_warnings import PROVEN_TITLE, list_proven, list_warnings
from mxsweep.report.study_title import about_group
from mxsweep.report.summary_tables import (
    failure_table,
    reference_table,
    remedy_outcomes,
    won_back_table,
)
from mxsweep.report.table import Table, markdown
from mxsweep.report.training_tables import PAIRS_NOTE, RANKING_NOTE, pair_table, ranking_table, verdict_table
from mxsweep.report.wording import OVER_SEQUENCES, SIGNIFICANT_MARK, one_line
from mxsweep.results.baselines import baseline_command
from mxsweep.results.groups import Group, Results
from mxsweep.results.rows import Row, label
from mxsweep.study.attribution import ATTRIBUTION_TITLE, Attribution
from mxsweep.study.comparison import explain_groups
from mxsweep.study.group_study import Study, study_groups
from mxsweep.study.memory_terms import DEFAULT_TERMS, Terms
from mxsweep.study.published import Reference
from mxsweep.study.training_ranking import TrainingStudy
from mxsweep.study.verdict_words import VerdictLine
from mxsweep.terminal.escapes import for_markdown

NO_BASELINE = (
    "No baseline among these runs, so no differences are given. A baseline is the same model, task and limit "
    "with nothing quantized: run it with `format=none kv_quant=none` and collect both folders together."
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
OF_TRAININGS_NOTE = (
    "Of a training the examples are the held-out sequences of its own seed: how far another seed would move its loss "
    "is in no such interval or p."
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
    """Count the runs by what became of them."""
    counts = {status: len(results.with_status(status)) for status in ("done", *STATUS_TITLES)}
    said = ", ".join(f"{count} {status}" for status, count in counts.items() if count or status == "done")
    if not results.repeats:
        return said
    return f"{said}; of runs that were made twice, and came out the same, one is shown"


def constants_line(results: Results) -> str:
    """Name the knobs that the tables leave out because they are the same in every run in which they have an effect."""
    knobs = (f"{name}={label(value)}" for name, value in results.constants.items())
    return "Same in every finished run that has them: " + ", ".join(knobs)


def terminal_text(results: Results, reference: Reference | None = None, studied: Sequence[Study] | None = None) -> str:
    """Return what `python -m mxsweep.collect` prints: a table for each group, then what is not done and why."""
    studied = study_groups(results) if studied is None else studied
    parts = [constants_line(results)] if results.constants else []
    if why := explain_groups(results):
        parts.append(_filled(why))
    for study in studied:
        group = study.group
        table = run_table(results, group, Output.TERMINAL, study.comparisons)
        parts.append(f"{heading(group)}\n\n{plain(table)}")
        if any(SIGNIFICANT_MARK in text for row in table.texts for text in row):
            over = "" if study.training is None else OVER_SEQUENCES
            said = f"{SIGNIFICANT_MARK} p < 0.05, paired{over}, after Holm's correction over the runs of the table"
            parts.append(_filled(said))
        parts += [_wrapped(line) for line in study.verdict.lines]
        if not study.has_baseline:
            parts.append(_no_baseline(study, "\n  ").replace("`", ""))
        if (training := study.training) is not None:
            parts += ["What training in these formats costs", plain(ranking_table(training))]
            parts += map(_filled, training.notes)
        if study.attributions:
            parts += [ATTRIBUTION_TITLE, *map(plain, brief_tables(study.attributions))]
        steps = won_back_table(group, study.remedy_steps)
        if 0 < len(steps.rows) <= MOST_STEPS:
            parts += ["What the remedies win back", plain(steps.without("run_id"))]
    if reference is not None:
        parts.append(f"Published: {reference.source}")
        for table, said in published_tables(results, reference):
            parts += [plain(table.without("run_id")), said]
    for title, lines in (("Warnings", _named(list_warnings, studied)), (PROVEN_TITLE, _named(list_proven, studied))):
        if lines:
            parts.append("\n".join([title, *(f"  {line}" for line in lines)]))
    for status, title in STATUS_TITLES.items():
        if runs := results.with_status(status):
            lines = [f"{title}: {len(runs)}"]
            for run in runs:
                lines.append(f"  {run.path}  {' '.join(run.overrides)}".rstrip())
                lines.append(f"      {one_line(run.reason, 300)}")
            parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _no_baseline(study: Study, space: str) -> str:
    """Return that there is no baseline and, behind a space, the command that makes it where a run says enough."""
    command = next(filter(None, map(baseline_command, study.rows)), None)
    text = _filled(NO_BASELINE) if "\n" in space else NO_BASELINE
    if not command:
        return text
    return f"{text}{space}{_code(command)}"


def _code(command: str) -> str:
    """Return a command as Markdown has it: as code, which ends with the first backtick, where it has none."""
    return f"`{command}`" if "`" not in command and "\n" not in command else for_markdown(command)


def _filled(text: str) -> str:
    return textwrap.fill(text, TERMINAL_WIDTH, break_on_hyphens=False, break_long_words=False)


def _wrapped(line: VerdictLine) -> str:
    """Return a line of the answer as a terminal shows it, its command in a line by itself, to be copied."""
    text = textwrap.fill(f"{line.title}: {line.text}", TERMINAL_WIDTH, subsequent_indent="  ")
    return f"{text}\n  {line.command}" if line.command else text


def markdown_text(
    results: Results,
    figures: Mapping[str, Sequence[Path]],
    studied: Sequence[Study] | None = None,
    reference: Reference | None = None,
    terms: Terms = DEFAULT_TERMS,
) -> str:
    """Return results.md: of each group the answer, findings, table and `figures` (by slug); then the runs not done."""
    parts = ["# Results", f"Runs: {summary(results)}."]
    if results.constants:
        parts.append(for_markdown(constants_line(results)) + ".")
    if why := explain_groups(results):
        parts.append(for_markdown(why))
    if warned := warnings(results):
        parts += ["## Warnings", _list(warned)]
    for study in study_groups(results) if studied is None else studied:
        group = study.group
        parts.append(f"## {for_markdown(heading(group))}")
        if study.verdict.lines:
            parts += [f"### {for_markdown(about_group(group))}", "\n".join(map(_answer, study.verdict.lines))]
        if not study.has_baseline:
            parts.append(_no_baseline(study, " "))
        if study.findings:
            parts += [
                "### What the numbers say",
                _list(finding.text for finding in study.findings),
            ]
        parts += _training_parts(study.training)
        parts += _attribution_parts(study.attributions)
        if (memory := memory_front(study, terms)) is not None:
            parts += [f"### {MEMORY_TITLE}", for_markdown(memory[1]), markdown(memory[0])]
        parts += _won_back_parts(study)
        parts += ["### All runs", markdown(run_table(results, group, Output.MARKDOWN, study.comparisons))]
        if proven := list_proven(study.rows, study.config_text):
            parts += [f"{PROVEN_TITLE}:", _list(proven)]
        if any(comparison.n for comparison in study.comparisons.values()):
            parts += [COMPARED_NOTE, *([OF_TRAININGS_NOTE] if study.training is not None else [])]
        parts.append(SPEED_NOTE)
        if has_several_tasks(results):
            parts.append(SEVERAL_TASKS_NOTE)
        parts += [
            f"![{path.stem.replace('_', ' ')}]({path.name})"
            for path in figures.get(group.slug, [])
            if path.suffix == ".png"
        ]
    if reference is not None:
        parts += ["## Against published numbers", for_markdown(reference.source)]
        for table, said in published_tables(results, reference):
            parts += [markdown(table), for_markdown(said)]
    for status, title in STATUS_TITLES.items():
        if runs := results.with_status(status):
            parts += [f"## {title}: {len(runs)}", markdown(failure_table(runs))]
    return "\n\n".join(part for part in parts if part) + "\n"


def _answer(line: VerdictLine) -> str:
    """Return a line of the answer as an item of a list."""
    command = f" {_code(line.command)}" if line.command else ""
    return f"- **{for_markdown(line.title)}:** {for_markdown(line.text)}{command}"


def memory_text(studied: Sequence[Study], terms: Terms) -> str:
    """Return what memory buys in each group, as a terminal shows it; nothing where that is not known."""
    parts = []
    for study in studied:
        if (memory := memory_front(study, terms)) is not None:
            said = textwrap.fill(memory[1], TERMINAL_WIDTH)
            parts += [f"{MEMORY_TITLE}: {study.group.title}", plain(memory[0]), said]
    return "\n\n".join(parts)


def published_tables(results: Results, reference: Reference) -> list[tuple[Table, str]]:
    """Return tables of published results beside ours, each with a sentence: of runs, and of trainings."""
    tables = [reference_table(results, reference)] if reference.rows else []
    has_trainings = reference.trainings.orderings or reference.trainings.differences
    return tables + ([verdict_table(results, reference)] if has_trainings else [])


def _list(texts: Iterable[str]) -> str:
    return "\n".join(f"- {for_markdown(text)}" for text in texts)


def _training_parts(study: TrainingStudy | None) -> list[str]:
    if study is None:
        return []
    pairs, said = pair_table(study)
    parts = ["### What training in these formats costs", markdown(ranking_table(study)), RANKING_NOTE]
    parts += [for_markdown(said), markdown(pairs), PAIRS_NOTE] if study.pairs else []
    parts += [_list([*study.notes, *(f"Not read: {why}" for why in study.unread)])]
    return [part for part in parts if part]


def _attribution_parts(found: Sequence[Attribution]) -> list[str]:
    if not found:
        return []
    parts = [f"### {ATTRIBUTION_TITLE}", markdown(cost_table(found)), COST_NOTE]
    return parts + ([markdown(sum_table(found)), SUM_NOTE] if any(one.sums for one in found) else [])


def _won_back_parts(study: Study) -> list[str]:
    outcomes = [f"- {for_markdown(f'{config}: {text}')}" for config, text in remedy_outcomes(study)]
    parts = [markdown(won_back_table(study.group, study.remedy_steps)), WON_BACK_NOTE] if study.remedy_steps else []
    parts += ["\n".join(outcomes)] if outcomes else []
    return ["### What the remedies win back", *parts] if parts else []


def has_several_tasks(results: Results) -> bool:
    """Return whether any run evaluated more than one task."""
    return any(len((run.record or {}).get("metrics", {})) > 1 for run in results.with_status("done"))


def warnings(results: Results) -> list[str]:
    """List what finished runs warn of, each warning once with the runs that give it: all of them, or their ids."""
    done = [row for row in results.rows if row.run.status == "done"]
    return list_warnings(done, lambda row: row.run.run_id)


def _named(listed: Callable[[Sequence[Row], Callable[[Row], str]], list[str]], studied: Sequence[Study]) -> list[str]:
    """List something for a terminal, runs named by what tells them apart, and groups where not all have a line."""
    of_lines: dict[str, list[str]] = {}
    for study in studied:
        for line in listed(study.rows, study.config_text):
            of_lines.setdefault(line, []).append(study.group.title)
    return [
        line if len(titles) == len(studied) else f"{'; '.join(titles)}: {line}" for line, titles in of_lines.items()
    ]


def heading(group: Group) -> str:
    """Return a group's title, with the number of examples where it is the same in all its runs."""
    counts = {row.n for row in group.rows}
    return group.title + (f" (n = {counts.pop()})" if len(counts) == 1 and None not in counts else "")
