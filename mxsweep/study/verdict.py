"""Answer what a sweep was made for: what quantizing costs, which knobs matter, what to use, and how sure that is.

Which configs there are, and which of them to use, `configs_to_use` judges. A runtime says who computes and is no
choice: where runs differ in it, each one's are chosen from by themselves.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mxsweep.config.runtimes import NO_RUNTIME, RUNTIMES
from mxsweep.results.groups import Group, Results
from mxsweep.results.knob_words import are_all_combinations, name_rows
from mxsweep.results.memory_taken import kv_bits_per_token
from mxsweep.results.metrics import betterness
from mxsweep.results.remedies import applied
from mxsweep.results.rows import Row, label
from mxsweep.results.task_size import task_size
from mxsweep.statistics.paired_tests import AccuracyDifference, MeanDifference, Z
from mxsweep.study.change_words import format_bits, format_measured, format_size, metric_noun
from mxsweep.study.comparison import Comparison
from mxsweep.study.configs_to_use import Config, Judged, find_configs, is_tested, is_worse_by_noise, judge_configs
from mxsweep.study.finding import join_with_and, run_ids
from mxsweep.study.headline import loss_metric
from mxsweep.study.metric_test import MetricTest, as_cost, metric_test
from mxsweep.study.tensor_kinds import kinds_of
from mxsweep.study.value_pairs import KnobValues
from mxsweep.study.value_words import summarize_values

_FOUND = 0.8416212335729143  # the normal distribution's 80 % quantile: what is found in 4 of 5 cases
MOST_NAMED = 4  # configs in a sentence


@dataclass(frozen=True)
class VerdictLine:
    """Hold a line of the answer: what it is about, a run that it names, and the start of the text that matters most.

    The start of what to use is the config and its cost.
    """

    title: str
    text: str
    runs: list[str]
    lead: str = ""


@dataclass(frozen=True)
class Verdict:
    """Hold the answer.

    Attributes:
        metric: that configs are compared by; None where none is known.
        configs: those with a finite loss, the least costly first.
        use: what to use; None where nothing is quantized, nothing is known, or runs are of several runtimes.
    """

    lines: list[VerdictLine]
    metric: str | None
    configs: list[Config]
    use: Config | None = None


def give_verdict(
    results: Results,
    group: Group,
    against: Mapping[Path, Comparison],
    values: Sequence[KnobValues],
    answers: Sequence[VerdictLine] = (),
) -> Verdict:
    """Give the verdict on a group of runs.

    Args:
        against: their comparisons with baselines, by the run's folder.
        answers: what is said in the place of what to use and of knobs, where runs were made for another question.
    """
    quantized = [row for row in group.rows if not row.is_baseline]
    metric = _metric(group, against)
    if metric is None or not quantized:
        return Verdict([], metric, [])
    configs = find_configs(results, quantized, metric, against)
    if not configs:
        return Verdict([], metric, [])
    if answers:
        cost = _say_cost(group, configs, metric, against, None)
        said = [*answers, cost, _say_sure_of_costs(configs, metric)]
        return Verdict([line for line in said if line is not None], metric, configs)
    judged = judge_configs(group, configs, metric)
    runtimes = list(dict.fromkeys(_runtime(row) for row in quantized))
    if len(runtimes) == 1:
        use, chosen = judged.use, [_say_use(judged, metric), _say_smallest(group, judged, metric)]
    else:
        use, chosen = None, _say_use_by_runtime(results, group, quantized, metric, against)
    has_baseline = any(row.is_baseline for row in group.rows)
    lines = [
        *chosen,
        _say_cost(group, configs, metric, against, use) if has_baseline else None,
        _say_knobs(values),
        _say_sure(judged, metric, _repeats(quantized, against)),
    ]
    return Verdict([line for line in lines if line is not None], metric, configs, use)


def _say_use_by_runtime(
    results: Results, group: Group, rows: Sequence[Row], metric: str, against: Mapping[Path, Comparison]
) -> list[VerdictLine | None]:
    """Say of each runtime under which there are several configs which of them to use."""
    by_runtime: dict[str, list[Row]] = {}
    for row in rows:
        by_runtime.setdefault(_runtime(row), []).append(row)
    lines: list[VerdictLine | None] = []
    for runtime, computed in by_runtime.items():
        configs = find_configs(results, computed, metric, against)
        if len(configs) > 1:
            who = RUNTIMES[runtime].phrase if runtime in RUNTIMES else "by the run's own rules"
            lines.append(_say_use(judge_configs(group, configs, metric), metric, f"{who}: "))
    return lines


def _runtime(row: Row) -> str:
    return label(row.knobs.get("runtime", NO_RUNTIME))


def _metric(group: Group, against: Mapping[Path, Comparison]) -> str | None:
    """Return the metric that tells most apart, or the main one where that was not compared by example."""
    names = [name for name in dict.fromkeys((loss_metric(group), group.main_metric())) if name]
    tested = [name for name in names if any(metric_test(each, name).paired for each in against.values())]
    return next(iter([*tested, *names]), None)


def _say_cost(
    group: Group, configs: Sequence[Config], metric: str, against: Mapping[Path, Comparison], use: Config | None
) -> VerdictLine | None:
    tested = [(one, one.test.paired) for one in configs if one.test.paired is not None]
    if not tested:
        return None
    noun = metric_noun(metric)
    (best, least), (worst, most) = tested[0], tested[-1]
    count = len(tested)
    bases = {base.run.path: base for one, _ in tested if (base := group.baseline_for(one.row)) is not None}
    base = next(iter(bases.values())) if len(bases) == 1 else None
    of = "" if base is None or metric not in base.metrics else f" {_level(base, metric)} unquantized: "
    if count == 1:
        verdict = "more than chance" if best.test.tells_apart else "no measurable difference"
        text = f"{noun}{of or ' against the unquantized model: '}{format_measured(metric, least)}, {verdict}"
    else:
        worse = sum(one.test.tells_apart and as_cost(metric, paired.difference) > 0 for one, paired in tested)
        text = (
            f"{noun}{of or ' against the unquantized model: '}{format_measured(metric, least)} "
            f"({_name_together([best], configs)}) to {format_measured(metric, most)} "
            f"({_name_together([worst], configs)}); {_of(worse, count)} configs significantly worse"
        )
    main = group.main_metric()
    if main and main != metric:
        text += _say_main([one for one, _ in tested], main, base, against, use)
    return VerdictLine("Cost", f"{text[0].upper()}{text[1:]}.", run_ids([best.row, worst.row]))


def _level(row: Row, metric: str) -> str:
    """Return a metric with its standard error, to two digits of that."""
    value, error = row.metrics[metric], row.metrics.get(f"{metric}_stderr", math.nan)
    if not (math.isfinite(value) and math.isfinite(error) and error > 0) or betterness(metric) > 0:
        return f"{value:.3f}" if betterness(metric) > 0 else f"{value:.4g}"
    digits = max(0, 1 - math.floor(math.log10(error)))
    return f"{value:,.{digits}f} (standard error {error:,.{digits}f})"


def _say_main(
    configs: Sequence[Config], main: str, base: Row | None, against: Mapping[Path, Comparison], use: Config | None
) -> str:
    """Say of the metric that matters most what it becomes in all configs, and what its own tests say."""
    values = [value for one in configs if (value := one.row.metrics.get(main)) is not None]
    if not values:
        return ""
    span = " to ".join(dict.fromkeys(f"{end:.3f}" for end in (max(values), min(values))))
    start = "" if base is None or main not in base.metrics else f" {_level(base, main)} becomes"
    tests = [test for one in configs if (test := metric_test(against.get(one.row.run.path), main)).paired is not None]
    told = sum(test.tells_apart for test in tests)
    differ = 0 < told < len(tests)
    own = _own_main(use, main, against, differ) if use and " to " in span and main in use.row.metrics else ""
    text = f". {metric_noun(main).capitalize()}{start} {span}{own}"
    if not tests:
        return text
    n = tests[0].paired.n if tests[0].paired is not None else 0
    if len(tests) == 1:
        return f"{text}, {'more than chance' if told else f'no measurable difference on {_examples(n)}'}"
    return f"{text}: {_of(told, len(tests))} significantly different on {_examples(n)}"


def _own_main(use: Config, main: str, against: Mapping[Path, Comparison], differ: bool) -> str:
    """Say what the metric that matters most is of what to use, and where tests `differ`, what its own says."""
    test = metric_test(against.get(use.row.run.path), main)
    told = f", {'' if test.tells_apart else 'not '}significantly different" if differ and test.paired else ""
    return f" ({use.row.metrics[main]:.3f} for what to use{told})"


def _examples(n: int) -> str:
    return f"{n:,} example{'s' * (n != 1)}"


def _of(some: int, count: int) -> str:
    if some == count:
        return "both" if count == 2 else f"all {count}"
    return f"{some or 'none'} of {count}"


def _say_knobs(values: Sequence[KnobValues]) -> VerdictLine | None:
    text = summarize_values(values)
    return VerdictLine("Knobs", text, []) if text else None


def _say_use(judged: Judged, metric: str, who: str = "") -> VerdictLine:
    configs, tests, equal, use = judged.configs, judged.tests, judged.equal, judged.use
    text = lead = f"{who}{use.one_name}{_bits(use)}{_measured_cost(use, metric)}"
    best = configs[0]
    if use.test.tells_apart and use.test.paired is not None:
        worse = as_cost(metric, use.test.paired.difference) > 0
        text += f", significantly {'worse' if worse else 'better'} than the baseline"
    compared = [test for test in tests if test is not None and is_tested(test, metric)]
    if len(equal) == 1 < len(configs) and not compared:
        few = any(test is not None and test.paired for test in tests)
        why = "The examples are too few for an interval" if few else "Nothing is known of single examples"
        text += f". {why}, so whether it is better than the next is not known"
    elif len(equal) > 1 and use is not best:
        test = next(test for one, test in zip(configs, tests, strict=True) if one is use)
        text += f". {_saving(use, best)} {_other_name(best, use)}, and "
        same = use in judged.identical
        text += "comes out the same on every example" if same else f"is{_not_worse(use, test, metric)}"
    elif len(equal) > 1:
        names = [one.name for one in equal if one is not use]
        more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
        text += f". It cannot be told from {'; '.join(names[:MOST_NAMED])}{more}, and is the cheapest of them"
    elif len(configs) > 1:
        certain = all(test.tells_apart for test in compared)
        every = "Every other config" if len(compared) == len(configs) - 1 else "Every other config that was compared"
        text += f". {every} is {'significantly worse than it' if certain else 'worse than it, by its own interval'}"
    weights = all("weight" in kinds for one in configs if (kinds := kinds_of(one.row)))
    costs = use.test.tells_apart and use.test.paired is not None and as_cost(metric, use.test.paired.difference) > 0
    if costs and weights and not any(applied(row.knobs) for one in configs for row in one.rows):
        text += ". No remedy was tried: ptq=gptq may win some of this back"
    return VerdictLine("Use", f"{text}.", run_ids([use.row]), lead)


def _other_name(config: Config, known: Config) -> str:
    """Name a config by what is different in it from one that was just named."""
    differ = [name for name in known.naming if _values_of(config, name) != _values_of(known, name)]
    return name_rows(config.rows, differ) if differ else config.name


def _values_of(config: Config, name: str) -> frozenset[str]:
    return frozenset(label(row.knobs.get(name, "")) for row in config.rows)


def _saving(use: Config, best: Config) -> str:
    """Say what a config saves of another, as the start of a sentence."""
    bits, dearer = use.row.bits_per_weight, best.row.bits_per_weight
    if bits is None or dearer is None or not bits < dearer:
        return "It is cheaper than"
    taken, whole = use.row.parameter_bytes, best.row.parameter_bytes
    share = f" ({(whole - taken) / whole:.1%} of the model)" if taken is not None and whole else ""
    return f"It saves {format_bits(dearer - bits)} bits a weight{share} against"


def _not_worse(use: Config, test: MetricTest | None, metric: str) -> str:
    """Say that a config is not worse than the best, as far as the examples show; more are named where there are."""
    if test is None or test.paired is None:
        return " not measurably worse"
    if is_worse_by_noise(test, metric):
        return f" not worse by more than the numerical noise ({format_measured(metric, test.paired)})"
    size = task_size(use.row)
    n = _examples(test.paired.n)
    until = (
        f", until more than {n} {'is' if test.paired.n == 1 else 'are'} measured,"
        if size is not None and size > (use.row.n or 0)
        else ""
    )
    on = "" if until else f" on {n}"
    return f"{until} not measurably worse{on} ({format_measured(metric, test.paired)})"


def _measured_cost(config: Config, metric: str) -> str:
    measured = config.test.paired
    return "" if measured is None else f": {metric_noun(metric)} {format_measured(metric, measured)}"


def _bits(config: Config) -> str:
    bits = config.row.bits_per_weight
    if bits is None:
        return _in_brackets(config.beside)
    cached = kv_bits_per_token(config.row)
    if cached is not None and (kinds := kinds_of(config.row)) and kinds <= {"key", "value"}:
        return _in_brackets(config.beside, f"{cached:,.0f} bits a cached token")
    known = config.row.number("diagnostics", "bits_per_weight") is not None
    of = "weight of the decoder blocks" if known else "parameter"
    return _in_brackets(config.beside, f"{format_bits(bits)} bits a {of}")


def _in_brackets(*parts: str) -> str:
    text = "; ".join(filter(None, parts))
    return f" ({text})" if text else ""


def _say_smallest(group: Group, judged: Judged, metric: str) -> VerdictLine | None:
    """Name what to use at the fewest bits, where that is not what to use: by the same rule, of the configs there."""
    sized = [one for one in judged.configs if one.row.bits_per_weight is not None]
    least = min((one.row.bits_per_weight or 0.0 for one in sized), default=math.nan)
    there = [one for one in sized if one.row.bits_per_weight == least]
    if not there or judged.use in there:
        return None
    chosen = judge_configs(group, there, metric).use
    lead = f"{chosen.one_name}{_bits(chosen)}{_measured_cost(chosen, metric)}"
    return VerdictLine("Smallest", f"{lead}.", run_ids([chosen.row]), lead)


def _repeats(rows: Sequence[Row], against: Mapping[Path, Comparison]) -> int:
    """Return how many examples comparisons left out, since they ask the same as others."""
    return max((against[row.run.path].repeats for row in rows if row.run.path in against), default=0)


def _say_sure(judged: Judged, metric: str, repeats: int) -> VerdictLine | None:
    """Say the smallest difference that this many examples show in 4 of 5 cases, by the median width of intervals.

    Those are of the configs that more examples may tell from the best, where there are any, else of all that are not
    identical with it, against it.

    Args:
        repeats: examples that were left out, since they ask the same as others.
    """
    configs, tests = judged.configs, judged.tests
    several, unclear = len(configs) > 1, len(judged.unclear) > 1
    told = judged.unclear if unclear else [one for one in configs if one not in judged.identical]
    of = [test for one, test in zip(configs, tests, strict=True) if one in told]
    paired = [test.paired for test in (of if several else [configs[0].test]) if test is not None and test.paired]
    size = _smallest_found(paired)
    if size is None:
        return None
    between = "" if unclear else " between two configs" if several else " between the config and its baseline"
    found = _found_text(paired[0].n, metric, size, several, between)
    lead, more = "", ""
    if unclear:
        lead = f"Too few examples to tell {_name_together(judged.unclear)} apart"
        more = _of_whole_task(judged.use.row, metric, size)
    elif several and betterness(metric) and all(test is None or test.tells_apart for test in tests):
        lead = "Enough examples to tell the best from all others"
    text = f"{lead}: {found}{more}" if lead else f"{found[0].upper()}{found[1:]}"
    once = f" Left out, since they ask what others do: {_examples(repeats)}." if repeats else ""
    return VerdictLine("How sure", f"{text}.{once} {_say_noise(configs)}", [], lead)


def _smallest_found(paired: Sequence[AccuracyDifference | MeanDifference]) -> float | None:
    """Return the difference that is found in 4 of 5 cases, by the median width of these intervals; None of none."""
    halves = sorted((one.high - one.low) / 2 for one in paired if math.isfinite(one.high - one.low))
    half = halves[len(halves) // 2] if halves else 0.0
    return half * (Z + _FOUND) / Z if half > 0 else None


def _found_text(n: int, metric: str, size: float, several: bool, between: str) -> str:
    typically = "typically " if several else ""
    of = f"{format_size(metric, size)} in {metric_noun(metric)}{between}"
    return f"{_examples(n)} {typically}show{'s' * (n == 1)} a difference of {of} in 4 of 5 cases"


def _say_sure_of_costs(configs: Sequence[Config], metric: str) -> VerdictLine | None:
    """Say the smallest difference from the baseline that this many examples show in 4 of 5 cases."""
    paired = [one.test.paired for one in configs if one.test.paired is not None]
    size = _smallest_found(paired)
    if size is None:
        return None
    found = _found_text(paired[0].n, metric, size, len(paired) > 1, " between a config and its baseline")
    return VerdictLine("How sure", f"{found}. {_say_noise(configs)}", [])


def _name_together(configs: Sequence[Config], among: Sequence[Config] = ()) -> str:
    """Name configs at once, where they are all combinations of their values.

    Knobs are left out that have the same several values in each of the configs or, where given, of those `among` which
    they stand: those tell nothing of them.
    """
    named = [name for name in configs[0].naming if not _is_open(among or configs, name)]
    rows = [row for one in configs for row in one.rows]
    if are_all_combinations(rows, named):
        return name_rows(rows, named, configs[0].usual)
    return join_with_and([one.name for one in configs]) if len(configs) < 3 else f"the best {len(configs)} configs"


def _is_open(configs: Sequence[Config], name: str) -> bool:
    """Return whether each of the configs has the same several values of a knob, so that it tells nothing of them."""
    values = {_values_of(one, name) for one in configs}
    return len(values) == 1 and len(values.pop()) > 1


def _of_whole_task(row: Row, metric: str, size: float) -> str:
    """Say the difference that the whole task would show, given that of the examples measured."""
    whole, n = task_size(row), row.n
    if whole is None or not n:
        return ""
    if whole <= n:
        return "; the task has no more examples"
    return f"; all {whole:,} of the task, one of about {format_size(metric, size * math.sqrt(n / whole))}"


def _say_noise(configs: Sequence[Config]) -> str:
    if any(one.test.above_floor is not None for one in configs):
        return "Numerical noise was measured, and a difference within it is called none."
    return "Numerical noise was not measured (noise=4 does)."
