"""Write results.csv and results.parquet: every knob, metric and measurement of every run, for programs.

A row is a run and task, of runs in any state. A column holds values of one type, and nothing where there is no value
(no limit, a knob without effect, a metric that was not measured); NaN is a metric that was measured and came out so.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mxsweep.config.knobs import notes
from mxsweep.files.atomic import write_atomically, write_csv
from mxsweep.report.column_table import COMPARED, MEASURED, knob_column, note_column, tensor_columns
from mxsweep.report.columns import ComparedRow, Field, Output
from mxsweep.report.metric_columns import metric_data_columns
from mxsweep.report.run_table import entries_of
from mxsweep.results.groups import Results, knob_names, read_results
from mxsweep.results.record import Folders
from mxsweep.results.rows import label
from mxsweep.study.group_study import Study, study_groups

if TYPE_CHECKING:
    import pandas as pd

PANDAS_TYPES = {bool: "boolean", int: "Int64", float: "float64", str: "string"}


@dataclass(frozen=True)
class DataColumn:
    """Hold the values of a column, one for each row, all of type `kind` or None."""

    name: str
    kind: type
    values: list[Any]


def load(dirs: Folders) -> pd.DataFrame:
    """Return the runs at or below `dirs` as a tidy table, which holds what results.csv and results.parquet do."""
    import pandas as pd  # here, since most who import this module want no data frame, and it takes a while

    results = read_results(dirs)
    columns = run_data(results, study_groups(results))
    return pd.DataFrame({each.name: pd.Series(each.values, dtype=PANDAS_TYPES[each.kind]) for each in columns})


def run_data(results: Results, studied: Sequence[Study]) -> list[DataColumn]:
    """Return every column with the values of all rows."""
    compared = {(e.row.run.path, e.row.task): e for each in studied for e in entries_of(each.group, each.comparisons)}
    entries = [compared.get((row.run.path, row.task), ComparedRow(row)) for row in results.rows]
    return [_of_one_type(field, [field.value(entry) for entry in entries]) for field in _fields(results)]


def write_run_csv(path: Path, columns: Sequence[DataColumn]) -> None:
    """Write columns to a CSV file: an empty cell has no value, NaN reads nan. Raises OSError."""
    write_csv(path, [each.name for each in columns], zip(*(each.values for each in columns), strict=True))


def write_run_parquet(path: Path, columns: Sequence[DataColumn]) -> None:
    """Write columns to a Parquet file, typed. Raises OSError."""
    import pyarrow as pa  # without pandas, which would make one thing of null and NaN
    import pyarrow.parquet

    types = {bool: pa.bool_(), int: pa.int64(), float: pa.float64(), str: pa.string()}
    content = io.BytesIO()
    table = {each.name: pa.array(each.values, type=types[each.kind]) for each in columns}
    pyarrow.parquet.write_table(pa.table(table), content)
    write_atomically(path, content.getvalue(), durable=False)


def _fields(results: Results) -> Iterable[Field]:
    """List the columns, each name once; one of a metric whose name is taken is called `metric.` and that name."""
    columns = [*map(knob_column, knob_names(results)), *map(note_column, notes())]
    knobs = [field for column in columns for field in column.fields]
    others = [column for column in (*MEASURED, *tensor_columns(results.rows)) if Output.DATA in column.outputs]
    more = [*COMPARED, *(field for column in others for field in column.fields)]
    metrics: dict[str, Field] = {}
    taken = {field.name for field in (*knobs, *more)}
    for column in metric_data_columns(results.rows):
        for field in column.fields:
            name = f"metric.{field.name}" if field.name in taken else field.name
            metrics[name] = replace(field, name=name)
            taken.add(name)
    return [*knobs, *metrics.values(), *more]


def _of_one_type(field: Field, values: list[Any]) -> DataColumn:
    """Return a column of the field's type or, where it has none or a record has something else, of the values' type."""
    kinds = {type(value) for value in values if value is not None}
    kind = field.kind or (kinds.pop() if len(kinds) == 1 else float if kinds == {int, float} else str)
    if kind is int and not all(value is None or _is_whole(value) for value in values):
        kind = float
    convert = label if kind is str else kind
    return DataColumn(field.name, kind, [None if value is None else convert(value) for value in values])


def _is_whole(value: float) -> bool:
    """Return whether a number fits in an int64 without loss."""
    return math.isfinite(value) and value == int(value) and abs(value) < 2**63
