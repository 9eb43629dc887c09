"""Count the bits of keys and values in a cache, from the shapes of a model's layers and the formats they are held in.

What is counted is a cache that holds what the model reads: keys and values of each token in their formats, scales
included, and in the model's dtype those that stay as they are. Factors of `smooth`, one for each channel, are not.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from mxsweep.formats.mxformat import MXFormat
from mxsweep.formats.recipe import KVOptions

TENSOR_SCALE_BITS = 32
USUAL_CONTEXT = 8192  # tokens of a sequence, where nobody says how many


@dataclass(frozen=True)
class CacheLayer:
    """Describe what layers of a model cache of a token.

    Attributes:
        heads: of keys and values.
        key_size, value_size: elements of a head.
        window: the most tokens that are kept; None for all.
        bits: of an element as it is.
        layers: how many layers are like this.
    """

    heads: int
    key_size: int
    value_size: int
    window: int | None
    bits: int
    layers: int = 1


@dataclass(frozen=True)
class CacheFormats:
    """Hold the formats of keys and values, None for as they are, and how they are applied."""

    key: MXFormat | None = None
    value: MXFormat | None = None
    options: KVOptions = field(default_factory=KVOptions)

    def bits(self, layers: Iterable[CacheLayer], context: int) -> int:
        """Return the bits of the cache of one sequence of `context` tokens."""
        return sum(layer.layers * self._bits(layer, context) for layer in layers)

    def bits_per_token(self, layers: Iterable[CacheLayer], context: int = USUAL_CONTEXT) -> float:
        """Return the bits that a token takes where none is dropped; where some stay as they are, in the mean over a
        sequence of `context` tokens.
        """
        size = self.key.block_size if self.key is not None and self.options.key_axis == "channel" else 1
        assert isinstance(size, int)
        tokens = context if self.options.first or self.options.recent else size or 1
        return self.bits([replace(layer, window=None) for layer in layers], tokens) / tokens

    def _bits(self, layer: CacheLayer, context: int) -> int:
        tokens = context if layer.window is None else min(context, layer.window)
        quantized = max(0, tokens - self.options.first - self.options.recent)
        by_channel = self.options.key_axis == "channel"
        key = self._kind_bits(self.key, layer, layer.key_size, tokens, quantized, by_channel)
        return key + self._kind_bits(self.value, layer, layer.value_size, tokens, quantized, by_channel=False)

    def _kind_bits(
        self, fmt: MXFormat | None, layer: CacheLayer, size: int, tokens: int, quantized: int, by_channel: bool
    ) -> int:
        plain = layer.heads * size * layer.bits
        if fmt is None:
            return tokens * plain
        if by_channel:  # a block of tokens is quantized when it is complete
            assert isinstance(fmt.block_size, int)
            quantized -= quantized % (fmt.block_size or 1)
            bits = fmt.stored_bits((layer.heads, size, quantized))
        else:
            by_head = self.options.scales == "head"
            bits = (replace(fmt, block_size=0) if by_head else fmt).stored_bits((quantized, layer.heads, size))
        scales = layer.heads if self.options.scales == "head" else 1
        tensor_scales = quantized * scales * TENSOR_SCALE_BITS if fmt.tensor_scale else 0
        return bits + tensor_scales + (tokens - quantized) * plain
