"""Build lm-eval's requests once a process: they depend on the task and the tokenizer, not on what a run quantizes."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from lm_eval.api.instance import Instance
from lm_eval.api.task import Task
from transformers import PreTrainedTokenizerBase

Kept = dict[tuple[Any, ...], list[Instance]]
_kept: WeakKeyDictionary[PreTrainedTokenizerBase, Kept] = WeakKeyDictionary()


@dataclass
class BuildTime:
    """Count the seconds spent on building requests."""

    seconds: float = 0.0


@contextmanager
def reuse_requests(
    tasks: Mapping[str, Task], tokenizer: PreTrainedTokenizerBase, *settings: int | float | bool | None
) -> Iterator[BuildTime]:
    """Let a task's ``build_all_requests``, while the context lasts, build once and then bring the same requests.

    Args:
        tasks: as lm-eval loaded them. One object has one number of few-shot examples and one seed of their choice.
        tokenizer: whose chat template the requests may be written in.
        settings: what else requests depend on; with other settings they are built anew.
    """
    kept, build_time = _kept.setdefault(tokenizer, {}), BuildTime()
    for task in tasks.values():
        task.build_all_requests = functools.partial(_build_or_reuse, task, kept, (task, *settings), build_time)
    try:
        yield build_time
    finally:
        for task in tasks.values():
            del task.build_all_requests  # the method of its class shows again


def _build_or_reuse(task: Task, kept: Kept, key: tuple[Any, ...], build_time: BuildTime, **arguments: Any) -> None:
    if key not in kept:
        started = time.perf_counter()
        type(task).build_all_requests(task, **arguments)
        kept[key] = task.instances
        build_time.seconds += time.perf_counter() - started
    for instance in kept[key]:
        # New ones: lm-eval appends to the responses there are, and scores the first.
        instance.resps, instance.filtered_resps = [], {}
    task._instances = kept[key]
