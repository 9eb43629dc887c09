"""Patterns of ``modules`` with a word that no module has are refused without torch, and no others are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from helpers import mixtures
from transformers import AutoConfig, AutoModelForCausalLM

from mxsweep import compose
from mxsweep.files.checkpoints import model_folder
from mxsweep.model.operands import find_operands
from mxsweep.sweeps.module_patterns import unmatched_pattern

TINY = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2, "vocab_size": 32}
MORE = {
    "phi3": {"pad_token_id": 0},
    "opt": {"ffn_dim": 32, "word_embed_proj_dim": 16},
    "qwen3": {"num_key_value_heads": 2, "head_dim": 8},
}
TYPES = ["llama", "gpt2", "gpt_neox", "opt", "phi3", "bloom", "falcon", "qwen3", "mamba", *mixtures.ARCHITECTURES]


@pytest.mark.parametrize("name", TYPES)
def test_every_name_in_a_model_may_be_matched(name: str, tmp_path: Path) -> None:
    if name in mixtures.ARCHITECTURES:
        model = mixtures.build(name)
    else:
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **TINY, **MORE.get(name, {})))
    model.save_pretrained(tmp_path)
    names = {name for name, _ in model.named_modules() if name} | {*find_operands(model)}
    config = compose([]).model
    object.__setattr__(config, "path", str(tmp_path))
    for each in sorted(names):
        assert unmatched_pattern(config, [each]) is None, each
        assert unmatched_pattern(config, [f"*.{each.rpartition('.')[2]}", f"{each.partition('.')[0]}.*"]) is None
    for wrong in ("nowhere", "model.layers.0.self_attn.q_prj", "nothing.*", "*.lm_hed"):
        said = unmatched_pattern(config, [wrong])
        unknown = [word for word in wrong.split(".") if word.isidentifier() and not any(word in n for n in names)]
        assert said in [
            f"modules: the pattern {wrong!r} matches no linear layer or embedding: no module of the model has "
            f"{word!r} in its name; allowed: names of its linear layers and embeddings, or patterns of them"
            for word in unknown
        ]


@pytest.mark.parametrize("pattern", ["*nowhere*", "[n]owhere", "*", "3.*", "model.layers.[!.]nothing.*"])
def test_what_a_glob_hides_is_left_to_the_model(pattern: str) -> None:
    assert unmatched_pattern(compose([]).model, [pattern]) is None


def test_what_is_not_here_is_left_to_who_loads_it(tmp_path: Path) -> None:
    assert unmatched_pattern(compose(["model=owner/name"]).model, ["nowhere"]) is None


def test_torch_is_not_imported() -> None:
    assert model_folder("embedded") is not None
    code = (
        "import sys; from mxsweep.__main__ import main\n"
        "assert main(['modules={nowhere: none}']) == 2 and 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("mxsweep: modules: the pattern 'nowhere' matches no linear layer")
