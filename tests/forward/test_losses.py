"""Log-likelihoods have the same bits on any number of threads, whatever rows stand beside a row."""

from collections.abc import Iterator

import pytest
import torch

from mxsweep.forward.losses import score_targets


@pytest.fixture(autouse=True)
def _threads_stay() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("shape", [(1, 151_936), (2, 50_257), (3, 43_000)], ids=str)
def test_the_score_of_a_row_depends_on_no_other_and_on_no_thread(shape: tuple[int, int], threads: int) -> None:
    count, entries = shape
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        logits = torch.randn((8, entries), generator=generator) * 3
        rows = torch.arange(8)
        torch.set_num_threads(1)
        expected = score_targets(logits, rows, rows)
        torch.set_num_threads(threads)
        assert torch.equal(score_targets(logits, rows, rows), expected)
        for first in range(8 - count + 1):
            here = rows[first : first + count]
            scores = score_targets(logits[here], here - first, here)
            assert torch.equal(scores, expected[:, here]), first


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("entries", [100, 50_257])
def test_scores_have_no_gradient(entries: int, threads: int) -> None:
    torch.set_num_threads(threads)
    logits = torch.randn((3, entries), generator=torch.Generator().manual_seed(0), requires_grad=True)
    scores = score_targets(logits, torch.tensor([0]), torch.tensor([1]))
    assert not scores.requires_grad and torch.equal(scores, score_targets(logits.detach(), *torch.tensor([[0], [1]])))
