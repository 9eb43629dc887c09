"""Find and read the option files in ``conf/``: ``conf/GROUP/NAME.yaml`` is what ``GROUP=NAME`` chooses."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from mxsweep.terminal.errors import ConfigError

LAUNCHER = "hydra/launcher"
NO_GROUPS = {"hydra", "reference"}  # folders of conf/ that hold no options of a run


def conf_dir() -> Path:
    """Return the folder of config groups: in an installed wheel inside the package, in a source tree beside it.

    Raises:
        FileNotFoundError: the package is installed without its config files.
    """
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "config.yaml").is_file():
            return folder
    raise FileNotFoundError(
        f"mxsweep is installed without its config: no conf/config.yaml in {package} or {package.parent}"
    )


def config_folders(config_dir: Path | None) -> list[Path]:
    """Return the folders of config groups: that of ``--config-dir``, then mxsweep's."""
    return [folder for folder in (config_dir, conf_dir()) if folder is not None]


def group_names(folders: Sequence[Path]) -> set[str]:
    """Return the names of all config groups in ``folders``, Hydra's launcher included."""
    below = {path.name for folder in folders for path in folder.iterdir() if path.is_dir()}
    return below - NO_GROUPS | {LAUNCHER}


def option_names(group: str, folders: Sequence[Path] | None = None) -> list[str]:
    """Return the names of a group's option files, sorted; numbers in numeric order."""
    names = {path.stem for folder in folders or [conf_dir()] for path in (folder / group).glob("*.yaml")}
    return sorted(names, key=lambda name: (bool(re.fullmatch(r"[\d.]+", name)), _number(name), name))


def read_option(group: str, name: str, folders: Sequence[Path] | None = None) -> dict[str, Any] | None:
    """Return the content of an option file, or None where there is none of that name.

    Raises:
        ConfigError: a file that cannot be read, or holds no mapping, or two files of the name that differ.
    """
    if name not in option_names(group, folders):  # which `../model/hf` is not
        return None
    file, *others = _option_files(group, name, folders)
    try:
        text = file.read_text(encoding="utf-8")
        content = yaml.safe_load(text) or {}
        differs = next((other for other in others if other.read_text(encoding="utf-8") != text), None)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{file}: cannot be read: {' '.join(str(error).split())}") from None
    if differs is not None:
        # Hydra would take the last one in silence.
        raise ConfigError(f"{group}: {name!r} is mxsweep's own, and {file} says something else; give it another name")
    if not isinstance(content, dict):
        raise ConfigError(f"{file}: an option file holds a mapping, not {type(content).__name__}")
    return content


def set_leaves(content: Mapping[str, Any]) -> set[str]:
    """Return the knobs of groups that an option file sets, as ``train.tokens``."""
    return {f"{group}.{leaf}" for group, below in content.items() if isinstance(below, dict) for leaf in below}


def check_one_option(group: str, name: str, folders: Sequence[Path]) -> None:
    """Raise ConfigError where two folders hold an option of the name, and the two differ."""
    if len(_option_files(group, name, folders)) > 1:
        read_option(group, name, folders)


def _option_files(group: str, name: str, folders: Sequence[Path] | None) -> list[Path]:
    files = [folder / group / f"{name}.yaml" for folder in folders or [conf_dir()]]
    return [file for file in files if file.is_file()]


def _number(name: str) -> float:
    return float(name) if re.fullmatch(r"\d+(\.\d+)?", name) else 0.0
