"""Draw heat maps side by side: decoder block by projection, a panel for each config or way of measuring.

`mxsweep.inspect` draws the signal-to-noise of every weight, `mxsweep.sensitivity` the losses that each part brings.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from mxsweep.report.figures.figure import SCHEMA, Spec, channel, finite, tooltip, write_chart
from mxsweep.report.figures.look import FILE_INK, config
from mxsweep.results.tensor_errors import element_width
from mxsweep.study.change_words import format_bits

CELL_WIDTH, CELL_HEIGHT = 44, 18  # pixels
FEWEST = 2  # rows and columns that a panel has room for, so that its title and legend have some, too
PANELS_A_ROW = 3
OUTSIDE = "none"  # the row of what is in no decoder block, as lm_head
ALL = "all"  # the row, or column, of a part that is in several layers, or of several kinds
GREY = "lightgrey"  # of a cell without a number


class InspectedWeights(Protocol):
    """Describe what is drawn of one config's weights.

    Attributes:
        label: what tells the config from others.
        bits_per_weight: scales included.
    """

    @property
    def label(self) -> str: ...

    @property
    def bits_per_weight(self) -> float: ...

    def rows(self) -> list[dict[str, Any]]:
        """Return a row for each weight: `module`, `layer` (None outside the blocks), `part`, `format`, `sqnr_db`."""
        ...


@dataclass(frozen=True)
class Panel:
    """Hold one heat map.

    Attributes:
        title: above it.
        cells: each with `name`, `row`, `column` and `value`, None for none.
        legend: what the colours say, with the unit.
        scale: from values to colours.
        form: how a tooltip writes a value.
        legend_form: how the legend writes a value.
    """

    title: str
    cells: Sequence[Mapping[str, Any]]
    legend: str
    scale: Spec
    form: str
    legend_form: str


def draw_weights(inspected: Sequence[InspectedWeights], output: Path) -> list[Path]:
    """Draw inspect.png, .svg and .pdf; of two configs there is a third panel, their difference. Raises OSError.

    Panels whose elements are of one width have one scale of colours: four bits lose much more than eight.
    """
    weights = {one.label: one.rows() for one in inspected}
    numbers = {row["layer"] for rows in weights.values() for row in rows}
    order = [*map(str, sorted(numbers - {None})), *([OUTSIDE] if None in numbers else [])]
    cells = [{row["module"]: _weight_cell(row) for row in rows} for rows in weights.values()]
    widths = [frozenset(element_width(row["format"]) for row in rows) for rows in weights.values()]
    values: dict[frozenset[int | None], list[float]] = {}
    for width, of_config in zip(widths, cells, strict=True):
        known = [cell["value"] for cell in of_config.values() if cell["value"] is not None]
        values.setdefault(width, []).extend(known)
    domains = {width: [min(some), max(some)] if some else [0, 1] for width, some in values.items()}
    panels = [
        Panel(
            f"{one.label} ({format_bits(one.bits_per_weight)} bits a weight)",
            list(of_config.values()),
            "SQNR (dB)",
            {"scheme": "viridis", "domain": domains[width]},
            ".2f",
            ".1f",
        )
        for one, of_config, width in zip(inspected, cells, widths, strict=True)
    ]
    if len(inspected) == 2:
        title = f"{inspected[1].label} less {inspected[0].label}"
        beside = _differences(*cells)
        panels.append(Panel(title, beside, "difference (dB)", both_ways(beside), ".2f", ".1f"))
    columns = list(dict.fromkeys(row["part"] for rows in weights.values() for row in rows))
    return _write("Signal-to-noise ratio of the weights", panels, order, columns, output, "inspect")


def draw_sensitivity(rows: Sequence[Mapping[str, Any]], title: str, output: Path) -> list[Path]:
    """Draw sensitivity.png, .svg and .pdf. Raises OSError.

    Args:
        rows: a part each: its `part` (name), `place` in the model's order, `layer` and `kind` (None where it is in
            several), `kl_alone` and `kl_saved` in nats a token.
        title: the formats.
        output: folder of the files.
    """
    alone, saved = ([_part_cell(row, value) for row in rows] for value in ("kl_alone", "kl_saved"))
    columns = dict.fromkeys(row["kind"] or ALL for row in sorted(rows, key=lambda row: row["place"]))
    order = sorted({cell["row"] for cell in alone}, key=lambda row: (row == ALL, row != ALL and int(row)))
    # By the root, so that parts that differ by a factor of a hundred are both to be seen.
    positive = {"scheme": "viridis", "type": "sqrt", "domainMin": 0}
    panels = [
        Panel("KL when it alone is quantized", alone, "nats a token", positive, ".5f", ".2~g"),
        Panel("KL saved when it alone is not", saved, "nats a token", both_ways(saved), ".5f", ".2~g"),
    ]
    return _write(f"Sensitivity to {title}", panels, order, list(columns), output, "sensitivity")


def chart(title: str, panels: Sequence[Panel], rows: Sequence[str], columns: Sequence[str]) -> Spec:
    """Return the chart of panels that have the same rows and columns."""
    return {
        "$schema": SCHEMA,
        "title": {"text": title},
        # A cell without a number is there, and grey; by itself Vega-Lite would leave it out.
        "config": config(FILE_INK) | {"scale": {"invalid": {"color": {"value": GREY}}}},
        "concat": [_panel(panel, rows, columns) for panel in panels],
        "columns": PANELS_A_ROW,
        "resolve": {"scale": {"color": "independent"}},
    }


def _write(
    title: str, panels: Sequence[Panel], rows: Sequence[str], columns: Sequence[str], output: Path, stem: str
) -> list[Path]:
    return write_chart(chart(title, panels, rows, columns), output, stem)


def _panel(panel: Panel, rows: Sequence[str], columns: Sequence[str]) -> Spec:
    legend = {"title": panel.legend, "format": panel.legend_form, "tickCount": 4}
    return {
        "title": {"text": panel.title, "fontSize": 12, "fontWeight": "normal", "limit": 400},
        "data": {"values": list(panel.cells)},
        "mark": {"type": "rect", "stroke": "white", "invalid": "show"},
        "encoding": {
            "x": channel("column", sort=list(columns), title=None, axis={"labelAngle": -45}),
            "y": channel("row", sort=list(rows), title="layer"),
            "color": channel("value", "quantitative", scale=panel.scale, legend=legend),
            "tooltip": [
                *tooltip({"name": "part"}),
                channel("value", "quantitative", title=panel.legend, format=panel.form),
            ],
        },
        "width": CELL_WIDTH * max(len(columns), FEWEST),
        "height": CELL_HEIGHT * max(len(rows), FEWEST),
    }


def both_ways(cells: Iterable[Mapping[str, Any]]) -> Spec:
    """Return a scale of two colours, the middle of which is zero."""
    most = max((abs(cell["value"]) for cell in cells if cell.get("value") is not None), default=0.0) or 1.0
    return {"scheme": "purpleorange", "domain": [-most, most], "domainMid": 0}


def _weight_cell(row: Mapping[str, Any]) -> dict[str, Any]:
    layer = OUTSIDE if row["layer"] is None else str(row["layer"])
    return {"name": row["module"], "row": layer, "column": row["part"], "value": finite(row["sqnr_db"])}


def _differences(
    first: Mapping[str, Mapping[str, Any]], second: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    cells = []
    for module, cell in second.items():
        a, b = first.get(module, {}).get("value"), cell["value"]
        cells.append({**cell, "value": None if a is None or b is None else b - a})
    return cells


def _part_cell(row: Mapping[str, Any], value: str) -> dict[str, Any]:
    layer = ALL if row["layer"] is None else str(row["layer"])
    return {"name": row["part"], "row": layer, "column": row["kind"] or ALL, "value": finite(row[value])}
