"""The runs that a command line means, each composed and checked, before any of them starts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mxsweep.config import RunConfig, from_hydra, no_such_knob
from mxsweep.errors import ConfigError
from mxsweep.overrides import as_typed, conf_dir, prepare


@dataclass(frozen=True)
class PlannedRun:
    """One run of a plan: its overrides, and its config or why it has none."""

    overrides: tuple[str, ...]
    config: RunConfig | None
    error: str | None
    dry_run: bool
    run_dir: Path  # where Hydra puts a single run
    sweep_dir: Path  # where it puts a sweep


def plan(overrides: Sequence[str], multirun: bool, config_dir: Path | None = None) -> list[PlannedRun]:
    """Expand prepared overrides (see :func:`mxsweep.overrides.prepare`) into runs.

    Raises:
        ConfigError: what Hydra itself refuses, as a knob that is not there, and several values without ``multirun``.
            A value that is not allowed is no error here but the planned run's.
    """
    register_run_id()
    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
        jobs = [list(overrides)]
        for override in parsed:
            if override.is_sweep_override() and not multirun:
                typed = (override.input_line or "").replace("'", "")
                raise ConfigError(f"{override.key_or_group}: {typed} names several values; add -m to run them all")
        if multirun:
            jobs = BasicSweeper.split_arguments(parsed, max_batch_size=None)[0]
        with initialize_config_dir(str(conf_dir()), version_base="1.3", job_name="mxsweep"):
            searched = [f"hydra.searchpath=[file://{config_dir}]"] if config_dir else []
            return [_planned(job, searched) for job in jobs]
    except OverrideParseException as error:
        message = f"{error.override}: cannot be read as KNOB=VALUE ({str(error).splitlines()[0]})"
        raise ConfigError(message) from error
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_without_jargon(str(error))) from error


def _without_jargon(message: str) -> str:
    """Hydra answers a knob that is not there with how to append one, which would not make it a knob."""
    missing = re.match(r"Could not override '([^']+)'", message)
    if missing is None:
        return message
    return no_such_knob(missing.group(1))


def compose(overrides: Sequence[str] = ()) -> RunConfig:
    """The config of one run from Python: ``compose(["block_size=16", "format=mxfp4"])``.

    Raises:
        ConfigError: a knob or a value that is not allowed, or several values.
    """
    prepared, sweeps = prepare(list(overrides))
    planned = plan(prepared, multirun=True)
    if sweeps or len(planned) != 1:
        raise ConfigError(f"{' '.join(overrides)}: is a sweep of {len(planned)} runs; compose() makes one")
    if planned[0].config is None:
        raise ConfigError(planned[0].error or "")
    return planned[0].config


def _planned(job: list[str], searched: list[str]) -> PlannedRun:
    cfg = hydra_compose("config", overrides=job + searched, return_hydra_config=True)
    overrides = tuple(as_typed(item) for item in job if not item.startswith("hydra."))
    config, error = None, None
    try:
        config = from_hydra(cfg)
    except ConfigError as problem:
        error = str(problem)
    dry_run = cfg.dry_run is True
    return PlannedRun(overrides, config, error, dry_run, Path(cfg.hydra.run.dir), Path(cfg.hydra.sweep.dir))


def register_run_id() -> None:
    """Give the config files ``${run_id:}``: folders are named from the typed config, not from what was typed."""
    OmegaConf.register_new_resolver("run_id", _run_id, replace=True)


def _run_id(*, _root_: DictConfig) -> str:
    try:
        name = from_hydra(_root_).run_id(_root_.stamp)
    except ConfigError:
        # The run's folder is named before the run can say what is wrong with its config.
        name = f"{_root_.stamp}_invalid"
    job = OmegaConf.select(_root_, "hydra.job.num", default=None, throw_on_missing=False)
    if job is None:  # a single run, or a plan
        return name
    # Runs of a sweep that differ in nothing that matters (batch_size=8,32) have one id, and still a folder each.
    same = _folders.setdefault(name, [])
    if job not in same:
        same.append(job)
    return name if same[0] == job else f"{name}_{same.index(job) + 1}"


_folders: dict[str, list[int]] = {}  # of this process: the jobs that have each id, in the order they came
