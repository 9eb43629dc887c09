"""The command line as people type it, made into what Hydra accepts.

Three things stand between ``block_size=16,48`` and Hydra 1.3:

- A group choice that Hydra's grammar reads as a number, a bool or a null is refused ("Config group override
  must be a string or a list"). Quoted, the same choice works, so values of groups are quoted here.
- A group choice without an option file is an error. Where a value of one's own makes sense (``block_size=48``,
  ``format=fp6_e3m2``, ``task=arc_easy``, ``task=[a,b]``), an option of that name is put into Hydra's ConfigStore.
- An experiment file cannot sweep numbers, for the first reason. It says what it sweeps under ``sweep:``, as YAML
  lists, and that becomes part of the command line, where what the user typed wins.

This is the only place that knows about it; everything after sees ordinary Hydra overrides.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override, QuotedString
from hydra.errors import HydraException, OverrideParseException

from mxsweep.errors import ConfigError


def conf_dir() -> Path:
    """The folder of config groups: in an installed wheel beside this file, in a source tree one level up."""
    here = Path(__file__).resolve().parent
    for folder in (here / "conf", here.parent / "conf"):
        if (folder / "config.yaml").is_file():
            return folder
    raise FileNotFoundError(f"mxsweep is installed without its config: no conf/config.yaml in {here} or {here.parent}")


# What a value of one's own means in each group that takes one: the option's content, under the option's package.
AD_HOC = {
    "block_size": lambda value: {"block_size": value},
    "scale_bits": lambda value: {"scale_bits": value},
    "scale": lambda value: {"scale": value},
    "custom_cuda": lambda value: {"custom_cuda": value},
    "limit": lambda value: {"limit": value},
    "format": lambda value: {"format": {"weight": value, "activation": value}},
    "kv_quant": lambda value: {"kv_quant": {"key": value, "value": value}},
    "task": lambda value: {"task": _task_option(value)},
}


def prepare(arguments: list[str], config_dir: Path | None = None) -> tuple[list[str], bool]:
    """Rewrite overrides (``key=value`` words, no flags) for Hydra.

    Args:
        arguments: the overrides as typed.
        config_dir: a further folder of config groups (Hydra's ``--config-dir``), looked into first.

    Returns:
        The overrides for Hydra, and whether an experiment among them makes this a multirun.

    Raises:
        ConfigError: a word that is no override, a model or an experiment without an option file, an experiment file
            that makes no sense, or several experiments at once.
    """
    for argument in arguments:
        if not re.match(r"[+~]*[\w$@:./-]+(=|$)", argument):
            raise ConfigError(f"{argument}: cannot be read as KNOB=VALUE")
    folders = [folder for folder in (config_dir, conf_dir()) if folder is not None]
    arguments = [_unquote_keys(argument) for argument in arguments]
    sweep = _experiment_sweep(arguments, folders)
    typed = {argument.split("=", 1)[0] for argument in arguments}
    swept = [f"{key}={_render_sweep(values)}" for key, values in sweep.items() if key not in typed]
    return [_rewrite(argument, folders) for argument in arguments + swept], bool(sweep)


def as_typed(override: str) -> str:
    """A prepared override as a person types it: ``block_size='16'`` is ``block_size=16``, ``False`` is ``false``."""
    override = re.sub(r"=(True|False)$", lambda found: found.group().lower(), override)
    return re.sub(r"^(\w+)='([^',]*)'$", r"\1=\2", override)


def option_names(group: str, folders: list[Path] | None = None) -> list[str]:
    """Names of a group's option files, sorted; numbers in numeric order."""
    names = {path.stem for folder in folders or [conf_dir()] for path in (folder / group).glob("*.yaml")}
    return sorted(names, key=lambda name: (bool(re.fullmatch(r"[\d.]+", name)), _number(name), name))


def read_option(group: str, name: str, folders: list[Path] | None = None) -> dict[str, Any] | None:
    """The content of an option file, or None where there is none of that name."""
    for folder in folders or [conf_dir()]:
        file = folder / group / f"{name}.yaml"
        if file.is_file():
            content = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
            if not isinstance(content, dict):
                raise ConfigError(f"{file}: an option file holds a mapping, not {type(content).__name__}")
            return content
    return None


def _number(name: str) -> float:
    return float(name) if re.fullmatch(r"\d+(\.\d+)?", name) else 0.0


def _unquote_keys(argument: str) -> str:
    """``modules={"*.down_proj": none}`` as YAML and JSON write it: Hydra's grammar takes keys without quotes only."""
    if not argument.lstrip("+").startswith(("modules=", "task.data=")):
        return argument
    return re.sub(r"""(["'])([^"']+)\1(\s*:)""", r"\2\3", argument)


def _experiment_sweep(arguments: list[str], folders: list[Path]) -> dict[str, list[Any]]:
    chosen = [argument.split("=", 1)[1] for argument in arguments if re.match(r"\+?experiment=", argument)]
    if not chosen or chosen[-1] in ("null", ""):
        return {}
    name = chosen[-1].strip("'\"")
    if "," in name:
        raise ConfigError(
            f"experiment: {name!r} names several; choose one of {', '.join(option_names('experiment', folders))}"
        )
    sweep = (read_option("experiment", name, folders) or {}).get("sweep") or {}
    if not isinstance(sweep, dict) or not all(isinstance(values, list) and values for values in sweep.values()):
        raise ConfigError(f"experiment {name!r}: sweep must map knobs to lists of values, not {sweep!r}")
    return sweep


def _render_sweep(values: list[Any]) -> str:
    return ",".join(_render(value) for value in values)


def _render(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return "[" + ",".join(_render(item) for item in value) + "]"
    return str(value)


def _rewrite(argument: str, folders: list[Path]) -> str:
    """One override: where it chooses from a group, quote its values and provide those without an option file."""
    key = argument.split("=", 1)[0]
    groups = {path.name for folder in folders for path in folder.iterdir() if path.is_dir()}
    if key not in groups or "=" not in argument or argument == "experiment=null":
        return argument
    try:
        override = OverridesParser.create().parse_override(argument)
    except (OverrideParseException, HydraException):
        return argument  # Hydra meets it again and says what is wrong with it
    values = _values(override, option_names(key, folders))
    return f"{key}=" + ",".join(_quote(_provide(key, value, folders)) for value in values)


def _values(override: Override, options: list[str]) -> list[Any]:
    """The values an override names, plain Python; those of a glob are the options that it matches."""
    value = override.value()
    if isinstance(value, Glob):
        return list(value.filter(options))
    raw = list(override.sweep_iterator()) if override.is_sweep_override() else [value]
    return [_plain(item) for item in raw]


def _plain(value: Any) -> Any:
    if isinstance(value, QuotedString):
        return yaml.safe_load(value.text) if re.fullmatch(r"[-+\d.]+|true|false|null", value.text) else value.text
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value


def _provide(group: str, value: Any, folders: list[Path]) -> str:
    """The name under which Hydra finds ``value`` in ``group``, after putting an option there if there was none."""
    existing = option_names(group, folders)
    name = "none" if value is None and "none" in existing else _render(value)
    if name in existing:
        return name
    if group not in AD_HOC:
        raise ConfigError(f"{group}: {name!r} is not known; allowed: {', '.join(existing)}")
    name = re.sub(r"[\[\] ]", "", name).replace(",", "+") if isinstance(value, list) else name
    # The option's content names its full path, so it is the root's (_global_) whatever the group.
    ConfigStore.instance().store(
        group=group, name=name or "empty", node=AD_HOC[group](value), package="_global_", provider="command line"
    )
    return name or "empty"


def _quote(name: str) -> str:
    return "'" + name.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _task_option(value: Any) -> dict[str, Any]:
    """One task by name, or several: what their option files say, together."""
    names: list[Any] = []
    fields: dict[str, str] = {}
    for item in value if isinstance(value, list) else [value]:
        option = (read_option("task", item) if isinstance(item, str) else None) or {"names": [item]}
        names += option["names"]
        fields |= option.get("fields") or {}
    return {"names": names, "fields": fields}
