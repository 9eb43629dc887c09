"""Draw what quantizing does to the operands of a training's products, and to the gradients that come out of them.

One heat map has a row for each operand of each config and a column for each measure; the other, where there are several
configs, a row for each config and a column for what tells most of each operand. Values are medians over modules,
measured steps and seeds; colours go from the least to the most of each column, since measures have different units.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mxsweep.formats.training import GRADIENTS
from mxsweep.report.figures.figure import Figure, Spec, channel, tooltip
from mxsweep.report.figures.look import FILE_INK
from mxsweep.report.wording import ABSENT
from mxsweep.results.trainings import MEASURED, MEASURES, read_roles
from mxsweep.study.trained_configs import TrainedConfig
from mxsweep.study.training_ranking import TrainingStudy

ABOUT = "training"
ROW_HEIGHT, MOST_ROWS = 20, 40
COLUMN_WIDTH = 76  # pixels, in a file
TITLES = {
    "snr_db": "signal over error, dB",
    "underflow": "became zero",
    "saturation": "saturated",
    "clamped": "scales clamped",
    "cosine": "cosine",
    "slope": "slope",
}
# Of a config in one row: what tells most of an operand, and of a gradient.
IN_ONE_ROW = [("snr_db", operand) for operand in MEASURED]
IN_ONE_ROW += [(measure, gradient) for gradient in GRADIENTS for measure in ("cosine", "slope")]
IN_ONE_ROW += [(measure, "dgrad.grad") for measure in ("underflow", "saturation", "clamped")]
_FORMS: dict[str, Callable[[float], str]] = {
    "snr_db": "{:.1f}".format,
    "cosine": "{:.4f}".format,
    "slope": "{:.3f}".format,
}
Medians = Mapping[str, Mapping[str, float]]  # by operand and measure
CAPTION = (
    "Medians over modules, measured steps and seeds, of the operands of the products and of the gradients that come "
    "out of them (dX, dW, against those of unquantized operands). Colours go from the least to the most of each column."
)


@dataclass(frozen=True)
class _Column:
    """Hold a column: a measure's values, NaN where there is none."""

    title: str
    measure: str
    values: list[float]


def role_figures(study: TrainingStudy, title: str, slug: str) -> list[Figure]:
    """Return the heat maps; none where no training measured its operands."""
    found = [(config.name, medians) for config in study.configs if (medians := _medians(config))]
    if not found:
        return []
    rows = [(name, operand) for name, medians in found for operand in medians]
    names = [f"{name}: {operand}" if len(found) > 1 else operand for name, operand in rows]
    by_name = dict(found)
    columns = [
        _Column(TITLES[measure], measure, [by_name[name][operand][measure] for name, operand in rows])
        for measure in MEASURES
    ]
    figures = [_figure("training_roles", "What each operand loses", "operand", names, columns, title, slug)]
    if len(found) > 1:
        columns = [
            _Column(
                f"{TITLES[measure].replace('signal over error, dB', 'dB')} of {operand}",
                measure,
                [medians.get(operand, {}).get(measure, math.nan) for _, medians in found],
            )
            for measure, operand in IN_ONE_ROW
        ]
        heading = "What operands and gradients lose, by config"
        names = [name for name, _ in found]
        figures.append(_figure("training_operands", heading, "config", names, columns, title, slug))
    return figures


def _figure(
    stem: str, heading: str, rows: str, names: Sequence[str], columns: Sequence[_Column], title: str, slug: str
) -> Figure:
    left_out, names = len(names) - MOST_ROWS, names[:MOST_ROWS]
    shown = [_Column(one.title, one.measure, one.values[:MOST_ROWS]) for one in columns]
    shown = [one for one in shown if any(map(math.isfinite, one.values))]
    more = f" {left_out} more rows are left out, those of the configs that lose most." if left_out > 0 else ""
    return Figure(
        stem="_".join(part for part in (stem, slug) if part),
        title=heading,
        subtitle=title,
        caption=f"{heading}. {CAPTION}{more}",
        build=lambda ink: _chart(ink, rows, names, shown),
        columns=[rows, *(one.title for one in shown)],
        cells=[[name, *(_text(one.measure, one.values[i]) for one in shown)] for i, name in enumerate(names)],
        about=ABOUT,
        height=max(120, ROW_HEIGHT * len(names)),
        wide=True,
    )


def _medians(config: TrainedConfig) -> Medians:
    found = [roles for row in config.rows.values() if (roles := read_roles(row.run)) is not None]
    medians = {}
    for operand in MEASURED:
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
    return ABSENT if math.isnan(value) else _FORMS.get(measure, "{:.2%}".format)(value)


def _chart(ink: str, rows: str, names: Sequence[str], columns: Sequence[_Column]) -> Spec:
    data = []
    for one in columns:
        known = [value for value in one.values if math.isfinite(value)]
        low, high = min(known), max(known)
        for name, value in zip(names, one.values, strict=True):
            if math.isnan(value):
                continue
            share = (min(max(value, low), high) - low) / (high - low) if high > low else 0.5
            cell = {"row": name, "column": one.title, "share": round(share, 4), "dark": share < 0.5}
            data.append(cell | {"text": _text(one.measure, value)})
    titles = [one.title for one in columns]
    slanted = {"labelAngle": -30, "labelOverlap": False}
    at = {
        "x": channel("column", sort=None, title=None, axis=slanted, scale={"domain": titles}),
        "y": channel("row", sort=None, title=None, axis={"labelLimit": 420}, scale={"domain": list(names)}),
    }
    colour = channel("share", "quantitative", scale={"scheme": "cividis", "domain": [0, 1]}, legend=None)
    tips = tooltip({"row": rows, "column": "measure", "text": "median"})
    white = {"condition": {"test": "datum.dark", "value": "white"}, "value": "black"}
    return {
        "datasets": {"cells": data},
        "data": {"name": "cells"},
        "encoding": at,
        "layer": [
            {"mark": "rect", "encoding": {"color": colour, "tooltip": tips}},
            {"mark": {"type": "text", "fontSize": 10}, "encoding": {"text": channel("text"), "color": white}},
        ],
        **({"width": COLUMN_WIDTH * max(len(columns), 3)} if ink == FILE_INK else {}),
    }
