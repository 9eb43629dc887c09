"""What is left of a decoder block is counted, whatever it is, and warned of where nothing asks for it."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import torch
from helpers.warned import assert_warned_everywhere
from torch import nn
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

from mxsweep import compose, run
from mxsweep.config.overrides import prepare
from mxsweep.files.checkpoints import model_folder
from mxsweep.formats.recipe import LinearFormats, Recipe
from mxsweep.model import sites
from mxsweep.model.footprint import footprint
from mxsweep.model.operands import find_operands
from mxsweep.model.quantize import quantize_model
from mxsweep.model.sites import find_sites
from mxsweep.numerics import MXFormat
from mxsweep.sweeps.dry_run import preview
from mxsweep.sweeps.plan import plan
from mxsweep.terminal.errors import ConfigError

FP4 = LinearFormats(MXFormat("fp4_e2m1"), None)  # 4.25 bits in blocks of 32
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 256,
}
LINEAR = 2 * 7 * 64 * 64  # weights of the linear layers of the decoder blocks


def llama(extra: tuple[int, ...] | None = None) -> LlamaForCausalLM:
    """A Llama, whose blocks may each hold a parameter of these sizes that no operand is made of."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=100, **SIZES)).eval()
    for block in model.model.layers if extra else ():
        assert extra is not None
        block.mlp.mixing = nn.Parameter(torch.zeros(extra))
    return model


def test_of_a_dense_model_all_is_quantized_and_the_bits_are_those_of_the_format() -> None:
    with quantize_model(llama(), Recipe(FP4)) as report:
        pass
    assert report.bits_per_weight == report.bits_per_quantized_weight == 4.25
    assert (report.stored.block_weights, report.stored.block_weights_kept, report.stored.left) == (LINEAR, 0, {})
    assert not report.warnings


def test_weights_that_stay_as_they_are_count_as_no_quantized_ones() -> None:
    """Though the module is replaced, since its inputs are quantized."""
    inputs = LinearFormats(None, FP4.weight)
    for weight, bits, of_all in ((FP4.weight, 4.25, (6 * 32 + 4.25) / 7), (None, None, 32)):
        with quantize_model(
            llama(), Recipe(inputs, modules=(("*.down_proj", replace(inputs, weight=weight)),))
        ) as report:
            pass
        assert len(report.layers) == 14
        assert (report.as_dict()["bits_per_quantized_weight"], report.bits_per_weight) == (bits, of_all)


def test_bits_are_over_all_weights_of_the_blocks_and_what_is_left_is_named() -> None:
    model = llama((8, 64, 32))
    left = 2 * 8 * 64 * 32
    with quantize_model(model, Recipe(FP4)) as report:
        pass
    assert report.bits_per_quantized_weight == 4.25
    assert report.bits_per_weight == (LINEAR * 4.25 + left * 32) / (LINEAR + left)
    said = report.as_dict()
    assert said["block_weights"] == LINEAR + left and said["block_weights_kept"] == left
    assert said["block_weights_left"] == {"mlp.mixing": {"matrices": 2, "weights": left}}
    (warning,) = report.warnings
    share = left / (LINEAR + left)
    assert warning.startswith(f"{share:.1%} of the weights in the decoder blocks are not quantized, and nothing asks")
    assert f"mlp.mixing (2, {share:.1%})" in warning
    assert f"{report.bits_per_weight:.4g}, where the quantized ones take 4.25" in warning
    planned = footprint(model, Recipe(FP4))
    assert planned.warnings == (warning,) and planned.bits_per_weight == report.bits_per_weight
    assert planned.stored_bytes == report.parameter_bytes


def test_norms_and_biases_are_no_weights_of_this_kind_and_a_hundredth_needs_no_warning() -> None:
    model = llama((64,))
    assert footprint(model, Recipe(FP4)).bits_per_weight == 4.25
    under, over = (footprint(llama((1, size)), Recipe(FP4)) for size in (LINEAR // 220, LINEAR // 180))
    assert not under.warnings and under.bits_per_weight is not None and under.bits_per_weight > 4.25
    assert len(over.warnings) == 1


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(FP4, modules=(("*.mlp.mixing", LinearFormats()),)),
        Recipe(FP4, modules=(("*.mlp", LinearFormats()),)),  # which holds it
        Recipe(LinearFormats(), modules=(("*.q_proj", FP4),)),  # format=none
        Recipe(LinearFormats(), key=MXFormat("int8")),
        Recipe(),
    ],
    ids=["its name", "the module", "format=none", "keys alone", "a baseline"],
)
def test_what_is_asked_for_is_not_warned_of(recipe: Recipe) -> None:
    model = llama((8, 64, 32))
    with quantize_model(model, recipe) as report:
        pass
    assert not report.warnings and not report.stored.left
    assert report.stored.block_weights_kept >= 2 * 8 * 64 * 32


def test_the_remedy_that_a_warning_names_is_one() -> None:
    model = llama((8, 64, 32))
    (warning,) = footprint(model, Recipe(FP4)).warnings
    named = re.search(r"modules={(.*): none}$", warning)
    assert named
    asked = footprint(model, Recipe(FP4, modules=((named[1], LinearFormats()),)))
    assert not asked.warnings and asked.bits_per_weight == footprint(model, Recipe(FP4)).bits_per_weight


def test_a_pattern_that_quantizes_what_cannot_be_is_refused_as_before() -> None:
    model = llama((8, 64, 32))
    with pytest.raises(ConfigError, match="matches no linear layer"):
        find_sites(model, Recipe(FP4, modules=(("*.mlp.mixing", FP4),)))
    with pytest.raises(ConfigError, match="matches no linear layer"):
        find_sites(model, Recipe(FP4, modules=(("*.mlp.mixture", LinearFormats()),)))


def test_a_linear_layer_that_is_left_by_a_pattern_counts_in_the_bits() -> None:
    recipe = Recipe(FP4, modules=(("*.down_proj", LinearFormats()),))
    with quantize_model(llama(), recipe) as report:
        pass
    assert report.bits_per_weight == pytest.approx((6 * 4.25 + 32) / 7, rel=1e-12)
    assert report.bits_per_quantized_weight == 4.25 and not report.warnings


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mixture of experts with the embedded model's tokenizer."""
    folder = tmp_path_factory.mktemp("mixtral")
    tokenizer = AutoTokenizer.from_pretrained(model_folder("embedded"))
    torch.manual_seed(0)
    config = MixtralConfig(vocab_size=len(tokenizer), num_local_experts=4, **SIZES)
    MixtralForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def no_experts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Experts are nothing that can be quantized, as parameters of a kind that nobody knows."""

    def without(model: Any) -> dict[str, Any]:
        return {name: operand for name, operand in find_operands(model).items() if "experts" not in name}

    monkeypatch.setattr(sites, "find_operands", without)


@pytest.mark.usefixtures("no_experts")
def test_the_record_and_every_table_warn_of_experts_that_stay(
    mixtral: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("WARNING", logger="mxsweep"):
        done = run(
            compose(["model=hf", f"model.path={mixtral}", "model.device=cpu", "format=mxfp4", "limit=4"]),
            tmp_path / "a",
        )
    assert done["status"] == "done", done["error"]
    warning, guess = done["warnings"]
    assert warning in caplog.messages
    assert "experts.gate_up_proj (2, " in warning and "no better than a guess" in guess  # its weights are random
    bits = done["diagnostics"]["bits_per_weight"]
    assert done["diagnostics"]["bits_per_quantized_weight"] == 4.25 and 20 < bits < 32
    assert_warned_everywhere(tmp_path, warning)
    table = pyarrow.parquet.read_table(tmp_path / "results.parquet").to_pylist()
    assert table[0]["bits_per_weight"] == bits and table[0]["bits_per_quantized_weight"] == 4.25
    markdown = (tmp_path / "results.md").read_text()
    assert f"{bits:.4g}"[:4] in markdown


@pytest.mark.usefixtures("no_experts")
def test_a_dry_run_warns_of_what_stays_and_refuses_nothing(mixtral: Path) -> None:
    def shown(*words: str) -> str:
        previewed = preview(plan(prepare(["model=hf", f"model.path={mixtral}", *words])[0], False).runs)
        assert not previewed.is_refused
        return previewed.text

    text = shown("format=mxfp4")
    assert "warning, of run 1: " in text and "experts.gate_up_proj (2, " in text
    assert "4.25" not in text.partition("warning")[0]
    assert "warning" not in shown("format=none")
    patterns = "modules={*.mlp.experts.*: none, *.mlp.gate: none}"
    assert "warning" not in shown("format=mxfp4", patterns)


@pytest.mark.parametrize("extra", [None, (8, 64, 32)])
def test_under_a_budget_a_plan_says_the_most_that_comes_of_it(extra: tuple[int, ...] | None) -> None:
    model = llama(extra)
    weights = LINEAR + (2 * 8 * 64 * 32 if extra else 0)
    outside = sum(parameter.numel() for parameter in model.parameters()) - weights
    planned = footprint(model, Recipe(FP4), budget=20.5)
    assert planned.bits_per_weight == 20.5
    assert planned.stored_bytes == (weights * 20.5 + outside * 32) / 8
