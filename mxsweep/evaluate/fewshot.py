"""Refuse few-shot examples from the rows that are evaluated, unless somebody says so, and then say so.

lm-eval takes a task's examples from ``fewshot_split`` or, where a task names none, from the training split, the
validation split or the rows that it evaluates, the first that there is. Of the evaluated rows it leaves the asked one
out only where ``fewshot_split`` and ``test_split`` are the same name.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any
from weakref import WeakKeyDictionary

from lm_eval.api.task import ConfigurableTask, Task

from mxsweep.config.refusals import too_many_examples
from mxsweep.terminal.errors import ConfigError

_checked: WeakKeyDictionary[Task, list[str]] = WeakKeyDictionary()


def check_fewshot(tasks: Mapping[str, Task], from_evaluated: bool, fed: Collection[str] = ()) -> list[str]:
    """Return what to warn of in the few-shot examples of tasks as lm-eval loaded them; none without examples.

    Args:
        tasks: by name.
        from_evaluated: whether examples may come from the evaluated rows (``task.fewshot_evaluated``).
        fed: names of tasks whose rows are of a file, all in one split, whatever splits the tasks have.

    Raises:
        ConfigError: examples from the evaluated rows that nobody asked for, or more than there are rows.
    """
    return [text for name, task in tasks.items() for text in _check(name, task, from_evaluated, name in fed)]


def _check(name: str, task: Task, from_evaluated: bool, is_fed: bool) -> list[str]:
    count = task.get_config("num_fewshot") or 0
    if not count or not isinstance(task, ConfigurableTask):
        return []
    evaluated = task.config.test_split or task.config.validation_split
    named = task.fewshot_cfg.split
    source = named if named or task.fewshot_cfg.samples is not None else _split_by_rule(task)
    is_evaluated = source is not None and source == evaluated
    says_so = named is not None and not is_fed
    if is_evaluated and not from_evaluated and not says_so:
        raise ConfigError(
            f"task.num_fewshot: {name} has no rows beside those that it evaluates ({evaluated!r}) to take {count} "
            "examples from; allowed: 0, a fewshot_split in the task's YAML, or task.fewshot_evaluated=true, which "
            "takes them from the evaluated rows, never the row that is asked"
        )
    if task not in _checked:
        _checked[task] = _examples(name, task, count, source, is_evaluated)
    return _checked[task]


def _split_by_rule(task: ConfigurableTask) -> str | None:
    """Return the split that lm-eval takes examples from where the task names none."""
    return task.config.training_split or task.config.validation_split or task.config.test_split


def _examples(name: str, task: ConfigurableTask, count: int, source: str | None, is_evaluated: bool) -> list[str]:
    """Check that there are so many examples, and return what to warn of; leave the asked row out of its own."""
    asked = Counter(map(_content, task.eval_docs))
    pool = Counter(map(_content, task.sampler.df))
    held, shared = sum(pool.values()), sum(number for row, number in asked.items() if row in pool)
    where = f"its split {source!r}" if source else "its list of samples"
    most = held
    leaves_out = is_evaluated or shared > 0
    if leaves_out:
        # lm-eval compares the two names to find out whether to leave the asked row out, by its content.
        evaluated = task.config.test_split or task.config.validation_split
        task.config.test_split = task.fewshot_cfg.split = evaluated
        most -= max((number for row, number in pool.items() if row in asked), default=0)
    if count > most:
        raise ConfigError(too_many_examples(name, count, most, where, leaves_out=leaves_out))
    if is_evaluated:
        return [
            f"{name}: the {count} examples in front of a question are other rows of {source!r}, the split that is "
            "evaluated"
        ]
    if shared:
        return [
            f"{name}: {shared:,} of {sum(asked.values()):,} evaluated rows also stand among those that examples are "
            f"taken from ({where}); none is among its own"
        ]
    return []


def _content(row: Mapping[str, Any]) -> str:
    return json.dumps(dict(row), sort_keys=True, default=str)
