"""Hold the typed values of one run, and derive the recipe, what is searched and what is calibrated.

Values and their defaults are in ``conf/``; what there is to say of each knob, its check too, in ``knob_table.py``.
Nothing here imports torch, so that a wrong word is answered at once.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from mxsweep.config.evaluated_recipe import evaluated
from mxsweep.config.format_config import FormatConfig, no_format
from mxsweep.config.kv_config import KVConfig
from mxsweep.config.matmul_config import MatmulsConfig
from mxsweep.config.model_config import ModelConfig
from mxsweep.config.remedy_config import CalibrationConfig, PTQConfig, RotationConfig
from mxsweep.config.rules_config import SEARCHED, RulesConfig, by_its_knob
from mxsweep.config.runtimes import RUNTIMES, UNQUANTIZED, Runtime
from mxsweep.config.stored_weights import Readings, formats_under, stored_formats
from mxsweep.config.task_config import TaskConfig
from mxsweep.config.train_config import CorpusConfig, InitConfig, TrainConfig
from mxsweep.config.train_knobs import NO_RECIPE, PLAIN_RECIPE
from mxsweep.config.weight_methods import ROUND_TO_NEAREST, Needs
from mxsweep.formats import MXFormat
from mxsweep.formats.recipe import (
    HADAMARD,
    LINEAR_MATMULS,
    MATMULS,
    OF_FUSED,
    QUERY_KEY,
    STATIC,
    WUSH,
    LinearFormats,
    Recipe,
    Rotation,
)
from mxsweep.formats.scale import SCALE_ROUNDINGS
from mxsweep.formats.training import TrainingRecipe
from mxsweep.terminal.errors import ConfigError
from mxsweep.terminal.written_values import written


@dataclass(frozen=True)
class RunParts:
    """Hold the typed values of one run, each final, and what follows from several of them.

    "auto" is left in ``model`` and ``batch_tokens`` only, whose answer depends on the device.

    Attributes:
        further: values of knobs that none of these types has a field for, by path.
    """

    format: FormatConfig
    runtime: str
    scale_bits: int
    custom_cuda: bool
    kv_quant: KVConfig
    limit: int | float | None
    model: ModelConfig
    task: TaskConfig
    train: TrainConfig
    corpus: CorpusConfig
    init: InitConfig
    matmuls: MatmulsConfig
    recipe_name: str
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

    rules: RulesConfig = field(default_factory=RulesConfig)
    further: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def recipe(self) -> Recipe:
        """Return the formats of every tensor, before any search. Raises ConfigError for a format that is none.

        Of a run that trains, those that the trained model is evaluated in: fprop's, as far as a recipe can say them
        (``not_evaluated`` has the rest).
        """
        if self.trains:
            return Recipe(
                linear=evaluated(self.matmuls.linear)[0],
                modules=tuple((pattern, evaluated(layer)[0]) for pattern, layer in self.matmuls.modules.items()),
                backend=self.backend,
                arithmetic=self.arithmetic,
                seed=self.seed,
            )
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
            shares_tensor_scales=self.further["format.share_tensor_scale"] == OF_FUSED,
            activation_scale=self._activation_scale,
        )
        named = self._named(recipe) if self.rotation.is_fixed else ()
        kind = self.rotation.method if named else HADAMARD
        if matmuls := rotatable(recipe, named + ((QUERY_KEY,) if self.kv_quant.is_rotated else ())):
            recipe = dataclasses.replace(recipe, rotation=Rotation(matmuls, self._rotation_block, kind))
        return recipe

    @property
    def predicts(self) -> Runtime | None:
        """Return the runtime by whose rules weights and inputs are quantized; None for the run's own."""
        return RUNTIMES.get(self.runtime)

    @property
    def trains(self) -> bool:
        """Return whether the run trains its model before it evaluates it."""
        return self.train.trains

    @cached_property
    def training_recipe(self) -> TrainingRecipe:
        """Return the formats of every product's operands while the model is trained; none where it is not."""
        return TrainingRecipe(
            linear=self.matmuls.linear,
            modules=tuple(self.matmuls.modules.items()),
            keep_high=self.matmuls.keep_high,
            backward=self.matmuls.backward,
            signs=self.matmuls.signs,
            backend=self.backend,
            arithmetic=self.arithmetic,
            seed=self.seed,
        )

    @property
    def recipe_label(self) -> str:
        """Return what tables call the formats of a training: the recipe that was chosen, or what was set by itself."""
        if self.training_recipe.is_plain:
            return PLAIN_RECIPE
        if self.recipe_name not in (NO_RECIPE, PLAIN_RECIPE):
            return self.recipe_name
        return f"{self.format.name}+matmuls" if self.matmuls.first_set else self.format.name

    @property
    def model_label(self) -> str:
        """Return what tables call the model: where a training began with random weights, by their sizes."""
        return self.init.label if self.trains and self.init.is_random else self.model.label

    @property
    def not_evaluated(self) -> list[str]:
        """Return what of fprop's formats the evaluation of the trained model leaves out, in a sentence each."""
        layers = (("", self.matmuls.linear), *self.matmuls.modules.items())
        left_out = [f"{pattern}: {text}" if pattern else text for pattern, one in layers for text in evaluated(one)[1]]
        return list(dict.fromkeys(left_out)) if self.trains else []

    @property
    def is_baseline(self) -> bool:
        """Return whether nothing at all is quantized, neither while training nor in the evaluation."""
        return self.recipe.is_baseline and self.training_recipe.is_plain

    def formats(self) -> list[MXFormat]:
        """Return every format that some tensor gets, in the training or in the evaluation, or that a search tries; each
        once.
        """
        layers = (self.matmuls.linear, *self.matmuls.modules.values())
        trained = [operand.fmt for layer in layers for _, operand in layer.operands() if operand is not None]
        tried = [fmt for name in self.scale_roundings for fmt in self.recipe.with_scale_rounding(name).formats()]
        return list(dict.fromkeys([*self.recipe.formats(), *trained, *tried]))

    @property
    def candidates(self) -> tuple[Rotation, ...]:
        """Return what a rotation search chooses among: rotations of one matrix product each."""
        if self.rotation.method != "search":
            return ()
        return tuple(Rotation((matmul,), self._rotation_block) for matmul in self.rotated_matmuls)

    @property
    def scale_roundings(self) -> tuple[str, ...]:
        """Return the roundings that a search of them chooses among, the one it begins with first; none where there is
        no scale that they make a difference to.
        """
        if self.scale_rounding != SEARCHED:
            return ()
        of_budget = self.budget_formats.values() if self.ptq.budget is not None else ()
        budgeted = [fmt for linear in of_budget for fmt in (linear.weight, linear.activation) if fmt is not None]
        formats = [*self.recipe.formats(), *budgeted]
        rounded = any(fmt.scale_format.is_power_of_two and not fmt.element_format.scale_rounding for fmt in formats)
        return SCALE_ROUNDINGS if rounded else ()

    @property
    def searches(self) -> bool:
        """Return whether rotations or the rounding of scales are searched."""
        return bool(self.candidates or self.scale_roundings)

    @property
    def judges(self) -> tuple[str, ...]:
        """Return whose weights a search judges by, in turn: "rtn", "clip" (searched scales), the run's own method."""
        if not self.quantizes_weights or not self.ptq.is_solved:
            return (ROUND_TO_NEAREST,)
        if self.ptq.needs is not Needs.HESSIAN:
            return ("clip",)
        return (self.ptq.method,) if self.rotation.judge == "ptq" else ("clip", self.ptq.method)

    @property
    def budget_formats(self) -> dict[str, LinearFormats]:
        """Return the formats that a budget is spent on, by name."""
        return {name: self._linear(f"ptq.formats[{name}]", formats) for name, formats in self.ptq.formats.items()}

    @property
    def backend_setting(self) -> str:
        """Return the knob that chose the backend, with its value, as a refusal names both."""
        by_custom_cuda = self.custom_cuda and self.backend == "cuda"
        return "custom_cuda: true" if by_custom_cuda else f"backend: {self.backend!r}"

    @property
    def _rotation_block(self) -> int:
        if isinstance(self.rotation_block, int):
            return self.rotation_block
        if not isinstance(self.format.block_size, int):
            raise ConfigError("rotation_block: 'mx' needs blocks in rows, and block_size is a tile; allowed: a number")
        return self.format.block_size

    @property
    def _activation_scale(self) -> str | float:
        scale = self.further["format.activation_scale"]
        return scale if isinstance(scale, str) else float(scale)

    @property
    def calibrates_inputs(self) -> bool:
        """Return whether per-tensor scales of inputs are worked out on calibration data."""
        return self.recipe.activation_scale == STATIC and self.has_tensor_scale("activation")

    def has_tensor_scale(self, kind: str) -> bool:
        """Return whether a weight, or an input (`kind` "activation"), has a per-tensor scale, or may be given one."""
        layers = [self.recipe.linear, *(formats for _, formats in self.recipe.modules)]
        layers += self.budget_formats.values() if self.ptq.budget is not None else ()
        return any(fmt is not None and fmt.tensor_scale for fmt in (getattr(layer, kind) for layer in layers))

    @property
    def transforms_inputs(self) -> bool:
        """Return whether inputs are multiplied by matrices of their own, which are worked out on calibration data."""
        return self.recipe.rotation is not None and self.recipe.rotation.kind == WUSH

    @property
    def needs_calibration(self) -> bool:
        """Return whether the run works something out on calibration data before it is quantized."""
        return (
            (self.quantizes_weights and self.ptq.needs_calibration)
            or self.recipe.kv.smooth > 0
            or self.searches
            or self.calibrates_inputs
            or self.transforms_inputs
        )

    @property
    def quantizes_weights(self) -> bool:
        """Return whether some weight gets a format, so that ``ptq`` has an effect."""
        layers = (self.recipe.linear, *(formats for _, formats in self.recipe.modules))
        return any(formats.weight is not None for formats in layers)

    @cached_property
    def _stored_formats(self) -> dict[str, Readings]:
        return stored_formats(self.model.path)

    def _linear(self, field: str, formats: FormatConfig) -> LinearFormats:
        linear = LinearFormats(
            weight=self._mx(f"{field}.weight", formats.weight, formats),
            activation=self._mx(f"{field}.activation", formats.activation, formats),
        )
        if self.predicts is None or linear == LinearFormats():
            return linear
        return self._as_computed(self.predicts, field, linear)

    def _as_computed(self, runtime: Runtime, field: str, linear: LinearFormats) -> LinearFormats:
        """Return the formats of a weight and its input by the rules of a runtime."""
        stored: list[Readings] = []
        if linear.weight is None and linear.activation is not None:
            pattern = field.removeprefix("modules[").removesuffix("]") if field.startswith("modules[") else None
            stored = formats_under(self._stored_formats, pattern, self.modules)
            for readings in stored:
                runtime.check_stored(field, readings, linear.activation)
        if not stored:
            elements = [UNQUANTIZED if fmt is None else fmt.element for fmt in (linear.weight, linear.activation)]
            runtime.check_pair(field, *elements)
        return LinearFormats(
            weight=linear.weight and runtime.compute("weight", f"{field}.weight", linear.weight),
            activation=linear.activation and runtime.compute("activation", f"{field}.activation", linear.activation),
        )

    def _mx(self, field: str, element: str, formats: FormatConfig) -> MXFormat | None:
        if element == "none":
            return None
        if isinstance(formats.block_size, tuple) and not field.endswith("weight"):
            raise ConfigError(
                f"block_size: {written(formats.block_size)} is a tile, which only weights can have, and {field} is "
                f"{element!r}; allowed with it: a whole number, or {field}=none"
            )
        kind = "weight" if field.endswith("weight") else "activation"
        try:
            return MXFormat(
                element=element,
                block_size=formats.block_size,
                scale=formats.scale,
                scale_bits=self.scale_bits,
                symmetric=self.symmetric,
                tensor_scale=formats.tensor_scale,
                **self.rules.of(kind, self.rounding, self.scale_rounding),
            )
        except ValueError as error:
            raise ConfigError(self._explain(field, element, formats, str(error))) from None

    def _explain(self, field: str, element: str, formats: FormatConfig, message: str) -> str:
        """Return a refusal of MXFormat under the knob that was set, where a field has another name or place there.

        Args:
            field: the knob of the element, as ``kv_quant.key``.
            element, formats: of the tensor.
        """
        group, run = field.rpartition(".")[0], self.format
        has_own_scale = (formats.scale, formats.tensor_scale) != (run.scale, run.tensor_scale)
        if group != "format" and (has_own_scale or {run.weight, run.activation} != {"none"}):
            # The run's own formats were made before this one, and go together: it is this group's scale that does not.
            message = re.sub(
                r"^four_over_six: true does not go with scale ('\w+'); allowed: scale ",
                rf"{group}.scale: \1 does not go with format.four_over_six=true; allowed: ",
                message,
            )
            message = re.sub(r"^(scale|tensor_scale):", rf"{group}.\1:", message)
        if message.startswith("element"):
            if field.startswith("format"):
                both = self.format.weight == self.format.activation
                return no_format("format" if both else field, "format", element, message)
            if field.startswith("kv_quant") and self.kv_quant.key == self.kv_quant.value:
                return no_format("kv_quant", "kv_quant", element, message)
        return re.sub(r"^element\b", field, by_its_knob(message))

    @property
    def rotated_matmuls(self) -> tuple[str, ...]:
        """Return the matrix products that ``rotation`` rotates, or that its search chooses among."""
        return self._named(self.recipe)

    def _named(self, recipe: Recipe) -> tuple[str, ...]:
        """Return the same, given the formats: of those named the ones with a quantized operand, for a search but those
        that are rotated anyway. WUSH is of linear layers: without any, it is no rotation.
        """
        if self.rotation.method == "none":
            return ()
        is_fixed = self.rotation.method == "search" and self.kv_quant.is_rotated
        asked = tuple(matmul for matmul in self.rotation.matmuls if not (is_fixed and matmul == QUERY_KEY))
        named = rotatable(recipe, asked)
        return () if self.rotation.method == WUSH and not {*named} & {*LINEAR_MATMULS} else named


def rotatable(recipe: Recipe, matmuls: tuple[str, ...]) -> tuple[str, ...]:
    """Return those of the matrix products of which something is quantized, in the order of MATMULS."""
    linear = any(formats != LinearFormats() for formats in (recipe.linear, *(one for _, one in recipe.modules)))
    touched = (LINEAR_MATMULS if linear else ()) + ((QUERY_KEY,) if recipe.key is not None else ())
    return tuple(matmul for matmul in MATMULS if matmul in touched and matmul in matmuls)
