"""Fused weights and layers with names of their own: each declared role is what the architecture itself computes."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.pytorch_utils import Conv1D

from mxsweep import LinearFormats, Recipe, quantize_model
from mxsweep.formats.recipe import Rotation
from mxsweep.model.fused_weights import _DECLARED, Layout, declared
from mxsweep.model.linear import MXLinear
from mxsweep.model.operands import Operand, find_operands
from mxsweep.model.quantize import left_out
from mxsweep.numerics import MXFormat, quantize
from mxsweep.numerics.hadamard import hadamard

SIZES: dict[str, Any] = {
    "vocab_size": 97, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.1,
}  # fmt: skip
GROUPED = SIZES | {"num_key_value_heads": 2}
N_SIZES: dict[str, Any] = {
    "vocab_size": 97, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64, "initializer_range": 0.1,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip

# Configuration, and the activation of its MLP.
ARCHITECTURES: dict[str, tuple[str, dict[str, Any], str]] = {
    "gpt2": ("GPT2Config", N_SIZES, "gelu_new"),
    "openai": ("OpenAIGPTConfig", N_SIZES, "gelu_new"),
    "gpt_bigcode": ("GPTBigCodeConfig", N_SIZES, "gelu_pytorch_tanh"),
    "gpt_bigcode_heads": ("GPTBigCodeConfig", N_SIZES | {"multi_query": False}, "gelu_pytorch_tanh"),
    "gptj": ("GPTJConfig", N_SIZES | {"rotary_dim": 8}, "gelu_new"),
    "codegen": ("CodeGenConfig", N_SIZES | {"rotary_dim": 8}, "gelu_new"),
    "gpt_neo": (
        "GPTNeoConfig",
        {"vocab_size": 97, "hidden_size": 64, "num_layers": 2, "num_heads": 4, "max_position_embeddings": 64,
         "attention_types": [[["global", "local"], 1]], "initializer_range": 0.1},
        "gelu_new",
    ),
    "bloom": ("BloomConfig", {"vocab_size": 97, "hidden_size": 64, "n_layer": 2, "n_head": 4}, "gelu_pytorch_tanh"),
    "mpt": ("MptConfig", {"vocab_size": 97, "d_model": 64, "n_layers": 2, "n_heads": 4, "max_seq_len": 64}, "gelu"),
    "falcon_new": ("FalconConfig", GROUPED | {"new_decoder_architecture": True, "num_kv_heads": 2}, "gelu"),
    "falcon_multi_query": ("FalconConfig", SIZES | {"new_decoder_architecture": False, "multi_query": True}, "gelu"),
    "falcon_heads": (
        "FalconConfig",
        SIZES | {"new_decoder_architecture": False, "multi_query": False, "alibi": True},
        "gelu",
    ),
    "gpt_neox": ("GPTNeoXConfig", SIZES, "gelu"),
    "persimmon": ("PersimmonConfig", SIZES, "relu2"),
    "phi": ("PhiConfig", GROUPED, "gelu_new"),
    "phi3": ("Phi3Config", GROUPED, "silu"),
    "glm": ("GlmConfig", GROUPED | {"head_dim": 16}, "silu"),
    "glm4": ("Glm4Config", GROUPED | {"head_dim": 16}, "silu"),
    "nanochat": ("NanoChatConfig", GROUPED, "relu2"),
    "lfm2": ("Lfm2Config", GROUPED | {"layer_types": ["conv", "full_attention"]}, "silu"),
    "lfm2_moe": (
        "Lfm2MoeConfig",
        GROUPED | {"layer_types": ["conv", "full_attention"], "num_dense_layers": 2, "num_experts": 2,
                   "num_experts_per_tok": 1, "moe_intermediate_size": 32},
        "silu",
    ),
    "starcoder2": ("Starcoder2Config", GROUPED, "gelu_pytorch_tanh"),
    "opt": (
        "OPTConfig",
        {"vocab_size": 97, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 96,
         "max_position_embeddings": 64, "word_embed_proj_dim": 64, "init_std": 0.1},
        "relu",
    ),
    "xglm": (
        "XGLMConfig",
        {"vocab_size": 97, "d_model": 64, "num_layers": 2, "attention_heads": 4, "ffn_dim": 96, "init_std": 0.1,
         "max_position_embeddings": 64},
        "gelu",
    ),
    "biogpt": ("BioGptConfig", SIZES, "gelu"),
    "dbrx": (
        "DbrxConfig",
        {"vocab_size": 97, "d_model": 64, "n_layers": 2, "n_heads": 4, "max_seq_len": 64, "initializer_range": 0.1,
         "attn_config": {"kv_n_heads": 2, "clip_qkv": 100.0, "rope_theta": 1e4},
         "ffn_config": {"ffn_hidden_size": 32, "moe_num_experts": 2, "moe_top_k": 1}},
        "silu",
    ),
    "granitemoeshared": (
        "GraniteMoeSharedConfig",
        GROUPED | {"num_local_experts": 2, "num_experts_per_tok": 1, "shared_intermediate_size": 48},
        "silu",
    ),
    "granitemoehybrid": (
        "GraniteMoeHybridConfig",
        GROUPED | {"num_local_experts": 2, "num_experts_per_tok": 1, "shared_intermediate_size": 48,
                   "layer_types": ["attention", "attention"]},
        "silu",
    ),
    "phi4_multimodal": (
        "Phi4MultimodalConfig",
        GROUPED | {
            "vision_config": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1, "image_size": 28,
                              "intermediate_size": 16},
            "audio_config": {"hidden_size": 16, "num_blocks": 1, "num_attention_heads": 1, "intermediate_size": 16,
                             "nemo_conv_channels": 16, "ext_pw_out_channel": 16},
        },
        "silu",
    ),
}  # fmt: skip


def build(name: str) -> PreTrainedModel:
    torch.manual_seed(0)
    config, sizes, _ = ARCHITECTURES[name]
    model: PreTrainedModel = AutoModelForCausalLM.from_config(_config(config, sizes))
    return model.float().eval()


def _config(name: str, sizes: dict[str, Any]) -> PretrainedConfig:
    import transformers

    config: PretrainedConfig = getattr(transformers, name)(**sizes)
    return config


@contextmanager
def recorded(
    model: PreTrainedModel, operands: dict[str, Operand]
) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """The inputs and outputs of linear layers while the context lasts, by name, with their gradients."""
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}

    def note(name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            inputs[name], outputs[name] = args[0], output

        return hook

    names = {operand.module_name: operand.module for operand in operands.values() if operand.block is not None}
    handles = [module.register_forward_hook(note(name)) for name, module in names.items()]
    try:
        yield inputs, outputs
    finally:
        for handle in handles:
            handle.remove()


def of_last_block(model: PreTrainedModel, holder: str = "") -> dict[str, Operand]:
    operands = find_operands(model)
    last = [operand.block for name, operand in operands.items() if operand.block and "_extend" not in name][-1]
    return {name: operand for name, operand in operands.items() if operand.block == last}


def by_role(operands: dict[str, Operand]) -> dict[str, Operand]:
    return {operand.role: operand for operand in operands.values() if operand.expert is None}


def channels(operand: Operand) -> set[int]:
    """The outputs of the operand's module that the matrix makes."""
    numbers = torch.arange(operand.module.get_parameter("weight").numel()).view(operand.module.weight.shape)
    width = operand.shape[1]
    matrix = operand.matrix.of(numbers)
    whole = operand.module.weight.T if isinstance(operand.module, Conv1D) else operand.module.weight
    every = (numbers.T if isinstance(operand.module, Conv1D) else numbers).tolist()
    place = {tuple(row): number for number, row in enumerate(every)}
    assert whole.shape[1] == width
    return {place[tuple(row)] for row in matrix.tolist()}


def swayed(outputs: dict[str, Tensor], x: Tensor, operands: dict[str, Operand], tokens: slice) -> dict[str, set[int]]:
    """The channels of each layer's output at ``tokens`` that sway x."""
    names = list(dict.fromkeys(operand.module_name for operand in operands.values()))
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(x.shape, generator=generator)
    gradients = torch.autograd.grad(
        x, [outputs[name] for name in names], direction, retain_graph=True, allow_unused=True
    )
    largest = [0.0 if gradient is None else gradient[0, tokens].abs().amax(0) for gradient in gradients]
    least = 1e-6 * max(float(torch.as_tensor(each).max()) for each in largest)  # a softmax of one is 1 but for rounding
    return {
        name: set((torch.as_tensor(each) > least).nonzero().flatten().tolist())
        for name, each in zip(names, largest, strict=True)
    }


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_q_k_and_v_are_what_attention_does_with_them(name: str) -> None:
    """Attention to one token answers its v; to several, what earlier tokens sway it by are their k and v."""
    model = build(name)
    last = of_last_block(model)
    roles = by_role(last)
    reading = {operand.name: operand for role, operand in roles.items() if role in ("q", "k", "v")}
    expected = {role: channels(operand) for role, operand in roles.items() if role in ("q", "k", "v")}
    with recorded(model, last) as (inputs, outputs):
        answers: list[dict[str, set[int]]] = []
        for ids, tokens in (([5], slice(0, 1)), ([5, 6, 7], slice(0, 2)), ([5, 6, 7], slice(2, 3))):
            model(torch.tensor([ids]), use_cache=False)
            answer = inputs[roles["o"].name].view(1, len(ids), -1)[:, -1]
            answers.append(swayed(outputs, answer, reading, tokens))
    for role, operand in ((role, roles[role]) for role in ("q", "k", "v") if role in roles):
        own = expected[role]
        alone, before, at = (answer[operand.module_name] & own for answer in answers)
        assert alone == (own if role == "v" else set())
        assert before == (set() if role == "q" else own)
        assert at == own


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_gate_up_and_down_are_what_the_mlp_does_with_them(name: str) -> None:
    model = build(name)
    last = of_last_block(model)
    roles = by_role(last)
    if "down" not in roles:
        pytest.skip("only experts, or none")
    with recorded(model, last) as (inputs, outputs):
        model(torch.tensor([[5, 6, 7]]), use_cache=False)

    def output(role: str) -> Tensor:
        operand = roles[role]
        return outputs[operand.module_name][..., sorted(channels(operand))]

    act = ACT2FN[ARCHITECTURES[name][2]]
    expected = act(output("gate")) * output("up") if "gate" in roles else act(output("up"))
    torch.testing.assert_close(inputs[roles["down"].name], expected, rtol=1e-4, atol=1e-5)


OF_LARGER_MODELS = ("glm4v.Glm4vText", "glm_image.GlmImageText", "glm_ocr.GlmOcrText")


def test_every_declared_class_is_compared_with_what_it_computes() -> None:
    seen = {f"{name}MLP" for name in OF_LARGER_MODELS}
    for config, sizes, _ in ARCHITECTURES.values():
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(_config(config, sizes))
        classes = {of_class for module in model.modules() for of_class in type(module).__mro__}
        seen |= {f"{'.'.join(of.__module__.split('.')[2:3])}.{of.__name__}" for of in classes}
    assert set(_DECLARED) <= seen


@pytest.mark.parametrize("name", OF_LARGER_MODELS)
def test_gated_mlps_of_larger_models_begin_with_their_gate(name: str) -> None:
    package, prefix = name.split(".")
    module = importlib.import_module(f"transformers.models.{package}.modeling_{package}")
    configs = importlib.import_module(f"transformers.models.{package}.configuration_{package}")
    torch.manual_seed(0)
    mlp = getattr(module, f"{prefix}MLP")(getattr(configs, f"{prefix}Config")(hidden_size=16, intermediate_size=24))
    layout = declared(mlp, "gate_up_proj")
    assert isinstance(layout, Layout) and dict(layout.rows) == {"gate": 24, "up": 24}
    taken: list[Tensor] = []
    mlp.gate_up_proj.register_forward_hook(lambda _module, _args, y: taken.append(y))
    mlp.down_proj.register_forward_pre_hook(lambda _module, args: taken.append(args[0]))
    with torch.no_grad():
        mlp(torch.randn(1, 3, 16))
    gate, up = taken[0].chunk(2, dim=-1)
    torch.testing.assert_close(taken[1], mlp.activation_fn(gate) * up)


def test_a_class_of_another_library_is_not_taken_for_one_that_is_declared() -> None:
    class Phi3MLP(nn.Module):
        """As transformers', with up first."""

        def __init__(self) -> None:
            super().__init__()
            self.gate_up_proj, self.down_proj = nn.Linear(4, 6), nn.Linear(3, 4)

    assert declared(Phi3MLP(), "gate_up_proj") is None


def test_a_weight_of_another_shape_than_declared_is_one_matrix() -> None:
    model = build("phi3")
    attention = model.model.layers[1].self_attn
    attention.qkv_proj = nn.Linear(64, 100)
    attention.forward = lambda hidden_states, **_: (attention.qkv_proj(hidden_states)[..., :64], None)
    operand = of_last_block(model)["model.layers.1.self_attn.qkv_proj"]
    assert operand.role == "other" and operand.is_alone


# Weights and inputs in one format, in a product of their own for each role, and in runs of neighbours.
FP4, FP6, FP8 = MXFormat("fp4_e2m1", 16), MXFormat("fp6_e2m3"), MXFormat("fp8_e4m3")
RECIPES = {
    "one product": Recipe(LinearFormats(FP4, FP6), arithmetic="exact"),
    "each its own": Recipe(
        LinearFormats(FP4, FP6), arithmetic="exact",
        modules=(("*.k_proj", LinearFormats(FP8, FP8)), ("*.v_proj", LinearFormats())),
    ),
    "run of two": Recipe(
        LinearFormats(FP4, FP6), arithmetic="exact", modules=(("*.q_proj", LinearFormats(FP8, None)),),
    ),
    "one rotated": Recipe(LinearFormats(FP4, FP6), arithmetic="exact", rotation=Rotation(("v",), 16)),
}  # fmt: skip
LAID_OUT = ["gpt2", "gpt_bigcode", "codegen", "mpt", "falcon_new", "falcon_multi_query", "gpt_neox", "phi3"]


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=list(RECIPES))
@pytest.mark.parametrize("name", LAID_OUT)
def test_each_role_is_multiplied_as_a_layer_of_its_own_would_be(name: str, recipe: Recipe) -> None:
    model = build(name)
    last = of_last_block(model)
    fused = {operand.role: operand for operand in last.values() if not operand.is_alone and operand.role in "qkv"}
    module, module_name = fused["q"].module, fused["q"].module_name
    x = torch.randn(2, 5, 64)
    weight = module.weight.T if isinstance(module, Conv1D) else module.weight
    expected = torch.full((2, 5, len(weight)), torch.nan)
    for role, operand in fused.items():
        formats = recipe.formats_of(operand.name, True)
        rows = sorted(channels(operand))
        own, inputs = weight[rows].detach(), x
        if recipe.rotation is not None and role == "v":
            own, inputs = hadamard(own, 16), hadamard(x, 16)
        own = own if formats.weight is None else quantize(own, formats.weight, arithmetic="exact")
        inputs = inputs if formats.activation is None else quantize(inputs, formats.activation, arithmetic="exact")
        expected[..., rows] = F.linear(inputs, own, None if module.bias is None else module.bias[rows])
    with quantize_model(model, recipe), torch.no_grad():
        layer = model.get_submodule(module_name)
        assert isinstance(layer, MXLinear)
        torch.testing.assert_close(layer(x), expected)
    assert model.get_submodule(module_name) is module


@pytest.mark.parametrize("fmt", [FP4, FP6, MXFormat("fp4_e2m1", 16, "e4m3", tensor_scale=True)], ids=str)
def test_rows_are_quantized_as_in_the_whole_but_for_a_scale_per_tensor(fmt: MXFormat) -> None:
    model = build("phi3")
    operands = [operand for operand in of_last_block(model).values() if operand.module_name.endswith("qkv_proj")]
    whole = quantize(operands[0].parameter.detach(), fmt, arithmetic="exact")
    with quantize_model(model, Recipe(LinearFormats(fmt, None), arithmetic="exact")):
        fused = model.get_submodule(operands[0].module_name).weight_mx
    own = torch.cat([quantize(operand.weight, fmt, arithmetic="exact") for operand in operands])
    assert torch.equal(fused, own)
    assert torch.equal(fused, whole) == (not fmt.tensor_scale)


def test_patterns_name_an_operand_by_its_own_name_or_by_its_modules() -> None:
    model = build("phi3")
    fp4, fp8 = LinearFormats(FP4, FP4), LinearFormats(FP8, FP8)
    recipe = Recipe(fp4, modules=(("*.qkv_proj", LinearFormats()), ("*.1.self_attn.qkv_proj.k_proj", fp8)))
    with quantize_model(model, recipe) as report:
        replaced = {layer.name: layer.weight for layer in report.layers if "qkv_proj" in layer.name}
    assert replaced == {"model.layers.1.self_attn.qkv_proj.k_proj": FP8}
    assert report.stored.left == {}  # a pattern asks for it


def test_a_model_is_as_it_was_afterwards_and_a_left_out_role_as_in_between() -> None:
    model = build("gpt2")
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    modules = dict(model.named_modules())
    ids = torch.tensor([[5, 6, 7, 8]])
    operands = find_operands(model)
    recipe = Recipe(LinearFormats(FP4, FP6), arithmetic="exact")
    left = [operands["transformer.h.0.attn.c_attn.q_proj"], operands["transformer.h.1.attn.c_attn.v_proj"]]
    without = replace(recipe, modules=tuple((operand.name, LinearFormats()) for operand in left))
    with torch.no_grad():
        plain = model(ids).logits
        with quantize_model(model, without):
            expected = model(ids).logits
        with quantize_model(model, recipe):
            quantized = model(ids).logits
            with left_out(model, left):
                assert torch.equal(model(ids).logits, expected)
            assert torch.equal(model(ids).logits, quantized) and not torch.equal(quantized, expected)
        assert torch.equal(model(ids).logits, plain)
    assert dict(model.named_modules()) == modules
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
