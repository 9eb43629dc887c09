"""Draw what a group's trainings say: curves, the ranking, and heat maps of what each operand loses."""

from __future__ import annotations

import math
from typing import Any

from mxsweep.report.figures.figure import Figure, Spec, channel, tooltip
from mxsweep.report.figures.look import COLOURS
from mxsweep.report.figures.role_heat_maps import ABOUT, MOST_ROWS, ROW_HEIGHT, role_figures
from mxsweep.report.figures.training_curves import curve_figures
from mxsweep.study.group_study import Study
from mxsweep.study.trained_configs import has_trainings
from mxsweep.study.training_ranking import TrainingStudy, format_difference


def training_figures(study: Study) -> list[Figure]:
    """Return the figures of a group's trainings; none of a group of which nothing was trained."""
    if study.training is None:
        return []
    # The names that a sweep's files have, where no other group would have them, too.
    slug = study.group.slug if sum(map(has_trainings, study.results.groups)) > 1 else ""
    title = study.group.title
    figures = curve_figures(study.training, title, slug)
    ranking = _ranking(study.training, title, slug)
    figures += [ranking] if ranking is not None else []
    return figures + role_figures(study.training, title, slug)


def _ranking(study: TrainingStudy, title: str, slug: str) -> Figure | None:
    data = []
    for each in study.ranked:
        if each.difference is None:
            continue
        one = each.difference.measured
        datum: dict[str, Any] = {"config": each.config.name, "value": one.difference}
        datum["text"] = format_difference(each.difference)
        if not math.isnan(one.low):
            datum |= {"low": one.low, "high": one.high}
        data.append(datum | ({"hollow": True} if each.on_one_seed else {}))
    caption = "Validation loss minus the baseline's with its 95 % interval, the best config first."
    if any("hollow" in datum for datum in data):
        caption += (
            " Hollow: one seed in common with the baseline, so that the interval is over held-out sequences, and "
            "another seed may move the config out of it."
        )
    return _dots(
        "training_ranking", "Ranking of configs", caption, "loss minus the baseline's, nats a token", data, title, slug
    )


def _dots(
    stem: str,
    heading: str,
    caption: str,
    axis: str,
    data: list[dict[str, Any]],
    title: str,
    slug: str,
    rule: float = 0.0,
) -> Figure | None:
    """Return a value for each config, one below the other, with a rule where the baseline is."""
    if not data:
        return None
    left_out = len(data) - MOST_ROWS
    data = data[:MOST_ROWS]
    if left_out > 0:
        caption += f" {left_out} more are in the table alone."

    def build(ink: str) -> Spec:
        y = channel("config", sort=None, title=None, axis={"labelLimit": 420})
        x = channel("value", "quantitative", title=axis, scale={"zero": False})
        bars: Spec = {
            "transform": [{"filter": "isValid(datum.low)"}],
            "mark": {"type": "rule", "color": COLOURS[2], "strokeWidth": 2, "opacity": 0.7},
            "encoding": {"y": y, "x": {**x, "field": "low"}, "x2": {"field": "high"}},
        }
        points: Spec = {
            "mark": {"type": "point", "filled": True, "size": 70, "opacity": 1, "color": COLOURS[2]},
            "encoding": {"y": y, "x": x, "tooltip": tooltip({"config": "config", "text": axis})},
        }
        if any("hollow" in datum for datum in data):
            points["mark"] |= {"stroke": COLOURS[2], "strokeWidth": 2}
            hollow = {"test": "isValid(datum.hollow)", "value": 0}
            points["encoding"]["fillOpacity"] = {"condition": hollow, "value": 1}
        base: Spec = {
            "data": {"values": [{"at": rule}]},
            "mark": {"type": "rule", "color": ink, "strokeDash": [5, 3]},
            "encoding": {"x": channel("at", "quantitative")},
        }
        named: Spec = {"data": {"name": "points"}}
        has_bars = any("low" in datum for datum in data)
        return {"datasets": {"points": data}, "layer": [base, *([named | bars] if has_bars else []), named | points]}

    return Figure(
        stem="_".join(part for part in (stem, slug) if part),
        title=heading,
        subtitle=title,
        caption=caption,
        build=build,
        columns=["config", axis],
        cells=[[datum["config"], datum["text"]] for datum in data],
        about=ABOUT,
        height=max(80, ROW_HEIGHT * len(data)),
    )
