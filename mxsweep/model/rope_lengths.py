"""Keep rotary embeddings that depend on sequence length independent of the batch.

longrope (Phi-3) has two sets of frequencies, and dynamic NTK scaling one for each length beyond the original: both are
chosen by the longest sequence of a batch, padding included, and the dynamic one stays for shorter sequences that
follow. A sequence would score differently by what it is read with. So only sequences that get the same frequencies
alone share a batch, and what a pass left behind is forgotten before the next.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn

LONGROPE, DYNAMIC = "longrope", "dynamic"


@dataclass(frozen=True)
class _Embedding:
    """Hold a rotary embedding whose frequencies depend on length; ``prefix`` is of its layers' type, if it has some."""

    module: nn.Module
    kind: str
    prefix: str
    original: int  # tokens up to which the frequencies are those that the model was first trained with


class RopeLengths:
    """Say which lengths of sequences get the same frequencies in ``model``."""

    def __init__(self, model: nn.Module) -> None:
        self._embeddings = [embedding for module in model.modules() for embedding in _embeddings(module)]

    def __bool__(self) -> bool:
        """Return whether frequencies depend on length at all."""
        return bool(self._embeddings)

    def frequencies(self, tokens: int) -> Hashable:
        """Return what is the same for sequences that get the same frequencies as one of so many ``tokens``."""
        return tuple(
            max(tokens, embedding.original) if embedding.kind == DYNAMIC else tokens > embedding.original
            for embedding in self._embeddings
        )

    def forget(self) -> None:
        """Put the frequencies back that the embeddings began with, where a pass before would decide about the next."""
        for embedding in self._embeddings:
            if embedding.kind == DYNAMIC:
                module, prefix = embedding.module, embedding.prefix
                if int(getattr(module, f"{prefix}max_seq_len_cached", embedding.original)) == embedding.original:
                    continue
                device = getattr(module, f"{prefix}inv_freq").device
                original: torch.Tensor = getattr(module, f"{prefix}original_inv_freq").to(device)
                module.register_buffer(f"{prefix}inv_freq", original, persistent=False)
                setattr(module, f"{prefix}max_seq_len_cached", embedding.original)


def _embeddings(module: nn.Module) -> list[_Embedding]:
    """Return a module's rotary embeddings of these kinds, as transformers' ``dynamic_rope_update`` reads them."""
    kinds = getattr(module, "rope_type", None)
    parameters = getattr(getattr(module, "config", None), "rope_parameters", None)
    if not isinstance(parameters, Mapping):
        return []
    by_prefix = {"": (kinds, parameters)}
    if isinstance(kinds, Mapping):  # by the type of layer
        by_prefix = {f"{layer}_": (kind, parameters[layer]) for layer, kind in kinds.items()}
    embeddings = []
    for prefix, (kind, of_kind) in by_prefix.items():
        if kind == LONGROPE:
            embeddings.append(_Embedding(module, LONGROPE, prefix, int(of_kind["original_max_position_embeddings"])))
        elif isinstance(kind, str) and DYNAMIC in kind:
            embeddings.append(_Embedding(module, DYNAMIC, prefix, int(cast(int, module.original_max_seq_len))))
    return embeddings
