"""Choose the attention that a model is loaded with: transformers' pick for it, or the one that is asked for by name."""

from __future__ import annotations

from transformers import PreTrainedModel

from mxsweep.terminal.errors import ConfigError


def transformers_name(attention: str) -> str | None:
    """Return what transformers is given as ``attn_implementation`` for a value of ``model.attention``."""
    return None if attention == "auto" else attention


def missing_attention(attention: str, reason: str) -> ConfigError | None:
    """Return the refusal where ``reason``, for which a model could not be loaded, is about its attention."""
    about_attention = ("scaled_dot_product_attention", "attn_implementation", "flash", "flex_attention", "kernel")
    if attention in ("auto", "eager") or not any(word in reason.lower() for word in about_attention):
        return None
    model_class = reason.partition(" ")[0]
    if attention == "sdpa":
        why = f"sdpa is not there for {model_class}"
    else:
        why = f"{attention!r} is not to be had for this model on this machine: {reason[:200]}"
    return ConfigError(
        f"model.attention: {why}; allowed: model.attention=eager, or model.attention=auto for what transformers picks "
        "for the model"
    )


def refuse_another_pick(attention: str, model: PreTrainedModel) -> None:
    """Raise ConfigError where a model attends in another way than its run's hash says.

    A name that is asked for may be replaced by transformers, by one that config.json names, or by a kernel for a
    library that is not installed. And "auto" has the hash of "sdpa", since transformers picks another only where a part
    of the model has no "sdpa".
    """
    picked = model.config.get_text_config()._attn_implementation
    if attention not in ("auto", picked):
        raise ConfigError(
            f"model.attention: transformers takes {picked!r} in place of {attention!r}, as it does where config.json "
            f"names it (_attn_implementation), or a library is not there; allowed: model.attention={picked}"
        )
    parts = [part for part in model.modules() if isinstance(part, PreTrainedModel)]
    if attention == "auto" and picked != "sdpa" and all(part._supports_sdpa for part in parts):
        raise ConfigError(
            f"model.attention: auto gives {picked!r} for {type(model).__name__}, which has sdpa, too: config.json "
            f"(_attn_implementation) or the checkpoint's own code names it; allowed: model.attention={picked}"
        )
