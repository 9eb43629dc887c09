"""Standing between models of many kinds and their attention: what text reaches, what masks do, what is put back."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    DeepseekV2Config,
    DeepseekV3Config,
    DeepseekV32Config,
    DynamicCache,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3nTextConfig,
    Gemma3TextConfig,
    Gemma4Config,
    Gemma4ForConditionalGeneration,
    Gemma4TextConfig,
    GlmMoeDsaConfig,
    GptOssConfig,
    LlamaConfig,
    LongcatFlashConfig,
    MiniMaxConfig,
    PhiConfig,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama import modeling_llama

from mxsweep import Recipe, compose, quantize_model
from mxsweep.calibrate import prepare as calibrate
from mxsweep.files.checkpoints import model_folder
from mxsweep.formats.recipe import KVOptions, Rotation
from mxsweep.model import attention_probe, kv
from mxsweep.model.attention_interface import STATE, listening
from mxsweep.model.kv import key_factors
from mxsweep.model.load import load_model
from mxsweep.model.meta import meta_model, recipe_problem
from mxsweep.numerics import MXFormat, quantize
from mxsweep.runs.process import describe_device
from mxsweep.sweeps.impossible import why_impossible
from mxsweep.sweeps.plan import plan
from mxsweep.terminal.errors import ConfigError
from mxsweep.terminal.progress_callback import silent

FP4 = MXFormat("fp4_e2m1", block_size=16)
KV = Recipe(key=FP4, value=FP4)
EXPANDED = KVOptions(latent="expanded")
SIZES: dict[str, Any] = {
    "vocab_size": 300, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "initializer_range": 0.2,
}  # fmt: skip
EXPERTS: dict[str, Any] = {
    "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "n_shared_experts": 1, "n_group": 1,
    "topk_group": 1, "first_k_dense_replace": 2,
}  # fmt: skip
LATENTS: dict[str, Any] = {
    **SIZES, "num_key_value_heads": 4, "q_lora_rank": 32, "kv_lora_rank": 32, "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 16, "v_head_dim": 16,
}  # fmt: skip
SPARSE: dict[str, Any] = {**LATENTS, **EXPERTS, "index_n_heads": 4, "index_head_dim": 32, "index_topk": 8}
VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}


def build(config: PretrainedConfig, attention: Any = "sdpa") -> PreTrainedModel:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    return model.float().eval()


def gemma3(attention: Any = "sdpa") -> PreTrainedModel:
    config = Gemma3Config(
        text_config={**SIZES, "head_dim": 16, "query_pre_attn_scalar": 16},
        vision_config={**VISION, "image_size": 28, "patch_size": 14},
        mm_tokens_per_image=4, image_token_index=299, boi_token_index=298, eoi_token_index=297,
    )  # fmt: skip
    torch.manual_seed(0)
    model = Gemma3ForConditionalGeneration(config).float().eval()
    model.set_attn_implementation(attention)
    return model


def gemma4(**text: Any) -> PreTrainedModel:
    config = Gemma4Config(
        text_config={
            **SIZES, "head_dim": 16, "global_head_dim": 16, "layer_types": ["sliding_attention", "full_attention"],
            "sliding_window": 16, "hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0, **text,
        },
        vision_config={
            **VISION, "num_key_value_heads": 2, "head_dim": 16, "patch_size": 4, "position_embedding_size": 64,
            "pooling_kernel_size": 1,
        },
        image_token_id=299,
    )  # fmt: skip
    torch.manual_seed(0)
    return Gemma4ForConditionalGeneration(config).float().eval()


def tokens(length: int = 24) -> Tensor:
    return torch.randint(3, 290, (2, length), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def logits(model: PreTrainedModel, ids: Tensor) -> Tensor:
    return model(input_ids=ids, use_cache=False).logits


@pytest.fixture
def unquantized(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv, "quantize", lambda x, *_, **__: x.clone())


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("config_class", [DeepseekV32Config, GlmMoeDsaConfig])
def test_sparse_attention_stays_sparse(config_class: type[PretrainedConfig], attention: str, unquantized: None) -> None:
    model, ids = build(config_class(**SPARSE), attention), tokens()
    sparse = logits(model, ids)
    with quantize_model(model, KV):
        assert torch.equal(logits(model, ids), sparse)
    for module in model.modules():
        if hasattr(module, "index_topk"):
            module.index_topk = 24  # every key: dense attention
    assert not torch.allclose(logits(model, ids), sparse, atol=1e-3)


def test_attention_of_each_part_is_put_back() -> None:
    model = gemma3({"text_config": "sdpa", "vision_config": "eager"})
    names = [config._attn_implementation for config in (model.config.text_config, model.config.vision_config)]
    functions = ALL_ATTENTION_FUNCTIONS["sdpa"], modeling_llama.eager_attention_forward
    entries = dict(ALL_ATTENTION_FUNCTIONS._local_mapping)
    with quantize_model(model, KV) as report:
        assert report.attention_modules == 2  # the vision tower's are not reached by a text
        assert [c._attn_implementation for c in (model.config.text_config, model.config.vision_config)] == names
        logits(model, tokens())
    assert names == ["sdpa", "eager"]
    assert [c._attn_implementation for c in (model.config.text_config, model.config.vision_config)] == names
    assert (ALL_ATTENTION_FUNCTIONS["sdpa"], modeling_llama.eager_attention_forward) == functions
    assert dict(ALL_ATTENTION_FUNCTIONS._local_mapping) == entries
    assert not any(hasattr(module, STATE) for module in model.modules())


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_models_at_the_same_time_do_not_hear_each_other(attention: str) -> None:
    """Whichever is left first; a model that is not quantized attends as before meanwhile."""
    one, other, plain = (build(LlamaConfig(**SIZES, head_dim=16), attention) for _ in range(3))
    ids = tokens()
    before = logits(plain, ids)
    with quantize_model(one, KV):
        alone = logits(one, ids)
    first, second = quantize_model(one, KV), quantize_model(other, Recipe(value=FP4))
    first.__enter__()
    second.__enter__()
    assert torch.equal(logits(one, ids), alone)
    assert torch.equal(logits(plain, ids), before)
    assert not torch.equal(logits(other, ids), before)
    first.__exit__(None, None, None)
    assert torch.equal(logits(one, ids), before)
    assert not torch.equal(logits(other, ids), before)
    second.__exit__(None, None, None)
    assert torch.equal(logits(other, ids), before)


def test_what_text_never_reaches_is_not_counted() -> None:
    model, ids = gemma4(), tokens()
    before = logits(model, ids)
    with quantize_model(model, KV) as report:
        assert report.attention_modules == 2
        assert all(".layers." in name and "vision" not in name for name in report.places)
        assert not torch.allclose(logits(model, ids), before, atol=1e-3)
    assert torch.equal(logits(model, ids), before)
    assert len(key_factors(model, lambda: logits(model, ids), 0.5, "after")) == 2


def test_linear_attention_has_no_keys_to_quantize() -> None:
    config = MiniMaxConfig(
        **SIZES, head_dim=16, num_local_experts=2, layer_types=["linear_attention", "full_attention"], block_size=16
    )
    model = build(config)
    with quantize_model(model, KV) as report:
        assert [name for name in report.places if name.endswith("self_attn")] == ["model.layers.1.self_attn"]


def test_attention_that_goes_another_way_is_refused_on_entering(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(LlamaConfig(**SIZES, head_dim=16))
    monkeypatch.setattr(
        model.model.layers[1].self_attn, "forward", lambda hidden_states, **_: (hidden_states, None), raising=False
    )
    message = r"kv_quant: model\.layers\.1\.self_attn \(LlamaAttention\) does not attend through"
    with pytest.raises(ConfigError, match=message):
        quantize_model(model, KV).__enter__()
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_attention_that_changes_when_it_is_listened_to_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(LlamaConfig(**SIZES, head_dim=16))
    attend = attention_probe._Identity.attend
    # As a kernel that reads the keys' memory rather than what it is given.
    monkeypatch.setattr(
        attention_probe._Identity, "attend", lambda self, call, q, k, v: attend(self, call, q, k, v * 2)
    )
    with pytest.raises(ConfigError, match="kv_quant: LlamaForCausalLM computes other logits"):
        quantize_model(model, KV).__enter__()


@pytest.mark.parametrize("rope", ["before", "after"])
def test_the_rotary_embedding_of_gemma4(rope: str, unquantized: None) -> None:
    config = AutoConfig.for_model(
        "gemma4_text", **SIZES, head_dim=16, global_head_dim=16, sliding_window=8, hidden_size_per_layer_input=8,
        vocab_size_per_layer_input=300, num_kv_shared_layers=0,
    )  # fmt: skip
    model, ids = build(config), tokens()
    before = logits(model, ids)
    with quantize_model(model, Recipe(key=FP4, value=FP4, kv=KVOptions(rope=rope))):
        torch.testing.assert_close(logits(model, ids), before, rtol=1e-4, atol=1e-4)


MLA = {
    "deepseek_v2": DeepseekV2Config(**LATENTS, **EXPERTS, topk_method="greedy"),
    "deepseek_v3": DeepseekV3Config(**LATENTS, **EXPERTS),
    "deepseek_v32": DeepseekV32Config(**SPARSE),
}


@pytest.mark.parametrize("architecture", MLA)
@torch.no_grad()
def test_of_latent_attention_the_cache_is_quantized(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What expand_kv gets is what the cache holds, quantized along each token's numbers; logits follow from that."""
    model, ids = build(MLA[architecture]), tokens()
    with quantize_model(model, KV) as report:
        quantized = logits(model, ids)
        cache = model(input_ids=ids, use_cache=True).past_key_values
    assert report.attention_modules == report.latent_modules == 2
    assert report.lines()[0].startswith("Latents and RoPE keys in fp4_e2m1")
    assert not any("expand_kv" in vars(module) for module in model.modules())
    attention = model.model.layers[0].self_attn
    seen = []
    for layer in model.model.layers:
        expand = layer.self_attn.expand_kv

        def expand_quantized(latent: Tensor, key: Tensor, expand: Any = expand) -> tuple[Tensor, Tensor]:
            seen.append((latent, key))
            return expand(quantize(latent, FP4), quantize(key, FP4))

        monkeypatch.setattr(layer.self_attn, "expand_kv", expand_quantized)
    assert torch.equal(logits(model, ids), quantized)
    held = cache.layers[attention.layer_idx]
    for of_cache, given in zip((held.keys, held.values), seen[0], strict=True):
        assert torch.equal(of_cache, given)


@pytest.mark.parametrize("architecture", MLA)
def test_keys_and_values_expanded_from_latents_can_be_quantized_instead(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the expansion written out: a head's keys are of its part of the matrix and of the shared RoPE key."""
    model, ids = build(MLA[architecture]), tokens()
    int4 = MXFormat("int4", block_size=8)
    with quantize_model(model, Recipe(key=FP4, value=int4, kv=EXPANDED)) as report:
        quantized = logits(model, ids)
    assert report.as_dict()["latent_modules"] == 2 and report.as_dict()["latent"] == "expanded"
    assert report.lines()[0].endswith("in 2 attention layers, expanded from latents that stay as they are in 2 (MLA)")
    for layer in model.model.layers:
        projection = layer.self_attn.kv_b_proj

        def expand(latent: Tensor, rope_key: Tensor, projection: Any = projection) -> tuple[Tensor, Tensor]:
            heads = (
                projection(latent)[:, 0].unflatten(-1, (4, 32)).transpose(1, 2)
            )  # (B, H, T, 16 of keys, 16 of values)
            keys = torch.cat([heads[..., :16], rope_key.repeat(1, 4, 1, 1)], -1)
            return quantize(keys, FP4), quantize(heads[..., 16:].contiguous(), int4)

        monkeypatch.setattr(layer.self_attn, "expand_kv", expand)
    assert torch.equal(logits(model, ids), quantized)


def test_of_expanded_keys_some_tokens_can_stay_as_they_are(unquantized: None) -> None:
    model, ids = build(MLA["deepseek_v3"]), tokens()
    before = logits(model, ids)
    kv = replace(EXPANDED, key_axis="channel", first=2, recent=3)
    with quantize_model(model, Recipe(key=FP4, kv=kv, rotation=Rotation(("qk",)))):
        torch.testing.assert_close(logits(model, ids), before, rtol=1e-4, atol=1e-4)


def test_nothing_is_expanded_without_latents() -> None:
    model, recipe = build(LlamaConfig(**SIZES, head_dim=16)), Recipe(key=FP4, kv=EXPANDED)
    message = "kv_quant.latent: expanded does not go with a model that has no multi-head latent attention (MLA)"
    with pytest.raises(ConfigError, match=re.escape(message)):
        quantize_model(model, recipe).__enter__()
    assert (recipe_problem(model, recipe) or "").startswith(message)
    (run,) = plan([["kv_quant=fp4_e2m1", "kv_quant.latent=expanded"]], multirun=False).runs
    assert (why_impossible(run) or "").startswith(message)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (Recipe(key=FP4), r"kv_quant: fp4_e2m1\S* for keys and none for values do not go with model\.layers\.0"),
        (Recipe(key=FP4, value=FP4, kv=KVOptions(recent=4)), r"kv_quant\.recent: 4 does not go with .*MLA.*allowed: 0"),
        (Recipe(key=FP4, value=FP4, kv=KVOptions(rope="before")), r"kv_quant\.rope: before .*\(MLA\); allowed: after"),
        (Recipe(key=FP4, value=FP4, kv=KVOptions(key_axis="channel")), r"kv_quant\.key_axis: channel does not go"),
        (
            Recipe(key=FP4, kv=KVOptions(rope="before", latent="expanded")),
            r"kv_quant\.rope: before does not go with .* expanded from latents \(MLA\); allowed: after",
        ),
        (Recipe(key=FP4, kv=KVOptions(smooth=0.5, latent="expanded")), r"kv_quant\.smooth: 0\.5 does .*allowed: 0\.0"),
    ],
)
def test_what_latents_cannot_have_is_refused_before_anything_is_run(recipe: Recipe, message: str) -> None:
    model = build(MLA["deepseek_v3"])
    with pytest.raises(ConfigError, match=message):
        quantize_model(model, recipe).__enter__()
    assert re.search(message, recipe_problem(model, recipe) or "")  # which a plan asks
    assert recipe_problem(model, KV) is None


def test_latents_can_be_rotated_and_keep_their_first_tokens(unquantized: None) -> None:
    model, ids = build(MLA["deepseek_v3"]), tokens()
    before = logits(model, ids)
    recipe = Recipe(key=FP4, value=FP4, kv=KVOptions(first=3, scales="head"), rotation=Rotation(("qk",)))
    with quantize_model(model, recipe):
        torch.testing.assert_close(logits(model, ids), before, rtol=1e-4, atol=1e-4)


def test_longcat_attends_twice_in_a_layer() -> None:
    config = LongcatFlashConfig(**{
        **LATENTS, "num_layers": 1, "num_hidden_layers": 2, "ffn_hidden_size": 64, "expert_ffn_hidden_size": 32,
        "n_routed_experts": 4, "moe_topk": 2, "zero_expert_num": 1, "head_dim": 16,
    })  # fmt: skip
    with quantize_model(build(config), KV) as report:
        assert report.latent_modules == 2


def test_attention_that_a_pass_refuses_is_refused_before_anything_is_calibrated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = build(PhiConfig(**SIZES))  # whose rotary embedding reads half of a key
    monkeypatch.setattr(calibrate, "calibration_tokens", lambda *_: pytest.fail("calibrated"))
    config = compose(["ptq=gptq", "kv_quant=fp4_e2m1", "kv_quant.rope=before", "kv_quant.smooth=0.5"])
    with pytest.raises(ConfigError, match=r"kv_quant\.rope: before does not go with PhiAttention"):
        calibrate.prepare(model, None, config, {}, 64, silent)


class QuantizingCache(DynamicCache):
    """Hand out what it holds quantized, as a cache in a format does: whatever attention reads comes from here."""

    def update(self, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        held = super().update(key, value, *args, **kwargs)
        one, other = (quantize(x.transpose(1, 2).contiguous(), FP4).transpose(1, 2) for x in held)
        return one, other


LAYERS = ["sliding_attention", "full_attention"]
SHARED = {
    **SIZES, "num_hidden_layers": 4, "head_dim": 16, "layer_types": LAYERS * 2, "sliding_window": 8,
    "num_kv_shared_layers": 2, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 300,
}  # fmt: skip
OF_MANY_KINDS = {
    "llama": LlamaConfig(**SIZES),
    "sliding windows": Gemma3TextConfig(**SIZES, head_dim=16, sliding_window=8, layer_types=LAYERS),
    "sinks": GptOssConfig(**SIZES, head_dim=16, num_local_experts=2, num_experts_per_tok=1),
    "shared keys of Gemma 3n": Gemma3nTextConfig(
        **{**SHARED, "intermediate_size": [96] * 4}, laurel_rank=8, altup_num_inputs=2,
        activation_sparsity_pattern=[0.0] * 4,
    ),
    "shared keys of Gemma 4": Gemma4TextConfig(**SHARED, global_head_dim=16),
    "latents": MLA["deepseek_v3"],
}  # fmt: skip


@pytest.mark.parametrize("kind", OF_MANY_KINDS)
@torch.no_grad()
def test_attention_reads_what_a_quantized_cache_would_hold(kind: str) -> None:
    """The model's own forward pass with a cache of transformers', quantized on the way out, is the reference."""
    model, ids = build(OF_MANY_KINDS[kind], None), tokens()
    with quantize_model(model, KV):
        quantized = logits(model, ids)
    cache = QuantizingCache(config=model.config)
    assert torch.equal(model(input_ids=ids, past_key_values=cache, use_cache=True).logits, quantized)
    assert not torch.equal(logits(model, ids), quantized)


def test_a_module_without_a_listener_attends_as_before() -> None:
    model, ids = build(LlamaConfig(**SIZES, head_dim=16)), tokens()
    before = logits(model, ids)
    with listening(model, {}):
        assert torch.equal(logits(model, ids), before)


@pytest.fixture
def without_sdpa(tmp_path: Path) -> Path:
    """Return the folder of a model that has eager attention only."""
    shutil.copytree(
        model_folder("embedded") or "",
        tmp_path / "model",
        ignore=shutil.ignore_patterns("*.safetensors", "config.json"),
    )
    config = GptOssConfig(**SIZES, head_dim=16, num_local_experts=2, num_experts_per_tok=1)
    build(config, "eager").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_attention_can_be_what_transformers_picks(without_sdpa: Path) -> None:
    loaded = load_model(str(without_sdpa), device="cpu", attention="auto").model
    assert describe_device(loaded)["attention"] == "eager"
    planned = meta_model(str(without_sdpa), attention="auto")
    assert planned is not None and planned.config._attn_implementation == "eager"
    for attention in ("auto", "sdpa"):
        assert describe_device(load_model("embedded", device="cpu", attention=attention).model)["attention"] == "sdpa"


@pytest.mark.parametrize(
    ("attention", "said"),
    [
        ("sdpa", "sdpa is not there for GptOssForCausalLM; allowed: model.attention=eager, or"),
        ("flash_attention_4", "'flash_attention_4' is not to be had for this model on this machine: FlashAttention4"),
        ("owner/kernel", "'owner/kernel' is not to be had for this model on this machine"),
    ],
)
def test_a_model_without_the_attention_asked_for_is_refused_with_the_way_out(
    attention: str, said: str, without_sdpa: Path
) -> None:
    with pytest.raises(ConfigError, match=rf"^model\.attention: {re.escape(said)}.*model\.attention=auto"):
        load_model(str(without_sdpa), device="cpu", attention=attention)


def test_attention_is_what_transformers_picks_by_default(without_sdpa: Path) -> None:
    assert load_model(str(without_sdpa), device="cpu").model.config._attn_implementation == "eager"
    assert compose([]).model.attention == "auto"


@pytest.mark.parametrize("attention", ["auto", "sdpa", "flex_attention"])
def test_attention_that_config_json_puts_in_place_of_another_is_refused(attention: str, tmp_path: Path) -> None:
    """Its hash would say what was asked for; transformers lets this entry win over what it is told."""
    shutil.copytree(model_folder("embedded") or "", tmp_path / "model")
    file = tmp_path / "model/config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"_attn_implementation": "eager"}))
    with pytest.raises(
        ConfigError, match=r"^model\.attention: .*'eager'.*_attn_impl.*allowed: model\.attention=eager$"
    ):
        load_model(str(tmp_path / "model"), device="cpu", attention=attention)
    loaded = load_model(str(tmp_path / "model"), device="cpu", attention="eager")
    assert loaded.model.config._attn_implementation == "eager"
