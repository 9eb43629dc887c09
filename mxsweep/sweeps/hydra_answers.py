"""Answer what Hydra knows of the config without running anything: ``--help``, ``--cfg``, ``--info``, tab completion."""

from __future__ import annotations

import os
import string
import sys
from collections.abc import Sequence
from pathlib import Path

import hydra
import yaml
from omegaconf import DictConfig, OmegaConf

from mxsweep.config.command_line import CommandLine, flags_help
from mxsweep.config.knob_help import register_knobs_help
from mxsweep.config.option_files import conf_dir, config_folders
from mxsweep.config.overrides import prepare
from mxsweep.sweeps.composition import name_run
from mxsweep.sweeps.plan import PlannedRun, compose_first, plan
from mxsweep.terminal.errors import ConfigError


def answer_question(line: CommandLine) -> int:
    """Print the help, the config or what else ``line.asks_hydra`` asks for; return the exit code.

    Raises:
        ConfigError: overrides that make no sense, which Hydra would say at length, and a part that is not there.
    """
    grids, _ = prepare(line.overrides, line.config_dir)
    if "--help" in line.asks_hydra:
        print(_help(compose_first(grids, line.config_dir), line.config_dir))
        print(flags_help(), end="")
        return 0
    # Of a sweep, the first run is shown.
    run = next(run for run in plan(grids, True, line.config_dir).runs if not run.added)
    _check_package(line.asks_hydra, run)
    _call_hydra([*line.asks_hydra, *run.words], line.config_dir)
    return 0


def answer_shell(request: str) -> int:
    """Print what a shell evaluates for tab completion, or what may come next on its line; return the exit code.

    Raises:
        ConfigError: a question that no shell asked.
    """
    if request.startswith("query") and "COMP_LINE" not in os.environ:
        raise ConfigError(f"--shell-completion: {request} is what a shell asks, with the line in COMP_LINE")
    _call_hydra(["--shell-completion", request], None)
    return 0


def _help(cfg: DictConfig, config_dir: Path | None) -> str:
    """Return the help as Hydra would fill in its template, without the list of all config groups, which it has not."""
    register_knobs_help(config_folders(config_dir))
    knobs = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    return string.Template(cfg.hydra.help.template).substitute(CONFIG=OmegaConf.to_yaml(knobs))


def _call_hydra(words: Sequence[str], config_dir: Path | None) -> None:
    name_run("RUN_ID")
    register_knobs_help(config_folders(config_dir))

    @hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")
    def do_nothing(_: DictConfig) -> None: ...

    before = sys.argv
    sys.argv = [sys.argv[0], *words, *([f"--config-dir={config_dir}"] if config_dir else [])]
    try:
        do_nothing()
    finally:
        sys.argv = before


def _check_package(question: Sequence[str], run: PlannedRun) -> None:
    if "--package" not in question or "job" not in question:
        return
    package = question[question.index("--package") + 1]
    config = OmegaConf.create(yaml.safe_load(run.yaml["config.yaml"]))
    if package != "_global_" and OmegaConf.select(config, package, throw_on_resolution_failure=False) is None:
        raise ConfigError(f"--package: {package!r} is no part of the config, or null; as: model")
