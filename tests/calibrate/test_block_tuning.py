"""Blocks tuned by the error of their output, against gradients and errors of the model with plain weights."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from helpers.decoded import decoded
from helpers.mixtures import build
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, Phi3Config, PreTrainedModel

from mxsweep.calibrate import bundles
from mxsweep.calibrate.artefacts import Artefact
from mxsweep.calibrate.block_states import BlockStates
from mxsweep.calibrate.block_tuning import BlockTuning
from mxsweep.calibrate.sequential import SolvedWeights, solve_weights
from mxsweep.calibrate.tuned import Errors, Tuning
from mxsweep.calibrate.tuning_steps import Groups
from mxsweep.formats.recipe import LinearFormats, Recipe, Rotation
from mxsweep.model.load import load_model
from mxsweep.model.prepared import Prepared
from mxsweep.model.quantize import quantize_model
from mxsweep.numerics import Encoded, MXFormat, decode, encode
from mxsweep.solvers.autoround import Unrounded
from mxsweep.solvers.clip import search_scales
from mxsweep.solvers.gptq import gptq
from mxsweep.terminal.errors import ConfigError

pytestmark = pytest.mark.usefixtures("own_cache")

FP4, FP6 = MXFormat("fp4_e2m1"), MXFormat("fp6_e2m3")
WEIGHTS_ALONE = Recipe(LinearFormats(FP4), arithmetic="exact")
RECIPE = Recipe(LinearFormats(FP4, FP4), arithmetic="exact")
STEPS = 24
CPU = torch.device("cpu")


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


def groups() -> Groups:
    drawn = np.random.default_rng(0)
    return Groups.draw([drawn.integers(2, 90, length) for length in [24] * 12 + [17] * 4], CPU)


def by_gptq(weight: Tensor, hessian: Tensor, fmt: MXFormat, tensor_amax: Tensor | None = None) -> Encoded:
    scales = search_scales(weight, fmt, tensor_amax=tensor_amax)
    return scales.encode_chosen(gptq(weight, hessian, fmt, scales), fmt)


def solved(model: PreTrainedModel, recipe: Recipe, steps: int, artefact: Artefact | None = None) -> SolvedWeights:
    tune = BlockTuning(model, steps, groups()) if steps else None
    return solve_weights(model, recipe, Prepared(), groups().batches, by_gptq, artefact, tune=tune)


def first_block(model: PreTrainedModel) -> list[Tensor]:
    """What the first decoder block answers to each batch, as a hook sees it."""
    answers: list[Tensor] = []

    def note(_: nn.Module, __: Any, answer: Any) -> None:
        answers.append(answer[0] if isinstance(answer, tuple) else answer)

    handle = model.model.layers[0].register_forward_hook(note)
    with torch.no_grad():
        for ids in groups().batches:
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

    monkeypatch.setattr(bundles, "BUNDLED", 0)  # each weight by itself
    monkeypatch.setattr(Unrounded, "step", noted)
    (first, *_), *_ = members = groups().members
    ids = [groups().batches[number] for number in members[0]]
    assert first == 0 and [len(batch) for batch in ids] == [6, 2]  # two lengths, thus two calls
    monkeypatch.setattr(Groups, "steps", lambda self: iter([members[0]] * STEPS))
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
        for batch in ids:
            model(input_ids=batch, use_cache=False)
        hook.remove()
        plain = [answer[0] if isinstance(answer, tuple) else answer for answer in answers]
        errors = [(one - other).square().mean(1).sum() for one, other in zip(plain, exact[:2], strict=True)]
        gradients = torch.autograd.grad(errors[0] + errors[1], list(tensors.values()))
    wanted = dict(zip(tensors, gradients, strict=True))
    names = [name for name in starts if ".layers.0." in name]
    ours = {name: gradient for name, (_, gradient, _) in zip(names, moved, strict=False)}
    assert sum(gradient.numel() for gradient in ours.values()) == sum(one.numel() for one in gradients)
    most = float(max(gradient.abs().max() for gradient in gradients))
    if all(f"{name}.weight_mx" in wanted for name in ours):
        for name, gradient in ours.items():
            torch.testing.assert_close(gradient, wanted[f"{name}.weight_mx"], rtol=1e-3, atol=1e-4 * most)
        return
    # Several matrices in one parameter: which rows are whose is told by tests of these models.
    flat, others = (torch.cat([one.flatten() for one in of]).sort().values for of in (ours.values(), gradients))
    torch.testing.assert_close(flat, others, rtol=1e-3, atol=1e-4 * most)


def test_no_step_that_helps_leaves_the_start(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "mxsweep")
    model = MODELS["embedded"]()
    start = solved(model, RECIPE, 0).weights
    step = Unrounded.step
    monkeypatch.setattr(Unrounded, "step", lambda self, gradient, rate: step(self, -gradient, rate))  # uphill
    tuned = solved(model, RECIPE, STEPS).weights
    values = decoded(tuned)
    assert all(torch.equal(values[name], decode(weight)) for name, weight in start.items())
    said = "left as it was, no step made the squared error of its output less"
    assert caplog.messages == [f"Decoder block {number}: {said}" for number in range(3)]


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


def test_tuned_blocks_are_named_and_kept(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "mxsweep")
    model = MODELS["embedded"]()
    first, again = (solved(model, RECIPE, 4, Artefact({"key": "tuned"})) for _ in range(2))
    assert (first.blocks_kept, again.blocks_kept) == (0, 3)
    told = [text.partition(" has ")[0] for text in caplog.messages if text.startswith("Decoder block ")]
    assert told == [f"Decoder block {number}: tuned, its output" for number in range(3)]
    assert first.tuning == again.tuning and again.tuning is not None
    assert again.tuning.tuned == 3 and again.tuning.error_left is not None and 0.5 < again.tuning.error_left < 1
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
    tune = BlockTuning(model, 4, groups())
    solutions = solve_weights(model, recipe, Prepared(), groups().batches, infinite, tune=tune)
    assert solutions.tuning == Tuning(tuned=0, left=1, not_finite=(2,), error_left=None)
    assert all(value.isnan().all() for value in decoded(solutions.weights).values())


@pytest.mark.parametrize(("count", "size"), [(3, 3), (8, 8), (12, 8), (13, 8), (20, 8), (128, 8)])
def test_each_step_reads_as_many_sequences_and_each_sequence_is_read_as_often(count: int, size: int) -> None:
    """Whatever lengths they have: a sequence is told by its tokens, which are all its number."""

    def read(lengths: list[int]) -> list[list[int]]:
        drawn = Groups.draw([np.full(length, number) for number, length in enumerate(lengths)], CPU)
        steps = [[drawn.batches[batch][:, 0] for batch in step] for step in islice(drawn.steps(), count)]
        return [sorted(torch.cat(step).tolist()) for step in steps]

    equal, unequal = read([24] * count), read([5 + number % 7 for number in range(count)])
    assert equal == unequal
    assert all(len(step) == size for step in equal)
    times = Counter(number for step in equal for number in step)
    assert times == dict.fromkeys(range(count), size)


def test_a_step_that_does_not_fit_in_memory_is_the_same_step_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one in which memory runs out, so that all batches are halved, whose codes differ by the order of sums."""
    model = MODELS["embedded"]()
    start, whole = (solved(model, RECIPE, steps) for steps in (0, 16))
    run, calls = BlockStates.run, list[bool]()

    def out_of_memory(self: BlockStates, number: int) -> Tensor:
        if torch.is_grad_enabled() and len((self._states or [])[number]) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        calls.append(torch.is_grad_enabled())
        return run(self, number)

    monkeypatch.setattr(BlockStates, "run", out_of_memory)
    parts = solved(model, RECIPE, 16)
    assert sum(calls) > 3 * 16 * 2  # more calls with a gradient than steps times lengths

    def differ(one: SolvedWeights, other: SolvedWeights) -> float:
        pairs = [(one.weights[name].codes, other.weights[name].codes) for name in one.weights]
        return sum(int((a != b).sum()) for a, b in pairs) / sum(a.numel() for a, _ in pairs)

    assert differ(parts, whole) < 0.1 * differ(whole, start)


def test_a_sequence_that_does_not_fit_by_itself_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    run = BlockStates.run

    def out_of_memory(self: BlockStates, number: int) -> Tensor:
        if torch.is_grad_enabled():
            raise torch.OutOfMemoryError("CUDA out of memory")
        return run(self, number)

    monkeypatch.setattr(BlockStates, "run", out_of_memory)
    with pytest.raises(ConfigError, match="16 sequences of up to 24 tokens, and a decoder block's work on one"):
        solved(MODELS["embedded"](), RECIPE, 4)


def test_what_tuning_did_is_summed_up() -> None:
    errors = {0: Errors(2.0, 1.0), 2: Errors(4.0, 4.0), 3: Errors(None, None), 5: Errors(0.0, 0.0)}
    assert Tuning.of(errors) == Tuning(tuned=1, left=3, not_finite=(3,), error_left=0.75)
