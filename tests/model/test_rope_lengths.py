"""Rotary embeddings that depend on length: a sequence scores the same alone, in any batch, and after any other."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from mxsweep.evaluate.lm import FastLM
from mxsweep.forward.batches import BatchLimits, Passage
from mxsweep.forward.engine import Engine
from mxsweep.model.load import load_model
from mxsweep.model.rope_lengths import RopeLengths

ORIGINAL = 16
SIZES: dict[str, Any] = {
    "vocab_size": 97, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16,
}  # fmt: skip
ROPES: dict[str, dict[str, Any]] = {
    "longrope": {
        "rope_type": "longrope", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": ORIGINAL,
        "short_factor": [1.0] * 8, "long_factor": [2.0] * 8,
    },
    "dynamic": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0},
}  # fmt: skip
LENGTHS = [40, 12, 17, 16, 30, 15, 30, 16, 5]


def build(rope: str) -> PreTrainedModel:
    torch.manual_seed(0)
    positions = ORIGINAL if rope == "dynamic" else 4 * ORIGINAL
    config = LlamaConfig(**SIZES, max_position_embeddings=positions, rope_parameters=dict(ROPES[rope]))
    model = LlamaForCausalLM(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


@torch.no_grad()
def alone(rope: str, tokens: np.ndarray) -> torch.Tensor:
    """Return the logits by a model that never read anything else."""
    return build(rope)(input_ids=torch.from_numpy(tokens)[None], use_cache=False).logits[0]


@pytest.mark.parametrize("rope", ROPES)
@pytest.mark.parametrize("batch_tokens", [1, 4096])
def test_a_sequence_scores_as_alone(rope: str, batch_tokens: int) -> None:
    generator = np.random.default_rng(3)
    passages = [Passage(generator.integers(0, 97, length)) for length in LENGTHS]
    engine = Engine(build(rope), BatchLimits(batch_tokens), "{tokens}")
    read = 0
    for order in (None, range(len(passages)), range(len(passages))[::-1]):
        for batch, logits in engine.read(passages, lambda batch, logits: batch.split(logits), order=order):
            for passage, of_one in zip(batch.passages, logits, strict=True):
                torch.testing.assert_close(of_one, alone(rope, passage.tokens), rtol=1e-4, atol=1e-4)
                read += 1
    assert read == 3 * len(LENGTHS)


@pytest.mark.parametrize(("rope", "batches"), [("longrope", [[40, 30, 30, 17], [16, 16, 15, 12, 5]]),
                                               ("dynamic", [[40], [30, 30], [17], [16, 16, 15, 12, 5]])])  # fmt: skip
def test_only_sequences_of_the_same_frequencies_share_a_batch(rope: str, batches: list[list[int]]) -> None:
    passages = [Passage(np.ones(length, dtype=np.int64)) for length in LENGTHS]
    engine = Engine(build(rope), BatchLimits(4096), "{tokens}")
    assert [batch.lengths for batch, _ in engine.read(passages, lambda *_: None or 0)] == batches


def test_an_embedding_of_one_set_of_frequencies_has_no_say() -> None:
    assert not RopeLengths(LlamaForCausalLM(LlamaConfig(**SIZES)))


@pytest.mark.parametrize("rope", ROPES)
def test_what_is_generated_does_not_depend_on_the_batch(rope: str) -> None:
    model, tokenizer = build(rope), load_model("embedded", device="cpu").tokenizer
    lm = FastLM(model, tokenizer, batch_size=8, max_length=64)
    assert lm.batch_size == 1
    prompts = [
        torch.randint(1, 97, (1, length), generator=torch.Generator().manual_seed(length)) for length in (18, 30)
    ]

    def generate(prompt: torch.Tensor) -> torch.Tensor:
        mask = torch.ones_like(prompt)
        return lm._model_generate(context=prompt, max_length=36, stop=["\x00"], attention_mask=mask)

    first = generate(prompts[0])
    generate(prompts[1])
    assert torch.equal(generate(prompts[0]), first)
