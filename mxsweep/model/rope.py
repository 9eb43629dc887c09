"""Overhear keys before the rotary embedding (RoPE), of models whose attention receives them after it.

No interface hands these keys over, so they are overheard: they come out of the attention module's ``k_norm`` where the
model normalizes keys, else out of its ``k_proj``. The model's own ``apply_rotary_pos_emb`` embeds them, with the
angles that the attention module was given. That this is what the model does is not taken for granted: in the first
pass, the overheard keys embedded must be those that attention received.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mxsweep.machine.out_of_memory import is_out_of_memory
from mxsweep.model.operands import projection
from mxsweep.terminal.errors import ConfigError

TOLERANCE = 1e-2  # of the largest key: bfloat16 rounds to 4e-3


class KeysBeforeRope:
    """Overhear the keys of one attention module before RoPE, pass by pass, until ``close``.

    Args:
        name: the module's, for messages.

    Raises:
        ConfigError: the module has no such keys that could be overheard.
    """

    def __init__(self, module: nn.Module, name: str) -> None:
        self._name, self._class = name, type(module).__name__
        self._embed: Callable[..., Any] | None = getattr(
            sys.modules[type(module).__module__], "apply_rotary_pos_emb", None
        )
        self._one_tensor = self._embed is not None and list(inspect.signature(self._embed).parameters)[1:2] == ["cos"]
        self._signature = inspect.signature(module.forward)
        if self._embed is None or "position_embeddings" not in self._signature.parameters:
            raise self._refusal("it has no rotary embedding that can be applied here")
        if _source(module) is None:
            raise self._refusal("it has neither k_proj nor k_norm")
        self._angles: tuple[Tensor, Tensor] | None = None
        self._heard: Tensor | None = None
        self._checked = False
        self._begin_hook = module.register_forward_pre_hook(self._begin, with_kwargs=True)
        self._source: RemovableHandle | None = None

    def close(self) -> None:
        """Stop overhearing, and let go of the keys."""
        self._begin_hook.remove()
        self._stop()
        self._angles = self._heard = None

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._stop()
        given = self._signature.bind_partial(*args, **kwargs).arguments.get("position_embeddings")
        if not isinstance(given, tuple) or len(given) != 2:
            raise self._refusal("it was not given the cosines and sines of a rotary embedding")
        self._angles, self._heard = given, None
        # Looked up in every pass: an MX layer may stand in for k_proj by now.
        source = _source(module)
        assert source is not None
        self._source = source.register_forward_hook(self._hear)

    def _hear(self, _module: nn.Module, _args: Any, output: Tensor) -> None:
        self._heard = output
        self._stop()

    def _stop(self) -> None:
        if self._source is not None:
            self._source.remove()
            self._source = None

    def before_rope(self, key: Tensor) -> Tensor:
        """Return the keys before RoPE that became ``key`` (B, H, T, D) in this pass, in the same shape.

        Raises:
            ConfigError: it was not overheard; some of it is from a cache.
        """
        heard, self._heard = self._heard, None
        if heard is None:
            raise self._refusal("it computed no key in this pass")
        if heard.numel() != key.numel():
            raise ConfigError(
                "kv_quant.rope: before does not go with a cache of keys, in which they are embedded already; allowed "
                "for tasks that generate text: after"
            )
        candidates = _laid_out_as(key, heard)
        if len(candidates) == 1 and self._checked:
            return candidates[0]
        for candidate in candidates:
            if self._becomes(candidate, key):
                self._checked = True
                return candidate
        raise self._refusal("what k_norm or k_proj computes is not what its rotary embedding reads")

    def embed(self, x: Tensor, start: int, stop: int) -> Tensor:
        """Embed keys x (B, H, stop - start, D) that stand at these positions of the pass."""
        assert self._embed is not None and self._angles is not None
        cos, sin = (angle[..., start:stop, :] for angle in self._angles)
        if self._one_tensor:  # as in Gemma 4: (x, cos, sin) instead of (q, k, cos, sin)
            embedded: Tensor = self._embed(x, cos, sin)
        else:
            _, embedded = self._embed(x[:, :0], x, cos, sin)  # of queries, none
        return embedded

    def _becomes(self, candidate: Tensor, key: Tensor) -> bool:
        try:
            embedded = self.embed(candidate, 0, key.shape[2])
        except RuntimeError as error:  # an embedding of some of the channels only
            if is_out_of_memory(error):
                raise
            raise self._refusal("its rotary embedding does not read a whole key") from error
        room = TOLERANCE * float(torch.where(key.isfinite(), key.abs(), 0).amax()) if key.numel() else 0.0
        return embedded.shape == key.shape and torch.allclose(embedded, key, rtol=0, atol=room, equal_nan=True)

    def _refusal(self, why: str) -> ConfigError:
        return ConfigError(
            f"kv_quant.rope: before does not go with {self._class} ({self._name}): {why}; allowed: after"
        )


def _source(module: nn.Module) -> nn.Module | None:
    """Return the module whose output is the key before RoPE; None if there is none."""
    norm: nn.Module | None = getattr(module, "k_norm", None)
    return norm if norm is not None else projection(module, "k")


def _laid_out_as(key: Tensor, heard: Tensor) -> list[Tensor]:
    """Return ``heard``, (B, T, H D), (B, T, H, D) or (B, H, T, D), as (B, H, T, D); both ways where T = H."""
    batch, heads, tokens, dim = key.shape
    if heard.dim() == 3:
        return [heard.view(batch, tokens, heads, dim).transpose(1, 2)]
    return [x for x in (heard.transpose(1, 2), heard) if x.shape == key.shape]
