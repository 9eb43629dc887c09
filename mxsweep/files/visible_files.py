"""Find the files of a data set in a folder."""

from __future__ import annotations

from pathlib import Path


def visible_files(path: Path) -> list[Path]:
    """Return the file, or all files below the folder but those with a part that begins with a dot, sorted.

    Of what is neither there are none.

    Raises:
        OSError: a folder cannot be read.
    """
    if path.is_file():
        return [path]
    below = (file for file in path.rglob("*") if file.is_file()) if path.is_dir() else ()
    return sorted(file for file in below if not any(p.startswith(".") for p in file.relative_to(path).parts))
