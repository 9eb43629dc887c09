"""Draw the figures of a collection: which ones there are, and their files.

What every config costs; the change of accuracy and perplexity against every knob that was swept, one line for each
combination of the others; memory against cost; and where error enters. Each as PNG, SVG and PDF, and in report.html,
from one chart. Those against block_size are always drawn, under names that stay. Of trainings their curves and the
ranking.
"""

from collections.abc import Sequence
from pathlib import Path

from mxsweep.report.figures.costs import cost_figure
from mxsweep.report.figures.error_heat_map import HeatMap, heat_map
from mxsweep.report.figures.figure import Figure
from mxsweep.report.figures.lines import KNOB, line_figure
from mxsweep.report.figures.trade_off import trade_off_figure
from mxsweep.report.figures.training_figures import training_figures
from mxsweep.study.group_study import Study
from mxsweep.study.headline import loss_metric
from mxsweep.study.memory_front import DEFAULT_TERMS, Terms
from mxsweep.study.trained_configs import SEED

Drawn = dict[str, tuple[list[Figure], HeatMap | None]]  # by the group's slug


def draw_figures(studies: Sequence[Study], output: Path, terms: Terms = DEFAULT_TERMS) -> Drawn:
    """Draw every group's figures into `output`; memory is counted by `terms`. Raises OSError."""
    drawn: Drawn = {}
    for study in studies:
        heat = heat_map(study)
        figures = group_figures(study, terms)
        for figure in [*figures, *([heat.figure] if heat else [])]:
            figure.write(output)
        drawn[study.group.slug] = figures, heat
    return drawn


def group_figures(study: Study, terms: Terms = DEFAULT_TERMS) -> list[Figure]:
    """Return a group's figures but for the heat map, not drawn yet: by metric, and of each by knob."""
    if study.training is not None and SEED in study.swept:  # the ranking is over seeds, and lines would have one each
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
    return {
        slug: [path for figure in [*figures, *([heat.figure] if heat else [])] for path in figure.files]
        for slug, (figures, heat) in drawn.items()
    }
