"""Draw the figures of a collection: which ones there are, and their files.

What every config costs; the change of accuracy and perplexity against every knob that was swept, one line for each
combination of the others; memory against cost; and where error enters. Each as PNG, SVG and PDF, and in report.html,
from one chart. Those against block_size are always drawn, under names that stay. Of trainings their curves and the
ranking.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mxsweep.report.figures.costs import cost_figure
from mxsweep.report.figures.draw import draw_charts
from mxsweep.report.figures.error_heat_map import HeatMap, heat_map
from mxsweep.report.figures.figure import Figure, file_name
from mxsweep.report.figures.lines import KNOB, line_figure
from mxsweep.report.figures.trade_off import trade_off_figure
from mxsweep.report.figures.training_figures import training_figures
from mxsweep.study.group_study import Study
from mxsweep.study.headline import loss_metric
from mxsweep.study.memory_terms import DEFAULT_TERMS, Terms
from mxsweep.study.silent_tasks import has_no_pairs
from mxsweep.terminal.escapes import printable

log = logging.getLogger(__name__)

Drawn = dict[str, tuple[list[Figure], HeatMap | None]]  # by the group's slug


def draw_figures(studies: Sequence[Study], output: Path, terms: Terms = DEFAULT_TERMS) -> Drawn:
    """Draw every group's figures into `output`; memory is counted by `terms`.

    Each figure notes its files, or why they could not be written. Those that could not be drawn are named in a warning.
    """
    drawn, specs = make_figures(studies, terms)
    charts = draw_charts(specs, output)
    for figure in _all(drawn):
        name = file_name(figure.stem)
        figure.files.extend(charts.files.get(name, []))
        figure.unwritten.update({name: why} if (why := charts.unwritten.get(name)) else {})
    if charts.undrawn:
        reasons = ", ".join(dict.fromkeys(charts.undrawn.values()))
        log.warning("figures that could not be drawn: %s (%s)", ", ".join(charts.undrawn), printable(reasons))
    return drawn


def make_figures(studies: Sequence[Study], terms: Terms) -> tuple[Drawn, list[tuple[str, dict[str, Any]]]]:
    """Return every group's figures, not drawn yet, and each one's chart under the name of its files."""
    drawn: Drawn = {study.group.slug: (group_figures(study, terms), heat_map(study)) for study in studies}
    return drawn, [(file_name(figure.stem), figure.file_spec()) for figure in _all(drawn)]


def group_figures(study: Study, terms: Terms = DEFAULT_TERMS) -> list[Figure]:
    """Return a group's figures but for the heat map, not drawn yet: by metric, and of each by knob."""
    if has_no_pairs(study.group):  # of several seeds the ranking is over these, and lines would have one each
        return training_figures(study)
    knobs = study.swept
    has_blocks = any("block_size" in row.knobs for row in study.rows)
    files = ["block_size", *(name for name in knobs if name != "block_size")] if has_blocks else knobs
    main, second = study.group.main_metric(), loss_metric(study.group)
    metrics = [name for name in dict.fromkeys((main, second)) if name]
    figures = [line_figure(study, metric, knob) for metric in metrics for knob in files]
    figures = [one for one in figures if one.in_page or one.about == f"{KNOB}block_size"]
    trade_off = trade_off_figure(study, terms)
    costs = cost_figure(study)
    return [
        *([costs] if costs else []),
        *training_figures(study),
        *figures,
        *([trade_off] if trade_off else []),
    ]


def written_files(drawn: Drawn) -> dict[str, list[Path]]:
    """Return the files by the group's slug."""
    return {slug: [path for each in _all({slug: of_group}) for path in each.files] for slug, of_group in drawn.items()}


def _all(drawn: Drawn) -> list[Figure]:
    return [figure for figures, heat in drawn.values() for figure in [*figures, *([heat.figure] if heat else [])]]
