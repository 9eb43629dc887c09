"""A trained model is evaluated in the formats that each of its layers was trained in."""

from __future__ import annotations

from mxsweep import compose
from mxsweep.formats.mxformat import MXFormat
from mxsweep.formats.recipe import LinearFormats
from mxsweep.model.operands import find_operands
from mxsweep.model.random_llama import llama_without_values
from mxsweep.model.sites import is_in_blocks
from mxsweep.training.evaluated import as_trained

FOUR, PLAIN = LinearFormats(MXFormat("fp4_e2m1"), MXFormat("fp4_e2m1")), LinearFormats()


def evaluated(*words: str) -> dict[str, LinearFormats]:
    """Return the formats of a Llama's operands, as a recipe gives them in an evaluation."""
    config = compose(["train=from_scratch", "format=mxfp4", *words])
    model = llama_without_values(config.init, config.train.length)
    recipe = as_trained(config, model).recipe
    return {
        name: recipe.formats_of(name, is_in_blocks(operand), operand.module_name)
        for name, operand in find_operands(model).items()
    }


def test_what_was_kept_high_stays_as_it_is() -> None:
    formats = evaluated("matmuls.keep_high=[lm_head, embeddings, last, '*.k_proj']")
    kept = {name for name, of_operand in formats.items() if of_operand == PLAIN}
    assert kept >= {"lm_head", "model.layers.0.self_attn.k_proj", "model.layers.2.mlp.down_proj"}
    assert {of_operand for name, of_operand in formats.items() if name not in kept} == {FOUR}
    assert formats["model.layers.1.mlp.down_proj"] == FOUR


def test_the_logits_are_quantized_where_they_were() -> None:
    assert evaluated("matmuls.keep_high=[embeddings]")["lm_head"] == FOUR
    assert evaluated()["lm_head"] == PLAIN


def test_patterns_give_way_to_what_was_kept() -> None:
    formats = evaluated("modules={'*.down_proj': mxint8}", "matmuls.keep_high=[first]")
    assert formats["model.layers.0.mlp.down_proj"] == PLAIN
    assert formats["model.layers.1.mlp.down_proj"].weight == MXFormat("int8")


def test_a_config_that_says_it_all_stays_as_it_is() -> None:
    config = compose(["train=from_scratch", "format=mxfp4"])
    assert as_trained(config, llama_without_values(config.init, 128)) == config
