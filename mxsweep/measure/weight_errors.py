"""Measure the error of every weight of a model in the formats of a config."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mxsweep.config.run_config import RunConfig
from mxsweep.model.coverage import Stored
from mxsweep.model.load import load_configured
from mxsweep.model.operands import Operand, find_operands
from mxsweep.model.quantization_report import LayerReport
from mxsweep.model.quantized_weights import measure_weights
from mxsweep.model.sites import find_sites
from mxsweep.model.tensor_statistics import TensorStatistics, pooled_by_kind
from mxsweep.numerics import BlockStatistics, MXFormat

NOT_OF_WEIGHTS = ("kind", "examples", "tokens")  # columns that say nothing of a weight


@dataclass(frozen=True)
class Inspected:
    """Hold the errors of one config's weights.

    Attributes:
        label: what tells it from the other configs, as typed.
        bits_per_weight: as tables of results show, over all weights of the decoder blocks and what else is quantized.
        warnings: what a reader should know of how the model was loaded, a sentence each.
    """

    label: str
    tensors: list[TensorStatistics]
    bits_per_weight: float
    warnings: tuple[str, ...] = ()

    @property
    def total(self) -> dict[str, Any]:
        """Return the numbers over all weights."""
        return pooled_by_kind(self.tensors)["weight"]

    def rows(self) -> list[dict[str, Any]]:
        """Return a row for each weight; those of one role in a layer's experts are one."""
        return [
            {"config": self.label} | {name: value for name, value in tensor.row().items() if name not in NOT_OF_WEIGHTS}
            for tensor in self.tensors
        ]


def inspect_weights(label: str, config: RunConfig) -> Inspected:
    """Measure the weights of the config's model in its formats. Raises ConfigError."""
    loaded = load_configured(config.model)
    layers = [layer for layer in measure_weights(loaded.model, config.recipe) if layer.statistics is not None]
    bits = Stored.of(loaded.model, find_sites(loaded.model, config.recipe), config.recipe).bits_per_weight
    assert bits is not None  # configs that quantize no weight are refused
    return Inspected(label, _pooled_by_group(layers, find_operands(loaded.model)), bits, loaded.warnings)


def _pooled_by_group(layers: Sequence[LayerReport], operands: Mapping[str, Operand]) -> list[TensorStatistics]:
    """Return the statistics of each weight, those in one group and format pooled, in the model's order."""
    grouped: dict[tuple[str, MXFormat], list[LayerReport]] = defaultdict(list)
    for layer in layers:
        if layer.weight is not None:
            grouped[operands[layer.name].group, layer.weight].append(layer)
    return [
        TensorStatistics(
            "weight",
            name,
            group[0].place,
            fmt,
            BlockStatistics.pooled(layer.statistics for layer in group if layer.statistics is not None),
        )
        for (name, fmt), group in grouped.items()
    ]
