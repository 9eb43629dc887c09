"""Read the knobs of the commands that measure something of a model without a run: inspect and sensitivity."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path

from mxsweep.config.command_line import check_no_sweep_knobs
from mxsweep.config.override_grammar import excerpt, read_override
from mxsweep.config.overrides import prepare
from mxsweep.config.run_config import RunConfig
from mxsweep.runs.backend_check import refuse_unavailable_backend
from mxsweep.sweeps.plan import PlannedRun, plan
from mxsweep.terminal.errors import ConfigError
from mxsweep.terminal.escapes import printable


def add_knob_arguments(parser: argparse.ArgumentParser, name: str) -> None:
    """Add the arguments that both commands have; ``name`` is of the folder that their files go to."""
    parser.add_argument("knobs", nargs="*", metavar="KNOB=VALUE", help="as of `python -m mxsweep` (see its --help)")
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help=f"where the files go (default: outputs/{name}_<time>)"
    )
    parser.add_argument("--config-dir", type=Path, metavar="FOLDER", help="a further folder of config files")


def output_folder(arguments: argparse.Namespace, name: str) -> Path:
    """Return the folder that the command's files go to: the one that was named, or outputs/NAME_TIME."""
    folder: Path | None = arguments.output
    return folder or Path("outputs") / f"{name}_{datetime.now().strftime('%Y%m%d_%H%M%S')}"


def print_warnings(warnings: Iterable[str]) -> None:
    """Print warnings below what was measured, each once."""
    for warning in dict.fromkeys(warnings):
        print(printable(f"\nwarning: {warning}"))


def weight_configs(knobs: Sequence[str], config_dir: Path | None) -> list[tuple[str, RunConfig]]:
    """Return the configs that the knobs mean and that quantize a weight, each with what tells it from the others.

    Raises:
        ConfigError: knobs that make no sense, none that quantizes a weight, or weights that are worked out in a run.
    """
    check_no_sweep_knobs(knobs, config_dir)
    folder = config_dir and config_dir.resolve()
    grids, _ = prepare(knobs, folder)
    runs = []
    for run in plan(grids, True, folder).runs:
        if run.added:
            continue
        config = _config_of(run)
        if config.quantizes_weights:
            _refuse_to_solve(config)
            runs.append((run.overrides, config))
    if not runs:
        raise ConfigError(
            "format: no weight is quantized, so there is nothing to measure; give a format, as format=mxfp4"
        )
    labels = _labels([words for words, _ in runs]) or [config.format.name for _, config in runs]
    return list(zip(labels, (config for _, config in runs), strict=True))


def _refuse_to_solve(config: RunConfig) -> None:
    """Refuse weights other than rounded to nearest, and searches, which nothing here works out. Raises ConfigError."""
    method, why = config.ptq.method, "is worked out in a run only, and inspect measures weights rounded to nearest"
    if config.ptq.budget is not None:
        raise ConfigError(f"ptq.budget: {config.ptq.budget:g} {why}; allowed here: null")
    if config.ptq.is_solved:
        raise ConfigError(f"ptq: {method!r} {why}; allowed here: rtn; diagnostics=true measures a run's weights")
    if config.candidates:
        raise ConfigError(f"rotation: 'search' {why}; allowed here: none, hadamard")
    if config.transforms_inputs:
        raise ConfigError(f"rotation: 'wush' {why}; allowed here: none, hadamard")
    if config.scale_roundings:
        raise ConfigError(f"scale_rounding: 'search' {why}; allowed here: {', '.join(config.scale_roundings)}")


def loss_config(knobs: Sequence[str], config_dir: Path | None) -> RunConfig:
    """Return the one config that the knobs mean.

    Raises:
        ConfigError: knobs that make no sense, several configs, or one that quantizes nothing.
    """
    check_no_sweep_knobs(knobs, config_dir)
    for knob in knobs:
        if knob.partition("=")[0].lstrip("+~") == "by":
            raise ConfigError(f"{excerpt(knob)}: is an option of this command and no knob; write --{excerpt(knob)}")
    folder = config_dir and config_dir.resolve()
    grids, sweeps = prepare(knobs, folder)
    if sweeps:
        raise ConfigError("experiment: is a sweep, and one run's knobs are measured here; give its knobs themselves")
    for override in map(read_override, grids[0]):
        if override.is_sweep_override():
            raise ConfigError(f"{override.key_or_group}: has several values; allowed here: one of each knob")
    (run,) = plan(grids, False, folder).runs
    config = _config_of(run)
    if config.recipe.is_baseline:
        raise ConfigError(
            f"format: {config.format.name!r} with kv_quant=none quantizes nothing, so there is nothing to measure; "
            "give a format, as format=mxfp4"
        )
    return config


def _config_of(run: PlannedRun) -> RunConfig:
    """Return the config of a run that can be done here. Raises ConfigError."""
    if run.config is None:
        raise ConfigError(run.error or "")
    if run.config.trains:
        raise ConfigError(
            "train: has no use here, where nothing is trained; to measure what was trained, model=FOLDER/model"
        )
    refuse_unavailable_backend(run.config)
    return run.config


def _labels(runs: Sequence[Sequence[str]]) -> list[str]:
    """Return the words that tell each run from the others, as typed; none where they do not, as of a single run."""
    common = set.intersection(*map(set, runs))
    differing = [[word for word in words if word not in common] for words in runs]
    if len(runs) == 1 or not all(differing):
        return []
    knobs = {tuple(word.partition("=")[0] for word in words) for words in differing}
    if len(knobs) == 1 and len(differing[0]) == 1:  # one knob differs: its values say enough
        return [words[0] if _is_number(words[0]) else words[0].partition("=")[2] for words in differing]
    return [" ".join(words) for words in differing]


def _is_number(word: str) -> bool:
    """Tell whether a knob's value means nothing without the knob's name."""
    return re.fullmatch(r"[\d.]+|true|false|none|null", word.partition("=")[2]) is not None
