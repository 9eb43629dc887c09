"""Name the requests whose tokens are not those of their text, which lm-eval scores all the same.

lm-eval encodes a context alone, and the context with its continuation; as many tokens as the first has are cut from
the second, and what is left is scored behind the first. Where a token reaches over the boundary, or the tokenizer
appends one to every text, that is not the continuation's log-likelihood. It is scored as lm-eval does it, so that
numbers can be compared with others', and said.
"""

from __future__ import annotations

from collections.abc import Sequence

from lm_eval.api.instance import Instance
from lm_eval.models.utils import normalize_gen_kwargs
from transformers import PreTrainedTokenizerBase

from mxsweep.forward.scoring import ScoringRequest
from mxsweep.model.special_tokens import ending_of
from mxsweep.terminal.errors import ConfigError

_NAMED = 3  # of the rows


def refuse_unscorable(requests: Sequence[Instance], encoded: Sequence[ScoringRequest]) -> None:
    """Raise ConfigError, naming the row, for a request without a token to score, or without one before it."""
    for request, tokens in zip(requests, encoded, strict=True):
        if not 0 < tokens.targets < len(tokens.tokens):
            missing = "no token to score" if not tokens.targets else "no token before what is scored"
            context, continuation = request.args
            raise ConfigError(
                f"task: for this tokenizer {_rows([request])} has {missing}: {continuation[-40:]!r} after "
                f"{context[-40:]!r}; lm-eval fails there; take the row out, or a task whose answers are tokens of "
                "their own"
            )


def describe_merged(requests: Sequence[Instance], merged: Sequence[bool]) -> list[str]:
    """Warn of requests of which the context's tokens alone (``merged``) are not the first of the whole."""
    found = [request for request, is_merged in zip(requests, merged, strict=True) if is_merged]
    if not found:
        return []
    return [
        f"{len(found):,} of {len(requests):,} requests have a token that reaches from the context into the answer "
        f"({_rows(found)}). They are scored as lm-eval does it: behind the context as it is encoded alone stand the "
        "tokens of the whole text from so many on, which may leave out the answer's beginning or repeat the context's "
        "end"
    ]


def describe_appended(
    requests: Sequence[Instance], encoded: Sequence[ScoringRequest], tokenizer: PreTrainedTokenizerBase
) -> list[str]:
    """Warn of contexts that end in what the tokenizer appends to every text."""
    ending = ending_of(tokenizer)
    if not ending:
        return []
    contexts = [tokens.tokens[: len(tokens.tokens) - tokens.targets] for tokens in encoded]
    count = sum(
        bool(request.args[0]) and context[-len(ending) :].tolist() == ending
        for request, context in zip(requests, contexts, strict=True)
    )
    if not count:
        return []
    token = _appended(tokenizer)
    return [
        f"the tokenizer appends {token} to every text, so that {count:,} of {len(requests):,} contexts end in it. They "
        f"are scored as lm-eval does it: behind {token}, without the answer's first token, and with {token} as its "
        f"last. {_way_out(tokenizer)}"
    ]


def describe_cut_prompts(
    requests: Sequence[Instance], tokens: Sequence[int], max_length: int, most_generated: int
) -> list[str]:
    """Warn of prompts that are read without their beginning: ``max_length`` less what may be generated is left to them.

    Args:
        tokens: of each request's prompt.
        most_generated: tokens that a request generates which does not say how many.

    Raises:
        ConfigError: nothing is left to a prompt.
    """
    generated = [normalize_gen_kwargs(request.args[1], most_generated)["max_gen_toks"] for request in requests]
    if generated and max(generated) >= max_length:
        raise ConfigError(
            f"model.max_length: {max_length:,} leaves no token to a prompt beside the {max(generated):,} that the task "
            "generates (max_gen_toks); allowed: more, as far as the model goes, or a task that generates less"
        )
    cut = sum(count > max_length - most for count, most in zip(tokens, generated, strict=True))
    if not cut:
        return []
    return [
        f"{cut:,} of {len(requests):,} prompts are longer than model.max_length ({max_length:,} tokens) less what may "
        "be generated after them, and were read without their beginning"
    ]


def describe_appended_texts(count: int, what: str, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Warn that each of ``count`` texts ends in what the tokenizer appends; ``what`` says what becomes of it."""
    if not count or not ending_of(tokenizer):
        return []
    return [f"the tokenizer appends {_appended(tokenizer)} to every text; {what} ({count:,}). {_way_out(tokenizer)}"]


def _appended(tokenizer: PreTrainedTokenizerBase) -> str:
    return repr("".join(tokenizer.convert_ids_to_tokens(ending_of(tokenizer))))


def _way_out(tokenizer: PreTrainedTokenizerBase) -> str:
    true = "" if tokenizer.bos_token_id is None else ", true with the beginning-of-sequence token alone"
    return f"model.add_bos_token=false reads texts without special tokens{true}"


def _rows(requests: Sequence[Instance]) -> str:
    """Return the tasks and rows of requests, the first few of them by name."""
    names = (f"{request.task_name} row {request.doc_id}" if request.task_name else "a request" for request in requests)
    rows = list(dict.fromkeys(names))
    more = f" and {len(rows) - _NAMED:,} more rows" if len(rows) > _NAMED else ""
    return ", ".join(rows[:_NAMED]) + more
