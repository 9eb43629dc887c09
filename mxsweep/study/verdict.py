"""Answer what a sweep was made for: what quantizing costs, which knobs matter, what to use, and how sure that is.

Which configs there are, and which of them to use, `configs_to_use` judges. A runtime says who computes and is no
choice: where runs differ in it, each one's are chosen from by themselves.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mxsweep.config.runtimes import NO_RUNTIME, RUNTIMES
from mxsweep.formats.cached_bits import USUAL_CONTEXT
from mxsweep.results.baselines import run_command
from mxsweep.results.groups import Group, Results
from mxsweep.results.knob_words import name_rows
from mxsweep.results.memory_taken import kv_bits_per_token, tokens_held
from mxsweep.results.metrics import betterness, known_metric
from mxsweep.results.remedies import applied
from mxsweep.results.rows import Row, label
from mxsweep.results.task_size import task_size
from mxsweep.results.trainings import has_trained
from mxsweep.study.change_words import format_bits, format_measured, metric_noun
from mxsweep.study.compared_metric import MetricTest, as_cost, metric_test
from mxsweep.study.comparison import Comparison
from mxsweep.study.configs_to_use import (
    Config,
    Judged,
    find_configs,
    is_tested,
    is_worse_by_noise,
    judge_configs,
    size_of,
)
from mxsweep.study.finding import run_ids
from mxsweep.study.headline import loss_metric
from mxsweep.study.how_sure import count_repeats, say_sure, say_sure_of_costs
from mxsweep.study.silent_tasks import answers_no_more, is_at_floor
from mxsweep.study.tensor_kinds import kinds_of
from mxsweep.study.value_pairs import KnobValues
from mxsweep.study.value_words import summarize_values
from mxsweep.study.verdict_words import VerdictLine, name_together, say_examples, values_of

MOST_NAMED = 4  # configs in a sentence


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
    context: int = USUAL_CONTEXT,
) -> Verdict:
    """Give the verdict on a group of runs.

    Args:
        against: their comparisons with baselines, by the run's folder.
        answers: what is said in the place of what to use and of knobs, where runs were made for another question.
        context: the tokens whose keys and values count as memory, as many as the model holds at most.
    """
    context = tokens_held(group.rows, context)
    quantized = [row for row in group.rows if not row.is_baseline]
    metric = _metric(group, against)
    if metric is None or not quantized:
        return Verdict([], metric, [])
    configs = find_configs(results, quantized, metric, against, context)
    if not configs:
        return Verdict([], metric, [])
    if answers:
        cost = _say_cost(group, configs, metric, against, None)
        said = [*answers, cost, say_sure_of_costs(configs, metric)]
        return Verdict([line for line in said if line is not None], metric, configs)
    judged = judge_configs(group, configs, metric)
    runtimes = list(dict.fromkeys(_runtime(row) for row in quantized))
    if len(runtimes) == 1:
        use, chosen = judged.use, [_say_use(judged, metric), _say_smallest(group, judged, metric)]
    else:
        use, chosen = None, _say_use_by_runtime(results, group, quantized, metric, against, context)
    has_baseline = any(row.is_baseline for row in group.rows)
    lines = [
        *chosen,
        _say_cost(group, configs, metric, against, use) if has_baseline else None,
        say_sure(judged, metric, count_repeats(quantized, against)),
        _say_knobs(values),
    ]
    return Verdict([line for line in lines if line is not None], metric, configs, use)


def _say_use_by_runtime(
    results: Results,
    group: Group,
    rows: Sequence[Row],
    metric: str,
    against: Mapping[Path, Comparison],
    context: int,
) -> list[VerdictLine | None]:
    """Say of each runtime under which there are several configs which of them to use."""
    by_runtime: dict[str, list[Row]] = {}
    for row in rows:
        by_runtime.setdefault(_runtime(row), []).append(row)
    lines: list[VerdictLine | None] = []
    for runtime, computed in by_runtime.items():
        configs = find_configs(results, computed, metric, against, context)
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
            f"({name_together([best], configs)}) to {format_measured(metric, most)} "
            f"({name_together([worst], configs)}); {_of(worse, count)} configs significantly worse"
        )
    main = group.main_metric()
    if main and main != metric:
        says_nothing = known_metric(main).counts and is_at_floor(group)
        text += (
            f". {metric_noun(main).capitalize()} says nothing, as no run {answers_no_more(group)}"
            if says_nothing
            else _say_main([one for one, _ in tested], main, base, against, use)
        )
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
        return f"{text}, {'more than chance' if told else f'no measurable difference on {say_examples(n)}'}"
    return f"{text}: {_of(told, len(tests))} significantly different on {say_examples(n)}"


def _own_main(use: Config, main: str, against: Mapping[Path, Comparison], differ: bool) -> str:
    """Say what the metric that matters most is of what to use, and where tests `differ`, what its own says."""
    test = metric_test(against.get(use.row.run.path), main)
    told = f", {'' if test.tells_apart else 'not '}significantly different" if differ and test.paired else ""
    return f" ({use.row.metrics[main]:.3f} for what to use{told})"


def _of(some: int, count: int) -> str:
    if some == count:
        return "both" if count == 2 else f"all {count}"
    return f"{some or 'none'} of {count}"


def _say_knobs(values: Sequence[KnobValues]) -> VerdictLine | None:
    text = summarize_values(values)
    return VerdictLine("Knobs", text, []) if text else None


def _say_use(judged: Judged, metric: str, who: str = "") -> VerdictLine:
    configs, tests, equal, use = judged.configs, judged.tests, judged.equal, judged.use
    open_yet = "Too few examples to choose; for now: " if judged.too_few else ""
    text = lead = f"{who}{open_yet}{use.one_name}{_bits(use)}{_measured_cost(use, metric)}"
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
        which = f"those that no other config beats in memory and in {metric_noun(metric)}" if judged.beaten else "them"
        text += f". It cannot be told from {'; '.join(names[:MOST_NAMED])}{more}, and is the cheapest of {which}"
    elif len(configs) > 1:
        certain = all(test.tells_apart for test in compared)
        every = "Every other config" if len(compared) == len(configs) - 1 else "Every other config that was compared"
        text += f". {every} is {'significantly worse than it' if certain else 'worse than it, by its own interval'}"
    weights = all("weight" in kinds for one in configs if (kinds := kinds_of(one.row)))
    costs = use.test.tells_apart and use.test.paired is not None and as_cost(metric, use.test.paired.difference) > 0
    rows = [row for one in configs for row in one.rows]
    if costs and weights and not any(applied(row.knobs) or has_trained(row) for row in rows):
        text += ". No remedy was tried: ptq=gptq may win some of this back"
    return VerdictLine("Use", f"{text}.", run_ids([use.row]), lead, run_command(use.row))


def _other_name(config: Config, known: Config) -> str:
    """Name a config by what is different in it from one that was just named."""
    differ = [name for name in known.naming if values_of(config, name) != values_of(known, name)]
    return name_rows(config.rows, differ) if differ else config.name


def _saving(use: Config, best: Config) -> str:
    """Say what a config saves of another, as the start of a sentence."""
    bits, dearer = use.row.bits_per_weight, best.row.bits_per_weight
    taken, whole = use.row.parameter_bytes, best.row.parameter_bytes
    is_larger = taken is not None and whole is not None and taken > whole  # by the matrices of rotation=wush
    if bits is None or dearer is None or not bits < dearer or is_larger:
        less = size_of(use) < size_of(best) < math.inf
        return f"It takes {1 - size_of(use) / size_of(best):.1%} less memory than" if less else "It is cheaper than"
    share = f" ({(whole - taken) / whole:.1%} of the model)" if taken is not None and whole else ""
    return f"It saves {format_bits(dearer - bits)} bits a weight{share} against"


def _not_worse(use: Config, test: MetricTest | None, metric: str) -> str:
    """Say that a config is not worse than the best, as far as the examples show; more are named where there are."""
    if test is None or test.paired is None:
        return " not measurably worse"
    if is_worse_by_noise(test, metric):
        return f" not worse by more than the numerical noise ({format_measured(metric, test.paired)})"
    size = task_size(use.row)
    n = say_examples(test.paired.n)
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
    """Name what to use at the least memory, where that is not what to use: by the same rule, of the configs there.

    Where the memory is not known of all, at the fewest bits a weight.
    """
    known = all(one.memory is not None for one in judged.configs)
    sizes = [size_of(one) if known else one.row.bits_per_weight for one in judged.configs]
    least = min((size for size in sizes if size is not None), default=None)
    there = [one for one, size in zip(judged.configs, sizes, strict=True) if size == least]
    if least is None or judged.use in there:
        return None
    chosen = judge_configs(group, there, metric).use
    lead = f"{chosen.one_name}{_bits(chosen)}{_measured_cost(chosen, metric)}"
    return VerdictLine("Smallest", f"{lead}.", run_ids([chosen.row]), lead, run_command(chosen.row))
