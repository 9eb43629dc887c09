"""Open the Parquet files of runs, which somebody else may have written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mxsweep.files.regular import open_regular

MOST_ROWS = 20_000_000  # of what a run leaves; it takes some GB of memory


class ParquetError(ValueError):
    """Say why a Parquet file was not read, behind the file's name."""


@contextmanager
def open_parquet(path: Path, most_rows: int = MOST_ROWS) -> Iterator[Any]:
    """Open a file as pyarrow's ``ParquetFile`` while the context lasts.

    Raises:
        ParquetError: no regular file, no Parquet file, damage also where it is read inside the context, or more than
            ``most_rows`` rows.
    """
    import pyarrow as pa  # here, since most who read records read none of these, and it takes a while
    import pyarrow.parquet as pq

    try:
        with open_regular(path) as opened, pq.ParquetFile(opened) as file:
            rows = file.metadata.num_rows
            if rows > most_rows:
                raise ParquetError(f"has {rows:,} rows, more than the {most_rows:,} that are read")
            yield file
    except ParquetError:
        raise
    except (OSError, ValueError, TypeError, LookupError, pa.ArrowException) as error:
        raise ParquetError("is damaged") from error
