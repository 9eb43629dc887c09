"""Compute losses from logits: log-likelihoods of tokens, and divergences of distributions.

Legend: N rows of logits, V vocabulary, M targets, P positions; p the distribution of one model, q that of another.

All are in nats. Logits are widened piece by piece: a whole batch of them in float32 or float64 might not fit in memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mxsweep.numerics.kernels.softmax_cuda import normalize_rows, takes_logits
from mxsweep.numerics.piece_threads import on_pieces

SOFTMAX_PIECE = 2**27  # logits at a time: 0.5 GiB in float32 on a GPU; a CPU's threads take what a cache holds of them
LOSS_PIECE = 2**26  # logits in float32 at a time: 0.25 GiB
KL_PIECE = 2**22  # logits in float64 at a time: 32 MiB, a few times over


def score_targets(logits: Tensor, rows: Tensor, targets: Tensor) -> Tensor:
    """Return targets' log-probabilities, and 1 where a target is the most likely token, else 0: (2, M) float32.

    There is no gradient. A row's bits depend neither on the rows beside it nor on how many threads there are.

    Args:
        logits: (N, V).
        rows: the row of each target, (M,) int64: several may ask for different tokens of one row.
        targets: tokens, (M,) int64.
    """
    logits = logits.detach()
    best, most_likely, normalizer = _normalize(logits)
    log_probabilities = logits[rows, targets].float() - best[rows] - normalizer[rows]
    # The maximum of a row with a NaN is that NaN, wherever it stands: no token is the most likely one there.
    greedy = (most_likely[rows] == targets) & ~log_probabilities.isnan()
    return torch.stack([log_probabilities, greedy.float()])


def _normalize(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return each row's largest logit, its token, and log(sum(exp(logits - largest))), (N,) each, in float32."""
    if takes_logits(logits):
        return normalize_rows(logits)
    rows = len(logits)
    best, normalizer = (torch.empty((rows, 1), dtype=torch.float32, device=logits.device) for _ in range(2))
    most_likely = torch.empty((rows, 1), dtype=torch.int64, device=logits.device)

    def work(logits: Tensor, best: Tensor, most_likely: Tensor, normalizer: Tensor) -> None:
        narrow, token = logits.max(dim=1, keepdim=True)  # widening loses nothing, so that it can wait
        best.copy_(narrow)
        most_likely.copy_(token)
        torch.sum(torch.sub(logits, best).exp_(), dim=1, keepdim=True, out=normalizer)

    step = max(1, SOFTMAX_PIECE // logits.shape[1])
    for parts in zip(*(each.split(step) for each in (logits, best, most_likely, normalizer)), strict=True):
        on_pieces(work, parts, (1,))
    return best[:, 0], most_likely[:, 0], normalizer.log_()[:, 0]


def negative_log_likelihoods(logits: Tensor, targets: np.ndarray) -> Tensor:
    """Return the negative log-likelihood of each target (P,) given the logits (P, V) in its place: (P,) float64.

    PyTorch's fused cross-entropy sums a row's exponentials in another order than :func:`score_targets`: the two differ
    in the last bit of a float32, and recorded results rest on either.
    """
    expected = torch.from_numpy(targets.astype(np.int64)).to(logits.device)
    step = max(1, LOSS_PIECE // logits.shape[1])
    parts = zip(logits.split(step), expected.split(step), strict=True)
    return torch.cat([F.cross_entropy(part.float(), of_part, reduction="none") for part, of_part in parts]).double()


def kl_divergences(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    """Return KL(p || q) = sum p (log p - log q), the Kullback-Leibler divergence, at each position.

    Args:
        p_logits, q_logits: (P, V); those of p may be in host memory.

    Returns:
        (P,) float64 on the device of ``q_logits``; 0 only where both distributions are the same.
    """
    step = max(1, KL_PIECE // q_logits.shape[1])
    divergences = []
    for p_part, q_part in zip(p_logits.split(step), q_logits.split(step), strict=True):
        p_part = p_part.to(q_part.device, non_blocking=True)
        log_p, log_q = (part.double().log_softmax(dim=-1) for part in (p_part, q_part))
        p = log_p.exp()
        # A token of probability 0 adds nothing, whatever q says of it.
        divergences.append(torch.where(p == 0, 0.0, p * (log_p - log_q)).sum(dim=-1))
    return torch.cat(divergences)


def mean_of_sums(sums: np.ndarray, counts: Sequence[int]) -> tuple[float, float]:
    """Return the mean over all tokens and its standard error, of each sequence's sum and number of tokens.

    Tokens of one sequence are not independent, so the standard error is that of a ratio over sequences; NaN for a
    single sequence, or where the mean is not finite.
    """
    mean = float(sums.sum()) / sum(counts)
    return mean, weighted_mean_stderr(sums, counts) if math.isfinite(mean) else math.nan


def weighted_mean_stderr(sums: Sequence[float] | np.ndarray, weights: Sequence[float]) -> float:
    """Return the standard error of sum(sums) / sum(weights), linearized (Cochran, Sampling Techniques, eq. 6.9).

    NaN for fewer than two sums, or where one is NaN; infinite where one is.
    """
    a, b = np.asarray(sums, dtype=np.float64), np.asarray(weights, dtype=np.float64)
    n = len(a)
    if n < 2 or np.isnan(a).any():
        return math.nan
    if np.isinf(a).any():
        return math.inf
    residuals = a - a.sum() / b.sum() * b
    return math.sqrt(n / (n - 1) * float((residuals**2).sum())) / float(b.sum())
