"""Plan the runs that a command line means: each composed and checked before any of them starts."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mxsweep.config.checks import NAME_MAX
from mxsweep.config.composed_config import describe_omegaconf_error, from_hydra, plain_knobs
from mxsweep.config.knob import Scope
from mxsweep.config.knobs import (
    baseline_words,
    decides_only_quantized,
    element_groups,
    is_of_sweep,
    notes,
    switches,
)
from mxsweep.config.override_grammar import excerpt
from mxsweep.config.overrides import as_typed, prepare
from mxsweep.config.run_config import RunConfig
from mxsweep.config.run_identity import entries_alone, train_entries
from mxsweep.config.sweep_settings import Settings
from mxsweep.results.manifest import INVALID, is_below
from mxsweep.sweeps.composition import Composer, composing, name_run
from mxsweep.sweeps.grids import root_of, words_of_runs
from mxsweep.terminal.errors import ConfigError

PATH_MAX = (1024 if sys.platform == "darwin" else 4096) - 128  # of a run's folder: names of files come behind it
_written: dict[str, str] = {}  # entries of YAML mappings, by what they say


@dataclass(frozen=True)
class PlannedRun:
    """Describe one run of a plan.

    Attributes:
        words: its overrides as Hydra takes them; of an added baseline, those of the run that it is added for.
        overrides: those of them that say what the run is, as a person types them.
        config: None where it cannot be, and then ``error`` says why.
        composed: the config as composed, for the record of a run that cannot be.
        config_hash: the config's; of a run that cannot be, a hash of what was asked for.
        run_id: stamp, habitual knobs, and the hash's beginning.
        subdir: its folder below the sweep's.
        repeats: further runs that would be the same one.
        yaml: what Hydra composed, file name to content.
        added: a baseline that nobody asked for.
    """

    words: tuple[str, ...]
    overrides: tuple[str, ...]
    config: RunConfig | None
    error: str | None
    composed: dict[str, Any]
    config_hash: str
    run_id: str
    subdir: str
    repeats: tuple[PlannedRun, ...] = ()
    yaml: dict[str, str] = field(default_factory=dict)
    added: bool = False

    @property
    def same(self) -> tuple[tuple[str, ...], ...]:
        """Return the overrides of the further runs, where they are typed otherwise, each once."""
        different = dict.fromkeys(one.overrides for one in self.repeats)
        return tuple(words for words in different if words != self.overrides)


@dataclass(frozen=True)
class Plan:
    """Hold what a command line means: runs, no two of them the same, and how to go about them."""

    runs: list[PlannedRun]
    settings: Settings


def plan(
    grids: Sequence[Sequence[str]], multirun: bool, config_dir: Path | None = None, paths_from: Path | None = None
) -> Plan:
    """Expand prepared overrides (see :func:`mxsweep.config.overrides.prepare`), grid by grid, into runs.

    In a multirun the baselines are added (unless ``baseline=false``), and runs on one model follow each other, so that
    it is loaded once.

    Args:
        grids: the overrides of each grid.
        multirun: whether several values make several runs.
        config_dir: a further folder of config groups.
        paths_from: the folder from which relative paths count; None for the current one.

    Raises:
        ConfigError: what Hydra itself refuses, as a knob that is not there, and several values without ``multirun``.
            A value that is not allowed is no error here but the planned run's.
    """
    try:
        jobs = words_of_runs(grids, multirun)
        with composing(jobs[0], config_dir, paths_from) as composer:
            return _compose_all(jobs, multirun, composer)
    except OmegaConfBaseException as error:
        raise ConfigError(describe_omegaconf_error(error)) from error


def compose_first(grids: Sequence[Sequence[str]], config_dir: Path | None = None) -> DictConfig:
    """Return what Hydra makes of the first run of prepared overrides, Hydra's own node included, for people to read.

    The time that folders and ids begin with is not in it, where none is typed: it stays a reference.

    Raises:
        ConfigError: as :func:`plan`, of this run.
    """
    try:
        words = words_of_runs(grids, multirun=True)[0]
        with composing(words, config_dir, with_stamp=False) as composer:
            cfg = composer.compose(words, 0)
            _planned(cfg, words, _run_words(words))
            Settings.from_hydra(cfg)
            return cfg
    except OmegaConfBaseException as error:
        raise ConfigError(describe_omegaconf_error(error)) from error


def compose(overrides: Sequence[str] = ()) -> RunConfig:
    """Return the config of one run: ``compose(["block_size=16", "format=mxfp4"])``.

    Raises:
        ConfigError: a knob or a value that is not allowed, or several values.
    """
    prepared, sweeps = prepare(list(overrides))
    if sweeps:
        raise ConfigError(f"{' '.join(overrides)}: is a sweep; compose() makes one run's config")
    (run,) = plan(prepared, multirun=False).runs
    if run.config is None:
        raise ConfigError(run.error or "")
    return run.config


def _compose_all(jobs: Sequence[Sequence[str]], multirun: bool, composer: Composer) -> Plan:
    runs, settings = [], None
    for number, words in enumerate(jobs):
        cfg = composer.compose(words, number)
        runs.append(_planned(cfg, words, _run_words(words)))
        settings = settings or Settings.from_hydra(cfg)
    assert settings is not None
    if multirun:
        different = list(_without_repeats(_model_by_model(runs)))
        numbers = itertools.count(len(jobs))
        add = functools.partial(_added_baseline, composer, numbers) if settings.baseline else None
        runs = list(_baselines_first(different, add))
        _check_folders(runs, settings.sweep_dir)
    return Plan(runs, settings)


def _run_words(words: Sequence[str]) -> list[str]:
    """Return the overrides that say what a run is, without those of how the sweep is gone about."""
    return [word for word in words if not is_of_sweep(root_of(word))]


def _planned(cfg: DictConfig, words: Sequence[str], shown: Sequence[str]) -> PlannedRun:
    overrides = tuple(map(as_typed, shown))
    if not re.fullmatch(r"[\w.+-]{1,100}", str(cfg.stamp)) or cfg.stamp is None:
        raise ConfigError(
            f"stamp: {excerpt(str(cfg.stamp))!r} is no beginning of a folder's name; allowed: letters, digits and _.+-"
        )
    config, error = None, None
    try:
        config = _with_device(from_hydra(cfg), cfg.hydra.launcher)
        config_hash = config.config_hash
        run_id = config.run_id(cfg.stamp)
    except ConfigError as problem:
        # The run has an id, and a folder of that name, all the same: it is recorded as one that failed.
        config, error = None, str(problem)
        digest = hashlib.sha256(json.dumps(sorted(overrides)).encode()).hexdigest()
        config_hash, run_id = f"{INVALID}{digest}", f"{cfg.stamp}_{INVALID}{digest[:8]}"
    name_run(run_id)
    return PlannedRun(
        words=tuple(words),
        overrides=overrides,
        config=config,
        error=error,
        composed={} if config else _as_plain_data(cfg),
        config_hash=config_hash,
        run_id=run_id,
        subdir=str(cfg.hydra.sweep.subdir),
        yaml={"config.yaml": _yaml(plain_knobs(cfg)), "overrides.yaml": OmegaConf.to_yaml(list(overrides))},
    )


def _with_device(config: RunConfig, launcher: DictConfig) -> RunConfig:
    """Resolve the device: on Slurm, "auto" is what the jobs ask for, whatever there is where the sweep is planned."""
    if launcher.get("name") != "slurm" or config.model.device != "auto" or config.model.device_map is not None:
        return config
    gpus = launcher.gpus_per_node
    try:
        return replace(config, model=replace(config.model, device="cuda" if gpus else "cpu"))
    except ConfigError as error:
        raise ConfigError(f"{error}; with hydra.launcher.gpus_per_node={gpus}, auto is the CPU") from None


def _yaml(knobs: dict[str, Any]) -> str:
    """Return knobs as OmegaConf writes them; what runs of a sweep have in common is written once."""
    texts = []
    for name, value in knobs.items():
        key = repr((name, value))
        if key not in _written:
            _written[key] = OmegaConf.to_yaml(OmegaConf.create({name: value}))
        texts.append(_written[key])
    return "".join(texts)


def _as_plain_data(cfg: DictConfig) -> dict[str, Any]:
    knobs = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    data = OmegaConf.to_container(knobs, resolve=True)
    assert isinstance(data, dict)
    return {str(key): value for key, value in data.items()}


def _model_by_model(runs: list[PlannedRun]) -> list[PlannedRun]:
    """Put the runs of each model together, models and runs in the order they came."""
    order: dict[Any, int] = {}

    def place(run: PlannedRun) -> int:
        key = (run.config.model, run.config.task.names, run.config.task.include_path) if run.config else None
        return order.setdefault(key, len(order))

    return sorted(runs, key=place)


def _without_repeats(runs: list[PlannedRun]) -> Iterator[PlannedRun]:
    """Yield the first of the runs that come to the same, with the others."""
    alike: dict[str, list[PlannedRun]] = {}
    for run in runs:
        alike.setdefault(run.config_hash, []).append(run)
    for first, *others in alike.values():
        yield replace(first, repeats=tuple(others))


def _baselines_first(runs: list[PlannedRun], add: Callable[[PlannedRun], PlannedRun] | None) -> Iterator[PlannedRun]:
    """Yield the runs in their order, but each baseline before the first run that is compared with it.

    Args:
        add: returns the baseline of a run, where nobody asked for one; None: such baselines are not run.
    """
    asked: dict[Any, list[PlannedRun]] = {}
    for run in runs:
        if run.config is not None and run.config.is_baseline:
            asked.setdefault(_baseline_key(run.config), []).append(run)
    placed: set[Any] = set()
    for run in runs:
        if run.config is not None and (key := _baseline_key(run.config)) not in placed:
            placed.add(key)
            if key in asked:
                yield from asked[key]
            elif add is not None:
                yield add(run)
        if run.config is None or not run.config.is_baseline:
            yield run


def _added_baseline(composer: Composer, numbers: Iterator[int], run: PlannedRun) -> PlannedRun:
    """Return the baseline that a run is compared with, as the run of the next number."""
    assert run.config is not None
    kept = [word for word in run.words if not decides_only_quantized(root_of(word))]
    # Of what makes it a baseline, a title and a folder name what a person would type.
    unnamed = [path for path in switches() if path not in element_groups()]
    cfg = composer.compose([*kept, *baseline_words()], next(numbers), unnamed)
    plain = ["recipe=bf16"] if run.config.trains else [f"{path}=none" for path in element_groups()]
    return replace(_planned(cfg, kept, [*_run_words(kept), *plain]), added=True)


def _baseline_key(config: RunConfig) -> Any:
    """Return what two runs have in common that are compared with one baseline."""
    task = config.task
    fed = (task.names, task.include_path, tuple(sorted(task.data.items())), task.num_fewshot, task.apply_chat_template)
    # Without examples in the prompt the seed decides nothing unquantized; those that a task has by itself are not told
    # apart.
    left_out = notes() if task.num_fewshot or config.trains else (*notes(), "seed")
    alone = {path: value for path, value in entries_alone(config, Scope.BASELINE).items() if path not in left_out}
    trained = [train_entries(config), config.init] if config.trains else []
    return config.model, fed, json.dumps([alone, *trained], sort_keys=True, default=str)


def _check_folders(runs: Sequence[PlannedRun], sweep_dir: Path) -> None:
    """Refuse folders of runs that cannot be made, are not below the sweep's, or are two runs'. Raises ConfigError."""
    taken: dict[str, PlannedRun] = {}
    for run in runs:
        inside = Path(run.subdir)
        longest = max((len(os.fsencode(part)) for part in inside.parts), default=0)
        # Met only after sweep.json is written, either would leave a sweep that seems to have begun.
        if longest > NAME_MAX or len(os.fsencode(sweep_dir.absolute() / inside)) > PATH_MAX:
            raise ConfigError(
                f"hydra.sweep.subdir: {excerpt(run.subdir)!r} is too long: a name has {NAME_MAX} bytes at most, and a "
                f"whole path {PATH_MAX}; leave it out, or give one that differs and is shorter, as '${{run_id:}}'"
            )
        if not is_below(run.subdir):
            # Outside the sweep's folder, or in one that is passed over when results are looked for.
            raise ConfigError(
                f"hydra.sweep.subdir: {run.subdir!r} is not allowed; allowed: a folder below the sweep's, without a "
                "dot in front, as '${run_id:}'"
            )
        other = taken.setdefault(run.subdir, run)
        if other is not run:
            raise ConfigError(
                f"hydra.sweep.subdir: {run.subdir!r} would be the folder of two runs ({' '.join(other.overrides)} and "
                f"{' '.join(run.overrides)}); leave it out, or give one that differs, as '${{run_id:}}'"
            )
