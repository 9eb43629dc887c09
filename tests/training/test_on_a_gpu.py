"""Training layers on a GPU: kernels answer as the definition does, and no layer waits for the device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from mxsweep.formats.training import LayerFormats, OperandFormat, ProductFormats, TrainingRecipe
from mxsweep.numerics import MXFormat, backend_problem
from mxsweep.training.layers import training_layers
from mxsweep.training.step import Step

pytestmark = pytest.mark.skipif(backend_problem("cuda") is not None, reason=str(backend_problem("cuda")))

NEAREST, DRAWN = (OperandFormat(MXFormat("fp4_e2m1", 32, rounding=how)) for how in ("nearest", "stochastic"))
TILE = OperandFormat(MXFormat("fp4_e2m1", (16, 16), scale="e4m3", tensor_scale=True, rounding="even"))
NV, NV_DRAWN = (
    OperandFormat(MXFormat("fp4_e2m1", 16, scale="e4m3", tensor_scale=True, rounding=how))
    for how in ("even", "stochastic")
)
MXFP4 = LayerFormats(*[ProductFormats(NEAREST, NEAREST)] * 3)
STOCHASTIC = LayerFormats(MXFP4.fprop, ProductFormats(DRAWN, NEAREST), ProductFormats(DRAWN, DRAWN))
NVFP4 = LayerFormats(
    ProductFormats(NV, TILE), ProductFormats(NV_DRAWN, TILE), ProductFormats(NV_DRAWN, NV, hadamard=16)
)
RECIPES = {"mxfp4": MXFP4, "stochastic": STOCHASTIC, "nvfp4": NVFP4}


def build() -> PreTrainedModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512, hidden_size=256, intermediate_size=768, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, initializer_range=0.05,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config).float().cuda()


@contextmanager
def without_waiting() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def gradients(model: PreTrainedModel, recipe: TrainingRecipe, ids: Tensor, sizes: list[int]) -> dict[str, Tensor]:
    model.zero_grad()
    step = Step(5)
    with training_layers(model, recipe, step):
        for part in ids.split(sizes):
            with torch.autocast("cuda", torch.bfloat16):
                logits = model(part, use_cache=False).logits[:, :-1]
            loss = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1).float(), part[:, 1:].flatten(), reduction="sum"
            )
            loss.backward()
            step.first_example += len(part)
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("name", RECIPES)
def test_kernels_answer_as_the_definition(name: str) -> None:
    model = build()
    ids = torch.randint(0, 512, (4, 64), generator=torch.Generator().manual_seed(1)).cuda()
    recipe = TrainingRecipe(RECIPES[name], backend="torch", arithmetic="exact")
    expected = gradients(model, recipe, ids, [4])
    found = gradients(model, replace(recipe, backend="cuda"), ids, [4])
    for parameter, gradient in expected.items():
        assert torch.equal(found[parameter], gradient), parameter
    split = gradients(model, replace(recipe, backend="cuda"), ids, [1, 3])
    for parameter, gradient in expected.items():
        error = float((split[parameter] - gradient).norm() / gradient.norm().clamp(min=1e-9))
        assert error < 0.05, (parameter, error)


@pytest.mark.parametrize("name", RECIPES)
def test_layers_do_not_wait_for_the_device(name: str) -> None:
    model = build()
    ids = torch.randint(0, 512, (4, 64), generator=torch.Generator().manual_seed(1)).cuda()
    step = Step()
    recipe = TrainingRecipe(RECIPES[name], backend="cuda", arithmetic="exact")
    mlp = model.model.layers[0].mlp
    with training_layers(model, recipe, step):
        model(ids, use_cache=False).logits.sum().backward()  # kernels are compiled, and signs drawn
        x = torch.randn(4, 64, 256, device="cuda", requires_grad=True)
        with without_waiting():
            step.number = 1
            mlp(x).sum().backward()
    assert x.grad is not None and bool(x.grad.isfinite().all())
