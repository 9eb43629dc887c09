"""Choose the examples that diagnostics look at: some of each task, by a seed, whatever batches they are scored in.

Legend: a passage is what the model reads for some requests of an example; its scored positions are those whose next
token a request asks for.

The sample bounds what diagnostics cost. An evaluation of LAMBADA's 5,153 examples reads 400,000 tokens or more; 64
examples of them are 1.3 %, read once by the quantized model and once a process by the unquantized one. A small task is
taken whole, and then diagnostics cost about as much as the evaluation.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.task import Task

from mxsweep.evaluate.lm import FastLM
from mxsweep.evaluate.request_tokens import encode_pairs, encode_prompts, encode_windows
from mxsweep.forward.batches import Passage
from mxsweep.forward.scoring import ScoringRequest, unique_inputs

# Of all tasks of a run together, shared out evenly; but a task has LEAST_EXAMPLES at least, as far as it has so many.
EXAMPLES = 64
LEAST_EXAMPLES = 8
TOKENS = 8_192
TENSOR_TOKENS = 2_048  # of which tensors are measured
LOGITS = 2**26  # scored positions times vocabulary: what is kept of the unquantized model, 128 MiB in bfloat16
# Of one example: of a long text some windows, and of these some positions.
EXAMPLE_TOKENS = 2_048
EXAMPLE_POSITIONS = 32


@dataclass(frozen=True)
class Sample:
    """Hold some examples of a task, in the order in which they were chosen.

    Attributes:
        examples: the passages of each.
        of: how many examples the task was evaluated on.
        measured: how many of the examples, from the first on, tensors are measured on.
    """

    task: str
    examples: tuple[tuple[Passage, ...], ...]
    of: int
    measured: int

    @property
    def positions(self) -> int:
        """Count the positions whose logits are compared."""
        return sum(passage.rows for example in self.examples for passage in example)

    @property
    def tokens(self) -> int:
        """Count the tokens of all examples."""
        return _tokens(self.examples)

    @cached_property
    def digest(self) -> str:
        """Return a digest (hex) that samples share whose logits are the same."""
        digest = hashlib.sha256()
        for example in self.examples:
            for passage in example:
                for values in (passage.tokens, passage.logit_positions):
                    digest.update(len(values).to_bytes(8, "little") + values.astype("<i8").tobytes())
        return digest.hexdigest()


def choose_samples(lm: FastLM, tasks: Mapping[str, Task], seed: int) -> list[Sample]:
    """Return a sample of each task that was evaluated with ``lm``.

    An example is chosen by a hash of the seed, the task's name and the example's number, so that it depends neither on
    batches nor on what else is chosen, and a limit leaves the sample's beginning as it is as far as it can.
    """
    if not tasks:
        return []
    vocabulary = lm.model.config.get_text_config().vocab_size
    share = _Share(
        examples=max(LEAST_EXAMPLES, EXAMPLES // len(tasks)),
        tokens=TOKENS // len(tasks),
        positions=max(1, LOGITS // len(tasks) // vocabulary),
    )
    samples = []
    tensor_tokens = TENSOR_TOKENS
    for name, task in tasks.items():
        by_example: dict[int, list[Instance]] = {}
        for instance in task.instances:
            by_example.setdefault(instance.doc_id, []).append(instance)
        order = sorted(by_example, key=lambda number: _rank(seed, name, number))
        examples = _take(lm, [by_example[number] for number in order[: share.examples]], share)
        measured = _count_within(examples, min(tensor_tokens, TENSOR_TOKENS // len(tasks)))
        measured = measured if tensor_tokens > 0 else 0
        tensor_tokens -= _tokens(examples[:measured])
        samples.append(Sample(name, examples, len(by_example), measured))
    return samples


@dataclass(frozen=True)
class _Share:
    """Bound what one task's sample holds; the first example always fits."""

    examples: int
    tokens: int
    positions: int


def _rank(seed: int, task: str, number: int) -> bytes:
    return hashlib.sha256(f"{seed}/{task}/{number}".encode()).digest()


def _take(lm: FastLM, requests: Sequence[list[Instance]], share: _Share) -> tuple[tuple[Passage, ...], ...]:
    taken: list[tuple[Passage, ...]] = []
    tokens = positions = 0
    for instances in requests:
        example = _passages(lm, instances)
        tokens += _tokens([example])
        positions += sum(passage.rows for passage in example)
        if taken and (tokens > share.tokens or positions > share.positions):
            break
        taken.append(example)
    return tuple(taken)


def _passages(lm: FastLM, instances: Sequence[Instance]) -> tuple[Passage, ...]:
    """Return what the model reads for one example, cut down to EXAMPLE_TOKENS and EXAMPLE_POSITIONS."""
    inputs = unique_inputs(_encoded(lm, instances), min(lm.max_length, EXAMPLE_TOKENS))
    # Windows of a long text: evenly spread over it, as many as may be read.
    inputs.sort(key=lambda item: item.requests[0])
    longest = max(len(item.tokens) for item in inputs)
    inputs = _spread(inputs, max(1, EXAMPLE_TOKENS // longest))
    scored = [(index, row) for index, item in enumerate(inputs) for row in range(item.rows)]
    kept = _spread(scored, EXAMPLE_POSITIONS)
    passages = []
    for index, item in enumerate(inputs):
        first = len(item.tokens) - item.rows
        positions = np.array([first + row for of, row in kept if of == index], dtype=np.int64)
        passages.append(Passage(item.tokens, positions))
    return tuple(passages)


def _encoded(lm: FastLM, instances: Sequence[Instance]) -> list[ScoringRequest]:
    encoded: list[ScoringRequest] = []
    for instance in instances:
        if instance.request_type == "loglikelihood":
            encoded += encode_pairs(lm, [instance.args])
        elif instance.request_type == "loglikelihood_rolling":
            encoded += encode_windows(lm, [instance.args[0]])[0]
        else:
            encoded += encode_prompts(lm, [instance.args[0]])
    longest = min(lm.max_length, EXAMPLE_TOKENS)
    # Of a request that asks for more tokens than are read here, the beginning: the rest would see less before it.
    return [_cut(request, longest) if request.targets > longest else request for request in encoded]


def _cut(request: ScoringRequest, longest: int) -> ScoringRequest:
    whole = len(request.tokens) - request.targets
    context = min(whole, longest // 2)
    return ScoringRequest(request.tokens[whole - context :][: longest + 1], longest + 1 - context)


def _spread(items: list[Any], most: int) -> list[Any]:
    """Return at most so many of the items, evenly spread, the first and the last among them if there are two."""
    if len(items) <= most:
        return items
    return [items[index] for index in np.linspace(0, len(items) - 1, most).round().astype(int)]


def _count_within(examples: Sequence[Sequence[Passage]], tokens: int) -> int:
    """Count the examples, from the first on, that have so many tokens together; one at least."""
    total = 0
    for count, example in enumerate(examples):
        total += _tokens([example])
        if total > tokens:
            return max(1, count)
    return len(examples)


def _tokens(examples: Sequence[Sequence[Passage]]) -> int:
    return sum(len(passage.tokens) for example in examples for passage in example)
