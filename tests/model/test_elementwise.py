"""Which of a model's modules kernels stand in for, and that nothing of it is left behind."""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
import weakref
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from matrix.architectures import ARCHITECTURES, Architecture
from torch import Tensor, nn
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.models.llama import modeling_llama

from mxsweep.formats.recipe import LinearFormats, Recipe
from mxsweep.forward import engine
from mxsweep.forward.scoring import Scorer, ScoringRequest
from mxsweep.model import elementwise
from mxsweep.model.elementwise import KnownParts, known_parts
from mxsweep.model.quantize import quantize_model
from mxsweep.numerics import MXFormat
from mxsweep.numerics.kernels import elementwise_cuda

SIZES = {
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}


def make(model: type, config: type, **sizes: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    made: PreTrainedModel = model(config(**SIZES | sizes)).to(torch.bfloat16).eval()
    return made


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Have models take themselves to be on a GPU, and operations stand in for kernels; counts their calls."""
    calls: Counter[str] = Counter()

    def counted(name: str, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def count(*args: Any) -> Tensor:
            calls[name] += 1
            return function(*args)

        return count

    for name in ("rms_norm", "silu_times", "rotate"):
        operations = getattr(elementwise_cuda, f"{name}_by_operations")
        monkeypatch.setattr(elementwise, name, counted(name, operations))
    monkeypatch.setattr(PreTrainedModel, "device", property(lambda _: torch.device("cuda")))
    return calls


def logits_of(model: PreTrainedModel, parts: KnownParts) -> Tensor:
    with torch.no_grad(), parts.by_kernels():
        logits: Tensor = model(torch.arange(60).view(3, 20), use_cache=False).logits
    return logits


@pytest.mark.parametrize(
    ("model", "config", "norms"), [(LlamaForCausalLM, LlamaConfig, 7), (Qwen3ForCausalLM, Qwen3Config, 13)]
)
def test_all_of_a_llama(model: type, config: type, norms: int, as_on_a_gpu: Counter[str]) -> None:
    made = make(model, config)
    plain = logits_of(made, KnownParts())
    assert not as_on_a_gpu
    assert torch.equal(logits_of(made, known_parts(made)), plain)
    assert as_on_a_gpu == {"rms_norm": norms, "silu_times": 3, "rotate": 6}


def test_code_that_is_not_known_is_left_alone(as_on_a_gpu: Counter[str]) -> None:
    made = make(Gemma3ForCausalLM, Gemma3TextConfig)  # its norms and GELU; its rotary embedding is Llama's
    plain = logits_of(made, KnownParts())
    assert torch.equal(logits_of(made, known_parts(made)), plain)
    assert set(as_on_a_gpu) == {"rotate"}


@pytest.mark.parametrize("architecture", [each for each in ARCHITECTURES if each.spans], ids=lambda each: each.title)
def test_no_architecture_computes_anything_else(
    architecture: Architecture, as_on_a_gpu: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = architecture.build().to(torch.bfloat16)
    parts = known_parts(made)
    monkeypatch.setattr(PreTrainedModel, "device", property(lambda _: torch.device("cpu")))
    plain = logits_of(made, KnownParts())
    assert not as_on_a_gpu
    assert torch.equal(logits_of(made, parts), plain)
    assert bool(as_on_a_gpu) == bool(parts.forwards or parts.rotary)


def test_on_a_cpu_there_is_nothing_to_stand_in_for() -> None:
    assert known_parts(make(LlamaForCausalLM, LlamaConfig)) == KnownParts()


def test_nothing_is_left_behind(as_on_a_gpu: Counter[str]) -> None:
    made, embed = make(LlamaForCausalLM, LlamaConfig), modeling_llama.apply_rotary_pos_emb
    parts = known_parts(made)
    with pytest.raises(ZeroDivisionError), parts.by_kernels():
        assert modeling_llama.apply_rotary_pos_emb is not embed
        _ = 1 // 0
    assert modeling_llama.apply_rotary_pos_emb is embed
    assert not any("forward" in module.__dict__ for module in made.modules())


def test_what_stands_in_by_now_is_left_alone(as_on_a_gpu: Counter[str]) -> None:
    made, embed = make(LlamaForCausalLM, LlamaConfig), modeling_llama.apply_rotary_pos_emb
    parts, own = known_parts(made), made.model.norm
    with parts.by_kernels():  # a pass within another one's
        logits_of(made, parts)
        logits_of(made, KnownParts())
        assert as_on_a_gpu == {"rms_norm": 14, "silu_times": 6, "rotate": 12}
    assert modeling_llama.apply_rotary_pos_emb is embed
    own.forward = functools.partial(type(own).forward, own)  # between two batches
    logits_of(made, parts)
    assert isinstance(own.forward, functools.partial)


def test_what_somebody_else_changed_or_listens_to_is_left_alone(as_on_a_gpu: Counter[str]) -> None:
    made = make(LlamaForCausalLM, LlamaConfig)
    layers: Any = made.model.layers
    own = layers[0].input_layernorm
    own.forward = functools.partial(type(own).forward, own)  # as accelerate has it
    heard: list[Tensor] = []
    layers[1].mlp.act_fn.register_forward_hook(lambda _module, _args, output: heard.append(output))
    layers[2].mlp.act_fn = nn.GELU()
    logits_of(made, known_parts(made))
    assert isinstance(own.forward, functools.partial)
    assert len(heard) == 1
    assert as_on_a_gpu == {"rms_norm": 6, "silu_times": 1, "rotate": 6}


def test_where_a_kernel_does_not_take_the_tensors_the_models_code_computes(
    as_on_a_gpu: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("rms_norm", "silu_times", "rotate"):
        monkeypatch.setattr(elementwise, name, lambda *_: None)
    made = make(LlamaForCausalLM, LlamaConfig)
    assert torch.equal(logits_of(made, known_parts(made)), logits_of(made, KnownParts()))


@pytest.mark.parametrize("by_kernel", [False, True])
def test_gate_and_up_are_gone_when_down_reads(by_kernel: bool, as_on_a_gpu: Counter[str], monkeypatch: Any) -> None:
    if not by_kernel:
        monkeypatch.setattr(elementwise, "silu_times", lambda *_: None)
    made = make(LlamaForCausalLM, LlamaConfig)
    answers: list[weakref.ref[Tensor]] = []
    alive: list[bool] = []
    for layer in made.model.layers:
        for projection in (layer.mlp.gate_proj, layer.mlp.up_proj):
            projection.register_forward_hook(lambda _module, _args, output: answers.append(weakref.ref(output)))
        layer.mlp.down_proj.register_forward_pre_hook(
            lambda _module, _args: alive.extend(answer() is not None for answer in answers)
        )
    logits_of(made, known_parts(made))
    assert len(answers) == 6 and alive and not any(alive)


def test_a_function_is_known_by_what_is_called() -> None:
    embed = modeling_llama.apply_rotary_pos_emb

    @functools.wraps(embed)
    def twice(*args: Any) -> Any:  # its source would be that of what it wraps
        return embed(*embed(*args), *args[2:])

    def other(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> Any:
        cos = cos.unsqueeze(unsqueeze_dim)
        return q * cos, k * cos

    def rotate_half(x: Tensor) -> Tensor:
        return x

    def within(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> Any:
        cos = cos.unsqueeze(unsqueeze_dim)
        sin = sin.unsqueeze(unsqueeze_dim)
        q_embed = q * cos + rotate_half(q) * sin
        k_embed = k * cos + rotate_half(k) * sin
        return q_embed, k_embed

    assert elementwise._code(embed) == elementwise.ROTARY
    assert elementwise._code(twice) is None
    assert elementwise._code(functools.partial(embed)) is None
    assert elementwise._code(exec) is None
    assert elementwise._code(within) is None
    assert elementwise._code(other) not in (None, elementwise.ROTARY)


def test_a_rotary_embedding_is_known_with_the_half_that_it_calls(tmp_path: Path, monkeypatch: Any) -> None:
    """A module may take the function from another one, whose halves lie otherwise in memory."""
    source = "def" + inspect.getsource(modeling_llama.apply_rotary_pos_emb).partition("def")[2]  # undecorated
    halves = "def rotate_half(x):\n    return torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).flatten(-2)\n\n\n"
    (tmp_path / "interleaved_rotary.py").write_text(f"import torch\n\n\n{halves}{source}", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    theirs = importlib.import_module("interleaved_rotary").apply_rotary_pos_emb
    monkeypatch.delitem(sys.modules, "interleaved_rotary")
    assert elementwise._code(theirs) == elementwise.ROTARY
    namespace = ModuleType("namespace")
    namespace.__dict__.update(apply_rotary_pos_emb=theirs, rotate_half=modeling_llama.rotate_half)
    assert not elementwise._embeds_as_known(namespace)
    namespace.__dict__.update(apply_rotary_pos_emb=modeling_llama.apply_rotary_pos_emb, rotate_half=None)
    assert elementwise._embeds_as_known(namespace)


def test_every_pass_of_the_engine_is_by_kernels(as_on_a_gpu: Counter[str], monkeypatch: pytest.MonkeyPatch) -> None:
    made = make(LlamaForCausalLM, LlamaConfig)
    parts = known_parts(made)
    monkeypatch.undo()
    monkeypatch.setattr(engine, "known_parts", lambda _: parts)
    seen = []
    made.model.norm.register_forward_pre_hook(lambda module, _: seen.append("forward" in module.__dict__))
    Scorer(made, 16, 16).score([ScoringRequest(np.arange(n, n + 9, dtype=np.int32), 1) for n in range(4)])
    assert seen == [True, True]
    assert "forward" not in made.model.norm.__dict__


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("dtype", elementwise_cuda.DTYPES, ids=str)
@pytest.mark.parametrize("quantized", [False, True])
def test_scores_have_the_same_bits(quantized: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make(LlamaForCausalLM, LlamaConfig).to("cuda", dtype)
    draw = np.random.default_rng(0)
    asked = [ScoringRequest(draw.integers(100, size=n, dtype=np.int32), 3) for n in draw.integers(5, 60, size=200)]
    fmt = MXFormat("fp4_e2m1", 16) if quantized else None
    recipe = Recipe(LinearFormats(fmt, fmt), key=fmt, value=fmt)
    calls: Counter[str] = Counter()
    for name in ("rms_norm", "silu_times", "rotate"):
        kernel = getattr(elementwise, name)

        def count(*args: Any, kernel: Callable[..., Tensor | None] = kernel, name: str = name) -> Tensor | None:
            found = kernel(*args)
            calls[name] += found is not None
            return found

        monkeypatch.setattr(elementwise, name, count)
    with quantize_model(made, recipe):
        by_kernels = Scorer(made, 4096, 64).score(asked)
        assert set(calls) == {"rms_norm", "silu_times", "rotate"} and min(calls.values()) > 0
        monkeypatch.setattr(engine, "known_parts", lambda _: KnownParts())
        assert Scorer(made, 4096, 64).score(asked) == by_kernels
