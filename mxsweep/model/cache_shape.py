"""Find out by one short pass what a model caches of each token."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from mxsweep.formats.cached_bits import CacheLayer
from mxsweep.machine.out_of_memory import is_out_of_memory
from mxsweep.model.latents import holds_latents

TOKENS = 4
_known: WeakKeyDictionary[nn.Module, tuple[CacheLayer, ...] | None] = WeakKeyDictionary()


def cache_layers(model: PreTrainedModel) -> tuple[CacheLayer, ...] | None:
    """Return what the layers of ``model`` cache, alike ones counted; one pass the first time it is asked.

    None where that is not the keys and values of each token, or not known: of a model that keeps states or latents
    (MLA) instead, that makes no cache, or that cannot read a few tokens with one.
    """
    if model not in _known:
        _known[model] = _measure(model)
    return _known[model]


def _measure(model: PreTrainedModel) -> tuple[CacheLayer, ...] | None:
    if model.device.type == "meta" or any(map(holds_latents, model.modules())):
        return None
    tokens = torch.arange(1, TOKENS + 1, device=model.device)[None] % int(model.config.get_text_config().vocab_size)
    try:
        with torch.no_grad():
            cache = model(input_ids=tokens, use_cache=True).past_key_values
    except Exception as error:  # whatever a model's own code raises; a run needs no cache
        if is_out_of_memory(error):
            raise
        return None
    counted: Counter[CacheLayer] = Counter()
    for layer in getattr(cache, "layers", None) or ():
        if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer):
            return None
        if layer.keys is None or layer.keys.ndim != 4:  # a layer that reads those of another one caches none
            continue
        (_, heads, kept, key_size), value_size = layer.keys.shape, layer.values.shape[-1]
        window = layer.sliding_window if isinstance(layer, DynamicSlidingWindowLayer) else None
        if kept != (TOKENS if window is None else min(TOKENS, window - 1)):
            return None
        counted[CacheLayer(heads, key_size, value_size, window, layer.keys.element_size() * 8)] += 1
    return tuple(replace(layer, layers=count) for layer, count in counted.items()) or None
