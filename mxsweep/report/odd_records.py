"""Find the records that no report can be made of, so that it is made of the others.

A record that somebody else wrote may hold anything in the place of a number, a text or a mapping, in more places than
could be checked one by one. Where a report fails, each run is tried by itself, and then those that fail together are
looked for: a few that do, and which of them the others do without.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mxsweep.results.groups import read_results
from mxsweep.results.record import Folders, find_runs

if TYPE_CHECKING:
    from mxsweep.study.memory_terms import Terms
    from mxsweep.study.published import Reference

log = logging.getLogger(__name__)

SENSELESS = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError)
MOST_TOGETHER = 20  # runs that are looked for which fail only beside others
_SUSPECTS, _BESIDE = 8, 5  # of those that fail together, and of others that each is tried with

WhyNot = Callable[[Sequence[Path]], str | None]


def odd_runs(dirs: Folders, known: Collection[Path], reference: Reference | None, terms: Terms) -> dict[Path, str]:
    """Return why runs cannot be reported, by their resolved folders; none where the fault lies in no record.

    Args:
        dirs: as `collect` takes them.
        known: resolved folders of runs that are left out anyway.
        reference, terms: as the report is made with them.
    """
    runs = [run.path for run in find_runs(dirs) if run.record is not None and run.path.resolve() not in known]

    def why_not(folders: Sequence[Path]) -> str | None:
        return _why_not(folders, reference, terms)

    odd = {path: why for path in runs if (why := why_not([path]))}
    odd |= odd_together([path for path in runs if path not in odd], why_not)
    return {path.resolve(): why for path, why in odd.items()}


def odd_together(runs: Sequence[Path], why_not: WhyNot) -> dict[Path, str]:
    """Return why runs of which each can be reported by itself cannot be beside others, MOST_TOGETHER at the most.

    It takes few reports for each run that is found, whatever their number.
    """
    odd: dict[Path, str] = {}
    left = list(runs)
    while len(odd) < MOST_TOGETHER and why_not(left):
        few = _few_that_fail(left, why_not)
        path = _blamed(few, left, why_not)
        odd[path] = why_not(few) or ""
        left.remove(path)
    return odd


def _few_that_fail(runs: list[Path], why_not: WhyNot) -> list[Path]:
    """Return neighbours among runs that fail together, and do not without the first of them, nor without the last."""
    works, fails = 0, len(runs)
    while fails - works > 1:
        middle = (works + fails) // 2
        works, fails = (works, middle) if why_not(runs[:middle]) else (middle, fails)
    runs, fails, works = runs[:fails], 0, fails
    while works - fails > 1:
        middle = (works + fails) // 2
        works, fails = (works, middle) if why_not(runs[middle:]) else (middle, fails)
    return runs[fails:]


def _blamed(few: Sequence[Path], runs: Sequence[Path], why_not: WhyNot) -> Path:
    """Return the one at whose absence the others can be reported, or else that fails beside more of them."""
    suspects = [few[-1], *few[:-1]][:_SUSPECTS]
    for suspect in suspects:
        if why_not([path for path in runs if path != suspect]) is None:
            return suspect
    others = [path for path in runs if path not in suspects][:_BESIDE]
    return max(suspects, key=lambda suspect: sum(why_not([suspect, other]) is not None for other in others))


def _why_not(folders: Sequence[Path], reference: Reference | None, terms: Terms) -> str | None:
    """Return why no report can be made of runs; None where it can."""
    from mxsweep.report.written_report import report_text, write_files
    from mxsweep.study.group_study import study_groups

    if not folders:
        return None
    try:
        results = read_results(folders)
        studied = study_groups(results, terms.context)
        report_text(results, studied, reference, terms)
        with tempfile.TemporaryDirectory(prefix="mxsweep_") as temporary:
            write_files(results, studied, reference, terms, Path(temporary), [], draw=False)
    except SENSELESS as error:
        # It may be a fault of a report's code, too, which is found by where it fails.
        log.debug("no report can be made of %s", ", ".join(map(str, folders)), exc_info=True)
        return f"makes no sense in its record: {type(error).__name__}: {error}"
    return None
