"""The typed configuration of one run, and every check on it.

``from_hydra`` turns what Hydra composed into a :class:`RunConfig`, once, at the door; nothing behind it sees a
DictConfig. The values live in ``conf/``; here are their types and what is allowed. Nothing here imports torch, so that
a wrong word is answered at once.
"""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mxsweep.config.calibration_data import calibration_identity, refuse_same_file, resolve_calibration
from mxsweep.config.candidates import resolve_candidates
from mxsweep.config.checks import (
    check_choice,
    check_flag,
    check_integer,
    check_limit,
    file_digest,
)
from mxsweep.config.format_config import FormatConfig, resolve_format, resolve_modules
from mxsweep.config.knobs import groups, is_of_sweep, leaves, no_such_knob
from mxsweep.config.kv_config import KVConfig, resolve_kv
from mxsweep.config.model_config import ModelConfig
from mxsweep.config.option_files import option_names
from mxsweep.config.remedy_config import CalibrationConfig, PTQConfig, RotationConfig, as_names, check_rotation_block
from mxsweep.config.task_config import TaskConfig, resolve_task
from mxsweep.config.weight_methods import ROUND_TO_NEAREST, Needs
from mxsweep.files.digests import json_digest
from mxsweep.formats import (
    ARITHMETICS,
    BACKENDS,
    NUMERICS_VERSION,
    ROUNDINGS,
    SCALE_ROUNDINGS,
    MXFormat,
    microxcaling_problem,
)
from mxsweep.formats.recipe import (
    LINEAR_MATMULS,
    MATMULS,
    QUERY_KEY,
    KVOptions,
    LinearFormats,
    Recipe,
    Rotation,
)
from mxsweep.machine.gpus import device_type
from mxsweep.terminal.errors import ConfigError

# Of the remedies' answers (calibration, searched scales, GPTQ, rotations): raised whenever any of them changes. It is
# part of the hash of every run that has one, and of the key of everything that is cached of them.
REMEDIES_VERSION = 1
MOST_NOISE = 100  # further evaluations of a run


@dataclass(frozen=True)
class RunConfig:
    """Everything that one run does. Built by :func:`from_hydra`; every value is final.

    "auto" is left in ``model`` and ``batch_tokens`` only, whose answer depends on the device.
    """

    format: FormatConfig
    scale_bits: int
    custom_cuda: bool
    kv_quant: KVConfig
    limit: int | float | None
    model: ModelConfig
    task: TaskConfig
    modules: dict[str, FormatConfig]
    ptq: PTQConfig
    rotation: RotationConfig
    rotation_block: int | str
    calibration: CalibrationConfig
    rounding: str
    scale_rounding: str
    symmetric: bool
    backend: str
    arithmetic: str
    batch_tokens: int | Literal["auto"]
    batch_size: int
    seed: int
    diagnostics: bool
    noise: int

    def __post_init__(self) -> None:
        check_flag("custom_cuda", self.custom_cuda)
        check_integer("scale_bits", self.scale_bits, 2, 8, "2 to 8")
        check_choice("rounding", self.rounding, ROUNDINGS)
        check_choice("scale_rounding", self.scale_rounding, SCALE_ROUNDINGS)
        check_flag("symmetric", self.symmetric)
        check_choice("backend", self.backend, BACKENDS)
        check_choice("arithmetic", self.arithmetic, ARITHMETICS)
        if self.batch_tokens != "auto":
            check_integer(
                "batch_tokens",
                self.batch_tokens,
                1,
                None,
                "auto, or a whole number of tokens a forward pass, at least 1",
            )
        check_integer(
            "batch_size", self.batch_size, 1, None, "a whole number of sequences at a time when generating, at least 1"
        )
        check_integer("seed", self.seed, 0, 2**32 - 1, "0 to 2^32 - 1")
        check_rotation_block(self.rotation_block)
        check_flag("diagnostics", self.diagnostics)
        check_integer("noise", self.noise, 0, MOST_NOISE, f"0 to {MOST_NOISE} further evaluations")
        check_limit("limit", self.limit)
        _check_combination(self)

    @cached_property
    def recipe(self) -> Recipe:
        """The formats of every tensor, before anything is searched. Raises ConfigError where one cannot be had."""
        kv = dataclasses.replace(
            self.format,
            block_size=self.kv_quant.block_size,
            scale=self.kv_quant.scale,
            tensor_scale=self.kv_quant.tensor_scale,
        )
        recipe = Recipe(
            linear=self._linear("format", self.format),
            key=self._mx("kv_quant.key", self.kv_quant.key, kv),
            value=self._mx("kv_quant.value", self.kv_quant.value, kv),
            kv=self.kv_quant.options,
            modules=tuple((pattern, self._linear(f"modules[{pattern}]", f)) for pattern, f in self.modules.items()),
            backend=self.backend,
            arithmetic=self.arithmetic,
            seed=self.seed,
        )
        if self.rotation.method == "hadamard" and (matmuls := rotatable(recipe, self.rotation.matmuls)):
            recipe = dataclasses.replace(recipe, rotation=Rotation(matmuls, self._rotation_block))
        return recipe

    @property
    def candidates(self) -> tuple[Rotation, ...]:
        """What a rotation search chooses among: the rotation of each matrix product that quantization touches."""
        if self.rotation.method != "search":
            return ()
        matmuls = rotatable(self.recipe, self.rotation.matmuls)
        return tuple(Rotation((matmul,), self._rotation_block) for matmul in matmuls)

    @property
    def judge(self) -> str:
        """What weights a rotation search judges by: "rtn", on searched scales ("clip"), or by the run's own method."""
        if not self.quantizes_weights or not self.ptq.is_solved:
            return ROUND_TO_NEAREST
        own = self.rotation.judge == "ptq" and self.ptq.needs is Needs.HESSIAN
        return self.ptq.method if own else "clip"

    @property
    def budget_formats(self) -> dict[str, LinearFormats]:
        """The formats that a budget is spent on, by name."""
        return {name: self._linear(f"ptq.formats[{name}]", own) for name, own in self.ptq.formats.items()}

    @property
    def _rotation_block(self) -> int:
        if isinstance(self.rotation_block, int):
            return self.rotation_block
        if not isinstance(self.format.block_size, int):
            raise ConfigError("rotation_block: 'mx' needs blocks in rows, and block_size is a tile; allowed: a number")
        return self.format.block_size

    @property
    def needs_calibration(self) -> bool:
        """Whether the run works something out on calibration data before it is quantized."""
        return (
            (self.quantizes_weights and self.ptq.needs_calibration)
            or self.recipe.kv.smooth > 0
            or bool(self.candidates)
        )

    @property
    def quantizes_weights(self) -> bool:
        """Whether some weight gets a format, so that ``ptq`` has an effect."""
        layers = (self.recipe.linear, *(own for _, own in self.recipe.modules))
        return any(formats.weight is not None for formats in layers)

    def _linear(self, field: str, formats: FormatConfig) -> LinearFormats:
        return LinearFormats(
            weight=self._mx(f"{field}.weight", formats.weight, formats),
            activation=self._mx(f"{field}.activation", formats.activation, formats),
        )

    def _mx(self, field: str, element: str, formats: FormatConfig) -> MXFormat | None:
        if element == "none":
            return None
        if isinstance(formats.block_size, tuple) and not field.endswith("weight"):
            raise ConfigError(
                f"block_size: {list(formats.block_size)} is a tile, which only weights can have, and {field} is "
                f"{element!r}; allowed with it: a whole number, or {field}=none"
            )
        try:
            return MXFormat(
                element=element,
                block_size=formats.block_size,
                scale=formats.scale,
                scale_bits=self.scale_bits,
                rounding=self.rounding,
                scale_rounding=self.scale_rounding,
                symmetric=self.symmetric,
                tensor_scale=formats.tensor_scale,
            )
        except ValueError as error:
            raise ConfigError(self._explain(field, element, str(error))) from None

    def _explain(self, field: str, element: str, message: str) -> str:
        """MXFormat calls the field ``element``; the user set it under another name, or both at once by a format's."""
        if message.startswith("element") and field.startswith("format"):
            both = self.format.weight == self.format.activation
            names = ", ".join(option_names("format"))
            rest = message.partition("allowed: ")[2]
            return f"{'format' if both else field}: {element!r} is no format; allowed: {names}; or an element: {rest}"
        return re.sub(r"^element\b", field, message)

    @cached_property
    def config_hash(self) -> str:
        """Return the SHA-256 (hex) of the run's identity. Raises ConfigError as that does."""
        return json_digest(self.identity)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Return what determines the result: formats, not knobs, so that equal runs have equal identities; plain data.

        It is part of the record, so that results are compared by what was evaluated, not by names (see
        `mxsweep.results.identity`, which knows its parts). Nothing without an effect is in it: no path, device index,
        batch or label; of a baseline, no knob of formats.

        Raises:
            ConfigError: a file of the model or of the data vanished or cannot be read.
        """
        model, task = self.model, self.task
        what = {
            "model": model.identity(),
            "attention": model.attention,
            "max_length": model.max_length,
            # Spread over GPUs; where it is planned, as on a cluster's login node, there may be none.
            "device": "cuda" if model.device_map else device_type(model.device),
            "task": [task.names, task.num_fewshot, task.apply_chat_template],
            "data": {name: file_digest(file) for name, file in task.data.items()},
            "limit": self.limit,
            "quantized": None if self.recipe.is_baseline else self._quantized_identity() | self._remedies_identity(),
            "seed": self.seed,  # of few-shot choice too, and how many a task takes by itself is not known here
        }
        # What a run leaves besides its metrics; in the hash only where it is asked for.
        if self.diagnostics and not self.recipe.is_baseline:
            what["diagnostics"] = True
        if self.noise:
            what["noise"] = self.noise
        return json.loads(json.dumps(what))

    def _quantized_identity(self) -> dict[str, Any]:
        recipe = self.recipe
        layers = (("", recipe.linear), *recipe.modules)  # no module has the name ""
        return {
            "layers": [[name, _identity(formats.weight), _identity(formats.activation)] for name, formats in layers],
            "kv": [_identity(recipe.key), _identity(recipe.value)],
            "computed": [recipe.backend, recipe.arithmetic, NUMERICS_VERSION],
        }

    def _remedies_identity(self) -> dict[str, Any]:
        """Of remedies; empty where there are none, so that the hashes of runs without any stay as they are."""
        recipe = self.recipe
        what: dict[str, Any] = {}
        if recipe.kv != KVOptions():
            what["kv_options"] = dataclasses.asdict(recipe.kv)
        if recipe.rotation is not None:
            what["rotation"] = dataclasses.asdict(recipe.rotation)
        if self.candidates:
            what["rotation_search"] = [dataclasses.asdict(candidate) for candidate in self.candidates]
            what["rotation_judge"] = self.judge
        if self.rotation.residual:
            what["residual"] = True
        if self.quantizes_weights and self.ptq.as_dict() != {"method": "rtn"}:
            what["ptq"] = self.ptq.as_dict()
            if self.ptq.budget is not None:
                named = self.budget_formats.items()
                what["ptq"]["formats"] = [
                    [name, _identity(own.weight), _identity(own.activation)] for name, own in named
                ]
        if self.needs_calibration:
            what["calibration"] = calibration_identity(self.calibration)
        return what | ({"remedies": REMEDIES_VERSION} if what else {})

    def run_id(self, stamp: str) -> str:
        """Such as ``20260207_220640_bs16_sb6_ccfalse_3fa91c04``: when, the habitual knobs, the hash's beginning."""
        size = self.format.block_size
        block = "x".join(map(str, size)) if isinstance(size, tuple) else size
        return f"{stamp}_bs{block}_sb{self.scale_bits}_cc{str(self.custom_cuda).lower()}_{self.config_hash[:8]}"

    def as_dict(self) -> dict[str, Any]:
        """For the record: nested, JSON-able, with the labels that tables use as ``name``."""
        data = dataclasses.asdict(self)
        own = data.pop("format")
        data["kv_quant"] = self.kv_quant.as_dict(self.format)
        data |= self._remedies_as_dict()
        data["model"]["name"] = self.model.label
        data["task"] = {"name": self.task.name, **data["task"]}
        data["task"].pop("fields")
        # The run's block size and scale are knobs of the run; they live at the top as they do in conf/.
        data = {
            "format": {"name": self.format.name, "weight": own["weight"], "activation": own["activation"]},
            **{knob: own[knob] for knob in ("block_size", "scale", "tensor_scale")},
            **data,
        }
        return json.loads(json.dumps(data))

    def _remedies_as_dict(self) -> dict[str, Any]:
        """What has an effect: tables show a knob that is there, and none that could as well be anything."""
        data: dict[str, Any] = {"ptq": self.ptq.as_dict() if self.quantizes_weights else {"method": "rtn"}}
        matmuls = rotatable(self.recipe, self.rotation.matmuls) if self.rotation.method != "none" else ()
        data["rotation"] = {"method": self.rotation.method if matmuls else "none"}
        data["rotation_block"] = self.rotation_block if matmuls else None
        if matmuls:
            data["rotation"]["matmuls"] = "+".join(matmuls)
        if self.candidates and self.judge not in (ROUND_TO_NEAREST, "clip"):
            data["rotation"]["judge"] = self.rotation.judge
        if self.rotation.residual:
            data["rotation"]["residual"] = True
        data["calibration"] = dataclasses.asdict(self.calibration) if self.needs_calibration else None
        return data


def rotatable(recipe: Recipe, matmuls: tuple[str, ...]) -> tuple[str, ...]:
    """Those of the matrix products of which something is quantized, in the order of MATMULS."""
    linear = any(formats != LinearFormats() for formats in (recipe.linear, *(own for _, own in recipe.modules)))
    touched = (LINEAR_MATMULS if linear else ()) + ((QUERY_KEY,) if recipe.key is not None else ())
    return tuple(matmul for matmul in MATMULS if matmul in touched and matmul in matmuls)


def _identity(fmt: MXFormat | None) -> str | None:
    """One text for formats whose answers are the same, beyond what MXFormat makes equal by itself."""
    if fmt is None:
        return None
    if fmt.scale_rounding == "rceil" and fmt.element_format.mantissa_bits == 0:
        fmt = dataclasses.replace(fmt, scale_rounding="ceil")  # they differ where the largest is no power of two
    if isinstance(fmt.block_size, tuple) and fmt.block_size[0] == 1:
        fmt = dataclasses.replace(fmt, block_size=fmt.block_size[1])  # only weights have tiles, and blocks in rows
    return str(fmt)


def from_hydra(cfg: DictConfig) -> RunConfig:
    """The typed config of what Hydra composed.

    Raises:
        ConfigError: with one sentence naming the field, the value and what is allowed.
    """
    try:
        data = OmegaConf.to_container(
            OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key not in ("hydra", "stamp", "sweep")]),
            resolve=True,
            throw_on_missing=True,
        )
    except OmegaConfBaseException as error:
        raise ConfigError(of_omegaconf(error)) from None
    assert isinstance(data, dict)
    knobs: dict[str, Any] = {str(key): value for key, value in data.items()}
    _check_keys("", knobs, {*groups(), *(knob.path for knob in leaves())})
    for group in groups():
        _check_keys(f"{group}.", knobs[group], {knob.path.removeprefix(f"{group}.") for knob in leaves(group)})
    knobs = {key: value for key, value in knobs.items() if not is_of_sweep(key)}
    explicit = {key: knobs.pop(key) for key in ("block_size", "scale", "tensor_scale")}
    run_format = resolve_format(knobs.pop("format"), explicit)
    modules = resolve_modules(knobs.pop("modules"), run_format, explicit)
    arithmetic, backend = knobs.pop("arithmetic"), knobs.pop("backend")
    if backend == "auto":
        backend = "cuda" if knobs["custom_cuda"] is True else "torch"
    config = RunConfig(
        format=run_format,
        modules=modules,
        backend=backend,
        arithmetic="exact" if arithmetic == "auto" else arithmetic,
        kv_quant=resolve_kv(knobs.pop("kv_quant"), run_format),
        ptq=_ptq(knobs.pop("ptq"), run_format, explicit),
        rotation=_rotation(knobs.pop("rotation")),
        calibration=CalibrationConfig(**knobs.pop("calibration")),
        model=ModelConfig(**knobs.pop("model")),
        task=resolve_task(knobs.pop("task")),
        **knobs,
    )
    config = _with_arithmetic(config, arithmetic)
    if config.needs_calibration:
        config = dataclasses.replace(config, calibration=resolve_calibration(config.calibration, config.model))
        refuse_same_file(config.calibration, config.task)
    return config


def _with_arithmetic(config: RunConfig, asked: str) -> RunConfig:
    """The config with "auto" resolved: native where any tensor has it; one that has none is exact all the same."""
    native = [fmt.has_native_arithmetic for fmt in config.recipe.formats()]
    if asked == "native" and not all(native):
        without = next(fmt for fmt in config.recipe.formats() if not fmt.has_native_arithmetic)
        raise ConfigError(
            "arithmetic: 'native' is defined for e8m0 scales with scale_rounding=floor, symmetric blocks and no "
            f"stochastic rounding, and {without} is none such; allowed: auto, exact"
        )
    if asked == "auto" and config.backend != "cuda" and any(native):
        return dataclasses.replace(config, arithmetic="native")
    return config


def of_omegaconf(error: OmegaConfBaseException) -> str:
    """What OmegaConf has to say of a value, as a reference that leads nowhere, behind the knob's name."""
    key = getattr(error, "full_key", None)
    reason = str(error).splitlines()[0]
    return f"{key}: {reason}" if key and not reason.startswith(f"{key}:") else reason


def _check_keys(prefix: str, given: Any, expected: set[str]) -> None:
    """``+knob=`` adds what there is no use for, ``~knob`` takes away what every run needs."""
    if not isinstance(given, dict):
        raise ConfigError(f"{prefix.rstrip('.')}: {given!r} must hold {', '.join(sorted(expected))}")
    for key in given.keys() - expected:
        raise ConfigError(no_such_knob(f"{prefix}{key}"))
    for key in expected - given.keys():
        raise ConfigError(f"{prefix}{key}: was taken away; every run needs a value of it")


def _ptq(knobs: dict[str, Any], run: FormatConfig, explicit: dict[str, Any]) -> PTQConfig:
    names = as_names(knobs["formats"])
    return PTQConfig(**knobs | {"formats": resolve_candidates([str(name) for name in names], run, explicit)})


def _rotation(knobs: dict[str, Any]) -> RotationConfig:
    matmuls = as_names(knobs["matmuls"])
    return RotationConfig(**knobs | {"matmuls": matmuls})


def _check_budget(config: RunConfig, budget: float) -> None:
    """What can be said of a budget before the shapes are known; modules with formats of their own count, too."""
    bits = [own.weight.bits_per_element for own in config.budget_formats.values() if own.weight is not None]
    if not config.modules and budget < min(bits):
        raise ConfigError(
            f"ptq.budget: {budget:g} bits a weight cannot be kept with ptq.formats {', '.join(config.ptq.formats)}; "
            f"allowed: from {min(bits):g}, which is the least they take, to {max(bits):g}, the most"
        )


def _check_combination(config: RunConfig) -> None:
    """What cannot go together, though each value alone is fine."""
    if config.ptq.budget is not None:
        if not config.quantizes_weights:
            raise ConfigError(
                f"ptq.budget: {config.ptq.budget:g} is for the weights, and format={config.format.name} leaves them as "
                "they are; allowed with it: null"
            )
        _check_budget(config, config.ptq.budget)
    if config.quantizes_weights and config.ptq.is_solved and config.rounding == "stochastic":
        raise ConfigError(
            f"rounding: 'stochastic' does not go with ptq={config.ptq.method}, which chooses each weight's value; "
            "allowed: nearest, even, floor"
        )
    for fmt in config.recipe.formats():
        problem = microxcaling_problem(fmt, config.arithmetic) if config.backend == "microxcaling" else None
        if problem is not None:
            raise ConfigError(f"{problem.replace('backend ', 'backend: ', 1)} (asked for {fmt})")
    if config.backend == "cuda" and config.model.device in ("cpu", "mps") and not config.recipe.is_baseline:
        asked = "custom_cuda: true" if config.custom_cuda else "backend: 'cuda'"
        raise ConfigError(f"{asked} needs a GPU, and model.device is {config.model.device!r}; allowed: auto, cuda")
    if config.backend == "cuda" and config.arithmetic == "native":
        raise ConfigError("arithmetic: 'native' is not what the CUDA kernels compute; allowed: auto, exact")
