"""Say what became of the weights of a checkpoint: which ones the model took, and which ones it has no place for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedModel

from mxsweep.terminal.errors import ConfigError

_NAMED = 3  # of the weights that are left out


def refuse_partial(path: str, loading: Mapping[str, Any]) -> None:
    """Raise ConfigError where weights are missing or of another shape: transformers fills them with random numbers."""
    if others := sorted(loading.get("mismatched_keys") or ()):
        name, stored, asked = others[0]
        raise ConfigError(
            f"model.path: {path!r} is no whole checkpoint: {len(others)} weights are mismatched, {name} first: of "
            f"shape {list(stored)} in its files, and {list(asked)} by config.json"
        )
    if keys := sorted(map(str, loading.get("missing_keys") or ())):
        raise ConfigError(
            f"model.path: {path!r} is no whole checkpoint: {len(keys)} weights are missing, {keys[0]} first"
        )


def refuse_untied_head(path: str, model: PreTrainedModel) -> None:
    """Raise ConfigError for a head of another content than the embedding that the config says it shares.

    transformers loads both, and whoever ties the weights once more (as lm-eval does) drops the head.
    """
    if not model.config.get_text_config().tie_word_embeddings:
        return
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    ours, shared = (getattr(module, "weight", None) for module in (head, embedding))
    if not isinstance(ours, torch.Tensor) or not isinstance(shared, torch.Tensor) or ours is shared:
        return
    if ours.shape != shared.shape or not torch.equal(ours, shared.to(ours.device)):
        raise ConfigError(
            f"model.path: {path!r} holds a head of its own, unlike the embedding, and config.json says that the two "
            "are one (tie_word_embeddings); set tie_word_embeddings to false there, or take the head out"
        )


def describe_dropped(path: str, loading: Mapping[str, Any]) -> list[str]:
    """Warn of weights that the checkpoint holds and the model has no place for; empty where there are none.

    What a class of transformers names as no part of it on purpose (rotary frequencies, another model's head) is not
    among them.
    """
    dropped = sorted(map(str, loading.get("unexpected_keys") or ()))
    if not dropped:
        return []
    more = f" and {len(dropped) - _NAMED:,} more" if len(dropped) > _NAMED else ""
    return [
        f"model.path: {path!r} holds {len(dropped):,} weight{'s' * (len(dropped) > 1)} that the model has no place "
        f"for, left out: {', '.join(dropped[:_NAMED])}{more}. Either config.json is of another model (its "
        "num_hidden_layers, its biases), or they are of a part that text does not need"
    ]
