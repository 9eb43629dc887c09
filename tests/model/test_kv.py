"""The knobs of keys and values: against attention written out, without quantization, token by token and in batches."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    DynamicCache,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
    StaticCache,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from mxsweep import LinearFormats, Recipe, quantize_model
from mxsweep.formats.recipe import KVOptions, Rotation
from mxsweep.model import kv, rope
from mxsweep.model.attention import quantized_attention
from mxsweep.model.kv import key_factors
from mxsweep.model.linear import stochastic_key
from mxsweep.model.quantize import observed
from mxsweep.numerics import MXFormat, quantize
from mxsweep.numerics.hadamard import hadamard
from mxsweep.terminal.errors import ConfigError

B, T, LAYERS, H, D = 3, 21, 2, 2, 16
BLOCK = 4
KEY, VALUE = MXFormat("fp4_e2m1", block_size=BLOCK), MXFormat("int4", block_size=8)
SIZES = {
    "vocab_size": 97, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": LAYERS, "pad_token_id": 0,
    "num_attention_heads": 4, "num_key_value_heads": H, "max_position_embeddings": 64, "head_dim": D,
}  # fmt: skip
ARCHITECTURES = {
    "llama": (LlamaConfig, LlamaForCausalLM, {}),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {}),  # normalizes keys
    "mistral": (MistralConfig, MistralForCausalLM, {"sliding_window": 9}),
    "gemma2": (Gemma2Config, Gemma2ForCausalLM, {"sliding_window": 9}),  # caps its scores
    "gemma3": (Gemma3TextConfig, Gemma3ForCausalLM, {"sliding_window": 9}),  # normalizes keys as (B, H, T, D)
    "gpt_oss": (  # attends to a sink; with more experts than one, batches of other sizes round otherwise
        GptOssConfig, GptOssForCausalLM, {"sliding_window": 9, "num_local_experts": 1, "num_experts_per_tok": 1},
    ),
}  # fmt: skip
MODELS = [(name, "eager") for name in ARCHITECTURES] + [(name, "sdpa") for name in ("llama", "qwen3", "mistral")]
WHOLE = Rotation(("qk",))
KNOBS: dict[str, tuple[KVOptions, Rotation | None]] = {
    "default": (KVOptions(), None),
    "first": (KVOptions(first=3), None),
    "recent": (KVOptions(recent=5), None),
    "channel": (KVOptions(key_axis="channel"), None),
    "channel, first, recent": (KVOptions(key_axis="channel", first=2, recent=3), None),
    "head": (KVOptions(scales="head"), None),
    "before": (KVOptions(rope="before"), None),
    "smooth": (KVOptions(smooth=0.5), None),
    "rotated": (KVOptions(), Rotation(("qk",), block=8)),
    "all by token": (KVOptions("token", "before", 2, 3, "head", 0.7), WHOLE),
    "all by channel": (KVOptions("channel", "before", 2, 3, "block", 0.7), WHOLE),
}
DEPENDS_ON_QUERY = ["recent", "channel", "channel, first, recent", "all by token", "all by channel"]


def build(architecture: str = "llama", attention: str = "sdpa", **extra: object) -> PreTrainedModel:
    config_class, model_class, own = ARCHITECTURES[architecture]
    torch.manual_seed(0)
    model = model_class(config_class(**{**SIZES, **own, **extra}, attn_implementation=attention))
    for parameter in model.parameters():  # random enough that quantization shows
        nn.init.normal_(parameter, std=0.3)
    return model.eval()


def tokens(batch: int = B, length: int = T) -> Tensor:
    return torch.randint(1, 97, (batch, length), generator=torch.Generator().manual_seed(1))


def recipe_of(knobs: str, **changes: object) -> Recipe:
    options, rotation = KNOBS[knobs]
    return replace(Recipe(key=KEY, value=VALUE, kv=options, rotation=rotation), **changes)


def factors(seed: int = 2) -> Mapping[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    pairs = [torch.randint(-2, 3, (H, 1, D // 2), generator=generator) for _ in range(LAYERS)]
    return {
        f"model.layers.{n}.self_attn": p.expand(H, 2, D // 2).reshape(H, D).float().exp2() for n, p in enumerate(pairs)
    }


def quantized(model: PreTrainedModel, recipe: Recipe):  # type: ignore[no-untyped-def]
    return quantized_attention(model, recipe, lambda name: stochastic_key(0, name), factors())


@torch.no_grad()
def logits(model: PreTrainedModel, ids: Tensor, **inputs: object) -> Tensor:
    return model(ids, use_cache=False, **inputs).logits


@torch.no_grad()
def in_parts(model: PreTrainedModel, ids: Tensor, lengths: list[int], cache: object) -> Tensor:
    """Logits of a pass for each part of ``ids``, which reads the parts before from a cache."""
    parts = [model(part, past_key_values=cache, use_cache=True).logits for part in ids.split(lengths, dim=1)]
    return torch.cat(parts, dim=1)


@pytest.fixture
def unquantized(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv, "quantize", lambda x, *_, **__: x.clone())


@pytest.mark.parametrize("knobs", KNOBS)
@pytest.mark.parametrize(("architecture", "attention"), MODELS)
def test_without_quantization_nothing_changes(architecture: str, attention: str, knobs: str, unquantized: None) -> None:
    model, ids = build(architecture, attention), tokens()
    before = logits(model, ids)
    with quantized(model, recipe_of(knobs)):
        inside = logits(model, ids)
    torch.testing.assert_close(inside, before, rtol=1e-4, atol=1e-4)
    if knobs in ("default", "first", "head", "before", "smooth"):  # no other order of sums, factors that are exact
        assert torch.equal(inside, before)
    assert torch.equal(logits(model, ids), before)


def test_keys_are_rotated_back_by_the_inverse(monkeypatch: pytest.MonkeyPatch, unquantized: None) -> None:
    """Of a rotation that is not its own inverse, as Hadamard matrices of powers of two are."""
    rotation = torch.linalg.qr(torch.randn(D, D, generator=torch.Generator().manual_seed(3)))[0]
    other: Callable[..., Tensor] = lambda x, _block, *, inverse=False: x @ (rotation.T if inverse else rotation)  # noqa: E731
    monkeypatch.setattr(sys.modules["mxsweep.numerics.hadamard"], "hadamard", other)
    model, ids = build(), tokens()
    with quantized(model, recipe_of("rotated")):
        torch.testing.assert_close(logits(model, ids), logits(build(), ids), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("knobs", KNOBS)
@pytest.mark.parametrize(("architecture", "attention"), MODELS)
def test_later_tokens_never_change_earlier_logits(architecture: str, attention: str, knobs: str) -> None:
    model, ids = build(architecture, attention), tokens(batch=1)
    with quantized(model, recipe_of(knobs)):
        answer = logits(model, ids)
        for changed in range(1, T):
            other = ids.clone()
            other[:, changed:] = (other[:, changed:] + 5) % 97
            inside = logits(model, other)
            assert torch.equal(inside[:, :changed], answer[:, :changed])
            assert not torch.equal(inside[:, changed:], answer[:, changed:])


def test_every_knob_changes_the_answer() -> None:
    model, ids = build(), tokens()
    answers = {"none": logits(model, ids)}
    for knobs in KNOBS:
        with quantized(model, recipe_of(knobs)):
            answers[knobs] = logits(model, ids)
    names = list(answers)
    for n, name in enumerate(names):
        for other in names[:n]:
            assert (answers[name] - answers[other]).abs().max() > 1e-3, (name, other)


def embed(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE of x (B, H, T, D) in the rotate-half convention, written out."""
    low, high = x[..., : D // 2], x[..., D // 2 :]
    c, s = cos[:, None, :, : D // 2], sin[:, None, :, : D // 2]
    return torch.cat([low * c - high * s, high * c + low * s], dim=-1)


def quantized_key(key: Tensor, options: KVOptions, rotation: Rotation | None, factor: Tensor) -> Tensor:
    """Keys (B, H, T, D) of the basis that they are quantized in, quantized and read back, block by block."""
    scale = factor[None, :, None, :] if options.smooth else torch.ones(())
    x = key / scale
    x = hadamard(x, rotation.block) if rotation else x
    y = x.clone()
    if options.key_axis == "token":
        y = quantize(x, replace(KEY, block_size=0) if options.scales == "head" else KEY)
    else:
        for start in range(options.first, T - BLOCK + 1, BLOCK):
            block = x[:, :, start : start + BLOCK]
            y[:, :, start : start + BLOCK] = quantize(block.transpose(2, 3).contiguous(), KEY).transpose(2, 3)
    return (hadamard(y, rotation.block, inverse=True) if rotation else y) * scale


def expected_attention(
    query: Tensor, plain: tuple[Tensor, Tensor], mx: tuple[Tensor, Tensor], options: KVOptions
) -> Tensor:
    """softmax(q k^T / sqrt(D)) v for one query after another, each with its own keys and values; (B, T, Hq, D)."""
    out = torch.empty(B, T, query.shape[1], D)
    for i in range(T):
        key, value = plain[0][:, :, : i + 1].clone(), plain[1][:, :, : i + 1].clone()
        for j in range(options.first, i + 1):
            if i - j < options.recent:
                continue
            value[:, :, j] = mx[1][:, :, j]
            end = j
            if options.key_axis == "channel":
                end = options.first + ((j - options.first) // BLOCK + 1) * BLOCK - 1
            if end <= i:
                key[:, :, j] = mx[0][:, :, j]
        for head in range(query.shape[1]):
            group = head * H // query.shape[1]
            scores = (key[:, group] @ query[:, head, i, :, None])[..., 0] / D**0.5
            out[:, i, head] = (scores.softmax(-1)[:, None] @ value[:, group])[:, 0]
    return out


@pytest.mark.parametrize("knobs", KNOBS)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_attention_is_what_it_is_written_out(attention: str, knobs: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the first layer; with quantized linear layers, whose outputs are the keys before RoPE."""
    functions, name = ALL_ATTENTION_FUNCTIONS, "sdpa"
    if attention == "eager":
        functions, name = vars(sys.modules[LlamaForCausalLM.__module__]), "eager_attention_forward"
    seen = {}

    def spy(module, query, key, value, mask, **kwargs):  # type: ignore[no-untyped-def]
        out, weights = original(module, query, key, value, mask, **kwargs)
        seen.setdefault("call", (query, key, value, out, weights))
        return out, weights

    model, ids = build(attention=attention), tokens()
    recipe = recipe_of(knobs, linear=LinearFormats(MXFormat("int8"), MXFormat("int8")))
    options, rotation = recipe.kv, recipe.rotation
    of_kv, of_linear = replace(recipe, linear=LinearFormats()), Recipe(recipe.linear)
    with quantized(model, of_kv), quantize_model(model, of_linear), monkeypatch.context() as patch:
        original = functions[name]
        patch.setitem(functions, name, spy)
        first = model.model.layers[0].self_attn
        hook = first.k_proj.register_forward_hook(lambda _m, _a, output: seen.setdefault("before", output))
        logits(model, ids)
        hook.remove()
    query, key, value, out, weights = seen["call"]
    cos, sin = model.model.rotary_emb(value, torch.arange(T)[None])
    factor = factors()["model.layers.0.self_attn"]
    if options.rope == "before":
        before = seen["before"].view(B, T, H, D).transpose(1, 2)
        torch.testing.assert_close(embed(before, cos, sin), key)
        key_mx = embed(quantized_key(before, options, rotation, factor), cos, sin)
    else:
        key_mx = quantized_key(key, options, rotation, factor)
    value_mx = quantize(value, replace(VALUE, block_size=0) if options.scales == "head" else VALUE)
    expected = expected_attention(query, (key, value), (key_mx, value_mx), options)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=2e-5)
    if attention == "eager":
        assert weights.shape == (B, 4, T, T)
        torch.testing.assert_close(weights.sum(-1), torch.ones(B, 4, T))


@pytest.mark.parametrize(
    "recipe", [Recipe(key=KEY), Recipe(value=VALUE), Recipe(key=KEY, value=VALUE)], ids=["k", "v", "kv"]
)
def test_defaults_call_the_plain_function_once_with_quantized_tensors(recipe: Recipe) -> None:
    def simple(module, query, key, value, mask, **kwargs):  # type: ignore[no-untyped-def]
        key = key if recipe.key is None else quantize(key, recipe.key)
        value = value if recipe.value is None else quantize(value, recipe.value)
        assert key.shape[2] == T
        return plain(module, query, key, value, mask, **kwargs)

    model, ids = build(), tokens()
    plain = ALL_ATTENTION_FUNCTIONS["sdpa"]
    AttentionInterface.register("sdpa", simple)
    try:
        expected = logits(model, ids)
    finally:
        AttentionInterface.register("sdpa", plain)
    with quantized(model, recipe):
        assert torch.equal(logits(model, ids), expected)


@pytest.mark.parametrize("knobs", [name for name in KNOBS if KNOBS[name][0].rope == "after"])
@pytest.mark.parametrize(("architecture", "attention"), [("llama", "sdpa"), ("llama", "eager"), ("qwen3", "sdpa")])
def test_a_cache_gives_the_same_answer(architecture: str, attention: str, knobs: str) -> None:
    model, ids = build(architecture, attention), tokens(batch=2)
    with quantized(model, recipe_of(knobs)):
        expected = logits(model, ids)
        for lengths in ([1] * T, [8, 1, 1, 7, 4]):
            answer = in_parts(model, ids, lengths, DynamicCache(config=model.config))
            torch.testing.assert_close(answer, expected, rtol=0, atol=1e-3)
        answer = in_parts(model, ids, [8, 1, 1, 7, 4], StaticCache(config=model.config, max_cache_len=32))
        torch.testing.assert_close(answer, expected, rtol=0, atol=1e-3)


def test_keys_in_a_cache_are_embedded_already() -> None:
    model = build()
    allowed = pytest.raises(ConfigError, match=r"kv_quant\.rope: before does not go with a cache of keys")
    with quantized(model, recipe_of("before")), allowed:
        in_parts(model, tokens(), [20, 1], DynamicCache(config=model.config))


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("knobs", KNOBS)
def test_an_answer_does_not_depend_on_the_batch(knobs: str, rounding: str) -> None:
    model, ids = build(), tokens()
    recipe = recipe_of(knobs, key=replace(KEY, rounding=rounding), value=replace(VALUE, rounding=rounding))
    with quantized(model, recipe):
        together, alone = logits(model, ids), logits(model, ids[1:2])
        padded = F.pad(ids[1:2], (0, 6))
        unmasked = logits(model, padded)[:, :T]
        masked = logits(model, padded, attention_mask=(padded != 0).long())[:, :T]
    for other in (together[1:2], unmasked, masked):
        torch.testing.assert_close(other, alone, rtol=0, atol=2e-4)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_first_tokens_are_each_sequences_own_in_layers_with_a_window_too(attention: str) -> None:
    model, ids = build("gemma3", attention, layer_types=["sliding_attention", "full_attention"]), tokens()
    functions, name = ALL_ATTENTION_FUNCTIONS, "sdpa"
    if attention == "eager":
        functions, name = vars(sys.modules[Gemma3ForCausalLM.__module__]), "eager_attention_forward"
    plain = functions[name]
    keys: list[Tensor] = []

    def spy(module, query, key, value, mask, **kwargs):  # type: ignore[no-untyped-def]
        keys.append(key)
        return plain(module, query, key, value, mask, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(functions, name, spy)
        logits(model, ids)
        with quantized(model, recipe_of("first")):
            keys_of_probes = len(keys)
            together = logits(model, ids)
    unquantized, quantized_keys = keys[0], keys[keys_of_probes]  # of the layer with a window, whose inputs are alike
    assert torch.equal(quantized_keys[:, :, :3], unquantized[:, :, :3])
    assert torch.equal(quantized_keys[:, :, 3:], quantize(unquantized, KEY)[:, :, 3:])
    with quantized(model, recipe_of("first")):
        padded = F.pad(ids[1:2, :15], (0, 6))
        mixed = torch.cat([ids[:1], padded])
        beside = logits(model, mixed, attention_mask=(mixed != 0).long())[1:, :15]
        torch.testing.assert_close(beside, logits(model, ids[1:2, :15]), rtol=0, atol=2e-4)
        torch.testing.assert_close(together[2:], logits(model, ids[2:]), rtol=0, atol=2e-4)


def left_padded(model: PreTrainedModel, ids: Tensor) -> Tensor:
    mask = F.pad(torch.ones_like(ids), (3, 0))
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    return logits(model, F.pad(ids, (3, 0)), attention_mask=mask, position_ids=positions)[:, 3:]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_padding_on_the_left(attention: str) -> None:
    model, ids = build(attention=attention), tokens()
    with quantized(model, recipe_of("recent")):
        torch.testing.assert_close(left_padded(model, ids), logits(model, ids), rtol=0, atol=2e-4)
    for knobs, field in {"first": "first", "channel": "key_axis"}.items():
        refused = pytest.raises(
            ConfigError, match=rf"kv_quant\.{field}: .* padded on the left; allowed with batch_size=1"
        )
        with quantized(model, recipe_of(knobs)), refused:
            left_padded(model, ids)


def test_a_cache_that_forgets() -> None:
    model, ids = build("mistral"), tokens()
    with quantized(model, recipe_of("recent")):
        answer = in_parts(model, ids, [5] + [1] * (T - 5), DynamicCache(config=model.config))
        torch.testing.assert_close(answer, logits(model, ids), rtol=0, atol=1e-3)
    refused = pytest.raises(ConfigError, match=r"kv_quant\.first: tokens cannot be counted in a cache that forgets")
    with quantized(model, recipe_of("first")), refused:
        in_parts(model, ids, [5] + [1] * (T - 5), DynamicCache(config=model.config))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"key": replace(KEY, block_size=0)}, r"kv_quant\.block_size: 0 does not go with kv_quant\.key_axis=channel"),
        ({"key": replace(KEY, scale="e4m3", tensor_scale=True)}, r"kv_quant\.tensor_scale: true does not go"),
        ({"kv": KVOptions(key_axis="channel", scales="head")}, r"kv_quant\.scales: head does not go"),
    ],
)
def test_what_has_no_blocks_along_the_sequence_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        quantized(build(), recipe_of("channel", **change)).__enter__()


def test_keys_before_rope_that_cannot_be_reached_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model, recipe = build(), recipe_of("before")
    attention = model.model.layers[1].self_attn
    projection = rope.projection
    with monkeypatch.context() as patch:
        patch.setattr(rope, "projection", lambda module, of: None if module is attention else projection(module, of))
        message = r"kv_quant\.rope: .*layers\.1\.self_attn\): it has neither k_proj nor k_norm"
        with pytest.raises(ConfigError, match=message):
            quantized(model, recipe).__enter__()
    assert not any(module._forward_pre_hooks for module in model.modules())  # those of layer 0 are gone
    attention.k_norm = nn.Identity()  # which nothing calls
    with pytest.raises(ConfigError, match="it computed no key in this pass"), quantized(model, recipe):
        logits(model, tokens())
    partial = PhiForCausalLM(PhiConfig(**{**SIZES, "partial_rotary_factor": 0.5})).eval()
    refused = pytest.raises(ConfigError, match="its rotary embedding does not read a whole key")
    names = {name: torch.ones(1) for name, _ in partial.named_modules()}
    with refused, quantized_attention(partial, recipe, lambda _: 0, names):
        logits(partial, tokens())


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"),
    ],
    ids=["torch", "cublas"],
)
def test_memory_that_runs_out_is_not_taken_for_an_embedding_of_another_kind(
    error: RuntimeError, monkeypatch: pytest.MonkeyPatch
) -> None:
    def embed(*_: object) -> Tensor:
        raise error

    monkeypatch.setattr("mxsweep.model.rope.KeysBeforeRope.embed", embed)
    model = build()
    with pytest.raises(type(error), match="CUDA"), quantized(model, recipe_of("before")):
        logits(model, tokens())


def test_what_is_heard_must_be_what_is_embedded() -> None:
    model, recipe = build(), recipe_of("before")
    attention = model.model.layers[0].self_attn
    attention.k_norm = nn.Identity()
    forward = attention.forward

    def other(hidden_states: Tensor, position_embeddings: object, *args: object, **kwargs: object) -> object:
        attention.k_norm(attention.v_proj(hidden_states))
        return forward(hidden_states, position_embeddings, *args, **kwargs)

    attention.forward = other
    with pytest.raises(ConfigError, match="is not what its rotary embedding reads"), quantized(model, recipe):
        logits(model, tokens())


@pytest.mark.parametrize(("scales", "alone"), [("head", True), ("block", False)])
def test_a_head_has_one_scale(scales: str, alone: bool) -> None:
    """Also of a per-tensor scale: what becomes of one head does not depend on another, as it does with a token's."""
    fmt = replace(KEY, scale="e4m3", tensor_scale=True)
    model, ids = build(), tokens()

    def key_of_head_0(loud: float) -> tuple[Tensor, Tensor]:
        seen: list[tuple[Tensor, Tensor]] = []
        told: Callable[..., None] = lambda _k, _n, x, _f, y: seen.append((x[..., 0, :], y[..., 0, :]))  # noqa: E731
        with quantized(model, Recipe(key=fmt, kv=KVOptions(scales=scales))), observed(model, told):
            hook = model.model.layers[0].self_attn.k_proj.register_forward_hook(
                lambda _m, _a, k: torch.cat([k[..., :D], k[..., D:] * loud], dim=-1)
            )
            logits(model, ids)
            hook.remove()
        return seen[0]

    (x, quiet), (_, beside_loud) = (key_of_head_0(loud) for loud in (1.0, 1000.0))
    assert torch.equal(quiet, beside_loud) == alone
    if alone:
        rows = zip(x.flatten(0, 1), quiet.flatten(0, 1), strict=True)
        assert all(torch.equal(quantize(row, replace(fmt, block_size=0)), y) for row, y in rows)


def test_an_observer_is_told_of_tensors_as_they_are_quantized() -> None:
    model, ids = build(), tokens()
    for knobs, kinds in (
        ("all by token", ["key", "value"]),
        ("all by channel", ["value"]),
        ("first", ["key", "value"]),
    ):
        seen: list[tuple[str, Tensor, MXFormat, Tensor]] = []
        told: Callable[..., None] = lambda kind, _n, x, fmt, y, seen=seen: seen.append((kind, x, fmt, y))  # noqa: E731
        with quantized(model, recipe_of(knobs)), observed(model, told):
            logits(model, ids)
        assert [kind for kind, *_ in seen] == kinds * LAYERS
        for _, x, fmt, y in seen:
            assert x.shape == y.shape == (B, T, H, D)
            assert torch.equal(quantize(x, fmt), y)


def largest_keys(model: PreTrainedModel, ids: Tensor, rope: str) -> list[Tensor]:
    """max |k| over tokens for each layer, (H, D), of a model with k_proj, before RoPE or after it."""
    found: list[Tensor] = []
    cos, sin = model.model.rotary_emb(torch.zeros(1), torch.arange(ids.shape[1])[None])
    hooks = []
    for layer in model.model.layers:

        def hear(_m: nn.Module, _a: object, output: Tensor) -> None:
            k = output.view(*ids.shape, H, D).transpose(1, 2)
            found.append((embed(k, cos, sin) if rope == "after" else k).abs().amax((0, 2)))

        hooks.append(layer.self_attn.k_proj.register_forward_hook(hear))
    logits(model, ids)
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize("rope", ["after", "before"])
@pytest.mark.parametrize("smooth", [0.0, 0.5, 1.0])
def test_key_factors(rope: str, smooth: float) -> None:
    model, ids = build(), tokens()
    with torch.no_grad():
        model.model.layers[0].self_attn.k_proj.weight.view(H, D, 64)[1, 3] *= 100
        model.model.layers[1].self_attn.k_proj.weight.view(H, D, 64)[0, [2, 2 + D // 2]] = 0
    parts = ids.split([1, 2])
    found = key_factors(model, lambda: [logits(model, part) for part in parts], smooth, rope)
    for layer, amax in enumerate(largest_keys(model, ids, rope)):
        factor = found[f"model.layers.{layer}.self_attn"]
        assert factor.dtype == torch.float32
        for head in range(H):
            for c in range(D // 2):
                pair = max(float(amax[head, c]), float(amax[head, c + D // 2]))
                want = 2.0 ** round(torch.tensor(pair).log2().item() * smooth) if pair else 1.0
                assert factor[head, c] == factor[head, c + D // 2] == want
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    if smooth == 1.0:
        assert found["model.layers.0.self_attn"].amax() >= 64
        with quantized_attention(model, Recipe(key=KEY, kv=KVOptions(smooth=1.0, rope=rope)), lambda _: 0, found):
            assert logits(model, ids).isfinite().all()


def test_factors_must_be_there_and_keys_finite() -> None:
    model, ids = build(), tokens()
    recipe = recipe_of("smooth")
    with pytest.raises(ValueError, match=r"key_factors: none for model\.layers\.0\.self_attn"):
        quantized_attention(model, recipe, lambda _: 0).__enter__()
    with torch.no_grad():
        model.model.layers[1].self_attn.k_proj.weight[0] = torch.inf
    with pytest.raises(ConfigError, match=r"kv_quant\.smooth: .* model\.layers\.1\.self_attn computed infinite keys"):
        key_factors(model, lambda: [logits(model, ids)], 0.5, "after")


@pytest.mark.parametrize("options", [KVOptions(smooth=1.0), KVOptions(key_axis="channel")], ids=["smooth", "channel"])
def test_remedies_of_an_outlier_channel(options: KVOptions) -> None:
    """A channel 40 times as large costs the others of its block their precision, and a remedy gives it back."""
    model, ids = build(), tokens()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.k_proj.weight.view(H, D, 64)[:, [5, 5 + D // 2]] *= 40
            layer.self_attn.q_proj.weight.view(4, D, 64)[:, [5, 5 + D // 2]] /= 40
    plain = logits(model, ids)
    found = key_factors(model, lambda: logits(model, ids), 1.0, "after")

    def error(recipe: Recipe) -> float:
        with quantized_attention(model, recipe, lambda _: 0, found):
            return float((logits(model, ids) - plain).square().mean())

    simple = Recipe(key=MXFormat("int4", block_size=D))
    assert error(replace(simple, kv=options)) < 0.6 * error(simple)
