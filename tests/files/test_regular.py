"""Only regular files are read, of a size that can be, and whatever else is there is refused at once."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.hostile import keep_from_this_user

from mxsweep.files.locks import CLAIM_NAME, Lock, holder, is_held
from mxsweep.files.regular import NotRegularError, open_regular, read_regular
from mxsweep.results.parquet_files import MOST_ROWS, ParquetError, open_parquet
from mxsweep.results.record import find_runs


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        os.chdir(path.parent)  # the path of a socket is short
        bound.bind(path.name)


SPECIAL: dict[str, Callable[[Path], object]] = {
    "pipe": os.mkfifo,
    "folder": Path.mkdir,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "socket": _socket,
}


@pytest.fixture(params=SPECIAL)
def special(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "special"
    SPECIAL[request.param](path)
    return path


def test_what_is_no_file_is_refused(special: Path) -> None:
    # A socket is refused by the system.
    with pytest.raises(OSError, match=r"no regular file|Is a directory|No such device"):
        read_regular(special, 10)


def test_files_and_links_to_them_are_read_up_to_a_size(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"0123456789")
    (tmp_path / "link").symlink_to("file")
    for name in ("file", "link"):
        assert read_regular(tmp_path / name, 10) == b"0123456789"
        with open_regular(tmp_path / name) as file:
            assert file.read() == b"0123456789"
        with pytest.raises(OSError, match="larger than the 9 bytes"):
            read_regular(tmp_path / name, 9)


def test_what_is_no_claim_says_of_nobody_and_cannot_be_taken(special: Path) -> None:
    special.rename(special.with_name(CLAIM_NAME))
    folder = special.parent
    if not special.with_name(CLAIM_NAME).is_socket():
        assert holder(folder) is None
        with pytest.raises(NotRegularError):
            is_held(folder / CLAIM_NAME)
    with pytest.raises(OSError):
        Lock.take(folder / CLAIM_NAME)


def test_a_claim_that_may_not_be_read_says_of_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = Lock.take(tmp_path / CLAIM_NAME)
    assert lock is not None and holder(tmp_path) == {}
    keep_from_this_user(tmp_path / CLAIM_NAME, monkeypatch)
    assert holder(tmp_path) is None
    lock.release()


def test_what_a_claim_is_a_link_to_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    (tmp_path / CLAIM_NAME).symlink_to("mine")
    with pytest.raises(OSError):
        Lock.take(tmp_path / CLAIM_NAME)
    assert (tmp_path / "mine").read_text() == "mine"


@pytest.mark.parametrize("name", ["result.json", "sweep.json", "samples.parquet", CLAIM_NAME])
def test_a_pipe_in_a_run_does_not_hang_who_reads_it(tmp_path: Path, name: str) -> None:
    (tmp_path / ".hydra").mkdir()
    os.mkfifo(tmp_path / name)
    (run,) = [run for run in find_runs(tmp_path) if run.path == tmp_path][:1]
    expected = "unreadable" if name.endswith(".json") else "missing"
    assert run.status == expected
    if expected == "unreadable":
        assert run.reason is not None and "no regular file" in run.reason
    with pytest.raises(ParquetError, match="is damaged"), open_parquet(tmp_path / name):
        pass


def test_a_table_of_too_many_rows_is_refused_by_its_head(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"a": [1, 2, 3]}), tmp_path / "three.parquet")
    with open_parquet(tmp_path / "three.parquet", 3) as file:
        assert file.read().num_rows == 3
    too_many = pytest.raises(ParquetError, match="has 3 rows, more than the 2 that are read")
    with too_many, open_parquet(tmp_path / "three.parquet", 2):
        pass
    assert MOST_ROWS < 200_000_000
