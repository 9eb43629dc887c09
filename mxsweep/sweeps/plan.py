"""The runs that a command line means, each composed and checked, before any of them starts."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from mxsweep.config.knobs import baseline_words, decides_only_quantized, is_knob, is_of_sweep, no_such_knob
from mxsweep.config.option_files import conf_dir
from mxsweep.config.override_grammar import MOST_VALUES, excerpt, read_override, sweep_values
from mxsweep.config.overrides import as_typed, prepare
from mxsweep.config.run_config import RunConfig, from_hydra, of_omegaconf
from mxsweep.config.sweep_settings import Settings
from mxsweep.results.manifest import INVALID
from mxsweep.terminal.errors import ConfigError

# Of Hydra's own, what decides something here; the rest is for programs that Hydra starts.
HYDRA_KNOBS = ("hydra/launcher", "hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir")


@dataclass(frozen=True)
class PlannedRun:
    """One run of a plan.

    Attributes:
        words: its overrides as Hydra takes them; of an added baseline, those of the run that it is added for.
        overrides: those of them that say what the run is, as a person types them.
        config: None where it cannot be, and then ``error`` says why.
        asked: the config as composed, for the record of a run that cannot be.
        config_hash: the config's; of a run that cannot be, a hash of what was asked for.
        run_id: stamp, habitual knobs, and the hash's beginning.
        subdir: its folder below the sweep's.
        same: the overrides of further runs that would be the same one.
        yaml: what Hydra composed, file name to content.
        added: a baseline that nobody asked for.
    """

    words: tuple[str, ...]
    overrides: tuple[str, ...]
    config: RunConfig | None
    error: str | None
    asked: dict[str, Any]
    config_hash: str
    run_id: str
    subdir: str
    same: tuple[tuple[str, ...], ...] = ()
    yaml: dict[str, str] = field(default_factory=dict)
    added: bool = False


@dataclass(frozen=True)
class Plan:
    """What a command line means: runs, no two of them the same, and how to go about them."""

    runs: list[PlannedRun]
    settings: Settings


def plan(grids: Sequence[Sequence[str]], multirun: bool, config_dir: Path | None = None) -> Plan:
    """Expand prepared overrides (see :func:`mxsweep.config.overrides.prepare`), grid by grid, into runs.

    In a multirun the baselines are added (unless ``baseline=false``), and runs on one model follow each other, so that
    it is loaded once.

    Raises:
        ConfigError: what Hydra itself refuses, as a knob that is not there, and several values without ``multirun``.
            A value that is not allowed is no error here but the planned run's.
    """
    try:
        parsed = [[read_override(override) for override in overrides] for overrides in grids]
        _check_count([_count(overrides, multirun) for overrides in parsed])
        jobs = [list(overrides) for overrides in grids]
        if multirun:
            jobs = [job for grid in parsed for job in BasicSweeper.split_arguments(grid, max_batch_size=None)[0]]
        with initialize_config_dir(str(conf_dir()), version_base="1.3", job_name="mxsweep"):
            return _compose_all(jobs, multirun, config_dir)
    except OmegaConfBaseException as error:
        raise ConfigError(of_omegaconf(error)) from error


def _count(overrides: Sequence[Override], multirun: bool) -> int:
    """How many runs the overrides of one grid come to."""
    count = 1
    for override in overrides:
        _check_override(override)
        if override.is_sweep_override():
            count *= len(sweep_values(override))
        _check_count([count])
        if override.is_sweep_override() and not multirun:
            typed = excerpt((override.input_line or "").replace("'", ""))
            raise ConfigError(f"{override.key_or_group}: {typed} names several values; add -m to run them all")
    return count


def _check_count(counts: Sequence[int]) -> None:
    if sum(counts) > MOST_VALUES:
        raise ConfigError(f"-m: the values come to {sum(counts):,} runs or more; allowed: {MOST_VALUES:,}")


def compose(overrides: Sequence[str] = ()) -> RunConfig:
    """The config of one run from Python: ``compose(["block_size=16", "format=mxfp4"])``.

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


def _compose_all(jobs: list[list[str]], multirun: bool, config_dir: Path | None) -> Plan:
    extra = [f"hydra.searchpath=[file://{config_dir}]"] if config_dir else []
    if not any(word.startswith("stamp=") for word in jobs[0]):
        extra.append(f"stamp='{datetime.now().strftime('%Y%m%d_%H%M%S')}'")  # one for all, however long composing takes
    runs, settings = [], None
    for number, words in enumerate(jobs):
        cfg = _compose_one(words, [*extra, f"hydra.job.num={number}", f"hydra.job.id={number}"])
        runs.append(_planned(cfg, words, _of_the_run(words)))
        settings = settings or Settings.from_hydra(cfg)
    assert settings is not None
    if multirun:
        runs = list(_each_once(_model_by_model(runs)))
        if settings.baseline:
            runs = list(_with_baselines(runs, extra))
        _check_folders(runs)
    return Plan(runs, settings)


def _compose_one(words: Sequence[str], extra: Sequence[str]) -> DictConfig:
    try:
        cfg = hydra_compose("config", overrides=[*words, *extra], return_hydra_config=True)
    except HydraException as error:
        raise ConfigError(_without_jargon(error)) from error
    except YAMLError as error:
        raise ConfigError(f"a config file is no YAML: {' '.join(str(error).split())}") from error
    except (ValueError, TypeError, RecursionError) as error:  # so Hydra answers a file that makes no sense to it
        raise ConfigError(f"{excerpt(' '.join(words))}: cannot be composed: {excerpt(str(error))}") from error
    if not OmegaConf.is_interpolation(cfg, "modules") and isinstance(text := cfg.get("modules"), str):
        with contextlib.suppress(YAMLError):  # a mapping whose keys Hydra cannot read came as one text
            cfg.modules = yaml.safe_load(text)
    return cfg


def _check_override(override: Override) -> None:
    """What Hydra would take, or refuse in words of its own, and what means nothing here."""
    key, typed = override.key_or_group, excerpt(override.input_line or "")
    if key.startswith("hydra") and key not in HYDRA_KNOBS and not key.startswith("hydra.launcher."):
        there = ", ".join(HYDRA_KNOBS)
        raise ConfigError(f"{key}: has no effect here; of Hydra's own there are {there} and hydra.launcher.NAME")
    if _root(key) == "sweep":
        raise ConfigError(f"{key}: belongs into an experiment's file; on the command line, -m and KNOB=A,B sweep")
    if override.is_sweep_override() and (is_of_sweep(key) or key == "stamp"):
        raise ConfigError(f"{key}: {typed} names several values, and all runs of a sweep have one")
    if override.package is not None:
        raise ConfigError(f"{typed}: a knob has one place, and none is given with @; write {key}=VALUE")
    if override.is_delete():
        known = is_knob(key) or key.startswith("hydra")
        raise ConfigError(f"{key}: was taken away; every run needs a value of it" if known else no_such_knob(key))


def _of_the_run(words: Sequence[str]) -> list[str]:
    """The overrides that say what a run is, and not how the sweep is gone about."""
    return [word for word in words if not is_of_sweep(_root(word))]


def _planned(cfg: DictConfig, words: Sequence[str], shown: Sequence[str]) -> PlannedRun:
    overrides = tuple(map(as_typed, shown))
    if not re.fullmatch(r"[\w.+-]{1,100}", str(cfg.stamp)) or cfg.stamp is None:
        raise ConfigError(
            f"stamp: {excerpt(str(cfg.stamp))!r} is no beginning of a folder's name; allowed: letters, digits and _.+-"
        )
    config, error = None, None
    try:
        config = _where_it_runs(from_hydra(cfg), cfg.hydra.launcher)
        config_hash = config.config_hash
        run_id = config.run_id(cfg.stamp)
    except ConfigError as problem:
        # The run has an id, and a folder of that name, all the same: it is recorded as one that failed.
        config, error = None, str(problem)
        digest = hashlib.sha256(json.dumps(sorted(overrides)).encode()).hexdigest()
        config_hash, run_id = f"{INVALID}{digest}", f"{cfg.stamp}_{INVALID}{digest[:8]}"
    name_run(run_id)
    own = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    return PlannedRun(
        words=tuple(words),
        overrides=overrides,
        config=config,
        error=error,
        asked={} if config else _as_asked(own),
        config_hash=config_hash,
        run_id=run_id,
        subdir=str(cfg.hydra.sweep.subdir),
        yaml={"config.yaml": OmegaConf.to_yaml(own), "overrides.yaml": OmegaConf.to_yaml(list(overrides))},
    )


def _where_it_runs(config: RunConfig, launcher: DictConfig) -> RunConfig:
    """On Slurm, "auto" is the device that the jobs ask for, whatever there is where the sweep is planned."""
    if launcher.get("name") != "slurm" or config.model.device != "auto" or config.model.device_map is not None:
        return config
    gpus = launcher.gpus_per_node
    try:
        return replace(config, model=replace(config.model, device="cuda" if gpus else "cpu"))
    except ConfigError as error:
        raise ConfigError(f"{error}; with hydra.launcher.gpus_per_node={gpus}, auto is the CPU") from None


def _as_asked(own: DictConfig) -> dict[str, Any]:
    data = OmegaConf.to_container(own, resolve=True)
    assert isinstance(data, dict)
    return {str(key): value for key, value in data.items()}


def _model_by_model(runs: list[PlannedRun]) -> list[PlannedRun]:
    """The runs of each model together, models and runs in the order they came."""
    order: dict[Any, int] = {}

    def place(run: PlannedRun) -> int:
        key = (run.config.model, run.config.task.names) if run.config else None
        return order.setdefault(key, len(order))

    return sorted(runs, key=place)


def _each_once(runs: list[PlannedRun]) -> Iterator[PlannedRun]:
    """Of the runs that come to the same, the first, with the others' overrides."""
    alike: dict[str, list[PlannedRun]] = {}
    for run in runs:
        alike.setdefault(run.config_hash, []).append(run)
    for first, *others in alike.values():
        different = dict.fromkeys(other.overrides for other in others if other.overrides != first.overrides)
        yield replace(first, same=tuple(different))


def _with_baselines(runs: list[PlannedRun], extra: list[str]) -> Iterator[PlannedRun]:
    """Before the first run that is to be compared with it, the baseline of each model, task, limit and dtype."""
    there = {_baseline_key(run.config) for run in runs if run.config and run.config.recipe.is_baseline}
    for run in runs:
        if run.config is not None and _baseline_key(run.config) not in there:
            there.add(_baseline_key(run.config))
            kept = [word for word in run.words if not decides_only_quantized(_root(word))]
            number = len(runs) + len(there)
            cfg = _compose_one(kept, [*baseline_words(), *extra, f"hydra.job.num={number}", f"hydra.job.id={number}"])
            shown_words = [*_of_the_run(kept), "format=none", "kv_quant=none"]
            yield replace(_planned(cfg, kept, shown_words), added=True)
        yield run


def _baseline_key(config: RunConfig) -> Any:
    """What two runs have in common that are compared with one baseline."""
    task = config.task
    # Without examples in the prompt it decides nothing unquantized; those that a task has by itself are not told apart.
    seed = config.seed if task.num_fewshot else None
    fed = (task.names, tuple(sorted(task.data.items())), task.num_fewshot, task.apply_chat_template)
    return config.model, fed, config.limit, seed


def _root(override: str) -> str:
    return re.split(r"[.=@]", override.lstrip("+~"), maxsplit=1)[0]


def _check_folders(runs: list[PlannedRun]) -> None:
    taken: dict[str, PlannedRun] = {}
    for run in runs:
        inside = Path(run.subdir)
        if inside.is_absolute() or not inside.parts or any(part.startswith(".") for part in inside.parts):
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


def _without_jargon(error: HydraException) -> str:
    """Hydra answers a knob that is not there with how to append one, which would not make it a knob."""
    message, cause = str(error), error.__cause__
    if found := re.match(r"Could not override '([^']+)'|.*config group '([^']+)' does not exist", message):
        key = found[1] or found[2]
        if key.startswith("hydra.launcher."):
            return (
                f"{key}: there is no such knob of this launcher; hydra/launcher=gpus has n and retries, "
                "hydra/launcher=slurm what conf/hydra/launcher/slurm.yaml lists, basic none"
            )
        return f"{key}: holds no value of this kind" if is_knob(key) else no_such_knob(key)
    if found := re.match(r"Could not append to config\. An item is already at '([^']+)'", message):
        return f"{found[1]}: has a value already; write {found[1]}=VALUE, without +"
    if found := re.match(r"Error merging override ([^=]+)=(.*)", message, re.DOTALL):
        key, value = found[1].lstrip("+"), excerpt(found[2])
        reason = f" ({str(cause).splitlines()[0]})" if cause is not None and str(cause) else ""
        return f"{key}: {value} cannot be its value{reason}"
    return message.splitlines()[0]


def name_run(run_id: str) -> None:
    """What ``${run_id:}`` stands for in the config files: folders are named from the typed config, not as typed."""
    OmegaConf.register_new_resolver("run_id", lambda: run_id, replace=True)
