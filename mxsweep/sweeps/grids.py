"""Expand the grids of a command line into the overrides of each run, and refuse those that mean nothing here."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

from hydra.core.override_parser.types import Override

from mxsweep.config.knobs import is_knob, is_of_sweep, no_such_knob
from mxsweep.config.override_grammar import MOST_VALUES, excerpt, read_override, sweep_values
from mxsweep.config.overrides import as_typed
from mxsweep.terminal.errors import ConfigError

# Of Hydra's own, what decides something here; the rest is for programs that Hydra starts.
HYDRA_KNOBS = ("hydra/launcher", "hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir")
# What people know of other programs that use Hydra, and why it means nothing here: a knob or a group of them.
REFUSED_OF_HYDRA = {
    "hydra.verbose": "the log has one level; a failed run's traceback is in its result.json",
    "hydra.job.chdir": "a run stays in the folder that its command was typed in, from which its paths count",
    "hydra.output_subdir": "what was composed for a run is in .hydra/ in its folder, in any case",
    "hydra.searchpath": "a further folder of config files is given by --config-dir FOLDER",
    "hydra.mode": "-m makes a sweep of the values given",
    "hydra.sweeper": "a sweep is every combination of the values given; hydra/launcher says where its runs are done",
    "hydra.callbacks": "Hydra starts no run here, so that nothing would call them",
    "hydra.job_logging": "Hydra starts no run here, and its logs are not used",
    "hydra.hydra_logging": "Hydra starts no run here, and its logs are not used",
    "hydra.help": "the help is mxsweep's own: --help",
}


def words_of_runs(grids: Sequence[Sequence[str]], multirun: bool) -> list[list[str]]:
    """Return the overrides of each run that prepared overrides, grid by grid, come to.

    Raises:
        ConfigError: what means nothing here, several values without ``multirun``, and more of them than can be meant.
    """
    parsed = [[read_override(override) for override in overrides] for overrides in grids]
    _check_count([_count(overrides, multirun) for overrides in parsed])
    if not multirun:
        return [list(overrides) for overrides in grids]
    return [words for overrides in parsed for words in _combinations(overrides)]


def _count(overrides: Sequence[Override], multirun: bool) -> int:
    """Return how many runs the overrides of one grid come to. Raises ConfigError."""
    count = 1
    for override in overrides:
        _check_override(override)
        if override.is_sweep_override():
            count *= len(sweep_values(override))
        _check_count([count])
        if override.is_sweep_override() and not multirun:
            typed = excerpt(as_typed(override.input_line or "").replace("'", ""))
            raise ConfigError(f"{override.key_or_group}: {typed} names several values; add -m to run them all")
    return count


def _combinations(overrides: Sequence[Override]) -> list[list[str]]:
    """Return every combination of one grid's values, as overrides; of a knob that stands twice, the last counts."""
    values: dict[str, list[str]] = {}
    for override in overrides:
        key = override.get_key_element()
        texts = (
            override.sweep_string_iterator() if override.is_sweep_override() else [override.get_value_element_as_str()]
        )
        values[key] = [f"{key}={text}" for text in texts]
    return [list(words) for words in itertools.product(*values.values())]


def _check_count(counts: Sequence[int]) -> None:
    if sum(counts) > MOST_VALUES:
        raise ConfigError(f"-m: the values come to {sum(counts):,} runs or more; allowed: {MOST_VALUES:,}")


def _check_override(override: Override) -> None:
    """Refuse what Hydra would take though it means nothing here, or refuse in words of its own. Raises ConfigError."""
    key, typed = override.key_or_group, excerpt(override.input_line or "")
    for refused, why in REFUSED_OF_HYDRA.items():
        if f"{key.replace('/', '.')}.".startswith(f"{refused}."):
            raise ConfigError(f"{key}: has no effect here: {why}")
    if key.startswith("hydra") and key not in HYDRA_KNOBS and not key.startswith("hydra.launcher."):
        there = ", ".join(HYDRA_KNOBS)
        raise ConfigError(f"{key}: has no effect here; of Hydra's own there are {there} and hydra.launcher.NAME")
    if root_of(key) == "sweep":
        raise ConfigError(f"{key}: belongs into an experiment's file; on the command line, -m and KNOB=A,B sweep")
    if override.is_sweep_override() and (is_of_sweep(key) or key == "stamp"):
        raise ConfigError(f"{key}: {typed} names several values, and all runs of a sweep have one")
    if override.package is not None:
        raise ConfigError(f"{typed}: a knob has one place, and none is given with @; write {key}=VALUE")
    if override.is_delete():
        known = is_knob(key) or key.startswith("hydra")
        raise ConfigError(f"{key}: was taken away; every run needs a value of it" if known else no_such_knob(key))


def root_of(override: str) -> str:
    """Return the first part of an override's knob: ``model`` of ``model.path=FOLDER``."""
    return re.split(r"[.=@]", override.lstrip("+~"), maxsplit=1)[0]
