"""Quantize what the cache of multi-head latent attention (MLA, DeepSeek-V2, arXiv 2405.04434) holds.

MLA keeps no keys and values of each head. For each token the cache holds one latent (kv_lora_rank numbers after their
norm), from which keys and values of all heads are expanded, and one RoPE key, which all heads share. These two are
quantized here, on their way from the cache into the module's ``expand_kv``: the expanded keys and values are computed
in each pass and kept nowhere. With ``kv.latent="expanded"`` it is these that are quantized, as keys and values of any
other model are (kv.py), and nothing here has a say but the refusals.

The RoPE key is quantized as keys are, and the latent as values are, after the same steps: a rotation R of the query-key
product is folded into the expanding matrix, (c R) (W R)^T = c W^T.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import Tensor, nn

from mxsweep.formats.recipe import LATENT_EXPANDED, LATENT_IN_CACHE, KVOptions, Recipe
from mxsweep.model.attention_interface import Attended, Call
from mxsweep.model.key_versions import CLOSED
from mxsweep.model.kv import KVQuantizer
from mxsweep.terminal.errors import ConfigError

EXPAND = "expand_kv"  # transformers' name: it takes the latent (B, 1, T, R) and the RoPE key (B, 1, T, D)


def holds_latents(module: nn.Module) -> bool:
    """Return whether an attention module is MLA, whose cache holds latents."""
    return hasattr(module, EXPAND) or hasattr(module, "kv_lora_rank")


def check_latents(modules: Mapping[str, nn.Module], recipe: Recipe) -> None:
    """Refuse what does not go with attention modules, by name, of which some may be MLA.

    Raises:
        ConfigError: expanded keys and values where nothing is expanded; of MLA, options that need keys before RoPE or
            its pairs of channels; of what its cache holds, different formats for keys and values, and options that
            treat keys in another way than values.
    """
    of_latents = {name: module for name, module in modules.items() if holds_latents(module)}
    if recipe.kv.latent == LATENT_EXPANDED and not of_latents:
        raise ConfigError(
            "kv_quant.latent: expanded does not go with a model that has no multi-head latent attention (MLA); "
            f"allowed: {LATENT_IN_CACHE}"
        )
    for name, module in of_latents.items():
        if recipe.kv.latent == LATENT_EXPANDED:
            where = f"{name} ({type(module).__name__}), whose keys are expanded from latents (MLA)"
            _check_options(where, recipe, "rope", "smooth")
        else:
            _check_cached(module, name, recipe)


def _check_cached(module: nn.Module, name: str, recipe: Recipe) -> None:
    where = f"{name} ({type(module).__name__}), whose cache holds one latent for keys and values (MLA)"
    if not callable(getattr(module, EXPAND, None)):
        raise ConfigError(f"kv_quant: the latents of {where} cannot be reached; allowed: kv_quant=none")
    if recipe.key != recipe.value:
        raise ConfigError(
            f"kv_quant: {recipe.key or 'none'} for keys and {recipe.value or 'none'} for values do not go with "
            f"{where}; allowed: the same for both"
        )
    _check_options(where, recipe, "key_axis", "rope", "recent", "smooth")


def _check_options(where: str, recipe: Recipe, *refused: str) -> None:
    for option in refused:
        value, default = getattr(recipe.kv, option), getattr(KVOptions(), option)
        if value != default:
            raise ConfigError(f"kv_quant.{option}: {value} does not go with {where}; allowed: {default}")


@dataclass
class LatentQuantizer(KVQuantizer):
    """Quantize the latents and RoPE keys of one attention module.

    Its observer is called with the RoPE key as a key, and with the latent as a value.

    Attributes:
        expanded: how often the module expanded a latent.
    """

    expanded: int = field(default=0, kw_only=True)

    def attend(self, call: Call, query: Tensor, key: Tensor, value: Tensor) -> Attended:
        """Compute the attention over keys and values that were expanded from quantized latents."""
        if self.calls > self.expanded:
            raise ConfigError(
                f"kv_quant: {self.name} attends over keys that it did not expand from a latent; allowed: kv_quant=none"
            )
        return self.attention.attend(call, query, [((CLOSED,), key, value)])

    @contextmanager
    def listening_to(self, module: nn.Module) -> Iterator[None]:
        """Let ``module`` expand quantized latents and RoPE keys while the context lasts."""
        expand: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = getattr(module, EXPAND)
        of_instance = EXPAND in vars(module)

        def expand_quantized(latent: Tensor, rope_key: Tensor) -> tuple[Tensor, Tensor]:
            self.expanded += 1
            return expand(self._quantized_value(latent), self._quantized_key(rope_key))

        setattr(module, EXPAND, expand_quantized)
        try:
            yield
        finally:
            delattr(module, EXPAND)
            if of_instance:
                setattr(module, EXPAND, expand)
