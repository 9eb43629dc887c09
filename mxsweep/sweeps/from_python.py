"""Do a sweep from Python, as the command line does one."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from mxsweep.results.manifest import Command
from mxsweep.sweeps.begin import plan_command, refuse_impossible
from mxsweep.sweeps.resume import SWEEP_DIR, knob_values, manifest_command
from mxsweep.sweeps.run_sweep import do_sweep, open_sweep
from mxsweep.sweeps.without_effect import check_effects
from mxsweep.terminal.errors import ConfigError

if TYPE_CHECKING:
    import pandas as pd

OF_COMMANDS = {"resume": "python -m mxsweep resume=true goes on with a sweep", "dry_run": "compose checks a config"}


class Swept(NamedTuple):
    """Hold what a sweep left: its folder, and its runs as :func:`mxsweep.load` gives them."""

    folder: Path
    runs: pd.DataFrame


def sweep(overrides: Sequence[str], config_dir: Path | str | None = None) -> Swept:
    """Do a sweep, and return its folder and its runs, the failed ones among them.

    Tables, figures and the page are in the folder, too, and the table is printed, as ``python -m mxsweep -m`` does.

    Args:
        overrides: the words of a command line, as "block_size=16,32".
        config_dir: a further folder of config files.

    Raises:
        ConfigError: words that make no sense, or runs none of which can be; nothing is left then.
        LaunchError: worker processes cannot be started, or end one after the other.
        OSError: results cannot be written.
    """
    if isinstance(overrides, str):
        raise ConfigError(f"overrides: {overrides!r} is one text; give a list of words, as ['block_size=16,32']")
    command = Command(list(overrides), str(Path(config_dir).resolve()) if config_dir else None, os.getcwd())
    values = knob_values(command)
    for knob, instead in OF_COMMANDS.items():
        if knob in values:
            raise ConfigError(f"{knob}: is for the command line; {instead}")
    planned, _ = plan_command(command, multirun=True)
    for told in check_effects(planned.runs, planned.settings.reuse):
        print(f"mxsweep: {told}", file=sys.stderr)
    refuse_impossible(planned)
    folder = open_sweep(planned, named=SWEEP_DIR in values)
    with _logging_as_it_was():
        do_sweep(planned, folder, manifest_command(command))
    from mxsweep.report.data_files import load  # here, since it imports pandas

    return Swept(folder, load(folder))


@contextmanager
def _logging_as_it_was() -> Iterator[None]:
    """Give the root logger back its handlers, which a sweep's display takes the place of."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
