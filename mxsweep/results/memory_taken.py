"""Read how much memory a run's model takes: its parameters, and its keys and values at a context length."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

from mxsweep.formats.cached_bits import USUAL_CONTEXT, CacheFormats, CacheLayer
from mxsweep.formats.mxformat import MXFormat
from mxsweep.formats.recipe import KVOptions
from mxsweep.results.rows import Row


def kv_bits_per_token(row: Row) -> float | None:
    """Return the bits that a cached token takes in all layers, scales and tokens that stay as they are included; None
    where that is not known.
    """
    known = _cache(row)
    return None if known is None else known[0].bits_per_token(known[1], tokens_held([row], USUAL_CONTEXT))


def tokens_held(rows: Sequence[Row], context: int) -> int:
    """Return `context`, or the tokens of the longest sequence that the model of these rows holds where those are fewer.

    A model holds as many tokens as it has positions for, or as a run reads at a time where those are more. Records of
    an earlier version do not say: there `context` is returned.
    """
    positions = _known([row.number("diagnostics", "max_positions") for row in rows])
    read = _known([row.number("config", "model", "max_length") for row in rows])
    return min(context, int(max(positions + read))) if positions else context


def _known(counts: Sequence[float | None]) -> list[float]:
    return [each for each in counts if each is not None and 1 <= each < math.inf]


def kv_bytes(row: Row, context: int) -> float | None:
    """Return the bytes of the cache of one sequence of `context` tokens; None where that is not known."""
    known = _cache(row)
    return None if known is None else known[0].bits(known[1], context) / 8


def _cache(row: Row) -> tuple[CacheFormats, list[CacheLayer]] | None:
    layers, quantized = row.recorded("diagnostics", "cache_layers"), row.recorded("identity", "quantized")
    if not layers or not isinstance(row.recorded("identity"), dict):
        return None
    try:
        shapes = [CacheLayer(**layer) for layer in layers]
        if quantized is None:
            return CacheFormats(), shapes
        key, value = (None if text is None else _format(text) for text in quantized["kv"])
        return CacheFormats(key, value, KVOptions(**(quantized.get("kv_options") or {}))), shapes
    except (KeyError, TypeError, ValueError):  # of another version
        return None


@lru_cache(maxsize=1024)
def _format(text: str) -> MXFormat:
    """Return a format by its name; the runs of a sweep have few."""
    return MXFormat.parse(text)
