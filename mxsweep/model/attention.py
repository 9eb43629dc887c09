"""Put MX formats of keys and values into a model, and take them out again.

attention_interface.py reaches a model's attention, kv.py quantizes keys and values, key_versions.py says which version
of them a query reads, rope.py finds the keys before RoPE.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from types import MappingProxyType

from torch import Tensor
from transformers import PreTrainedModel

from mxsweep.formats.recipe import LATENT_IN_CACHE, Recipe
from mxsweep.model.attention_interface import STATE, attention_modules, listening
from mxsweep.model.attention_probe import reached_attention
from mxsweep.model.kv import KVQuantizer, formats_of_heads, versioned_attention
from mxsweep.model.latents import LatentQuantizer, check_latents, holds_latents
from mxsweep.model.probe import probe_pass
from mxsweep.model.rope import KeysBeforeRope

__all__ = ["STATE", "KVQuantizer", "quantized_attention"]

NO_FACTORS: Mapping[str, Tensor] = MappingProxyType({})


def refuse_kv_options(model: PreTrainedModel, recipe: Recipe) -> None:
    """Refuse what cannot be done to the keys and values of ``model``, loaded or on the meta device, without a pass.

    Raises:
        ConfigError: attention that cannot be reached; options of ``recipe.kv`` that do not go with each other or with
            this model.
    """
    if recipe.key is not None or recipe.value is not None:
        formats_of_heads(recipe)
        check_latents(attention_modules(model), recipe)


def refuse_attention(model: PreTrainedModel, recipe: Recipe) -> None:
    """Refuse all that :func:`quantized_attention` refuses, key factors apart, before anything is worked out for it.

    Raises:
        ConfigError: as there.
    """
    refuse_kv_options(model, recipe)
    with quantized_attention(model, replace(recipe, kv=replace(recipe.kv, smooth=0.0)), lambda _: 0):
        pass


@contextmanager
def quantized_attention(
    model: PreTrainedModel,
    recipe: Recipe,
    module_key: Callable[[str], int],
    key_factors: Mapping[str, Tensor] = NO_FACTORS,
) -> Iterator[tuple[str, ...]]:
    """Quantize keys and values while the context lasts; yields the names of the attention modules.

    A few short passes on entering find the modules that a text reaches, and whatever does not go with them.

    Args:
        module_key: a stochastic key for the module of a name.
        key_factors: what :func:`mxsweep.model.kv.key_factors` gave, where ``recipe.kv.smooth`` asks for it.

    Raises:
        ConfigError: the model's attention cannot be reached, or standing between it and the model changes logits by
            itself; options of ``recipe.kv`` that do not go with each other or with this model.
        ValueError: smoothing without factors.
    """
    if recipe.key is None and recipe.value is None:
        yield ()
        return
    formats_of_heads(recipe)  # refused here rather than in the first pass
    modules = reached_attention(model)
    check_latents(modules, recipe)
    smoothed = recipe.key is not None and recipe.kv.smooth > 0
    if smoothed and set(modules) - set(key_factors):
        raise ValueError(f"key_factors: none for {min(set(modules) - set(key_factors))}, but kv.smooth is not 0")
    attention = versioned_attention(recipe)
    with ExitStack() as stack:
        quantizers: dict[str, KVQuantizer] = {}
        for name, module in modules.items():
            if holds_latents(module) and recipe.kv.latent == LATENT_IN_CACHE:
                latents = LatentQuantizer(recipe, module_key(name), name, attention)
                stack.enter_context(latents.listening_to(module))
                quantizers[name] = latents
                continue
            before = None
            if recipe.key is not None and recipe.kv.rope == "before":
                before = KeysBeforeRope(module, name)
                stack.callback(before.close)
            factors = key_factors[name] if smoothed else None
            quantizers[name] = KVQuantizer(recipe, module_key(name), name, attention, factors, before)
        stack.enter_context(listening(model, quantizers))
        probe_pass(model)  # refuses what a quantizer cannot do, before anything is evaluated
        yield tuple(modules)
