"""What models cache of a token."""

import torch
from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig, MambaConfig, PretrainedConfig

from mxsweep.formats.cached_bits import CacheLayer
from mxsweep.model.cache_shape import cache_layers
from mxsweep.model.positions import most_positions

SMALL = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 4}


def layers_of(config: PretrainedConfig, dtype: torch.dtype = torch.float32) -> tuple[CacheLayer, ...] | None:
    return cache_layers(AutoModelForCausalLM.from_config(config).to(dtype).eval())


def test_heads_of_keys_and_values_count() -> None:
    config = LlamaConfig(**SMALL, num_hidden_layers=3, num_key_value_heads=2)
    assert layers_of(config, torch.bfloat16) == (CacheLayer(2, 16, 16, None, 16, 3),)


def test_positions_are_those_of_the_language_model() -> None:
    config = LlamaConfig(**SMALL, num_hidden_layers=1, max_position_embeddings=48)
    assert most_positions(AutoModelForCausalLM.from_config(config)) == 48
    state = MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=1, state_size=4)
    assert most_positions(AutoModelForCausalLM.from_config(state)) is None


def test_windows_are_told_apart() -> None:
    config = Gemma3TextConfig(
        **SMALL,
        num_hidden_layers=3,
        num_key_value_heads=1,
        head_dim=32,
        sliding_window=3,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    )
    assert layers_of(config) == (CacheLayer(1, 32, 32, 3, 32, 2), CacheLayer(1, 32, 32, None, 32, 1))


def test_states_are_no_keys_and_values() -> None:
    assert layers_of(MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=4)) is None


def test_nothing_is_known_without_values() -> None:
    with torch.device("meta"):
        assert cache_layers(AutoModelForCausalLM.from_config(LlamaConfig(**SMALL, num_hidden_layers=1))) is None
