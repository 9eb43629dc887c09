"""Make the tables of what trained models lose: the ranking of configs, and which of them can be told apart."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from mxsweep.report.table import Cell, Table, number_cell
from mxsweep.report.wording import ABSENT, p_value
from mxsweep.results.groups import Results
from mxsweep.statistics.paired_tests import ALPHA
from mxsweep.study.change_words import format_bits
from mxsweep.study.finding import format_pairs
from mxsweep.study.kept_layers import also_kept, bits_differ
from mxsweep.study.ordering_verdicts import AGREES, CANNOT_TELL, DISAGREES, judge_published
from mxsweep.study.published import Reference
from mxsweep.study.trained_configs import LossDifference, TrainedConfig
from mxsweep.study.training_ranking import Pair, Ranked, TrainingStudy, study_trainings

ON_ONE_SEED = " on this seed"
MOST_PAIRS = 45  # in a table, before those of neighbours alone are shown
RANKING_NOTE = (
    "Δ is the config's validation loss minus its baseline's, nats a token, over the same seeds (weights, data and "
    "their order); […] is the 95 % interval of the paired t test, p is adjusted by Holm's method over the configs "
    "that share several seeds, and by itself over those that share one, of which it says nothing but of that seed. A "
    "training that diverged has no loss: its config stands last, though it diverged with one seed of several, and what "
    "is said of its loss is said of its other seeds."
)
PAIRS_NOTE = (
    "A config and its own baseline are compared in the ranking. p is adjusted by Holm's method over all pairs that "
    "share several seeds, and by itself over those that share one, of which it says nothing but of that seed. Where "
    "three quantized configs or more have the same seeds, the spread is that of all of them, what config and seed "
    "explain taken out; with a baseline it is the pair's own."
)

VERDICT_NOTE = (
    "A number is how much worse the first is than the second (of gains, how much less it gains), with its 95 % "
    "interval. One step of an ordering agrees where that interval is on the published side of 0, disagrees where it is "
    "on the other side, and cannot be told where it holds 0; nor can losses with one seed in common. A difference "
    "agrees where ours is within what was published, give or take 0.005 nats: models and data are others."
)


def ranking_table(study: TrainingStudy) -> Table:
    """Return the configs, the best first, with what each loses to the baseline.

    What each leaves unquantized beside what all do, and its bits a weight, stand there where configs differ in it.
    """
    kept, has_bits = also_kept(study.configs), bits_differ(study.configs)
    of_format = [*(["also kept"] if kept else []), *(["bits/weight"] if has_bits else [])]
    columns = ["seeds", "loss", "Δ loss", "Δ loss, 95 %", "p", "is", "over", "tokens/sec", "speed / baseline"]
    has_diverged = any(each.config.diverged for each in study.ranked)
    rows = [
        [
            Cell(each.config.name),
            *([Cell(", ".join(kept.get(each.config.name, ())) or ABSENT)] if kept else []),
            *([_bits_cell(each.config)] if has_bits else []),
            *_cells(each),
            *([_diverged_cell(each.config)] if has_diverged else []),
        ]
        for each in study.ranked
    ]
    titles = ["config", *of_format, *columns, *(["diverged"] if has_diverged else [])]
    return Table("", titles, rows, frozenset({0, 1} if kept else {0}))


def pair_table(study: TrainingStudy) -> tuple[Table, str]:
    """Return pairs of configs with their differences, and a sentence on how many can be told apart.

    All pairs, or of more than MOST_PAIRS those that are neighbours in the ranking.
    """
    shown: Sequence[Pair] = study.pairs
    places = {id(config): place for place, config in enumerate(study.configs)}
    if len(shown) > MOST_PAIRS:
        shown = [pair for pair in shown if abs(places[id(pair.worse)] - places[id(pair.better)]) == 1]
    rows = [
        [
            Cell(pair.better.name),
            Cell(pair.worse.name),
            *_difference_cells(pair.difference),
            Cell(p_value(pair.p), pair.p),
            Cell(("told apart" if pair.told_apart else "not told apart") + ON_ONE_SEED * pair.difference.on_one_seed),
            Cell(_over(pair.difference)),
        ]
        for pair in shown
    ]
    apart = [pair for pair in study.pairs if pair.told_apart]
    said = f"{len(apart)} of {format_pairs(len(study.pairs))} of configs can be told apart by their validation losses"
    alone = sum(pair.difference.on_one_seed for pair in apart)
    said += f", {alone} of them on one seed alone." if alone else "."
    if len(shown) < len(study.pairs):
        said += " Neighbours in the ranking:"
    return Table("", ["better", "worse", "Δ loss", "Δ loss, 95 %", "p", "are", "over"], rows, frozenset({0, 1})), said


def verdict_table(results: Results, reference: Reference) -> tuple[Table, str]:
    """Return what the trainings of each group say of what was published of such, and a sentence that counts."""
    published = reference.trainings
    rows: list[list[Cell]] = []
    studied = [(group, study) for group in results.groups if (study := study_trainings(results, group)) is not None]
    counts = dict.fromkeys((AGREES, DISAGREES, CANNOT_TELL), 0)
    has_runs = [False] * (len(published.orderings) + len(published.differences))
    for group, study in studied:
        for place, one in enumerate(judge_published(published, study)):
            if not one.is_studied:
                continue
            has_runs[place] = True
            counts[one.verdict] += 1
            where = [Cell(group.title)] if len(studied) > 1 else []
            rows.append([Cell(one.name), *where, Cell(one.verdict), Cell(one.ours), Cell(one.source)])
    columns = ["published", *(["group"] if len(studied) > 1 else []), "this study", "numbers", "source"]
    if not studied:
        return Table("", columns, []), "Nothing was trained here, so that nothing is said of published trainings."
    without_runs = has_runs.count(False)
    where_judged = ", each judged in every group that has runs of it," if len(studied) > 1 else ""
    said = ", ".join(f"{verdict} with {count}" for verdict, count in counts.items() if verdict != CANNOT_TELL)
    return Table("", columns, rows, frozenset(range(len(columns)))), (
        f"Of {len(has_runs)} published orderings and differences{where_judged} this study {said}, and cannot tell of "
        f"{counts[CANNOT_TELL]}{f'; of the other {without_runs} it has no run' if without_runs else ''}. {VERDICT_NOTE}"
    )


def _cells(each: Ranked) -> list[Cell]:
    config = each.config
    speeds = [speed for row in config.rows.values() if (speed := row.number("training", "tokens_per_s")) is not None]
    verdict = ABSENT if each.p is None else "significant" if each.p < ALPHA else "not significant"
    if each.p is not None and each.on_one_seed:
        verdict += ON_ONE_SEED
    return [
        Cell(str(len(config.rows)), len(config.rows)),
        number_cell(None if math.isnan(config.loss) else config.loss, ".4f"),
        *_difference_cells(each.difference),
        Cell(p_value(each.p), each.p),
        Cell(verdict),
        Cell(_over(each.difference)),
        number_cell(float(np.mean(speeds)) if speeds else None, ",.0f"),
        number_cell(each.speed, ".2f"),
    ]


def _bits_cell(config: TrainedConfig) -> Cell:
    bits = config.bits_per_weight
    return Cell(ABSENT if bits is None else format_bits(bits), bits)


def _difference_cells(difference: LossDifference | None) -> list[Cell]:
    if difference is None:
        return [Cell(ABSENT), Cell(ABSENT)]
    one = difference.measured
    has_interval = not math.isnan(one.low)
    interval = Cell(f"[{one.low:+.4f}, {one.high:+.4f}]", one.low) if has_interval else Cell(ABSENT)
    return [number_cell(one.difference, "+.4f"), interval]


def _over(difference: LossDifference | None) -> str:
    return ABSENT if difference is None else f"{difference.measured.n} {difference.over}"


def _diverged_cell(config: TrainedConfig) -> Cell:
    if not config.diverged:
        return Cell(ABSENT)
    steps = ", ".join("?" if math.isnan(step) else f"{step:g}" for step in config.diverged.values())
    return Cell(f"{len(config.diverged)} of {len(config.rows)} (step {steps})", len(config.diverged))
