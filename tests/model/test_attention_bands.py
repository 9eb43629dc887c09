"""Attention over sliding windows, band by band: what a band reads, and where attention is computed whole."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from mxsweep.formats.recipe import Recipe
from mxsweep.model import attention_bands
from mxsweep.model.attention_bands import attention_in_bands, padded_length
from mxsweep.model.quantize import quantize_model
from mxsweep.numerics import MXFormat

WINDOW, TOKENS = 8, 45


@pytest.fixture(autouse=True)
def small_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"BAND": 16, "STEP": 4, "DEVICES": ("cpu",), "_tried": {}, "_known": None}.items():
        monkeypatch.setattr(attention_bands, name, value)


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, sliding_window=WINDOW, attn_implementation="sdpa",
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    )  # fmt: skip
    return Gemma3ForCausalLM(config).eval()


class Counted:
    """Sums of the keys that each query may read: whole numbers, so that their order does not matter."""

    def __init__(self, by_length: bool = False) -> None:
        self.shapes: list[tuple[int, int]] = []
        self.by_length = by_length

    def __call__(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, **_: Any
    ) -> tuple[Tensor, None]:
        self.shapes.append((query.shape[2], key.shape[2]))
        sums = mask.to(value.dtype) @ (value * 4).round()
        return (sums + (key.shape[2] if self.by_length else 0)).transpose(1, 2), None


def call(function: Any, mask: Tensor, **kwargs: Any) -> Tensor:
    drawn = torch.randn(3, 2, 2, TOKENS, 5, generator=torch.Generator().manual_seed(0))
    attended: Tensor = attention_bands._in_bands(function)(nn.Identity(), *drawn, mask, **kwargs)[0]
    return attended


def window_mask() -> Tensor:
    behind = torch.arange(TOKENS)[:, None] - torch.arange(TOKENS)
    return ((behind >= 0) & (behind < WINDOW))[None, None].repeat(2, 1, 1, 1)


def test_a_band_reads_the_keys_of_its_windows() -> None:
    function, whole = Counted(), Counted()
    in_bands = call(function, window_mask(), sliding_window=WINDOW)
    assert torch.equal(in_bands, call(whole, window_mask()))
    assert function.shapes[-3:] == [(16, 16), (16, 24), (16, 24)] and whole.shapes == [(TOKENS, TOKENS)]


@pytest.mark.parametrize(
    "why", ["other bits", "a key that is ahead", "a key that is behind", "numbers", "a bias", "short"]
)
def test_attention_is_computed_whole(why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    function, mask, kwargs = Counted(by_length=why == "other bits"), window_mask(), {"sliding_window": WINDOW}
    if why == "a key that is ahead":
        mask[0, 0, 3, 40] = True
    elif why == "a key that is behind":
        mask[1, 0, 40, 3] = True
    elif why == "numbers":
        mask = mask.float()
    elif why == "a bias":
        kwargs["position_bias"] = torch.zeros(1, 1, TOKENS, TOKENS)  # type: ignore[assignment]
    elif why == "short":
        monkeypatch.setattr(attention_bands, "BAND", 23)
    attended = call(function, mask, **kwargs)
    assert function.shapes[-1] == (TOKENS, TOKENS)
    assert torch.equal(attended, call(Counted(function.by_length), mask))


@pytest.mark.parametrize("quantized", [False, True], ids=["plain", "keys and values quantized"])
def test_a_models_layers_with_a_window_are_computed_in_bands(
    model: PreTrainedModel, quantized: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention_bands, "_is_same", lambda *_: True)
    monkeypatch.setattr(attention_bands, "_is_compiled_anew", lambda *_: True)
    calls, padded = count_calls(monkeypatch, "_attend"), count_calls(monkeypatch, "_attend_padded")
    tokens = torch.randint(64, (2, TOKENS), generator=torch.Generator().manual_seed(0))
    fmt = MXFormat("fp8_e4m3", 16) if quantized else None
    before = ALL_ATTENTION_FUNCTIONS["sdpa"]
    with torch.no_grad(), quantize_model(model, Recipe(key=fmt, value=fmt)):
        whole = model(tokens).logits
        with attention_in_bands():
            assert not calls
            in_bands = model(tokens).logits
        assert calls == [2, 2] and padded == [2]  # of three layers
        assert torch.equal(model(tokens).logits, whole)
    torch.testing.assert_close(in_bands, whole, rtol=0, atol=1e-2 if quantized else 1e-5)
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is before


def count_calls(monkeypatch: pytest.MonkeyPatch, name: str) -> list[int]:
    calls, attend = list[int](), getattr(attention_bands, name)
    monkeypatch.setattr(attention_bands, name, lambda *given: calls.append(len(given[2])) or attend(*given))
    return calls


def test_texts_are_padded_to_four_lengths_an_octave() -> None:
    assert [padded_length(tokens) for tokens in (2048, 2049, 2560, 2561, 4096, 17_383)] == [
        2048, 2560, 2560, 3072, 4096, 20_480,
    ]  # fmt: skip
    assert len({padded_length(tokens) for tokens in range(2049, 32_769)}) == 16


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU on this machine")
class TestOnGPU:
    @pytest.fixture(autouse=True)
    def real_bands(self, small_bands: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        monkeypatch.undo()
        yield

    def test_bits_are_those_of_attention_computed_whole(
        self, model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        calls = count_calls(monkeypatch, "_attend")
        on_gpu = model.to("cuda", torch.bfloat16)
        tokens = torch.randint(64, (2, 5 * attention_bands.BAND + 77), device="cuda")
        with torch.no_grad():
            whole = on_gpu(tokens).logits
            with attention_in_bands():
                assert torch.equal(on_gpu(tokens).logits, whole)
        assert calls
