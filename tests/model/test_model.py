"""MX layers in real architectures: what they compute, and that taking them out leaves nothing behind."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from mxsweep import LinearFormats, Recipe, quantize_model
from mxsweep.model import linear, offload, quantized_weights
from mxsweep.model.linear import MXLinear
from mxsweep.model.load import load_model
from mxsweep.numerics import MXFormat, quantize
from mxsweep.terminal.errors import ConfigError

W, A, KV = MXFormat("fp4_e2m1"), MXFormat("fp6_e2m3"), MXFormat("fp4_e2m1")
W4A6 = Recipe(linear=LinearFormats(W, A))
W4A6KV4 = Recipe(linear=LinearFormats(W, A), key=KV, value=KV)
SIZES = {
    "vocab_size": 97, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "head_dim": 32,
}  # fmt: skip
ARCHITECTURES = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "mistral": (MistralConfig, MistralForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
}


def build(architecture: str = "llama", attention: str = "sdpa", **extra: object) -> PreTrainedModel:
    config_class, model_class = ARCHITECTURES[architecture]
    torch.manual_seed(0)
    model = model_class(config_class(**SIZES, attn_implementation=attention, **extra))
    for parameter in model.parameters():  # random enough that quantization shows
        nn.init.normal_(parameter, std=0.3)
    return model.eval()


def tokens(batch: int = 2, length: int = 12) -> torch.Tensor:
    return torch.randint(97, (batch, length), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def logits(model: PreTrainedModel, ids: torch.Tensor, **inputs: torch.Tensor) -> torch.Tensor:
    return model(ids, use_cache=False, **inputs).logits


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_put_in_and_taken_out(architecture: str, attention: str) -> None:
    model, ids = build(architecture, attention), tokens()
    before, modules = logits(model, ids), dict(model.named_modules())
    with quantize_model(model, W4A6KV4) as report:
        assert len(report.layers) == 14
        assert report.attention_modules == 2
        assert isinstance(model.model.layers[1].mlp.down_proj, MXLinear)
        assert type(model.lm_head) is nn.Linear
        inside = logits(model, ids)
    assert (inside - before).abs().max() > 0.01
    assert torch.equal(logits(model, ids), before)
    assert dict(model.named_modules()) == modules
    assert model.config._attn_implementation == attention
    assert all(not hasattr(module, "mxsweep_kv") for module in model.modules())


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_later_tokens_never_change_earlier_logits(architecture: str, attention: str) -> None:
    model, ids = build(architecture, attention), tokens()
    changed = ids.clone()
    changed[:, 8:] = (changed[:, 8:] + 1) % 97
    with quantize_model(model, W4A6KV4):
        a, b = logits(model, ids), logits(model, changed)
        padding = torch.ones_like(ids)
        padding[:, 8:] = 0
        masked = logits(model, ids, attention_mask=padding)
    assert torch.equal(a[:, :8], b[:, :8])
    assert not torch.allclose(a[:, 8:], b[:, 8:])
    torch.testing.assert_close(a[:, :8], masked[:, :8], rtol=0, atol=1e-5)


@pytest.mark.parametrize("stage", ["linear", "kv"])
def test_eager_and_sdpa_agree(stage: str) -> None:
    """On the same inputs: the attention of one layer, since roundings amplify differences from layer to layer."""
    recipe = W4A6KV4 if stage == "kv" else W4A6
    outputs = {}
    for attention in ("sdpa", "eager"):
        model = build(attention=attention)
        block = model.model.layers[0].self_attn
        captured: list[torch.Tensor] = []
        with quantize_model(model, recipe):
            replaced = block.o_proj.register_forward_pre_hook(lambda _m, args, seen=captured: seen.append(args[0]))
            logits(model, tokens())
            replaced.remove()
        (outputs[attention],) = captured
    torch.testing.assert_close(outputs["sdpa"], outputs["eager"], rtol=0, atol=1e-5)


def test_a_linear_layer_computes_what_the_definition_says() -> None:
    model = build()
    gate = model.model.layers[0].mlp.gate_proj
    x = torch.randn(3, 5, 64)
    with quantize_model(model, W4A6):
        inside = model.model.layers[0].mlp.gate_proj
        assert inside.weight is gate.weight
        assert torch.equal(inside(x), F.linear(quantize(x, A), quantize(gate.weight, W), gate.bias))


def test_keys_and_values_are_quantized_along_head_dim(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against attention written out: softmax(q Q(k)^T) Q(v)."""
    seen = {}

    def spy(module, query, key, value, mask, **kwargs):  # type: ignore[no-untyped-def]
        seen["out"] = original(module, query, key, value, mask, **kwargs)[0]
        seen["qkv"] = query, key, value
        return seen["out"], None

    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    model = build()
    with quantize_model(model, Recipe(key=KV, value=MXFormat("int8", block_size=16))), monkeypatch.context() as patch:
        original = ALL_ATTENTION_FUNCTIONS["sdpa"]
        patch.setitem(ALL_ATTENTION_FUNCTIONS, "sdpa", spy)
        logits(model, tokens())
    q, k, v = seen["qkv"]
    k = quantize(k, KV, axis=-1).repeat_interleave(2, dim=1)
    v = quantize(v, MXFormat("int8", block_size=16), axis=-1).repeat_interleave(2, dim=1)
    scores = (q @ k.mT / 32**0.5).masked_fill(torch.ones(12, 12).triu(1).bool(), -torch.inf)
    expected = (scores.softmax(-1) @ v).transpose(1, 2)
    torch.testing.assert_close(seen["out"], expected, rtol=1e-5, atol=1e-5)


def test_projections_that_read_one_tensor_quantize_it_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    for module in (linear, quantized_weights):
        monkeypatch.setattr(module, "quantize", lambda x, *a, **k: calls.append(x.shape) or quantize(x, *a, **k))
    model = build()
    with quantize_model(model, W4A6):
        assert len(calls) == 14  # the weights, once
        calls.clear()
        logits(model, tokens())
        logits(model, tokens())
    assert len(calls) == 2 * 2 * 4  # forwards x layers x (qkv, o, gate and up, down)


def test_an_input_changed_in_place_is_quantized_again() -> None:
    model = build()
    with quantize_model(model, W4A6), torch.no_grad():
        layer = model.model.layers[0].mlp.up_proj
        x = torch.randn(1, 4, 64)
        first = layer(x)
        x.mul_(1.7)
        assert not torch.equal(layer(x), first)
        assert torch.equal(layer(x), layer(x.clone()))


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_an_answer_does_not_depend_on_the_batch(rounding: str) -> None:
    fmt = MXFormat("fp4_e2m1", block_size=16, scale="e4m3", tensor_scale=True, rounding=rounding)
    model, ids = build(), tokens(batch=3)
    with quantize_model(model, Recipe(LinearFormats(fmt, fmt), fmt, fmt, arithmetic="exact")):
        together, alone = logits(model, ids), logits(model, ids[1:2])
        padded = logits(model, F.pad(ids[1:2], (0, 3)))[:, :12]
    torch.testing.assert_close(together[1:2], alone, rtol=0, atol=1e-4)
    torch.testing.assert_close(padded, alone, rtol=0, atol=1e-4)


def test_modules_patterns() -> None:
    int8 = MXFormat("int8")
    recipe = Recipe(
        LinearFormats(W, A),
        modules=(
            ("model.layers.0.*", LinearFormats()),
            ("*.down_proj", LinearFormats(int8, None)),
            ("lm_head", LinearFormats(int8, int8)),
            ("*embed_tokens", LinearFormats(int8, int8)),
        ),
    )
    model, ids = build(), tokens()
    before = logits(model, ids)
    with quantize_model(model, recipe) as report:
        formats = {layer.name: (layer.weight, layer.activation) for layer in report.layers}
        assert torch.equal(model.model.embed_tokens(ids), quantize(model.model.embed_tokens.weight, int8)[ids])
        logits(model, ids)
    assert len(formats) == 1 + 1 + 7 + 1
    assert formats["model.layers.0.mlp.down_proj"] == (int8, None)
    assert formats["model.layers.1.mlp.down_proj"] == (int8, None)
    assert formats["model.layers.1.mlp.up_proj"] == (W, A)
    assert formats["lm_head"] == (int8, int8)
    assert formats["model.embed_tokens"] == (int8, None)
    assert torch.equal(logits(model, ids), before)


def test_a_pattern_that_matches_nothing_is_refused() -> None:
    recipe = Recipe(modules=(("model.layer.0.*", LinearFormats(W)),))
    with pytest.raises(ConfigError, match=r"modules: the pattern 'model.layer.0.\*' matches no linear layer"):
        quantize_model(build(), recipe).__enter__()


def test_a_layer_with_two_names_is_replaced_under_both() -> None:
    model, ids = build(), tokens()
    shared = model.model.layers[0].mlp.up_proj
    model.model.layers[1].mlp.up_proj = shared
    before = logits(model, ids)
    with quantize_model(model, W4A6):
        assert all(isinstance(layer.mlp.up_proj, MXLinear) for layer in model.model.layers)
    assert all(layer.mlp.up_proj is shared for layer in model.model.layers)
    assert torch.equal(logits(model, ids), before)


def test_a_subclass_of_a_layer_is_refused_by_name() -> None:
    class Scaled(nn.Embedding):
        pass

    model = build()
    model.model.embed_tokens = Scaled(97, 64)
    with pytest.raises(ConfigError, match=r"modules: model\.embed_tokens is a Scaled, for which there is no MX layer"):
        quantize_model(model, Recipe(modules=(("*embed_tokens", LinearFormats(W)),))).__enter__()


def test_a_failure_inside_leaves_the_model_as_it_was() -> None:
    model, ids = build(), tokens()
    before = logits(model, ids)
    with pytest.raises(ZeroDivisionError), quantize_model(model, W4A6KV4):
        raise ZeroDivisionError
    assert torch.equal(logits(model, ids), before)


def test_weights_without_room_beside_their_copies_wait_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(tie_word_embeddings=True)
    model.model.layers[1].mlp.up_proj = model.model.layers[0].mlp.up_proj  # two names, as some architectures have it
    moved = []
    monkeypatch.setattr(
        offload.OffloadedWeights, "send_to_host", lambda self, parameter: moved.append(id(parameter) in self._leaving)
    )
    recipe = Recipe(linear=LinearFormats(W, A), modules=(("lm_head", LinearFormats(W)),))
    for room, waiting in ((1e12, 0), (0.0, 2 * 7 - 2)):
        moved.clear()
        monkeypatch.setattr(offload, "_memory", lambda device, room=room: (room, 1e6))
        with quantize_model(model, recipe) as report:
            assert len(moved) == len(report.layers) == 2 * 7 + 1  # lm_head, whose weight is the embedding's, stays
            assert sum(moved) == waiting


def test_a_weight_that_cannot_come_back_leaves_no_mx_layer_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build()
    before = [type(module) for module in model.modules()]

    def fail(self: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(offload.OffloadedWeights, "bring_back", fail)
    with pytest.raises(torch.OutOfMemoryError), quantize_model(model, W4A6):
        pass
    assert [type(module) for module in model.modules()] == before


def test_a_model_is_quantized_once_at_a_time() -> None:
    model = build()
    refused = pytest.raises(RuntimeError, match="holds MX layers already")
    with quantize_model(model, W4A6), refused, quantize_model(model, W4A6):
        pass


def test_a_kept_model_whose_weights_were_left_elsewhere_is_loaded_again() -> None:
    kept = load_model("embedded", device="cpu")
    assert load_model("embedded", device="cpu") is kept
    layer = kept.model.model.layers[0].mlp.up_proj
    layer.weight = nn.Parameter(layer.weight.to("meta"))
    assert load_model("embedded", device="cpu") is not kept


def test_baseline_changes_nothing() -> None:
    model, ids = build(), tokens()
    before = logits(model, ids)
    with quantize_model(model, Recipe()) as report:
        assert torch.equal(logits(model, ids), before)
    assert report.lines() == ["Nothing is quantized: this is the baseline."]


def test_report_counts_bits_and_clamped_scales() -> None:
    model = build()
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, :32] *= 2.0**20  # one block out of two scale bits' reach
    with quantize_model(model, Recipe(LinearFormats(MXFormat("fp4_e2m1", scale_bits=8), None))) as wide:
        pass
    with quantize_model(model, Recipe(LinearFormats(MXFormat("fp4_e2m1", scale_bits=5), None))) as narrow:
        pass
    assert wide.bits_per_weight == 4 + 8 / 32
    assert narrow.bits_per_weight == 4 + 5 / 32
    assert wide.as_dict()["weight_blocks_scale_clamped"] == 0
    assert narrow.as_dict()["weight_blocks_scale_clamped"] == 1
    weights = sum(layer.weights for layer in wide.layers)
    total = sum(p.numel() for p in model.parameters())
    assert wide.parameter_bytes == round((weights * 4.25 + (total - weights) * 32) / 8)
    assert any("1 of" in line and "clamped" in line for line in narrow.lines())


def test_unmeasured_it_computes_the_same() -> None:
    model, ids = build(), tokens()
    with quantize_model(model, W4A6) as measured:
        expected = logits(model, ids)
    with quantize_model(model, W4A6, measure=False) as report:
        assert torch.equal(logits(model, ids), expected)
    assert all(layer.statistics is None for layer in report.layers)
    assert all(layer.statistics is not None for layer in measured.layers)
    assert report.bits_per_quantized_weight == measured.bits_per_quantized_weight == 4.25


def test_model_whose_attention_cannot_be_reached_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build()
    # By another name than those that are listened to, as flex_attention, which the probing pass would compile.
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "of_its_own", ALL_ATTENTION_FUNCTIONS["sdpa"])
    model.config._attn_implementation_internal = "of_its_own"
    with pytest.raises(ConfigError, match=r"kv_quant: the attention of LlamaForCausalLM \(of_its_own\)"):
        quantize_model(model, Recipe(key=KV)).__enter__()
