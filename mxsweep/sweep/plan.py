"""The runs that a command line means, each composed and checked, before any of them starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from mxsweep.config import RunConfig, from_hydra
from mxsweep.errors import ConfigError
from mxsweep.overrides import as_typed, conf_dir, prepare


@dataclass(frozen=True)
class PlannedRun:
    """One run of a plan: its overrides, and its config or why it has none."""

    overrides: tuple[str, ...]
    config: RunConfig | None
    error: str | None
    dry_run: bool
    folder: Path  # Hydra's run folder; of a sweep's run it is not used


def plan(overrides: Sequence[str], multirun: bool, config_dir: Path | None = None) -> list[PlannedRun]:
    """Expand prepared overrides (see :func:`mxsweep.overrides.prepare`) into runs.

    Raises:
        ConfigError: several values of a knob without ``multirun``.
        hydra.errors.HydraException, omegaconf.errors.OmegaConfBaseException: what Hydra itself refuses: an unknown
            key, a model or experiment that has no option file.
    """
    register_run_id()
    jobs = [list(overrides)]
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    for override in parsed:
        if override.is_sweep_override() and not multirun:
            typed = (override.input_line or "").replace("'", "")
            raise ConfigError(f"{override.key_or_group}: {typed} names several values, a sweep; add -m to run them all")
    if multirun:
        jobs = BasicSweeper.split_arguments(parsed, max_batch_size=None)[0]
    with initialize_config_dir(str(conf_dir()), version_base="1.3", job_name="mxsweep"):
        searched = [f"hydra.searchpath=[file://{config_dir}]"] if config_dir else []
        return [_planned(job, searched) for job in jobs]


def compose(overrides: Sequence[str] = ()) -> RunConfig:
    """The config of one run from Python: ``compose(["block_size=16", "format=mxfp4"])``.

    Raises:
        ConfigError: a value that is not allowed.
        hydra.errors.HydraException: an unknown key or option.
    """
    prepared, sweeps = prepare(list(overrides))
    if sweeps:
        raise ConfigError(f"experiment: {list(overrides)} is a sweep of several runs; compose() makes one")
    (planned,) = plan(prepared, multirun=False)
    if planned.config is None:
        raise ConfigError(planned.error or "")
    return planned.config


def _planned(job: list[str], searched: list[str]) -> PlannedRun:
    cfg = hydra_compose("config", overrides=job + searched, return_hydra_config=True)
    overrides = tuple(as_typed(item) for item in job if not item.startswith("hydra."))
    config, error = None, None
    try:
        config = from_hydra(cfg)
    except ConfigError as problem:
        error = str(problem)
    return PlannedRun(overrides, config, error, cfg.dry_run is True, Path(cfg.hydra.run.dir))


def register_run_id() -> None:
    """Give the config files ``${run_id:}``: folders are named from the typed config, not from what was typed."""
    OmegaConf.register_new_resolver("run_id", _run_id, replace=True)


def _run_id(*, _root_: DictConfig) -> str:
    try:
        return from_hydra(_root_).run_id(_root_.stamp)
    except ConfigError:
        # The run's folder is named before the run can say what is wrong with its config.
        return f"{_root_.stamp}_invalid_{OmegaConf.select(_root_, 'hydra.job.num', default=0)}"
