"""Say of which tasks a run was seen to know no more than a guess does, groups of tasks included."""

from __future__ import annotations

from mxsweep.results.rows import Row
from mxsweep.results.task_size import lm_eval_says

GUESSED = "guessed"  # the record's entry of such tasks; it names no groups of tasks


def guesses(row: Row) -> bool:
    """Return whether the run knows no more of the row's task than a guess does; of a group, of all its members."""
    recorded = row.recorded(GUESSED)
    if not isinstance(recorded, list):
        return False
    guessed = {task for task in recorded if isinstance(task, str)}
    members = _members(row) if guessed and row.task not in guessed else {row.task}
    return bool(members) and members <= guessed


def _members(row: Row) -> set[str | None]:
    """Return the tasks in a group, and in the groups in it; none of a task.

    Where lm-eval's own file does not say, a run that was asked for one group has examples of its members alone.
    """
    groups = lm_eval_says(row, "group_subtasks")
    if not isinstance(groups, dict):
        examples = row.recorded("n_effective")
        alone = row.recorded("config", "task", "names") == [row.task]
        return {*examples} - {row.task} if alone and isinstance(examples, dict) else set()
    members: set[str | None] = set()
    seen, waiting = set(), [row.task]
    while waiting:
        inside = groups.get(name := waiting.pop())
        if isinstance(inside, list) and inside and name not in seen:
            waiting += [each for each in inside if isinstance(each, str)]
        elif name not in seen and name != row.task:
            members.add(name)
        seen.add(name)
    return members
