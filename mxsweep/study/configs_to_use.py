"""Find the configs of a group of runs, and judge which of them to use.

Runs that came out the same against the same baseline are one config. The config to use is the cheapest of those that
are not worse than the best, the interval of whose difference from it reaches 0, and that no other beats, which takes
no more memory and costs less by its estimate: without that the widest interval would win. The cheapest takes the least
memory, as `memory_front` counts it; where that is not known nothing is beaten, and the cheapest has the fewest bits a
weight; of equals the fewest bits a cached token, then the fewest remedies. One that chance alone put ahead is never
called the best.
"""

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mxsweep.formats.cached_bits import USUAL_CONTEXT
from mxsweep.results.groups import Group, Results
from mxsweep.results.knob_words import goes_with_format, name_rows, usual_text, usual_values
from mxsweep.results.memory_taken import kv_bits_per_token
from mxsweep.results.remedies import applied, no_remedies
from mxsweep.results.rows import Row, label
from mxsweep.study.compared_metric import MetricTest, as_cost, metric_test
from mxsweep.study.comparison import Comparison, compare_pairs
from mxsweep.study.headline import loss
from mxsweep.study.memory_front import memory_of

SAYING_WHAT = ("format", "kv_quant", "ptq", "rotation")  # and, after what differs, the other remedies


@dataclass(frozen=True)
class Config:
    """Hold a config, which is all the runs that came out the same; the first is the cheapest.

    Attributes:
        name: in words, by what differs between configs.
        one_name: of the cheapest run by itself, with what all configs have in common.
        test: of the verdict's metric against the baseline.
        naming: the knobs that differ between configs.
        usual: the values that go unsaid, by knob.
        memory: the bytes that the cheapest run takes, keys and values of a sequence included; None if not known.
    """

    rows: list[Row]
    name: str
    one_name: str
    test: MetricTest
    naming: list[str]
    usual: dict[str, Any]
    memory: float | None

    @property
    def beside(self) -> str:
        """Return what the cheapest run has of the usual values, which go unsaid in names; "" of none."""
        return usual_text(self.usual, self.row)

    @property
    def row(self) -> Row:
        """Return the run that stands for all."""
        return self.rows[0]


@dataclass(frozen=True)
class Judged:
    """Hold configs, the least costly first, compared with the best of them.

    Attributes:
        tests: of each against the best; None of the best itself.
        equal: those that are not worse than the best.
        unclear: of these the best, and each outcome that more examples may tell from it.
        identical: those that came out as the best did on every example.
        beaten: of the equal those that another config beats in memory and by its estimate.
        use: the cheapest of the other equal ones.
    """

    configs: list[Config]
    tests: list[MetricTest | None]
    equal: list[Config]
    unclear: list[Config]
    identical: list[Config]
    beaten: list[Config]
    use: Config

    @property
    def too_few(self) -> bool:
        """Return whether more examples may tell from the best what these do not."""
        return len(self.unclear) > 1


def judge_configs(group: Group, configs: list[Config], metric: str) -> Judged:
    """Compare configs, the least costly first, with the best of them, and choose the one to use."""
    best, others = configs[0], configs[1:]
    compared = compare_pairs(group, [(one.row, best.row) for one in others])  # p adjusted over the others
    tests = [metric_test(each, metric) for each in compared]
    known = list(zip(others, compared, tests, strict=True))
    identical = [one for one, comparison, _ in known if comparison.identical]
    equal = [best, *(one for one, _, test in known if one in identical or _is_not_worse(test, metric))]
    unclear = {
        outcome_of(one.row, comparison): one
        for one, comparison, test in reversed(known)
        if one in equal and one not in identical and not is_worse_by_noise(test, metric)
    }
    open_to_more = [best, *reversed(unclear.values())]
    beaten = [one for one in equal if any(_beats(other, one, metric) for other in configs)]  # never the best
    use = min((one for one in equal if one not in beaten), key=lambda one: (size_of(one), _price(one.row, metric)))
    return Judged(configs, [None, *tests], equal, open_to_more, identical, beaten, use)


def find_configs(
    results: Results,
    rows: Sequence[Row],
    metric: str,
    against: Mapping[Path, Comparison],
    context: int = USUAL_CONTEXT,
) -> list[Config]:
    """Return the configs of quantized rows with a finite loss, the least costly first.

    Args:
        context: the tokens whose keys and values count as memory.
    """
    names = [n for n in results.shown if len({label(row.knobs[n]) for row in rows if n in row.knobs}) > 1]
    names = [n for n in names if n not in goes_with_format(names, rows)]
    common, usual = _common(rows, names), usual_values(rows, names)
    others = [name for name in common if name not in SAYING_WHAT]
    whole = [*(name for name in common if name in SAYING_WHAT), *names, *others]
    alike: dict[Hashable, list[Row]] = {}
    for row in rows:
        if math.isfinite(loss(row, metric)):
            alike.setdefault(outcome_of(row, against.get(row.run.path)), []).append(row)
    configs = []
    for same in alike.values():
        ordered = sorted(same, key=lambda row: _price(row, metric))
        test = metric_test(against.get(ordered[0].run.path), metric)
        name, one_name = name_rows(ordered, names, usual), name_rows(ordered[:1], whole, usual)
        sizes = memory_of(ordered[0], context)
        configs.append(Config(ordered, name, one_name, test, names, usual, None if sizes is None else sum(sizes)))
    return sorted(configs, key=lambda one: _cost(one, metric))


def _common(rows: Sequence[Row], names: Sequence[str]) -> list[str]:
    """Return the knobs beside `names` that say what is quantized, and how, in all of the rows."""
    found, off = [], no_remedies()
    for name in dict.fromkeys((*SAYING_WHAT, *off)):
        values = {label(row.knobs[name]) for row in rows if name in row.knobs}
        if name not in names and len(values) == 1 and values != {label(off.get(name))}:
            found.append(name)
    return found


def outcome_of(row: Row, comparison: Comparison | None) -> Hashable:
    """Return an equal value for runs that came out the same against the same other run; their own for all else."""
    if comparison is None or comparison.n == 0:
        return row.run.path
    return comparison.other.run.path, comparison.test


def count_outcomes(pairs: Iterable[Sequence[Row]], against: Mapping[Path, Comparison]) -> int:
    """Return how many pairs of runs came out each in its own way: those that came out the same count once."""
    return len({tuple(outcome_of(row, against.get(row.run.path)) for row in pair) for pair in pairs})


def _cost(config: Config, metric: str) -> float:
    return loss(config.row, metric) if config.test.paired is None else as_cost(metric, config.test.paired.difference)


def size_of(config: Config) -> float:
    """Return the bytes that a config takes; infinite where they are not known."""
    return math.inf if config.memory is None else config.memory


def _beats(one: Config, other: Config, metric: str) -> bool:
    """Return whether a config takes no more memory than another, and costs less by its estimate."""
    if one.memory is None or other.memory is None:
        return False
    return one.memory <= other.memory and _cost(one, metric) < _cost(other, metric)


def _price(row: Row, metric: str) -> tuple[float, bool, float, int, float]:
    """Return what makes one config cheaper than another of the same memory, the first that differs."""
    bits, cached = row.bits_per_weight, kv_bits_per_token(row)
    plain_kv = label(row.knobs.get("kv_quant")) == "none"
    return (
        math.inf if bits is None else bits,
        plain_kv,
        math.inf if cached is None else cached,
        len(applied(row.knobs)),
        loss(row, metric),
    )


def _least_cost(test: MetricTest, metric: str) -> float:
    """Return the least that a config may cost by its own interval; NaN where it has none, as from one example."""
    if test.paired is None:
        return math.nan
    ends = as_cost(metric, test.paired.low), as_cost(metric, test.paired.high)
    return math.nan if any(map(math.isnan, ends)) else min(ends)


def is_tested(test: MetricTest | None, metric: str) -> bool:
    """Return whether a config was compared by a test that has an interval."""
    return test is not None and not math.isnan(_least_cost(test, metric))


def _is_not_worse(test: MetricTest, metric: str) -> bool:
    """Return whether a config was compared with the best, and is not worse by more than chance and noise.

    By its own interval: the error to avoid is to recommend what is worse, which a correction for the number of configs
    makes likelier.
    """
    return _least_cost(test, metric) <= 0 or is_worse_by_noise(test, metric)


def is_worse_by_noise(test: MetricTest, metric: str) -> bool:
    """Return whether a config is worse by more than chance, which more examples do not change, but not than noise."""
    return _least_cost(test, metric) > 0 and test.above_floor is False
