"""Layers that compute x W^T + b are told from layers that only look like it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from transformers import (
    AutoModelForCausalLM,
    FalconConfig,
    LlamaConfig,
    MixtralConfig,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.models.falcon.modeling_falcon import FalconLinear
from transformers.pytorch_utils import Conv1D

from mxsweep import LinearFormats, Recipe, quantize_model
from mxsweep.model.linear_layers import why_not_replaceable
from mxsweep.model.meta import recipe_problem
from mxsweep.numerics import MXFormat, quantize
from mxsweep.terminal.errors import ConfigError

FP4 = MXFormat("fp4_e2m1", 16)
FORMATS = LinearFormats(FP4, FP4)
SIZES: dict[str, Any] = {
    "vocab_size": 97, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip


class Renamed(nn.Linear):
    """Computes the same."""


class Doubled(nn.Linear):
    """Computes something else."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class WithoutBias(nn.Linear):
    """Computes the same where it has no bias, and only there."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)


class Pair(nn.Linear):
    """Answers more than a product."""

    def forward(self, x: Tensor) -> Any:
        return super().forward(x), x


class Scaled(nn.Linear):
    """Computes the same but for a buffer that a plain layer does not have."""

    def __init__(self, *args: int) -> None:
        super().__init__(*args)
        self.register_buffer("scale", torch.tensor(2.0))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (self.scale if "scale" in self._buffers else 1)


class Upwards(nn.Embedding):
    """Computes something else than an embedding."""


@pytest.mark.parametrize(
    "kind", [nn.Linear, Conv1D, nn.Embedding, FalconLinear, NonDynamicallyQuantizableLinear, Renamed]
)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_classes_that_compute_a_linear_layer(kind: Callable[..., nn.Module], device: str) -> None:
    with torch.device(device):
        assert why_not_replaceable(kind(4, 3)) is None


@pytest.mark.parametrize("kind", [Doubled, WithoutBias, Pair, Scaled, Upwards])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_classes_that_do_not(kind: Callable[..., nn.Module], device: str) -> None:
    with torch.device(device):
        layer = kind(4, 3)
    assert why_not_replaceable(layer) == f"is a {type(layer).__name__}, for which there is no MX layer"


def test_a_layer_that_was_given_a_forward_or_another_weight_is_none() -> None:
    layer = nn.Linear(4, 3)
    layer.forward = lambda x: x  # as libraries that quantize do
    assert why_not_replaceable(layer) == "is a Linear with a forward of its own, for which there is no MX layer"
    for weight in (
        nn.Parameter(torch.zeros(3, 4, dtype=torch.int8), requires_grad=False),
        nn.Parameter(torch.zeros(3, 4).to(torch.float8_e4m3fn), requires_grad=False),
        nn.Parameter(torch.zeros(3, 4, dtype=torch.float64)),
    ):
        layer = nn.Linear(4, 3)
        layer.weight = weight
        problem = why_not_replaceable(layer)
        assert problem == (
            f"keeps its weight as a Tensor of {weight.dtype}, which no MX layer can read (allowed: float32, bfloat16, "
            "float16; see model.dtype)"
        )

    class Packed(Tensor):
        pass

    layer.weight = nn.Parameter(torch.zeros(3, 4).as_subclass(Packed))
    assert "Packed" in (why_not_replaceable(layer) or "")


def test_the_forward_with_which_accelerate_moves_inputs_is_the_layers_own() -> None:
    hooks = pytest.importorskip("accelerate.hooks")
    layer = nn.Linear(4, 3)
    hooks.add_hook_to_module(layer, hooks.AlignDevicesHook("cpu", io_same_device=True))
    assert "forward" in vars(layer) and why_not_replaceable(layer) is None


def llama() -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(LlamaConfig(**SIZES)).float().eval()


@pytest.mark.parametrize("spoil", ["class", "forward"])
def test_a_layer_that_is_none_is_refused_by_name_with_the_way_out(spoil: str) -> None:
    model = llama()
    if spoil == "class":
        model.model.layers[1].mlp.up_proj = Doubled(64, 96, bias=False)
    else:
        layer = model.model.layers[1].mlp.up_proj
        layer.forward = lambda x: F.linear(x, layer.weight)
    name = "model.layers.1.mlp.up_proj"
    problem = recipe_problem(model, Recipe(FORMATS))
    assert problem is not None and problem.startswith(f"modules: {name} is a ")
    assert problem.endswith(f"leave it as it is with modules={{{name}: none}}")
    with pytest.raises(ConfigError, match="for which there is no MX layer"), quantize_model(model, Recipe(FORMATS)):
        pass
    with quantize_model(model, Recipe(FORMATS, modules=((name, LinearFormats()),))) as report:
        assert len(report.layers) == 13


def test_a_subclass_is_multiplied_as_its_formats_say_and_put_back() -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(FalconConfig(**SIZES, bias=True)).float().eval()
    layer = model.transformer.h[1].mlp.dense_h_to_4h
    assert type(layer) is FalconLinear
    nn.init.normal_(layer.bias)
    x = torch.randn(2, 3, 64)
    exact = {"arithmetic": "exact"}
    expected = F.linear(quantize(x, FP4, **exact), quantize(layer.weight.detach(), FP4, **exact), layer.bias)
    with quantize_model(model, Recipe(FORMATS, arithmetic="exact")), torch.no_grad():
        torch.testing.assert_close(model.transformer.h[1].mlp.dense_h_to_4h(x), expected)
    assert model.transformer.h[1].mlp.dense_h_to_4h is layer


@pytest.mark.parametrize(
    "config", [LlamaConfig(**SIZES), MixtralConfig(**SIZES, num_key_value_heads=2, num_local_experts=4)]
)
def test_a_model_in_float64_is_refused_by_name(config: PretrainedConfig) -> None:
    model = AutoModelForCausalLM.from_config(config, experts_implementation="eager").double().eval()
    rest = {"*.self_attn.*": LinearFormats()} if "Mixtral" in type(model).__name__ else {}  # experts are named, too
    with pytest.raises(
        ConfigError, match=r"^modules: model\.layers\.0\.\S+ keeps its weight as a Tensor of torch\.flo"
    ):
        quantize_model(model, Recipe(FORMATS, modules=tuple(rest.items()))).__enter__()
