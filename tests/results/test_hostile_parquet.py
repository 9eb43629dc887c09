"""Parquet files that a stranger wrote: whatever columns and bytes they have, the report is made."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.hostile import LEAVES, TEXTS, fuzzing
from helpers.made_report import put_study
from helpers.made_trainings import put_training
from hypothesis import given
from hypothesis import strategies as st

from mxsweep.report.collection import collect
from mxsweep.report.figures import figure_files
from mxsweep.report.figures.draw import ChartFiles


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    top = tmp_path_factory.mktemp("studies")
    put_study(top / "runs", blocks=(16, 32), scale_bits=(8,), kv=("none",), noise=False)
    put_training(top / "trainings" / "plain", seed=1, format="none")
    put_training(top / "trainings" / "quantized", seed=1, cost=0.1, roles={"dgrad.grad": 20.0, "fprop.weight": 18.0})
    return {name: top / name for name in ("runs", "trainings")}


@pytest.fixture(scope="module", autouse=True)
def no_pictures() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figure_files, "draw_charts", lambda charts, _: ChartFiles())
        yield


KINDS: list[Any] = [
    pa.int8(), pa.uint64(), pa.int64(), pa.float16(), pa.float32(), pa.float64(), pa.string(), pa.binary(),
    pa.bool_(), pa.null(), pa.date32(), pa.timestamp("ns"), pa.decimal128(38, 2), pa.list_(pa.int64()),
    pa.struct([("a", pa.int64())]), pa.dictionary(pa.int8(), pa.string()),
]  # fmt: skip


def column(data: Any, rows: int, old: pa.ChunkedArray) -> pa.Array:
    """A column of other values, or of those that it had as another type."""
    kind = data.draw(st.sampled_from(KINDS))
    values = old.to_pylist() if data.draw(st.booleans()) else [data.draw(LEAVES)] * rows
    try:
        made = pa.array(values, type=kind)
    except (pa.ArrowException, ValueError, TypeError, OverflowError):
        made = pa.nulls(rows, kind)
    return made


def other_table(data: Any, table: pa.Table) -> pa.Table:
    for _ in range(data.draw(st.integers(1, 3))):
        name = data.draw(st.sampled_from(table.column_names)) if table.column_names else None
        what = data.draw(st.sampled_from(["column", "column", "less", "more", "twice", "cut", "value", "names"]))
        if what == "more" or name is None:
            table = table.append_column(data.draw(TEXTS), pa.array(np.arange(len(table))))
        elif what == "less":
            table = table.drop_columns([name]) if table.column_names.count(name) == 1 else table
        elif what == "cut":
            table = table.slice(0, data.draw(st.integers(0, 3)))
        elif what == "twice":
            table = pa.concat_tables([table, table])
        elif what == "names":
            table = table.rename_columns([*table.column_names[1:], table.column_names[0]])
        else:
            place = table.column_names.index(name)
            new = column(data, len(table), table.column(place))
            table = table.set_column(place, name, new)
    return table


@pytest.mark.parametrize("study", ["runs", "trainings"])
@given(data=st.data())
@fuzzing(5)
def test_a_table_with_anything_anywhere(studies: dict[str, Path], tmp_path: Path, study: str, data: Any) -> None:
    folder = tmp_path / "s"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(studies[study], folder)
    files = sorted(folder.glob("*/*.parquet"))
    for path in data.draw(st.lists(st.sampled_from(files), min_size=1, max_size=2, unique=True)):
        if data.draw(st.sampled_from([True, True, False])):
            pq.write_table(other_table(data, pq.read_table(path)), path)
        else:
            written = bytearray(path.read_bytes())
            for _ in range(data.draw(st.integers(1, 4))):
                written[data.draw(st.integers(0, len(written) - 1))] = data.draw(st.integers(0, 255))
            path.write_bytes(written[: data.draw(st.sampled_from([None, None, len(written) // 2, -1]))])
    result = collect(folder)
    assert result.unreadable == 0 and result.done == len(list(folder.glob("*/result.json")))
    assert result.write_error is None
