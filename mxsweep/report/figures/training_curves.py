"""Draw losses over tokens: of each trained config the mean over its seeds, with the range from lowest to highest.

The change against the baseline is paired by step and seed: two trainings of one seed see the same batches, so that most
of what moves a loss from step to step is in neither.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mxsweep.report.figures.figure import HIDDEN, SHOWN, Figure, LegendEntry, Spec, by_series, channel, tooltip
from mxsweep.report.figures.look import BASELINE_DASHES, FILE_INK, Look, look
from mxsweep.results.rows import Row
from mxsweep.results.trainings import Curve, read_curve
from mxsweep.study.trained_configs import TrainedConfig
from mxsweep.study.training_ranking import TrainingStudy

MOST_POINTS = 120  # of a line; each the mean over its stretch of steps
MOST_LINES = 14
FROM = 0.05  # of the tokens: what is before this may be beyond the axis
BASELINE_LOOK = Look("#000000", "M-1,0A1,1,0,1,1,1,0A1,1,0,1,1,-1,0Z", BASELINE_DASHES[0], 1.5, 1.8, True)


@dataclass(frozen=True)
class Points:
    """Hold a line: tokens, and mean, lowest and highest value over the seeds, an element a stretch of steps."""

    tokens: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    seeds: int


def curve_figures(study: TrainingStudy, title: str, slug: str) -> list[Figure]:
    """Return the losses over tokens and their change against the baseline, as far as there are curves."""
    configs = _drawn(study.configs)
    left_out = len(study.configs) - len(configs)
    less = f" {left_out} more configs are in the table alone." if left_out else ""
    losses = {one.name: points for one in configs if (points := _points(one.rows, _loss)) is not None}
    changes = {
        one.name: points
        for one in configs
        if one.baseline and (points := _points(one.rows, _change_from(one.baseline))) is not None
    }
    baselines = {one.name for one in configs if one.is_baseline}
    figures = []
    if losses:
        caption = f"Loss of the batches over tokens, mean over the seeds and their range.{less}"
        figures.append(_figure("training_curves", "Loss over tokens", caption, "loss", losses, baselines, title, slug))
    if changes:
        caption = f"Loss minus the baseline's of the same step and seed, mean over the seeds and their range.{less}"
        heading, axis = "Loss minus the baseline's over tokens", "loss minus the baseline's"
        figures.append(_figure("training_change", heading, caption, axis, changes, baselines, title, slug))
    return figures


def _drawn(configs: Sequence[TrainedConfig]) -> list[TrainedConfig]:
    """Return the baselines and, of too many others, as many of the best as of the worst."""
    others = [one for one in configs if not one.is_baseline]
    baselines = [one for one in configs if one.is_baseline]
    room = max(2, MOST_LINES - len(baselines))
    if len(others) > room:
        others = [*others[: room - room // 2], *others[len(others) - room // 2 :]]
    return [*baselines[:MOST_LINES], *others]


def _loss(seed: Hashable, curve: Curve) -> tuple[np.ndarray, np.ndarray]:
    return curve.tokens, curve.loss


def _change_from(baseline: Mapping[Hashable, Row]) -> Callable[[Hashable, Curve], tuple[np.ndarray, np.ndarray] | None]:
    def change(seed: Hashable, curve: Curve) -> tuple[np.ndarray, np.ndarray] | None:
        base = read_curve(baseline[seed].run) if seed in baseline else None
        if base is None:
            return None
        _, ours, theirs = np.intersect1d(curve.step, base.step, return_indices=True)
        return curve.tokens[ours], curve.loss[ours] - base.loss[theirs]

    return change


def _points(
    rows: Mapping[Hashable, Row], values_of: Callable[[Hashable, Curve], tuple[np.ndarray, np.ndarray] | None]
) -> Points | None:
    """Return what is drawn of a config's seeds; None without a curve. Seeds are cut in the same stretches of tokens."""
    curves = {seed: curve for seed, row in rows.items() if (curve := read_curve(row.run)) is not None}
    made = [values for seed, curve in curves.items() if (values := values_of(seed, curve)) is not None]
    found = [(tokens[kept], values[kept]) for tokens, values in made if (kept := np.isfinite(values)).any()]
    if not found:
        return None
    longest = max((tokens for tokens, _ in found), key=len)
    count = min(MOST_POINTS, len(longest))
    edges = np.linspace(0, longest[-1], count + 1)
    by_seed = np.full((len(found), count), np.nan)
    for index, (tokens, values) in enumerate(found):
        stretch = np.clip(np.searchsorted(edges, tokens, side="left") - 1, 0, count - 1)
        sums, counts = (np.bincount(stretch, weights, count) for weights in (values, np.ones(len(values))))
        by_seed[index] = np.divide(sums, counts, out=np.full(count, np.nan), where=counts > 0)
    seen = np.isfinite(by_seed).any(0)
    by_seed = by_seed[:, seen]
    mean, low, high = np.nanmean(by_seed, 0), np.nanmin(by_seed, 0), np.nanmax(by_seed, 0)
    return Points(edges[1:][seen], mean, low, high, len(found))


def _figure(
    stem: str,
    heading: str,
    caption: str,
    axis: str,
    lines: Mapping[str, Points],
    baselines: set[str],
    title: str,
    slug: str,
) -> Figure:
    shown = {
        name: BASELINE_LOOK if name in baselines else replace(look(index), size=1.5, width=1.8)
        for index, name in enumerate(lines)
    }
    return Figure(
        stem="_".join(part for part in (stem, slug) if part),
        title=heading,
        subtitle=title,
        caption=caption,
        build=lambda ink: _chart(ink, axis, lines, shown),
        entries=[LegendEntry(name, one) for name, one in shown.items()],
        columns=["config", "tokens", f"{axis}, nats a token", "lowest", "highest", "seeds"],
        cells=[
            [name, f"{points.tokens[i]:,.0f}", *(f"{each[i]:.4f}" for each in _three(points)), str(points.seeds)]
            for name, points in lines.items()
            for i in sorted({len(points.tokens) // 4, len(points.tokens) // 2, len(points.tokens) - 1})
        ],
        about="training",
        wide=True,
    )


def _three(points: Points) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return points.mean, points.low, points.high


def _chart(ink: str, axis: str, lines: Mapping[str, Points], looks: Mapping[str, Look]) -> Spec:
    names = list(lines)
    data: list[dict[str, Any]] = []
    for name, points in lines.items():
        for tokens, mean, least, most in zip(points.tokens, *_three(points), strict=True):
            datum = {"series": name, "x": round(float(tokens)), "y": round(float(mean), 5)}
            if points.seeds > 1:
                datum |= {"low": round(float(least), 5), "high": round(float(most), 5)}
            data.append(datum)
    # The first steps, of which losses are high and differences large, would take all the room.
    late = [datum for datum in data if datum["x"] > FROM * max(datum["x"] for datum in data)]
    low = min(datum.get("low", datum["y"]) for datum in late)
    high = max(datum.get("high", datum["y"]) for datum in late)
    room = 0.04 * (high - low or 1.0)
    scale: Spec = {"zero": False, "domain": [low - room, high + room], "nice": False}
    x = channel("x", "quantitative", title="tokens", axis={"format": "~s"}, scale={"zero": False, "nice": False})
    y = channel("y", "quantitative", title=f"{axis}, nats a token", scale=scale)
    colours = [ink if one is BASELINE_LOOK and ink != FILE_INK else one.colour for one in looks.values()]
    colour = by_series(names, colours)
    bands: Spec = {
        "transform": [{"filter": "isValid(datum.low)"}],
        "mark": {"type": "area", "opacity": 0.16, "clip": True},
        "encoding": {"x": x, "y": {**y, "field": "low"}, "y2": {"field": "high"}, "color": colour},
    }
    dashes = by_series(names, [list(one.dash) for one in looks.values()])
    line: Spec = {
        "mark": {"type": "line", "clip": True, "strokeWidth": 1.6},
        "encoding": {"x": x, "y": y, "color": colour, "strokeDash": dashes},
    }
    dots: Spec = {
        "mark": {"type": "point", "opacity": 0, "size": 60, "clip": True},
        "encoding": {"x": x, "y": y, "tooltip": tooltip({"series": "config"}) + _numbers()},
    }
    has_bands = any("low" in datum for datum in data)
    layers = [*([bands] if has_bands else []), line, dots]
    return {
        "datasets": {"points": data},
        "params": HIDDEN,
        "layer": [{"data": {"name": "points"}, "transform": SHOWN, "layer": layers}],
    }


def _numbers() -> list[Spec]:
    return [
        channel("x", "quantitative", title="tokens", format=","),
        channel("y", "quantitative", title="nats a token", format=".4f"),
    ]
