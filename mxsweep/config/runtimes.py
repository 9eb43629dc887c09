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

from mxsweep.formats import MXFormat
from mxsweep.formats.backends import microxcaling_problem
from mxsweep.formats.registry import Names
from mxsweep.formats.scale import DEFAULT_SCALE_BITS
from mxsweep.terminal.errors import ConfigError

NO_RUNTIME = "none"
UNQUANTIZED = "none"  # an input that stays as it is
OF_RUNTIMES = ("rounding", "scale_rounding")  # knobs, and fields of a format, that a runtime decides

Fields = Mapping[str, Any]


@dataclass(frozen=True)
class Computed:
    """Declare by which rules a runtime computes some formats.

    Attributes:
        elements: of the formats.
        weight, activation: fields of :class:`MXFormat`, by which each kind of tensor is computed. Where a field is not
            there the run's own knob holds, as of weights that any tool may have written.
        block_size, scale, tensor_scale: of the formats.
    """

    elements: tuple[str, ...]
    weight: Fields
    activation: Fields
    block_size: int = 32
    scale: str = "e8m0"
    tensor_scale: bool = False

    def holds(self, kind: str, fmt: MXFormat) -> bool:
        """Return whether a tensor's format is one of these."""
        same = fmt.element in self.elements and fmt.scale == self.scale and fmt.tensor_scale == self.tensor_scale
        plain = fmt.symmetric and fmt.scale_bits == DEFAULT_SCALE_BITS
        return same and plain and (fmt.block_size == self.block_size or self._repeats(kind, fmt))

    def _repeats(self, kind: str, fmt: MXFormat) -> bool:
        """Return whether a weight's larger blocks are stored as blocks of this size, with scales that repeat."""
        columns = fmt.block_size if isinstance(fmt.block_size, int) else fmt.block_size[1]
        return kind == "weight" and self.scale == "e8m0" and columns > 0 and columns % self.block_size == 0

    def __str__(self) -> str:
        """Return the formats in words, for messages."""
        scale = f"{self.scale} scales" + (" under a tensor scale" if self.tensor_scale else "")
        return f"{' or '.join(self.elements)} in blocks of {self.block_size} with {scale}"


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
    """

    name: str
    title: str
    computes: Sequence[Computed] = ()
    inputs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    choices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    arithmetic: str = "exact"
    rotates: bool = False

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
        return dataclasses.replace(fmt, **(computed.weight if kind == "weight" else computed.activation))

    def check_pair(self, name: str, weight: str, activation: str) -> None:
        """Raise ConfigError for elements of a weight and its input that the runtime does not multiply."""
        if activation not in self.inputs.get(weight, ()):
            pairs = "; ".join(f"{of_weight} by {', '.join(of_input)}" for of_weight, of_input in self.inputs.items())
            raise ConfigError(
                f"{name}: weights in {weight} by inputs in {activation} is no product that runtime={self.name} "
                f"computes; allowed with it: weights in {pairs}"
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


RUNTIMES: dict[str, Runtime] = {}
RUNTIME_NAMES = Names(lambda: {NO_RUNTIME: None, **RUNTIMES})


def register_runtime(runtime: Runtime) -> None:
    """Make a runtime known. Raises ValueError where another one has its name."""
    if RUNTIMES.setdefault(runtime.name, runtime) is not runtime:
        raise ValueError(f"runtime: {runtime.name!r} stands for another runtime already; allowed: a new name")


FP4, FP6, FP8 = ("fp4_e2m1",), ("fp6_e2m3", "fp6_e3m2"), ("fp8_e4m3",)
EVEN = {"rounding": "even", "scale_rounding": "even"}
RCEIL = {"rounding": "even", "scale_rounding": "rceil"}
FLOOR = {"rounding": "even", "scale_rounding": "floor"}
TO_EVEN = {"rounding": "even"}


def _with_itself(*elements: str, weights_alone: bool = True) -> dict[str, tuple[str, ...]]:
    """Return the products of each element with itself and, where they are computed, with inputs as they are."""
    return {element: (UNQUANTIZED,) * weights_alone + (element,) for element in elements}


def _compressed_tensors(*, mxfp6: tuple[str, ...]) -> tuple[Computed, ...]:
    """Return what compressed-tensors 0.20 computes: MXFP4 and MXFP6 in "even" scales, MXFP8 in "rceil" ones."""
    return Computed((*FP4, *mxfp6), EVEN, EVEN), Computed(FP8, RCEIL, RCEIL)


# llm-compressor 0.14, which quantizes by compressed-tensors; MXFP6 with inputs in MXFP8 was measured as well.
_OF_COMPRESSED_TENSORS = _with_itself(*FP4, "fp6_e2m3", *FP8) | {"fp6_e2m3": (UNQUANTIZED, "fp6_e2m3", *FP8)}
# Its MX formats have one kind of scale, so that every element may meet every other.
_OF_QUARK = dict.fromkeys((*FP4, *FP6, *FP8), (UNQUANTIZED, *FP4, *FP6, *FP8))
_OF_AUTO_ROUND = (*FP4, *FP6, *FP8, "int8", "int4")

register_runtime(
    # Of checkpoints that llm-compressor wrote (MXFP4), or Quark (MXFP4 and MXFP6), which agree in their rules.
    Runtime(
        "vllm",
        "vLLM",
        (Computed((*FP4, *FP6), EVEN, EVEN),),
        _with_itself(*FP4, *FP6) | {"fp4_e2m1": (UNQUANTIZED, *FP4, *FP6)},
        rotates=True,
    )
)
register_runtime(
    # Of a compressed-tensors checkpoint. Weights in integers may come from any tool, whose rules the run's knobs are.
    Runtime(
        "transformers",
        "transformers (compressed-tensors)",
        (*_compressed_tensors(mxfp6=("fp6_e2m3",)), Computed(("int8", "int4"), {}, {})),
        _OF_COMPRESSED_TENSORS | {"int8": (UNQUANTIZED,), "int4": (UNQUANTIZED,)},
    )
)
register_runtime(
    Runtime(
        "llm_compressor",
        "llm-compressor",
        _compressed_tensors(mxfp6=("fp6_e2m3",)),
        _OF_COMPRESSED_TENSORS,
        rotates=True,
    )
)
register_runtime(Runtime("quark", "Quark", (Computed((*FP4, *FP6, *FP8), EVEN, EVEN),), _OF_QUARK))
register_runtime(
    Runtime(
        "torchao",
        "torchao",
        (Computed((*FP4, *FP6, *FP8), TO_EVEN, TO_EVEN),),
        _with_itself(*FP4, *FP6, *FP8, weights_alone=False),
        {"scale_rounding": ("rceil", "floor", "even", "ceil")},  # its ScaleCalculationMode
    )
)
register_runtime(Runtime("modelopt", "ModelOpt", (Computed(FP8, RCEIL, RCEIL),), _with_itself(*FP8)))
register_runtime(
    Runtime(
        "auto_round",
        "AutoRound",
        (
            Computed(_OF_AUTO_ROUND, FLOOR, FLOOR),
            Computed(FP4, TO_EVEN, TO_EVEN, block_size=16, scale="e5m3"),
        ),
        dict.fromkeys(_OF_AUTO_ROUND, (UNQUANTIZED, *_OF_AUTO_ROUND)),
        arithmetic="by_dtype",
    )
)
register_runtime(
    _Microxcaling("microxcaling", "microxcaling", choices={"rounding": ("nearest", "even", "floor")}, arithmetic="")
)


def choose(runtime: str, values: dict[str, Any], explicit: Mapping[str, Any]) -> dict[str, Any]:
    """Return the run's values with the runtime's defaults of the knobs that it leaves to its user.

    Args:
        values: of the run's knobs.
        explicit: those that were set.

    Raises:
        ConfigError: one that was set to what the runtime does not offer.
    """
    known = RUNTIMES.get(runtime)
    for knob, allowed in known.choices.items() if known else ():
        if knob not in explicit:
            values = values | {knob: allowed[0]}
        elif explicit[knob] not in allowed:
            raise ConfigError(
                f"{knob}: {explicit[knob]!r} does not go with runtime={runtime}; allowed with it: {', '.join(allowed)}"
            )
    return values


def refuse_contradictions(runtime: str, explicit: Mapping[str, Any], formats: Sequence[MXFormat]) -> None:
    """Refuse a knob that was set to another value than the runtime has for one of the run's formats.

    Raises:
        ConfigError: as said.
    """
    for knob in (knob for knob in OF_RUNTIMES if knob in explicit):
        for fmt in formats:
            by_element = knob == "scale_rounding" and fmt.element_format.scale_rounding
            without = knob == "scale_rounding" and not fmt.scale_format.is_power_of_two
            if getattr(fmt, knob) != explicit[knob] and not by_element and not without:
                raise ConfigError(
                    f"{knob}: {explicit[knob]!r} does not go with runtime={runtime}, which computes {fmt}; allowed "
                    f"with it: {getattr(fmt, knob)}, or none given"
                )
