"""Losses on sequences of tokens: against plain arithmetic, whatever the batches; and the model is as it was."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from mxsweep.formats.recipe import LinearFormats, Recipe
from mxsweep.forward import losses, sequence_loss
from mxsweep.forward.sequence_loss import Divergence, measure_loss
from mxsweep.model.load import load_model
from mxsweep.model.quantize import quantize_model
from mxsweep.numerics import MXFormat
from mxsweep.terminal.errors import ConfigError

MXFP4 = Recipe(linear=LinearFormats(MXFormat("fp4_e2m1"), MXFormat("fp4_e2m1")), key=MXFormat("fp4_e2m1"))


@pytest.fixture(scope="module")
def tiny() -> Any:
    return load_model("embedded", dtype="float32", device="cpu").model


def sequences_of(model: Any, *lengths: int) -> list[np.ndarray]:
    generator = np.random.default_rng(7)
    return [generator.integers(0, model.config.vocab_size, n) for n in lengths]


def loss(model: Any, sequences: list[np.ndarray], batch_tokens: int | None = None) -> float:
    return measure_loss(model, sequences, batch_tokens).nats


@torch.no_grad()
def log_probabilities(model: Any, sequence: np.ndarray) -> np.ndarray:
    """(T - 1, V) float64, of one sequence by itself."""
    logits = model(input_ids=torch.from_numpy(sequence)[None]).logits[0, :-1].double().numpy()
    logits -= logits.max(axis=1, keepdims=True)
    found: np.ndarray = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return found


def nll(model: Any, sequence: np.ndarray) -> np.ndarray:
    found: np.ndarray = -log_probabilities(model, sequence)[np.arange(len(sequence) - 1), sequence[1:]]
    return found


def test_the_loss_is_the_mean_over_all_tokens(tiny: Any) -> None:
    tokens = sequences_of(tiny, 40, 12, 40, 2, 33)
    each = [nll(tiny, sequence) for sequence in tokens]
    found = measure_loss(tiny, tokens)
    assert found.nats == pytest.approx(np.concatenate(each).mean(), rel=1e-6)
    assert found.tokens == 39 + 11 + 39 + 1 + 32
    assert loss(tiny, tokens) == found.nats
    # A ratio's standard error, from the deviations of the sequences' sums from their share.
    deviations = [one.sum() - found.nats * len(one) for one in each]
    assert found.stderr == pytest.approx(math.sqrt(5 / 4 * sum(d * d for d in deviations)) / found.tokens, rel=1e-4)


@pytest.mark.parametrize("batch_tokens", [1, 45, 80, 10_000])
def test_neither_batches_nor_padding_change_it(tiny: Any, batch_tokens: int) -> None:
    tokens = sequences_of(tiny, 40, 12, 40, 2, 33)
    with quantize_model(tiny, MXFP4):
        assert loss(tiny, tokens, batch_tokens) == pytest.approx(loss(tiny, tokens), rel=2e-3)
    assert loss(tiny, tokens, batch_tokens) == pytest.approx(loss(tiny, tokens), rel=1e-6)


def test_a_large_vocabulary_is_read_in_pieces(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = sequences_of(tiny, 40, 12, 40, 2, 33)
    expected = measure_loss(tiny, tokens)
    with quantize_model(tiny, MXFP4):
        whole = Divergence(tiny, tokens).measure()
    vocabulary = tiny.config.vocab_size
    read: list[int] = []
    with tiny.register_forward_pre_hook(lambda _m, _a, kw: read.append(kw["input_ids"].numel()), with_kwargs=True):
        monkeypatch.setattr(sequence_loss, "BATCH_LOGITS", 40 * vocabulary)
        monkeypatch.setattr(losses, "LOSS_PIECE", 7 * vocabulary)
        monkeypatch.setattr(losses, "KL_PIECE", 3 * vocabulary)
        assert measure_loss(tiny, tokens).nats == pytest.approx(expected.nats, rel=1e-6)
    assert max(read) <= 40 and whole.kl == 0


def test_sequences_without_a_token_to_predict(tiny: Any) -> None:
    tokens = sequences_of(tiny, 20, 1, 0)
    assert measure_loss(tiny, tokens).tokens == 19 and math.isnan(measure_loss(tiny, tokens).stderr)
    with pytest.raises(ConfigError, match=r"^calibration: none of its 2 sequences has a second token"):
        loss(tiny, sequences_of(tiny, 1, 1))


def test_a_batch_that_does_not_fit_is_read_in_halves(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = sequences_of(tiny, 30, 30, 30, 30, 30)
    expected = loss(tiny, tokens)
    forward, room = type(tiny).forward, 2

    def cramped(self: Any, *args: Any, **kwargs: Any) -> Any:
        if len(kwargs["input_ids"]) > room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(type(tiny), "forward", cramped)
    assert loss(tiny, tokens) == pytest.approx(expected, rel=1e-6)
    room = 0
    with pytest.raises(ConfigError, match=r"^calibration\.length: a sequence of 29 tokens does not fit in GPU memory$"):
        loss(tiny, tokens)


def test_the_divergence_is_that_of_the_definition(tiny: Any) -> None:
    tokens = sequences_of(tiny, 30, 12, 30)
    divergence = Divergence(tiny, tokens)
    assert divergence.positions == 29 + 11 + 29
    before = [log_probabilities(tiny, sequence) for sequence in tokens]
    losses_before = [nll(tiny, sequence) for sequence in tokens]
    assert divergence() == 0
    with quantize_model(tiny, Recipe(linear=LinearFormats(MXFormat("int8")))):  # weights alone: batches do not matter
        after = [log_probabilities(tiny, sequence) for sequence in tokens]
        losses_after = [nll(tiny, sequence) for sequence in tokens]
        found = divergence.measure()
        assert divergence() == found.kl == divergence.measure().kl
    kl = [(np.exp(p) * (p - q)).sum(axis=1) for p, q in zip(before, after, strict=True)]
    assert found.kl == pytest.approx(np.concatenate(kl).mean(), rel=1e-3) and found.kl > 0
    assert found.positions == divergence.positions
    difference = np.concatenate(losses_after).mean() - np.concatenate(losses_before).mean()
    assert found.loss == pytest.approx(difference, rel=1e-3, abs=1e-6)
    residuals = [one.sum() - found.kl * len(one) for one in kl]
    assert found.kl_stderr == pytest.approx(math.sqrt(3 / 2 * sum(r * r for r in residuals)) / 69, rel=1e-2)
    assert divergence() == 0  # once more as it was


def test_the_sample_is_bounded_and_the_seeds(tiny: Any) -> None:
    tokens = sequences_of(tiny, *[20] * 10)
    first, again, other = (Divergence(tiny, tokens, positions=50, seed=seed) for seed in (0, 0, 1))
    assert first.positions == 50  # two sequences of 19 and 12 positions of a third
    assert [len(sequence) for sequence in first._sequences] == [20, 20, 13]
    with quantize_model(tiny, MXFP4):
        assert first() == again() != other()
    assert Divergence(tiny, tokens).positions == 190


def test_what_is_kept_is_bounded(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = sequences_of(tiny, *[20] * 10)
    monkeypatch.setattr(sequence_loss, "KEPT_BYTES", 30 * tiny.config.vocab_size * tiny.dtype.itemsize)
    divergence = Divergence(tiny, tokens)
    assert divergence.positions == 30
    assert sum(kept.untyped_storage().nbytes() for kept in divergence._unquantized) <= sequence_loss.KEPT_BYTES


def test_a_model_without_finite_predictions(tiny: Any) -> None:
    divergence = Divergence(tiny, sequences_of(tiny, 20, 20))
    with quantize_model(tiny, Recipe(linear=LinearFormats(MXFormat("fp4_e2m1", scale_bits=2)))):
        assert math.isnan(divergence()) and math.isnan(divergence.measure().kl_stderr)
