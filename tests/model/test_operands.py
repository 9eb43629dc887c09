"""The operands of architectures, usual and odd: what is one, what its role is, and that nothing is claimed beyond."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.input_formats import input_formats
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    DeepseekV2Config,
    GPT2Config,
    GPTNeoXConfig,
    JambaConfig,
    Llama4TextConfig,
    LlamaConfig,
    MambaConfig,
    MixtralConfig,
    OPTConfig,
    Phi3Config,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2MoeConfig,
)
from transformers.models.llama.modeling_llama import LlamaAttention
from transformers.pytorch_utils import Conv1D

from mxsweep import LinearFormats, Recipe, quantize_model
from mxsweep.formats.recipe import LINEAR_MATMULS, MATMULS, Rotation
from mxsweep.model.decoder import block_around, decoder_blocks
from mxsweep.model.footprint import footprint
from mxsweep.model.linear import MXLinear
from mxsweep.model.meta import meta_model, recipe_problem
from mxsweep.model.operands import OTHER, ROLES, find_operands, find_places
from mxsweep.model.sites import find_sites, rotations_of
from mxsweep.numerics import MXFormat
from mxsweep.terminal.errors import ConfigError

SIZES: dict[str, Any] = {
    "vocab_size": 97, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip
ATTENTION = {f"self_attn.{role}_proj": role for role in ("q", "k", "v", "o")}
MLP = {f"mlp.{role}_proj": role for role in ("gate", "up", "down")}
EXPERTS = {f"mlp.experts.{expert}.{role}_proj": role for expert in range(4) for role in ("gate", "up", "down")}
EMBEDDING_AND_HEAD = {"model.embed_tokens": "embedding", "lm_head": "head"}

# Configuration; the operands in the last decoder block and those outside the blocks, with their roles.
ARCHITECTURES: dict[str, tuple[PretrainedConfig, dict[str, str], dict[str, str]]] = {
    "llama": (LlamaConfig(**SIZES), ATTENTION | MLP, EMBEDDING_AND_HEAD),
    # Its projections are Conv1D, whose weights are stored (C, N).
    "gpt2": (
        GPT2Config(vocab_size=97, n_embd=64, n_layer=2, n_head=4, n_positions=64),
        {f"attn.c_attn.{role}_proj": role for role in ("q", "k", "v")}
        | {"attn.c_proj": "o", "mlp.c_fc": "up", "mlp.c_proj": "down"},
        {"transformer.wte": "embedding", "transformer.wpe": "embedding", "lm_head": "head"},
    ),
    # q, k and v in one matrix, whose rows belong to them head by head.
    "gpt_neox": (
        GPTNeoXConfig(**{name: size for name, size in SIZES.items() if name != "num_key_value_heads"}),
        {
            "attention.query_key_value.q_proj": "q",
            "attention.query_key_value.k_proj": "k",
            "attention.query_key_value.v_proj": "v",
            "attention.dense": "o",
            "mlp.dense_h_to_4h": "up",
            "mlp.dense_4h_to_h": "down",
        },
        {"gpt_neox.embed_in": "embedding", "lm_head": "head"},
    ),
    "opt": (
        OPTConfig(vocab_size=97, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, ffn_dim=96,
                  max_position_embeddings=64, word_embed_proj_dim=48),
        {
            "self_attn.k_proj": "k",
            "self_attn.v_proj": "v",
            "self_attn.q_proj": "q",
            "self_attn.out_proj": "o",
            "fc1": "up",
            "fc2": "down",
        },
        {
            "model.decoder.embed_tokens": "embedding",
            "model.decoder.embed_positions": "embedding",
            "model.decoder.project_out": OTHER,
            "model.decoder.project_in": OTHER,
            "lm_head": "head",
        },
    ),
    "phi3": (
        Phi3Config(**SIZES),
        {
            "self_attn.o_proj": "o",
            "self_attn.qkv_proj.q_proj": "q",
            "self_attn.qkv_proj.k_proj": "k",
            "self_attn.qkv_proj.v_proj": "v",
            "mlp.gate_up_proj.gate_proj": "gate",
            "mlp.gate_up_proj.up_proj": "up",
            "mlp.down_proj": "down",
        },
        EMBEDDING_AND_HEAD,
    ),
    # Experts are matrices in parameters of three dimensions; the router's weight is a parameter and no operand.
    "mixtral": (MixtralConfig(**SIZES, num_local_experts=4), ATTENTION | EXPERTS, EMBEDDING_AND_HEAD),
    "qwen2_moe": (
        Qwen2MoeConfig(**SIZES, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32,
                       shared_expert_intermediate_size=32),
        ATTENTION
        | EXPERTS
        | {f"mlp.shared_expert.{role}_proj": role for role in ("gate", "up", "down")}
        | {"mlp.shared_expert_gate": OTHER},
        EMBEDDING_AND_HEAD,
    ),
    # Its experts do not declare how they lie in their parameters; expert_matrices.py does.
    "llama4": (
        Llama4TextConfig(**SIZES, head_dim=16, intermediate_size_mlp=96, num_local_experts=2,
                         interleave_moe_layer_step=2),
        ATTENTION
        | {"feed_forward.router": "router"}
        | {f"feed_forward.shared_expert.{role}_proj": role for role in ("gate", "up", "down")}
        | {f"feed_forward.experts.{expert}.{role}_proj": role for expert in "01" for role in ("gate", "up", "down")},
        EMBEDDING_AND_HEAD,
    ),
    "deepseek_v2": (
        DeepseekV2Config(**SIZES | {"num_key_value_heads": 4}, q_lora_rank=16, kv_lora_rank=16, qk_rope_head_dim=8,
                         qk_nope_head_dim=8, v_head_dim=16, n_routed_experts=4, n_shared_experts=1,
                         moe_intermediate_size=32, first_k_dense_replace=1, num_experts_per_tok=2),
        {
            "self_attn.q_a_proj": OTHER,
            "self_attn.q_b_proj": OTHER,
            "self_attn.kv_a_proj_with_mqa": OTHER,
            "self_attn.kv_b_proj": OTHER,
            "self_attn.o_proj": "o",
        }
        | EXPERTS
        | {f"mlp.shared_experts.{role}_proj": role for role in ("gate", "up", "down")},
        EMBEDDING_AND_HEAD,
    ),
    "jamba": (
        JambaConfig(**SIZES, attn_layer_period=2, attn_layer_offset=0, num_experts=1, use_mamba_kernels=False),
        {f"mamba.{name}": OTHER for name in ("in_proj", "x_proj", "dt_proj", "out_proj")}
        | {f"feed_forward.{role}_proj": role for role in ("gate", "up", "down")},
        EMBEDDING_AND_HEAD,
    ),
}  # fmt: skip


def build(config: PretrainedConfig, device: str = "cpu") -> PreTrainedModel:
    torch.manual_seed(0)
    with torch.device(device):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return model.float().eval()


@pytest.mark.parametrize("device", ["meta", "cpu"])
@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_what_is_an_operand_and_its_role(name: str, device: str) -> None:
    config, in_last_block, outside = ARCHITECTURES[name]
    model = build(config, device)
    operands = find_operands(model)
    last = list(decoder_blocks(model))[-1]
    assert {
        operand.name.removeprefix(f"{last}."): operand.role for operand in operands.values() if operand.block == last
    } == in_last_block
    assert {operand.name: operand.role for operand in operands.values() if operand.block is None} == outside
    for operand in operands.values():
        assert operand.role in ROLES
        assert operand.layer == (None if operand.block is None else int(operand.block.rpartition(".")[2]))
        assert operand.module is model.get_submodule(operand.module_name)
        view = operand.matrix.view(operand.parameter)
        assert view.untyped_storage().data_ptr() == operand.parameter.untyped_storage().data_ptr()
        assert operand.shape == tuple(operand.weight.shape) and operand.size == operand.weight.numel()
        assert operand.bits == 32
        if operand.is_alone:
            shape = tuple(model.get_submodule(operand.name).weight.shape)
            assert operand.shape == (shape[::-1] if isinstance(operand.module, Conv1D) else shape)


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_operands_that_are_said_to_read_one_tensor_do(name: str) -> None:
    model = build(ARCHITECTURES[name][0])
    operands = find_operands(model)
    inputs: dict[str, list[torch.Tensor]] = defaultdict(list)
    for operand in operands.values():
        if operand.expert is None or operand.role != "down":  # what an expert's down reads is inside the module
            operand.module.register_forward_pre_hook(lambda _m, args, own=operand.name: inputs[own].append(args[0]))
    with torch.no_grad():
        model(torch.arange(1, 13)[None], use_cache=False)
    together = [operand for operand in operands.values() if operand.input != operand.name]
    for operand in together:
        assert operands[operand.input].block == operand.block
        assert inputs[operand.name][0] is inputs[operand.input][0]
    if name == "llama":
        assert len(together) == 2 * (2 + 1)  # in each block k and v, which read what q does, and up


def test_queries_of_cross_attention_read_another_tensor_than_keys() -> None:
    class CrossAttention(LlamaAttention): ...

    model = build(LlamaConfig(**SIZES), "meta")
    model.model.layers[1].self_attn.__class__ = CrossAttention
    operands = find_operands(model)
    names = {number: f"model.layers.{number}.self_attn.{{}}_proj".format for number in (0, 1)}
    assert [operands[names[0](role)].input for role in "qkv"] == [names[0]("q")] * 3
    assert [operands[names[1](role)].input for role in "qkv"] == [names[1](role) for role in "qkv"]


def test_a_role_that_the_shapes_contradict_is_not_claimed() -> None:
    model = build(LlamaConfig(**SIZES))
    mlp = model.model.layers[1].mlp
    mlp.up_proj = nn.Linear(64, 80)
    mlp.forward = lambda x: mlp.down_proj(mlp.gate_proj(x)) + mlp.up_proj(x)[..., :64]
    operands = find_operands(model)
    assert [operands[f"model.layers.1.mlp.{role}_proj"].role for role in ("gate", "up", "down")] == [OTHER] * 3
    assert [operands[f"model.layers.0.mlp.{role}_proj"].role for role in ("gate", "up", "down")] == [
        "gate",
        "up",
        "down",
    ]


def test_parts_of_a_block_are_named_as_shortly_as_they_can_be() -> None:
    operands = find_operands(build(ARCHITECTURES["deepseek_v2"][0], "meta"))
    # The first block has no experts; in the others the shared expert's projections end as those of the first's MLP.
    assert operands["model.layers.0.mlp.up_proj"].place.part == "mlp.up_proj"
    assert operands["model.layers.1.mlp.shared_experts.up_proj"].kind == "mlp.shared_experts.up_proj"
    assert (operands["model.layers.1.self_attn.o_proj"].place.part, operands["lm_head"].kind) == ("o_proj", "lm_head")
    assert operands["model.layers.1.self_attn.o_proj"].kind == "o"


def test_blocks_are_the_items_of_outermost_lists() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Sequential(nn.Linear(2, 2), nn.ModuleList([nn.Linear(2, 2)])) for _ in "ab")
            self.projector = nn.Sequential(nn.Linear(2, 2))  # numbered, and no block
            self.more = nn.ModuleList([nn.Linear(2, 2)])
            self.config, self.device = PretrainedConfig(vocab_size=5), torch.device("cpu")

        def get_output_embeddings(self) -> None: ...

        def forward(self, input_ids: torch.Tensor, use_cache: bool) -> Any:
            x = self.more[0](self.projector(input_ids[..., None].float().expand(-1, -1, 2)))
            for number in (1, 0):
                linear, (within,) = self.layers[number]
                x = within(linear(x))
            return SimpleNamespace(logits=x)

    model: Any = Model()
    blocks = decoder_blocks(model)
    assert list(blocks) == ["layers.1", "layers.0"]  # as the forward pass goes through them
    assert block_around("layers.1.1.0", blocks) == "layers.1" and block_around("layers", blocks) is None
    assert block_around("more.0", blocks) is None  # a projection in a list is no block
    operands = find_operands(model)
    assert operands["projector.0"].block is None and operands["more.0"].block is None
    assert find_places(model, ["layers.1", "projector"])["layers.1"].layer == 1


def test_a_rotation_reaches_the_operands_of_its_roles_and_refuses_those_that_are_not_there() -> None:
    formats = LinearFormats(MXFormat("fp4_e2m1"), MXFormat("fp4_e2m1"))
    moe = build(ARCHITECTURES["qwen2_moe"][0])
    with quantize_model(moe, Recipe(formats, rotation=Rotation(("gate", "o"), 16))):
        layers = [module for module in moe.modules() if isinstance(module, MXLinear)]
        rotated = {name for layer in layers for name, formats in input_formats(layer).items() if formats.basis}
    assert {name.split(".", 3)[3] for name in rotated} == {"self_attn.o_proj", "mlp.shared_expert.gate_proj"}
    gpt2 = build(ARCHITECTURES["gpt2"][0], "meta")
    problem = recipe_problem(gpt2, Recipe(formats, rotation=Rotation(("q", "gate"), 16)))
    assert (
        problem == "rotation.matmuls: 'gate' is no linear layer of GPT2LMHeadModel; allowed: q, k, v, o, up, down, qk"
    )


def test_matrices_of_inputs_are_refused_of_a_model_that_has_no_such_input() -> None:
    formats = LinearFormats(MXFormat("fp4_e2m1"), MXFormat("fp4_e2m1"))
    mamba = build(MambaConfig(vocab_size=97, hidden_size=64, num_hidden_layers=1), "meta")
    problem = recipe_problem(mamba, Recipe(formats, rotation=Rotation(LINEAR_MATMULS, 16, "wush")))
    assert problem == (
        "rotation: 'wush' multiplies inputs of linear layers by matrices of their own, and MambaForCausalLM has none "
        "of q, k, v, o, gate, up, down; allowed: rotation=none"
    )


def test_all_linear_layers_together_mean_those_that_the_model_has() -> None:
    """GPT-2 has no gate, and its other products are rotated."""
    gpt2 = build(ARCHITECTURES["gpt2"][0], "meta")
    formats = LinearFormats(MXFormat("fp4_e2m1"), MXFormat("fp4_e2m1"))
    sites = find_sites(gpt2, Recipe(formats, rotation=Rotation(LINEAR_MATMULS, 16)))
    assert {site.operand.role for site in sites if site.rotation_block == 16} == set(LINEAR_MATMULS) - {"gate"}
    assert all(site.rotation_block == 16 for site in sites)
    each = [Rotation((matmul,), 16) for matmul in MATMULS]
    assert rotations_of(gpt2, each) == [rotation for rotation in each if rotation.matmuls != ("gate",)]
    chosen = [Rotation(("gate",), 16), Rotation(("o",), 16)]
    assert rotations_of(gpt2, chosen) == chosen  # and finding sites refuses the first


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "opt", "phi3", "mixtral", "qwen2_moe", "deepseek_v2"])
def test_a_plan_counts_what_the_run_does(name: str, tmp_path: Path) -> None:
    """From the same operands, experts among them."""
    model = build(ARCHITECTURES[name][0])
    model.save_pretrained(tmp_path)
    planned_model = meta_model(str(tmp_path))
    assert planned_model is not None
    recipe = Recipe(LinearFormats(MXFormat("fp4_e2m1"), None), modules=(("lm_head", LinearFormats(MXFormat("int8"))),))
    planned = footprint(planned_model, recipe)
    with quantize_model(model, recipe) as report:
        copies = sum(buffer.nbytes for name, buffer in model.named_buffers() if name.endswith("_mx"))
    assert planned.bits_per_weight == report.bits_per_weight
    assert planned.stored_bytes == report.parameter_bytes
    assert planned.simulated_bytes == sum(parameter.nbytes for parameter in model.parameters()) + copies


def test_a_model_without_linear_layers_in_its_blocks_is_refused_whatever_a_pattern_names() -> None:
    """With a head in MX beside them, blocks that stay as they are were called by the format's name."""
    model = build(LlamaConfig(**SIZES | {"num_hidden_layers": 0}), "meta")
    for modules in ((), (("lm_head", LinearFormats(MXFormat("int8"))),)):
        problem = recipe_problem(model, Recipe(LinearFormats(MXFormat("fp4_e2m1"), None), modules=modules))
        assert problem is not None and problem.startswith(
            "format: LlamaForCausalLM has no linear layers in its decoder"
        )


def test_attention_that_cannot_be_reached_is_known_beforehand() -> None:
    with_keys = Recipe(key=MXFormat("int8"))
    assert recipe_problem(build(ARCHITECTURES["llama"][0], "meta"), with_keys) is None
    problem = recipe_problem(build(MambaConfig(vocab_size=97, hidden_size=64, num_hidden_layers=1), "meta"), with_keys)
    assert problem is not None and problem.startswith("kv_quant: the attention of MambaForCausalLM")


def test_models_that_cannot_be_built_are_unknown(tmp_path: Path) -> None:
    assert meta_model("someone/on-the-hub") is None
    assert meta_model(str(tmp_path)) is None  # no config.json
    (tmp_path / "config.json").write_text('{"model_type": "no-such-type"}')
    assert meta_model(str(tmp_path)) is None
    LlamaConfig(**SIZES).save_pretrained(tmp_path)
    model = meta_model(str(tmp_path), dtype="float16")
    assert model is not None and {p.dtype for p in model.parameters()} == {torch.float16}
    assert meta_model(str(tmp_path), dtype="float16") is model
    LlamaConfig(**SIZES, quantization_config={"quant_method": "fp8"}).save_pretrained(tmp_path)
    assert meta_model(str(tmp_path)) is None  # whose weights transformers stores in a format of its own


def test_a_subclass_is_an_operand_that_is_refused_by_name() -> None:
    model = build(ARCHITECTURES["llama4"][0])
    router = find_operands(model)["model.layers.1.feed_forward.router"]
    assert router.role == "router" and router.why_not_replaceable
    formats = LinearFormats(MXFormat("fp4_e2m1"))
    with pytest.raises(ConfigError, match=r"feed_forward\.router is a Llama4Router, for which there is no MX layer"):
        quantize_model(model, Recipe(modules=(("*.router", formats),))).__enter__()
    with quantize_model(model, Recipe(formats)) as report:  # a router stays as it is unless a pattern names it
        assert not any(layer.name.endswith("router") for layer in report.layers)
