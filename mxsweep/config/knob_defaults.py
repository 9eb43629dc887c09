"""Read the defaults of all knobs from ``conf/``, for the pages and the help that show them."""

from __future__ import annotations

import copy
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from mxsweep.config import knobs
from mxsweep.config.option_files import LAUNCHER, conf_dir, read_option

GLOBAL = "# @package _global_"  # of an option file that sets knobs of other groups, too


def defaults() -> dict[str, Any]:
    """Return each knob's default: in conf/config.yaml, or in the option of its group that is the default."""
    return copy.deepcopy(_defaults(conf_dir(), tuple(knob.path for knob in knobs.all_knobs())))


@lru_cache(maxsize=2)
def _defaults(folder: Path, _known: tuple[str, ...]) -> dict[str, Any]:
    """Read the defaults once for a folder of config files and the knobs that there are: every run asks for them."""
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    chosen: dict[str, Any] = {LAUNCHER: "basic"}
    for entry in config.pop("defaults"):
        chosen |= entry if isinstance(entry, dict) else {}
    values = _flat(config)
    for group, name in chosen.items():
        values |= _of_option(group, str(name))
    for name in ("gpus", "slurm"):
        values |= {f"hydra.launcher.{key}": value for key, value in (read_option(LAUNCHER, name) or {}).items()}
    # A group that is a leaf, too, is said by its option's name.
    return values | {group: "none" if name is None else name for group, name in chosen.items()}


def defaults_of(group: str, name: str) -> dict[str, Any]:
    """Return the defaults with the values that an option of a group, and those that it chooses of others, have."""
    content = read_option(group, name) or {}
    entries = [entry for entry in content.get("defaults", []) if isinstance(entry, dict)]
    chosen = {key.removeprefix("override /"): option for entry in entries for key, option in entry.items()}
    chosen[group] = name
    values = defaults()
    for one, option in chosen.items():
        values |= _of_option(one, option)
    return values | chosen


def _of_option(group: str, name: str) -> dict[str, Any]:
    content = read_option(group, name) or {}
    file = conf_dir() / group / f"{name}.yaml"
    if file.is_file() and file.read_text(encoding="utf-8").startswith(GLOBAL):
        return _flat({key: value for key, value in content.items() if key != "defaults"})
    return {key if key == group else f"{group}.{key}": value for key, value in content.items()}


def _flat(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    groups = knobs.groups()
    for key, value in data.items():
        path = f"{prefix}{key}"
        nested = isinstance(value, dict) and (knobs.get(path) is None or path in groups)
        flat |= _flat(value, f"{path}.") if nested else {path: value}
    return flat
