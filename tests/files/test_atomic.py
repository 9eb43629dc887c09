"""Files written whole or not at all, by any writer, and what is left of one that fails."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from mxsweep.files.atomic import write_atomically, write_csv, write_folder_atomically


@pytest.mark.parametrize("content", ["ä\n", "ä\n".encode(), lambda path: path.write_text("ä\n", encoding="utf-8")])
@pytest.mark.parametrize("durable", [True, False])
def test_texts_bytes_and_writers_take_the_place_of_what_was_there(
    tmp_path: Path, content: str | bytes | Callable[[Path], object], durable: bool
) -> None:
    path = tmp_path / "made" / "file.txt"
    for _ in range(2):
        write_atomically(path, content, durable=durable)
        assert path.read_bytes() == "ä\n".encode()
        assert list(path.parent.iterdir()) == [path]
        path.write_text("older")


def test_until_a_file_is_whole_its_name_holds_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")

    def write(unfinished: Path) -> None:
        assert unfinished.parent == path.parent
        unfinished.write_text("half")
        assert path.read_text() == "old"

    write_atomically(path, write)
    assert path.read_text() == "half"


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), ValueError("no such column"), KeyboardInterrupt()]
)
def test_whoever_fails_leaves_what_was_there_and_nothing_beside_it(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")

    def fail(unfinished: Path) -> None:
        unfinished.write_text("half")
        raise error

    with pytest.raises(type(error)):
        write_atomically(path, fail)
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [("file.txt", "old")]


def test_what_cannot_be_renamed_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "folder" / "with").mkdir(parents=True)
    with pytest.raises(OSError, match="folder"):
        write_atomically(tmp_path / "folder", "text")
    assert [each.name for each in tmp_path.iterdir()] == ["folder"]


def test_only_what_must_outlast_a_power_cut_is_forced_to_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forced: list[bytes] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: forced.append(os.pread(descriptor, 10, 0)))
    write_atomically(tmp_path / "record", "1")
    write_atomically(tmp_path / "parts", lambda path: path.write_text("2"))
    write_atomically(tmp_path / "cache", "3", durable=False)
    assert forced == [b"1", b"2"]


def test_of_many_writers_one_stays_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    contents = [str(number) * 50_000 for number in range(8)]
    threads = [threading.Thread(target=write_atomically, args=(path, content)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_text() in contents and list(tmp_path.iterdir()) == [path]


def test_a_file_is_as_readable_as_any_other(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("")
    write_atomically(tmp_path / "file", "")
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_a_csv_quotes_what_needs_it(tmp_path: Path) -> None:
    write_csv(tmp_path / "table.csv", ["a", "b,c"], [[1, None], ["x\ny", 'say "so"']])
    assert (tmp_path / "table.csv").read_bytes() == b'a,"b,c"\r\n1,\r\n"x\ny","say ""so"""\r\n'
    with pytest.raises(ZeroDivisionError):
        write_csv(tmp_path / "table.csv", ["a"], ([1 / number] for number in (1, 0)))
    assert (tmp_path / "table.csv").read_bytes().startswith(b"a,")
    assert [each.name for each in tmp_path.iterdir()] == ["table.csv"]


def test_a_folder_may_be_the_one_that_work_is_done_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    write_folder_atomically(Path("."), lambda folder: (folder / "file").write_text("whole"), replace=False)
    assert (tmp_path / "here" / "file").read_text() == "whole"
    assert [each.name for each in tmp_path.iterdir()] == ["here"]


def test_what_came_into_a_folder_meanwhile_stays(tmp_path: Path) -> None:
    place = tmp_path / "out"

    def write(folder: Path) -> None:
        (folder / "file").write_text("whole")
        place.mkdir()
        (place / "mine").write_text("here")

    with pytest.raises(OSError, match="not empty"):
        write_folder_atomically(place, write, replace=False)
    assert [each.name for each in tmp_path.iterdir()] == ["out"]
    assert [each.name for each in place.iterdir()] == ["mine"]
    write_folder_atomically(place, lambda folder: (folder / "file").write_text("whole"))
    assert [each.name for each in place.iterdir()] == ["file"]
