"""Figures of a group's runs against block_size: its main metric, and how fast it was to simulate.

One line per combination of the other knobs that vary. Knobs that change nothing make lines that lie on top
of each other, so neighbouring lines differ in width and marker size, and every second marker is hollow:
a line that is covered still looks out from under the other.

Drawn with matplotlib's objects, not pyplot: nothing is left behind in a process that goes on sweeping.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from mxsweep.results.collect import Group, Results
from mxsweep.results.rows import Row, label

# Okabe and Ito's palette, which colour-blind readers can tell apart; its black is the baseline's. Dark
# colours follow light ones, to show on top of them; the yellow comes last, being faint on white.
COLOURS = ("#E69F00", "#56B4E9", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#F0E442")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES: tuple[Any, ...] = ("-", (0, (6, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)), (0, (3, 2)))
SIZES = ((11.0, 4.4), (8.0, 2.9), (5.5, 1.8), (3.5, 1.0))  # marker and line width, the widest at the bottom
BASELINE_COLOUR = "#000000"
LOG_SCALE_FROM = 20.0  # a perplexity that varies by this factor is drawn on a log axis
STYLE: Any = {
    "svg.fonttype": "none",  # text stays text: searchable, and set in the reader's font
    "text.parse_math": False,  # a $ in a label is a $
    "svg.hashsalt": "mxsweep",  # the same data give the same file
    "font.size": 10,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "axes.spines.top": False,
    "axes.spines.right": False,
}


@dataclass(frozen=True)
class Quantity:
    """Something drawn on the y axis."""

    stem: str  # of the file name
    axis: str
    value: Callable[[Row], float | None]
    error: Callable[[Row], float | None]
    from_zero: bool = False


THROUGHPUT = Quantity(
    "throughput", "examples per second (simulated)", lambda row: row.examples_per_sec, lambda row: None, True
)
NAMES = {"acc": "accuracy", "perplexity": "perplexity", "word_perplexity": "word_perplexity"}


def draw_figures(results: Results, output: Path) -> dict[str, list[Path]]:
    """Draw every group's figures into `output`, as PNG and SVG; returns the files by the group's slug."""
    drawn: dict[str, list[Path]] = {}
    for group in results.groups:
        rows = [row for row in group.rows if "block_size" in row.knobs]
        metric = group.main_metric()
        quantities = [_metric_quantity(metric, rows), THROUGHPUT] if metric else [THROUGHPUT]
        for quantity in quantities if rows else []:
            stem = "_".join(part for part in (f"{quantity.stem}_vs_block_size", group.slug) if part)
            with matplotlib.rc_context(STYLE):
                figure = _draw(results, group, rows, quantity)
                # The legend stands beside the axes. Measured once: "tight" would do it for each file.
                box = figure.get_tightbbox().padded(0.1)
                for path in (output / f"{stem}.png", output / f"{stem}.svg"):
                    metadata = {"Date": None} if path.suffix == ".svg" else None
                    figure.savefig(path, dpi=150, bbox_inches=box, metadata=metadata)
                    drawn.setdefault(group.slug, []).append(path)
    return drawn


def _metric_quantity(name: str, rows: list[Row]) -> Quantity:
    stem = NAMES.get(name, name.replace(",", "_"))
    has_error = any(_finite(row.metrics.get(f"{name}_stderr")) for row in rows)
    return Quantity(
        stem,
        stem.replace("_", " ") + (" (± 1 standard error)" if has_error else ""),
        lambda row: row.metrics.get(name),
        lambda row: row.metrics.get(f"{name}_stderr"),
    )


def _draw(results: Results, group: Group, rows: list[Row], quantity: Quantity) -> Figure:
    lines = _lines(results, rows)
    figure = Figure(figsize=(6.4, max(4.2, 0.2 * len(lines))))
    axes = figure.add_subplot()
    places = _places(rows)
    for index, (name, members) in enumerate(lines.items()):
        # Where all lines are one point at the same place, points side by side can be told apart.
        shift = 0.8 * ((index + 0.5) / len(lines) - 0.5) if len(places) == 1 else 0.0
        _plot_line(axes, name, members, quantity, places, index, shift)
    _plot_baselines(axes, results, group, quantity)
    axes.set_title(f"{quantity.stem.replace('_', ' ').capitalize()} vs block size\n{group.title}", fontsize=10)
    axes.set_xlabel("block_size")
    axes.set_ylabel(quantity.axis)
    axes.set_xticks(list(places.values()), [_place_name(value) for value in places])
    axes.set_xlim(min(places.values()) - 0.5, max(places.values()) + 0.5)
    _set_y_scale(axes, group.rows, quantity)
    axes.legend(loc="upper left", bbox_to_anchor=(1.02, 1.0), frameon=False, fontsize=8, handlelength=3.5)
    return figure


def _lines(results: Results, rows: list[Row]) -> dict[str, list[Row]]:
    names = [name for name in results.shown if name != "block_size"]
    # A knob that varies elsewhere, but not among these rows, would only lengthen every label.
    names = [name for name in names if len({label(row.knobs.get(name, "")) for row in rows}) > 1]
    lines: dict[str, list[Row]] = {}
    for row in rows:
        text = ", ".join(f"{name}={label(row.knobs[name])}" for name in names if name in row.knobs)
        lines.setdefault(text or f"format={label(row.knobs.get('format'))}", []).append(row)
    return lines


def _places(rows: list[Row]) -> dict[Any, float]:
    """Where each block size stands on the x axis: a length at its log2, the others to the right of them."""
    values = {row.knobs["block_size"] for row in rows}
    lengths = sorted(value for value in values if _is_length(value))
    places = {value: math.log2(value) for value in lengths}
    first = max(places.values(), default=0.0) + 1
    return places | {value: first + i for i, value in enumerate(sorted(values - set(lengths), key=str))}


def _is_length(block_size: Any) -> bool:
    """Not the whole axis (0), nor a tile ("16x16")."""
    return isinstance(block_size, int) and block_size > 0


def _place_name(block_size: Any) -> str:
    return "whole axis" if block_size == 0 else label(block_size)


def _plot_line(
    axes: Axes,
    name: str,
    rows: list[Row],
    quantity: Quantity,
    places: dict[Any, float],
    index: int,
    shift: float,
) -> None:
    x: list[float] = []
    y: list[float] = []
    errors: list[float] = []
    for row in sorted(rows, key=lambda row: places[row.knobs["block_size"]]):
        block_size = row.knobs["block_size"]
        if x and not _is_length(block_size):  # no line leads from a length to a tile
            x, y, errors = [*x, math.nan], [*y, math.nan], [*errors, 0.0]
        x.append(places[block_size] + shift)
        y.append(_or_nan(quantity.value(row)))
        errors.append(_finite(quantity.error(row)) or 0.0)
    size, width = SIZES[index % len(SIZES)]
    colour = COLOURS[index % len(COLOURS)]
    axes.errorbar(
        x,
        y,
        yerr=errors if any(errors) else None,
        label=name + ("" if any(map(math.isfinite, y)) else ": no value"),
        color=colour,
        marker=MARKERS[index % len(MARKERS)],
        linestyle=DASHES[index % len(DASHES)],
        markersize=size,
        linewidth=width,
        elinewidth=width * 0.6,
        capsize=size * 0.6,
        markeredgewidth=1.4,
        markerfacecolor="white" if index % 2 == 0 else colour,
        zorder=3 + index % len(SIZES),
    )


def _plot_baselines(axes: Axes, results: Results, group: Group, quantity: Quantity) -> None:
    baselines = [row for row in group.rows if row.is_baseline and _finite(quantity.value(row)) is not None]
    names = [name for name in results.shown if len({label(row.knobs.get(name, "")) for row in baselines}) > 1]
    drawn: set[str] = set()
    for row in baselines:
        text = ", ".join(["baseline", *(f"{name}={label(row.knobs[name])}" for name in names if name in row.knobs)])
        if text in drawn:  # a repetition
            continue
        value, error = _or_nan(quantity.value(row)), _finite(quantity.error(row))
        dashes = (0, (5 - min(len(drawn), 4), 3))
        axes.axhline(value, color=BASELINE_COLOUR, linestyle=dashes, linewidth=1.3, label=text, zorder=2)
        if error:
            axes.axhspan(value - error, value + error, color=BASELINE_COLOUR, alpha=0.08, linewidth=0, zorder=1)
        drawn.add(text)


def _set_y_scale(axes: Axes, rows: list[Row], quantity: Quantity) -> None:
    values = [value for row in rows if (value := _finite(quantity.value(row))) is not None]
    if quantity.from_zero:
        axes.set_ylim(0, 1.1 * max(values, default=1.0))
    elif quantity.stem.endswith("perplexity") and values and max(values) > LOG_SCALE_FROM * min(values) > 0:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _or_nan(value: float | None) -> float:
    finite = _finite(value)
    return math.nan if finite is None else finite
