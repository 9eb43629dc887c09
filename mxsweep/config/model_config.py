"""The model of a run as a config has it: which one, and how it is loaded."""

from __future__ import annotations

import re
from dataclasses import dataclass

from mxsweep.config.checks import (
    EMBEDDED,
    check_choice,
    check_flag,
    check_integer,
    check_model_path,
    check_text_or_null,
)
from mxsweep.files.checkpoints import model_identity
from mxsweep.terminal.errors import ConfigError

DTYPES = ("auto", "float32", "bfloat16", "float16")
ATTENTIONS = ("sdpa", "eager")


@dataclass(frozen=True)
class ModelConfig:
    """Which model, and how it is loaded; the fields are those of ``conf/config.yaml``."""

    name: str
    path: str
    revision: str | None
    dtype: str
    device: str
    device_map: str | None
    attention: str
    max_length: int | None
    trust_remote_code: bool

    def __post_init__(self) -> None:
        check_model_path("model.path", self.path)
        if self.name == "tiny" and self.path != EMBEDDED:
            raise ConfigError(f"model.path: {self.path!r} goes with model=hf; model=tiny is the embedded model")
        check_text_or_null("model.revision", self.revision)
        check_choice("model.dtype", self.dtype, DTYPES)
        check_choice("model.attention", self.attention, ATTENTIONS)
        if self.device_map not in (None, "auto"):
            raise ConfigError(f"model.device_map: {self.device_map!r} is not known; allowed: auto, null")
        if self.device_map and self.device != "auto":
            raise ConfigError(f"model.device: {self.device!r} has no say with model.device_map=auto; allowed: auto")
        check_flag("model.trust_remote_code", self.trust_remote_code)
        if not isinstance(self.device, str) or not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", self.device):
            raise ConfigError(f"model.device: {self.device!r} is not a device; allowed: auto, cpu, cuda, cuda:0, mps")
        if self.max_length is not None:
            check_integer("model.max_length", self.max_length, 2, None, "tokens, at least 2, or null")

    def identity(self) -> dict[str, str]:
        """What tells the model from every other. Raises ConfigError: a file of it vanished or cannot be read."""
        return model_identity(
            self.path, revision=self.revision, dtype=self.dtype, trust_remote_code=self.trust_remote_code
        )

    @property
    def label(self) -> str:
        """A short name for tables: of a hub name or a folder the last part."""
        return self.name if self.name != "hf" else self.path.rstrip("/").rsplit("/", 1)[-1]
