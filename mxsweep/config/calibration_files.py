"""Read calibration texts in local files: where they are, what they hold, and what tells them from others.

Imports nothing heavy: planning reads files, too. Every error is a ConfigError that names ``calibration.path``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mxsweep.config.checks import check_rows, expanded
from mxsweep.config.named_texts import has_rows
from mxsweep.config.refusals import not_utf8, unreadable
from mxsweep.config.remedy_config import CalibrationConfig
from mxsweep.files.digests import file_digests
from mxsweep.files.text_files import UNREADABLE, open_text
from mxsweep.files.visible_files import visible_files
from mxsweep.terminal.errors import ConfigError

BETWEEN_DOCUMENTS = "\n\n"


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


def text_of_file(config: CalibrationConfig) -> str:
    """Return all of a text file; of rows, their texts with an empty line between."""
    if has_rows(path_of(config)):
        rows = check_rows(str(config.path), config.field, knob="calibration.path")
        return BETWEEN_DOCUMENTS.join(row[config.field] for row in rows)
    try:
        with open_text(path_of(config)) as opened:
            return opened.lines.read()
    except UNREADABLE as error:
        raise ConfigError(not_utf8("calibration.path", str(config.path), error)) from None


def digests(config: CalibrationConfig, files: Sequence[Path]) -> list[str]:
    """Return the SHA-256 (hex) of each file's content."""
    try:
        return file_digests(files)
    except OSError as error:
        raise ConfigError(unreadable("calibration.path", str(config.path), error)) from None
