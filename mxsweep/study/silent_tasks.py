"""Say of which groups of runs a task tells nothing: no run of theirs answers more of it right than a guess does."""

import math

import numpy as np

from mxsweep.results.groups import Group
from mxsweep.results.metrics import known_metric
from mxsweep.results.outcomes import read_outcomes
from mxsweep.results.rows import Row
from mxsweep.results.trainings import has_trained
from mxsweep.study.headline import loss_metric
from mxsweep.study.trained_configs import has_seeds

DEVIATIONS = 2  # standard deviations above their mean, up to which a share of right answers may be that of guesses
OF_TRAININGS = (
    "so differences on it say nothing of what training in a format costs, and no config is chosen by it: the "
    "validation loss says that."
)
OF_EVALUATIONS = "so differences between them say nothing of what quantizing costs, and no config is chosen."


def is_at_floor(group: Group) -> bool:
    """Return whether no run of the group answers more right than a guess does, so that accuracy says nothing of them.

    False where a run counts no right answers.
    """
    return all(row.accuracy_name is not None and not _is_above(row, row.accuracy_name) for row in group.rows)


def _is_above(row: Row, accuracy: str) -> bool:
    """Return whether more answers are right than guesses among the choices come to; of free answers, any."""
    chance = _chance(row)
    deviation = math.sqrt((chance * (1 - chance)).sum()) / len(chance)
    # Not ">": an accuracy that is NaN does not show that the task tells nothing.
    return not row.metrics[accuracy] <= chance.mean() + DEVIATIONS * deviation


def _chance(row: Row) -> np.ndarray:
    """Return how often a guess is right, (n,) float64, of each example; 0 where it has no choices."""
    outcomes = read_outcomes(row.run, row.task or "")
    return np.zeros(1) if outcomes is None or outcomes.chance is None else outcomes.chance


def tells_nothing(group: Group) -> bool:
    """Return whether the task tells nothing of the group's runs.

    Of trainings where right answers are no more than guesses: their measure is the held-out loss, and how a model that
    has not learned a task guesses is chance. Of other runs only where right answers are all that is measured: a
    perplexity or a margin tells formats apart in which nothing is answered right.
    """
    metric = loss_metric(group)
    measured_alone = metric is not None and known_metric(metric).counts
    return is_at_floor(group) and (measured_alone or any(map(has_trained, group.rows)))


def has_no_pairs(group: Group) -> bool:
    """Return whether no two of the group's runs say what their configs do: of several seeds, or where a task tells
    nothing.
    """
    return has_seeds(group) or tells_nothing(group)


def say_nothing_told(group: Group) -> str:
    """Say that a task tells nothing of the group's runs, and why."""
    trained = any(map(has_trained, group.rows))
    return (
        f"No {'training' if trained else 'run'} {answers_no_more(group, ' of this task')}, "
        f"{OF_TRAININGS if trained else OF_EVALUATIONS}"
    )


def answers_no_more(group: Group, of: str = "") -> str:
    """Return what goes behind "no run" where `is_at_floor`: "answers any example right"."""
    chance = max(_chance(row).mean() for row in group.rows)
    if not chance:
        return f"answers any example{of} right"
    return f"answers measurably more examples{of} right than a guess does ({chance:.3f})"
