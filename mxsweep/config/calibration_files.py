"""Read calibration texts in local files: where they are, what they hold, and what tells them from others.

Imports nothing heavy: planning reads files, too. Every error is a ConfigError that names ``calibration.path``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mxsweep.config.checks import check_rows, expanded
from mxsweep.config.refusals import not_utf8, unreadable
from mxsweep.config.remedy_config import CalibrationConfig
from mxsweep.files.digests import file_digests
from mxsweep.files.text_files import UNREADABLE, open_text, unpacked_suffix
from mxsweep.files.visible_files import visible_files
from mxsweep.terminal.errors import ConfigError

ROWS_SUFFIX = ".jsonl"
BETWEEN_DOCUMENTS = "\n\n"
CHECKED_CHARACTERS = 2**16  # of a text, before it is read


def local_files(config: CalibrationConfig) -> list[Path] | None:
    """Return the files that texts come from; None where they are generated or come from the hub."""
    if config.source not in ("text", "hub"):
        return None
    path = path_of(config)
    if path.is_file() or (config.source == "hub" and path.is_dir()):
        return visible_files(path)
    return None


def path_of(config: CalibrationConfig) -> Path:
    """Return ``calibration.path`` with its ~ replaced, whether there is anything or not."""
    return expanded("calibration.path", config.path or "")


def has_rows(path: Path) -> bool:
    """Return whether each line of the file, which may be packed, is a document of its own, in JSON."""
    return unpacked_suffix(path) == ROWS_SUFFIX


def check_text_file(config: CalibrationConfig) -> None:
    """Raise ConfigError for a file that is not there, is empty or no UTF-8, or whose first row lacks the field."""
    path = path_of(config)
    try:
        if not path.is_file():
            raise ConfigError(
                f"calibration.path: {config.path!r} is not a file; give a UTF-8 text (also .xz, .gz), or {ROWS_SUFFIX} "
                f"with the field {config.field!r}"
            )
        if has_rows(path):
            _rows(config, first_only=True)
            return
        with open_text(path) as opened:
            beginning = opened.lines.read(CHECKED_CHARACTERS)
    except UNREADABLE as error:
        raise ConfigError(not_utf8("calibration.path", str(config.path), error)) from None
    if not beginning.strip():
        raise ConfigError(f"calibration.path: {config.path!r} is empty; give a UTF-8 text")


def text_of_file(config: CalibrationConfig) -> str:
    """Return all of a text file; of rows, their texts with an empty line between."""
    if has_rows(path_of(config)):
        return BETWEEN_DOCUMENTS.join(row[config.field] for row in _rows(config))
    try:
        with open_text(path_of(config)) as opened:
            return opened.lines.read()
    except UNREADABLE as error:
        raise ConfigError(not_utf8("calibration.path", str(config.path), error)) from None


def _rows(config: CalibrationConfig, first_only: bool = False) -> list[dict[str, Any]]:
    return check_rows(str(config.path), config.field, first_only, knob="calibration.path")


def digests(config: CalibrationConfig, files: Sequence[Path]) -> list[str]:
    """Return the SHA-256 (hex) of each file's content."""
    try:
        return file_digests(files)
    except OSError as error:
        raise ConfigError(unreadable("calibration.path", str(config.path), error)) from None
