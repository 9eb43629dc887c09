"""Treat a perplexity that is NaN or infinite as a result like any other, with a sentence that says why it is.

A format can cost a model so much that its log-likelihoods are NaN, or so low that their exponential is more than a
float64 holds. Python's ``math.exp`` raises then, and lm-eval with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import lm_eval.api.metrics as lm_eval_metrics

UNITS = {"perplexity": "an example", "word_perplexity": "a word", "byte_perplexity": "a byte"}


@contextmanager
def overflow_is_infinite() -> Iterator[None]:
    """Make lm-eval's perplexities infinite, while the context lasts, where they would raise OverflowError.

    Tasks hold these functions already, so what the functions look up is replaced, not they.
    """
    before = lm_eval_metrics.math
    lm_eval_metrics.math = SimpleNamespace(**vars(math) | {"exp": exp_or_inf})
    try:
        yield
    finally:
        lm_eval_metrics.math = before


def exp_or_inf(x: float) -> float:
    """Return exp(x), infinite where a float64 does not hold it."""
    try:
        return math.exp(x)
    except OverflowError:
        return math.inf


def explain_non_finite(task: str, metrics: Mapping[str, float], samples: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a sentence on each of a task's metrics that are NaN or infinite, or rest on NaN.

    Args:
        metrics: as in an evaluation's ``metrics``.
        samples: as lm-eval logs them; none for a group of tasks.
    """
    examples = [values for sample in _first_of_each_doc(samples) if (values := _loglikelihoods(sample))]
    nan_examples = _how_many(examples, math.isnan, "NaN")
    affected: dict[tuple[str, str], list[str]] = {}
    finite = []
    for name, value in metrics.items():
        if "_stderr" in name:
            continue
        if math.isfinite(value):
            finite.append(name)
        elif math.isnan(value):
            affected.setdefault(("NaN", nan_examples), []).append(name)
        else:
            why = _how_many(examples, math.isinf, "infinite") or _overflow(name, samples)
            affected.setdefault(("infinite", why), []).append(name)
    sentences = [
        f"{task}: {_listed(names)} {'is' if len(names) == 1 else 'are'} {what}{': ' if why else ''}{why}"
        for (what, why), names in affected.items()
    ]
    if nan_examples and any(len(values) > 1 for values in examples):
        # An answer is chosen by numpy's argmax, to which a NaN is the greatest number of all.
        sentences.append(f"{task}: {_listed(finite)} took NaN for the likeliest answer: {nan_examples}")
    elif nan_examples and not sentences:
        sentences.append(f"{task}: {nan_examples}")
    return sentences


def _first_of_each_doc(samples: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return one of each example's samples: a task with several filters logs an example several times."""
    return list({sample["doc_id"]: sample for sample in samples}.values())


def _loglikelihoods(sample: Mapping[str, Any]) -> list[float]:
    """Return the log-likelihoods of an example's requests; none where text was generated."""
    answers = [answer for answers in sample["resps"] for answer in answers]
    values = [answer[0] if isinstance(answer, tuple) else answer for answer in answers]
    return [value for value in values if isinstance(value, float)]


def _how_many(examples: list[list[float]], is_so: Callable[[float], bool], what: str) -> str:
    count = sum(any(map(is_so, values)) for values in examples)
    return f"the model's log-likelihoods of {count:,} of {len(examples):,} examples are {what}" if count else ""


def _overflow(name: str, samples: Sequence[Mapping[str, Any]]) -> str:
    metric = name.split(",")[0]
    if metric not in UNITS or not samples:
        return ""
    values = [sample[metric] for sample in samples]
    pairs = [value if isinstance(value, tuple | list) else (value, 1) for value in values]
    mean = sum(pair[0] for pair in pairs) / sum(pair[1] for pair in pairs)
    return (
        f"the model's log-likelihood is {mean:,.1f} nats {UNITS[metric]} on average, and exp({-mean:,.1f}) "
        "is more than a 64-bit float holds"
    )


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]])) if names else "the answers"
