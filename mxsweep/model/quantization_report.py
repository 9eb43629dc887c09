"""Report what putting a recipe into a model did: which layers, at how many bits, and what its scales ran into."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mxsweep.formats.cached_bits import CacheLayer
from mxsweep.formats.recipe import LATENT_EXPANDED, LATENT_IN_CACHE, Recipe
from mxsweep.model.coverage import Stored
from mxsweep.model.operands import Place
from mxsweep.model.rotated_products import RotatedProducts
from mxsweep.model.tensor_statistics import TensorStatistics
from mxsweep.numerics import BlockStatistics, MXFormat


@dataclass(frozen=True)
class LayerReport:
    """Describe one replaced module.

    Attributes:
        place: where in the model it is.
        bits: the width of the original dtype.
        statistics: of the weight's blocks, under the scales that rounding gives them.
        prepared: whether the weight was worked out beforehand, perhaps on other scales. Its signal and noise are its
            own all the same.
    """

    name: str
    place: Place
    weight: MXFormat | None
    activation: MXFormat | None
    shape: Sequence[int]
    bits: int
    statistics: BlockStatistics | None
    prepared: bool = False

    @property
    def weights(self) -> int:
        """Count the elements of the weight."""
        return math.prod(self.shape)

    @property
    def stored_bits(self) -> int:
        """Return the bits that storing the weight takes, scales included."""
        return self.weight.stored_bits(self.shape) if self.weight else self.weights * self.bits


@dataclass(frozen=True)
class QuantizationReport:
    """Sum up over the replaced modules.

    Attributes:
        attention_modules: how many modules attend to quantized keys and values.
        latent_modules: how many of them expand these from latents (MLA).
        latent: what of these is quantized, as in :class:`mxsweep.formats.recipe.KVOptions`.
        places: where each replaced module, and each attention module, is in the model.
        stored: of the whole model, embeddings and what else stayed as it was included.
        offloaded_bytes: of original weights that were moved to host memory because the GPU had no room for them.
        rotated: how many products are rotated; None without a rotation.
        cached: what layers cache of each token; None where that is not known.
        positions: tokens of the longest sequence that the model has positions for; None where that is not known.
    """

    layers: tuple[LayerReport, ...]
    attention_modules: int
    places: Mapping[str, Place]
    key: MXFormat | None
    value: MXFormat | None
    stored: Stored
    offloaded_bytes: int = 0
    latent_modules: int = 0
    rotated: RotatedProducts | None = None
    latent: str = LATENT_IN_CACHE
    cached: tuple[CacheLayer, ...] | None = None
    positions: int | None = None

    @staticmethod
    def of(
        recipe: Recipe,
        layers: Sequence[LayerReport],
        attention: Mapping[str, Place],
        stored: Stored,
        offloaded_bytes: int = 0,
        latent_modules: int = 0,
        rotated: RotatedProducts | None = None,
        cached: tuple[CacheLayer, ...] | None = None,
        positions: int | None = None,
    ) -> QuantizationReport:
        """Sum up reports of layers; ``attention`` has the places of the attention modules."""
        return QuantizationReport(
            layers=tuple(layers),
            attention_modules=len(attention),
            places={layer.name: layer.place for layer in layers} | dict(attention),
            key=recipe.key,
            value=recipe.value,
            stored=stored,
            offloaded_bytes=offloaded_bytes,
            latent_modules=latent_modules,
            rotated=rotated,
            latent=recipe.kv.latent,
            cached=cached,
            positions=positions,
        )

    @property
    def bits_per_quantized_weight(self) -> float | None:
        """Return the bits of a weight over those that are quantized, scales included; None where none is."""
        bits = _bits_per_weight([layer for layer in self.layers if layer.weight is not None])
        return None if math.isnan(bits) else bits

    @property
    def bits_per_weight(self) -> float:
        """Return the bits of a weight over all weights of the decoder blocks, whatever of them was replaced.

        What is quantized elsewhere, as an lm_head, is counted, too. NaN where nothing was replaced.
        """
        bits = self.stored.bits_per_weight
        return _bits_per_weight(self.layers) if bits is None or not self.stored.block_weights_kept else bits

    @property
    def warnings(self) -> list[str]:
        """Return what a reader of the results should know, a sentence or more each."""
        return [*self.stored.warnings, *(self.rotated.warnings if self.rotated else [])]

    @property
    def bits_per_parameter(self) -> float:
        """Return the bits that storing a parameter of the model takes, on average."""
        return self.stored.bits / self.stored.parameters

    @property
    def parameter_bytes(self) -> int:
        """Return the bytes that storing the whole model takes, the matrices of inputs included."""
        return round((self.stored.bits + self.stored.input_matrix_bits) / 8)

    def _sum(self, field: str) -> int:
        return sum(getattr(layer.statistics, field) for layer in self.layers if layer.statistics is not None)

    def as_dict(self) -> dict[str, Any]:
        """Return what the record's ``diagnostics`` say."""
        statistics = [layer.statistics for layer in self.layers if layer.statistics is not None]
        return {
            "layers_replaced": len(self.layers),
            "formats": _format_counts(self.layers),
            "attention_modules": self.attention_modules,
            **({"latent_modules": self.latent_modules, "latent": self.latent} if self.latent_modules else {}),
            **({"products": self.rotated.products, "products_rotated": self.rotated.rotated} if self.rotated else {}),
            "key": None if self.key is None else str(self.key),
            "value": None if self.value is None else str(self.value),
            "bits_per_weight": self.bits_per_weight,
            "bits_per_quantized_weight": self.bits_per_quantized_weight,
            "bits_per_parameter": self.bits_per_parameter,
            "parameter_bytes": self.parameter_bytes,
            **({"cache_layers": [asdict(layer) for layer in self.cached]} if self.cached else {}),
            **({"max_positions": self.positions} if self.positions else {}),
            "originals_on_host_bytes": self.offloaded_bytes,
            "block_weights": self.stored.block_weights,
            "block_weights_kept": self.stored.block_weights_kept,
            "block_weights_left": {kind: asdict(left) for kind, left in self.stored.left.items()},
            **({"unreached_weights": self.stored.unreached} if self.stored.unreached else {}),
            "weights_prepared": sum(layer.prepared for layer in self.layers),
            "weight_blocks": self._sum("blocks"),
            "weight_blocks_scale_clamped": self._sum("blocks_scale_clamped"),
            "weights_quantized": self._sum("elements"),
            "weights_saturated": self._sum("elements_saturated"),
            "weights_flushed": self._sum("elements_flushed"),
            "weight_exponent_min": min((e for s in statistics if (e := s.exponent_min) is not None), default=None),
            "weight_exponent_max": max((e for s in statistics if (e := s.exponent_max) is not None), default=None),
        }

    def lines(self) -> list[str]:
        """Return lines for a person: what was replaced, and what its scales ran into."""
        if not self.layers and not self.attention_modules:
            return ["Nothing is quantized: this is the baseline."]
        data, lines = self.as_dict(), []
        for formats, count in data["formats"].items():
            lines.append(f"Replaced {count} layer{'s' * (count != 1)}: {formats}")
        if self.rotated:
            lines.append(self.rotated.line)
        expanded = self.latent_modules if self.latent == LATENT_EXPANDED else 0
        if of_cache := self.latent_modules - expanded:
            lines.append(f"Latents and RoPE keys in {self.key} in {of_cache} attention layers (MLA)")
        if of_heads := self.attention_modules - of_cache:
            lines.append(
                f"Keys in {self.key or 'no format'}, values in {self.value or 'no format'} "
                f"in {of_heads} attention layers"
                + (f", expanded from latents that stay as they are in {expanded} (MLA)" if expanded else "")
            )
        if data["weight_blocks"]:
            matrices = self.stored.input_matrix_bits / 8e6
            lines.append(
                f"{_bits_per_weight(self.layers):.2f} bits a weight in these layers, {self.bits_per_parameter:.2f} "
                f"bits a parameter in the whole model ({self.parameter_bytes / 1e6:,.1f} MB"
                + (f", {matrices:,.1f} MB of them matrices of inputs)" if matrices else ")")
            )
            span = scales = ""
            if data["weights_prepared"]:
                lines.append(f"The weights of {data['weights_prepared']} layers were worked out beforehand")
                scales = " under the scales that rounding gives"
            if data["weight_exponent_min"] is not None:
                span = f" (exponents {data['weight_exponent_min']} to {data['weight_exponent_max']})"
            lines.append(
                f"{data['weight_blocks_scale_clamped']:,} of {data['weight_blocks']:,} weight blocks had their scale "
                f"clamped{span}{scales}; {data['weights_saturated'] / data['weights_quantized']:.2%} of weights "
                f"saturated, {data['weights_flushed'] / data['weights_quantized']:.2%} became zero"
            )
        if self.offloaded_bytes:
            lines.append(
                f"The original weights ({self.offloaded_bytes / 1e9:,.1f} GB) wait in host memory: the GPU has no room "
                "for them beside the quantized ones"
            )
        if data["weight_blocks"] and self.stored.unreached:
            lines.append(
                f"{self.stored.unreached:,} weights of the model's {self.stored.parameters:,} are reached by no text, "
                "and are neither quantized nor counted in the bits a weight"
            )
        if data["weight_blocks"] and self.stored.block_weights_kept:
            share = self.stored.block_weights_kept / self.stored.block_weights
            lines.append(
                f"{share:.1%} of the weights in the decoder blocks stay as they are, {self.bits_per_weight:.2f} bits a "
                "weight with these"
            )
        return lines


def weight_statistics(layers: Sequence[LayerReport]) -> list[TensorStatistics]:
    """Return the statistics of the weights that were quantized, in the model's order."""
    return [
        TensorStatistics("weight", layer.name, layer.place, layer.weight, layer.statistics)
        for layer in layers
        if layer.weight is not None and layer.statistics is not None
    ]


def _bits_per_weight(layers: Sequence[LayerReport]) -> float:
    """Return the bits of a weight over layers' weights, scales included; NaN where there are none."""
    weights = sum(layer.weights for layer in layers)
    return sum(layer.stored_bits for layer in layers) / weights if weights else float("nan")


def _format_counts(layers: Sequence[LayerReport]) -> dict[str, int]:
    return dict(Counter(f"weights {x.weight or 'as they are'}, inputs {x.activation or 'as they are'}" for x in layers))
