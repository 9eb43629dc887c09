"""Compare what a model says of the next token with what the unquantized model said.

The divergence is KL(p || q) in nats, p the distribution of the next token of the unquantized model and q that of the
model as it is. All of p would be gigabytes: of each token its `LIKELIEST` most likely followers are kept, and what is
left for all others together. With these as one outcome, the divergence is exact for a vocabulary of no more than
`LIKELIEST` tokens, and at most KL(p || q) for a larger one.

With a large vocabulary, logits are most of what a step reads and writes. So they are gone through in pieces, each once,
in float32; the gradient, which is all that is kept for the backward pass, is of the logits' dtype, and is made on the
way, as the exponentials that it takes are there already.

Legend: T tokens, V vocabulary, K the number of followers kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

LIKELIEST = 512
PIECE_LOGITS = 2**25  # that are float32 at a time: 128 MiB


@dataclass(frozen=True)
class Followers:
    """Hold what the unquantized model says of the token after each of a sequence's (T,).

    Attributes:
        ids: (T, K) int32, the most likely tokens.
        log_p: (T, K + 1) float32, the logarithms of their probabilities, and at last of that of all others together.
    """

    ids: Tensor
    log_p: Tensor

    @staticmethod
    def of(logits: Tensor) -> Followers:
        """Return the followers of logits (T, V), in host memory, from where a GPU reads them by itself."""
        kept = min(LIKELIEST, logits.shape[-1])
        ids, log_p = [], []
        for piece in logits.detach().split(_rows(logits)):
            wide = piece.to(torch.float32, copy=True)
            likeliest = wide.topk(kept, dim=-1).indices
            ids.append(likeliest.int())
            log_p.append(_Outcomes.of(wide, likeliest).log_q)
        return Followers(_to_host(torch.cat(ids)), _to_host(torch.cat(log_p)))

    @staticmethod
    def together(followers: Sequence[Followers], device: torch.device) -> Followers:
        """Return those of several sequences, one after the other, on a device."""
        ids = torch.cat([one.ids.to(device, non_blocking=True) for one in followers])
        return Followers(ids, torch.cat([one.log_p.to(device, non_blocking=True) for one in followers]))

    def divergence(self, logits: Tensor) -> Tensor:
        """Return the sum over all tokens of the divergence of logits (T, V) from these, nats.

        Its gradient is asked for once.
        """
        of_device = Followers.together([self], logits.device)
        divergence: Tensor = _Divergence.apply(logits, of_device.ids, of_device.log_p)
        return divergence


@dataclass(frozen=True)
class _Outcomes:
    """Hold what logits (T, V) say of tokens (T, K), and of all others as one outcome.

    Attributes:
        log_q: (T, K + 1) float32, log-probabilities.
        others: (T, V) float32, in proportion to the probabilities of the others; 0 for the tokens.
        whole: (T, 1) float32, the sum of ``others``; 1 where it is 0.
    """

    log_q: Tensor
    others: Tensor
    whole: Tensor

    @staticmethod
    def of(logits: Tensor, ids: Tensor) -> _Outcomes:
        """Return the outcomes of logits (T, V) float32, over which the others are written, for ids (T, K) int64."""
        chosen = logits.gather(-1, ids)
        logits.scatter_(-1, ids, -torch.inf)
        most = logits.amax(-1, keepdim=True)
        none = most == -torch.inf  # there are no others, or none that can come
        others = logits.sub_(most.masked_fill(none, 0.0)).exp_()
        whole = others.sum(-1, keepdim=True).masked_fill_(none, 1.0)
        log_q = torch.cat([chosen, most + whole.log()], -1).log_softmax(-1)
        return _Outcomes(log_q, others, whole)


class _Divergence(torch.autograd.Function):
    """Sum up divergences of logits (T, V) from followers."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, ids: Tensor, log_p: Tensor) -> Tensor:
        gradient = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        total = torch.zeros((), dtype=torch.float32, device=logits.device)
        rows = _rows(logits)
        for start in range(0, len(logits), rows):
            here = slice(start, start + rows)
            tokens, log_p_here = ids[here].long(), log_p[here]
            found = _Outcomes.of(logits[here].to(torch.float32, copy=True), tokens)
            p = log_p_here.exp()
            # An outcome of probability 0 adds nothing, whatever q says of it.
            total += torch.where(log_p_here == -torch.inf, 0.0, p * (log_p_here - found.log_q)).sum()
            if gradient is not None:
                by_outcome = found.log_q.exp().mul_(p.sum(-1, keepdim=True)).sub_(p)
                of_others = by_outcome[:, -1:] / found.whole
                gradient[here] = found.others.mul_(of_others).scatter_(-1, tokens, by_outcome[:, :-1])
        ctx.gradient = gradient
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, None]:
        gradient, ctx.gradient = ctx.gradient, None
        (of_sum,) = gradients
        return gradient.mul_(of_sum), None, None


def _rows(logits: Tensor) -> int:
    """Return how many rows of logits (T, V) are gone through at a time."""
    return max(1, PIECE_LOGITS // logits.shape[-1])


def _to_host(tensor: Tensor) -> Tensor:
    return tensor.cpu().pin_memory() if tensor.is_cuda else tensor
