"""Compute standard errors of perplexities, without a bootstrap of minutes.

lm-eval resamples a perplexity 100,000 times, which takes longer than evaluating a small model, and gives no
standard error at all for a perplexity weighted by length (wikitext's). A perplexity is exp(-m) of a mean m of
log-likelihoods. For n examples m is close to normal with a standard error s, so exp(-m) is close to log-normal, and
what the bootstrap estimates is that distribution's standard deviation: exp(-m) exp(s^2/2) sqrt(exp(s^2) - 1). With
few examples m is not normal enough for that, and resampling costs little: then they are resampled here, at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import lm_eval.api.metrics as lm_eval_metrics
import numpy as np

from mxsweep.evaluate.quiet import quiet_bootstrap
from mxsweep.forward.losses import weighted_mean_stderr

ENOUGH_FOR_CLOSED_FORM = 500  # examples
RESAMPLES = 20_000


def perplexity_stderr(loglikelihoods: Sequence[float]) -> float:
    """Return the standard error of exp(-mean) of log-likelihoods in nats; NaN for fewer than two examples.

    Where a perplexity is NaN or infinite, its standard error is so too; a weighted one's, below, as well.
    """
    values = np.asarray(loglikelihoods, dtype=np.float64)
    if len(values) < 2 or np.isnan(values).any():
        return math.nan
    if np.isinf(values).any():
        return math.inf
    if len(values) < ENOUGH_FOR_CLOSED_FORM:
        drawn = np.random.default_rng(0).integers(0, len(values), (RESAMPLES, len(values)))
        with np.errstate(over="ignore", invalid="ignore"):
            spread = float(np.exp(-values[drawn].mean(axis=1)).std(ddof=1))
        return math.inf if math.isnan(spread) else spread
    return _lognormal_stderr(-float(values.mean()), float(values.std(ddof=1)) / math.sqrt(len(values)))


def weighted_perplexity_stderr(sums: Sequence[float], weights: Sequence[float]) -> float:
    """Return the standard error of exp(-sum(sums) / sum(weights)), as for words or bytes of whole documents."""
    return _lognormal_stderr(-sum(sums) / sum(weights), weighted_mean_stderr(sums, weights))


def _lognormal_stderr(log_perplexity: float, s: float) -> float:
    try:
        return math.exp(log_perplexity + s * s / 2) * math.sqrt(math.expm1(s * s))
    except OverflowError:
        return math.inf


@contextmanager
def closed_form_perplexity() -> Iterator[None]:
    """Let lm-eval use :func:`perplexity_stderr` where it would bootstrap a perplexity; other metrics as ever."""
    bootstrap = lm_eval_metrics.bootstrap_stderr

    def stderr(f: Any, xs: Sequence[Any], iters: int) -> float:
        if f is lm_eval_metrics.perplexity:
            return perplexity_stderr(xs)
        with quiet_bootstrap():
            return bootstrap(f, xs, iters)

    lm_eval_metrics.bootstrap_stderr = stderr
    try:
        yield
    finally:
        lm_eval_metrics.bootstrap_stderr = bootstrap
