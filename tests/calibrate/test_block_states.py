"""The states in front of each block are those that a plain pass brings there, however the model goes through them."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest
import torch
from helpers.decoded import decoded
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, Gemma3nTextConfig, LlamaConfig, PreTrainedModel, RwkvConfig

from mxsweep.calibrate.block_states import BlockStates
from mxsweep.calibrate.sequential import solve_weights
from mxsweep.formats.recipe import LinearFormats, Recipe
from mxsweep.model.decoder import decoder_blocks
from mxsweep.model.prepared import Prepared
from mxsweep.model.probe import probe
from mxsweep.numerics import MXFormat, encode, quantize

SIZES: dict[str, Any] = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "num_key_value_heads": 1,
    "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip
ARCHITECTURES = {
    "llama": LlamaConfig(**SIZES, num_hidden_layers=3),
    # A stack of states, and keys that later layers take from earlier ones.
    "gemma3n": Gemma3nTextConfig(
        **SIZES, num_hidden_layers=4, head_dim=16, num_kv_shared_layers=2, hidden_size_per_layer_input=16,
        layer_types=["sliding_attention", "full_attention"] * 2, vocab_size_per_layer_input=97, laurel_rank=8,
        activation_sparsity_pattern=[0.0] * 4,
    ),
    # Halves its states after each second block.
    "rwkv": RwkvConfig(vocab_size=97, hidden_size=32, num_hidden_layers=4, rescale_every=2),
}  # fmt: skip
BATCHES = [torch.randint(3, 97, (2, 12), generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]


def build(name: str) -> PreTrainedModel:
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(ARCHITECTURES[name])
    return model.float().eval()


@torch.no_grad()
def states_of(model: PreTrainedModel) -> dict[str, list[Tensor]]:
    """Return what each block is called with in plain passes."""
    seen: dict[str, list[Tensor]] = defaultdict(list)
    handles = [
        block.register_forward_pre_hook(
            lambda _, args, kwargs, own=name: seen[own].append(args[0] if args else kwargs["hidden_states"]),
            with_kwargs=True,
        )
        for name, block in decoder_blocks(model).items()
    ]
    for batch in BATCHES:
        model(input_ids=batch, use_cache=False)
    for handle in handles:
        handle.remove()
    return seen


@torch.no_grad()
def walked(model: PreTrainedModel) -> dict[str, list[Tensor]]:
    """Return what stands in front of each block on the way through the model."""
    blocks = decoder_blocks(model)
    states, found = BlockStates(model, list(blocks.values()), 0, BATCHES), {}
    for number, name in enumerate(blocks):
        found[name] = states.within_memory(lambda: list(states._states or []))
        if number + 1 < len(blocks):
            states.within_memory(states.advance)
    return found


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_states_in_front_of_each_block(name: str) -> None:
    model = build(name)
    probe(model)  # RWKV rescales its weights in the first pass of all
    expected, found = states_of(model), walked(model)
    assert list(found) == list(expected)
    for block, states in expected.items():
        assert len(found[block]) == len(states) == 2
        for ours, theirs in zip(found[block], states, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_blocks_that_a_model_goes_through_twice_have_the_states_of_both_times() -> None:
    model = build("llama")
    model.model.layers.extend(model.model.layers[:1])  # under another name, too
    model.config.num_hidden_layers = 4
    expected, found = states_of(model), walked(model)
    assert len(expected["model.layers.0"]) == 4 and len(expected["model.layers.1"]) == 2
    for block, states in expected.items():
        for ours, theirs in zip(found[block], states, strict=True):
            torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("name", ["gemma3n", "rwkv"])
def test_weights_of_such_models_are_solved_for(name: str) -> None:
    """With what rounding gives, where the solver rounds."""
    model, fmt = build(name), MXFormat("fp4_e2m1", 16)
    recipe = Recipe(LinearFormats(fmt, fmt))
    solved = solve_weights(model, recipe, Prepared(), BATCHES, lambda weight, _, of: encode(weight, of))
    blocks = decoder_blocks(model)
    linear = [
        f"{block}.{within}" for block in blocks for within, module in blocks[block].named_modules()
        if isinstance(module, nn.Linear)
    ]  # fmt: skip
    assert sorted(solved.weights) == sorted(linear)
    for module, weight in decoded(solved.weights).items():
        expected = quantize(model.get_submodule(module).weight.detach(), fmt, arithmetic="exact")
        torch.testing.assert_close(weight, expected, rtol=0, atol=0)
