"""One short pass says what a text reaches, of a loaded model as of one without values; nothing else is quantized."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    Gemma3Config,
    Gemma3nTextConfig,
    GPT2Config,
    JambaConfig,
    JetMoeConfig,
    LlamaConfig,
    MambaConfig,
    MllamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen3NextConfig,
    Zamba2Config,
)

from mxsweep import LinearFormats, Recipe, quantize_model
from mxsweep.calibrate.budget import counted_modules
from mxsweep.config.overrides import prepare
from mxsweep.measure.sensitivity import parts_of
from mxsweep.model.decoder import block_around, decoder_blocks
from mxsweep.model.footprint import footprint
from mxsweep.model.known_values import KnownValues
from mxsweep.model.meta import meta_model, recipe_problem, why_not_followed
from mxsweep.model.operands import Operand, find_operands
from mxsweep.model.probe import PassFailed, probe
from mxsweep.model.sites import find_sites
from mxsweep.numerics import MXFormat
from mxsweep.sweeps.dry_run import preview
from mxsweep.sweeps.plan import plan
from mxsweep.terminal.errors import ConfigError

SIZES: dict[str, Any] = {
    "vocab_size": 97, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
TWO, FOUR = SIZES | {"num_hidden_layers": 2}, SIZES | {"num_hidden_layers": 4}
VISION: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "image_size": 28, "patch_size": 14}
CHOSEN: dict[str, Any] = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
ARCHITECTURES: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**TWO),
    # Looks for padding where it is given no mask, and has a token for it.
    "gpt2": GPT2Config(
        vocab_size=97, n_embd=64, n_layer=2, n_head=4, n_positions=64, pad_token_id=0, bos_token_id=1, eos_token_id=2
    ),
    # With a vision tower, whose layers are in a list, too.
    "gemma3": Gemma3Config(
        text_config=TWO | {"head_dim": 16, "query_pre_attn_scalar": 16}, mm_tokens_per_image=4, image_token_index=96,
        vision_config=VISION | {"num_hidden_layers": 2, "num_attention_heads": 2}, boi_token_index=95,
        eoi_token_index=94,
    ),
    # Layers 1 and 3 attend to an image.
    "mllama": MllamaConfig(
        text_config=FOUR | {"cross_attention_layers": [1, 3]},
        vision_config=VISION | {"num_hidden_layers": 2, "num_global_layers": 1, "attention_heads": 2,
                                "intermediate_layers_indices": [0, 1], "vision_output_dim": 96, "max_num_tiles": 1,
                                "supported_aspect_ratios": [[1, 1]]},
    ),
    # Projections in a list beside the layers.
    "gemma3n": Gemma3nTextConfig(
        **FOUR, head_dim=16, num_kv_shared_layers=2, layer_types=["sliding_attention", "full_attention"] * 2,
        hidden_size_per_layer_input=16, vocab_size_per_layer_input=97, laurel_rank=16,
        activation_sparsity_pattern=[0.0] * 4,
    ),
    "mamba": MambaConfig(vocab_size=97, hidden_size=64, num_hidden_layers=2, state_size=8),
    "jamba": JambaConfig(**TWO, attn_layer_period=2, attn_layer_offset=1, num_experts=2),
    "deepseek_v3": DeepseekV3Config(
        **TWO | {"num_key_value_heads": 4}, **CHOSEN, q_lora_rank=16, kv_lora_rank=16, qk_rope_head_dim=8,
        qk_nope_head_dim=8, v_head_dim=16, n_routed_experts=4, n_shared_experts=1, first_k_dense_replace=1, n_group=1,
        topk_group=1,
    ),
    # Hybrid layers share a block, each with an adapter of its own in the block's list.
    "zamba2": Zamba2Config(
        **FOUR | {"num_key_value_heads": 4}, layer_types=["mamba", "hybrid"] * 2, hybrid_layer_ids=[1, 3],
        mamba_d_state=16, mamba_headdim=16, n_mamba_heads=8, mamba_ngroups=1, num_mem_blocks=2,
        use_shared_attention_adapter=True, adapter_rank=8,
    ),
    "qwen3_next": Qwen3NextConfig(
        **FOUR, **CHOSEN, head_dim=16, linear_num_value_heads=4, linear_num_key_heads=2, linear_key_head_dim=16,
        linear_value_head_dim=16, num_experts=4, shared_expert_intermediate_size=32,
    ),
}  # fmt: skip
READ_PAST = {"mamba": ["*.dt_proj"], "jamba": ["*.dt_proj"]}
FORMATS = LinearFormats(MXFormat("fp4_e2m1"), MXFormat("fp6_e2m3"))


def build(name: str, device: str = "cpu") -> PreTrainedModel:
    torch.manual_seed(0)
    with torch.device(device):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(ARCHITECTURES[name])
    return model.float().eval()


def recipe_of(name: str) -> Recipe:
    return Recipe(FORMATS, modules=tuple((pattern, LinearFormats()) for pattern in READ_PAST.get(name, [])))


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_without_values_the_same_is_found_as_with(name: str) -> None:
    model, planned = build(name), build(name, "meta")
    assert list(find_operands(planned)) == list(find_operands(model))
    assert list(decoder_blocks(planned)) == list(decoder_blocks(model))
    assert probe(planned).read_past == probe(model).read_past
    of_plan = footprint(planned, recipe_of(name))
    with quantize_model(model, recipe_of(name)) as report:
        assert of_plan.bits_per_weight == report.bits_per_weight
        assert of_plan.stored_bytes == report.parameter_bytes


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_what_is_reached_is_what_gradients_reach(name: str) -> None:
    model, operands = build(name), find_operands(build(name, "meta"))
    logits = model(input_ids=torch.arange(3, 19)[None], use_cache=False).logits
    logits.square().sum().backward()
    for full, parameter in model.named_parameters():
        assert parameter.grad is None or full.rpartition(".")[0] in probe(model), full
    for operand in operands.values():
        module = model.get_submodule(operand.module_name)
        assert module.get_parameter(parameter_of(operand)).grad is not None, operand.name


def parameter_of(operand: Operand) -> str:
    """Return the name of an operand's parameter in its module."""
    return next(name for name, held in operand.module.named_parameters() if held is operand.parameter)


def test_a_vision_tower_is_no_operand_and_none_of_its_layers_a_block() -> None:
    model = build("gemma3")
    assert list(decoder_blocks(model)) == ["model.language_model.layers.0", "model.language_model.layers.1"]
    assert not any("vision" in name or "multi_modal" in name for name in find_operands(model))
    with quantize_model(model, Recipe(FORMATS)) as report:
        assert report.bits_per_weight == 4.25
    blocks = decoder_blocks(model)
    matrices = [p for n, p in model.named_parameters() if p.ndim > 1 and block_around(n, blocks)]
    assert report.stored.block_weights == sum(p.numel() for p in matrices)
    dead = [p for n, p in model.named_parameters() if p.ndim > 1 and ("vision" in n or "multi_modal" in n)]
    assert report.stored.unreached == report.as_dict()["unreached_weights"] == sum(p.numel() for p in dead) > 0
    assert any(line.startswith(f"{report.stored.unreached:,} weights of the model's") for line in report.lines())
    assert report.stored.parameters == sum(p.numel() for p in model.parameters())  # what storing takes, takes all


def test_a_budget_is_spent_on_what_a_text_reaches() -> None:
    model, candidates = build("gemma3", "meta"), {"fp4": FORMATS, "fp8": LinearFormats(MXFormat("fp8_e4m3"))}
    free, fixed = counted_modules(model, Recipe(FORMATS), candidates)
    assert list(free) == [site.name for site in find_sites(model, Recipe(FORMATS))] and len(free) == 2 * 7
    assert fixed == (0, 0) and not any("vision" in name for name in free)


def test_a_budget_leaves_aside_what_patterns_say_could_not_be_quantized() -> None:
    model, candidates = build("mamba", "meta"), {"fp4": FORMATS, "fp8": LinearFormats(MXFormat("fp8_e4m3"))}
    free, _ = counted_modules(model, recipe_of("mamba"), candidates)
    assert {name.rpartition(".")[2] for name in free} == {"in_proj", "x_proj", "out_proj"}
    with pytest.raises(ConfigError, match=r"modules=\{\*\.dt_proj: none\}"):
        counted_modules(model, Recipe(FORMATS), candidates)


def test_parts_of_sensitivity_are_what_a_text_reaches() -> None:
    names = {part.name for part in parts_of(build("mllama", "meta"), Recipe(FORMATS), "module")}
    assert names == {
        f"model.layers.{number}.{part}_proj" for number in (0, 2)
        for part in (*(f"self_attn.{role}" for role in "qkvo"), *(f"mlp.{role}" for role in ("gate", "up", "down")))
    }  # fmt: skip


def test_layers_that_attend_to_an_image_are_no_blocks() -> None:
    assert list(decoder_blocks(build("mllama"))) == ["model.layers.0", "model.layers.2"]


def test_projections_in_a_list_are_operands_outside_the_blocks() -> None:
    model = build("gemma3n")
    assert [name.rpartition(".")[0] for name in decoder_blocks(model)] == ["model.layers"] * 4
    projections = [operand for name, operand in find_operands(model).items() if ".altup_projections." in name]
    assert projections and all(operand.block is None for operand in projections)
    assert not any(".altup_projections." in site.name for site in find_sites(model, Recipe(FORMATS)))


@pytest.mark.parametrize("name", list(READ_PAST))
def test_a_weight_that_is_read_past_its_layer_is_refused_by_name(name: str) -> None:
    (pattern,) = READ_PAST[name]
    for model in (build(name), build(name, "meta")):
        problem = recipe_problem(model, Recipe(FORMATS))
        assert problem is not None and f"{pattern[1:]} without calling the layer" in problem
        assert problem.endswith(f"modules={{{pattern}: none}}")
        assert recipe_problem(model, Recipe(modules=((pattern, FORMATS),))) == problem
        assert recipe_problem(model, recipe_of(name)) is None
        assert recipe_problem(model, Recipe()) is None  # a baseline


def test_patterns_of_what_no_text_reaches() -> None:
    model = build("gemma3", "meta")
    for pattern in ("*.vision_tower.*", "*.vision_tower.encoder.layers.0.mlp.fc1", "*multi_modal_projector*"):
        problem = recipe_problem(model, Recipe(FORMATS, modules=((pattern, FORMATS),)))
        assert problem is not None
        assert problem.startswith(f"modules: the pattern {pattern!r} matches only what no text reaches in a Gemma3For")
        assert recipe_problem(model, Recipe(FORMATS, modules=((pattern, LinearFormats()),))) is None
    with quantize_model(build("gemma3"), Recipe(modules=(("*.q_proj", FORMATS),))) as report:
        assert {layer.name for layer in report.layers} == {
            f"model.language_model.layers.{number}.self_attn.q_proj" for number in (0, 1)
        }


class Mixture(nn.Module):
    """Sends every token to the expert of one number."""

    def __init__(self, chosen: int) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.ModuleDict({"w1": nn.Linear(8, 8)}) for _ in range(3))
        self.dead, self.chosen = nn.Linear(8, 8), chosen

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = x + self.experts[self.chosen]["w1"](x)
        return answer


class Model(nn.Module):
    """Reads tokens as a language model does."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.embed, self.layers, self.head = nn.Embedding(9, 8), nn.ModuleList(blocks), nn.Linear(8, 9, bias=False)
        self.config, self.device = PretrainedConfig(vocab_size=9, pad_token_id=3), torch.device("cpu")
        self.seen: list[int] = []

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def get_decoder(self) -> nn.Module:
        return self

    def forward(self, input_ids: Tensor, use_cache: bool) -> Any:
        self.seen += input_ids[0].tolist()
        x = self.embed(input_ids)
        for block in self.layers:
            x = block(x)
        return SimpleNamespace(logits=self.head(x))


def test_experts_that_a_few_tokens_miss_are_reached_as_their_neighbours_are() -> None:
    model: Any = Model(Mixture(1), Mixture(2))
    assert {name for name, operand in find_operands(model).items() if operand.block is not None} == {
        f"layers.{layer}.experts.{expert}.w1" for layer in (0, 1) for expert in (0, 1, 2)
    }
    assert "layers.0.dead" not in probe(model)
    other: Any = Model(Mixture(1), Mixture(2))
    other.layers[1].forward = lambda x: x  # what is alike in another block does not count
    assert "layers.0.experts.0.w1" in probe(other) and "layers.1.experts.0.w1" not in probe(other)


def test_a_pass_is_made_once_a_model_and_again_for_modules_of_new_names() -> None:
    model: Any = Model(Mixture(0))
    first = probe(model)
    assert probe(model) is first and model.seen == [0, 1, 2, 4, 5, 6, 7, 8]  # no special token stands for a text
    model.layers[0].dead = nn.Linear(8, 8)
    assert probe(model) is first
    model.layers.append(Mixture(0))
    assert probe(model) is not first and "layers.1.experts.0.w1" in probe(model)
    with quantize_model(model, Recipe(FORMATS)):
        passes = len(model.seen)
        assert "layers.1.experts.0.w1" in probe(model) and len(model.seen) == passes


class Sharing(nn.Module):
    """Multiplies by the weight of a layer, by a view of it or a part, with or without calling the layer."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.linear, self.how = nn.Linear(8, 8, bias=False), how

    def forward(self, x: Tensor) -> Tensor:
        weight = self.linear.weight
        match self.how:
            case "called":
                return self.linear(x.to(weight.dtype)) * weight.shape[0]  # asks for more than values
            case "transposed":
                return x @ weight.t()
            case "both":
                return self.linear(x) + x @ weight.mT[:8]
            case "by hand":
                return self.linear.forward(x)
            case _:
                return x @ weight.half().float()


@pytest.mark.parametrize(
    ("how", "past"), [("called", False), ("transposed", True), ("both", True), ("by hand", True), ("copied", True)]
)
def test_reads_are_followed_through_views(how: str, past: bool) -> None:
    model: Any = Model(Sharing(how))
    assert probe(model).read_past == ({"layers.0.linear"} if past else set())
    assert "layers.0.linear" in find_operands(model)
    if past:
        with pytest.raises(ConfigError, match=r"modules=\{\*\.linear: none\}"):
            find_sites(model, Recipe(FORMATS))


def test_rows_that_are_looked_up_in_a_shared_weight_are_read_past_the_embedding_and_not_the_head() -> None:
    class LooksUp(Sharing):
        def forward(self, x: Tensor) -> Tensor:
            return x + model.embed.weight[3]

    model: Any = Model()
    model.layers.append(LooksUp(""))
    model.head.weight = model.embed.weight
    assert probe(model).read_past == {"embed"}
    find_sites(model, Recipe(modules=(("head", FORMATS),)))
    with pytest.raises(ConfigError, match="multiplies by the weight of embed without"):
        find_sites(model, Recipe(modules=(("embed", FORMATS),)))


def test_a_pass_that_fails_is_told_by_the_model() -> None:
    def fail(_: Tensor) -> Tensor:
        raise ValueError("no")

    model: Any = Model(Mixture(0))
    model.layers[0].forward = fail
    with pytest.raises(PassFailed, match=r"^model\.path: a short pass of tokens through Model ended with ValueError"):
        find_operands(model)


def test_a_model_whose_values_decide_is_not_planned_and_that_is_said(tmp_path: Any) -> None:
    # Its experts declare no layout, and count the tokens that each of them gets.
    config = JetMoeConfig(
        vocab_size=97, hidden_size=64, num_hidden_layers=1, num_key_value_heads=2, kv_channels=16, intermediate_size=96,
        num_local_experts=4, num_experts_per_tok=2,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    assert meta_model(str(tmp_path)) is None
    problem = why_not_followed(str(tmp_path))
    assert problem is not None
    assert problem.startswith("a short pass of tokens through JetMoeForCausalLM without values ended with")
    shown = preview(plan(prepare(["model=hf", f"model.path={tmp_path}", "format=mxfp4"])[0], False).runs)
    assert not shown.is_refused
    assert "note, of run 1: bits and bytes are known when it is done, not before: " + problem in shown.text
    assert "unknown" in shown.text and "4.25" not in shown.text
    AutoModelForCausalLM.from_config(LlamaConfig(**TWO)).save_pretrained(tmp_path)
    assert meta_model(str(tmp_path)) is not None and why_not_followed(str(tmp_path)) is None


def test_values_are_known_of_what_comes_of_known_ones_alone() -> None:
    weight = torch.ones(5, device="meta")
    with KnownValues():
        ids = torch.tensor([[3, 1, 4, 1, 5]]).to("meta")
        positions = torch.arange(5, device="meta")[None]
        assert bool((positions.diff() == 1).all()) and int(ids.max()) == 5
        assert (ids == 1).nonzero().shape == (2, 2)
        row = positions[0]
        row += 1  # a view of them
        assert int(positions.sum()) == 15
        mask = torch.zeros(5, dtype=torch.bool, device="meta")
        mask[1:3] = True
        assert int(mask.sum()) == 2
        for unknown in (weight, torch.empty(5, device="meta"), positions * weight):
            with pytest.raises(RuntimeError, match="meta"):
                bool((unknown > 0).any())
        row.copy_(weight)
        with pytest.raises(RuntimeError, match="meta"):
            int(positions.sum())
    assert positions.is_meta


class _TwoWays(nn.Module):
    """Multiply short texts by one matrix and long texts by another."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.short, self.long = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = (self.long if x.shape[1] > 40 else self.short)(x)
        return answer


def test_a_text_that_takes_another_way_than_the_short_pass_is_refused_and_a_baseline_is_not() -> None:
    model = AutoModelForCausalLM.from_config(LlamaConfig(**TWO)).eval()
    model.model.layers[1].mlp = _TwoWays(64)
    short, long = torch.arange(3, 13)[None], torch.arange(3, 53)[None]
    before = model(long).logits
    assert "model.layers.1.mlp.long" not in find_operands(model)
    with quantize_model(model, Recipe(LinearFormats(MXFormat("fp4_e2m1"), None))) as report:
        model(short)
        with pytest.raises(ConfigError, match=r"this text goes through model\.layers\.1\.mlp\.long \(Linear\)"):
            model(long)
        assert report.as_dict()["unreached_weights"] == 64 * 64
    with quantize_model(model, Recipe(LinearFormats())):
        assert torch.equal(model(long).logits, before)
    assert torch.equal(model(long).logits, before)
