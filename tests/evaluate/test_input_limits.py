"""What a model cannot read is refused in words, before torch answers with an IndexError."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, LlamaConfig, OPTConfig, PreTrainedModel

from mxsweep import compose, run
from mxsweep.evaluate.input_limits import refuse_unlearned_positions
from mxsweep.evaluate.stories import stories
from mxsweep.files.checkpoints import model_folder
from mxsweep.terminal.errors import ConfigError

SIZES = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
OPT = OPTConfig(**SIZES, ffn_dim=32, word_embed_proj_dim=32, max_position_embeddings=128)
GPT2 = GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=2, n_positions=128)
LLAMA = LlamaConfig(**SIZES, intermediate_size=32, max_position_embeddings=128)


def built(config: OPTConfig | GPT2Config | LlamaConfig) -> PreTrainedModel:
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return model


@pytest.mark.parametrize("config", [OPT, GPT2])
def test_positions_that_were_not_learned_are_refused(config: OPTConfig | GPT2Config) -> None:
    model = built(config)
    with pytest.raises(ConfigError, match=r"model\.max_length: 129 is more than the 128 positions .* at most 128"):
        refuse_unlearned_positions(model, 129)
    for allowed in (128, None):
        refuse_unlearned_positions(model, allowed)


def test_rotary_positions_have_no_table() -> None:
    refuse_unlearned_positions(built(LLAMA), 512)


def test_a_run_longer_than_the_positions_is_refused(tmp_path: Path) -> None:
    embedded = model_folder("embedded")
    tokenizer = AutoTokenizer.from_pretrained(str(embedded))
    config = OPTConfig(**SIZES | {"vocab_size": len(tokenizer)}, ffn_dim=32, word_embed_proj_dim=32)
    config.max_position_embeddings = 128
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    words = ["model=hf", f"model.path={tmp_path / 'm'}", "model.device=cpu", "task=story", "format=none"]
    record = run(compose([*words, "limit=2", "model.max_length=512"]), tmp_path / "run")
    assert record["error"]["type"] == "ConfigError" and "128 positions" in record["error"]["message"]


def test_a_token_past_the_embedding_is_refused_by_name(tmp_path: Path) -> None:
    embedded = model_folder("embedded")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(str(embedded)), AutoTokenizer.from_pretrained(str(embedded))
    rows = model.get_input_embeddings().num_embeddings
    assert tokenizer.add_tokens(["zebra"]) == 1 and len(tokenizer) == rows + 1
    model.save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    words = ["model=hf", f"model.path={tmp_path / 'm'}", "model.device=cpu", "task=lambada_openai", "format=none"]
    for text, refused in ((stories(1)[0], False), (f"zebra {stories(1)[0]}", True)):
        (tmp_path / "rows.jsonl").write_text(json.dumps({"text": text}) + "\n")
        record = run(compose([*words, f"task.data={tmp_path / 'rows.jsonl'}"]), tmp_path / str(refused))
        if refused:
            assert record["error"]["type"] == "ConfigError"
            assert f"the token {rows} ('zebra')" in record["error"]["message"]
        else:
            assert record["status"] == "done"  # a token that no text has does no harm
