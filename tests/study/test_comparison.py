"""Runs compared: with baselines, knob by knob, over the noise floor, and the reasons not to."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from helpers.made_runs import outcomes, put
from scipy import stats

from mxsweep.report.data_files import load
from mxsweep.results.groups import Group, Results, read_results
from mxsweep.results.rows import Row
from mxsweep.study.comparison import Comparison, compare_with_baselines, explain_groups
from mxsweep.study.group_study import study_group
from mxsweep.study.headline import loss_metric
from mxsweep.study.knob_effects import find_knob_effects
from mxsweep.study.noise_floor import Noise
from mxsweep.study.paired_values import compare_share_closed

N = 200
BASE = -np.random.default_rng(0).gamma(0.7, 2, N)


def worse(by: float, seed: int = 1) -> pd.DataFrame:
    """Samples of a run that is worse than BASE by so many nats an example, and noise."""
    return outcomes(BASE - np.random.default_rng(seed).normal(by, 0.1, N))


def only(tmp_path: Path) -> tuple[Results, Group]:
    results = read_results(tmp_path)
    (group,) = results.groups
    return results, group


def named(group: Group, name: str) -> Row:
    (row,) = [row for row in group.rows if row.run.path.name == name]
    return row


def compared(tmp_path: Path) -> dict[str, Comparison]:
    return {path.name: comparison for path, comparison in compare_with_baselines(only(tmp_path)[1]).items()}


def repeats(acc: Sequence[float], perplexity: Sequence[float]) -> dict[str, Any]:
    return {"noise": {"repeats": len(acc), "metrics": {"story": {"acc": [*acc], "perplexity": [*perplexity]}}}}


def test_each_run_is_compared_with_its_baseline(tmp_path: Path) -> None:
    put(tmp_path / "base", outcomes(BASE), format="none")
    put(tmp_path / "b16", worse(0.1), block_size=16)
    put(tmp_path / "b32", worse(0.3, 2), block_size=32)
    found = compared(tmp_path)
    assert list(found) == ["b16", "b32"]  # not the baseline
    for comparison in found.values():
        assert comparison.other.run.path.name == "base"
        assert comparison.n == N and comparison.why_not is None and comparison.note is None
        assert comparison.accuracy is not None and comparison.perplexity is not None
        row = comparison.row.metrics
        assert comparison.accuracy.difference == pytest.approx(row["acc"] - comparison.other.metrics["acc"])
        ratio = row["perplexity"] / comparison.other.metrics["perplexity"]
        assert comparison.perplexity.difference == pytest.approx(math.log(ratio))
        assert comparison.perplexity_significant and not comparison.identical
        assert comparison.floor is None
        assert comparison.accuracy_above_floor is None and comparison.perplexity_above_floor is None


def test_p_values_are_adjusted_over_the_group(tmp_path: Path) -> None:
    put(tmp_path / "base", outcomes(BASE), format="none")
    for seed, block_size in enumerate((8, 16, 32, 64)):
        put(tmp_path / f"b{block_size}", worse(0.012, seed), block_size=block_size)
    found = list(compared(tmp_path).values())
    for name in ("accuracy", "perplexity"):
        raw = [getattr(each, name).p for each in found]
        adjusted = [getattr(each, f"{name}_p") for each in found]
        assert min(adjusted) == pytest.approx(min(1, 4 * min(raw)))
        assert all(a >= p for a, p in zip(adjusted, raw, strict=True))


def test_a_config_that_was_run_twice_is_tested_once(tmp_path: Path) -> None:
    put(tmp_path / "base", outcomes(BASE), format="none")
    put(tmp_path / "once", worse(0.02), record={"config_hash": "same"})
    put(tmp_path / "again", worse(0.02), record={"config_hash": "same"})
    found = compared(tmp_path)
    for comparison in found.values():
        assert comparison.perplexity is not None and comparison.perplexity_p == comparison.perplexity.p
    results, group = only(tmp_path)
    assert find_knob_effects(results, group) == []  # the two differ in nothing


def test_without_a_baseline_there_is_nothing_to_compare_with(tmp_path: Path) -> None:
    put(tmp_path / "b16", worse(0.1), block_size=16)
    put(tmp_path / "b32", worse(0.3), block_size=32)
    results, group = only(tmp_path)
    assert compare_with_baselines(group) == {}
    assert [effect.knob for effect in find_knob_effects(results, group)] == ["block_size"]


def test_of_several_baselines_the_nearest_is_taken(tmp_path: Path) -> None:
    for dtype in ("float32", "bfloat16"):
        model = {"dtype": dtype}
        put(
            tmp_path / f"base_{dtype}",
            outcomes(BASE - (0.01 if dtype == "bfloat16" else 0)),
            format="none",
            model=model,
        )
        put(tmp_path / f"run_{dtype}", worse(0.1), model=model)
    found = compared(tmp_path)
    assert {name: each.other.run.path.name for name, each in found.items()} == {
        "run_float32": "base_float32",
        "run_bfloat16": "base_bfloat16",
    }
    results, group = only(tmp_path)
    (effect,) = find_knob_effects(results, group)
    assert effect.knob == "model.dtype"  # of baselines, and of quantized runs
    assert {each.row.is_baseline for each in effect.comparisons} == {True, False}


def test_equal_runs_are_identical(tmp_path: Path) -> None:
    put(tmp_path / "base", outcomes(BASE), format="none")
    put(tmp_path / "sb6", worse(0.1), scale_bits=6)
    put(tmp_path / "sb8", worse(0.1), scale_bits=8)
    results, group = only(tmp_path)
    (effect,) = find_knob_effects(results, group)
    (comparison,) = effect.comparisons
    assert comparison.identical and comparison.significant is False
    assert (comparison.accuracy_p, comparison.perplexity_p) == (1, 1)
    almost = worse(0.1)
    almost.loc[17, "loglikelihood"] = np.nextafter(almost.loc[17, "loglikelihood"], 0)
    put(tmp_path / "sb7", almost, scale_bits=7)
    results, group = only(tmp_path)
    (effect,) = find_knob_effects(results, group)
    assert [each.identical for each in effect.comparisons] == [False, False]


def test_knobs_are_compared_one_at_a_time_between_neighbours(tmp_path: Path) -> None:
    put(tmp_path / "base", outcomes(BASE), format="none")
    for block_size in (128, 8, 32):
        for kv in ("fp4_e2m1", "none"):
            put(
                tmp_path / f"b{block_size}_{kv}",
                worse(block_size / 1000, block_size),
                block_size=block_size,
                kv_quant=kv,
            )
    put(tmp_path / "odd", worse(0.1), block_size=64, kv_quant="none", scale_bits=6)  # differs in two from all others
    results, group = only(tmp_path)
    effects = {effect.knob: effect for effect in find_knob_effects(results, group)}
    assert list(effects) == ["block_size", "kv_quant"]
    steps = [(e.other.knobs["block_size"], e.row.knobs["block_size"]) for e in effects["block_size"].comparisons]
    assert steps == [(8, 32), (32, 128)] * 2
    steps = [(e.other.knobs["kv_quant"], e.row.knobs["kv_quant"]) for e in effects["kv_quant"].comparisons]
    assert steps == [("none", "fp4_e2m1")] * 3
    assert effects["block_size"].family == "Holm's method over the 4 pairs of runs that differ in block_size only."
    raw = [each.perplexity.p for each in effects["block_size"].comparisons if each.perplexity]
    adjusted = [each.perplexity_p for each in effects["block_size"].comparisons]
    assert adjusted[int(np.argmin(raw))] == pytest.approx(min(1, 4 * min(raw)))  # over this knob's pairs only


def test_a_baseline_is_no_neighbour(tmp_path: Path) -> None:
    put(tmp_path / "base", outcomes(BASE), format="none")
    put(tmp_path / "run", worse(0.1))
    results, group = only(tmp_path)
    assert "format" in results.shown
    assert find_knob_effects(results, group) == []


def test_documents_in_another_order_are_put_in_order(tmp_path: Path) -> None:
    samples = worse(0.1)
    put(tmp_path / "base", outcomes(BASE), format="none")
    put(tmp_path / "straight", samples)
    shuffled = samples.sample(frac=1, random_state=0).assign(doc_id=range(N))
    put(tmp_path / "shuffled", shuffled, seed=1)
    found = compared(tmp_path)
    assert found["shuffled"].accuracy == found["straight"].accuracy
    assert found["shuffled"].perplexity is not None and found["straight"].perplexity is not None
    assert found["shuffled"].perplexity.difference == pytest.approx(found["straight"].perplexity.difference)
    results, group = only(tmp_path)
    (effect,) = find_knob_effects(results, group)
    assert effect.comparisons[0].identical


@pytest.mark.parametrize(
    ("case", "why"),
    [
        ("missing", "id_run has no samples.parquet, so nothing is known of single examples."),
        ("damaged", "samples.parquet of id_run is damaged."),
        ("other documents", "The two did not see the same documents: 200 and 200 of them, with different hashes."),
        ("fewer", "The two did not see the same documents: 150 and 200 of them, with different hashes."),
        ("ids", "The two did not see the same documents: 200 and 200 of them, with different hashes."),
        ("NaN", "In id_run 1 of 200 log-likelihoods are NaN, so its answers mean nothing."),
        ("all NaN", "In id_run 200 of 200 log-likelihoods are NaN, so its answers mean nothing."),
        ("nothing shared", "The two have no metric in common that is known for each example."),
    ],
)
def test_what_cannot_be_compared_says_why(tmp_path: Path, case: str, why: str) -> None:
    samples = worse(0.1)
    if case == "other documents":
        samples = samples.assign(doc_hash=[f"g{i}" for i in range(N)])
    elif case == "fewer":
        samples = samples.iloc[:150]
    elif case == "ids":
        samples = samples.drop(columns="doc_hash")
    elif case == "NaN":
        samples.loc[3, "loglikelihood"] = math.nan
    elif case == "all NaN":
        samples["loglikelihood"] = math.nan
    elif case == "nothing shared":
        samples = samples.drop(columns="loglikelihood")
    base = outcomes(BASE).drop(columns="acc") if case == "nothing shared" else outcomes(BASE)
    metrics = {"story": {"acc": 0.5, "perplexity": 2.0}}
    put(tmp_path / "base", base, metrics, format="none")
    put(tmp_path / "run", samples, metrics, record=repeats([0.5], [2.0]))
    if case == "missing":
        (tmp_path / "run" / "samples.parquet").unlink()
    elif case == "damaged":
        (tmp_path / "run" / "samples.parquet").write_bytes(b"PAR1")
    comparison = compared(tmp_path)["run"]
    assert comparison.why_not == why
    assert comparison == Comparison(comparison.row, comparison.other, why_not=why)
    assert comparison.significant is None and comparison.accuracy_above_floor is None
    assert comparison.perplexity_above_floor is None


def test_infinite_log_likelihoods_leave_the_accuracies_comparable(tmp_path: Path) -> None:
    samples = worse(0.1)
    samples.loc[[3, 5], "loglikelihood"] = -math.inf
    put(tmp_path / "base", outcomes(BASE), format="none")
    put(tmp_path / "run", samples)
    comparison = compared(tmp_path)["run"]
    assert comparison.why_not is None and comparison.perplexity is None and comparison.perplexity_p is None
    assert comparison.accuracy is not None and comparison.n == N
    assert comparison.note == "The perplexities are not compared: in id_run 2 of 200 log-likelihoods are infinite."


def test_perplexities_a_word_are_compared_as_ratios(tmp_path: Path) -> None:
    words = np.random.default_rng(5).integers(5, 500, N)
    metrics = {"story": {"word_perplexity": 9.0}}
    base = outcomes(BASE * words, words=words).drop(columns="acc")
    run = outcomes((BASE - 0.1) * words, words=words).drop(columns="acc")
    put(tmp_path / "base", base, metrics, format="none")
    put(tmp_path / "run", run, metrics)
    put(tmp_path / "cut", run.assign(words=words + 1), metrics, block_size=16)
    found = compared(tmp_path)
    assert found["run"].perplexity is not None
    assert found["run"].perplexity.difference == pytest.approx(0.1)
    assert found["run"].accuracy is None and found["run"].significant is True
    assert found["cut"].why_not == "The perplexities are not compared: the two do not agree on the documents' lengths."


def ten_times(samples: pd.DataFrame, **columns: Any) -> pd.DataFrame:
    copies = pd.concat([samples] * 10, ignore_index=True)
    return copies.assign(doc_id=range(len(copies)), **columns)


@pytest.mark.parametrize("by", ["doc_hash", "input_hash"])
def test_ten_copies_of_every_row_are_tested_as_one(tmp_path: Path, by: str) -> None:
    """The p values and intervals are those of the rows once; metrics stay as they are."""
    base, run = outcomes(BASE[:30]), outcomes(BASE[:30] - np.random.default_rng(1).normal(0.02, 0.3, 30))
    put(tmp_path / "once" / "base", base, format="none")
    put(tmp_path / "once" / "run", run)
    more = {}
    if by == "input_hash":  # rows with numbers of their own
        more = {"doc_hash": [f"h{i}" for i in range(300)], "input_hash": [f"i{i % 30}" for i in range(300)]}
    put(tmp_path / "ten" / "base", ten_times(base, **more), format="none")
    put(tmp_path / "ten" / "run", ten_times(run, **more))
    once, ten = (compared(tmp_path / name)["run"] for name in ("once", "ten"))
    assert (once.n, once.repeats, ten.n, ten.repeats) == (30, 0, 30, 270)
    assert ten.accuracy == once.accuracy and ten.perplexity == once.perplexity
    assert ten.accuracy_p == once.accuracy_p and ten.perplexity_p == once.perplexity_p
    assert once.perplexity_p is not None and once.perplexity_p > 0.05
    results, group = only(tmp_path / "ten")
    (text,) = [each.text for each in study_group(results, group).findings if each.kind == "examples"]
    assert text.startswith("270 of 300 examples ask the same as another one. Differences are tested over the 30 that")
    results, group = only(tmp_path / "once")
    assert not [each for each in study_group(results, group).findings if each.kind == "examples"]


def test_a_share_closed_counts_repeated_rows_once(tmp_path: Path) -> None:
    noise = np.random.default_rng(3).normal(0, 0.1, (2, 30))
    samples = {"base": BASE[:30], "plain": BASE[:30] - 0.3 + noise[0], "remedy": BASE[:30] - 0.1 + noise[1]}
    shares = []
    for folder, copy in (("once", lambda rows: rows), ("ten", ten_times)):
        for name, values in samples.items():
            knobs = {"base": {"format": "none"}, "plain": {}, "remedy": {"block_size": 16}}[name]
            put(tmp_path / folder / name, copy(outcomes(values)), **knobs)
        _, group = only(tmp_path / folder)
        shares.append(compare_share_closed(*(named(group, name) for name in ("remedy", "plain", "base"))))
    assert shares[0] is not None and shares[0].n == 30
    assert shares[1] == shares[0]


def test_rows_that_an_earlier_version_could_not_tell_alike_follow_the_later_run(tmp_path: Path) -> None:
    base, run = ten_times(outcomes(BASE[:30])), ten_times(outcomes(BASE[:30] - 0.1))
    numbered = {"doc_hash": [f"h{i}" for i in range(300)]}
    put(tmp_path / "base", base.assign(**numbered), format="none")
    put(tmp_path / "run", run.assign(**numbered, input_hash=[f"i{i % 30}" for i in range(300)]))
    assert compared(tmp_path)["run"].n == 30


def test_one_example(tmp_path: Path) -> None:
    put(tmp_path / "base", outcomes([-0.5]), format="none")
    put(tmp_path / "run", outcomes([-1.5]))
    comparison = compared(tmp_path)["run"]
    assert comparison.n == 1 and comparison.accuracy_p == 1
    assert comparison.perplexity is not None and comparison.perplexity.difference == 1
    assert comparison.perplexity_p is not None and math.isnan(comparison.perplexity_p)
    assert comparison.perplexity_significant is None


def test_tasks_and_limits_are_never_compared(tmp_path: Path) -> None:
    both = pd.concat([outcomes(BASE), outcomes(BASE).assign(task="other")])
    metrics = {"story": {"acc": 0.5, "perplexity": 2.0}, "other": {"acc": 0.5, "perplexity": 2.0}}
    task = {"names": ["story", "other"], "name": "story+other"}
    put(tmp_path / "base", both, metrics, format="none", task=task)
    put(tmp_path / "run", both, metrics, task=task)
    put(tmp_path / "limited", worse(0.1).iloc[:50], limit=50)
    results = read_results(tmp_path)
    found = [{path.name: each for path, each in compare_with_baselines(group).items()} for group in results.groups]
    assert [(list(each), {c.row.task for c in each.values()}) for each in found] == [
        (["run"], {"other"}),
        (["run"], {"story"}),
        ([], set()),
    ]
    assert all(find_knob_effects(results, group) == [] for group in results.groups)
    assert explain_groups(results) == (
        "The runs are in 3 groups, which are never compared with each other, since a metric means the same only on the "
        "same examples of the same task for the same model. They differ in task (other, story) and limit (none, 50)."
    )


def test_one_group_needs_no_reason(tmp_path: Path) -> None:
    put(tmp_path / "a", worse(0.1))
    assert explain_groups(read_results(tmp_path)) is None


def test_shots_part_runs_too(tmp_path: Path) -> None:
    put(tmp_path / "a", worse(0.1))
    put(tmp_path / "b", worse(0.1), task={"num_fewshot": 5})
    sentence = explain_groups(read_results(tmp_path))
    assert sentence is not None and sentence.endswith("They differ in task.num_fewshot (none, 5).")


def test_noise_and_diagnostics_are_no_knobs(tmp_path: Path) -> None:
    put(tmp_path / "base", outcomes(BASE), format="none")
    put(tmp_path / "a", worse(0.1), noise=0, diagnostics=False)
    put(tmp_path / "b", worse(0.1), noise=4, diagnostics=True)
    results, group = only(tmp_path)
    assert results.shown == ["format"]
    assert not {"noise", "diagnostics"} & set(named(group, "a").knobs)
    assert not {"noise", "diagnostics"} & set(results.constants)


def test_the_floor_comes_from_the_runs_own_repeats(tmp_path: Path) -> None:
    metrics = {"story": {"acc": 0.5, "perplexity": 2.0}}
    put(tmp_path / "base", outcomes(BASE), metrics, format="none", record=repeats([0.501, 0.499], [2.0, 2.001]))
    put(tmp_path / "run", worse(0.1), metrics, record=repeats([0.51, 0.49, 0.52, 0.5], [2.1, 1.9, 2.2, 2.0]))
    _, group = only(tmp_path)
    floor = Noise.from_group(group).floor(named(group, "run"), named(group, "base"))
    assert floor is not None
    ours, theirs = np.var([0.5, 0.51, 0.49, 0.52, 0.5], ddof=1), np.var([0.5, 0.501, 0.499], ddof=1)
    degrees = (ours + theirs) ** 2 / (ours**2 / 4 + theirs**2 / 2)  # Welch's
    assert floor.accuracy == pytest.approx(stats.t.ppf(0.975, degrees) * math.sqrt(ours + theirs))
    ours, theirs = np.var(np.log([2, 2.1, 1.9, 2.2, 2]), ddof=1), np.var(np.log([2, 2, 2.001]), ddof=1)
    degrees = (ours + theirs) ** 2 / (ours**2 / 4 + theirs**2 / 2)
    assert floor.log_perplexity == pytest.approx(stats.t.ppf(0.975, degrees) * math.sqrt(ours + theirs))
    assert floor.repeats == 6
    assert floor.source == "4 perturbed repeats of id_run; 2 perturbed repeats of id_base."
    comparison = compared(tmp_path)["run"]
    assert comparison.floor == floor
    assert comparison.perplexity is not None and comparison.accuracy is not None and floor.accuracy is not None
    assert comparison.accuracy_above_floor is (abs(comparison.accuracy.difference) > floor.accuracy)
    assert comparison.perplexity_above_floor is False  # 0.1 nats, of a floor of 0.17


def test_a_baseline_without_repeats_counts_as_exact(tmp_path: Path) -> None:
    metrics = {"story": {"acc": 0.5, "perplexity": 2.0}}
    put(tmp_path / "base", outcomes(BASE), metrics, format="none")
    put(tmp_path / "run", worse(0.1), metrics, record=repeats([0.51], [2.1]))
    _, group = only(tmp_path)
    floor = Noise.from_group(group).floor(named(group, "run"), named(group, "base"))
    assert floor is not None
    assert floor.accuracy == pytest.approx(stats.t.ppf(0.975, 1) * np.std([0.5, 0.51], ddof=1))
    assert floor.source == ("1 perturbed repeat of id_run; the baseline id_base has no repeats and counts as exact.")


def test_runs_without_repeats_borrow_those_of_others(tmp_path: Path) -> None:
    metrics = {"story": {"acc": 0.5, "perplexity": 2.0}}
    put(tmp_path / "base", outcomes(BASE), metrics, format="none")
    put(tmp_path / "b16", worse(0.1), metrics, block_size=16, record=repeats([0.51, 0.49], [2.1, 1.9]))
    put(tmp_path / "b32", worse(0.1), metrics, block_size=32, record=repeats([0.52, 0.5], [2.2, 2.0]))
    put(tmp_path / "b64", worse(0.1), metrics, block_size=64)
    put(tmp_path / "b128", worse(0.1), metrics, block_size=128)
    _, group = only(tmp_path)
    variance = (np.var([0.5, 0.51, 0.49], ddof=1) + np.var([0.5, 0.52, 0.5], ddof=1)) / 2
    t = stats.t.ppf(0.975, 4)
    both = Noise.from_group(group).floor(named(group, "b128"), named(group, "b64"))
    assert both is not None and both.accuracy == pytest.approx(t * math.sqrt(2 * variance)) and both.repeats == 4
    assert both.source == "4 perturbed repeats of the quantized runs of this group, pooled."
    one = Noise.from_group(group).floor(named(group, "b64"), named(group, "base"))
    assert one is not None and one.accuracy == pytest.approx(t * math.sqrt(variance))
    assert one.source == (
        "4 perturbed repeats of the quantized runs of this group, pooled, for id_b64; "
        "the baseline id_base has no repeats and counts as exact."
    )
    mixed = Noise.from_group(group).floor(named(group, "b64"), named(group, "b16"))
    assert mixed is not None
    own = np.var([0.5, 0.51, 0.49], ddof=1)
    assert mixed.accuracy == pytest.approx(stats.t.ppf(0.975, 2) * math.sqrt(variance + own))


def test_without_repeats_there_is_no_floor(tmp_path: Path) -> None:
    metrics = {"story": {"acc": 0.5, "perplexity": 2.0}}
    put(tmp_path / "base", outcomes(BASE), metrics, format="none", record=repeats([0.5], [2.0]))
    put(tmp_path / "b16", worse(0.1), metrics, block_size=16)
    put(tmp_path / "b32", worse(0.1), metrics, block_size=32, record=repeats([math.nan], [math.inf]))
    _, group = only(tmp_path)
    assert (
        Noise.from_group(group).floor(named(group, "b16"), named(group, "base")) is None
    )  # a baseline's say nothing of it
    assert Noise.from_group(group).floor(named(group, "b32"), named(group, "base")) is None


def test_repeats_that_agree_leave_a_floor_of_one_example(tmp_path: Path) -> None:
    metrics = {"story": {"acc": 0.5, "perplexity": 2.0}}
    put(tmp_path / "base", outcomes(BASE), metrics, format="none")
    put(tmp_path / "run", worse(0.1), metrics, record=repeats([0.5, 0.5], [2.0, 2.0]))
    comparison = compared(tmp_path)["run"]
    assert comparison.floor is not None and comparison.floor.log_perplexity == 0
    assert comparison.floor.accuracy == 1 / comparison.n
    assert comparison.perplexity_above_floor is True


def test_what_a_row_says_of_its_run(tmp_path: Path) -> None:
    whole = {"sqnr_db": 20.0, "elements": 64, "blocks": 2, "saturated": 1, "flushed": 0, "clamped": 0}
    diagnostics = {
        "bits_per_weight": 4.25,
        "bits_per_parameter": 8.5,
        "parameter_bytes": 1000,
        "tensors": {"weight": whole, "key": {"sqnr_db": 20.0}},
        "distance": {"story": {"kl_nats": 0.1, "top1_agreement": 0.9}},
    }
    none = {"bits_per_weight": "NaN", "bits_per_parameter": 32.0, "parameter_bytes": 4000}
    put(tmp_path / "run", worse(0.1), record={"diagnostics": diagnostics, **repeats([0.5], [2.0])})
    put(tmp_path / "base", outcomes(BASE), format="none", record={"diagnostics": none})
    _, group = only(tmp_path)
    run, base = named(group, "run"), named(group, "base")
    assert (run.bits_per_weight, run.parameter_bytes, run.kl_nats, run.top1_agreement) == (4.25, 1000, 0.1, 0.9)
    assert run.noise == {"acc": [0.5], "perplexity": [2.0]}
    assert run.tensors == {"weight": whole} and run.diagnostics == diagnostics
    assert run.accuracy_name == "acc"
    assert (base.bits_per_weight, base.parameter_bytes, base.kl_nats) == (32.0, 4000, None)
    assert base.noise == base.tensors == base.distance == {}


def test_repeats_that_agree_by_chance_take_the_others_spread(tmp_path: Path) -> None:
    metrics = {"story": {"acc": 0.5, "perplexity": 2.0}}
    put(tmp_path / "base", outcomes(BASE), metrics, format="none")
    put(tmp_path / "a", worse(0.1), metrics, record=repeats([0.5, 0.5], [2.0, 2.0]))
    put(tmp_path / "b", worse(0.2), metrics, record=repeats([0.4, 0.6], [1.9, 2.1]), block_size=16)
    found = compared(tmp_path)
    assert found["a"].floor is not None and found["a"].floor.accuracy > 0.1
    assert "pooled" in found["a"].floor.source


def test_twins_with_the_same_repeats_are_pooled_once(tmp_path: Path) -> None:
    metrics = {"story": {"acc": 0.5, "perplexity": 2.0}}
    put(tmp_path / "base", outcomes(BASE), metrics, format="none")
    put(tmp_path / "other", worse(0.1), metrics, block_size=64)
    for bits in (6, 8):
        put(tmp_path / str(bits), worse(0.2), metrics, record=repeats([0.4, 0.6], [1.9, 2.1]), scale_bits=bits)
    floor = compared(tmp_path)["other"].floor
    assert floor is not None and floor.repeats == 2


def test_knobs_that_change_nothing_do_not_make_the_correction_harsher(tmp_path: Path) -> None:
    metrics = {"story": {"acc": 0.5, "perplexity": 2.0}}
    put(tmp_path / "base", outcomes(BASE), metrics, format="none")
    put(tmp_path / "6", worse(0.1), metrics, scale_bits=6)
    alone = compared(tmp_path)["6"].perplexity_p
    put(tmp_path / "8", worse(0.1), metrics, scale_bits=8)
    twins = compared(tmp_path)
    assert twins["6"].perplexity_p == twins["8"].perplexity_p == alone


def chosen(margins: np.ndarray, **columns: Any) -> pd.DataFrame:
    """Samples of a multiple-choice task with these margins."""
    frame = outcomes(margins, [int(x > 0) for x in margins], margin=margins, **columns)
    return frame.drop(columns="loglikelihood")


def put_chosen(folder: Path, margins: np.ndarray, **knobs: Any) -> None:
    metrics = {"story": {"acc": float((margins > 0).mean()), "margin": float(margins.mean())}}
    put(folder, chosen(margins), metrics, **knobs)


def test_margins_are_compared_by_a_paired_t_test(tmp_path: Path) -> None:
    base = np.random.default_rng(3).normal(1, 3, N)
    by = np.random.default_rng(4).normal(0.05, 0.3, N)
    put_chosen(tmp_path / "base", base, format="none")
    put_chosen(tmp_path / "b16", base - by, block_size=16)
    comparison = compared(tmp_path)["b16"]
    expected = stats.ttest_rel(base - by, base)
    low, high = expected.confidence_interval()
    assert comparison.margin is not None and comparison.perplexity is None and comparison.accuracy is not None
    assert comparison.margin.difference == pytest.approx(-by.mean())
    assert (comparison.margin.low, comparison.margin.high) == pytest.approx((low, high))
    assert comparison.margin.p == comparison.margin_p == pytest.approx(expected.pvalue)
    assert comparison.margin_significant and not comparison.accuracy_significant, "what the margin is there for"
    assert not comparison.identical and comparison.margin_above_floor is None


def test_margins_of_examples_in_another_order_are_the_same(tmp_path: Path) -> None:
    base = np.random.default_rng(3).normal(1, 3, N)
    put_chosen(tmp_path / "base", base, format="none")
    shuffled = chosen(base).sample(frac=1, random_state=0).assign(doc_id=range(N))
    put(tmp_path / "b16", shuffled, {"story": {"acc": 0.5, "margin": 1.0}}, block_size=16)
    comparison = compared(tmp_path)["b16"]
    assert comparison.identical and comparison.margin is not None and comparison.margin.difference == 0


def test_margins_that_are_no_numbers_are_not_compared(tmp_path: Path) -> None:
    base = np.random.default_rng(3).normal(1, 3, N)
    put_chosen(tmp_path / "base", base, format="none")
    put_chosen(tmp_path / "b16", np.where(np.arange(N) < 3, np.nan, base), block_size=16)
    put_chosen(tmp_path / "b32", np.where(np.arange(N) < 2, -np.inf, base), block_size=32)
    found = compared(tmp_path)
    assert found["b16"].why_not and "3 of 200 margins are NaN" in found["b16"].why_not
    assert found["b32"].margin is None and found["b32"].accuracy is not None
    assert found["b32"].note and found["b32"].note.endswith("2 of 200 are infinite.")


def test_the_noise_floor_of_margins_comes_from_repeats(tmp_path: Path) -> None:
    base = np.random.default_rng(3).normal(1, 3, N)
    put_chosen(tmp_path / "base", base, format="none")
    repeated = [float(base.mean()) + step for step in (-0.02, 0.01, 0.03)]
    noise = {"noise": {"repeats": 3, "metrics": {"story": {"acc": [0.6] * 3, "margin": repeated}}}}
    put_chosen(tmp_path / "b16", base - 0.01, block_size=16, record=noise)
    comparison = compared(tmp_path)["b16"]
    spread = np.std([float((base - 0.01).mean()), *repeated], ddof=1)
    assert comparison.floor is not None
    assert comparison.floor.margin == pytest.approx(stats.t.ppf(0.975, 3) * spread)
    assert comparison.margin_above_floor is False


def test_margins_stand_in_files_tables_and_findings(tmp_path: Path) -> None:
    base = np.random.default_rng(3).normal(1, 3, N)
    put_chosen(tmp_path / "base", base, format="none")
    put_chosen(tmp_path / "b16", base - 0.1, block_size=16)
    put_chosen(tmp_path / "b32", base - np.random.default_rng(4).normal(0.5, 0.3, N), block_size=32)
    table = load(tmp_path).set_index("block_size")
    assert table.margin_difference[16] == pytest.approx(-0.1) and table.margin_p[32] < 1e-4
    assert table.margin_difference_low[32] < table.margin_difference[32] < table.margin_difference_high[32]
    results, group = only(tmp_path)
    assert loss_metric(group) == "margin" and group.main_metric() == "acc"
    said = {line.title: line.text for line in study_group(results, group).verdict.lines}
    assert said["Use"].startswith(
        "w4a6, block size 16: mean margin −0.1000 [−0.1000, −0.1000], significantly worse than"
    )
    assert said["Knobs"].startswith("Of mean margin, block size 32 against 16: −0.4")
