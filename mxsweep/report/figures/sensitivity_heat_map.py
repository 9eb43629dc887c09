"""Each part's losses as a heat map: layer by kind, a panel for each way of measuring."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import altair as alt

from mxsweep.measure.sensitivity import PartLoss, Sensitivity

CELL_WIDTH, CELL_HEIGHT = 44, 18
ALL = "all"  # the row, or column, of a part that is in several layers, or of several kinds
GREY = "lightgrey"
ALONE = "KL when it alone is quantized"
SAVED = "KL saved when it alone is not"


def draw(found: Sensitivity, title: str, output: Path) -> list[Path]:
    """Write sensitivity.png and sensitivity.svg into ``output``."""
    alone = [_cell(one, one.alone.kl) for one in found.parts]
    saved = [_cell(one, found.whole.kl - one.without.kl) for one in found.parts]
    ordered = sorted((one.part for one in found.parts), key=lambda part: part.place)
    kinds = list(dict.fromkeys(part.kind or ALL for part in ordered))
    layers = sorted({cell["layer"] for cell in alone}, key=lambda layer: (layer == ALL, layer != ALL and int(layer)))
    most = max((abs(cell["value"]) for cell in saved if cell["value"] is not None), default=0.0) or 1.0
    # By the root, so that parts that differ by a factor of a hundred are both to be seen.
    positive = alt.Scale(scheme="viridis", type="sqrt", domainMin=0)
    both_ways = alt.Scale(scheme="purpleorange", domain=[-most, most], domainMid=0)
    panels = [
        _panel(alone, ALONE, layers, kinds, positive),
        _panel(saved, SAVED, layers, kinds, both_ways),
    ]
    chart: Any = alt.hconcat(*panels).resolve_scale(color="independent")
    chart = chart.properties(title=f"Sensitivity to {title}").configure_view(stroke=None)
    # A cell without a number is there, and grey; by itself Vega-Lite would leave it out.
    chart = chart.configure_scale(invalid=alt.ScaleInvalidDataConfig(color={"value": GREY}))
    paths = [output / "sensitivity.png", output / "sensitivity.svg"]
    chart.save(paths[0], scale_factor=2)
    chart.save(paths[1])
    return paths


def _cell(one: PartLoss, value: float) -> dict[str, Any]:
    part = one.part
    return {
        "part": part.name,
        "layer": ALL if part.layer is None else str(part.layer),
        "kind": part.kind or ALL,
        "value": value if math.isfinite(value) else None,
    }


def _panel(cells: list[dict[str, Any]], title: str, rows: list[str], columns: list[str], scale: alt.Scale) -> Any:
    return (
        alt.Chart(alt.Data(values=cells), title=alt.Title(title, fontWeight="normal", limit=400))
        .mark_rect(stroke="white", invalid="show")
        .encode(
            x=alt.X("kind:N", sort=columns, title=None, axis=alt.Axis(labelAngle=-45)),
            y=alt.Y("layer:N", sort=rows, title="layer"),
            color=alt.Color(
                "value:Q", scale=scale, title="nats a token", legend=alt.Legend(format=".2~g", tickCount=4)
            ),
            tooltip=["part:N", alt.Tooltip("value:Q", title="nats a token", format=".5f")],
        )
        .properties(width=CELL_WIDTH * max(len(columns), 2), height=CELL_HEIGHT * max(len(rows), 2))
    )
