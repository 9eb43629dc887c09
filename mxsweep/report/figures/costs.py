"""Draw what every config costs: its change from the baseline with its paired interval, the least costly first."""

import math
from collections.abc import Sequence
from typing import Any

from mxsweep.report.figures.figure import HIDDEN, Figure, Spec, channel, tooltip
from mxsweep.report.figures.look import COLOURS
from mxsweep.report.figures.quantity import log_axis, widened
from mxsweep.report.study_title import measured_text
from mxsweep.report.wording import p_value
from mxsweep.results.knob_words import usual_text
from mxsweep.results.metrics import is_perplexity
from mxsweep.statistics.paired_tests import AccuracyDifference, MeanDifference
from mxsweep.study.change_words import ends_of, format_change, format_interval, metric_noun
from mxsweep.study.configs_to_use import Config
from mxsweep.study.finding import with_minus_signs
from mxsweep.study.group_study import Study

ABOUT = "verdict"
ROOM_FOR_NAME = 56  # characters of a config's name
HEAD = 2  # parts of a long name that stay at its beginning
MOST_DRAWN = 16  # configs; of more, those at the ends
ROW_HEIGHT = 34  # pixels: a line of text, and the interval below it
LOWERED = 9  # pixels that the interval lies below the middle of its row
TOLD, NOT_TOLD = COLOURS[2], COLOURS[0]
NARROW = 420  # pixels
CHARACTER = 6.2  # pixels, at most, of a character of a change and its interval, which stand right of the name
OF_NAME, OF_BOLD = 6.2, 6.9  # pixels, at most, of a character of a name


def cost_figure(study: Study) -> Figure | None:
    """Return the figure; None where no config was compared with a baseline example by example."""
    verdict = study.verdict
    configs = [one for one in verdict.configs if one.test.paired is not None and math.isfinite(one.test.paired.low)]
    metric = verdict.metric
    if metric is None or not configs:
        return None
    drawn = configs if len(configs) <= MOST_DRAWN else [*configs[: MOST_DRAWN - 3], *configs[-3:]]
    use = verdict.use
    if use in configs and use not in drawn and use is not None:
        drawn = [*drawn[: MOST_DRAWN - 4], use, *drawn[-3:]]
    noun = metric_noun(metric)
    beside = ends_of([one.test.paired for one in configs if one.test.paired is not None])
    caption = f"Change of {noun} from the baseline, 95 % interval, paired over the same examples. "
    told = {one.test.tells_apart for one in drawn}
    caption += "The least costly by its estimate first. "
    caption += "Blue: significant. " * (True in told)
    caption += "Orange, hollow: not measurably different from the baseline. " * (False in told)
    caption += "The short lines are at the baseline."
    usual = usual_text(configs[0].usual)
    caption += f" Where nothing else is said: {usual}." * bool(usual)
    caption += f" Of {len(configs)} configs the least and the most costly are drawn; the data have all." * (
        drawn != configs
    )
    return Figure(
        stem="_".join(part for part in ("cost", study.group.slug) if part),
        title=f"What every config costs in {noun}",
        subtitle=measured_text(study.group),
        caption=caption,
        build=lambda ink: _chart(ink, metric, drawn, use, beside),
        columns=["config", f"change of {noun}", "95 % interval", "p", "runs"],
        cells=[_cells(metric, one, beside) for one in configs],
        about=ABOUT,
        height=ROW_HEIGHT * len(drawn),
    )


def _cells(metric: str, config: Config, beside: Sequence[float]) -> list[str]:
    measured = config.test.paired
    if measured is None:
        return [config.name, "", "", "", str(len(config.rows))]
    change, interval = _words(metric, measured, beside)
    return [config.name, change, interval, p_value(config.test.p), str(len(config.rows))]


def _chart(ink: str, metric: str, configs: Sequence[Config], use: Config | None, beside: Sequence[float]) -> Spec:
    title = f"{metric_noun(metric)}: run / baseline" if is_perplexity(metric) else f"change of {metric_noun(metric)}"
    nothing = 1.0 if is_perplexity(metric) else 0.0
    names = shortened([one.name for one in configs])
    data = [
        {**_datum(metric, index, one, name, one is use, beside), "nothing": nothing}
        for index, (one, name) in enumerate(zip(configs, names, strict=True))
    ]
    ends = [nothing, *(datum["low"] for datum in data), *(datum["high"] for datum in data)]
    low, high = widened(min(ends), max(ends), is_perplexity(metric))
    scale = {"type": "log" if is_perplexity(metric) else "linear", "domain": [low, high], "nice": False}
    # Lines of a grid would cross the names, which stand above each interval.
    axis = {**(log_axis(low, high) if is_perplexity(metric) else {"format": "~g", "tickCount": 5}), "grid": False}
    x = channel("x", "quantitative", title=title, scale=scale, axis=axis)
    y = channel(
        "row",
        "quantitative",
        axis=None,
        scale={"domain": [-0.5, len(data) - 0.5], "reverse": True, "nice": False, "zero": False},
    )
    return {
        "datasets": {"configs": data},
        "params": HIDDEN,
        "data": {"name": "configs"},
        "layer": [
            {
                "mark": {"type": "rule", "color": ink},
                "encoding": {"x": {**x, "field": "nothing"}, "y": {**y, "field": "under_name"}, "y2": {"field": "end"}},
            },
            *_intervals(x, y),
            *_texts(ink, y, max(len(datum["numbers"]) for datum in data)),
        ],
        # A colour and a fill of one field have scales of their own.
        "resolve": {"scale": {"color": "independent", "fill": "independent", "stroke": "independent"}},
    }


def _intervals(x: Spec, y: Spec) -> list[Spec]:
    """Return each config's interval and, filled where it is told from the baseline, its change."""
    told = {"domain": [True, False], "range": [TOLD, NOT_TOLD]}
    colour = channel("told", scale=told, legend=None)
    return [
        {
            "mark": {"type": "rule", "strokeWidth": 2.2, "yOffset": LOWERED},
            "encoding": {"x": {**x, "field": "low"}, "x2": {"field": "high"}, "y": y, "color": colour},
        },
        {
            "mark": {"type": "point", "size": 60, "opacity": 1, "strokeWidth": 1.8, "yOffset": LOWERED},
            "encoding": {
                "x": x,
                "y": y,
                "stroke": colour,
                "fill": channel("told", scale=told | {"range": [TOLD, "transparent"]}, legend=None),
                "tooltip": tooltip({"config": "config", "change": "change", "interval": "95 %", "p": "p"}),
            },
        },
    ]


def _texts(ink: str, y: Spec, longest: int) -> list[Spec]:
    """Return the names above the intervals, and the numbers right of them where there is room."""
    above = {"type": "text", "color": ink, "dy": -9, "baseline": "middle"}
    wide = {"condition": {"test": f"width < {NARROW}", "value": 0}, "value": 1}
    return [
        *_names({**above, "align": "left"}, y, CHARACTER * longest + 8),
        {
            "mark": {**above, "align": "right", "fontSize": 11},
            "encoding": {"x": {"value": "width"}, "y": y, "text": channel("numbers"), "opacity": wide},
        },
    ]


def _names(above: Spec, y: Spec, numbers: float) -> list[Spec]:
    """Return the layers of the names, above the intervals and left of numbers that are so wide, in pixels.

    A name that is longer than its room stands in two small lines: cut, it would lose what tells it from others.
    """
    # In a narrow figure names have all the room; the numbers stand in the table below.
    room = f"(width < {NARROW} ? width : width - {numbers:.0f})"
    is_long = f"(datum.use ? {OF_BOLD} : {OF_NAME}) * length(datum.name) > {room}"
    one_line: Spec = {"fontSize": 12}
    two_lines: Spec = {"fontSize": 10, "lineHeight": 11, "dy": -12}
    return [
        {
            "transform": [{"filter": f"{no}({is_long}) && {'' if bold else '!'}datum.use"}],
            "encoding": {"x": {"value": 0}, "y": y, "text": channel(text)},
            "mark": above | {"limit": {"expr": room}} | look | ({"fontWeight": "bold"} if bold else {}),
        }
        for bold in (False, True)
        for no, text, look in (("!", "name", one_line), ("", "lines", two_lines))
    ]


def shortened(names: Sequence[str]) -> list[str]:
    """Return names with the middle of long ones left out: their ends are what tells them from one another.

    Where two would become the same, all stay as they are.
    """
    short = [_without_middle(name) for name in names]
    return short if len(set(short)) == len(set(names)) else list(names)


def _without_middle(name: str) -> str:
    parts = name.split(", ")
    if len(name) <= ROOM_FOR_NAME or len(parts) <= HEAD + 1:
        return name
    shorter = [_elided(parts, parts[at:]) for at in range(HEAD + 1, len(parts))]
    return next((text for text in shorter if len(text) <= ROOM_FOR_NAME), shorter[-1])


def _in_two_lines(name: str) -> list[str]:
    """Return a name's two lines, as even as can be; of a name of one part, that."""
    parts = name.split(", ")
    splits = [[", ".join(parts[:at]) + ",", ", ".join(parts[at:])] for at in reversed(range(1, len(parts)))]
    return min(splits, key=lambda lines: max(map(len, lines)), default=[name])


def _elided(parts: Sequence[str], tail: Sequence[str]) -> str:
    return ", ".join([*parts[:HEAD], "…", *tail])


def _datum(metric: str, index: int, config: Config, name: str, is_use: bool, beside: Sequence[float]) -> dict[str, Any]:
    measured = config.test.paired
    if measured is None:
        raise ValueError(f"{config.name} was not compared with its baseline")
    form = _ratio if is_perplexity(metric) else float
    marked = f"▸ {name}" if is_use else name
    change, interval = _words(metric, measured, beside)
    return {
        "row": index,
        "under_name": index + 0.1,
        "end": index + 0.44,
        "name": marked,
        "lines": _in_two_lines(marked),
        "use": is_use,
        "config": config.name,
        "x": form(measured.difference),
        "low": form(measured.low),
        "high": form(measured.high),
        "told": config.test.tells_apart,
        "change": change,
        "interval": interval,
        "numbers": f"{change} {interval}",
        "p": p_value(config.test.p),
    }


def _words(metric: str, measured: AccuracyDifference | MeanDifference, beside: Sequence[float]) -> tuple[str, str]:
    change = format_change(metric, measured.difference, *beside)
    interval = format_interval(metric, measured, *beside)
    return with_minus_signs(change), with_minus_signs(interval)


def _ratio(log_ratio: float) -> float:
    """Return the ratio, within what an axis of logarithms can hold."""
    return math.exp(min(max(log_ratio, -50.0), 50.0))
