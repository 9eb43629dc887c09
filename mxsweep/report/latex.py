"""results.tex: a group's runs as a LaTeX table in booktabs style, to paste into a paper.

Needs \\usepackage{booktabs}. A difference that is significant after Holm's correction is marked with a star, one that
is within the numerical noise with a circle.
"""

from collections.abc import Sequence

from mxsweep.report.wording import difference, format_value, metric_cell, significance
from mxsweep.results.groups import Results
from mxsweep.results.metrics import betterness, is_perplexity, short_title
from mxsweep.results.rows import Row, label
from mxsweep.study.group_study import Study

PREAMBLE = "% Written by mxsweep. Needs \\usepackage{booktabs}.\n"
_SPECIAL = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"{\char34}",  # \textquotedbl wants the T1 encoding
    "±": r"$\pm$",
    "×": r"$\times$",
    "−": r"$-$",
    "Δ": r"$\Delta$",
    "–": "--",
    **{c: "\\" + c for c in "&%$#_"},
}
_ABSENT = "--"


def latex_text(results: Results, studied: Sequence[Study]) -> str:
    """A table for each group; only a comment where no run is done."""
    tables = [_table(results, study) for study in studied]
    return PREAMBLE + ("\n".join(tables) if tables else "% No run is done.\n")


def escape(text: str) -> str:
    """A text as it stands, in LaTeX."""
    return "".join(_SPECIAL.get(c, c) for c in " ".join(text.split()))


def _table(results: Results, study: Study) -> str:
    group = study.group
    knobs = [name for name in results.shown if any(name in row.knobs for row in group.rows)]
    metrics = [name for name in group.metric_names() if betterness(name)] or group.metric_names()
    sized = any(row.bits_per_weight is not None for row in group.rows)
    heads = [escape(name) for name in knobs]
    for name in metrics:
        title = escape(short_title(name))
        heads += [title, f"$\\Delta$ {title}"] if study.has_baseline and betterness(name) else [title]
    heads += ["bits/weight"] if sized else []
    numbers = len(heads) - len(knobs)
    lines = [
        "\\begin{table}",
        "  \\centering",
        f"  \\caption{{{_caption(study, metrics)}}}",
        f"  \\label{{tab:mxsweep{'-' if group.slug else ''}{_label(group.slug)}}}",
        f"  \\begin{{tabular}}{{{'l' * len(knobs)}{'r' * numbers}}}",
        "    \\toprule",
        f"    {' & '.join(heads)} \\\\",
        "    \\midrule",
    ]
    for index, row in enumerate(group.rows):
        if index and group.rows[index - 1].is_baseline and not row.is_baseline:
            lines.append("    \\midrule")
        lines.append(f"    {' & '.join(_cells(study, row, knobs, metrics, sized))} \\\\")
    return "\n".join([*lines, "    \\bottomrule", "  \\end{tabular}", "\\end{table}", ""])


def _caption(study: Study, metrics: Sequence[str]) -> str:
    rows = study.rows
    counts = {row.n for row in rows}
    parts = [escape(study.group.title)]
    if len(counts) == 1 and None not in counts:
        parts[0] += f" ($n = {counts.pop()}$)"
    if any(row.metrics.get(f"{name}_stderr") is not None for row in rows for name in metrics):
        parts.append(r"$\pm$ is one standard error")
    if study.has_baseline:
        parts.append(r"$\Delta$ is the difference from the baseline, of a perplexity in \%")
    marks = {_mark(study, row, name) for row in rows for name in metrics}
    if any("*" in mark for mark in marks):
        parts.append(r"$^*$: $p < 0.05$, paired, after Holm's correction")
    if any("circ" in mark for mark in marks):
        parts.append(r"$^\circ$: within the numerical noise")
    return ". ".join(parts) + "."


def _cells(study: Study, row: Row, knobs: Sequence[str], metrics: Sequence[str], sized: bool) -> list[str]:
    cells = [escape(label(row.knobs[name])) if name in row.knobs else _ABSENT for name in knobs]
    for name in metrics:
        cells.append(escape(metric_cell(row, name)))
        if study.has_baseline and betterness(name):
            cells.append(_delta(study, row, name) + _mark(study, row, name))
    return cells + (
        [format_value(row.bits_per_weight)] if sized and row.bits_per_weight is not None else [_ABSENT] * sized
    )


def _delta(study: Study, row: Row, name: str) -> str:
    """The difference of an accuracy, or the change of a perplexity in %."""
    text = difference(row, study.baselines[row.run.path], name)
    if is_perplexity(name) and "(" in text:
        text = text.partition("(")[2].rstrip(")")
    return escape(text).replace("-", "$-$", 1) if text[:1] == "-" else escape(text)


def _mark(study: Study, row: Row, name: str) -> str:
    words = significance(study.against.get(row.run.path), name)
    if "noise" in words:
        return r"$^\circ$"
    return "$^*$" if words.startswith("significant") else ""


def _label(slug: str) -> str:
    return "".join(c if c.isalnum() or c in "-." else "-" for c in slug)
