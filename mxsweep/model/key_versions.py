"""Choose the version of a key and its value that a query reads: unquantized or quantized.

Legend: B batch, H key-value heads, Tq queries, Tk keys, D head_dim; a query stands at position i, a key at j <= i.

Keys are quantized in blocks of consecutive tokens, or the most recent tokens stay as they are: then what a query
reads depends on the query, and there are three zones of (i, j):

    recent  i - j < n: key and value as they are
    open    the block that j belongs to ends after i: the key as it is, the value quantized
    closed  all others: both quantized

An attention function takes one key for each position. So the versions are laid one behind another along the sequence,
[K1; K2] and [V1; V2], and the mask lets a query see each position in one of them. The softmax is then over the very
scores it should be over, and it is the model's own function that computes it, with its scaling, capping and sinks, for
the price of as many times the keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mxsweep.model.attention_interface import Attended, Call
from mxsweep.terminal.errors import ConfigError

CLOSED, OPEN, RECENT = "closed", "open", "recent"
Zones = tuple[str, ...]


class VersionedAttention:
    """Compute attention over several versions of keys and values. Layers share one object, as they share a mask.

    Args:
        first: the tokens at the beginning that are no part of any block.
        recent: how many tokens up to the query's own are recent.
        block: how many tokens a block along the sequence has; 0 where there are none.
    """

    def __init__(self, first: int, recent: int, block: int) -> None:
        self._first, self._recent, self._block = first, recent, block
        self._last: tuple[Tensor | None, tuple[Any, ...], Tensor | None] | None = None

    @property
    def zones(self) -> Zones:
        """Return the zones that there are, of the three."""
        return (CLOSED, *([OPEN] if self._block else []), *([RECENT] if self._recent else []))

    def attend(self, call: Call, query: Tensor, versions: Sequence[tuple[Zones, Tensor, Tensor]]) -> Attended:
        """Compute the call's attention of ``query`` (B, Hq, Tq, D).

        Args:
            versions: the zones in which a version is read, its keys and its values (B, H, Tk, D); together the
                versions are for each of ``zones`` once.

        Raises:
            ConfigError: tokens cannot be counted from the beginning of each sequence, or queries read later tokens.
        """
        zones, keys, values = zip(*versions, strict=True)
        mask = self._mask(call, zones, query.shape[2], keys[0])
        if len(versions) == 1:
            return call(query, keys[0], values[0], mask)
        output, weights = call(query, torch.cat(keys, dim=2), torch.cat(values, dim=2), mask)
        return output, None if weights is None else weights.unflatten(-1, (len(versions), -1)).sum(-2)

    def _mask(self, call: Call, zones: tuple[Zones, ...], queries: int, key: Tensor) -> Tensor | None:
        """Return the mask over the versions, (B or 1, 1, Tq, versions Tk), remembered for the layers that follow."""
        given, length = call.mask, key.shape[2]
        version = 0 if given is None else -1 if given.is_inference() else given._version
        arguments = (version, zones, queries, length, key.device, call.is_causal, call.kwargs.get("sliding_window"))
        if self._last is not None and version >= 0 and self._last[0] is given and self._last[1] == arguments:
            return self._last[2]
        if self._first or self._block:
            self._check_beginning(call, queries, length)
        mask = given
        if len(zones) > 1:
            self._check_causal(call, queries)
            mask = self._select(given, zones, queries, key)
        self._last = given, arguments, mask
        return mask

    def _check_beginning(self, call: Call, queries: int, length: int) -> None:
        """Refuse what has no first token of a sequence at position 0."""
        field = "kv_quant.first" if self._first else "kv_quant.key_axis"
        window = call.kwargs.get("sliding_window")
        if window is not None and length != queries and length >= window:
            raise ConfigError(
                f"{field}: tokens cannot be counted in a cache that forgets those out of a sliding window of {window}; "
                "allowed here: what kv_quant has by default"
            )
        if call.mask is not None and not bool(_visible(call.mask)[..., 0, 0].all()):
            raise ConfigError(
                f"{field}: tokens cannot be counted from the beginning in a batch that is padded on the left; allowed "
                "with batch_size=1, or what kv_quant has by default"
            )

    def _check_causal(self, call: Call, queries: int) -> None:
        if call.mask is None and queries > 1 and not call.is_causal:
            field = "kv_quant.recent" if self._recent else "kv_quant.key_axis"
            raise ConfigError(
                f"{field}: {type(call.module).__name__} reads later tokens, too; allowed here: what kv_quant has by "
                "default"
            )

    def _select(self, given: Tensor | None, zones: tuple[Zones, ...], queries: int, key: Tensor) -> Tensor:
        places = torch.arange(key.shape[2], device=key.device)
        if given is None:
            # One query is the last token's; several begin at the first one's, as in transformers' function for sdpa.
            query_places = (places[-1:] if queries == 1 else places[:queries]).view(1, 1, queries, 1)
            visible = places <= query_places
        else:
            given = given[..., : key.shape[2]]
            visible = _visible(given)
            # Under a causal mask the last token that a query sees is its own, wherever a cache or padding put it.
            query_places = torch.where(visible, places, -1).amax(-1, keepdim=True)
        chosen = [self._in_zones(of_version, query_places, places) for of_version in zones]
        if given is None or given.dtype == torch.bool:
            return torch.cat([visible & one for one in chosen], dim=-1)
        return torch.cat([given.masked_fill(~one, torch.finfo(given.dtype).min) for one in chosen], dim=-1)

    def _in_zones(self, zones: Zones, query_places: Tensor, places: Tensor) -> Tensor:
        """Return for each (i, j) whether it is in one of ``zones``, (B or 1, 1, Tq, Tk).

        Args:
            query_places: the positions i, (B or 1, 1, Tq, 1).
            places: the positions j, (Tk,).
        """
        recent = query_places - places < self._recent
        unfinished = torch.zeros_like(recent)
        if self._block:
            blocks = torch.div(places - self._first, self._block, rounding_mode="floor")
            unfinished = self._first + (blocks + 1) * self._block - 1 > query_places
        masks = {RECENT: recent, OPEN: unfinished & ~recent, CLOSED: ~unfinished & ~recent}
        return torch.stack([masks[zone] for zone in zones]).any(0)


def _visible(mask: Tensor) -> Tensor:
    """Return where a mask, boolean or added to the scores, lets a query see a key."""
    return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
