"""Hold remedies as a config has them: calibration data, how weights are quantized, rotations.

Checks of single values are in the knob table; here are those that several knobs take. No torch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from mxsweep.config.format_config import FormatConfig
from mxsweep.config.weight_methods import ROUND_TO_NEAREST, WEIGHT_METHODS, Needs
from mxsweep.formats.recipe import ROTATIONS
from mxsweep.terminal.errors import ConfigError

TUNING_RULE = 3  # by which blocks are tuned: raised whenever it comes to other weights, for methods that tune alone
FINETUNING_RULE = 4  # likewise, by which whole models are finetuned


@dataclass(frozen=True)
class CalibrationConfig:
    """Hold what is calibrated on: ``samples`` sequences of at most ``length`` tokens, chosen by ``seed``."""

    source: str
    path: str | None
    name: str | None
    split: str
    field: str
    samples: int
    length: int
    seed: int

    def __post_init__(self) -> None:
        if self.path is None and self.source in ("text", "task", "hub"):
            what = {"text": "a text file", "task": "a task of lm-eval", "hub": "a data set's name or folder"}
            raise ConfigError(f"calibration.path: none is given; calibration={self.source} needs {what[self.source]}")
        if self.path is not None and self.source in ("auto", "stories"):
            raise ConfigError(
                f"calibration.path: {self.path!r} goes with calibration=text, task or hub, and "
                f"calibration={self.source} takes none"
            )


@dataclass(frozen=True)
class PTQConfig:
    """Hold how weights are quantized: by which weight method, and in which formats, under a budget."""

    method: str
    clip_loss: str
    damping: float
    act_order: bool
    steps: int
    budget: float | None
    formats: dict[str, FormatConfig]
    fuse: bool

    @property
    def options(self) -> dict[str, Any]:
        """Return the knobs that sway the method's answers."""
        return {name: getattr(self, name) for name in WEIGHT_METHODS[self.method].options}

    @property
    def needs(self) -> Needs:
        """Return what the method looks at besides the weights."""
        return WEIGHT_METHODS[self.method].needs(self.options)

    @property
    def tuning_steps(self) -> int:
        """Return by how many steps the weights of each decoder block are tuned; 0 for a method that does not."""
        return self.steps if WEIGHT_METHODS[self.method].tunes else 0

    @property
    def start(self) -> PTQConfig | None:
        """Return how the weights are quantized that finetuning begins with; None for a method that does not."""
        method = WEIGHT_METHODS[self.method].starts_from
        return replace(self, method=method) if method else None

    @property
    def is_solved(self) -> bool:
        """Return whether weights are solved for beforehand, not rounded where they are used."""
        return self.method != ROUND_TO_NEAREST

    @property
    def by_output(self) -> bool:
        """Return whether weights are chosen for the layer's output, on calibrated inputs."""
        return self.needs is not Needs.NOTHING

    def of_weights(self) -> dict[str, Any]:
        """Return what decides the weights, given their formats."""
        decides = {name: value for name, value in self.as_dict().items() if name not in ("budget", "formats", "fuse")}
        return decides | self.rule

    @property
    def rule(self) -> dict[str, int]:
        """Return the versions of how the method, and that which it starts from, tune, for hashes and keys."""
        if self.start is not None:
            return self.start.rule | {"finetuning_rule": FINETUNING_RULE}
        return {"tuning_rule": TUNING_RULE} if self.tuning_steps else {}

    @property
    def needs_calibration(self) -> bool:
        """Return whether the method, or spending the budget, looks at calibration data."""
        return self.by_output or self.budget is not None

    def as_dict(self) -> dict[str, Any]:
        """Return what has an effect, for the record and for the hash."""
        data: dict[str, Any] = {"method": self.method, **self.options}
        if self.budget is not None:
            data |= {"budget": self.budget, "formats": list(self.formats)} | ({"fuse": True} if self.fuse else {})
        return data


@dataclass(frozen=True)
class RotationConfig:
    """Hold which operands are quantized in a rotated basis: those named, or those found by a search among them."""

    method: str
    matmuls: tuple[str, ...]
    residual: bool
    judge: str
    positions: str

    @property
    def is_fixed(self) -> bool:
        """Return whether those named are, without a search."""
        return self.method in ROTATIONS
