"""Make docs/columns.md from the declarations of columns: `python -m mxsweep.report.column_page` prints it."""

from collections.abc import Iterable

from mxsweep.report.column_table import COMPARED, MEASURED, TENSOR_FIGURES
from mxsweep.report.columns import Field, Output
from mxsweep.report.metric_columns import metric_column
from mxsweep.results.tensor_errors import KIND_TITLES

TYPES = {bool: "true or false", int: "whole number", float: "number", str: "text"}
HEAD = """\
# Columns

`results.csv` and `results.parquet`, and `mxsweep.load` in Python, hold a row for each run and task, and these columns.
An empty cell (null in Parquet) has no value: a knob without effect, a metric that was not measured. NaN was measured
and came out so. This page is made from the declarations in `mxsweep/report/column_table.py` and `metric_columns.py`.

## Knobs

A column for each knob that has an effect on some run, under the name that tables give it: `block_size`, `kv_quant`,
`model.dtype`. [Knobs](knobs.md) lists them. `task` is the task that the row is of. Of several studies, `study` names
those that hold the run, and `environment` those that were made in the environment of its own, where they differ in it.
`model.digest`, `task.digest` and `calibration.digest` are of the content of the model, of the task's data file and of
the calibration data, whatever their names; "not recorded" in rows of an earlier version beside others.

## Metrics

Each metric of a task has a column of its name. `ppl` is the perplexity or, of a task without one, the word perplexity.
A metric whose name is another column's has `metric.` before it. The columns of an accuracy, here of `acc`, what a
perplexity has besides, and the margins of multiple choice:
"""


def column_page() -> str:
    """Return the page."""
    accuracy = metric_column("acc").fields
    ratios = [field for field in metric_column("perplexity").fields if "_ratio" in field.name]
    perplexity = [
        Field(field.name.replace("perplexity", "ppl"), field.help, field.kind, field.value) for field in ratios
    ]
    margins = [field for name in ("margin", "margin_norm") for field in metric_column(name).fields]
    columns = [column for column in MEASURED if Output.DATA in column.outputs]
    parts = [HEAD, _table([*accuracy, *perplexity, *margins]), "## Comparison with the baseline\n", _table(COMPARED)]
    parts += ["## Measurements\n", _table(field for column in columns for field in column.fields)]
    kinds = ", ".join(f"`{kind}_`" for kind in KIND_TITLES)
    figures = [Field(f"weight_{name}", text, float, lambda entry: None) for name, (text, _) in TENSOR_FIGURES.items()]
    said = f"Errors of quantizing, pooled over the layers, of each kind of tensor that was measured ({kinds}):\n"
    return "\n".join([*parts, "## Tensors\n", said, _table(figures)])


def _table(fields: Iterable[Field]) -> str:
    rows = [f"| `{field.name}` | {TYPES[field.kind or str]} | {field.help} |" for field in fields]
    return "\n".join(["| column | type | what it holds |", "| --- | --- | --- |", *rows, ""])


if __name__ == "__main__":
    print(column_page(), end="")
