"""The command line as people type it, made into what Hydra accepts.

Three things stand between ``block_size=16,48`` and Hydra 1.3:

- A group choice that Hydra's grammar reads as a number, a bool or a null is refused ("Config group override
  must be a string or a list"). Quoted, the same choice works, so values of groups are quoted here.
- A group choice without an option file is an error. Where a value of one's own makes sense (``block_size=48``,
  ``format=fp6_e3m2``, ``task=arc_easy``, ``task=[a,b]``), an option of that name is put into Hydra's ConfigStore.
- An experiment file cannot sweep numbers, for the first reason. It says what it sweeps under ``sweep:``, as a mapping
  of knobs to YAML lists, or a list of such grids, one after the other. Each grid becomes part of a command line of its
  own, where what the user typed wins.
- A path may hold what means something else in Hydra's grammar (commas, quotes, brackets, letters beyond ASCII). Where
  nothing but a path can be meant, it is quoted.

This is the only place that knows about it; everything after sees ordinary Hydra overrides.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Glob, Override, QuotedString, RangeSweep
from hydra.errors import HydraException, OverrideParseException

from mxsweep.terminal.errors import ConfigError


def conf_dir() -> Path:
    """The folder of config groups: in an installed wheel inside the package, in a source tree beside it."""
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "config.yaml").is_file():
            return folder
    raise FileNotFoundError(
        f"mxsweep is installed without its config: no conf/config.yaml in {package} or {package.parent}"
    )


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


LAUNCHER = "hydra/launcher"
# Folders of a sweep: whatever is typed is one, unless it is in quotes or refers to other knobs (${stamp}).
FOLDERS = ("hydra.run.dir", "hydra.sweep.dir")
# Paths of which there may be several, or a mapping: taken as they are only where Hydra cannot read them.
PATHS = ("model.path", "task.data", "calibration.path")
MOST_VALUES = 10_000  # of one knob, and runs of a sweep: more are a slip, and composing them would take hours


def prepare(arguments: list[str], config_dir: Path | None = None) -> tuple[list[list[str]], bool]:
    """Rewrite overrides (``key=value`` words, no flags) for Hydra.

    Args:
        arguments: the overrides as typed.
        config_dir: a further folder of config groups (Hydra's ``--config-dir``), looked into first.

    Returns:
        The overrides for Hydra, of each grid that an experiment sweeps (else once), and whether one makes this a
        multirun.

    Raises:
        ConfigError: a word that is no override, a model or an experiment without an option file, an experiment file
            that makes no sense, or several experiments at once.
    """
    folders = [folder for folder in (config_dir, conf_dir()) if folder is not None]
    for argument in arguments:
        _check_text(argument)
        if not re.match(r"[+~]*[\w$@:./-]+(=|$)", argument):
            raise ConfigError(f"{excerpt(argument)}: cannot be read as KNOB=VALUE")
    groups = _groups(folders)
    # `+experiment=ex1`, as Hydra has it for a group without a default; here every group has one.
    arguments = [bare if _key(bare := argument.lstrip("+")) in groups else argument for argument in arguments]
    arguments = [_quote_paths(_unquote_keys(argument)) for argument in arguments]
    arguments = [argument for argument in arguments if argument not in ("experiment=null", "experiment=")]
    grids = _experiment_grids(arguments, folders)
    typed = {_key(argument) for argument in arguments}
    overrides = [_rewrite(argument, folders) for argument in arguments]
    swept = [
        [_rewrite(f"{key}={_render_sweep(values)}", folders) for key, values in grid.items() if key not in typed]
        for grid in grids
    ]
    return [overrides + words for words in swept or [[]]], bool(grids)


def excerpt(text: str, most: int = 200) -> str:
    """A word of the command line for a message: cut where it is long, and so that any terminal can print it."""
    text = text if len(text) <= most else f"{text[: most * 2 // 3]}...{text[-most // 4 :]}"
    return text if text.isprintable() else repr(text)[1:-1]


def verbatim(text: str) -> str:
    """A value that Hydra and OmegaConf read as ``text``, whatever is in it."""
    return _quote(re.sub(r"(\\*)\$\{", r"\1\1\\${", text))


def sweep_values(override: Override, options: list[str] | None = None) -> list[Any]:
    """The values that an override names, as Hydra has them; those of a glob are the ``options`` that it matches.

    Raises:
        ConfigError: none, more than can be meant, or a sweep that names no values (an interval, a glob over no group).
    """
    value, key = override.value(), override.key_or_group
    what = excerpt(override.input_line or key)
    if isinstance(value, Glob):
        if options is None:
            raise ConfigError(f"{key}: glob() is for knobs whose values have names, and this is none; name the values")
        found: list[Any] = list(value.filter(options))
    elif not override.is_sweep_override():
        return [value]
    elif isinstance(value, RangeSweep):
        count = _range_count(value)
        if count is None or count > MOST_VALUES:
            why = "has no end" if count is None else f"is {count:,} values"
            raise ConfigError(f"{what}: {why}; allowed: range(START,STOP,STEP) of at most {MOST_VALUES:,}")
        found = list(override.sweep_iterator())
    elif isinstance(value, ChoiceSweep):
        found = list(override.sweep_iterator())
    else:
        raise ConfigError(f"{what}: names no values; allowed: A,B,C or range(START,STOP,STEP)")
    if not found:
        raise ConfigError(f"{what}: comes to no value; name one or more")
    return found


def _range_count(value: RangeSweep) -> int | None:
    """How many values a range has; None where that is endless, or no number."""
    start, stop, step = (0.0 if part is None else float(part) for part in (value.start, value.stop, value.step))
    if not step or not math.isfinite(start + stop + step) or not math.isfinite((stop - start) / step):
        return None
    return max(0, math.ceil((stop - start) / step))


def read_override(argument: str) -> Override:
    """An override as Hydra reads it. Raises ConfigError."""
    try:
        return OverridesParser.create().parse_override(argument)
    except (HydraException, OverrideParseException, ValueError, TypeError, RecursionError):
        # Their messages are of a grammar's tokens.
        raise ConfigError(
            f"{excerpt(argument)}: cannot be read as KNOB=VALUE; a value with other than letters, digits and ./:_+-% "
            """goes into quotes that the shell leaves, as "KNOB='a, b'\""""
        ) from None


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
    if name not in option_names(group, folders):  # which `../model/hf` is not
        return None
    for folder in folders or [conf_dir()]:
        file = folder / group / f"{name}.yaml"
        if file.is_file():
            try:
                content = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
            except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
                raise ConfigError(f"{file}: cannot be read: {' '.join(str(error).split())}") from None
            if not isinstance(content, dict):
                raise ConfigError(f"{file}: an option file holds a mapping, not {type(content).__name__}")
            return content
    return None


def _number(name: str) -> float:
    return float(name) if re.fullmatch(r"\d+(\.\d+)?", name) else 0.0


def _key(argument: str) -> str:
    return argument.split("=", 1)[0]


def _groups(folders: list[Path]) -> set[str]:
    return {path.name for folder in folders for path in folder.iterdir() if path.is_dir()} - {"hydra", "reference"} | {
        LAUNCHER
    }


def _check_text(argument: str) -> None:
    try:
        argument.encode()
    except UnicodeEncodeError:
        # Bytes that are no UTF-8 come from the shell as lone surrogates, which no file that is written can hold.
        raise ConfigError(
            f"{excerpt(argument)}: is not UTF-8 text; rename what it names, or set LANG=C.UTF-8"
        ) from None
    if "\0" in argument:
        raise ConfigError(f"{excerpt(argument)}: holds a NUL, which no value can")


def _quote_paths(argument: str) -> str:
    """What names a folder or a file, in quotes where Hydra would read it as something else."""
    key, _, value = argument.partition("=")
    key = key.lstrip("+") if key.lstrip("+") in FOLDERS + PATHS else key
    if key in FOLDERS:
        quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
        plain = re.fullmatch(r"[\w./-]+", value, re.ASCII) and isinstance(read_override(f"{key}={value}").value(), str)
        as_it_is = (quoted and _is_readable(f"{key}={value}")) or plain  # 1e3 is not: it would be 1000.0
        return f"{key}={value if as_it_is else _quote(value)}"
    if key in PATHS and value and value[0] not in "'\"[{" and not _is_readable(f"{key}={value}"):
        return f"{key}={_quote(value)}"
    return argument


def _is_readable(argument: str) -> bool:
    try:
        read_override(argument)
    except ConfigError:
        return False
    return True


def _unquote_keys(argument: str) -> str:
    """``modules={"*.down_proj": none}`` as YAML and JSON write it: Hydra's grammar takes keys without quotes only."""
    if not argument.lstrip("+").startswith(("modules=", "task.data=")):
        return argument
    return re.sub(r"""(["'])([^"']+)\1(\s*:)""", r"\2\3", argument)


def _experiment_grids(arguments: list[str], folders: list[Path]) -> list[dict[str, list[Any]]]:
    """What the chosen experiment sweeps, grid by grid; none without one, or where it is a single run."""
    chosen = [argument.split("=", 1)[1] for argument in arguments if re.match(r"\+?experiment=", argument)]
    if not chosen:
        return []
    name = chosen[-1].strip("'\"")
    if "," in name:
        raise ConfigError(
            f"experiment: {excerpt(name)!r} names several; choose one of "
            f"{', '.join(option_names('experiment', folders))}"
        )
    sweep = (read_option("experiment", name, folders) or {}).get("sweep") or []
    grids = sweep if isinstance(sweep, list) else [sweep]
    for grid in grids:
        if not isinstance(grid, dict) or not all(isinstance(values, list) and values for values in grid.values()):
            raise ConfigError(
                f"experiment {name!r}: sweep must map knobs to lists of values, or be a list of such mappings, and "
                f"{excerpt(str(grid))} is none"
            )
    return grids


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
    key = _key(argument)
    override = read_override(argument)
    if key not in _groups(folders) or "=" not in argument:
        return argument
    values = [_plain(value) for value in sweep_values(override, _options(key, folders))]
    return f"{key}=" + ",".join(_quote(_provide(key, value, folders)) for value in values)


def _options(group: str, folders: list[Path]) -> list[str]:
    return ["basic"] * (group == LAUNCHER) + option_names(group, folders)


def _plain(value: Any) -> Any:
    if isinstance(value, QuotedString):
        plain = re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)|true|false|null", value.text)
        return yaml.safe_load(value.text) if plain else value.text
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value


def _provide(group: str, value: Any, folders: list[Path]) -> str:
    """The name under which Hydra finds ``value`` in ``group``, after putting an option there if there was none."""
    existing = _options(group, folders)
    name = "none" if value is None and "none" in existing else _render(value)
    if name in existing:
        return name
    if group not in AD_HOC:
        raise ConfigError(f"{group}: {excerpt(name)!r} is not known; allowed: {', '.join(existing)}")
    if group == "task" and re.search(r"/|\\|\.ya?ml$", name):
        raise ConfigError(f"task: {excerpt(name)!r} names a file; allowed: the name of a task of lm-eval, or [A,B]")
    if not re.fullmatch(r"[\w ,.+:\[\]()|-]*", name) or len(name) > 200:
        # Hydra would look for a file of that name, or read it as a reference to other knobs.
        raise ConfigError(
            f"{group}: {excerpt(name)!r} is not known; allowed: {', '.join(existing)}, or a value of letters, digits "
            "and _.+:-"
        )
    name = re.sub(r"[\[\] ]", "", name).replace(",", "+") if isinstance(value, list) else name
    # The option's content names its full path, so it is the root's (_global_) whatever the group.
    ConfigStore.instance().store(
        group=group, name=name or "empty", node=AD_HOC[group](value), package="_global_", provider="command line"
    )
    return name or "empty"


def _quote(text: str) -> str:
    """In quotes, as Hydra reads them: a backslash means itself but before a quote."""
    return "'" + re.sub(r"(\\*)('|\Z)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), text) + "'"


def _task_option(value: Any) -> dict[str, Any]:
    """One task by name, or several: what their option files say, together."""
    names: list[Any] = []
    fields: dict[str, str] = {}
    for item in value if isinstance(value, list) else [value]:
        option = (read_option("task", item) if isinstance(item, str) else None) or {"names": [item]}
        names += option["names"]
        fields |= option.get("fields") or {}
    return {"names": names, "fields": fields}
