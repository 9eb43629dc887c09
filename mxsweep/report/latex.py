"""Write results.tex: a group's runs as a LaTeX table in booktabs style, to paste into a paper.

Needs \\usepackage{booktabs,graphicx}: a table that is wider than the text is scaled to its width. A difference that is
significant after Holm's correction is marked with a star, one that is within the numerical noise with a circle.
"""

from collections.abc import Sequence
from textwrap import indent

from mxsweep.report.columns import Output
from mxsweep.report.run_table import run_table
from mxsweep.report.run_warnings import list_warnings
from mxsweep.report.table import Table, escape_latex, latex
from mxsweep.report.wording import NOISE_MARK, OVER_SEQUENCES, SIGNIFICANT_MARK
from mxsweep.study.group_study import Study

PREAMBLE = "% Written by mxsweep. Needs \\usepackage{booktabs,graphicx}.\n"
FITTED = ("  \\sbox0{%", "  }\\ifdim\\wd0>\\linewidth\\resizebox{\\linewidth}{!}{\\usebox0}\\else\\usebox0\\fi")


def latex_text(studied: Sequence[Study]) -> str:
    """Return a table for each group; only a comment where no run is done."""
    tables = [_table(study) for study in studied]
    return PREAMBLE + ("\n".join(tables) if tables else "% No run is done.\n")


def _table(study: Study) -> str:
    group = study.group
    table = run_table(study.results, group, Output.LATEX, study.comparisons)
    lines = [
        "\\begin{table}",
        "  \\centering",
        f"  \\caption{{{_caption(study, table)}}}",
        f"  \\label{{tab:mxsweep{'-' if group.slug else ''}{_label(group.slug)}}}",
        "  \\smallskip",
        FITTED[0],
        indent(latex(table), "  ") + "%",
        FITTED[1],
        *(f"  \\par\\smallskip {{\\footnotesize Warning, {escape_latex(text)}\\par}}" for text in _warnings(study)),
        "\\end{table}",
        "",
    ]
    return "\n".join(lines)


def _warnings(study: Study) -> list[str]:
    """Return what the table's runs warn of, named by what tells them apart in it."""
    return list_warnings(study.rows, study.config_text)


def _caption(study: Study, table: Table) -> str:
    """Return the caption: the group, and what the signs in the table mean, of which only those that occur are named."""
    rows, metrics = study.rows, study.group.metric_names()
    texts = [text for row in table.texts for text in row]
    counts = {row.n for row in rows}
    parts = [escape_latex(study.group.title)]
    if len(counts) == 1 and None not in counts:
        parts[0] += f" ($n = {counts.pop()}$)"
    if any(row.metrics.get(f"{name}_stderr") is not None for row in rows for name in metrics):
        parts.append(r"$\pm$ is one standard error")
    if study.has_baseline:
        parts.append(r"$\Delta$ is the difference from the baseline, of a perplexity in \%")
    if any(SIGNIFICANT_MARK in text for text in texts):
        over = "" if study.training is None else OVER_SEQUENCES
        parts.append(rf"$^*$: $p < 0.05$, paired{over}, after Holm's correction")
    if any(NOISE_MARK in text for text in texts):
        parts.append(r"$^\circ$: within the numerical noise")
    return ". ".join(parts) + "."


def _label(slug: str) -> str:
    return "".join(c if c.isalnum() or c in "-." else "-" for c in slug)
