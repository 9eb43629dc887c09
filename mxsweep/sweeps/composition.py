"""Compose the config of one run with Hydra, and say in the user's words what Hydra refuses."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.resolvers.oc import env as environment_variable
from yaml import YAMLError

from mxsweep.config.composed_config import plain_knobs
from mxsweep.config.knobs import is_knob, no_such_knob, paths
from mxsweep.config.option_files import conf_dir
from mxsweep.config.override_grammar import excerpt
from mxsweep.files.checkpoints import EMBEDDED
from mxsweep.sweeps.shared_composition import OF_THIS_RUN, SharedComposition, read_options_once
from mxsweep.terminal.errors import ConfigError


@dataclass(frozen=True)
class Composer:
    """Compose the runs of one plan.

    Attributes:
        extra: overrides that every run has beside its own.
        paths_from: the folder from which relative paths count; None for the current one.
        apart: overrides that only runs which have them, too, can be composed like, as options that choose others.
        first: the first run of each form (see ``_form``), and what Hydra made of it, until there is a second.
        shared: what composes the further ones; None for a form of which Hydra composes all.
    """

    extra: tuple[str, ...]
    paths_from: Path | None
    apart: set[str] = field(default_factory=set)
    first: dict[tuple[str, ...], tuple[Sequence[str], DictConfig, dict[str, Any]]] = field(default_factory=dict)
    shared: dict[tuple[str, ...], SharedComposition | None] = field(default_factory=dict)

    def compose(self, words: Sequence[str], number: int, unnamed: Sequence[str] = ()) -> DictConfig:
        """Return what Hydra makes of a run's overrides, for the run of this number, Hydra's own node included.

        The config is this run's until the next call, which may change it.

        Args:
            words: the overrides.
            number: of the run.
            unnamed: knobs that ``${hydra.job.override_dirname}`` leaves out.

        Raises:
            ConfigError: what Hydra refuses, as a knob that is not there; a path that only the current folder has.
        """
        overrides = [*words, *self.extra, f"hydra.job.num={number}", f"hydra.job.id={number}"]
        overrides.append(f"hydra.job.config.override_dirname.exclude_keys=[{','.join(unnamed)}]")
        cfg = self._like_one_before(overrides) or self._by_hydra(words, overrides)
        if not OmegaConf.is_interpolation(cfg, "modules") and isinstance(text := cfg.get("modules"), str):
            with contextlib.suppress(YAMLError):  # a mapping whose keys Hydra cannot read came as one text
                cfg.modules = yaml.safe_load(text)
        if self.paths_from is not None:
            for knob in paths():
                if knob != "calibration.path" or cfg.calibration.source != "task":  # which names a task of lm-eval
                    _resolve_path(cfg, knob, self.paths_from)
        return cfg

    def _like_one_before(self, overrides: Sequence[str]) -> DictConfig | None:
        """Compose a run from what it has in common with one that Hydra composed; None where Hydra must."""
        form = self._form(overrides)
        if (first := self.first.pop(form, None)) is not None:
            self.shared[form] = SharedComposition.of(*first)
        shared = self.shared.get(form)
        cfg = None if shared is None else shared.compose(overrides)
        if shared is not None and cfg is None:
            self.apart.update(shared.refused)
        return cfg

    def _by_hydra(self, words: Sequence[str], overrides: list[str]) -> DictConfig:
        try:
            cfg = hydra_compose("config", overrides=overrides, return_hydra_config=True)
        except HydraException as error:
            raise ConfigError(_without_jargon(error)) from error
        except YAMLError as error:
            raise ConfigError(f"a config file is no YAML: {' '.join(str(error).split())}") from error
        except (ValueError, TypeError, RecursionError) as error:  # so Hydra answers a file that makes no sense to it
            raise ConfigError(f"{excerpt(' '.join(words))}: cannot be composed: {excerpt(str(error))}") from error
        form = self._form(overrides)
        if form not in self.shared:
            self.first[form] = (overrides, cfg, plain_knobs(cfg))
        return cfg

    def _form(self, overrides: Sequence[str]) -> tuple[str, ...]:
        """Return what runs agree in that may be composed from what they have in common.

        That is their knobs, with the values of those that are apart and of Hydra's own.
        """
        return tuple(
            word
            if word in self.apart or (word.startswith("hydra") and not word.startswith(OF_THIS_RUN))
            else word.partition("=")[0]
            for word in overrides
        )


@contextlib.contextmanager
def composing(
    words: Sequence[str], config_dir: Path | None = None, paths_from: Path | None = None, with_stamp: bool = True
) -> Iterator[Composer]:
    """Have Hydra read mxsweep's config files, and those in ``config_dir``, for runs whose first has these overrides.

    Args:
        with_stamp: whether all runs are to have one ``stamp``, where none is typed; else each refers to its own time.
    """
    extra = [f"hydra.searchpath=[file://{config_dir}]"] if config_dir else []
    if with_stamp and not any(word.startswith("stamp=") for word in words):
        extra.append(f"stamp='{datetime.now().strftime('%Y%m%d_%H%M%S')}'")  # one for all, however long composing takes
    with _without_environment(), initialize_config_dir(str(conf_dir()), version_base="1.3", job_name="mxsweep"):
        read_options_once()
        yield Composer(tuple(extra), paths_from)


@contextlib.contextmanager
def _without_environment() -> Iterator[None]:
    """Refuse ``${oc.env:NAME}``: what a config says is recorded, and shown to whoever gets the results."""

    def refuse(name: str, *_: str) -> NoReturn:
        raise ConfigError(
            f"${{oc.env:{name}}} is not looked up: a config is recorded, for others to read; write the value"
        )

    OmegaConf.register_new_resolver("oc.env", refuse, replace=True)
    try:
        yield
    finally:
        OmegaConf.register_new_resolver("oc.env", environment_variable, replace=True)


def name_run(run_id: str) -> None:
    """Set what ``${run_id:}`` stands for in config files: folders are named from the typed config, not as typed."""
    OmegaConf.register_new_resolver("run_id", lambda: run_id, replace=True)


def _resolve_path(cfg: DictConfig, knob: str, folder: Path) -> None:
    """Replace a knob's relative paths, of files and folders that are in ``folder``, by absolute ones."""
    value = OmegaConf.select(cfg, knob, throw_on_resolution_failure=False)
    if isinstance(value, str):
        resolved: object = _absolute(knob, value, folder)
    elif isinstance(value, DictConfig):
        resolved = {
            key: _absolute(knob, path, folder) if isinstance(path, str) else path for key, path in value.items()
        }
    else:
        return
    OmegaConf.update(cfg, knob, resolved, merge=False, force_add=True)


def _absolute(knob: str, path: str, folder: Path) -> str:
    """Return the path of a file in ``folder``; as it is what is absolute, or names nothing there (as on the hub)."""
    if os.path.isabs(path) or path.startswith("~") or path == EMBEDDED:
        return path
    there = folder / path
    if os.path.exists(there):
        return str(there)
    if os.path.exists(path):
        raise ConfigError(
            f"resume: {knob}: {path!r} is here, and is not in {str(folder)!r}, where the sweep was begun; give the "
            "knobs again, with the path that is meant"
        )
    return path


def _without_jargon(error: HydraException) -> str:
    """Return a message of Hydra's in the user's words: a knob that is not there cannot be appended either."""
    message, cause = str(error), error.__cause__
    if match := re.match(r"Could not override '([^']+)'|.*config group '([^']+)' does not exist", message):
        key = match[1] or match[2]
        if key.startswith("hydra.launcher."):
            return (
                f"{key}: there is no such knob of this launcher; hydra/launcher=gpus has n and retries, "
                "hydra/launcher=slurm what conf/hydra/launcher/slurm.yaml lists, basic none"
            )
        return f"{key}: holds no value of this kind" if is_knob(key) else no_such_knob(key)
    if match := re.match(r"Could not append to config\. An item is already at '([^']+)'", message):
        return f"{match[1]}: has a value already; write {match[1]}=VALUE, without +"
    if match := re.match(r"Error merging override ([^=]+)=(.*)", message, re.DOTALL):
        key, value = match[1].lstrip("+"), excerpt(match[2])
        if "DictConfig with ListConfig" in str(cause):
            return f"{key}: {value} cannot be its value; allowed: names in brackets, as [a,b]"
        reason = f" ({str(cause).splitlines()[0]})" if cause is not None and str(cause) else ""
        return f"{key}: {value} cannot be its value{reason}"
    return message.splitlines()[0]
