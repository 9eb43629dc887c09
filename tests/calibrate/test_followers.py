"""Divergences from followers and their gradients, against formulas in float64."""

from __future__ import annotations

import pytest
import torch

from mxsweep.calibrate import followers
from mxsweep.calibrate.followers import Followers
from mxsweep.forward.losses import kl_divergences

CPU = torch.device("cpu")


@pytest.mark.parametrize("kept", [97, 20], ids=["all", "some"])
@pytest.mark.parametrize("rows", [11, 3, 1])
def test_the_divergence_is_that_of_the_likeliest_and_of_all_others_together(
    kept: int, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(followers, "LIKELIEST", kept)
    monkeypatch.setattr(followers, "PIECE_LOGITS", 97 * rows)  # of 11 tokens
    drawn = torch.Generator().manual_seed(0)
    p, q = (2 * torch.randn(11, 97, generator=drawn) for _ in range(2))
    before = p.clone(), q.clone()
    with_graph = Followers.of(p).divergence(q.requires_grad_())
    divergence = float(with_graph.detach())
    (gradient,) = torch.autograd.grad(2 * with_graph, q)
    assert torch.equal(p, before[0]) and torch.equal(q, before[1])
    likeliest = p.argsort(-1, descending=True)
    wide = q.detach().double().requires_grad_()
    of_p, of_q = (one.double().softmax(-1).gather(-1, likeliest) for one in (p, wide))
    of_p, of_q = (torch.cat([one[:, :kept], one[:, kept:].sum(-1, keepdim=True)], -1) for one in (of_p, of_q))
    wanted = torch.where(of_p == 0, 0.0, of_p * (of_p.clamp(min=1e-300) / of_q.clamp(min=1e-300)).log()).sum()
    assert divergence == pytest.approx(float(wanted.detach()), rel=1e-5)
    (of_wanted,) = torch.autograd.grad(2 * wanted, wide)
    torch.testing.assert_close(gradient.double(), of_wanted, rtol=1e-4, atol=1e-6)
    whole = kl_divergences(p, q.detach()).sum()
    assert divergence == pytest.approx(float(whole), rel=1e-5) if kept == 97 else divergence < whole


def test_followers_of_half_precision_are_those_of_the_same_numbers_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(followers, "LIKELIEST", 20)
    drawn = torch.Generator().manual_seed(0)
    p, q = ((2 * torch.randn(11, 97, generator=drawn)).bfloat16() for _ in range(2))
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        logits = q.to(dtype).requires_grad_()
        divergence = Followers.of(p.to(dtype)).divergence(logits)
        found.append((divergence.detach(), *torch.autograd.grad(divergence, logits)))
    assert found[1][1].dtype == torch.bfloat16 and torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1].bfloat16(), found[1][1])


def test_those_of_several_sequences_are_each_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(followers, "LIKELIEST", 20)
    drawn = torch.Generator().manual_seed(0)
    p, q = (2 * torch.randn(11, 97, generator=drawn) for _ in range(2))
    together = Followers.together([Followers.of(p[:4]), Followers.of(p[4:])], CPU)
    assert torch.equal(together.log_p, Followers.of(p).log_p)
    assert float(together.divergence(q)) == float(Followers.of(p).divergence(q))


def test_others_that_are_very_unlikely_still_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the likeliest their probabilities are no float32 numbers above 0, but their logarithms are."""
    monkeypatch.setattr(followers, "LIKELIEST", 2)
    p, q = torch.tensor([[3.0, 2.0, 1.0, 0.0]]), torch.tensor([[200.0, 199.0, 1.0, 0.0]], requires_grad=True)
    divergence = Followers.of(p).divergence(q)
    of_p = p.double().softmax(-1)
    rest = of_p[0, 2:].sum()
    log_q = q.detach().double().log_softmax(-1)
    wanted = (of_p * (of_p.log() - log_q))[0, :2].sum() + rest * (rest.log() - log_q[0, 2:].logsumexp(0))
    assert float(divergence.detach()) == pytest.approx(float(wanted), rel=1e-5)
    (gradient,) = torch.autograd.grad(divergence, q)
    torch.testing.assert_close(gradient[0, 2:].double(), -rest * p[0, 2:].double().softmax(0), rtol=1e-5, atol=0)


def test_a_token_of_probability_0_adds_nothing() -> None:
    p = torch.tensor([[0.0, 1.0, -torch.inf]])
    followers = Followers.of(p)
    assert float(followers.divergence(p)) == 0
    q = torch.tensor([[0.0, 1.0, 2.0]], requires_grad=True)
    (gradient,) = torch.autograd.grad(followers.divergence(q), q)
    torch.testing.assert_close(gradient, q.detach().softmax(-1) - p.softmax(-1))


def test_where_none_of_the_others_can_come_the_gradient_is_that_of_the_likeliest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(followers, "LIKELIEST", 3)
    p, q = torch.tensor([[2.0, 1.0, 0.0], [0.0, 3.0, 1.0]]), torch.tensor([[1.0, 1.5, 0.0], [0.5, 0.0, 1.0]])
    nothing = torch.full((2, 4), -torch.inf)
    padded = torch.cat([q, nothing], -1).requires_grad_()
    (gradient,) = torch.autograd.grad(Followers.of(torch.cat([p, nothing], -1)).divergence(padded), padded)
    torch.testing.assert_close(gradient[:, :3], q.softmax(-1) - p.softmax(-1))
    assert torch.equal(gradient[:, 3:], torch.zeros(2, 4))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU on this machine")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_gpu_they_are_those_of_the_host_up_to_rounding(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(followers, "LIKELIEST", 100)
    monkeypatch.setattr(followers, "PIECE_LOGITS", 5003 * 7)
    drawn = torch.Generator().manual_seed(0)
    p, q = ((2 * torch.randn(37, 5003, generator=drawn)).to(dtype) for _ in range(2))
    of_host, kept = Followers.of(p), Followers.of(p.cuda())
    assert kept.ids.is_pinned() and kept.log_p.is_pinned()
    torch.testing.assert_close(kept.log_p, of_host.log_p)
    found = []
    for device in ("cpu", "cuda"):
        logits = q.to(device).requires_grad_()
        divergence = Followers.together([of_host], logits.device).divergence(logits)
        found.append([one.cpu() for one in (divergence.detach(), *torch.autograd.grad(divergence, logits))])
    torch.testing.assert_close(found[1][0], found[0][0])
    torch.testing.assert_close(found[1][1], found[0][1], rtol=2**-7 if dtype == torch.bfloat16 else 1e-4, atol=1e-8)
