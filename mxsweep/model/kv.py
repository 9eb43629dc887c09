"""Quantize the keys and values of one attention module.

Legend: B batch, H key-value heads, T tokens, D head_dim. Attention receives keys (after RoPE) and values, (B, H, T, D).

A key goes this way, of which every step but the quantization may be absent:

    key, before or after RoPE -> / factors -> rotated -> quantized -> rotated back -> * factors -> (RoPE)

- Factors (H, D), powers of two, make outlier channels smaller (SmoothQuant, arXiv 2211.10438, for keys). An
  implementation folds them into the queries, or through the gains of the norms where a model normalizes queries and
  keys, which is why they are equal over the two channels that RoPE mixes.
- The rotation is an orthogonal R along D: (q R) (k R)^T = q k^T (QuaRot, arXiv 2404.00456).

Here the key is rotated back and multiplied by its factors, instead of the query rotated and divided: q Q(k R)^T R^T is
(q R) Q(k R)^T. The products are the same, for several query heads that share a key head and before RoPE as after it,
where R does not commute with the embedding and the query could not take R over.

Blocks extend along D ("token": a token's key does not depend on other tokens), or along the sequence ("channel": an
outlier channel has scales of its own; KIVI, arXiv 2402.02750). There a token's quantized key depends on later ones of
its block, so a query reads it only if the block ends at the query or before; key_versions.py says how. Values are
always quantized along D, by token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mxsweep.formats.recipe import QUERY_KEY, KVOptions, Recipe
from mxsweep.model.attention_interface import Attended, Call, listening
from mxsweep.model.attention_probe import reached_attention
from mxsweep.model.key_versions import CLOSED, OPEN, RECENT, VersionedAttention, Zones
from mxsweep.model.observer import Observer
from mxsweep.model.rope import KeysBeforeRope
from mxsweep.numerics import MXFormat, quantize
from mxsweep.terminal.errors import ConfigError


def formats_of_heads(recipe: Recipe) -> tuple[MXFormat | None, MXFormat | None]:
    """Return the formats of keys and values as they are applied: with ``scales="head"``, blocks are whole heads.

    Raises:
        ConfigError: a key format that has no blocks along the sequence, where they are asked for.
    """
    key, value = recipe.key, recipe.value
    if problem := recipe.kv.problem_with(key):
        raise ConfigError(problem)
    if recipe.kv.scales == "head":
        key, value = (None if fmt is None else replace(fmt, block_size=0) for fmt in (key, value))
    return key, value


def versioned_attention(recipe: Recipe) -> VersionedAttention:
    """Return the attention, for all layers of a model, in which each query reads its versions of keys and values."""
    block = 0
    if recipe.key is not None and recipe.kv.key_axis == "channel":
        assert isinstance(recipe.key.block_size, int)
        block = recipe.key.block_size
    return VersionedAttention(recipe.kv.first, recipe.kv.recent, block)


@dataclass
class KVQuantizer:
    """Quantize the keys and values of one attention module.

    Attributes:
        stochastic_key: of the keys; the values' is the next.
        attention: shared by the modules of a model.
        factors: what keys are divided by, (H, D); None for nothing.
        before: overhears the module's keys before RoPE; None where they are quantized after it.
        calls: how often :meth:`attend` was called.
        observer: called with each tensor in the basis in which it is quantized, all its tokens, those too that some or
            all queries read as they are. Not with keys in blocks along the sequence, which it could not measure.
    """

    recipe: Recipe
    stochastic_key: int
    name: str
    attention: VersionedAttention
    factors: Tensor | None = None
    before: KeysBeforeRope | None = None
    calls: int = 0
    observer: Observer | None = None

    def __post_init__(self) -> None:
        self._key_format, self._value_format = formats_of_heads(self.recipe)

    @property
    def _options(self) -> KVOptions:
        return self.recipe.kv

    def attend(self, call: Call, query: Tensor, key: Tensor, value: Tensor) -> Attended:
        """Compute the attention of queries (B, Hq, Tq, D) over the keys and values (B, H, Tk, D) that each reads."""
        key_mx, value_mx = self._quantized_key(key), self._quantized_value(value)
        read = {CLOSED: (key_mx, value_mx), OPEN: (key, value_mx), RECENT: (key, value)}
        versions: list[tuple[Zones, Tensor, Tensor]] = []
        for zone in self.attention.zones:
            k, v = read[zone]
            same = next((n for n, (_, k_n, v_n) in enumerate(versions) if k_n is k and v_n is v), None)
            if same is None:
                versions.append(((zone,), k, v))
            else:
                versions[same] = ((*versions[same][0], zone), k, v)
        return self.attention.attend(call, query, versions)

    def _quantized_value(self, value: Tensor) -> Tensor:
        if self._value_format is None:
            return value
        y = self._quantize("value", value.transpose(1, 2), self._value_format, self.stochastic_key + 1).transpose(1, 2)
        return _put_between(value, y, min(self._options.first, value.shape[2]), value.shape[2])

    def _quantized_key(self, key: Tensor) -> Tensor:
        if self._key_format is None:
            return key
        x = key if self.before is None else self.before.before_rope(key)
        start, stop = self._quantized_tokens(key.shape[2], self._key_format)
        # In blocks along D all tokens are quantized, for the observer; the first are then left out.
        begin = start if self._options.key_axis == "channel" else 0
        if begin == stop:
            return key
        in_basis = self._into_basis(x[:, :, begin:stop].transpose(1, 2))
        y = self._out_of_basis(self._quantize("key", in_basis, self._key_format, self.stochastic_key)).transpose(1, 2)
        if self.before is not None:
            y = self.before.embed(y, begin, stop)
        return _put_between(key, y, start, stop)

    def _quantized_tokens(self, tokens: int, fmt: MXFormat) -> tuple[int, int]:
        """Return from which to which token keys are quantized for some query: whole blocks, if these are of tokens."""
        first = min(self._options.first, tokens)
        if self._options.key_axis == "token":
            return first, tokens
        assert isinstance(fmt.block_size, int)
        return first, tokens - (tokens - first) % fmt.block_size

    def _quantize(self, kind: str, x: Tensor, fmt: MXFormat, stochastic_key: int) -> Tensor:
        """Quantize x (B, T, H, D).

        Tokens come before heads, so that an element's index within its example, from which stochastic rounding draws,
        does not depend on how far the batch is padded.
        """
        by_channel = kind == "key" and self._options.key_axis == "channel"
        y = quantize(
            x,
            fmt,
            axis=1 if by_channel else -1,
            backend=self.recipe.backend,
            arithmetic=self.recipe.arithmetic,
            generator=stochastic_key if fmt.rounding == "stochastic" else None,
            tensor_dims=(3,) if self._options.scales == "head" else (2, 3),
            example_dims=1,
        )
        if self.observer is not None and not by_channel:
            self.observer(kind, self.name, x, fmt, y)
        return y

    def _into_basis(self, x: Tensor) -> Tensor:
        """Return keys (B, T, H, D) in the basis in which they are quantized."""
        if self.factors is not None:
            self.factors = self.factors.to(x.device)
            x = (x / self.factors).to(x.dtype)  # in float32, which holds factors that float16 does not
        return self._rotate(x, inverse=False)

    def _out_of_basis(self, x: Tensor) -> Tensor:
        x = self._rotate(x, inverse=True)
        return x if self.factors is None else (x * self.factors).to(x.dtype)

    def _rotate(self, x: Tensor, inverse: bool) -> Tensor:
        rotation = self.recipe.rotation
        if rotation is None or QUERY_KEY not in rotation.matmuls:
            return x
        from mxsweep.numerics.hadamard import hadamard

        return hadamard(x, rotation.block, inverse=inverse)


def _put_between(plain: Tensor, quantized: Tensor, start: int, stop: int) -> Tensor:
    """Return ``plain`` (B, H, T, D) with the tokens from ``start`` to ``stop`` of ``quantized``, which ends there."""
    if start == stop:
        return plain
    if stop - start == plain.shape[2]:
        return quantized
    middle = quantized[:, :, quantized.shape[2] - (stop - start) :]
    return torch.cat([plain[:, :, :start], middle, plain[:, :, stop:]], dim=2)


class _LargestKeys:
    """Listen to an attention module, changing nothing, for the largest magnitude of each channel of its keys."""

    def __init__(self, before: KeysBeforeRope | None) -> None:
        self.calls = 0
        self._before = before
        self.amax: Tensor | None = None  # (H, D) float32

    def attend(self, call: Call, query: Tensor, key: Tensor, value: Tensor) -> Attended:
        seen = key if self._before is None else self._before.before_rope(key)
        amax = seen.detach().abs().amax((0, 2)).float()
        self.amax = amax if self.amax is None else torch.maximum(self.amax, amax)
        return call(query, key, value, call.mask)


def key_factors(model: PreTrainedModel, run_forward: Callable[[], None], smooth: float, rope: str) -> dict[str, Tensor]:
    """Return what the keys of each attention module are divided by before they are quantized.

    Factors are (H, D) in float32, on the device of the keys.

    The factor of channel c is (the largest |k_c| that ``run_forward`` lets the model compute) ^ ``smooth``, rounded to
    a power of two in the logarithm; 1 for a channel that is zero throughout. The two channels c and c + D/2 of a RoPE
    pair, which transformers' ``rotate_half`` mixes, have the same.

    Args:
        model: whose keys and values are not quantized.
        run_forward: runs it on the calibration tokens, without padding, which would count.
        smooth: from 0, for factors of 1, to 1, for channels that all reach about as far.
        rope: whether keys are taken "before" or "after" the rotary embedding.

    Raises:
        ConfigError: attention, or keys before RoPE, cannot be reached; keys that are not finite.
    """
    with ExitStack() as stack:
        listeners: dict[str, _LargestKeys] = {}
        for name, module in reached_attention(model).items():
            before = KeysBeforeRope(module, name) if rope == "before" else None
            if before is not None:
                stack.callback(before.close)
            listeners[name] = _LargestKeys(before)
        with listening(model, listeners), torch.no_grad():
            run_forward()
    return _factors({name: listener.amax for name, listener in listeners.items()}, smooth)


def _factors(largest: Mapping[str, Tensor | None], smooth: float) -> dict[str, Tensor]:
    factors = {}
    for name, amax in largest.items():
        if amax is None or not bool(amax.isfinite().all()):
            raise ConfigError(
                f"kv_quant.smooth: on the calibration tokens {name} computed {'no' if amax is None else 'infinite'} "
                "keys; allowed: 0"
            )
        heads, dim = amax.shape
        pairs = amax.view(heads, 2, dim // 2).amax(1, keepdim=True).expand(-1, 2, -1).reshape(heads, dim)
        exponent = torch.where(pairs > 0, pairs.log2() * smooth, 0.0).round()
        factors[name] = exponent.exp2()
    return factors
