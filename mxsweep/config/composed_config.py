"""Type what Hydra composed: every value is checked, once, at the door; nothing behind sees a DictConfig."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mxsweep.config import knobs
from mxsweep.config.calibration_data import refuse_same_file, resolve_calibration
from mxsweep.config.candidates import resolve_candidates
from mxsweep.config.format_config import FormatConfig, format_name, resolve_format, resolve_modules
from mxsweep.config.knob import Scope
from mxsweep.config.knob_defaults import defaults
from mxsweep.config.kv_config import KVConfig, resolve_kv
from mxsweep.config.matmul_config import MatmulsConfig, resolve_matmuls
from mxsweep.config.model_config import ModelConfig
from mxsweep.config.option_files import conf_dir
from mxsweep.config.remedy_config import CalibrationConfig, PTQConfig, RotationConfig
from mxsweep.config.rules_config import RULES, take_rules
from mxsweep.config.run_config import RunConfig
from mxsweep.config.runtime_words import choose, refuse_contradictions, refuse_rules, tensor_scales
from mxsweep.config.runtimes import ACTIVATION, NO_RUNTIME, OF_RUNTIMES, SHARED
from mxsweep.config.task_config import TaskConfig, resolve_task
from mxsweep.config.train_config import CorpusConfig, InitConfig, TrainConfig
from mxsweep.config.train_knobs import NO_RECIPE
from mxsweep.config.training_data import check_corpus, check_enough_text, check_init
from mxsweep.config.value_types import as_names
from mxsweep.terminal.errors import ConfigError
from mxsweep.terminal.written_values import quoted

NOT_OF_RUNS = ("hydra", "stamp", "sweep")
# The types that hold what is below a group; a knob that none has a field for is in RunConfig.further.
PARTS: dict[str, Any] = {
    "format": FormatConfig,
    "kv_quant": KVConfig,
    "ptq": PTQConfig,
    "rotation": RotationConfig,
    "calibration": CalibrationConfig,
    "model": ModelConfig,
    "task": TaskConfig,
    "train": TrainConfig,
    "corpus": CorpusConfig,
    "init": InitConfig,
    "matmuls": MatmulsConfig,
}
ALIKE = ("scale_bits", "symmetric")  # knobs of the run that each of its formats has, of whatever tensor
KINDS = ("weight", "activation")


def from_hydra(cfg: DictConfig) -> RunConfig:
    """Return the typed config of what Hydra composed.

    Raises:
        ConfigError: with one sentence naming the field, the value and what is allowed.
    """
    data = _plain(cfg)
    check_values(data)
    data = {key: value for key, value in data.items() if not knobs.is_of_sweep(key)}
    rules = take_rules(data["format"])
    further = _take_further(data)
    folders, runtime = _folders(cfg), data["runtime"]
    set_by_user = {} if runtime == NO_RUNTIME else _set(cfg, data | further)
    refuse_rules(runtime, dict.fromkeys([*rules.changed(), *_typed(cfg, RULES)]))
    data = choose(runtime, data, set_by_user)
    explicit = {key: data.pop(key) for key in ("block_size", "scale", "tensor_scale")}
    run_format = resolve_format(data.pop("format"), explicit)
    chosen = OmegaConf.select(cfg, "hydra.runtime.choices.format")
    run_format = dataclasses.replace(run_format, name=format_name(run_format, folders, chosen))
    modules = resolve_modules(data.pop("modules"), run_format, explicit, folders)
    arithmetic, backend, ptq = data.pop("arithmetic"), data.pop("backend"), data.pop("ptq")
    candidates = resolve_candidates([str(name) for name in as_names(ptq["formats"])], run_format, explicit, folders)
    rotation = data.pop("rotation")
    train = TrainConfig(**_tupled(data.pop("train"), "betas"))
    alike = {leaf: data[leaf] for leaf in ALIKE}
    rounded = {kind: alike | rules.of(kind, data["rounding"], data["scale_rounding"]) for kind in KINDS}
    matmuls = resolve_matmuls(data.pop("matmuls"), train.trains, run_format, modules, explicit, rounded, folders)
    if backend == "auto":
        backend = "cuda" if data["custom_cuda"] else "torch"
    config = RunConfig(
        format=run_format,
        rules=rules,
        modules=modules,
        backend=backend,
        arithmetic="exact" if arithmetic == "auto" else arithmetic,
        kv_quant=resolve_kv(data.pop("kv_quant"), run_format),
        ptq=PTQConfig(**ptq | {"formats": candidates}),
        rotation=RotationConfig(**rotation | {"matmuls": as_names(rotation["matmuls"])}),
        calibration=CalibrationConfig(**data.pop("calibration")),
        model=ModelConfig(**data.pop("model")),
        task=resolve_task(data.pop("task")),
        train=train,
        corpus=CorpusConfig(**data.pop("corpus")),
        init=InitConfig(**data.pop("init")),
        matmuls=matmuls,
        recipe_name=_recipe_name(data.pop("recipe")["name"], cfg),
        further=further,
        **data,
    )
    refuse_contradictions(runtime, set_by_user, config.formats())
    has = {SHARED: config.has_tensor_scale("weight"), ACTIVATION: config.has_tensor_scale("activation")}
    if by_runtime := tensor_scales(runtime, has, set_by_user):
        config = dataclasses.replace(config, further=config.further | by_runtime)
    config = _with_arithmetic(config, _arithmetic(config, arithmetic))
    if config.trains:
        check_init(config.init, config.model, config.train.length)
        check_corpus(config.corpus, config.task)
        check_enough_text(config.corpus, config.init, config.train.length)
    if config.needs_calibration:
        config = dataclasses.replace(config, calibration=resolve_calibration(config.calibration, config.model))
        refuse_same_file(config.calibration, config.task)
    return config


def check_values(data: dict[str, Any]) -> None:
    """Check a run's values, nested as Hydra has them: every knob is there, no other, and each value can be its.

    Raises:
        ConfigError: ``+knob=`` added what there is no use for, ``~knob`` took away what every run needs, or a value is
            not allowed.
    """
    leaves = knobs.leaves_by_group()
    groups = sorted((group for group in leaves if group), key=lambda group: group.count("."))
    _check_keys("", data, {group for group in groups if "." not in group} | {knob.path for knob in leaves[""]})
    for group in groups:
        below = [knob.path for knob in leaves[group]] + [path for path in groups if path.startswith(f"{group}.")]
        names = {path.removeprefix(f"{group}.") for path in below}
        _check_keys(f"{group}.", _below(data, group), {name for name in names if "." not in name})
    for group in ("", *groups):
        values = _below(data, group)
        for knob in leaves[group]:
            if knob.scope is not Scope.SWEEP:
                knob.type.check(knob.path, values[knob.path.rpartition(".")[2]])


def _below(data: dict[str, Any], group: str) -> Any:
    """Return what stands below a group; groups come before those that are below them."""
    for name in group.split(".") if group else ():
        data = data[name]
    return data


def _tupled(data: dict[str, Any], key: str) -> dict[str, Any]:
    return data | {key: tuple(data[key])}


def plain_knobs(cfg: DictConfig) -> dict[str, Any]:
    """Return what was composed as plain data, references and missing values as they stand, but for Hydra's own."""
    items = cfg.items_ex(resolve=False, keys=[key for key in cfg if key != "hydra"])
    return {str(key): OmegaConf.to_container(node) if OmegaConf.is_config(node) else node for key, node in items}


def _plain(cfg: DictConfig) -> dict[str, Any]:
    data = {key: value for key, value in plain_knobs(cfg).items() if key not in NOT_OF_RUNS}
    if "${" not in (text := repr(data)) and "???" not in text:
        return data  # nothing is to be resolved
    return resolved(OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key not in NOT_OF_RUNS]))


def resolved(node: DictConfig) -> dict[str, Any]:
    """Return what a node of a config holds as plain data. Raises ConfigError for a reference that leads nowhere."""
    try:
        data = OmegaConf.to_container(node, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ConfigError(describe_omegaconf_error(error)) from None
    assert isinstance(data, dict)
    return {str(key): value for key, value in data.items()}


def _take_further(data: dict[str, Any]) -> dict[str, Any]:
    """Take the values out that no type has a field for; return them by path."""
    fields = {group: {field.name for field in dataclasses.fields(part)} for group, part in PARTS.items()}
    typed = {field.name for field in dataclasses.fields(RunConfig)} | {"block_size", "scale", "tensor_scale", "recipe"}
    further = {key: data.pop(key) for key in set(data) - typed}
    for group, names in fields.items():
        further |= {f"{group}.{leaf}": data[group].pop(leaf) for leaf in set(data[group]) - names}
    return {path: _as_whole(value) if path == ACTIVATION else value for path, value in sorted(further.items())}


def _as_whole(value: Any) -> Any:
    """Return a number without digits behind the point as a whole one: 2688.0 is 2688, and one run."""
    return int(value) if isinstance(value, float) and value.is_integer() and value < 2**53 else value


def _recipe_name(name: str, cfg: DictConfig) -> str:
    """Return the name of the recipe that was chosen, unless it was given another."""
    chosen = OmegaConf.select(cfg, "hydra.runtime.choices.recipe")
    return str(chosen or NO_RECIPE) if name == "auto" else name


def _folders(cfg: DictConfig) -> Sequence[Path]:
    """Return the folders of config groups that Hydra composed from: ``--config-dir``, then mxsweep's."""
    searched = OmegaConf.select(cfg, "hydra.searchpath") or []
    return [*(Path(str(path).removeprefix("file://")) for path in searched), conf_dir()]


def _set(cfg: DictConfig, data: dict[str, Any]) -> dict[str, Any]:
    """Return the values of the knobs that a runtime decides and that were set all the same."""
    typed, usual = _words(cfg), defaults()
    decided = (*OF_RUNTIMES, SHARED, ACTIVATION)
    return {knob: data[knob] for knob in decided if knob in typed or data[knob] != usual[knob]}


def _typed(cfg: DictConfig, rules: Iterable[str]) -> list[str]:
    """Return those of the rules below "format" that were typed."""
    return [rule for rule in rules if f"format.{rule}" in _words(cfg)]


def _words(cfg: DictConfig) -> set[str]:
    """Return the knobs that were typed."""
    words = [str(word) for word in OmegaConf.select(cfg, "hydra.overrides.task") or []]
    return {word.partition("=")[0].lstrip("+") for word in words}


def _arithmetic(config: RunConfig, asked: str) -> str:
    """Return the knob "arithmetic" as the runtime has it that the run predicts, "auto" for native where that is.

    Raises:
        ConfigError: another was asked for, it depends on a dtype that is not known, or the backend has no native.
    """
    runtime, dtype = config.predicts, config.model.loading_dtype
    if runtime is None or not runtime.arithmetic:
        return asked
    native = runtime.arithmetic == "by_dtype" and any(fmt.has_native_arithmetic for fmt in config.formats())
    if native and dtype == "auto":
        raise ConfigError(
            f"model.dtype: 'auto' does not say before {config.model.path} is loaded how runtime={runtime.name} "
            "computes, whose arithmetic depends on it; allowed with it: float32, bfloat16, float16"
        )
    computed = "native" if native and dtype == "float32" else "exact"
    if asked not in ("auto", computed):
        raise ConfigError(f"arithmetic: {asked!r} does not go with runtime={runtime.name}; allowed with it: {computed}")
    if computed == "native" and config.backend == "cuda":
        raise ConfigError(
            f"{config.backend_setting} computes exact arithmetic, and runtime={runtime.name} native in {dtype}; "
            "allowed with it: backend=torch, or model.dtype=bfloat16"
        )
    return "auto" if computed == "native" else "exact"


def _with_arithmetic(config: RunConfig, arithmetic: str) -> RunConfig:
    """Return the config with "auto" resolved: native where any tensor has it; the others are exact all the same.

    In float16 it is exact: native arithmetic takes 2^-126 for the largest value of a block of zeros, which is 0 in
    float16, and the block becomes NaN.
    """
    native = [fmt.has_native_arithmetic for fmt in config.formats()]
    if arithmetic == "native" and not all(native):
        without = next(fmt for fmt in config.formats() if not fmt.has_native_arithmetic)
        raise ConfigError(
            "arithmetic: 'native' is defined for e8m0 scales with scale_rounding=floor, symmetric blocks and no "
            f"stochastic rounding, and {without} is none such; allowed: auto, exact"
        )
    if arithmetic == "native" and config.model.loading_dtype == "float16":
        for fmt in config.formats():
            if (problem := fmt.native_float16_problem()) is not None:
                raise ConfigError(f"arithmetic: {problem}; allowed: auto, exact, or another model.dtype")
    if arithmetic == "auto" and config.backend != "cuda" and any(native) and config.model.loading_dtype != "float16":
        return dataclasses.replace(config, arithmetic="native")
    return config


def describe_omegaconf_error(error: OmegaConfBaseException) -> str:
    """Return OmegaConf's reason to refuse a value, as a reference that leads nowhere, behind the knob's name."""
    key = getattr(error, "full_key", None)
    reason = str(error).splitlines()[0].removeprefix("ConfigError raised while resolving interpolation: ")
    return f"{key}: {reason}" if key and not reason.startswith(f"{key}:") else reason


def _check_keys(prefix: str, given: Any, expected: set[str]) -> None:
    if not isinstance(given, dict):
        raise ConfigError(f"{prefix.rstrip('.')}: {quoted(given)} must hold {', '.join(sorted(expected))}")
    for key in given.keys() - expected:
        raise ConfigError(knobs.no_such_knob(f"{prefix}{key}"))
    for key in expected - given.keys():
        raise ConfigError(f"{prefix}{key}: was taken away; every run needs a value of it")
