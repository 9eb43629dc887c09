"""Leave out of reports, which others see, where on somebody's machine things lie and what its user is called."""

from __future__ import annotations

import os
import re
from pathlib import Path

# The homes of people, on the machine of whoever made the runs: not a part of a longer path.
_HOME = re.compile(r"(?<![\w./-])(?:(?:/home/|/Users/)[^/\s\"'<>&;:,)\]}]+|/root(?=/))")


def without_homes(text: str, sign: str = "~") -> str:
    """Return a text with a sign in the place of each home."""
    home = os.path.expanduser("~")
    if len(Path(home).parts) > 1:
        text = re.sub(rf"(?<![\w.-]){re.escape(home)}(?=[/\\])", lambda _: sign, text)
    return _HOME.sub(lambda _: sign, text)


def shared_path(path: Path | str) -> str:
    """Return a folder as a report names it: as it was named, but of an absolute path what is not of this machine."""
    path = Path(path)
    if not path.is_absolute():
        return str(path)
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(Path(*path.parts[-2:]))
