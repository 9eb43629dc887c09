"""Signal-to-noise of every weight as a heat map: layer by projection, a panel for each config, one scale of colours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import altair as alt

from mxsweep.measure.weights import Inspected, projections

CELL_WIDTH, CELL_HEIGHT = 44, 18
PANELS_A_ROW = 3
OUTSIDE = "none"  # the row of what is in no decoder block, as lm_head


def draw(found: Sequence[Inspected], output: Path) -> list[Path]:
    """Write inspect.png and inspect.svg into ``output``; of two configs there is a third panel, their difference."""
    chart = _chart(found)
    paths = [output / "inspect.png", output / "inspect.svg"]
    chart.save(paths[0], scale_factor=2)
    chart.save(paths[1])
    return paths


def _chart(found: Sequence[Inspected]) -> Any:
    names = projections([tensor.module for one in found for tensor in one.tensors])
    layers = sorted({tensor.layer for one in found for tensor in one.tensors if tensor.layer is not None})
    rows = [str(layer) for layer in layers]
    if any(tensor.layer is None for one in found for tensor in one.tensors):
        rows.append(OUTSIDE)
    columns = list(dict.fromkeys(names.values()))
    cells = [_cells(one, names) for one in found]
    values = [cell["value"] for of_one in cells for cell in of_one.values() if cell["value"] is not None]
    domain = [min(values), max(values)] if values else [0.0, 1.0]
    scale = alt.Scale(scheme="viridis", domain=domain)
    panels = [
        _panel(list(of_one.values()), f"{one.label} ({one.bits_per_weight:.2f} bits a weight)", rows, columns, scale)
        for one, of_one in zip(found, cells, strict=True)
    ]
    chart: Any = alt.concat(*panels, columns=PANELS_A_ROW)
    if len(found) == 2:
        difference = _differences(*cells)
        most = max((abs(cell["value"]) for cell in difference if cell["value"] is not None), default=0.0) or 1.0
        scale = alt.Scale(scheme="purpleorange", domain=[-most, most], domainMid=0)
        title = f"{found[1].label} less {found[0].label}"
        beside = _panel(difference, title, rows, columns, scale, "difference (dB)")
        chart = alt.hconcat(chart, beside).resolve_scale(color="independent")
    return chart.properties(title="Signal-to-noise ratio of the weights").configure_view(stroke=None)


def _cells(one: Inspected, names: dict[str, str]) -> dict[str, dict[str, Any]]:
    return {
        tensor.module: {
            "module": tensor.module,
            "layer": OUTSIDE if tensor.layer is None else str(tensor.layer),
            "projection": names[tensor.module],
            "value": tensor.statistics.sqnr_db if math.isfinite(tensor.statistics.sqnr_db) else None,
        }
        for tensor in one.tensors
    }


def _differences(first: dict[str, dict[str, Any]], second: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    found = []
    for module, cell in second.items():
        a, b = first.get(module, {}).get("value"), cell["value"]
        found.append(cell | {"value": None if a is None or b is None else b - a})
    return found


def _panel(
    cells: list[dict[str, Any]],
    title: str,
    rows: list[str],
    columns: list[str],
    scale: alt.Scale,
    legend: str = "SQNR (dB)",
) -> Any:
    return (
        alt.Chart(alt.Data(values=cells), title=alt.Title(title, fontWeight="normal", limit=400))
        .mark_rect(stroke="white")
        .encode(
            x=alt.X("projection:N", sort=columns, title=None, axis=alt.Axis(labelAngle=-45)),
            y=alt.Y("layer:N", sort=rows, title="layer"),
            # Grey: nothing was lost, or there is no number.
            color=alt.condition(
                "isValid(datum.value)",
                alt.Color("value:Q", scale=scale, title=legend, legend=alt.Legend(format=".1f", tickCount=4)),
                alt.value("lightgrey"),
            ),
            tooltip=["module:N", alt.Tooltip("value:Q", title=legend, format=".2f")],
        )
        .properties(width=CELL_WIDTH * len(columns), height=CELL_HEIGHT * len(rows))
    )
