"""The one way to logits: what is read, what is reduced, and what happens where memory runs out, in every pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from helpers.decoded import decoded
from torch import Tensor

from mxsweep.calibrate.sequential import solve_weights
from mxsweep.formats.recipe import LinearFormats, Recipe
from mxsweep.forward.batches import Batch, BatchLimits, Passage, unpadded_batches
from mxsweep.forward.engine import Engine
from mxsweep.forward.losses import kl_divergences, mean_of_sums, negative_log_likelihoods, score_targets
from mxsweep.forward.scoring import Scorer, ScoringRequest
from mxsweep.forward.sequence_loss import Divergence, measure_loss
from mxsweep.model.kv import key_factors
from mxsweep.model.load import load_model
from mxsweep.model.prepared import Prepared
from mxsweep.numerics import Encoded, MXFormat, encode
from mxsweep.terminal.errors import ConfigError

OUT_OF_MEMORY = {
    "torch": torch.OutOfMemoryError("CUDA out of memory."),
    "cublas": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    "cublas handle": RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
    "runtime": RuntimeError("CUDA error: out of memory"),
    "driver": RuntimeError("CUDA driver error: out of memory"),
    "cuda.core": Exception("CUDA_ERROR_OUT_OF_MEMORY: The API call failed"),
}
TOO_LONG = "{tokens} tokens are too many"


@pytest.fixture(scope="module")
def tiny() -> Any:
    return load_model("embedded", dtype="float32", device="cpu").model


@pytest.fixture
def cramped(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[[Exception, int], list[int]]:
    """Let the first decoder block refuse more sequences at once; the list fills with the sizes it was asked."""
    block, sizes = tiny.model.layers[0], list[int]()
    forward = block.forward

    def limit(error: Exception, most: int) -> list[int]:
        def limited(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
            sizes.append(len(hidden))
            if len(hidden) > most:
                raise error
            return forward(hidden, *args, **kwargs)

        monkeypatch.setattr(block, "forward", limited)
        return sizes

    return limit


def sequences_of(model: Any, *lengths: int) -> list[np.ndarray]:
    generator = np.random.default_rng(7)
    return [generator.integers(0, model.config.vocab_size, n) for n in lengths]


def engine_of(model: Any, tokens: int = 10_000, **options: Any) -> Engine:
    return Engine(model, BatchLimits(tokens, **options), TOO_LONG)


@torch.no_grad()
def logits_alone(model: Any, passage: Passage) -> Tensor:
    logits: Tensor = model(input_ids=torch.from_numpy(passage.tokens)[None]).logits[0]
    return logits[passage.logit_positions]


@pytest.mark.parametrize("everywhere", [False, True], ids=["at positions", "everywhere"])
@pytest.mark.parametrize("batch_tokens", [1, 30, 10_000])
def test_logits_are_those_of_each_passage_alone(tiny: Any, everywhere: bool, batch_tokens: int) -> None:
    tokens = sequences_of(tiny, 12, 30, 7, 30, 2)
    passages = [Passage(one, None if everywhere else np.array([0, len(one) - 1])) for one in tokens]
    seen: set[int] = set()
    for batch, parts in engine_of(tiny, batch_tokens).read(passages, Batch.split):
        for number, part in zip(batch.numbers, parts, strict=True):
            torch.testing.assert_close(part, logits_alone(tiny, passages[number]), rtol=0, atol=1e-4)
        seen |= set(batch.numbers)
    assert seen == set(range(len(passages)))


def test_the_order_may_be_given(tiny: Any) -> None:
    passages = [Passage(one) for one in sequences_of(tiny, 5, 9, 7)]
    batches = [batch.numbers for batch, _ in engine_of(tiny, 1).read(passages, Batch.split, order=[2, 0, 1])]
    assert batches == [(2,), (0,), (1,)]


@pytest.mark.parametrize("error", OUT_OF_MEMORY.values(), ids=OUT_OF_MEMORY.keys())
class TestMemory:
    """Whoever raises the error, every pass goes on with smaller batches."""

    def test_batches_are_halved_until_they_fit(self, tiny: Any, cramped: Any, error: Exception) -> None:
        passages = [Passage(one) for one in sequences_of(tiny, *[20] * 9)]
        sizes = cramped(error, 2)
        told: list[str] = []
        engine = Engine(tiny, BatchLimits(180), TOO_LONG, told.append)
        attempts: list[tuple[int, bool]] = []

        @contextmanager
        def around(batch: Batch) -> Iterator[None]:
            attempts.append((len(batch.passages), False))
            yield
            attempts[-1] = (attempts[-1][0], True)

        batches = [batch.numbers for batch, _ in engine.read(passages, Batch.split, around=around)]
        assert batches == [(0, 1), (2, 3), (4, 5), (6, 7), (8,)]
        assert sizes == [9, 4, 2, 2, 2, 2, 1]
        assert attempts == [(9, False), (4, False), (2, True), (2, True), (2, True), (2, True), (1, True)]
        assert engine.batch_tokens == 40
        assert (
            told[0] == ("a batch of 180 tokens did not fit in GPU memory; batches of at most 90 from there on")
            and len(told) == 2
        )

    def test_what_is_made_of_logits_is_bounded_as_well(self, tiny: Any, error: Exception) -> None:
        passages = [Passage(one) for one in sequences_of(tiny, *[20] * 4)]

        def reduce(batch: Batch, _: Tensor) -> int:
            if len(batch.passages) > 2:
                raise error
            return len(batch.passages)

        assert [count for _, count in engine_of(tiny).read(passages, reduce)] == [2, 2]

    def test_a_single_passage_that_does_not_fit_is_refused(self, tiny: Any, cramped: Any, error: Exception) -> None:
        cramped(error, 0)
        passages = [Passage(one) for one in sequences_of(tiny, 20, 30)]
        with pytest.raises(ConfigError, match=r"^30 tokens are too many$"):
            list(engine_of(tiny).read(passages, Batch.split))
        with pytest.raises(ConfigError, match=r"^30 tokens are too many$"):
            engine_of(tiny).decode(passages)

    def test_calibration_losses(self, tiny: Any, cramped: Any, error: Exception) -> None:
        sequences = sequences_of(tiny, *[30] * 5)
        divergence = Divergence(tiny, sequences)
        expected = measure_loss(tiny, sequences).nats
        sizes = cramped(error, 2)
        assert measure_loss(tiny, sequences).nats == pytest.approx(expected, rel=1e-6)
        assert divergence() == pytest.approx(0, abs=1e-6)
        assert Divergence(tiny, sequences)() == 0
        assert max(sizes) == 5

    def test_scores(self, tiny: Any, cramped: Any, error: Exception) -> None:
        requests = [ScoringRequest(one, 3) for one in sequences_of(tiny, *[30] * 5)]
        expected = Scorer(tiny, 10_000, 256).score(requests)
        cramped(error, 2)
        scores = Scorer(tiny, 10_000, 256).score(requests)
        np.testing.assert_allclose([score for score, _ in scores], [score for score, _ in expected], atol=1e-4)

    def test_key_factors(self, tiny: Any, cramped: Any, error: Exception) -> None:
        passages = [Passage(one) for one in sequences_of(tiny, 30, 30, 30, 12, 12)]
        expected = key_factors(tiny, lambda: engine_of(tiny, padded=False).decode(passages), 1.0, "before")
        sizes = cramped(error, 1)
        factors = key_factors(tiny, lambda: engine_of(tiny, padded=False).decode(passages), 1.0, "before")
        assert sizes == [1, 1, 3, 1, 1, 1, 2, 1, 1]  # after two short passes that find out which modules attend
        assert all(torch.equal(factors[name], expected[name]) for name in expected)

    def test_weights_layer_by_layer(self, tiny: Any, cramped: Any, error: Exception) -> None:
        batches = unpadded_batches(sequences_of(tiny, *[30] * 5, 12), torch.device("cpu"))
        fmt = MXFormat("fp4_e2m1")
        recipe = Recipe(linear=LinearFormats(fmt, MXFormat("fp6_e2m3")), arithmetic="exact")
        asked: list[tuple[Tensor, Tensor]] = []

        def solve(weight: Tensor, hessian: Tensor, fmt: MXFormat) -> Encoded:
            asked.append((weight.clone(), hessian.clone()))
            return encode(weight, fmt)

        def solve_all() -> tuple[dict[str, Tensor], list[tuple[Tensor, Tensor]]]:
            asked.clear()
            return decoded(solve_weights(tiny, recipe, Prepared(), batches, solve).weights), list(asked)

        expected, asked_before = solve_all()
        sizes = cramped(error, 1)
        weights, asked_after = solve_all()
        assert max(sizes) == 5 and sizes[-1] == 1
        assert all(torch.equal(weights[name], expected[name]) for name in expected)
        for (weight, hessian), (weight_before, hessian_before) in zip(asked_after, asked_before, strict=True):
            assert torch.equal(weight, weight_before)  # not one that was quantized before memory ran out
            torch.testing.assert_close(hessian, hessian_before, rtol=1e-4, atol=1e-5)
        cramped(error, 0)
        with pytest.raises(ConfigError, match=r"^calibration\.samples: the states of 6 sequences of up to 30 tokens"):
            solve_all()


def test_memory_that_runs_out_halfway_through_a_block(tiny: Any) -> None:
    """Weights that a block had already got are solved for again from what they were before."""
    batches = unpadded_batches(sequences_of(tiny, *[30] * 4), torch.device("cpu"))
    recipe = Recipe(linear=LinearFormats(MXFormat("fp4_e2m1"), None), arithmetic="exact")
    asked: list[Tensor] = []

    def solve(weight: Tensor, _: Tensor, fmt: MXFormat) -> Encoded:
        asked.append(weight.clone())
        if len(asked) == 3:  # the third group of the first block
            raise OUT_OF_MEMORY["driver"]
        return encode(weight, fmt)

    weights = solve_weights(tiny, recipe, Prepared(), batches, solve).weights
    assert len(asked) == 3 + 3 * 4
    assert all(torch.equal(asked[number], asked[number + 3]) for number in range(3))
    assert len(weights) == 21


def test_other_errors_are_not_taken_for_memory(tiny: Any, cramped: Any) -> None:
    cramped(RuntimeError("CUDA error: an illegal memory access was encountered"), 0)
    sequences = sequences_of(tiny, 20)
    for read in (
        lambda: measure_loss(tiny, sequences),
        lambda: Scorer(tiny, 100, 256).score([ScoringRequest(sequences[0], 1)]),
        lambda: engine_of(tiny).decode([Passage(sequences[0])]),
    ):
        with pytest.raises(RuntimeError, match="illegal memory access"):
            read()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_memory_that_runs_out_by_itself() -> None:
    model = load_model("embedded", dtype="float32", device="cuda").model
    sequences = sequences_of(model, *[200] * 256)
    batches = unpadded_batches(sequences, model.device)
    fmt = MXFormat("fp4_e2m1")
    recipe = Recipe(linear=LinearFormats(fmt, fmt), arithmetic="exact")
    passes: list[int] = []

    def solve(weight: Tensor, _: Tensor | None, fmt: MXFormat) -> Encoded:
        return encode(weight, fmt)

    loss, weights = measure_loss(model, sequences, 2000).nats, solve_weights(model, recipe, Prepared(), batches, solve)
    handle = model.model.layers[0].register_forward_pre_hook(lambda _, args: passes.append(len(args[0])))
    torch.cuda.empty_cache()
    states = 256 * 200 * 128 * 4
    room = torch.cuda.memory_reserved() + 2 * states + 2**26
    torch.cuda.set_per_process_memory_fraction(room / torch.cuda.mem_get_info()[1])
    try:
        assert measure_loss(model, sequences, 10**6).nats == pytest.approx(loss, rel=1e-6)
        assert passes[0] == 256 and passes[-1] < 256
        passes.clear()
        again = solve_weights(model, recipe, Prepared(), batches, solve)
        assert passes[-1] < max(len(batch) for batch in batches)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        handle.remove()
    after, before = decoded(again.weights), decoded(weights.weights)
    assert all(torch.equal(after[name], before[name]) for name in before)


class TestLosses:
    """Arithmetic on logits, against its definition in float64."""

    @pytest.fixture
    def logits(self) -> Tensor:
        return torch.randn(2, 9, 50, generator=torch.Generator().manual_seed(0)) * 3

    @pytest.fixture
    def one_thread(self) -> Iterator[None]:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # or torch would share out the sum of a single row, in another order
        yield
        torch.set_num_threads(threads)

    def test_log_likelihoods_agree_with_each_other(self, logits: Tensor) -> None:
        targets = np.arange(9) * 5
        rows = torch.arange(9)
        scores, greedy = score_targets(logits[0], rows, torch.from_numpy(targets))
        expected = logits[0].double().log_softmax(-1)[rows, torch.from_numpy(targets)]
        torch.testing.assert_close(scores.double(), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(-negative_log_likelihoods(logits[0], targets), expected, rtol=1e-5, atol=1e-5)
        assert greedy.bool().tolist() == (logits[0].argmax(-1) == torch.from_numpy(targets)).tolist()

    def test_a_row_with_nan_has_no_likeliest_token(self, logits: Tensor) -> None:
        logits[0, 0, 7] = torch.nan
        scores, greedy = score_targets(logits[0], torch.zeros(2, dtype=torch.long), torch.tensor([7, 8]))
        assert scores.isnan().all() and greedy.tolist() == [0, 0]

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
    @pytest.mark.parametrize("shape", [(5, 65_537), (300, 3_001), (1_000, 7)], ids=str)
    def test_scores_in_pieces_have_the_bits_of_all_logits_at_once(
        self, shape: tuple[int, int], dtype: torch.dtype, one_thread: None
    ) -> None:
        logits = (torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 9).to(dtype)
        logits[0, 3], logits[2, :4], logits[3, 5], logits[4] = torch.inf, -torch.inf, torch.nan, -torch.inf
        tied = logits[1].argmax()
        logits[1, 0] = logits[1, tied]  # the first of equals is the likeliest
        rows = torch.arange(len(logits)).repeat(2)
        targets = torch.cat([logits.argmax(1), torch.full((len(logits),), 1)])
        whole = logits.float()
        largest, token = whole.max(dim=1)
        normalizer = (whole - largest[:, None]).exp().sum(dim=1).log()
        expected = whole[rows, targets] - largest[rows] - normalizer[rows]
        scores, greedy = score_targets(logits, rows, targets)
        assert torch.equal(scores.nan_to_num(1.0), expected.nan_to_num(1.0))
        assert greedy.bool().tolist() == ((targets == token[rows]) & ~expected.isnan()).tolist()
        assert greedy[: len(logits)].sum() == len(logits) - 3 and greedy[1] == 1 and scores[2].isfinite()

    def test_divergences(self, logits: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
        p, q = (one.double().log_softmax(-1) for one in logits)
        torch.testing.assert_close(kl_divergences(*logits), (p.exp() * (p - q)).sum(-1))
        whole = kl_divergences(*logits)
        monkeypatch.setattr("mxsweep.forward.losses.KL_PIECE", 120)
        assert torch.equal(kl_divergences(*logits), whole)

    def test_means_of_sums(self) -> None:
        mean, stderr = mean_of_sums(np.array([2.0, 9.0, 4.0]), [1, 3, 1])
        residuals = np.array([2.0, 9.0, 4.0]) - 3 * np.array([1, 3, 1])
        assert mean == 3 and stderr == pytest.approx(np.sqrt(1.5 * (residuals**2).sum()) / 5)
        assert np.isnan(mean_of_sums(np.array([2.0]), [1])[1])
        assert np.isnan(mean_of_sums(np.array([2.0, np.inf]), [1, 1])[1])
