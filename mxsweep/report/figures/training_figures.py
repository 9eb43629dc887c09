"""Draw what a group's trainings say: curves, the ranking, speeds, and what each operand loses by config."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mxsweep.report.figures.figure import Figure, Spec, channel, tooltip
from mxsweep.report.figures.look import COLOURS, FILE_INK
from mxsweep.report.figures.training_curves import curve_figures
from mxsweep.results.trainings import MEASURES, OPERANDS, read_roles
from mxsweep.study.group_study import Study
from mxsweep.study.trained_configs import TrainedConfig, has_trainings
from mxsweep.study.training_ranking import TrainingStudy, format_difference

ABOUT = "training"
ROW_HEIGHT, MOST_ROWS = 20, 40
MEASURE_TITLES = {
    "snr_db": "signal over error, dB",
    "underflow": "became zero",
    "saturation": "saturated",
    "clamped": "scales clamped",
    "cosine": "cosine",
    "slope": "slope",
}
_FORMS: dict[str, Callable[[float], str]] = {
    "snr_db": "{:.1f}".format,
    "cosine": "{:.4f}".format,
    "slope": "{:.3f}".format,
}


def training_figures(study: Study) -> list[Figure]:
    """Return the figures of a group's trainings; none of a group of which nothing was trained."""
    if study.training is None:
        return []
    # The names that a sweep's files have, where no other group would have them, too.
    slug = study.group.slug if sum(map(has_trainings, study.results.groups)) > 1 else ""
    title = study.group.title
    figures = curve_figures(study.training, title, slug)
    made = (_ranking(study.training, title, slug), _speeds(study.training, title, slug), _roles(study, slug))
    return figures + [figure for figure in made if figure is not None]


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
        data.append(datum)
    caption = "Validation loss minus the baseline's with its 95 % interval, the best config first."
    return _dots(
        "training_ranking", "Ranking of configs", caption, "loss minus the baseline's, nats a token", data, title, slug
    )


def _speeds(study: TrainingStudy, title: str, slug: str) -> Figure | None:
    data = [
        {"config": each.config.name, "value": each.speed, "text": f"{each.speed:.2f}"}
        for each in study.ranked
        if each.speed is not None
    ]
    caption = (
        "Tokens trained a second, divided by the baseline's, mean over seeds: the speed of simulating formats on this "
        "computer, not of hardware that has them."
    )
    return _dots(
        "training_speed", "Speed of training", caption, "tokens/sec, divided by the baseline's", data, title, slug, 1.0
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


def _roles(study: Study, slug: str) -> Figure | None:
    """Return the heat map of operand by measure, of each config the medians over modules, measured steps and seeds."""
    assert study.training is not None
    rows: list[tuple[str, str, dict[str, float]]] = []
    for config in study.training.configs:
        for operand, values in _medians(config).items():
            rows.append((config.name, operand, values))
    several = len({name for name, _, _ in rows}) > 1
    left_out, rows = len(rows) - MOST_ROWS, rows[:MOST_ROWS]
    if not rows:
        return None
    caption = (
        "What quantizing does to the operands of the products, and to the gradients that come out of them (dX, dW): "
        "medians over modules, measured steps and seeds. Colours go from the least to the most of each column."
    )
    if left_out > 0:
        caption += f" {left_out} more rows are left out, those of the configs that lose most."
    names = [f"{name}: {operand}" if several else operand for name, operand, _ in rows]
    measures = [name for name in MEASURES if any(math.isfinite(values[name]) for _, _, values in rows)]
    return Figure(
        stem="_".join(part for part in ("training_roles", slug) if part),
        title="What each operand loses",
        subtitle=study.group.title,
        caption=caption,
        build=lambda ink: _heat(ink, names, measures, [values for _, _, values in rows]),
        columns=["operand", *(MEASURE_TITLES[name] for name in measures)],
        cells=[
            [name, *(_text(each, values[each]) for each in measures)]
            for name, (_, _, values) in zip(names, rows, strict=True)
        ],
        about=ABOUT,
        height=max(120, ROW_HEIGHT * len(rows)),
        wide=True,
    )


def _medians(config: TrainedConfig) -> dict[str, dict[str, float]]:
    found = [roles for row in config.rows.values() if (roles := read_roles(row.run)) is not None]
    medians = {}
    for operand in OPERANDS:
        chosen = [(roles, roles.texts["operand"] == operand) for roles in found]
        if any(at.any() for _, at in chosen):
            medians[operand] = {
                name: _median(np.concatenate([roles.measures[name][at] for roles, at in chosen])) for name in MEASURES
            }
    return medians


def _median(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(np.median(known)) if len(known) else math.nan


def _text(measure: str, value: float) -> str:
    if math.isnan(value):
        return "–"
    return _FORMS.get(measure, "{:.2%}".format)(value)


def _heat(ink: str, names: Sequence[str], measures: Sequence[str], rows: Sequence[dict[str, float]]) -> Spec:
    data = []
    for measure in measures:
        column = [values[measure] for values in rows]
        known = [value for value in column if math.isfinite(value)]
        low, high = min(known), max(known)
        for name, value in zip(names, column, strict=True):
            if math.isnan(value):
                continue
            share = (min(max(value, low), high) - low) / (high - low) if high > low else 0.5
            cell = {"row": name, "measure": MEASURE_TITLES[measure], "share": round(share, 4), "dark": share < 0.5}
            data.append(cell | {"text": _text(measure, value)})
    titles = [MEASURE_TITLES[name] for name in measures]
    at = {
        "x": channel("measure", sort=None, title=None, axis={"labelAngle": -25}, scale={"domain": titles}),
        "y": channel("row", sort=None, title=None, axis={"labelLimit": 420}, scale={"domain": list(names)}),
    }
    colour = channel("share", "quantitative", scale={"scheme": "cividis", "domain": [0, 1]}, legend=None)
    tips = tooltip({"row": "operand", "measure": "measure", "text": "median"})
    white = {"condition": {"test": "datum.dark", "value": "white"}, "value": "black"}
    return {
        "datasets": {"cells": data},
        "data": {"name": "cells"},
        "encoding": at,
        "layer": [
            {"mark": "rect", "encoding": {"color": colour, "tooltip": tips}},
            {"mark": {"type": "text", "fontSize": 10}, "encoding": {"text": channel("text"), "color": white}},
        ],
        **({"width": 90 * len(measures)} if ink == FILE_INK else {}),
    }
