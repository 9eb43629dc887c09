"""Draw where error enters: one run's tensors, layer by layer, coloured by the signal left over the error.

Elements of one width have a scale of colours of their own: four bits lose so much more than six that on a common scale
tensors of either would all look alike.
The page shows any run that has diagnostics, chosen from a list; the file the most accurate one. Runs often share the
errors of some tensors (scale_bits 6 and 8, or all weights of a format), which the page then holds once.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mxsweep.report.figures.figure import Figure, Spec, channel
from mxsweep.report.figures.look import FILE_INK
from mxsweep.report.study_title import measured_text
from mxsweep.results.knob_words import name_rows
from mxsweep.results.rows import Row
from mxsweep.results.tensor_bases import NOTE, has_own_metric
from mxsweep.results.tensor_errors import KIND_TITLES, TensorError, in_order_of_kinds, read_tensors
from mxsweep.study.group_study import Study

MEASURES = {  # attribute of a tensor: what it is called, and how many digits are kept
    "sqnr_db": ("signal over quantization error, dB", 2),
    "saturated": ("share of elements saturated", 6),
    "flushed": ("share of elements that became zero", 6),
    "clamped": ("share of blocks with a clamped scale", 6),
}
ROW_HEIGHT, COLUMN_WIDTH = 18, 36  # pixels, in a file
NARROWEST = 27  # pixels of a cell that has room for its number
MOST_CELLS = 60_000  # in the page, of about 30 bytes each
OUTSIDE = "outside"  # the layer of a tensor that belongs to no decoder block


@dataclass(frozen=True)
class HeatMap:
    """Hold the errors of all runs of a group that have diagnostics.

    Attributes:
        figure: of the first run.
        runs: the name of each run.
        kinds: the kinds of tensor that any run has, by their names in sentences.
        columns: the tensors of a decoder block, by kind and projection, in the model's order.
        layers: their numbers, as text, and OUTSIDE.
        widths: bits of an element, of which each has a scale of colours; None for unknown.
        parts: each run's distinct pieces, one for each kind, as indices into `pieces`; -1 of a kind that it lacks.
        pieces: a kind's cells, each [column, layer, sqnr_db, saturated, flushed, clamped, width].
    """

    figure: Figure
    runs: list[str]
    kinds: list[str]
    columns: list[str]
    layers: list[str]
    widths: list[int | None]
    parts: list[list[int]]
    pieces: list[list[list[Any]]]


def heat_map(study: Study, most_cells: int = MOST_CELLS) -> HeatMap | None:
    """Return the group's heat map; None where no run has diagnostics. Runs after `most_cells` cells are left out."""
    rows = _best_first(study)
    measured = _read_errors(rows, most_cells)
    if not measured:
        return None
    kinds = in_order_of_kinds(kind for _, by_kind in measured for kind in by_kind)
    columns = list(
        dict.fromkeys(_column(tensor) for kind in kinds for _, by_kind in measured for tensor in by_kind.get(kind, ()))
    )
    different = {piece for _, by_kind in measured for piece in by_kind.values()}
    numbers = sorted({tensor.layer for piece in different for tensor in piece if tensor.layer is not None})
    outside = any(tensor.layer is None for piece in different for tensor in piece)
    layers = [*map(str, numbers), *([OUTSIDE] if outside else [])]
    column_at, layer_at = ({name: index for index, name in enumerate(some)} for some in (columns, layers))
    pieces: dict[tuple[TensorError, ...], int] = {}
    for _, by_kind in measured:
        for piece in by_kind.values():
            pieces.setdefault(piece, len(pieces))
    parts = [[pieces[by_kind[kind]] if kind in by_kind else -1 for kind in kinds] for _, by_kind in measured]
    names = [name_rows([row], study.naming, study.usual) for row, _ in measured]
    runs = [f"{name} ({row.run.run_id})" for name, (row, _) in zip(names, measured, strict=True)]
    lists = [[_cell(tensor, column_at, layer_at) for tensor in piece] for piece in pieces]
    widths = sorted({cell[-1] for cells in lists for cell in cells}, key=lambda width: (width is None, width))
    first = [cell for index in parts[0] if index >= 0 for cell in lists[index]]
    has_more = len(rows) > rows.index(measured[-1][0]) + 1
    figure = Figure(
        stem="_".join(part for part in ("sqnr", study.group.slug) if part),
        title="Signal over quantization error by layer and tensor, dB",
        subtitle=f"{measured_text(study.group)}; {names[0]}",
        caption=(
            "Signal over quantization error (10 log10 of the sums of squares) of each quantized tensor; little means "
            "much error. Each width of elements has its colours. Weights are whole, activations, keys and values "
            "sampled. A column without cells is of a kind that this run leaves as it is. "
            + (f"{NOTE} " if any(has_own_metric(row, kind) for row, by_kind in measured for kind in by_kind) else "")
            + (f"The page has those of {len(runs)} runs, for its size." if has_more else "")
        ),
        build=lambda ink: _chart(ink, columns, layers, first, widths if ink != FILE_INK else None),
        columns=["layer", *columns],
        cells=_table(columns, layers, first),
        about="where error enters",
        height=max(120, ROW_HEIGHT * len(layers)),
    )
    return HeatMap(figure, runs, [KIND_TITLES[kind] for kind in kinds], columns, layers, widths, parts, lists)


def _read_errors(rows: Sequence[Row], most_cells: int) -> list[tuple[Row, dict[str, tuple[TensorError, ...]]]]:
    """Return the runs that have diagnostics, each with its tensors by kind, until there are `most_cells` different."""
    measured: list[tuple[Row, dict[str, tuple[TensorError, ...]]]] = []
    different: set[tuple[TensorError, ...]] = set()
    for row in rows:
        by_kind: dict[str, list[TensorError]] = {}
        for tensor in read_tensors(row.run):
            by_kind.setdefault(tensor.kind, []).append(tensor)
        if by_kind:
            measured.append((row, {kind: tuple(tensors) for kind, tensors in by_kind.items()}))
            different.update(measured[-1][1].values())
        if sum(map(len, different)) > most_cells:
            break
    return measured


def _best_first(study: Study) -> list[Row]:
    """Return the least costly run, then the others in the tables' order."""
    quantized = [row for row in study.rows if not row.is_baseline]
    best = [config.row for config in study.verdict.configs][:1]
    return [*best, *(row for row in quantized if row not in best)]


def _column(tensor: TensorError) -> str:
    title = KIND_TITLES[tensor.kind]
    if tensor.kind in ("key", "value"):  # of one module a block
        return title
    return f"{title[:-1]} {tensor.part}"


def _cell(tensor: TensorError, columns: dict[str, int], layers: dict[str, int]) -> list[Any]:
    layer = OUTSIDE if tensor.layer is None else str(tensor.layer)
    values = []
    for name, (_, digits) in MEASURES.items():
        value = getattr(tensor, name)
        values.append(round(value, digits) if value is not None and math.isfinite(value) else None)
    return [columns[_column(tensor)], layers[layer], *values, tensor.width]


def _table(columns: Sequence[str], layers: Sequence[str], cells: Sequence[Sequence[Any]]) -> list[list[str]]:
    at = {(cell[1], cell[0]): cell[2] for cell in cells}
    table = []
    for row, layer in enumerate(layers):
        values = [at.get((row, column)) for column in range(len(columns))]
        table.append([layer, *("–" if value is None else f"{value:.1f}" for value in values)])
    return table


def _chart(
    ink: str,
    columns: Sequence[str],
    layers: Sequence[str],
    cells: Sequence[Sequence[Any]],
    widths: Sequence[int | None] | None = None,
) -> Spec:
    """Return the chart of these cells, with a layer for each width of elements, by default of those that they have."""
    drawn = [cell for cell in cells if cell[2] is not None]
    if widths is None:
        widths = sorted({cell[-1] for cell in drawn}, key=lambda width: (width is None, width))
    values = {width: [cell[2] for cell in drawn if cell[-1] == width] for width in widths}
    middles = {width: (min(some) + max(some)) / 2 for width, some in values.items() if some}
    data = [
        {
            "tensor": columns[cell[0]],
            "layer": layers[cell[1]],
            "value": cell[2],
            "width": cell[-1],
            "dark": cell[2] < middles[cell[-1]],
        }
        for cell in drawn
    ]
    seen = [name for name in columns if any(datum["tensor"] == name for datum in data)]
    in_page = ink != FILE_INK
    slanted = {"labelAngle": -40, "labelOverlap": False}
    return {
        "datasets": {"cells": data},
        "data": {"name": "cells"},
        "encoding": {
            "x": channel("tensor", sort=None, title=None, axis=slanted, scale={"domain": seen}),
            "y": channel("layer", sort=None, title="decoder block", scale={"domain": list(layers)}),
        },
        "layer": [
            *(_coloured(width, "dB", in_page) for width in widths),
            {
                "mark": {"type": "text", "fontSize": 10},
                "encoding": {
                    "text": channel("value", "quantitative", format=".1f"),
                    # Light on the scale's dark end, and none where the cells are narrower than the numbers.
                    "color": {"condition": {"test": "datum.dark", "value": "white"}, "value": "black"},
                    "opacity": {
                        "condition": {"test": f"width < {NARROWEST * len(seen)}", "value": 0},
                        "value": 1,
                    },
                },
            },
        ],
        "resolve": {"scale": {"color": "independent"}},
        **({} if in_page else {"width": max(COLUMN_WIDTH * len(seen), 220)}),
    }


def _coloured(width: int | None, unit: str, in_page: bool) -> Spec:
    """Return the layer of the cells whose elements have this width."""
    title = unit if width is None else f"{unit}, {width}-bit elements"
    legend: Spec = {"title": title, "orient": "bottom" if in_page else "right"}
    legend |= {"gradientLength": 150 if in_page else 60, "tickCount": 3}
    return {
        "transform": [{"filter": "!isValid(datum.width)" if width is None else f"datum.width === {width}"}],
        "mark": {"type": "rect"},
        "encoding": {
            "color": channel("value", "quantitative", scale={"scheme": "cividis", "zero": False}, legend=legend),
            "tooltip": [
                channel("layer", title="decoder block"),
                channel("tensor"),
                channel("value", "quantitative", format=".4~g", title=MEASURES["sqnr_db"][0]),
            ],
        },
    }
