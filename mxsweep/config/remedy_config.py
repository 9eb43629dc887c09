"""Remedies as a config has them: calibration data, how weights are quantized, rotations.

As in config.py: types and checks here, values in ``conf/``; no torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from mxsweep.config.checks import check_choice, check_flag, check_integer, check_text_or_null
from mxsweep.config.format_config import FormatConfig
from mxsweep.config.weight_methods import ROUND_TO_NEAREST, WEIGHT_METHOD_NAMES, WEIGHT_METHODS, Needs
from mxsweep.formats.recipe import MATMULS
from mxsweep.terminal.errors import ConfigError

SOURCES = ("auto", "stories", "text", "task", "hub")
CLIP_LOSSES = ("output", "weight")
ROTATIONS = ("none", "hadamard", "search")
JUDGES = ("clip", "ptq")
ROTATION_BLOCK_OF_FORMAT = "mx"  # the run's block_size
MOST_DAMPING = 1.0


@dataclass(frozen=True)
class CalibrationConfig:
    """What is calibrated on: ``samples`` sequences of at most ``length`` tokens, chosen by ``seed``."""

    source: str
    path: str | None
    name: str | None
    split: str
    field: str
    samples: int
    length: int
    seed: int

    def __post_init__(self) -> None:
        check_choice("calibration.source", self.source, SOURCES)
        for field in ("path", "name"):
            check_text_or_null(f"calibration.{field}", getattr(self, field))
        for field in ("split", "field"):
            value = getattr(self, field)
            if not isinstance(value, str) or not value:
                raise ConfigError(f"calibration.{field}: {value!r} must be a word")
        if self.path is None and self.source in ("text", "task", "hub"):
            what = {"text": "a text file", "task": "a task of lm-eval", "hub": "a data set's name or folder"}
            raise ConfigError(f"calibration.path: none is given; calibration={self.source} needs {what[self.source]}")
        if self.path is not None and self.source in ("auto", "stories"):
            raise ConfigError(
                f"calibration.path: {self.path!r} goes with calibration=text, task or hub, and "
                f"calibration={self.source} takes none"
            )
        check_integer("calibration.samples", self.samples, 1, None, "sequences, at least 1")
        check_integer("calibration.length", self.length, 2, None, "tokens of a sequence, at least 2")
        check_integer("calibration.seed", self.seed, 0, 2**32 - 1, "0 to 2^32 - 1")


@dataclass(frozen=True)
class PTQConfig:
    """Hold how weights are quantized: by which weight method, and in which formats, under a budget."""

    method: str
    clip_loss: str
    damping: float
    act_order: bool
    budget: float | None
    formats: dict[str, FormatConfig]

    def __post_init__(self) -> None:
        check_choice("ptq.method", self.method, WEIGHT_METHOD_NAMES)
        check_choice("ptq.clip_loss", self.clip_loss, CLIP_LOSSES)
        check_flag("ptq.act_order", self.act_order)
        if not _is_number(self.damping) or not 0 < self.damping <= MOST_DAMPING:
            raise ConfigError(
                f"ptq.damping: {self.damping!r} is not allowed; allowed: a share of the Hessian's mean diagonal, above "
                f"0 and at most {MOST_DAMPING:g}"
            )
        if self.budget is not None and not (_is_number(self.budget) and self.budget > 0):
            raise ConfigError(f"ptq.budget: {self.budget!r} is not allowed; allowed: bits a weight above 0, or null")
        if not self.formats:
            raise ConfigError("ptq.formats: is empty; allowed: one or more names of formats")

    @property
    def options(self) -> dict[str, Any]:
        """The knobs that sway the method's answers."""
        return {name: getattr(self, name) for name in WEIGHT_METHODS[self.method].options}

    @property
    def needs(self) -> Needs:
        """What the method looks at besides the weights."""
        return WEIGHT_METHODS[self.method].needs(self.options)

    @property
    def is_solved(self) -> bool:
        """Whether weights are solved for beforehand, not rounded where they are used."""
        return self.method != ROUND_TO_NEAREST

    @property
    def by_output(self) -> bool:
        """Whether weights are chosen for the layer's output, on calibrated inputs."""
        return self.needs is not Needs.NOTHING

    def of_weights(self) -> dict[str, Any]:
        """What decides the weights, given their formats."""
        return {name: value for name, value in self.as_dict().items() if name not in ("budget", "formats")}

    @property
    def needs_calibration(self) -> bool:
        return self.by_output or self.budget is not None

    def as_dict(self) -> dict[str, Any]:
        """What has an effect, for the record and for the hash."""
        data: dict[str, Any] = {"method": self.method, **self.options}
        if self.budget is not None:
            data |= {"budget": self.budget, "formats": list(self.formats)}
        return data


@dataclass(frozen=True)
class RotationConfig:
    """Which operands are quantized in a rotated basis: those named, or those found by a search among them."""

    method: str
    matmuls: tuple[str, ...]
    residual: bool
    judge: str

    def __post_init__(self) -> None:
        check_choice("rotation.method", self.method, ROTATIONS)
        check_choice("rotation.judge", self.judge, JUDGES)
        check_flag("rotation.residual", self.residual)
        if len(set(self.matmuls)) != len(self.matmuls) or not self.matmuls:
            raise ConfigError(f"rotation.matmuls: {list(self.matmuls)!r} must name one or more, each once")
        for name in self.matmuls:
            check_choice("rotation.matmuls", name, MATMULS)


def check_rotation_block(value: Any) -> None:
    if value != ROTATION_BLOCK_OF_FORMAT:
        check_integer(
            "rotation_block", value, 0, None, "mx (the run's block_size), a whole number, or 0 for the whole dimension"
        )


def as_names(value: Any) -> tuple[Any, ...]:
    """A name or a list of names, as a tuple."""
    return tuple(value) if isinstance(value, list) else (value,)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
