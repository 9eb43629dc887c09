"""Rewrite the command line as people type it into what Hydra accepts.

These stand between ``block_size=16,48`` and Hydra 1.3:

- A group choice that Hydra's grammar reads as a number, a bool or a null is refused ("Config group override
  must be a string or a list"). Quoted, the same choice works, so values of groups are quoted here.
- A group choice without an option file is an error. Where a value of one's own makes sense (``block_size=48``,
  ``format=fp6_e3m2``, ``task=arc_easy``, ``task=[a,b]``, ``model=gpt2``, ``model=./folder``), an option that holds the
  value is put into Hydra's ConfigStore.
- An experiment file cannot sweep numbers, for the first reason. It says what it sweeps under ``sweep:``, as a mapping
  of knobs to YAML lists, or a list of such grids, one after the other. Each grid becomes part of a command line of its
  own, where what the user typed wins.
- A path or a free text may hold what means something else in Hydra's grammar (commas, quotes, brackets, letters beyond
  ASCII, or digits alone: the commit ``3e56378`` is a number). Where nothing but a text can be meant, it is quoted.
- Keys of a mapping are taken without quotes only, and without the brackets that a glob may have.

Everything after this module sees ordinary Hydra overrides.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.types import QuotedString

from mxsweep.config import knobs
from mxsweep.config.checks import is_folder
from mxsweep.config.mapping_text import mappings_as_texts
from mxsweep.config.option_files import (
    LAUNCHER,
    check_one_option,
    config_folders,
    group_names,
    option_names,
    read_option,
    set_leaves,
)
from mxsweep.config.override_grammar import excerpt, is_readable, quote, read_override, sweep_values
from mxsweep.config.sweep_knobs import SBATCH
from mxsweep.terminal.errors import ConfigError
from mxsweep.terminal.written_values import written

ONE_OF_TWO = {"train.tokens": "train.steps", "train.steps": "train.tokens"}
_typed: dict[str, str] = {}  # options made for `model=` and `task=`, name to what was typed


def prepare(arguments: Sequence[str], config_dir: Path | None = None) -> tuple[list[list[str]], bool]:
    """Rewrite overrides (``key=value`` words, no flags) for Hydra.

    Args:
        arguments: the overrides as typed.
        config_dir: a further folder of config groups (Hydra's ``--config-dir``).

    Returns:
        The overrides for Hydra, of each grid that an experiment sweeps (else once), and whether one makes this a
        multirun.

    Raises:
        ConfigError: a word that is no override, an option that is not there, an experiment file that makes no sense, or
            several experiments at once.
    """
    folders = config_folders(config_dir)
    for argument in arguments:
        _check_text(argument)
        if not re.match(r"[+~]*[\w$@:./-]+(=|$)", argument):
            raise ConfigError(f"{excerpt(argument)}: cannot be read as KNOB=VALUE")
    groups = group_names(folders)
    # `+experiment=ex1`, as Hydra has it for a group without a default; here every group has one.
    words = [bare if _key(bare := argument.lstrip("+")) in groups else argument for argument in arguments]
    words = [_quote_what_is_meant(word) for word in words]
    words = [word for word in words if word not in ("experiment=null", "experiment=")]
    name, content = chosen_experiment(words, folders)
    grids = _grids(name, content)
    typed = {_key(word) for word in words}
    swept_keys = {key for grid in grids for key in grid}
    written = [key for key in set_leaves(content) if swept_keys.isdisjoint((key, ONE_OF_TWO.get(key)))]
    overrides = [_choose(word, folders) for word in [*words, *_without_the_other(typed, written)]]
    swept = [
        [
            _choose(_quote_what_is_meant(f"{key}={_render_sweep(key, values)}"), folders)
            for key, values in grid.items()
            if key not in typed
        ]
        + _without_the_other(grid.keys() - typed)
        for grid in grids
    ]
    return [overrides + further for further in swept or [[]]], bool(grids)


def _without_the_other(typed: Collection[str], written: Collection[str] = ()) -> list[str]:
    """Return words that take the default away from a knob where the one was set that stands in its place.

    What is typed comes before what an experiment's file has written.
    """
    return [
        f"{other}=null"
        for one, other in ONE_OF_TWO.items()
        if other not in typed and (one in typed or (one in written and other not in written))
    ]


def as_typed(override: str) -> str:
    """Return a prepared override as a person types it: ``block_size='16'`` is ``block_size=16``."""
    key, _, value = override.partition("=")
    names = [name.strip("'") for name in value.split(",")]
    if key in ("model", "task") and any(name in _typed for name in names):
        return f"{key}={','.join(_typed.get(name, name) for name in names)}"
    override = re.sub(r"=(True|False)$", lambda match: match.group().lower(), override)
    return re.sub(r"^(\w+)='([^',]*)'$|^([\w.]+)='([\w./+-]+)'$", r"\1\3=\2\4", override)


def _key(word: str) -> str:
    return word.split("=", 1)[0]


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


def _quote_what_is_meant(word: str) -> str:
    """Put into quotes what Hydra would read as something else than what the knob can mean."""
    key, _, value = word.partition("=")
    bare = key.lstrip("+")
    if bare in knobs.folders():  # whatever is typed is one, unless it is in quotes or refers to other knobs
        return _quote_folder(bare, value)
    if bare == SBATCH or bare.startswith(f"{SBATCH}."):  # whose keys are sbatch's, so that Hydra knows none of them
        return f"++{bare}={value}"
    if bare in knobs.mappings():
        word = _quote_mapping(key, value)
    if bare in knobs.paths() + knobs.free_text() and value and value[0] not in "'\"[{":
        if not is_readable(f"{bare}={value}"):
            return f"{bare}={quote(value)}"
        return f"{bare}={_quote_numbers(value)}"
    if bare == "task" and re.search(r"\.ya?ml$", value) and not is_readable(word):
        return f"{bare}={quote(value)}"
    return word


def _quote_folder(key: str, value: str) -> str:
    quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
    plain = re.fullmatch(r"[\w./-]+", value, re.ASCII) and isinstance(read_override(f"{key}={value}").value(), str)
    as_it_is = (quoted and is_readable(f"{key}={value}")) or plain  # 1e3 is not: it would be 1000.0
    return f"{key}={value if as_it_is else quote(value)}"


def _quote_numbers(value: str) -> str:
    """Put the texts that Hydra reads as numbers or bools into quotes; null stays null."""
    if re.search(r"""['"()\[\]{}$\\]""", value):
        return value
    return ",".join(
        quote(text) if isinstance(read_override(f"x={text}").value(), int | float) else text
        for text in map(str.strip, value.split(","))
    )


def _quote_mapping(key: str, value: str) -> str:
    """Unquote the keys of ``modules={"*.down_proj": none}``, or have the mapping travel as one text."""
    # As YAML and JSON write keys; Hydra's grammar takes them without quotes only.
    word = re.sub(r"""(["'])([^"']+)\1(\s*:)""", r"\2\3", f"{key}={value}")
    if is_readable(word) or not key.endswith("modules"):
        return word
    try:
        return f"{key}={mappings_as_texts(value)}"
    except (ValueError, RecursionError):  # said by whoever reads the word
        return f"{key}={value}"


def chosen_experiment(words: Sequence[str], folders: Sequence[Path]) -> tuple[str, dict[str, Any]]:
    """Return the chosen experiment's name and what its file holds; both empty without one.

    Raises:
        ConfigError: several are chosen, or its file cannot be read.
    """
    chosen = [word.partition("=")[2] for word in words if word.lstrip("+").startswith("experiment=")]
    if not chosen:
        return "", {}
    name = chosen[-1].strip("'\"[]")
    if "," in name:
        raise ConfigError(
            f"experiment: {excerpt(name)!r} names several; choose one of "
            f"{', '.join(option_names('experiment', folders))}"
        )
    return name, read_option("experiment", name, folders) or {}


def _grids(name: str, content: Mapping[str, Any]) -> list[dict[str, list[Any]]]:
    """Return what an experiment sweeps, grid by grid; none where it is a single run."""
    sweep = content.get("sweep") or []
    grids = sweep if isinstance(sweep, list) else [sweep]
    for grid in grids:
        if not isinstance(grid, dict) or not all(isinstance(values, list) and values for values in grid.values()):
            raise ConfigError(
                f"experiment {name!r}: sweep must map knobs to lists of values, or be a list of such mappings, and "
                f"{excerpt(str(grid))} is none"
            )
    return grids


def _render_sweep(key: str, values: Sequence[Any]) -> str:
    is_text = key in knobs.paths() + knobs.free_text()  # with commas and quotes that mean themselves
    return ",".join(quote(value) if is_text and isinstance(value, str) else written(value) for value in values)


def _choose(word: str, folders: Sequence[Path]) -> str:
    """Quote the values of an override that chooses from a group, and provide those without an option file."""
    key = _key(word)
    override = read_override(word)
    if key not in group_names(folders) or "=" not in word:
        return word
    values = [_choice(key, value) for value in sweep_values(override, _options(key, folders))]
    return f"{key}=" + ",".join(quote(_provide(key, value, folders)) for value in values)


def _options(group: str, folders: Sequence[Path]) -> list[str]:
    return ["basic"] * (group == LAUNCHER) + option_names(group, folders)


def _choice(group: str, value: Any) -> Any:
    """Return a value as plain data: quotes make no text of a number, and a list of one is the one."""
    if isinstance(value, QuotedString):
        plain = re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)|true|false|null", value.text) and group not in knobs.free_text()
        return yaml.safe_load(value.text) if plain else value.text
    if isinstance(value, list):
        items = [_choice(group, item) for item in value]
        return items[0] if len(items) == 1 else items
    return value


def _provide(group: str, value: Any, folders: Sequence[Path]) -> str:
    """Return the name under which Hydra finds ``value`` in ``group``, and put an option there if there was none."""
    existing = _options(group, folders)
    name = "none" if value is None and "none" in existing else written(value)
    if name in existing:
        check_one_option(group, name, folders)
        return name
    if group == "model" and isinstance(value, str) and value and "${" not in value and value != "???":
        return _provide_model(value, existing, folders)
    if group not in knobs.groups_with_own_values():
        raise ConfigError(f"{group}: {excerpt(name)!r} is not known; allowed: {', '.join(existing)}")
    if group == "task" and (file := _task_file(value)):
        return _provide_task_file(value, file, folders)
    if not re.fullmatch(r"[\w ,.+:\[\]()|-]*", name) or len(name) > 200:
        # Hydra would look for a file of that name, or read it as a reference to other knobs.
        raise ConfigError(
            f"{group}: {excerpt(name)!r} is not known; allowed: {', '.join(existing)}, or a value of letters, digits "
            "and _.+:-"
        )
    name = re.sub(r"[\[\] ]", "", name).replace(",", "+") if isinstance(value, list) else name
    _store(group, name or "empty", _ad_hoc_option(group, value, folders))
    return name or "empty"


def _provide_model(path: str, existing: Sequence[str], folders: Sequence[Path]) -> str:
    """Return the name of an option for ``model=PATH``, which is ``model=hf model.path=PATH``."""
    near = difflib.get_close_matches(path, existing, n=1, cutoff=0.75)
    if near and not is_folder(Path(path)):
        raise ConfigError(
            f"model: {excerpt(path)!r} is not known; near it: {near[0]}; allowed: {', '.join(existing)}, a folder, or "
            f"a name on the Hugging Face hub (if {excerpt(path)!r} is one: model=hf model.path={excerpt(path)})"
        )
    # Not under its path: Hydra would look for a file there.
    name = f"hf-{hashlib.sha256(path.encode()).hexdigest()[:12]}"
    _typed[name] = path
    _store("model", name, {"model": (read_option("model", "hf", folders) or {}) | {"path": path}})
    return name


def _task_file(value: Any) -> str | None:
    """Return the file among what ``task=`` was given; None without one. Raises ConfigError for more than one."""
    items = value if isinstance(value, list) else [value]
    files = [item for item in items if isinstance(item, str) and re.search(r"/|\\|\.ya?ml$", item)]
    if len(files) > 1:
        raise ConfigError(
            f"task: {excerpt(', '.join(files))} are several files; allowed: one, or task.include_path=FOLDER with the "
            "names of the tasks in it"
        )
    if files and not files[0].endswith((".yaml", ".yml")):
        raise ConfigError(
            f"task: {excerpt(files[0])!r} is no name of a task; allowed: one, FILE.yaml of your own, or [A,B]"
        )
    return files[0] if files else None


def _provide_task_file(value: Any, file: str, folders: Sequence[Path]) -> str:
    """Return the name of an option for ``task=FILE.yaml``, which is ``task.include_path=FILE.yaml`` with its name."""
    typed = written(value)
    name = f"file-{hashlib.sha256(typed.encode()).hexdigest()[:12]}"
    _typed[name] = typed
    _store("task", name, {"task": _task_option(value, folders) | {"include_path": file}})
    return name


def _store(group: str, name: str, content: dict[str, Any]) -> None:
    # The option's content names its full path, so it is the root's (_global_) whatever the group.
    ConfigStore.instance().store(group=group, name=name, node=content, package="_global_", provider="command line")


def _ad_hoc_option(group: str, value: Any, folders: Sequence[Path]) -> dict[str, Any]:
    """Return the option, with its full path, that a value of one's own stands for."""
    if group == "format":
        return {"format": {"weight": value, "activation": value}}
    if group == "kv_quant":
        return {"kv_quant": {"key": value, "value": value}}
    if group == "task":
        return {"task": _task_option(value, folders)}
    return {group: value}


def _task_option(value: Any, folders: Sequence[Path]) -> dict[str, Any]:
    """Return the option of one task by name, or of several: what their option files say, together."""
    names: list[Any] = []
    fields: dict[str, str] = {}
    for item in value if isinstance(value, list) else [value]:
        option = (read_option("task", item, folders) if isinstance(item, str) else None) or {"names": [item]}
        names += option["names"]
        fields |= option.get("fields") or {}
    return {"names": names, "fields": fields}
