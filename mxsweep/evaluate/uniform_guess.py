"""Warn of a run that knows no more of its task than a guess does.

A guess that holds every token for equally likely costs ln V nats a token, V being the size of the vocabulary. A model
that is not below that on what a task scores is broken, or read in a way that it was not trained for, and differences
from it say nothing about a format. A quantized model that is not below it has lost all that it knew, or had nothing to
lose. Of several answers to one question only the likeliest counts: the others may well be
wrong.

Where whole texts are scored there is a higher bar: a guess by how often each token came before in the task's texts.
After N tokens, c of them v, it gives v (c + 1) / (N + V); its cost does not depend on the order. It learns from nothing
else, so a model that was trained on text knows more. On answers the bar would be unfair: a sound model may lose where
they are few and alike, as yes and no. Repeats of a text count once. A bigram counted in this way is no higher bar: most
of its pairs never came before.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mxsweep.model.special_tokens import beginning_not_put, ending_of

MOST_TASKS = 5  # named in a warning
UNTRAINED = "weights that were never trained, or did not come with the checkpoint"


@dataclass
class ScoredTokens:
    """Add up what scored answers cost.

    Attributes:
        best: of each example, by task and number, the log-likelihood in nats of its likeliest answer, by the token, and
            the tokens of that answer.
        texts: of each task that scores whole texts, the tokens (T,) of each text, repeats once.
    """

    best: dict[tuple[str, int], tuple[float, int]] = field(default_factory=dict)
    texts: dict[str, dict[bytes, np.ndarray]] = field(default_factory=dict)

    def add(self, task: str, example: int, loglikelihood: float, tokens: int) -> None:
        """Count an answer of ``tokens`` tokens to an example of a task."""
        before = self.best.get((task, example))
        if before is None or not loglikelihood / tokens <= before[0] / before[1]:
            self.best[task, example] = (loglikelihood, tokens)

    def add_text(self, task: str, tokens: np.ndarray) -> None:
        """Keep the tokens (T,) of a whole text that a task scores."""
        self.texts.setdefault(task, {})[tokens.tobytes()] = tokens

    def counting_nats(self, vocabulary: int) -> dict[str, float]:
        """Return, of each task that scores whole texts, what a token costs by how often each came before, in nats."""
        costs = {}
        for task, texts in self.texts.items():
            counts = np.unique(np.concatenate(list(texts.values())), return_counts=True)[1].tolist()
            total = sum(counts)
            # The product of (c + 1) / (N + V) over all tokens, in whatever order they come.
            nats = math.lgamma(vocabulary + total) - math.lgamma(vocabulary) - sum(math.lgamma(c + 1) for c in counts)
            costs[task] = nats / total
        return costs

    def nats_per_token(self) -> dict[str, float]:
        """Return, of each task, the mean negative log-likelihood of a scored token in nats."""
        sums: dict[str, tuple[float, int]] = {}
        for (task, _), (loglikelihood, tokens) in self.best.items():
            before = sums.get(task, (0.0, 0))
            sums[task] = (before[0] - loglikelihood, before[1] + tokens)
        return {task: nats / tokens for task, (nats, tokens) in sums.items()}


@dataclass(frozen=True)
class Guessing:
    """Hold the tasks on which a model is no better than a guess, and what is to be said of them."""

    tasks: list[str]
    warnings: list[str]


def find_guessing(
    nats_per_token: Mapping[str, float],
    counting_nats: Mapping[str, float],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    quantized: bool = False,
    trained: str = "",
) -> Guessing:
    """Return the tasks on which ``model`` is not better than a guess, with warnings that name them.

    One for all tasks and a kind of guess, since a group of tasks may have dozens; none where the model is better on
    each. A task whose mean is NaN or infinite is explained elsewhere.

    Args:
        nats_per_token: what a scored token costs, by task.
        counting_nats: what it would cost by how often each came before, of tasks that have it.
        quantized: whether the model is; it is held against the uniform guess alone.
        trained: how long the run, or the one whose checkpoint it is, trained the model, as "30 steps"; empty where none
            did.
    """
    vocabulary = model.config.get_text_config().vocab_size
    guess = math.log(vocabulary)
    guessed = {task: nats for task, nats in nats_per_token.items() if guess <= nats < math.inf}
    counted = {
        task: nats
        for task, nats in nats_per_token.items()
        if not quantized and counting_nats.get(task, guess) <= nats < guess
    }
    by_counting = _listed([f"{counting_nats[task]:,.2f}" for task in counted], ", …")
    bars = (
        (guessed, f"a uniform guess over the {vocabulary:,} tokens of the vocabulary {guess:.2f}"),
        (counted, f"a guess by how often each token came before in the same texts {by_counting}"),
    )
    what = "quantized in this way, the model is no better than a guess" if quantized else "this baseline is no baseline"
    if guessed or counted:
        so = _so_quantized(trained) if quantized else _so_unquantized(_likely_causes(model, tokenizer, trained))
    warnings = [
        f"{_listed(list(found), f' and {len(found) - MOST_TASKS} more tasks')}: {what}: a scored "
        f"token costs {_listed([f'{nats:,.2f}' for nats in found.values()], ', …')} nats on average, and {bar}, {so}"
        for found, bar in bars
        if found
    ]
    return Guessing([*guessed, *counted], warnings)


def _so_quantized(trained: str) -> str:
    causes = [f"a training that was too short ({trained})"] if trained else []
    causes += ["formats that are too coarse for this model", "a baseline that guesses, too"]
    return f"so that its metrics say no more than that. Likely causes: {'; '.join(causes)}"


def _so_unquantized(causes: Sequence[str]) -> str:
    return (
        f"so differences from it say nothing about a format. Likely causes: {'; '.join(causes)}. Look at a few texts "
        "that the model generates before quantizing it"
    )


def _listed(texts: Sequence[str], more: str) -> str:
    """Return the first few texts, and ``more`` where there are others."""
    return ", ".join(texts[:MOST_TASKS]) + (more if len(texts) > MOST_TASKS else "")


def _likely_causes(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, trained: str) -> list[str]:
    """Return what may be wrong with a model and its tokenizer, what is known to be so first."""
    config = model.config.get_text_config()
    causes = [f"the model was trained for too short ({trained})"] if trained else []
    if (bos := beginning_not_put(config, tokenizer)) is not None:
        causes.append(
            f"the model's configuration names a beginning-of-sequence token ({bos}), which its tokenizer does not put "
            "in front of a text, and models as Gemma know nothing without (model.add_bos_token=true)"
        )
    if ending_of(tokenizer):
        causes.append("the tokenizer appends its end token to every text (model.add_bos_token=false puts none)")
    if len(tokenizer) > config.vocab_size:
        causes.append(
            f"the tokenizer has {len(tokenizer):,} tokens and the model {config.vocab_size:,}: it is another model's"
        )
    return causes if trained else [*causes, UNTRAINED, "another model's tokenizer"]
