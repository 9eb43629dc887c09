"""Published orderings of trained configs: which of one's own runs they are about, and what these say of them."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.made_trainings import put_training

from mxsweep.config.overrides import prepare
from mxsweep.config.recorded_config import recorded
from mxsweep.config.run_identity import identity_of
from mxsweep.report.collection import collect
from mxsweep.report.training_tables import verdict_table
from mxsweep.results.groups import read_results
from mxsweep.results.rows import read_rows
from mxsweep.statistics.paired_tests import residual_of, t_quantile
from mxsweep.study.operand_features import is_pattern, meets, operand_features
from mxsweep.study.ordering_verdicts import AGREES, CANNOT_TELL, DISAGREES, Verdict, judge_published
from mxsweep.study.published import BadReferenceError, load_reference
from mxsweep.study.training_ranking import study_trainings
from mxsweep.sweeps.plan import plan

E2M1 = "fp4_e2m1-b32-e8m0"
SCALES = {"ceil": "-scale_ceil", "floor": "", "even": "-scale_even"}
ORDER = """
source: a paper
orderings:
  - name: scales
    source: a paper
    where: {"*.element": fp4_e2m1, "*.rounding": nearest}
    order:
      - {name: ceil, is: {"*.scale_rounding": ceil}}
      - {name: floor, is: {"*.scale_rounding": floor}}
      - [{name: even, is: {"*.scale_rounding": even}}, {name: bf16, is: {baseline: true}}]
    within: 0.004
"""


def identity(*operands: str | None, hadamard: tuple[int, int, int] = (0, 0, 0)) -> dict[str, Any]:
    """An identity in which the six operands are these, or all the one."""
    six = operands if len(operands) == 6 else operands * 6
    layers = ["", *([*six[2 * i : 2 * i + 2], hadamard[i]] for i in range(3))]
    return {
        "quantized": {
            "training": {"layers": [layers], "backward": "high_precision", "signs": "fixed", "kept": ["lm_head"]}
        }
    }


def put_config(top: Path, name: str, operands: dict[str, Any] | None, costs: tuple[float, ...], **knobs: Any) -> None:
    for seed, cost in enumerate(costs, 1):
        more = {"format": "mxfp4"} if operands else {}
        put_training(top / f"{name}{seed}", seed, cost=cost, identity=operands, **more | knobs)


def put_scales(top: Path, **costs: float) -> None:
    put_config(top, "base", None, (0.0,) * 3)
    for turn, (name, cost) in enumerate(costs.items()):
        spread = np.roll((cost - 0.001, cost, cost + 0.001), turn)  # each config's luck is its own
        put_config(top, name, identity(E2M1 + SCALES[name]), tuple(map(float, spread)), scale_rounding=name)


def judged(top: Path, reference: Path | str) -> list[Verdict]:
    results = read_results(top)
    study = study_trainings(results, results.groups[0])
    assert study is not None
    return judge_published(load_reference(reference).trainings, study)


def written(top: Path, text: str = ORDER) -> Path:
    top.mkdir(exist_ok=True)
    (top / "own.yaml").write_text(text, encoding="utf-8")
    return top / "own.yaml"


@pytest.mark.parametrize(
    ("costs", "verdict", "first"),
    [
        ({"ceil": 0.03, "floor": 0.02, "even": 0.0005}, AGREES, "ceil against floor: +0.0100"),
        ({"ceil": 0.02, "floor": 0.03, "even": 0.0005}, DISAGREES, "ceil against floor: −0.0100"),
        ({"ceil": 0.03, "floor": 0.0295, "even": 0.0005}, CANNOT_TELL, "ceil against floor: +0.0005"),
        ({"ceil": 0.03, "floor": 0.02, "even": 0.01}, DISAGREES, "even against bf16: +0.0100"),
        ({"floor": 0.02, "even": 0.0005}, AGREES, "floor against even: +0.0195"),
        ({"ceil": 0.03}, CANNOT_TELL, "no run here of floor, even"),
    ],
    ids=["agrees", "the other way round", "not told apart", "equal ones that are not", "one missing", "one alone"],
)
def test_an_ordering_is_judged_step_by_step(tmp_path: Path, costs: dict[str, float], verdict: str, first: str) -> None:
    put_scales(tmp_path / "runs", **costs)
    (found,) = judged(tmp_path / "runs", written(tmp_path))
    assert (found.verdict, found.ours.split(" [")[0]) == (verdict, first)
    assert bool(found.runs) == (len(costs) > 1)


def test_what_diverged_is_worse_than_what_did_not(tmp_path: Path) -> None:
    put_scales(tmp_path / "runs", floor=0.02)
    put_training(
        tmp_path / "runs" / "c",
        1,
        diverged_at=3,
        format="mxfp4",
        identity=identity(E2M1 + "-scale_ceil"),
        scale_rounding="ceil",
    )
    (found,) = judged(tmp_path / "runs", written(tmp_path))
    assert found.verdict == AGREES and "ceil diverged, floor did not" in found.ours


def test_losses_with_one_seed_in_common_are_not_judged(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    put_scales(runs, floor=0.03)
    put_config(runs, "ceil", identity(E2M1 + SCALES["ceil"]), (0.02,), scale_rounding="ceil")
    difference = "differences: [{name: d, source: s, is: {'*.scale_rounding': ceil}, nats: 0.02}]"
    order, gap = judged(runs, written(tmp_path, ORDER + difference))
    assert order.verdict == gap.verdict == CANNOT_TELL
    step = next(text for text in order.ours.split("; ") if text.startswith("ceil against floor"))
    assert step.startswith("ceil against floor: −0.0") and step.endswith(" nats, one seed in common")
    assert "+0.0200" in gap.ours and "(one seed in common)" in gap.ours


def test_runs_that_differ_elsewhere_are_not_compared(tmp_path: Path) -> None:
    put_scales(tmp_path / "runs", ceil=0.03, even=0.0005)
    put_config(tmp_path / "runs", "b16", identity("fp4_e2m1-b16-e8m0"), (0.05, 0.05, 0.05), block_size=16)
    (found,) = judged(tmp_path / "runs", written(tmp_path))
    assert found.verdict == AGREES and "floor" not in found.ours


GAINS = """
source: a paper
orderings:
  - name: gains
    source: a paper
    order:
      - name: E2M1
        from: {"*.element": fp4_e2m1, "*.symmetric": true}
        to: {"*.element": fp4_e2m1, "*.symmetric": false}
      - {name: INT4, from: {"*.element": int4, "*.symmetric": true}, to: {"*.element": int4, "*.symmetric": false}}
differences:
  - {name: near, source: a paper, is: {"*.element": int4, "*.symmetric": true}, nats: [0.04, 0.06]}
  - {name: far, source: a paper, is: {"*.element": int4, "*.symmetric": false}, nats: 0.1}
  - {name: none, source: a paper, is: {"*.element": int8}, nats: 0.1}
"""


def test_gains_and_differences(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    put_config(runs, "base", None, (0.0, 0.0))
    for element, name, costs in (("fp4_e2m1", "mxfp4", (0.03, 0.028)), ("int4", "mint4", (0.05, 0.03))):
        for symmetric, more, cost in ((True, "", costs[0]), (False, "-asym", costs[1])):
            of_seeds, knobs = (cost, cost + 0.001 - 0.0001 * symmetric), {"format": name, "symmetric": symmetric}
            put_config(runs, f"{name}{more}", identity(f"{element}-b32-e8m0{more}"), of_seeds, **knobs)
    gains, near, far, none = judged(runs, written(tmp_path, GAINS))
    assert gains.verdict == AGREES and gains.ours.startswith("E2M1 against INT4: of gains +0.0180 [")
    # Four configs, two seeds each: what is left of eight losses has three degrees of freedom.
    left = residual_of(np.array([[0.03, 0.0309], [0.028, 0.029], [0.05, 0.0509], [0.03, 0.031]]))
    assert left is not None and left.degrees == 3
    half = t_quantile(3) * math.sqrt(4 * left.variance / 2)
    assert f"+0.0180 [+{0.018 - half:.4f}, +{0.018 + half:.4f}] nats" in gains.ours
    assert near.verdict == AGREES and "theirs +0.0400 to +0.0600; ours format=mint4 symmetric=true +0.0504" in near.ours
    assert far.verdict == DISAGREES and none.verdict == CANNOT_TELL and none.ours == "theirs +0.1000; no run here of it"


SNR = """
source: a paper
orderings:
  - name: errors
    source: a paper
    measure: snr_db
    operands: [fprop.weight]
    order: [{name: ceil, is: {"*.scale_rounding": ceil}}, {name: floor, is: {"*.scale_rounding": floor}}]
"""


def test_errors_are_compared_operand_by_operand(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    put_training(runs / "base", 1)
    for name, ratio in (("ceil", 11.0), ("floor", 15.0)):
        ratios = {"fprop.weight": ratio, "dgrad.grad": 26 - ratio}
        put_training(
            runs / name, 1, format="mxfp4", identity=identity(E2M1 + SCALES[name]), roles=ratios, scale_rounding=name
        )
    (found,) = judged(runs, written(tmp_path, SNR))
    assert found.verdict == AGREES and found.ours.startswith("ceil against floor: +4.0000 ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (ORDER.replace('"*.element"', '"*.elements"'), r"orderings\[0\].where: \*.elements names no feature"),
        (ORDER.replace("within: 0.004", "within: a"), r"orderings\[0\].within: 'a' is no number"),
        (ORDER.replace("is: {baseline: true}", "from: {baseline: true}"), "bf16 has neither `is` alone nor `from`"),
        (GAINS.replace("nats: 0.1}", "nats: [1, 2, 3]}"), r"differences\[1\].nats: \[1, 2, 3\] is neither a number"),
        (SNR.replace("snr_db", "rmse"), "measure: 'rmse' is not known; allowed: loss, snr_db"),
        (SNR.replace("[fprop.weight]", "[weight]"), r"operands: \['weight'\] is no list of operands"),
    ],
)
def test_what_is_no_ordering_is_refused_by_its_place(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(BadReferenceError, match=message):
        load_reference(written(tmp_path, text))


def test_features_are_what_operands_became() -> None:
    assert is_pattern("?grad.*.rounding") and is_pattern("wgrad.hadamard") and not is_pattern("fprop.element")
    assert not meets({"fprop.input.element": "none"}, {"*.rounding": "even"})


def test_every_output_has_the_verdicts(tmp_path: Path) -> None:
    put_scales(tmp_path / "runs", ceil=0.03, floor=0.02)
    text = collect(tmp_path / "runs", reference=written(tmp_path)).text
    outputs = [
        text,
        *((tmp_path / "runs" / name).read_text(encoding="utf-8") for name in ("results.md", "report.html")),
    ]
    for output in outputs:
        assert "ceil against floor: +0.0100 [" in output and "this study agrees with 1, disagrees with 0" in output


def test_the_experiments_have_runs_of_every_published_ordering(tmp_path: Path) -> None:
    """Their runs as they are planned, of one seed, with losses that a number makes up."""
    verdicts: dict[str, list[str]] = {}
    for name in ("mx_training", "mx_finetune", "nvfp4_training"):
        runs = plan(prepare([f"experiment={name}", "seed=1"])[0], True).runs
        assert not [run.error for run in runs if run.error]
        for number, run in enumerate(runs):
            assert run.config is not None
            made = recorded(run.config)
            put_training(
                tmp_path / name / str(number),
                1,
                0.001 * number,
                recorded=made,
                identity=identity_of(run.config),
                roles={"dgrad.grad": 10.0 + number},
            )
        for one in judged(tmp_path / name, "mx_training"):
            verdicts.setdefault(one.name, []).append(one.ours)
    without = [
        name for name, many in verdicts.items() if all(ours.startswith("no ") or "no run here" in ours for ours in many)
    ]
    assert without == []


def test_features_of_a_run_that_is_no_training_are_none(tmp_path: Path) -> None:
    put_training(tmp_path / "a", 1, format="mxfp4")
    (run,) = read_results(tmp_path).runs
    assert operand_features(read_rows(run)[0]) == {}


def test_runs_of_two_studies_are_judged_together(tmp_path: Path) -> None:
    put_scales(tmp_path / "runs", ceil=0.03, floor=0.02)
    (tmp_path / "more").mkdir()
    for run in sorted((tmp_path / "runs").glob("ceil*")):
        run.rename(tmp_path / "more" / run.name)
    results = read_results([tmp_path / "runs", tmp_path / "more"])
    study = study_trainings(results, results.groups[0])
    assert study is not None
    reference = load_reference(written(tmp_path / "reference"))
    (found,) = judge_published(reference.trainings, study)
    assert (found.verdict, found.ours.split(" [")[0]) == (AGREES, "ceil against floor: +0.0100")


def test_what_no_run_is_of_is_counted_and_not_listed(tmp_path: Path) -> None:
    put_scales(tmp_path / "runs", ceil=0.03, floor=0.02)
    other = ORDER.replace("name: scales", "name: others").replace("fp4_e2m1", "int4").partition("orderings:\n")[2]
    reference = load_reference(written(tmp_path / "reference", ORDER + other))
    table, said = verdict_table(read_results(tmp_path / "runs"), reference)
    assert [row[0].text for row in table.rows] == ["scales"]
    assert said.startswith("Of 2 published orderings and differences this study agrees with 1, disagrees with 0, and")
    assert "cannot tell of 0; of the other 1 it has no run." in said


def test_what_several_groups_were_judged_by_is_counted_once(tmp_path: Path) -> None:
    for name in ("a", "b"):
        model = {"name": name, "path": name}
        for seed in (1, 2, 3):
            put_training(tmp_path / name / f"base{seed}", seed, identity={"model": model}, model=model)
        for rounding, costs in (("ceil", (0.029, 0.03, 0.031)), ("floor", (0.021, 0.019, 0.02))):
            operands = identity(E2M1 + SCALES[rounding]) | {"model": model}
            put_config(tmp_path / name, rounding, operands, costs, scale_rounding=rounding, model=model)
    other = ORDER.replace("name: scales", "name: others").replace("fp4_e2m1", "int4").partition("orderings:\n")[2]
    reference = load_reference(written(tmp_path / "reference", ORDER + other))
    table, said = verdict_table(read_results([tmp_path / "a", tmp_path / "b"]), reference)
    assert [row[0].text for row in table.rows] == ["scales", "scales"]
    assert said.startswith("Of 2 published orderings and differences, each judged in every group that has runs of it, ")
    assert "agrees with 2, disagrees with 0, and cannot tell of 0; of the other 1 it has no run." in said
