"""Checks of a command line whose command runs nothing: inspect and sensitivity."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mxsweep.config.checks import is_folder
from mxsweep.config.knobs import is_of_sweep
from mxsweep.config.override_grammar import excerpt
from mxsweep.terminal.errors import ConfigError


def check_command_line(knobs: Sequence[str], config_dir: Path | None) -> None:
    """Raises ConfigError for a folder that is not there, and for knobs of sweeps and launchers."""
    if config_dir is not None and not is_folder(config_dir):
        raise ConfigError(f"--config-dir: {str(config_dir)!r} is not a folder")
    for knob in knobs:
        key = knob.partition("=")[0].lstrip("+~")
        if is_of_sweep(key):
            raise ConfigError(f"{excerpt(key)}: has no use here, where nothing is run")
