"""The residual stream in another basis: the same logits, the model as it was afterwards, and who is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GemmaConfig,
    Glm4Config,
    GlmConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Olmo2Config,
    OPTConfig,
    Phi3Config,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    StableLmConfig,
)
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm

from mxsweep import LinearFormats, Recipe, quantize_model
from mxsweep.model import residual
from mxsweep.model.residual import rotated_residual
from mxsweep.numerics import MXFormat
from mxsweep.numerics.hadamard import hadamard
from mxsweep.terminal.errors import ConfigError

SIZES = {
    "vocab_size": 97, "hidden_size": 96, "intermediate_size": 112, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "head_dim": 24,
}  # fmt: skip
W4A6 = Recipe(linear=LinearFormats(MXFormat("fp4_e2m1"), MXFormat("fp6_e2m3")))
CONFIGS: dict[str, Callable[..., PretrainedConfig]] = {
    "llama": LlamaConfig,
    "mistral": MistralConfig,
    "qwen2": Qwen2Config,
    "qwen3": Qwen3Config,
    "phi3": partial(Phi3Config, pad_token_id=0),  # q, k and v are fused, and gate and up
    "glm": partial(GlmConfig, pad_token_id=0),  # gate and up are
}


def build(config: PretrainedConfig, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A model with random weights, gains and biases; the embedding has a few channels of outliers."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "norm" in name else 0.0, 0.3)
        model.get_input_embeddings().weight[:, 5] *= 20
    if dtype == torch.float64:  # transformers' norms compute in float32 always, torch's do not
        for name, module in list(model.named_modules()):
            if type(module).__name__.endswith("RMSNorm"):
                norm = nn.RMSNorm(len(module.weight), eps=1e-6)
                norm.weight = module.weight
                parent, _, child = name.rpartition(".")
                setattr(model.get_submodule(parent), child, norm)
    return model.to(dtype).eval()


def llama_like(name: str, dtype: torch.dtype = torch.float32, **extra: object) -> PreTrainedModel:
    return build(CONFIGS[name](**SIZES, **extra), dtype)


@torch.no_grad()
def logits(model: PreTrainedModel) -> torch.Tensor:
    ids = torch.randint(97, (2, 12), generator=torch.Generator().manual_seed(1))
    return model(ids, use_cache=False).logits


def assert_same_state(model: PreTrainedModel, before: dict[str, torch.Tensor]) -> None:
    after = model.state_dict()
    assert list(after) == list(before)
    for name, value in before.items():
        assert torch.equal(after[name].view(torch.uint8), value.view(torch.uint8)), name


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", list(CONFIGS))
def test_logits_stay_and_the_model_comes_back(name: str, dtype: torch.dtype, tied: bool) -> None:
    extra = {"attention_bias": True, "mlp_bias": True} if name == "llama" else {}
    model = llama_like(name, dtype, tie_word_embeddings=tied, **extra)
    before, expected = copy.deepcopy(model.state_dict()), logits(model)
    parameters = dict(model.named_parameters())
    with rotated_residual(model):
        assert torch.is_grad_enabled()
        assert not torch.allclose(model.model.embed_tokens.weight, before["model.embed_tokens.weight"])
        assert model.lm_head.weight is not model.model.embed_tokens.weight
        assert all((layer.input_layernorm.weight == 1).all() for layer in model.model.layers)
        inside = logits(model)
    bound = 1e-5 if dtype == torch.float32 else 1e-13
    assert (inside - expected).abs().max() <= bound * expected.abs().max()
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    assert_same_state(model, before)
    assert torch.equal(logits(model), expected)
    now = dict(model.named_parameters())
    assert all(now[key] is parameter for key, parameter in parameters.items())
    assert now.keys() == parameters.keys()


def test_the_stream_is_rotated() -> None:
    """What the blocks hand to each other is, row by row, the original times R, and the embedding's outlier is gone."""
    model, seen = llama_like("llama"), []
    for block in model.model.layers:
        block.register_forward_pre_hook(lambda _m, args: seen.append(args[0]) if len(args[0]) == 2 else None)
    logits(model)
    with rotated_residual(model):
        logits(model)
    for before, inside in zip(seen[:2], seen[2:], strict=True):
        torch.testing.assert_close(inside, hadamard(before), rtol=0, atol=1e-5 * before.abs().max().item())
    assert seen[2].abs().max() < seen[0].abs().max() / 4


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_restored_after_an_exception(tied: bool) -> None:
    model = llama_like("qwen2", tie_word_embeddings=tied)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(KeyboardInterrupt), rotated_residual(model):
        raise KeyboardInterrupt
    assert_same_state(model, before)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied


@pytest.mark.parametrize("call", [0, 1, 5, 15])
def test_restored_after_a_failure_on_the_way_in(call: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = llama_like("llama", tie_word_embeddings=True)
    before, calls = copy.deepcopy(model.state_dict()), []

    def failing(values: torch.Tensor) -> torch.Tensor:
        calls.append(values)
        if len(calls) > call:
            raise torch.cuda.OutOfMemoryError("no room")
        return hadamard(values)

    monkeypatch.setattr(residual, "hadamard", failing)
    with pytest.raises(torch.cuda.OutOfMemoryError), rotated_residual(model):
        raise AssertionError("it entered")
    assert len(calls) == call + 1
    assert_same_state(model, before)
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_weights_are_rounded_once(dtype: torch.dtype) -> None:
    model = llama_like("llama", dtype)
    block = model.model.layers[0]
    gain, read = block.input_layernorm.weight.double(), block.self_attn.q_proj.weight.double()
    written = block.mlp.down_proj.weight.double()
    with rotated_residual(model):
        for inside, exact in (
            (block.self_attn.q_proj.weight, hadamard(read * gain)),
            (block.mlp.down_proj.weight, hadamard(written.t()).t()),
        ):
            assert inside.dtype == dtype
            assert (inside == exact.to(dtype)).float().mean() > 0.99
            assert ((inside.double() - exact).abs() <= 2**-7 * exact.abs() + 1e-6).all()


def test_large_weights_go_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    model = llama_like("llama", torch.float64)
    with rotated_residual(model):
        whole = copy.deepcopy(model.state_dict())
    monkeypatch.setattr(residual, "PIECE", 1000)  # ten rows of 96
    with rotated_residual(model):
        for name, value in model.state_dict().items():
            torch.testing.assert_close(value, whole[name], rtol=0, atol=1e-13)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_around_a_quantized_model(tied: bool) -> None:
    model = llama_like("llama", tie_word_embeddings=tied)
    before, expected = copy.deepcopy(model.state_dict()), logits(model)
    recipe = Recipe(linear=W4A6.linear, modules=(("lm_head", W4A6.linear),))
    with rotated_residual(model):
        with quantize_model(model, Recipe(linear=LinearFormats(MXFormat("int16")))) as fine:
            assert (logits(model) - expected).abs().max() < 0.01 * expected.abs().max()
        with quantize_model(model, recipe) as report:
            assert len(report.layers) == 15
            assert report.stored.parameters == fine.stored.parameters  # the head's own included
            inside = logits(model)
        with rotated_residual(model):  # one inside the other, whose way back is the other's values
            assert (logits(model) - expected).abs().max() < 1e-4 * expected.abs().max()
    assert (inside - expected).abs().max() > 0.01
    assert_same_state(model, before)
    assert torch.equal(logits(model), expected)


def test_outliers_cost_less_once_they_are_spread() -> None:
    """What it is for: 4-bit inputs of a layer that reads an outlier channel change its answer less."""
    model, seen = llama_like("llama"), []

    def watch() -> None:
        model.model.layers[0].self_attn.q_proj.register_forward_hook(
            lambda _m, _x, y: seen.append(y) if len(y) == 2 else None
        )

    watch()
    logits(model)
    inputs_only = Recipe(linear=LinearFormats(None, MXFormat("int4")))
    with quantize_model(model, inputs_only):
        watch()
        logits(model)
    with rotated_residual(model), quantize_model(model, inputs_only):
        watch()
        logits(model)
    expected, plain, rotated = seen
    assert (rotated - expected).norm() < 0.8 * (plain - expected).norm()


OTHERS = {
    "gemma": (GemmaConfig(**SIZES), r"model\.embed_tokens is a GemmaTextScaledWordEmbedding"),
    "gemma2": (Gemma2Config(**SIZES), r"model\.embed_tokens is a Gemma2TextScaledWordEmbedding"),
    "olmo2": (Olmo2Config(**SIZES), r"input_layernorm"),
    "cohere": (CohereConfig(**SIZES), r"post_attention_layernorm"),
    "stablelm": (StableLmConfig(**SIZES), r"input_layernorm is not an RMS norm"),
    "glm4": (Glm4Config(**SIZES, pad_token_id=0), r"post_self_attn_layernorm is not known to this rotation"),
    "mixtral": (MixtralConfig(**SIZES), r"gate_proj"),
    "gpt2": (GPT2Config(vocab_size=97, n_embd=32, n_layer=1, n_head=2), r"input_layernorm"),
    "opt": (
        OPTConfig(vocab_size=97, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, ffn_dim=48,
                  max_position_embeddings=32),
        r"input_layernorm",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", list(OTHERS))
def test_other_models_are_refused(name: str) -> None:
    config, reason = OTHERS[name]
    model = build(config)
    before = copy.deepcopy(model.state_dict())
    message = (
        rf"^rotation\.residual: true is not allowed for a {type(model).__name__} .*{reason}.*; allowed: models that"
    )
    with pytest.raises(ConfigError, match=message), rotated_residual(model):
        raise AssertionError("it entered")
    assert_same_state(model, before)


def broken(change: Callable[[PreTrainedModel], object]) -> PreTrainedModel:
    model = llama_like("llama")
    change(model)
    return model


def apart(model: PreTrainedModel) -> None:
    mlp = model.model.layers[1].mlp
    mlp.other = nn.ModuleDict({"gate_proj": mlp.gate_proj})
    del mlp.gate_proj
    mlp.forward = lambda x: mlp.down_proj(mlp.act_fn(mlp.other["gate_proj"](x)) * mlp.up_proj(x))


class Biased(nn.Linear):
    """Computes something else as well."""


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda model: setattr(model.model.layers[1].mlp, "up_proj", Biased(96, 112)), "up_proj is a Biased"),
        (
            lambda model: setattr(model.model, "norm", GemmaRMSNorm(96)),
            r"model\.norm is not an RMS norm of 96 channels",
        ),
        (lambda model: setattr(model.model, "norm", nn.LayerNorm(96)), r"model\.norm is not an RMS norm"),
        (lambda model: setattr(model.model, "norm", nn.LayerNorm(96, bias=False)), r"model\.norm is not an RMS norm"),
        (lambda model: setattr(model.model.layers[0].mlp, "extra", nn.Linear(2, 2)), r"mlp\.extra is not known"),
        (
            lambda model: setattr(
                model.model.layers[1].mlp.up_proj, "weight", model.model.layers[0].mlp.up_proj.weight
            ),
            r"up_proj shares its memory",
        ),
        (lambda model: model.model.layers[0].mlp.to("meta"), "were offloaded from the GPUs"),
        (apart, r"whose gate and up of model\.layers\.1 do not read one tensor"),
    ],
    ids=[
        "subclass",
        "gain of 1 + weight",
        "layer norm",
        "layer norm without bias",
        "adapter",
        "shared",
        "offloaded",
        "gate elsewhere",
    ],
)
def test_changed_models_are_refused(change: Callable[[PreTrainedModel], object], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason), rotated_residual(broken(change)):
        raise AssertionError("it entered")


def test_rms_norms_of_torch_are_taken() -> None:
    model = llama_like("llama")
    norm = nn.RMSNorm(96, eps=1e-6)
    norm.weight.data = model.model.norm.weight.data.clone()
    model.model.norm = norm
    expected = logits(model)
    with rotated_residual(model):
        torch.testing.assert_close(logits(model), expected, rtol=0, atol=1e-5 * expected.abs().max().item())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU on this machine")
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_on_a_gpu(tied: bool) -> None:
    model = llama_like("qwen3", torch.float64, tie_word_embeddings=tied).cuda()
    before = copy.deepcopy(model.state_dict())
    ids = torch.arange(12, device="cuda")[None]
    with torch.no_grad():
        expected = model(ids).logits
        with rotated_residual(model):
            inside = model(ids).logits
    assert (inside - expected).abs().max() <= 1e-6 * expected.abs().max()
    assert_same_state(model, before)
    assert all(parameter.is_cuda for parameter in model.parameters())
