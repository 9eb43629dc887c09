"""Declare what other runtimes compute: which formats they run, and by which rules. No torch.

A run under a preset (``runtime=NAME``) quantizes weights as the tool does that writes the runtime's checkpoints, and
inputs as the runtime does when it serves them, bit for bit; what the runtime cannot run is refused. The rules were
compared with the packages named here, on tensors of all kinds of values: docs/runtimes.md has the differences that are
left. A new runtime is one call of :func:`register_runtime`, with an option in ``conf/runtime/`` for the command line.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mxsweep.config.rules_config import OWN_RULES
from mxsweep.formats import MXFormat
from mxsweep.formats.backends import microxcaling_problem
from mxsweep.formats.recipe import OF_FUSED, STATIC
from mxsweep.formats.registry import Names
from mxsweep.formats.scale import DEFAULT_SCALE_BITS
from mxsweep.terminal.errors import ConfigError

NO_RUNTIME = "none"
UNQUANTIZED = "none"  # an input that stays as it is
OF_RUNTIMES = ("rounding", "scale_rounding")  # knobs, and fields of a format, that a runtime decides
SHARED, ACTIVATION = "format.share_tensor_scale", "format.activation_scale"  # and these, of per-tensor scales

Fields = Mapping[str, Any]


@dataclass(frozen=True)
class Computed:
    """Declare by which rules a runtime computes some formats.

    Attributes:
        elements: of the formats.
        weight, activation: fields of :class:`MXFormat`, by which each kind of tensor is computed. Where a field is not
            there the run's own knob holds, as of weights that any tool may have written. No activation: of weights
            alone.
        block_size, scale, tensor_scale: of the formats.
    """

    elements: tuple[str, ...]
    weight: Fields
    activation: Fields | None
    block_size: int = 32
    scale: str = "e8m0"
    tensor_scale: bool = False

    def holds(self, kind: str, fmt: MXFormat) -> bool:
        """Return whether a tensor's format is one of these."""
        if kind != "weight" and self.activation is None:
            return False
        same = fmt.element in self.elements and fmt.scale == self.scale and fmt.tensor_scale == self.tensor_scale
        plain = fmt.symmetric and fmt.scale_bits == DEFAULT_SCALE_BITS
        return same and plain and (fmt.block_size == self.block_size or self._repeats(kind, fmt))

    @property
    def blocks(self) -> tuple[int, str, bool]:
        """Return what the formats of a weight and its input have to agree in, to be multiplied."""
        return self.block_size, self.scale, self.tensor_scale

    def _repeats(self, kind: str, fmt: MXFormat) -> bool:
        """Return whether a weight's larger blocks are stored as blocks of this size, with scales that repeat."""
        columns = fmt.block_size if isinstance(fmt.block_size, int) else fmt.block_size[1]
        return kind == "weight" and self.scale == "e8m0" and columns > 0 and columns % self.block_size == 0

    def __str__(self) -> str:
        """Return the formats in words, for messages."""
        scale = f"{self.scale} scales" + (" under a tensor scale" if self.tensor_scale else "")
        of_weights = " (weights alone)" if self.activation is None else ""
        return f"{' or '.join(self.elements)} in blocks of {self.block_size} with {scale}{of_weights}"


@dataclass(frozen=True)
class Runtime:
    """Declare what a runtime computes.

    Attributes:
        name: as in ``runtime=NAME``.
        title: what it is called in sentences.
        computes: its formats.
        inputs: which elements (UNQUANTIZED for none) inputs may have, by the weight's element.
        choices: of knobs that the runtime leaves to its user, the values, its default first.
        arithmetic: "exact"; "by_dtype": native in float32, exact in 16 bits; "" for the run's.
        rotates: whether it multiplies inputs by Hadamard matrices before it quantizes them.
        tensor_scales: what the knobs SHARED and ACTIVATION are, of formats with a per-tensor scale; not there: the
            run's. A static scale of inputs may also be given, as a number.
    """

    name: str
    title: str
    computes: Sequence[Computed] = ()
    inputs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    choices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    arithmetic: str = "exact"
    rotates: bool = False
    tensor_scales: Mapping[str, str] = field(default_factory=dict)

    @property
    def phrase(self) -> str:
        """Return how a run under the preset is said to be computed."""
        return f"as {self.title} computes it"

    def compute(self, kind: str, name: str, fmt: MXFormat) -> MXFormat:
        """Return a format by the runtime's rules.

        Args:
            kind: "weight" or "activation".
            name: the knob that the format is of, for messages.

        Raises:
            ConfigError: the runtime does not compute the format.
        """
        computed = next((one for one in self.computes if one.holds(kind, fmt)), None)
        if computed is None:
            allowed = "; ".join(map(str, self.computes))
            raise ConfigError(f"{name}: {fmt} is nothing that runtime={self.name} computes; allowed with it: {allowed}")
        # The run's own rules have no say, also where another runtime than the run's is asked.
        fmt = dataclasses.replace(fmt, **OWN_RULES)
        fields = computed.weight if kind == "weight" else computed.activation
        assert fields is not None  # or it would not hold the format
        return dataclasses.replace(fmt, **fields)

    def check_pair(self, name: str, weight: str, activation: str) -> None:
        """Raise ConfigError for elements of a weight and its input that the runtime does not multiply."""
        if activation not in self.inputs.get(weight, ()):
            named = {UNQUANTIZED: "inputs as they are (format.activation=none)"}
            pairs = "; ".join(
                f"{of_weight} by {', '.join(named.get(one, one) for one in of_input)}"
                for of_weight, of_input in self.inputs.items()
            )
            raise ConfigError(
                f"{name}: weights in {weight} by inputs in {activation} is no product that runtime={self.name} "
                f"computes; allowed with it: weights in {pairs}"
            )

    def check_stored(self, name: str, stored: Sequence[MXFormat], activation: MXFormat) -> None:
        """Raise ConfigError for a weight's codes and an input's format that the runtime does not multiply.

        Args:
            name: the knob that the input's format is of, for messages.
            stored: the formats that codes and scales of the weight are of, one or more.
            activation: without the runtime's rules.
        """
        self.check_pair(name, stored[0].element, activation.element)
        of_input = {one.blocks for one in self.computes if one.holds("activation", activation)}
        of_weight = {one.blocks for one in self.computes for fmt in stored if one.holds("weight", fmt)}
        if not of_input & of_weight:
            allowed = "; ".join(str(one) for one in self.computes if one.activation is not None)
            raise ConfigError(
                f"{name}: weights stored as {' or '.join(map(str, stored))} by inputs in {activation} is no product "
                f"that runtime={self.name} computes; allowed with it: both with the blocks and scales of one of: "
                f"{allowed}"
            )


class _Microxcaling(Runtime):
    """Compute what Microsoft's library does, which has rules for every block size and few formats."""

    def compute(self, kind: str, name: str, fmt: MXFormat) -> MXFormat:
        problem = microxcaling_problem(fmt, "native")
        if problem is not None:
            raise ConfigError(f"{name}: {fmt} is nothing that runtime={self.name} computes: {problem}")
        return fmt

    def check_pair(self, name: str, weight: str, activation: str) -> None:
        """Accept any: each operand has a format of its own there."""

    def check_stored(self, name: str, stored: Sequence[MXFormat], activation: MXFormat) -> None:
        """Raise ConfigError for a weight's codes that are of no format of the library's."""
        self.compute("weight", f"{name}: stored weights", stored[0])


RUNTIMES: dict[str, Runtime] = {}
RUNTIME_NAMES = Names(lambda: {NO_RUNTIME: None, **RUNTIMES})


def register_runtime(runtime: Runtime) -> None:
    """Make a runtime known. Raises ValueError where another one has its name."""
    if RUNTIMES.setdefault(runtime.name, runtime) is not runtime:
        raise ValueError(f"runtime: {runtime.name!r} stands for another runtime already; allowed: a new name")


FP4, FP6, FP8, INT8 = ("fp4_e2m1",), ("fp6_e2m3", "fp6_e3m2"), ("fp8_e4m3",), ("int8",)
EVEN = {"rounding": "even", "scale_rounding": "even"}
EVEN1 = {"rounding": "even", "scale_rounding": "even1"}  # as of fp4_e2m1, whatever the element
EVEN8 = {"rounding": "even", "scale_rounding": "even8"}
RCEIL = {"rounding": "even", "scale_rounding": "rceil"}
FLOOR = {"rounding": "even", "scale_rounding": "floor"}
RCEIL_TO_ZERO = {"rounding": "ties_to_zero", "scale_rounding": "rceil"}
TO_EVEN = {"rounding": "even"}
DEPLOYED = {SHARED: OF_FUSED, ACTIVATION: STATIC}


def _with_itself(*elements: str, weights_alone: bool = True) -> dict[str, tuple[str, ...]]:
    """Return the products of each element with itself and, where they are computed, with inputs as they are."""
    return {element: (UNQUANTIZED,) * weights_alone + (element,) for element in elements}


def _nvfp4(
    weight: str, activation: str, tensor_scale: bool = True, block_size: int = 16, scale: str = "e4m3"
) -> Computed:
    """Return NVFP4, or its kin, by the rules of these names, see :mod:`mxsweep.formats.scale_rules`."""
    of_weight, of_input = ({"rounding": "even", "scale_rule": rule} for rule in (weight, activation))
    return Computed(FP4, of_weight, of_input, block_size, scale, tensor_scale)


def _compressed_tensors(*, mxfp6: tuple[str, ...]) -> tuple[Computed, ...]:
    """Return what compressed-tensors 0.20 computes: MXFP4 and MXFP6 in "even" scales, MXFP8 in MXFP4's, NVFP4."""
    nvfp4 = _nvfp4("compressed_tensors", "compressed_tensors")
    return Computed((*FP4, *mxfp6), EVEN, EVEN), Computed(FP8, EVEN1, EVEN1), nvfp4


# llm-compressor 0.14, which quantizes by compressed-tensors; MXFP6 with inputs in MXFP8 was measured as well.
_OF_COMPRESSED_TENSORS = _with_itself(*FP4, "fp6_e2m3", *FP8) | {"fp6_e2m3": (UNQUANTIZED, "fp6_e2m3", *FP8)}
# Its MX formats have one kind of scale, so that every element may meet every other.
_OF_QUARK = dict.fromkeys((*FP4, *FP6, *FP8, *INT8), (UNQUANTIZED, *FP4, *FP6, *FP8, *INT8))
_WITHOUT_FLOOR = {"rounding": "even", "scale_floor": "none"}
_OF_AUTO_ROUND = (*FP4, *FP6, *FP8, "int8", "int4")

register_runtime(
    # Of checkpoints by llm-compressor (MXFP4, MXFP8, NVFP4), or by Quark (MXFP4, MXFP6), which agree in their MX rules.
    # MXFP8 as GPUs before Blackwell multiply by it, with inputs as they are; the kernel that quantizes inputs on a
    # Blackwell GPU (FlashInfer's) was compared with nothing.
    Runtime(
        "vllm",
        "vLLM",
        (Computed((*FP4, *FP6), EVEN, EVEN), Computed(FP8, EVEN1, None), _nvfp4("compressed_tensors", "vllm")),
        _with_itself(*FP4, *FP6) | {"fp4_e2m1": (UNQUANTIZED, *FP4, *FP6), "fp8_e4m3": (UNQUANTIZED,)},
        rotates=True,
        tensor_scales=DEPLOYED,
    )
)
register_runtime(
    # Of a compressed-tensors checkpoint. Weights in integers may come from any tool, whose rules the run's knobs are.
    Runtime(
        "transformers",
        "transformers (compressed-tensors)",
        (*_compressed_tensors(mxfp6=("fp6_e2m3",)), Computed(("int8", "int4"), {}, None)),
        _OF_COMPRESSED_TENSORS | {"int8": (UNQUANTIZED,), "int4": (UNQUANTIZED,)},
        tensor_scales=DEPLOYED,
    )
)
register_runtime(
    Runtime(
        "llm_compressor",
        "llm-compressor",
        _compressed_tensors(mxfp6=("fp6_e2m3",)),
        _OF_COMPRESSED_TENSORS,
        rotates=True,
        tensor_scales=DEPLOYED,
    )
)
register_runtime(
    Runtime(
        "quark",
        "Quark",
        (
            Computed((*FP4, *FP6, *FP8), EVEN, EVEN),
            Computed(INT8, EVEN8, EVEN8),
            _nvfp4("quark", "quark"),
            *(_nvfp4("quark", "quark", block_size=size, scale="e5m3") for size in (16, 32)),  # amdfp4_global16, 32
        ),
        _OF_QUARK,
        tensor_scales={ACTIVATION: STATIC},
    )
)
register_runtime(
    Runtime(
        "torchao",
        "torchao",
        # Of NVFP4's two kinds, that of one level: of the other the scale of inputs is of all tokens in a batch.
        (Computed((*FP4, *FP6, *FP8), TO_EVEN, TO_EVEN), _nvfp4("torchao", "torchao", tensor_scale=False)),
        _with_itself(*FP4, *FP6, *FP8, weights_alone=False),
        {"scale_rounding": ("rceil", "floor", "even", "ceil")},  # its ScaleCalculationMode
    )
)
register_runtime(
    Runtime(
        "modelopt",
        "ModelOpt",
        # Inputs in MXFP4 it quantizes on a GPU alone, by a kernel that was compared with nothing.
        (Computed(FP8, RCEIL, RCEIL), Computed(FP4, RCEIL_TO_ZERO, None), _nvfp4("modelopt", "modelopt")),
        _with_itself(*FP8, *FP4),
        tensor_scales={ACTIVATION: STATIC},
    )
)
register_runtime(
    Runtime(
        "auto_round",
        "AutoRound",
        (
            Computed(_OF_AUTO_ROUND, FLOOR, FLOOR),
            Computed(FP4, _WITHOUT_FLOOR, _WITHOUT_FLOOR, block_size=16, scale="e5m3"),
            _nvfp4("auto_round", "auto_round"),
        ),
        dict.fromkeys(_OF_AUTO_ROUND, (UNQUANTIZED, *_OF_AUTO_ROUND)),
        arithmetic="by_dtype",
        tensor_scales=DEPLOYED,
    )
)
register_runtime(
    # What llama-quantize makes of weights; inputs become 8-bit integers under float16 scales, which is no format here.
    Runtime(
        "llama_cpp",
        "llama.cpp",
        (Computed(FP4, {"rounding": "ties_to_zero", "scale_rounding": "floor"}, None),),
        {"fp4_e2m1": (UNQUANTIZED,)},
    )
)
register_runtime(
    _Microxcaling("microxcaling", "microxcaling", choices={"rounding": ("nearest", "even", "floor")}, arithmetic="")
)
