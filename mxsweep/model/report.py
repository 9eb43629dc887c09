"""What putting a recipe into a model did: which layers, at how many bits, and what its scales ran into."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from mxsweep.model.recipe import Recipe
from mxsweep.numerics import MXFormat

if TYPE_CHECKING:
    from mxsweep.numerics import BlockStatistics


@dataclass(frozen=True)
class LayerReport:
    """One replaced module. ``bits`` is the width of the original dtype; ``statistics`` are of the weight's blocks."""

    name: str
    weight: MXFormat | None
    activation: MXFormat | None
    weights: int
    bits: int
    statistics: BlockStatistics | None

    @property
    def bits_per_weight(self) -> float:
        return self.bits if self.weight is None else self.weight.bits_per_element


@dataclass(frozen=True)
class QuantizationReport:
    """Totals over the replaced modules.

    Attributes:
        bits_per_weight: of the replaced modules' weights, scales included (NaN where none was replaced).
        bits_per_parameter: of the whole model, embeddings and what else stayed as it was included.
        parameter_bytes: of the whole model, stored at those bits.
    """

    layers: tuple[LayerReport, ...]
    attention_modules: int
    key: MXFormat | None
    value: MXFormat | None
    bits_per_weight: float
    bits_per_parameter: float
    parameter_bytes: int

    @staticmethod
    def of(model: nn.Module, recipe: Recipe, layers: Sequence[LayerReport], attention: int) -> QuantizationReport:
        weights = sum(layer.weights for layer in layers)
        replaced_bits = sum(layer.weights * layer.bits_per_weight for layer in layers)
        saved_bits = sum(layer.weights * (layer.bits - layer.bits_per_weight) for layer in layers)
        parameters = list(model.parameters())
        total = sum(p.numel() for p in parameters)
        total_bits = sum(p.numel() * p.itemsize * 8 for p in parameters) - saved_bits
        return QuantizationReport(
            layers=tuple(layers),
            attention_modules=attention,
            key=recipe.key,
            value=recipe.value,
            bits_per_weight=replaced_bits / weights if weights else float("nan"),
            bits_per_parameter=total_bits / total,
            parameter_bytes=round(total_bits / 8),
        )

    def _sum(self, field: str) -> int:
        return sum(getattr(layer.statistics, field) for layer in self.layers if layer.statistics is not None)

    def as_dict(self) -> dict[str, Any]:
        """For the record's ``diagnostics``."""
        statistics = [layer.statistics for layer in self.layers if layer.statistics is not None]
        return {
            "layers_replaced": len(self.layers),
            "formats": _format_counts(self.layers),
            "attention_modules": self.attention_modules,
            "key": None if self.key is None else str(self.key),
            "value": None if self.value is None else str(self.value),
            "bits_per_weight": self.bits_per_weight,
            "bits_per_parameter": self.bits_per_parameter,
            "parameter_bytes": self.parameter_bytes,
            "weight_blocks": self._sum("blocks"),
            "weight_blocks_scale_clamped": self._sum("blocks_scale_clamped"),
            "weights_quantized": self._sum("elements"),
            "weights_saturated": self._sum("elements_saturated"),
            "weights_flushed": self._sum("elements_flushed"),
            "weight_exponent_min": min((e for s in statistics if (e := s.exponent_min) is not None), default=None),
            "weight_exponent_max": max((e for s in statistics if (e := s.exponent_max) is not None), default=None),
        }

    def lines(self) -> list[str]:
        """For a person: what was replaced, and what its scales ran into."""
        if not self.layers and not self.attention_modules:
            return ["Nothing is quantized: this is the baseline."]
        data, lines = self.as_dict(), []
        for formats, count in data["formats"].items():
            lines.append(f"Replaced {count} layers: {formats}")
        if self.attention_modules:
            lines.append(
                f"Keys in {self.key or 'no format'}, values in {self.value or 'no format'} "
                f"in {self.attention_modules} attention layers"
            )
        if data["weight_blocks"]:
            lines.append(
                f"{self.bits_per_weight:.2f} bits a weight in these layers, {self.bits_per_parameter:.2f} bits a "
                f"parameter in the whole model ({self.parameter_bytes / 1e6:,.1f} MB)"
            )
            span = ""
            if data["weight_exponent_min"] is not None:
                span = f" (exponents {data['weight_exponent_min']} to {data['weight_exponent_max']})"
            lines.append(
                f"{data['weight_blocks_scale_clamped']:,} of {data['weight_blocks']:,} weight blocks had their scale "
                f"clamped{span}; {data['weights_saturated'] / data['weights_quantized']:.2%} of weights saturated, "
                f"{data['weights_flushed'] / data['weights_quantized']:.2%} became zero"
            )
        return lines


def _format_counts(layers: Sequence[LayerReport]) -> dict[str, int]:
    return dict(Counter(f"weights {x.weight or 'as they are'}, inputs {x.activation or 'as they are'}" for x in layers))
