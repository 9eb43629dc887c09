"""Whole models finetuned by what they answer, against divergences and gradients of models with plain weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from itertools import count, islice

import numpy as np
import pytest
import torch
from helpers.decoded import decoded
from helpers.mixtures import build
from torch import Tensor
from transformers import PreTrainedModel

from mxsweep.calibrate import bundles, finetuning, followers
from mxsweep.calibrate.bundles import Bundle
from mxsweep.calibrate.finetuning import finetune
from mxsweep.calibrate.sequential import solve_weights
from mxsweep.calibrate.tuned import Errors, Tuned
from mxsweep.calibrate.tuning_steps import Groups
from mxsweep.formats.recipe import LinearFormats, Recipe, Rotation
from mxsweep.forward.losses import kl_divergences
from mxsweep.model.load import load_model
from mxsweep.model.prepared import Prepared
from mxsweep.model.quantize import quantize_model
from mxsweep.numerics import Encoded, MXFormat, decode, encode
from mxsweep.solvers.autoround import Unrounded
from mxsweep.solvers.clip import search_scales
from mxsweep.solvers.gptq import gptq
from mxsweep.terminal.errors import ConfigError

FP4 = MXFormat("fp4_e2m1")
WEIGHTS_ALONE = Recipe(LinearFormats(FP4), arithmetic="exact")
RECIPE = Recipe(LinearFormats(FP4, FP4), key=FP4, value=FP4, arithmetic="exact", rotation=Rotation(("q", "down"), 32))
CPU = torch.device("cpu")


@cache
def embedded() -> PreTrainedModel:
    return load_model("embedded", device="cpu").model


def sequences() -> list[np.ndarray]:
    drawn = np.random.default_rng(0)
    return [drawn.integers(2, 90, length) for length in [24] * 8 + [17] * 4]


def by_gptq(weight: Tensor, hessian: Tensor, fmt: MXFormat, tensor_amax: Tensor | None = None) -> Encoded:
    scales = search_scales(weight, fmt, tensor_amax=tensor_amax)
    return scales.encode_chosen(gptq(weight, hessian, fmt, scales), fmt)


def start_of(model: PreTrainedModel, recipe: Recipe) -> dict[str, Encoded]:
    return solve_weights(model, recipe, Prepared(), Groups.draw(sequences(), CPU).batches, by_gptq).weights


def finetuned(model: PreTrainedModel, recipe: Recipe, start: Mapping[str, Encoded], steps: int = 8) -> Tuned:
    return finetune(model, recipe, Prepared(), sequences(), start, steps)


def held_back() -> list[np.ndarray]:
    return [sequences()[0], sequences()[8]]


def stepped_on() -> list[np.ndarray]:
    return [ids for number, ids in enumerate(sequences()) if number not in (0, 8)]


@torch.no_grad()
def logits_of(model: PreTrainedModel, read: list[np.ndarray] | None = None) -> list[Tensor]:
    read = sequences() if read is None else read
    return [model(input_ids=torch.from_numpy(ids)[None], use_cache=False).logits[0] for ids in read]


def divergence_of(model: PreTrainedModel, recipe: Recipe, weights: Mapping[str, Encoded]) -> float:
    """Return the KL divergence of the run's model on what is held back, nats a token in the mean."""
    exact = logits_of(model, held_back())
    with quantize_model(model, recipe, prepared=Prepared(weights=weights)):
        pairs = zip(exact, logits_of(model, held_back()), strict=True)
        return float(torch.cat([kl_divergences(p, q) for p, q in pairs]).mean())


def same(one: Mapping[str, Encoded], other: Mapping[str, Encoded]) -> bool:
    return all(torch.equal(one[name].codes, other[name].codes) for name in one | other)


@pytest.mark.parametrize("name", ["embedded", "mixtral"])
def test_the_model_answers_more_nearly_what_it_should(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(followers, "LIKELIEST", 10**4)  # all of a vocabulary, so that the divergence is KL
    model = embedded() if name == "embedded" else build(name)
    recipe = RECIPE if name == "embedded" else replace(RECIPE, rotation=None)
    # What random experts do to some tokens says nothing of others: they read what is held back as well.
    read = sequences() if name == "embedded" else [held_back()[0]] * 8 + [held_back()[1]] * 4
    exact, start = logits_of(model), start_of(model, recipe)
    tuned = finetune(model, recipe, Prepared(), read, start, 8)
    assert all(torch.equal(one, other) for one, other in zip(logits_of(model), exact, strict=True))
    means = [divergence_of(model, recipe, weights) for weights in (start, tuned.weights)]
    assert tuned.errors.first == pytest.approx(means[0], rel=1e-4)
    assert tuned.errors.best == pytest.approx(means[1], rel=1e-4)
    assert means[1] < 0.95 * means[0]
    for name, weight in start.items():
        assert torch.equal(tuned.weights[name].scales, weight.scales)
        assert tuned.weights[name].dtype == weight.dtype
    assert same(finetune(model, recipe, Prepared(), read, start, 8).weights, tuned.weights)


@pytest.mark.parametrize("modules", [("lm_head",), ("*embed_tokens",), ("lm_head", "*embed_tokens")])
def test_heads_and_embeddings_are_quantized_in_steps_and_checks_as_in_the_run(
    modules: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = replace(RECIPE, modules=tuple((name, LinearFormats(FP4)) for name in modules))
    start, seen = start_of(embedded(), recipe), set()
    of_call = finetuning._Divergence.of_call

    def noted(self: finetuning._Divergence, call: tuple[int, ...]) -> Tensor:
        seen.add(torch.is_grad_enabled())
        for name in modules:
            module = self.model.get_submodule(name.replace("*", "model."))
            weight = module.weight if isinstance(module, torch.nn.Embedding) else module.matrix(name)
            assert len(weight[0, :32].abs().unique()) <= 8  # one block: no more than fp4_e2m1 has
        return of_call(self, call)

    monkeypatch.setattr(finetuning._Divergence, "of_call", noted)
    tuned = finetuned(embedded(), recipe, start)
    assert seen == {False, True}
    assert tuned.errors.first == pytest.approx(divergence_of(embedded(), recipe, start), rel=1e-4)
    assert tuned.errors.best == pytest.approx(divergence_of(embedded(), recipe, tuned.weights), rel=1e-4)
    assert tuned.errors.best < tuned.errors.first


def test_what_is_held_back_is_not_stepped_on_and_alone_is_checked_on(monkeypatch: pytest.MonkeyPatch) -> None:
    read: dict[bool, set[bytes]] = {False: set(), True: set()}
    of_call = finetuning._Divergence.of_call

    def noted(self: finetuning._Divergence, call: tuple[int, ...]) -> Tensor:
        ids = {self.sequences[one].numpy().tobytes() for one in call}
        read[torch.is_grad_enabled()] |= ids
        return of_call(self, call)

    monkeypatch.setattr(finetuning._Divergence, "of_call", noted)
    finetuned(embedded(), RECIPE, start_of(embedded(), RECIPE), steps=4)
    assert read[True] == {ids.tobytes() for ids in stepped_on()}
    assert read[False] == {ids.tobytes() for ids in held_back()}


def test_a_step_reads_sequences_of_one_length_together(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, ...]] = []
    of_call = finetuning._Divergence.of_call

    def noted(self: finetuning._Divergence, call: tuple[int, ...]) -> Tensor:
        if torch.is_grad_enabled():
            assert len({len(self.sequences[one]) for one in call}) == 1
            calls.append(call)
        return of_call(self, call)

    monkeypatch.setattr(finetuning._Divergence, "of_call", noted)
    start = start_of(embedded(), RECIPE)
    finetuned(embedded(), RECIPE, start, steps=5)  # of 10 sequences, which are drawn two by two
    assert len(calls) <= 2 * 5 and sum(map(len, calls)) == 8 * 5
    calls.clear()
    monkeypatch.setitem(finetuning.CALL_LOGITS, "cpu", 2 * 24 * embedded().config.vocab_size)
    finetuned(embedded(), RECIPE, start, steps=5)
    assert max(map(len, calls)) == 2 and sum(map(len, calls)) == 8 * 5


def test_two_sequences_are_enough_and_one_is_not() -> None:
    start = start_of(embedded(), RECIPE)
    tuned = finetune(embedded(), RECIPE, Prepared(), sequences()[:2], start, 2)
    assert tuned.errors.first is not None
    with pytest.raises(ConfigError, match="calibration: the text comes out as one sequence, and ptq=qat holds one"):
        finetune(embedded(), RECIPE, Prepared(), sequences()[:1], start, 2)


def test_steps_with_gradients_that_are_not_finite_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    start, of_call, calls = start_of(embedded(), RECIPE), finetuning._Divergence.of_call, count()

    def with_nan(self: finetuning._Divergence, call: tuple[int, ...]) -> Tensor:
        loss = of_call(self, call)
        if torch.is_grad_enabled() and next(calls) < 2:  # calls of the first step: one of each length
            zero = loss - loss.detach()
            loss = loss + zero.sqrt() * 0  # finite, with a gradient that is not
        return loss

    assert finetuned(embedded(), RECIPE, start, steps=3).steps_not_finite == 0
    monkeypatch.setattr(finetuning._Divergence, "of_call", with_nan)
    assert finetuned(embedded(), RECIPE, start, steps=3).steps_not_finite == 1


def test_an_unquantized_model_whose_own_logits_are_not_finite_is_named() -> None:
    model, start = embedded(), start_of(embedded(), RECIPE)
    with (
        model.get_submodule("model.norm").register_forward_hook(lambda _, __, states: states * torch.nan),
        pytest.raises(ConfigError, match="the unquantized model's own logits are not finite"),
    ):
        finetuned(model, RECIPE, start)


def test_where_nothing_in_the_blocks_is_quantized_nothing_moves() -> None:
    recipe = Recipe(LinearFormats(None, None), modules=(("lm_head", LinearFormats(FP4)),))
    tuned = finetuned(embedded(), recipe, {})
    assert tuned.weights == {} and tuned.errors.best == tuned.errors.first


def test_a_step_goes_against_the_gradient_of_the_models_own_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model("embedded", device="cpu").model
    start, exact = start_of(model, WEIGHTS_ALONE), logits_of(model)
    moved: list[Tensor] = []
    monkeypatch.setattr(followers, "LIKELIEST", 10**4)
    monkeypatch.setattr(bundles, "BUNDLED", 0)  # each weight by itself
    monkeypatch.setattr(Unrounded, "step", lambda self, gradient, rate: moved.append(gradient.clone()))
    finetuned(model, WEIGHTS_ALONE, start, steps=1)
    groups = Groups.draw(stepped_on(), CPU)
    (first,) = islice(groups.steps(), 1)
    read = [ids for number in first for ids in groups.batches[number]]
    assert len(read) == 8 and len({len(ids) for ids in read}) == 2

    order = {ids.tobytes(): number for number, ids in enumerate(sequences())}
    with torch.no_grad():
        parameters = {name: model.get_submodule(name).weight for name in start}
        before = {name: parameter.clone() for name, parameter in parameters.items()}
        for name, parameter in parameters.items():
            parameter.copy_(decode(start[name]))
    losses = []
    for ids in read:
        log_p = exact[order[ids.numpy().tobytes()]].log_softmax(-1)
        log_q = model(input_ids=ids[None], use_cache=False).logits[0].log_softmax(-1)
        losses.append((log_p.exp() * (log_p - log_q)).sum())
    wanted = torch.autograd.grad(sum(losses), list(parameters.values()))
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(before[name])
    most = float(max(gradient.abs().max() for gradient in wanted))
    for gradient, of_parameter in zip(moved, wanted, strict=True):
        torch.testing.assert_close(gradient, of_parameter, rtol=1e-3, atol=1e-4 * most)


def test_however_weights_are_bundled_they_become_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    others = (("*.v_proj", LinearFormats(MXFormat("int4", 20), FP4)), ("*.o_proj", LinearFormats(MXFormat("int4", 16))))
    recipe = replace(RECIPE, modules=others)  # 96 channels: blocks of 20 end in a shorter one
    start, of, seen = start_of(embedded(), recipe), Bundle.of, []

    def noted(weights: Mapping[str, Unrounded], dtype: torch.dtype) -> Bundle:
        seen.append(len(weights))
        return of(weights, dtype)

    monkeypatch.setattr(Bundle, "of", noted)
    found = []
    for most in (0, 50_000, bundles.BUNDLED):
        seen.clear()
        monkeypatch.setattr(bundles, "BUNDLED", most)
        found.append(finetuned(embedded(), recipe, start, steps=3).weights)
        assert sum(seen) == len(start)
        assert max(seen) == 1 if most == 0 else max(seen) > 1
    assert sorted(seen) == [1, 1, 1, 3, 15]  # of one length of blocks all at once
    assert not same(found[0], start) and all(same(found[0], other) for other in found[1:])


def test_no_step_that_helps_leaves_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    start, step = start_of(embedded(), RECIPE), Unrounded.step
    monkeypatch.setattr(Unrounded, "step", lambda self, gradient, rate: step(self, -gradient, rate))  # uphill
    tuned = finetuned(embedded(), RECIPE, start)
    assert same(tuned.weights, start) and tuned.errors.best == tuned.errors.first


def test_answers_that_are_not_finite_leave_the_start() -> None:
    start = start_of(embedded(), RECIPE)
    name = next(iter(start))
    start[name] = encode(torch.full_like(decode(start[name]), torch.inf), FP4)
    tuned = finetuned(embedded(), RECIPE, start)
    assert same(tuned.weights, start) and tuned.errors == Errors(None, None)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_models_in_half_precision(dtype: str) -> None:
    model = load_model("embedded", device="cpu", dtype=dtype).model
    start = start_of(model, RECIPE)
    tuned = finetuned(model, RECIPE, start)
    assert tuned.errors.first is not None and tuned.errors.best is not None
    assert tuned.errors.best < 0.95 * tuned.errors.first
    assert {weight.dtype for weight in tuned.weights.values()} == {getattr(torch, dtype)}


def test_what_does_not_fit_in_memory_is_read_in_parts_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model, start = embedded(), start_of(embedded(), RECIPE)
    whole = finetuned(model, RECIPE, start)
    of_call, room = finetuning._Divergence.of_call, 3

    def out_of_memory(self: finetuning._Divergence, call: tuple[int, ...]) -> Tensor:
        if torch.is_grad_enabled() and len(call) > room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return of_call(self, call)

    monkeypatch.setattr(finetuning._Divergence, "of_call", out_of_memory)
    parts = finetuned(model, RECIPE, start)

    def differ(one: Mapping[str, Encoded], other: Mapping[str, Encoded]) -> float:
        return sum(float((a != b).sum()) for a, b in zip(decoded(one).values(), decoded(other).values(), strict=True))

    assert differ(parts.weights, whole.weights) < 0.1 * differ(whole.weights, start)
    room = 0
    with pytest.raises(ConfigError, match="a sequence of 24 tokens and the gradients of all weights do not fit"):
        finetuned(model, RECIPE, start)
