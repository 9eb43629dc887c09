"""Hold keys and values as a config has them: element formats, and how they are applied."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from mxsweep.config.format_config import FormatConfig, element_name
from mxsweep.formats.mxformat import BlockSize
from mxsweep.formats.recipe import KVOptions

DEFAULTS = KVOptions()


@dataclass(frozen=True)
class KVConfig:
    """Hold the element formats of keys and values ("none": as they are) and how the formats are applied."""

    key: str
    value: str
    block_size: BlockSize
    scale: str
    tensor_scale: bool
    key_axis: str
    rope: str
    first: int
    recent: int
    scales: str
    smooth: float
    latent: str
    rotation: str

    @property
    def name(self) -> str:
        """Return what tables call the formats."""
        return self.key if self.key == self.value else f"k:{self.key},v:{self.value}"

    @property
    def options(self) -> KVOptions:
        """Return what decides a result; of what has no effect, the default, so that equal runs are equal."""
        if self.key == self.value == "none":
            return DEFAULTS
        if self.key == "none":
            return KVOptions(first=self.first, recent=self.recent, scales=self.scales, latent=self.latent)
        return KVOptions(
            self.key_axis, self.rope, self.first, self.recent, self.scales, float(self.smooth), self.latent
        )

    @property
    def is_rotated(self) -> bool:
        """Return whether quantized keys are rotated, whatever the run's rotation is."""
        return self.rotation != "none" and self.key != "none"

    def as_dict(self, run: FormatConfig, *, rotated: bool = False) -> dict[str, Any]:
        """Return, for the record, the name in tables, and what has an effect and is not the run's anyway.

        Args:
            rotated: whether the run rotates keys for the cache by itself.
        """
        data: dict[str, Any] = {"name": self.name, "key": self.key, "value": self.value}
        if self.key == self.value == "none":
            return data
        for field in ("block_size", "scale", "tensor_scale"):
            if getattr(self, field) != getattr(run, field):
                data[field] = getattr(self, field)
        if self.is_rotated and not rotated:
            data["rotation"] = self.rotation
        return data | dataclasses.asdict(self.options)


def resolve_kv(knobs: dict[str, Any], run: FormatConfig) -> KVConfig:
    """Return the config of keys and values; what is "auto" is the run's."""
    own = dict(knobs)
    block_size = run.block_size if own["block_size"] == "auto" else own["block_size"]
    scale = run.scale if own["scale"] == "auto" else own["scale"]
    tensor_scale = run.tensor_scale and scale == run.scale if own["tensor_scale"] == "auto" else own["tensor_scale"]
    elements = {kind: element_name(own[kind]) for kind in ("key", "value")}
    return KVConfig(**own | elements | {"block_size": block_size, "scale": scale, "tensor_scale": tensor_scale})
