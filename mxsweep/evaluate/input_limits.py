"""Refuse what a model cannot read: tokens past its embedding, positions past a table of learned ones, and tasks that
need a special token that its tokenizer does not have.

torch answers with an IndexError on a CPU, and on a GPU with an assertion after which the process can do nothing more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from lm_eval.api.task import Task
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mxsweep.evaluate.request_tokens import NO_PREFIX
from mxsweep.model.positions import most_positions
from mxsweep.terminal.errors import ConfigError

_RESERVED = 2  # rows that OPT's and BART's tables hold before the first position


def refuse_unknown_tokens(
    sequences: Iterable[np.ndarray], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Raise ConfigError where a sequence of token ids (T,) holds one that the model's embedding has no row for."""
    rows = getattr(model.get_input_embeddings(), "num_embeddings", None)
    if rows is None:
        return  # a table of another kind
    largest = max((int(tokens.max()) for tokens in sequences if len(tokens)), default=0)
    if largest >= rows:
        token = tokenizer.convert_ids_to_tokens(largest)
        raise ConfigError(
            f"model.path: the tokenizer gives the token {largest} ({token!r}), and the model's embedding has rows "
            f"for 0 to {rows - 1} only; allowed: the tokenizer that the model was trained with, without added tokens"
        )


def refuse_unlearned_positions(model: PreTrainedModel, max_length: int | None) -> None:
    """Raise ConfigError where sequences may be longer than a model's table of learned positions (GPT-2, OPT)."""
    limit = most_positions(model)
    if max_length is None or limit is None or max_length <= limit:
        return
    for name, module in model.named_modules():
        last = name.rpartition(".")[2]
        is_table = isinstance(module, nn.Embedding) and ("pos" in last or last == "wpe")
        if is_table and limit <= module.num_embeddings <= limit + _RESERVED:
            raise ConfigError(
                f"model.max_length: {max_length} is more than the {limit} positions that the model learned; "
                f"allowed: at most {limit}"
            )


def refuse_missing_special_tokens(tasks: Mapping[str, Task], tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ConfigError where a task scores whole texts, or generates, and the tokenizer lacks the token for it.

    That a question has no context shows when its tokens are made.
    """
    for name, task in tasks.items():
        if task.OUTPUT_TYPE == "loglikelihood_rolling" and tokenizer.bos_token_id is tokenizer.eos_token_id is None:
            raise ConfigError(f"task: {name}: {NO_PREFIX}")
        if task.OUTPUT_TYPE == "generate_until" and tokenizer.eos_token_id is None:
            raise ConfigError(
                f"task: {name} generates, and the tokenizer has no end token for lm-eval to stop at; name one in "
                "tokenizer_config.json (eos_token), or take tasks that are scored by log-likelihood"
            )
