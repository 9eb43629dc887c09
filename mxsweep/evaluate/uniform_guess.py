"""Warn of a baseline that knows no more of its task than a uniform guess over the vocabulary does.

A guess that holds every token for equally likely costs ln V nats a token, V being the size of the vocabulary. A model
that is not below that on what a task scores is broken, or read in a way that it was not trained for, and differences
from it say nothing about a format. Of several answers to one question only the likeliest counts: the others may well be
wrong.

A bigram would be a higher bar, but needs a text to be counted on. Counted on the evaluated texts it has seen what the
model has not, and a sound model could lose to it on a narrow subject; so it is no part of the check.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mxsweep.model.special_tokens import beginning_not_put

MOST_TASKS = 5  # named in a warning


@dataclass
class ScoredTokens:
    """Add up what scored answers cost.

    Attributes:
        best: of each example, by task and number, the log-likelihood in nats of its likeliest answer, by the token, and
            the tokens of that answer.
    """

    best: dict[tuple[str, int], tuple[float, int]] = field(default_factory=dict)

    def add(self, task: str, example: int, loglikelihood: float, tokens: int) -> None:
        """Count an answer of ``tokens`` tokens to an example of a task."""
        before = self.best.get((task, example))
        if before is None or not loglikelihood / tokens <= before[0] / before[1]:
            self.best[task, example] = (loglikelihood, tokens)

    def nats_per_token(self) -> dict[str, float]:
        """Return, of each task, the mean negative log-likelihood of a scored token in nats."""
        sums: dict[str, tuple[float, int]] = {}
        for (task, _), (loglikelihood, tokens) in self.best.items():
            before = sums.get(task, (0.0, 0))
            sums[task] = (before[0] - loglikelihood, before[1] + tokens)
        return {task: nats / tokens for task, (nats, tokens) in sums.items()}


def warn_of_guessing(
    nats_per_token: Mapping[str, float], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> list[str]:
    """Return a warning that names the tasks on which the unquantized ``model`` is not better than a uniform guess.

    It is one for all, since a group of tasks may have dozens; none where the model is better on each. A task whose mean
    is NaN or infinite is explained elsewhere.
    """
    vocabulary = model.config.get_text_config().vocab_size
    guess = math.log(vocabulary)
    guessed = {task: nats for task, nats in nats_per_token.items() if guess <= nats < math.inf}
    if not guessed:
        return []
    shown = list(guessed)[:MOST_TASKS]
    more = f" and {len(guessed) - MOST_TASKS} more tasks" if len(guessed) > MOST_TASKS else ""
    costs = ", ".join(f"{guessed[task]:,.2f}" for task in shown) + (", …" if more else "")
    causes = "; ".join(_likely_causes(model, tokenizer))
    return [
        f"{', '.join(shown)}{more}: this baseline is no baseline: a scored token costs {costs} nats on average, and a "
        f"uniform guess over the {vocabulary:,} tokens of the vocabulary {guess:.2f}, so differences from it say "
        f"nothing about a format. Likely causes: {causes}. Look at a few texts that the model generates before "
        "quantizing it"
    ]


def _likely_causes(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return what may be wrong with a model and its tokenizer, what is known to be so first."""
    config = model.config.get_text_config()
    causes = []
    if (bos := beginning_not_put(config, tokenizer)) is not None:
        causes.append(
            f"the model's configuration names a beginning-of-sequence token ({bos}), which its tokenizer does not put "
            "in front of a text, and models as Gemma know nothing without (model.add_bos_token=true)"
        )
    if len(tokenizer) > config.vocab_size:
        causes.append(
            f"the tokenizer has {len(tokenizer):,} tokens and the model {config.vocab_size:,}: it is another model's"
        )
    return [
        *causes,
        "weights that were never trained, or did not come with the checkpoint",
        "another model's tokenizer",
    ]
