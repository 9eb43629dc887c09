"""Turn requests into tokens, once a process, however many runs ask for them.

The tokens are exactly those of lm-eval's HFLM (``_encode_pair``, ``tok_encode``, rolling windows), but for the way:
all texts of a task go through the tokenizer in one call, which uses every core, and what came out is kept as int32
beside the tokenizer for as long as that lives.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import has_bos_prefix
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from transformers import PreTrainedTokenizerBase

from mxsweep.forward.scoring import ScoringRequest
from mxsweep.model.special_tokens import ending_of
from mxsweep.terminal.errors import ConfigError

NO_PREFIX = (
    "model.path: the tokenizer has neither a beginning-of-sequence token nor an end token, and lm-eval puts one in "
    "front of what has no context: an empty context, and the first window of a long text; name one in "
    "tokenizer_config.json (bos_token, eos_token), or take tasks whose every answer has a context"
)


@dataclass(frozen=True)
class _Pair:
    request: ScoringRequest
    is_merged: bool = False


# Values must not refer to the tokenizer, or it would never be freed.
_pairs: WeakKeyDictionary[PreTrainedTokenizerBase, dict[tuple[str, str], _Pair]] = WeakKeyDictionary()
_windows: WeakKeyDictionary[PreTrainedTokenizerBase, dict[tuple[str, int], list[ScoringRequest]]] = WeakKeyDictionary()


def encode_pairs(lm: HFLM, pairs: Sequence[tuple[str, str]]) -> list[ScoringRequest]:
    """Return each (context, continuation) as HFLM encodes it; an empty context stands for the prefix token."""
    return [pair.request for pair in _encoded_pairs(lm, pairs)]


def are_merged(lm: HFLM, pairs: Sequence[tuple[str, str]]) -> list[bool]:
    """Return of each (context, continuation) whether the context's tokens alone are not the first of the whole."""
    return [pair.is_merged for pair in _encoded_pairs(lm, pairs)]


def encode_windows(lm: HFLM, texts: Sequence[str]) -> list[list[ScoringRequest]]:
    """Return each text in windows of at most ``lm.max_length`` tokens, which together score every token once."""
    kept = _windows.setdefault(lm.tokenizer, {})
    new = [text for text in dict.fromkeys(texts) if (text, lm.max_length) not in kept]
    encoded = _encode(lm, new)
    for text in new:
        windows = get_rolling_token_windows(
            token_list=encoded[text], prefix_token=prefix_token(lm), max_seq_len=lm.max_length, context_len=1
        )
        kept[text, lm.max_length] = [_joined(*make_disjoint_window(window)) for window in windows]
    return [kept[text, lm.max_length] for text in texts]


def encode_prompts(lm: HFLM, texts: Sequence[str]) -> list[ScoringRequest]:
    """Return each prompt of a generation as a request for one token after it, whichever that may be."""
    encoded = _encode(lm, texts)
    return [_joined(encoded[text] or [prefix_token(lm)], [0]) for text in texts]


def prefix_token(lm: HFLM) -> int:
    """Return the token that lm-eval puts in front of what has no context. Raises ConfigError where there is none."""
    if lm.prefix_token_id is None:
        raise ConfigError(NO_PREFIX)
    return lm.prefix_token_id


def _encoded_pairs(lm: HFLM, pairs: Sequence[tuple[str, str]]) -> list[_Pair]:
    kept = _pairs.setdefault(lm.tokenizer, {})
    new = [pair for pair in dict.fromkeys(pairs) if pair not in kept]
    with_context = {pair: _spaces_to_continuation(*pair) for pair in new if pair[0]}
    texts = _encode(lm, [text for context, whole in with_context.values() for text in (context, whole)])
    alone = _encode(lm, [continuation for context, continuation in new if not context], add_special_tokens=False)
    appended = len(ending_of(lm.tokenizer)) if new else 0
    for pair in new:
        if pair[0]:
            context, whole = (texts[text] for text in with_context[pair])
            own = context[: len(context) - appended]  # a token that is appended to every text merges nothing
            kept[pair] = _Pair(_joined(context, whole[len(context) :]), whole[: len(own)] != own)
        else:
            kept[pair] = _Pair(_after_prefix(prefix_token(lm), alone[pair[1]]))
    return [kept[pair] for pair in pairs]


def _spaces_to_continuation(context: str, continuation: str) -> tuple[str, str]:
    """Return the context without its trailing spaces, which count as the continuation's, and the whole text."""
    return context.rstrip(), context + continuation


def _after_prefix(prefix: int, tokens: list[int]) -> ScoringRequest:
    """Return a continuation of nothing behind the prefix token, unless it begins with one itself."""
    return _joined(tokens[:1], tokens[1:]) if tokens[:1] == [prefix] else _joined([prefix], tokens)


def _joined(context: list[int], continuation: list[int]) -> ScoringRequest:
    return ScoringRequest(np.array(context + continuation, dtype=np.int32), len(continuation))


def _encode(lm: HFLM, texts: Iterable[str], add_special_tokens: bool | None = None) -> dict[str, list[int]]:
    """Return ``lm.tok_encode`` of each text."""
    unique = list(dict.fromkeys(texts))
    if add_special_tokens is not None:
        return _encode_batch(lm, unique, add_special_tokens)
    # A text that brings its own beginning-of-sequence token gets no second one.
    beginning = None if lm.prefix_token_id is None else lm.tokenizer.decode(lm.prefix_token_id)
    begun = [text for text in unique if has_bos_prefix(text, beginning)]
    others = [text for text in unique if not has_bos_prefix(text, beginning)]
    return _encode_batch(lm, begun, False) | _encode_batch(lm, others, True)


def _encode_batch(lm: HFLM, texts: list[str], add_special_tokens: bool) -> dict[str, list[int]]:
    if not texts:
        return {}
    if not lm.tokenizer.is_fast:  # one written in Python gains nothing from a batch
        return {text: lm.tokenizer.encode(text, add_special_tokens=add_special_tokens) for text in texts}
    # Not verbose: a text longer than the model takes is cut later, where it is scored.
    answer = lm.tokenizer(texts, add_special_tokens=add_special_tokens, return_attention_mask=False, verbose=False)
    return dict(zip(texts, answer["input_ids"], strict=True))
