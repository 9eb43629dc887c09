"""The ranking of trained configs: closed forms over seeds, over sequences with one, and what diverged stands last."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from helpers.made_report import put_study
from helpers.made_runs import outcomes
from helpers.made_trainings import SEQUENCES, put_training
from scipy.stats import ttest_rel

from mxsweep.report.figures.figure_files import group_figures
from mxsweep.results.groups import read_results
from mxsweep.statistics.paired_tests import contrast_given, residual_of, t_quantile
from mxsweep.study.group_study import Study, study_groups
from mxsweep.study.memory_front import find_memory_front
from mxsweep.study.memory_terms import Terms
from mxsweep.study.trained_configs import OVER_SEEDS, OVER_SEQUENCES
from mxsweep.study.training_ranking import ONE_SEED, Ranked, TrainingStudy

TRAINED = {"method": "from_scratch"}
COSTS = {16: (0.021, 0.022, 0.023), 32: (0.028, 0.026, 0.024)}


def put_sweep(top: Path, seeds: tuple[int, ...] = (1, 2, 3), **more: Any) -> None:
    for index, seed in enumerate(seeds):
        put_training(top / f"base{seed}", seed, speed=2000)
        for block, costs in COSTS.items():
            put_training(top / f"b{block}s{seed}", seed, cost=costs[index], format="mxfp4", block_size=block, **more)


def studied(top: Path) -> Study:
    (study,) = study_groups(read_results(top))
    assert study.training is not None
    return study


def training(top: Path) -> TrainingStudy:
    study = studied(top).training
    assert study is not None
    return study


def named(study: TrainingStudy, name: str) -> Ranked:
    return next(each for each in study.ranked if each.config.name == name)


def test_over_seeds_the_interval_is_that_of_the_paired_t_test(tmp_path: Path) -> None:
    put_sweep(tmp_path)
    study = training(tmp_path)
    assert [each.config.name for each in study.ranked] == ["baseline", "block_size=16", "block_size=32"]
    difference = named(study, "block_size=16").difference
    assert difference is not None and difference.over == OVER_SEEDS and difference.measured.n == 3
    assert difference.measured.difference == pytest.approx(0.022)
    half = t_quantile(2) * np.std(COSTS[16], ddof=1) / math.sqrt(3)
    assert difference.measured.high - difference.measured.low == pytest.approx(2 * half)
    assert named(study, "block_size=16").speed == 0.5
    over, same = study.notes
    assert "over seeds (a paired t test of 3 seeds, 2 degrees of freedom)" in over
    assert "those of single runs over the held-out sequences of one seed" in over
    assert same == "Same in every quantized run: format=mxfp4."


def test_pairs_use_the_spread_of_all_quantized_configs_that_have_the_same_seeds(tmp_path: Path) -> None:
    put_sweep(tmp_path)
    third = (0.033, 0.035, 0.034)
    for seed, cost in enumerate(third, 1):
        put_training(tmp_path / f"b64s{seed}", seed, cost=cost, format="mxfp4", block_size=64)
    study = training(tmp_path)
    pair = next(one for one in study.pairs if one.better.name == "block_size=16" and one.worse.name == "block_size=32")
    values = np.array([COSTS[16], COSTS[32], third])
    residual = residual_of(values)
    assert residual is not None and residual.degrees == 4
    expected = contrast_given(values[:2], (-1, 1), residual)
    assert vars(pair.difference.measured) == pytest.approx(vars(expected))


def test_a_config_and_its_baseline_are_compared_in_the_ranking_alone(tmp_path: Path) -> None:
    put_sweep(tmp_path)
    (pair,) = training(tmp_path).pairs
    assert (pair.better.name, pair.worse.name) == ("block_size=16", "block_size=32")
    expected = ttest_rel(COSTS[32], COSTS[16])
    assert pair.p == pytest.approx(expected.pvalue)  # one question, so that nothing is adjusted
    (said,) = (each.text for each in studied(tmp_path).verdict.lines if "block_size=16, by" in each.text)
    assert said.startswith(
        "block_size=32 is not to be told from block_size=16, by validation loss in nats a token: +0.0040"
    )


def test_configs_that_can_be_told_apart_are_named(tmp_path: Path) -> None:
    put_sweep(tmp_path)
    for seed, cost in enumerate((0.433, 0.425, 0.443), 1):
        put_training(tmp_path / f"b64s{seed}", seed, cost=cost, format="mxfp4", block_size=64)
    (said,) = (each.text for each in studied(tmp_path).verdict.lines if "pairs of trained configs" in each.text)
    assert said.startswith("2 of 3 pairs of trained configs can be told apart, by validation loss in nats a token: ")
    assert "block_size=64 above block_size=16 (+0.411" in said and "block_size=64 above block_size=32 (+0.407" in said


def test_a_knob_is_named_unless_more_than_half_of_the_recipe_have_its_value(tmp_path: Path) -> None:
    put_training(tmp_path / "base", 1)
    for name, rounding in (("a", "ceil"), ("b", "floor"), ("c", "even")):
        put_training(tmp_path / name, 1, format="mxfp4", scale_rounding=rounding, block_size=32)
    put_training(tmp_path / "d", 1, format="mxfp4", scale_rounding="floor", block_size=8)
    put_training(tmp_path / "e", 1, format="w4a6", scale_rounding="floor", block_size=16)
    assert {each.config.name for each in training(tmp_path).ranked} == {
        "baseline",
        "format=mxfp4 scale_rounding=ceil",
        "format=mxfp4 scale_rounding=floor",
        "format=mxfp4 scale_rounding=even",
        "format=mxfp4 block_size=8 scale_rounding=floor",
        "format=w4a6",
    }


def test_a_layout_without_residual_is_one_of_sums_alone() -> None:
    rows, columns = np.array([[1.0], [2.0], [4.0]]), np.array([[0.0, 3.0]])
    residual = residual_of(rows + columns)
    assert residual is not None and residual.variance == pytest.approx(0) and residual.degrees == 2
    assert residual_of(np.ones((1, 3))) is None and residual_of(np.array([[1, math.nan], [2, 3]])) is None
    assert residual_of(np.full((2, 2), math.nan)) is None


def test_the_residual_of_a_layout_with_missing_cells_is_that_of_least_squares() -> None:
    formula = pytest.importorskip("statsmodels.formula.api")
    values = np.random.default_rng(4).normal(2, 0.1, (5, 4))
    values[0, 3] = values[2, 0] = values[4, 1] = math.nan
    cells = [(i, j, value) for (i, j), value in np.ndenumerate(values) if not math.isnan(value)]
    frame = pd.DataFrame(cells, columns=["config", "seed", "loss"])
    fitted = formula.ols("loss ~ C(config) + C(seed)", frame).fit()
    residual = residual_of(values)
    assert residual is not None and residual.degrees == fitted.df_resid == 9
    assert residual.variance == pytest.approx(fitted.mse_resid)


def test_a_contrast_of_a_full_layout_is_that_of_least_squares() -> None:
    formula = pytest.importorskip("statsmodels.formula.api")
    values = np.random.default_rng(5).normal(2, 0.1, (4, 3))
    frame = pd.DataFrame([(i, j, v) for (i, j), v in np.ndenumerate(values)], columns=["config", "seed", "loss"])
    theirs = formula.ols("loss ~ C(config) + C(seed) - 1", frame).fit().t_test([-1, 1, 1, -1, 0, 0])
    residual = residual_of(values)
    assert residual is not None
    ours = contrast_given(values, (-1, 1, 1, -1), residual)
    low, high = theirs.conf_int()[0]
    assert (ours.difference, ours.low, ours.high, ours.p) == pytest.approx(
        (theirs.effect[0], low, high, float(theirs.pvalue))
    )


def test_a_config_without_a_seed_counts_in_the_spread_of_all(tmp_path: Path) -> None:
    put_sweep(tmp_path)
    for seed, cost in ((2, 0.035), (3, 0.034)):
        put_training(tmp_path / f"b64s{seed}", seed, cost=cost, format="mxfp4", block_size=64)
    put_training(tmp_path / "b128s1", 1, cost=0.05, format="mxfp4", block_size=128)
    study = training(tmp_path)
    assert study.spread is not None and study.spread.residual.degrees == 3
    assert [one.name for one in study.spread.configs] == ["block_size=16", "block_size=32", "block_size=64"]
    of = {frozenset((one.better.name, one.worse.name)): one.difference for one in study.pairs}
    values = np.array([COSTS[16][1:], (0.035, 0.034)])
    expected = contrast_given(values, (-1, 1), study.spread.residual)
    assert vars(of[frozenset(("block_size=16", "block_size=64"))].measured) == pytest.approx(vars(expected))
    assert of[frozenset(("block_size=16", "block_size=128"))].over == OVER_SEQUENCES  # one seed in common


def test_one_config_goes_by_its_recipe_or_else_by_its_format(tmp_path: Path) -> None:
    for name, knobs in (("a", {"recipe": {"name": "mxfp4_sr"}, "train": {"method": "from_scratch"}}), ("b", {})):
        put_training(tmp_path / name / "run", 1, format="mxfp4", **knobs)
    names = [training(tmp_path / name).ranked[0].config.name for name in ("a", "b")]
    assert names == ["mxfp4_sr", "format=mxfp4"]


def test_with_one_seed_held_out_sequences_are_paired_and_that_is_said(tmp_path: Path) -> None:
    put_sweep(tmp_path, seeds=(7,))
    study = training(tmp_path)
    difference = named(study, "block_size=32").difference
    assert difference is not None and difference.over == OVER_SEQUENCES and difference.measured.n == SEQUENCES
    assert difference.measured.difference == pytest.approx(0.028)
    assert study.notes[0] == ONE_SEED


def test_p_of_one_seed_is_adjusted_by_itself(tmp_path: Path) -> None:
    put_sweep(tmp_path)
    before = {each.config.name: each.p for each in training(tmp_path).ranked}
    put_training(tmp_path / "b64s1", 1, cost=0.05, format="mxfp4", block_size=64)
    study = training(tmp_path)
    alone = named(study, "block_size=64")
    assert alone.on_one_seed and alone.difference is not None and alone.p == alone.difference.measured.p
    assert {each.config.name: each.p for each in study.ranked if each is not alone} == before
    (text,) = [one.text for one in studied(tmp_path).findings if "worse by more than chance" in one.text]
    assert text.count(", on one seed)") == 1


@pytest.mark.parametrize("blocks", [(16,), (16, 32)])
def test_the_recipe_that_all_share_is_said_where_no_name_has_it(tmp_path: Path, blocks: tuple[int, ...]) -> None:
    put_training(tmp_path / "base", 1)
    knobs = {"recipe": {"name": "mxfp4"}, "train": {"method": "from_scratch"}}
    for block in blocks:
        put_training(tmp_path / str(block), 1, cost=0.01 * block, format="mxfp4", block_size=block, **knobs)
    said = "Same in every quantized run: recipe=mxfp4." in training(tmp_path).notes
    assert said == (not any("mxfp4" in each.config.name for each in training(tmp_path).ranked))


def test_a_seed_without_its_baseline_is_not_compared(tmp_path: Path) -> None:
    put_sweep(tmp_path, seeds=(1, 2))
    put_training(tmp_path / "alone", 9, cost=5.0, format="mxfp4", block_size=16)
    difference = named(training(tmp_path), "block_size=16").difference
    assert difference is not None and difference.measured.n == 2 and difference.measured.difference < 0.03


def test_what_diverged_stands_last_with_its_steps(tmp_path: Path) -> None:
    put_sweep(tmp_path)
    for seed in (1, 2, 3):
        put_training(tmp_path / f"d{seed}", seed, diverged_at=7 if seed == 2 else None, format="w4a6")
    study = training(tmp_path)
    last = study.ranked[-1]
    assert last.config.diverged == {2: 7} and list(last.config.losses) == [1, 3]
    texts = [finding.text for finding in studied(tmp_path).findings]
    assert "format=w4a6 diverged in 1 of 3 runs (step 7)." in texts
    assert any(
        text.startswith("2 of 3 trained configs are worse by more than chance than the baseline") for text in texts
    )


def test_two_seeds_of_a_config_are_no_effect_of_a_knob(tmp_path: Path) -> None:
    put_sweep(tmp_path)
    assert studied(tmp_path).effects == []
    one = tmp_path / "one"
    put_sweep(one, seeds=(1,))
    assert [effect.knob for effect in studied(one).effects] == ["block_size"]


def test_the_verdict_on_several_seeds_is_the_ranking_s(tmp_path: Path) -> None:
    put_sweep(tmp_path)
    (*_, study) = study_groups(read_results(tmp_path))
    assert study.values == [] and study.verdict.configs == []
    assert any("trained configs" in line.text for line in study.verdict.lines)


@pytest.mark.parametrize("seeds", [(1,), (1, 2)])
def test_of_a_task_of_trainings_with_several_seeds_no_seed_is_chosen(tmp_path: Path, seeds: tuple[int, ...]) -> None:
    put_sweep(tmp_path, seeds)
    for folder in tmp_path.iterdir():
        also_evaluated(folder)
    results = read_results(tmp_path)
    (story,) = (study for study in study_groups(results) if study.rows[0].task == "story")
    titles = [line.title for line in story.verdict.lines]
    drawn = [figure.stem for figure in group_figures(story)]
    if len(seeds) == 1:
        assert {"Use", "Cost", "Knobs"} <= set(titles) and story.values and drawn
        return
    assert titles == ["Training"] and "one seed of its config" in story.verdict.lines[0].text
    assert story.values == [] and story.effects == [] and story.verdict.use is None and drawn == []
    assert find_memory_front(story.group, story.comparisons, Terms()) is None


def also_evaluated(folder: Path) -> None:
    """Put what a task with a perplexity came to into the folder of a training."""
    record = json.loads((folder / "result.json").read_text())
    cost = record["metrics"]["validation"]["loss"]
    likelihood = -cost - np.random.default_rng(len(folder.name)).normal(0, 0.1, SEQUENCES)
    more = outcomes(list(likelihood))
    record["metrics"]["story"] = {"perplexity": math.exp(-likelihood.mean())}
    record["n_effective"]["story"] = SEQUENCES
    (folder / "result.json").write_text(json.dumps(record))
    samples = pd.concat([pd.read_parquet(folder / "samples.parquet"), more])
    samples.to_parquet(folder / "samples.parquet", index=False)


def test_runs_that_trained_nothing_have_no_ranking(tmp_path: Path) -> None:
    put_study(tmp_path, blocks=(16,), scale_bits=(8,), kv=("none",))
    (study,) = study_groups(read_results(tmp_path))
    assert study.training is None


def test_what_some_configs_leave_unquantized_is_said_before_what_they_lose(tmp_path: Path) -> None:
    kept = {"mxfp4": ["lm_head", "embeddings"], "nvfp4": ["lm_head", "embeddings", "last:2"], "mxfp8": ["lm_head"]}
    put_training(tmp_path / "base", 1, train=TRAINED)
    for recipe, words in kept.items():
        knobs = {"recipe": recipe, "format": "mxfp4", "matmuls": {"keep_high": words}, "train": TRAINED}
        put_training(tmp_path / recipe, 1, cost=0.02, bits={"nvfp4": 13.354}.get(recipe, 4.25), **knobs)
    study = studied(tmp_path)
    first = study.findings[0].text
    assert first.startswith("Configs differ in what they leave unquantized, which their losses and speeds have in them")
    assert "nvfp4 keeps embeddings and the last 2 blocks (13.354 bits a weight)" in first
    assert "; mxfp4 keeps embeddings (4.25 bits a weight)" in first and "mxfp8 keeps none of that (4.25 bits" in first
    assert study.verdict.lines[0].text == first


def test_configs_that_leave_the_same_unquantized_are_not_said_to_differ_in_it(tmp_path: Path) -> None:
    put_training(tmp_path / "base", 1, train=TRAINED, matmuls={"keep_high": ["lm_head"]})
    for recipe, words in (("mxfp4", ["lm_head", "last"]), ("mxfp8", ["last", "lm_head"])):
        knobs = {"recipe": recipe, "format": "mxfp4", "matmuls": {"keep_high": words}, "train": TRAINED}
        put_training(tmp_path / recipe, 1, **knobs)
    assert not any("unquantized" in finding.text for finding in studied(tmp_path).findings)


def test_a_title_names_no_limit_of_held_out_sequences_but_where_it_tells_two_groups_apart(tmp_path: Path) -> None:
    put_training(tmp_path / "a", 1, limit=100, identity={"limit": 100})
    assert read_results(tmp_path).groups[0].title == "model=tiny, task=validation"
    put_training(tmp_path / "b", 1, limit=200, identity={"limit": 200})
    titles = [group.title for group in read_results(tmp_path).groups]
    assert titles == [f"model=tiny, task=validation, limit={limit}" for limit in (100, 200)]
