"""The files of a data set are all that its folder shows."""

from __future__ import annotations

from pathlib import Path

from mxsweep.files.visible_files import visible_files


def test_what_begins_with_a_dot_is_not_seen(tmp_path: Path) -> None:
    for name in ("b/rows.parquet", "a.json", ".cache/x", "b/.part", "b/.git/y"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    assert visible_files(tmp_path) == [tmp_path / "a.json", tmp_path / "b" / "rows.parquet"]
    assert visible_files(tmp_path / "b" / ".part") == [tmp_path / "b" / ".part"]
    assert visible_files(tmp_path / "none") == []
