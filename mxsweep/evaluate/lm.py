"""Give lm-eval a model class whose log-likelihoods come from :mod:`mxsweep.forward.scoring`.

Generating, chat templates, and the tokens of a text (beginning-of-sequence tokens, truncation, rolling windows) stay
lm-eval's.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.task import Task
from lm_eval.models.huggingface import HFLM
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mxsweep.evaluate.input_limits import refuse_unknown_tokens
from mxsweep.evaluate.odd_requests import (
    describe_appended,
    describe_appended_texts,
    describe_cut_prompts,
    describe_merged,
    refuse_unscorable,
)
from mxsweep.evaluate.request_tokens import are_merged, encode_pairs, encode_prompts, encode_windows
from mxsweep.evaluate.uniform_guess import ScoredTokens
from mxsweep.forward.batches import batch_tokens_on
from mxsweep.forward.scoring import Scorer, ScoringRequest
from mxsweep.model.rope_lengths import RopeLengths
from mxsweep.model.special_tokens import with_padding
from mxsweep.terminal.logged_warnings import LoggedWarnings
from mxsweep.terminal.progress_callback import Progress, silent

log = logging.getLogger(__name__)

WARM_UP_TOKENS = 128  # of a sequence

_warm: WeakKeyDictionary[PreTrainedModel, set[Hashable]] = WeakKeyDictionary()


class FastLM(HFLM):
    """Score requests for lm-eval with a loaded causal language model, as its own HFLM does, but fast.

    Args:
        batch_tokens: tokens of a forward pass when scoring; None for what suits the model's device.
        batch_size: sequences at a time when generating; one where rotary embeddings depend on the longest of a batch.
        max_length: tokens a sequence may have; None for the model's own limit.

    Attributes:
        warnings: what a reader of the results should know, a sentence each.
        encode_s: seconds spent on tokenizing.
        scored: what scored answers cost, since somebody put a new one here.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        batch_tokens: int | None = None,
        batch_size: int = 32,
        max_length: int | None = None,
    ) -> None:
        self._rope_lengths = RopeLengths(model)
        if self._rope_lengths:
            batch_size = 1  # or the longest sequence of a batch would decide about the others
        super().__init__(
            pretrained=model,
            tokenizer=with_padding(tokenizer),
            backend="causal",
            batch_size=batch_size,
            max_length=max_length,
        )
        self.warnings = LoggedWarnings(log)
        self.encode_s = 0.0
        self.scored = ScoredTokens()
        self._on_scored: Callable[[int], object] = _ignore
        if batch_tokens is None:
            batch_tokens = batch_tokens_on(model.device)
        self._scorer = Scorer(model, batch_tokens, self.max_length, self.warnings.warn)

    @property
    def batch_tokens(self) -> int:
        """Return the tokens of a forward pass: as many as were asked for, or fewer where these did not fit."""
        return self._scorer.batch_tokens

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Return, of each request (context, continuation), the continuation's log-likelihood in nats; is it greedy?"""
        with self._encoding():
            texts = [request.args for request in requests]
            pairs, merged = encode_pairs(self, texts), are_merged(self, texts)
        refuse_unscorable(requests, pairs)
        self._refuse_unknown(pairs)
        self._warn_of([*describe_merged(requests, merged), *describe_appended(requests, pairs, self.tokenizer)])
        answers = self._scorer.score(pairs, self._on_scored)
        for request, pair, (loglikelihood, _) in zip(requests, pairs, answers, strict=True):
            self._count_tokens(request, loglikelihood, pair.targets)
        return answers

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Return, of each request (text,), the log-likelihood in nats of all tokens, in windows of ``max_length``."""
        with self._encoding():
            texts = encode_windows(self, [request.args[0] for request in requests])
        windows_of_all = [window for windows in texts for window in windows]
        self._refuse_unknown(windows_of_all)
        self._warn_of(describe_appended_texts(len(texts), "it is scored at the end of each text", self.tokenizer))
        answers = iter(self._scorer.score(windows_of_all, self._on_scored))
        totals = [sum(next(answers)[0] for _ in windows) for windows in texts]
        for request, windows, loglikelihood in zip(requests, texts, totals, strict=True):
            scored = [window.tokens[len(window.tokens) - window.targets :] for window in windows]
            self._count_tokens(request, loglikelihood, sum(map(len, scored)))
            if scored:
                self.scored.add_text(str(request.task_name), np.concatenate(scored))
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Return what the model generates after each request's prompt, as HFLM does."""
        with self._encoding():
            prompts = encode_prompts(self, [request.args[0] for request in requests])
        self._refuse_unknown(prompts)
        lengths = [len(prompt.tokens) - prompt.targets for prompt in prompts]
        self._warn_of(describe_cut_prompts(requests, lengths, self.max_length, self.max_gen_toks))
        self._warn_of(
            describe_appended_texts(len(prompts), "what is generated stands behind it, in each prompt", self.tokenizer)
        )
        generated: list[str] = super().generate_until(requests, disable_tqdm)
        return generated

    def _model_generate(self, *args: Any, **kwargs: Any) -> Tensor:
        self._rope_lengths.forget()
        generated: Tensor = super()._model_generate(*args, **kwargs)
        return generated

    def warm_up(self, kind: Hashable) -> None:
        """Read one batch of nothing on a GPU, unless this process did so before with the same ``kind`` of model.

        The first pass compiles and loads kernels, which is no part of an evaluation's speed.
        """
        done = _warm.setdefault(self.model, set())
        if self.model.device.type != "cuda" or kind in done:
            return
        count = max(1, self.batch_tokens // WARM_UP_TOKENS)
        vocabulary = self.model.config.get_text_config().vocab_size
        first = np.arange(count, dtype=np.int32) % vocabulary  # different, or they would share one pass
        length = min(WARM_UP_TOKENS, self.max_length)
        self._scorer.score([ScoringRequest(np.append(token, np.zeros(length, dtype=np.int32)), 1) for token in first])
        torch.cuda.synchronize(self.model.device)
        done.add(kind)

    @contextmanager
    def reporting(self, progress: Progress, tasks: Iterable[Task]) -> Iterator[None]:
        """Tell ``progress``, batch by batch while the context lasts, how many requests of ``tasks`` are scored.

        A text that is scored in windows counts as so many requests; what is generated does not count.
        """
        if progress is silent:
            yield
            return
        done, total = 0, None

        def count_scored(count: int) -> None:
            nonlocal done, total
            if total is None:  # known by now: lm-eval builds the requests of every task before it scores the first
                total = self._count(tasks)
            done += count
            progress(done, total)

        self._on_scored = count_scored
        try:
            yield
        finally:
            self._on_scored = _ignore

    def _count(self, tasks: Iterable[Task]) -> int:
        requests = [request for task in tasks for request in task.instances for _ in range(request.repeats or 1)]
        texts = [request.args[0] for request in requests if request.request_type == "loglikelihood_rolling"]
        with self._encoding():
            windows = encode_windows(self, texts)  # kept for when they are scored
        return sum(request.request_type == "loglikelihood" for request in requests) + sum(map(len, windows))

    @contextmanager
    def _encoding(self) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.encode_s += time.perf_counter() - started

    def _count_tokens(self, request: Instance, loglikelihood: float, tokens: int) -> None:
        if tokens:  # none of an empty text
            self.scored.add(str(request.task_name), request.doc_id or 0, loglikelihood, tokens)

    def _refuse_unknown(self, encoded: Iterable[ScoringRequest]) -> None:
        refuse_unknown_tokens((request.tokens for request in encoded), self.model, self.tokenizer)

    def _warn_of(self, messages: Iterable[str]) -> None:
        for message in messages:
            self.warnings.warn(message)


def _ignore(_count: int) -> None:
    pass
