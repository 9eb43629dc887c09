"""Blocks tuned by the error of their output, against gradients and errors of the model with plain weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, Phi3Config, PreTrainedModel

from mxsweep.calibrate import block_tuning as module
from mxsweep.calibrate.artefacts import Artefact
from mxsweep.calibrate.block_tuning import BlockTuning
from mxsweep.calibrate.sequential import SolvedWeights, solve_weights
from mxsweep.formats.recipe import LinearFormats, Recipe, Rotation
from mxsweep.forward.batches import unpadded_batches
from mxsweep.model.load import load_model
from mxsweep.model.prepared import Prepared
from mxsweep.model.quantize import quantize_model
from mxsweep.numerics import Encoded, MXFormat, decode, encode
from mxsweep.solvers.autoround import Unrounded
from mxsweep.solvers.clip import search_scales
from mxsweep.solvers.gptq import gptq
from tests.helpers.decoded import decoded
from tests.helpers.mixtures import build

FP4, FP6 = MXFormat("fp4_e2m1"), MXFormat("fp6_e2m3")
WEIGHTS_ALONE = Recipe(LinearFormats(FP4), arithmetic="exact")
RECIPE = Recipe(LinearFormats(FP4, FP4), arithmetic="exact")
STEPS = 24


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def phi3() -> PreTrainedModel:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "vocab_size": 97, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "pad_token_id": 0, "initializer_range": 0.1,
    }  # fmt: skip
    return AutoModelForCausalLM.from_config(Phi3Config(**sizes)).float().eval()


MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "embedded": lambda: load_model("embedded", device="cpu").model,
    "fused": phi3,
    "mixtral": lambda: build("mixtral"),
    "gpt_oss": lambda: build("gpt_oss"),
}


def batches() -> list[Tensor]:
    drawn = np.random.default_rng(0)
    whole = unpadded_batches([drawn.integers(2, 90, length) for length in [24] * 12 + [17] * 4], torch.device("cpu"))
    return [part for batch in whole for part in batch.split(4)]


def by_gptq(weight: Tensor, hessian: Tensor, fmt: MXFormat, tensor_amax: Tensor | None = None) -> Encoded:
    scales = search_scales(weight, fmt, tensor_amax=tensor_amax)
    return scales.encode_chosen(gptq(weight, hessian, fmt, scales), fmt)


def solved(model: PreTrainedModel, recipe: Recipe, steps: int, artefact: Artefact | None = None) -> SolvedWeights:
    tune = BlockTuning(model, steps) if steps else None
    return solve_weights(model, recipe, Prepared(), batches(), by_gptq, artefact, tune=tune)


def first_block(model: PreTrainedModel) -> list[Tensor]:
    """What the first decoder block answers to each batch, as a hook sees it."""
    answers: list[Tensor] = []

    def note(_: nn.Module, __: Any, answer: Any) -> None:
        answers.append(answer[0] if isinstance(answer, tuple) else answer)

    handle = model.model.layers[0].register_forward_hook(note)
    with torch.no_grad():
        for ids in batches():
            model(input_ids=ids, use_cache=False)
    handle.remove()
    return answers


def error_of(model: PreTrainedModel, recipe: Recipe, weights: dict[str, Encoded], exact: list[Tensor]) -> float:
    with quantize_model(model, recipe, prepared=Prepared(weights=weights)):
        got = first_block(model)
    return sum(float((one.double() - other.double()).square().sum()) for one, other in zip(got, exact, strict=True))


@pytest.mark.parametrize("rotated", [False, True], ids=["plain", "rotated"])
@pytest.mark.parametrize("name", MODELS)
def test_the_first_block_answers_more_nearly_what_it_should(name: str, rotated: bool) -> None:
    # The first block reads the same in both models, so the error of its answer is that which is tuned.
    model = MODELS[name]()
    recipe = replace(RECIPE, rotation=Rotation(("q", "down"), 32) if rotated else None)
    exact = first_block(model)
    before, after = (error_of(model, recipe, solved(model, recipe, steps).weights, exact) for steps in (0, STEPS))
    assert after < 0.97 * before
    assert all(torch.equal(one, other) for one, other in zip(first_block(model), exact, strict=True))


@pytest.mark.parametrize("name", MODELS)
def test_a_step_goes_against_the_gradient_of_the_models_own_weights(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first step of the first block, weights alone quantized: plain autograd with the values in the parameters."""
    model = MODELS[name]()
    exact, starts = first_block(model), solved(model, WEIGHTS_ALONE, 0).weights
    moved: list[tuple[Unrounded, Tensor, float]] = []
    step = Unrounded.step

    def noted(self: Unrounded, gradient: Tensor, rate: float) -> None:
        moved.append((self, gradient.clone(), rate))
        step(self, gradient, rate)

    monkeypatch.setattr(Unrounded, "step", noted)
    monkeypatch.setattr(module, "_in_random_order", lambda count: iter([2] * STEPS))
    solved(model, WEIGHTS_ALONE, 1)
    assert moved and all(rate == 0.5 for _, _, rate in moved)

    with quantize_model(model, WEIGHTS_ALONE, prepared=Prepared(weights=starts)):
        tensors = {
            f"{module_name}.{buffer}": tensor.requires_grad_()
            for module_name, part in model.named_modules()
            if ".layers.0." in f".{module_name}." and hasattr(part, "matrix_in")
            for buffer, tensor in part.named_buffers(recurse=False)
        }
        answers: list[Tensor] = []
        hook = model.model.layers[0].register_forward_hook(lambda _, __, answer: answers.append(answer))
        model(input_ids=batches()[2], use_cache=False)
        hook.remove()
        answer = answers[0][0] if isinstance(answers[0], tuple) else answers[0]
        gradients = torch.autograd.grad((answer - exact[2]).square().sum(), list(tensors.values()))
    wanted = dict(zip(tensors, gradients, strict=True))
    names = [name for name in starts if ".layers.0." in name]
    ours = {name: gradient * batches()[2].numel() for name, (_, gradient, _) in zip(names, moved, strict=False)}
    assert sum(gradient.numel() for gradient in ours.values()) == sum(one.numel() for one in gradients)
    most = float(max(gradient.abs().max() for gradient in gradients))
    if all(f"{name}.weight_mx" in wanted for name in ours):
        for name, gradient in ours.items():
            torch.testing.assert_close(gradient, wanted[f"{name}.weight_mx"], rtol=1e-3, atol=1e-4 * most)
        return
    # Several matrices in one parameter: which rows are whose is told by tests of these models.
    flat, others = (torch.cat([one.flatten() for one in of]).sort().values for of in (ours.values(), gradients))
    torch.testing.assert_close(flat, others, rtol=1e-3, atol=1e-4 * most)


def test_no_step_that_helps_leaves_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    model = MODELS["embedded"]()
    start = solved(model, RECIPE, 0).weights
    step = Unrounded.step
    monkeypatch.setattr(Unrounded, "step", lambda self, gradient, rate: step(self, -gradient, rate))  # uphill
    tuned = solved(model, RECIPE, STEPS).weights
    values = decoded(tuned)
    assert all(torch.equal(values[name], decode(weight)) for name, weight in start.items())


def test_an_expert_that_no_token_reaches_stays_as_it_was() -> None:
    model = build("gpt_oss")
    for layer in model.model.layers:
        layer.mlp.router.bias.data[3] = -1e4
    start, tuned = (solved(model, RECIPE, steps) for steps in (0, STEPS))
    assert start.experts is not None and tuned.experts is not None
    assert start.experts.unreached == tuned.experts.unreached == 2
    values = decoded(tuned.weights)
    same = {name: torch.equal(values[name], weight) for name, weight in decoded(start.weights).items()}
    of_unreached = [name for name in same if "experts.3." in name]
    assert len(of_unreached) == 6 and all(same[name] for name in of_unreached)
    assert not any(same[name] for name in same if "layers.0.mlp.experts.0." in name)


def test_tuned_blocks_are_kept() -> None:
    model = MODELS["embedded"]()
    first, again = (solved(model, RECIPE, 4, Artefact({"key": "tuned"})) for _ in range(2))
    assert (first.blocks_kept, again.blocks_kept) == (0, 3)
    values = decoded(again.weights)
    assert all(torch.equal(values[name], weight) for name, weight in decoded(first.weights).items())


def test_formats_of_all_kinds() -> None:
    nvfp4, int4 = MXFormat("fp4_e2m1", 16, "e4m3", tensor_scale=True), MXFormat("int4", 32, symmetric=False)
    recipe = Recipe(
        LinearFormats(nvfp4, nvfp4), key=FP4, value=FP4, arithmetic="exact", shares_tensor_scales=True,
        modules=(("*.o_proj", LinearFormats(int4, FP6)), ("*.down_proj", LinearFormats(MXFormat("int4", (4, 8))))),
    )  # fmt: skip
    model = MODELS["embedded"]()
    start, tuned = (solved(model, recipe, steps).weights for steps in (0, 8))
    for name, weight in start.items():
        assert tuned[name].format == weight.format and tuned[name].dtype == weight.dtype
    assert any(not torch.equal(tuned[name].codes, weight.codes) for name, weight in start.items())


def test_values_that_are_not_finite_leave_the_start() -> None:
    model = MODELS["embedded"]()

    def infinite(weight: Tensor, hessian: Tensor, fmt: MXFormat) -> Encoded:
        return encode(torch.full_like(weight, torch.inf), fmt)

    recipe = Recipe(modules=(("*.layers.2.mlp.down_proj", LinearFormats(FP4)),), arithmetic="exact")
    solutions = solve_weights(model, recipe, Prepared(), batches(), infinite, tune=BlockTuning(model, 4))
    assert all(value.isnan().all() for value in decoded(solutions.weights).values())
