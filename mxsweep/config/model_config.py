"""Hold the model of a run as a config has it: which one, and how it is loaded."""

from __future__ import annotations

from dataclasses import dataclass

from mxsweep.config.checks import (
    EMBEDDED,
)
from mxsweep.config.refusals import quantized_already, stored_rotated
from mxsweep.files.checkpoints import (
    exported_folder,
    loading_dtype,
    model_identity,
    rotated_layer,
    stored_quantization,
)
from mxsweep.terminal.errors import ConfigError

LISTENED_TO = ("auto", "sdpa", "eager")  # the attention whose keys and values can be quantized


@dataclass(frozen=True)
class ModelConfig:
    """Hold which model a run has, and how the model is loaded."""

    name: str
    path: str
    revision: str | None
    dtype: str
    device: str
    device_map: str | None
    attention: str
    max_length: int | None
    trust_remote_code: bool
    dequantize: bool
    add_bos_token: bool | str

    def __post_init__(self) -> None:
        if self.name == "tiny" and self.path != EMBEDDED:
            raise ConfigError(f"model.path: {self.path!r} goes with model=hf; model=tiny is the embedded model")
        if self.device_map and self.device != "auto":
            raise ConfigError(f"model.device: {self.device!r} has no say with model.device_map=auto; allowed: auto")
        packed = exported_folder(self.path)
        if packed is not None and (layer := rotated_layer(packed)):
            raise ConfigError(stored_rotated(self.path, layer))
        method = stored_quantization(self.path)
        if method and not self.dequantize and packed is None:
            raise ConfigError(quantized_already(self.path, method))

    def identity(self) -> dict[str, str]:
        """Return what tells the model from every other. Raises ConfigError where a file cannot be read."""
        return model_identity(
            self.path,
            revision=self.revision,
            dtype=self.dtype,
            trust_remote_code=self.trust_remote_code,
            dequantize=self.dequantize,
        )

    @property
    def loading_dtype(self) -> str:
        """Return the dtype that the model is loaded in, "auto" where its files do not tell, or are elsewhere."""
        return loading_dtype(self.path) if self.dtype == "auto" else self.dtype

    @property
    def label(self) -> str:
        """Return a short name for tables: of a hub name or a folder the last part."""
        return self.name if self.name != "hf" else self.path.rstrip("/").rsplit("/", 1)[-1]
