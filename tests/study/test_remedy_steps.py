"""What remedies win back: the step before each run, shares of the gap, what is said of them and where."""

import math
from pathlib import Path

import numpy as np
import pytest
from helpers.made_runs import REMEDIES, outcomes, put

from mxsweep.report.collection import collect
from mxsweep.report.data_files import load
from mxsweep.report.figures.trade_off import trade_off_figure
from mxsweep.report.result_texts import terminal_text
from mxsweep.report.summary_tables import won_back_table
from mxsweep.results.groups import read_results
from mxsweep.study.group_study import study_groups
from mxsweep.study.memory_terms import DEFAULT_TERMS
from mxsweep.study.remedy_steps import RemedyStep, RemedySteps, arrange_remedy_steps

N = 200
RNG = np.random.default_rng(0)
BASE = -RNG.gamma(0.7, 2, N)
LOST = RNG.gamma(4, 0.1, N)  # by rounding to nearest
BUDGET = REMEDIES["gptq"] | {"ptq": {**REMEDIES["gptq"]["ptq"], "budget": 4.5, "formats": ["mxfp4", "mxfp8_e4m3"]}}
COSTS = {"rtn": 1.0, "clip": 0.8, "gptq": 0.6, "search": 0.3}


def put_sweep(top: Path, fmt: str = "w4a6", costs: dict[str, float] = COSTS, baseline: bool = True) -> None:
    """A baseline, and runs that lose these shares of what rounding to nearest loses."""
    if baseline:
        put(top / "base", outcomes(BASE), format="none", **REMEDIES["rtn"])
    for name, cost in costs.items():
        noise = np.random.default_rng(len(name)).normal(0, 0.02, N)
        bits = {"diagnostics": {"bits_per_weight": 4.25, "parameter_bytes": 1e6}}
        put(top / f"{fmt}_{name}", outcomes(BASE - cost * LOST - noise), format=fmt, record=bits, **REMEDIES[name])


def found(top: Path) -> list[RemedySteps]:
    results = read_results(top)
    (group,) = results.groups
    return arrange_remedy_steps(results, group)


def steps(one: RemedySteps) -> dict[str, str]:
    return {step.text: step.before_text for step in one.steps}


def step(one: RemedySteps, text: str) -> RemedyStep:
    return next(step for step in one.steps if step.text == text)


def test_each_run_beside_the_step_before(tmp_path: Path) -> None:
    put_sweep(tmp_path)
    put(tmp_path / "budget", outcomes(BASE - 0.2 * LOST), **BUDGET)
    (one,) = found(tmp_path)
    assert one.config == "" and one.baseline is not None
    assert steps(one) == {
        "rtn": "",
        "clip": "rtn",
        "gptq": "clip",
        "gptq + budget of 4.5 bits": "gptq",
        "gptq + rotation search": "gptq",
    }
    gptq = step(one, "gptq")
    assert gptq.before is not None and gptq.before.perplexity is not None
    ratio = math.log(gptq.row.metrics["perplexity"] / gptq.before.other.metrics["perplexity"])
    assert gptq.before.perplexity.difference == pytest.approx(ratio)
    assert gptq.before.other.run.path.name == "w4a6_clip"


def test_the_share_of_the_gap(tmp_path: Path) -> None:
    """Of Tutorial 7's four perplexities, made up example by example."""
    published = {"base": 12.88, "rtn": 54.89, "gptq": 31.04, "search": 20.41}
    base = BASE - (BASE.mean() + math.log(published.pop("base")))
    put(tmp_path / "base", outcomes(base), format="none")
    for name, ppl in published.items():
        put(tmp_path / name, outcomes(base - LOST / LOST.mean() * math.log(ppl / 12.88)), **REMEDIES[name])
    (one,) = found(tmp_path)
    shares = {each.text: each.closed.share for each in one.steps if each.closed}
    assert shares == {"gptq": pytest.approx(0.393, abs=5e-4), "gptq + rotation search": pytest.approx(0.682, abs=5e-4)}


def test_base_configurations_are_apart(tmp_path: Path) -> None:
    put_sweep(tmp_path)
    put_sweep(tmp_path, "mxfp4", {"rtn": 0.9, "gptq": 0.5}, baseline=False)
    put(tmp_path / "alone", outcomes(BASE), format="mint4", **REMEDIES["rtn"])
    put(tmp_path / "unrounded", outcomes(BASE), format="mint4", block_size=16, **REMEDIES["gptq"])
    by_config = {one.config: steps(one) for one in found(tmp_path)}
    assert by_config == {
        "mxfp4": {"rtn": "", "gptq": "rtn"},
        "w4a6": {"rtn": "", "clip": "rtn", "gptq": "clip", "gptq + rotation search": "gptq"},
    }


def test_a_search_of_scale_roundings_is_a_remedy_of_what_it_begins_with(tmp_path: Path) -> None:
    costs = [("floor", "rtn", 1.0), ("even", "rtn", 0.7), ("search", "rtn", 0.6), ("search", "search", 0.2)]
    put(tmp_path / "base", outcomes(BASE), format="none", **REMEDIES["rtn"])
    for rounding, name, cost in costs:
        lost = outcomes(BASE - cost * LOST)
        put(tmp_path / f"{rounding}_{name}", lost, scale_rounding=rounding, **REMEDIES[name])
    (one,) = found(tmp_path)
    assert steps(one) == {
        "rtn": "",
        "rtn + scale_rounding=search": "rtn",
        "gptq + rotation search + scale_rounding=search": "rtn + scale_rounding=search",
    }
    assert [step.row.knobs["scale_rounding"] for step in one.steps] == ["floor", "search", "search"]
    closed = step(one, "rtn + scale_rounding=search").closed
    assert closed is not None and closed.share == pytest.approx(0.4)


def test_remedies_of_keys_and_values(tmp_path: Path) -> None:
    plain = {"key_axis": "token", "rope": "after", "first": 0, "recent": 0, "scales": "block", "smooth": 0.0}
    options = {
        "plain": {},
        "first": {"first": 4},
        "recent": {"recent": 32},
        "both": {"first": 4, "recent": 32},
        "eight": {"first": 8},
        "more": {"first": 4, "smooth": 0.5},
    }
    put(tmp_path / "base", outcomes(BASE), format="none")
    for index, (name, own) in enumerate(options.items()):
        frame = outcomes(BASE - LOST * (1 - index / 10))
        put(tmp_path / name, frame, format="none", kv_quant="int4", kv=plain | own)
    (one,) = found(tmp_path)
    before = {each.row.run.path.name: each.before.other.run.path.name for each in one.steps if each.before}
    assert before == {
        "first": "plain",
        "recent": "plain",
        "eight": "plain",
        "both": "recent",
        "more": "first",
    }  # the better


def test_p_values_are_adjusted_over_the_steps(tmp_path: Path) -> None:
    put_sweep(tmp_path, costs={"rtn": 1.0, "clip": 0.99, "gptq": 0.98})
    (one,) = found(tmp_path)
    pairs = [each.before for each in one.steps if each.before]
    raw = [pair.perplexity.p for pair in pairs if pair.perplexity]
    assert min(pair.perplexity_p or 0 for pair in pairs) == pytest.approx(min(1, 2 * min(raw)))


def test_without_what_it_takes(tmp_path: Path) -> None:
    put_sweep(tmp_path / "a", costs={"gptq": 0.5, "search": 0.3})  # nothing without remedies
    assert found(tmp_path / "a") == []
    put_sweep(tmp_path / "b", costs={"rtn": 1.0})
    assert found(tmp_path / "b") == []
    put_sweep(tmp_path / "c", baseline=False)
    (one,) = found(tmp_path / "c")
    assert one.baseline is None and all(each.closed is None for each in one.steps)
    assert step(one, "clip").before is not None
    put(tmp_path / "d" / "rtn", metrics={"story": {"acc": 0.5}}, **REMEDIES["rtn"])  # no samples
    put(tmp_path / "d" / "gptq", metrics={"story": {"acc": 0.6}}, **REMEDIES["gptq"])
    put(tmp_path / "d" / "base", metrics={"story": {"acc": 0.7}}, format="none")
    (one,) = found(tmp_path / "d")
    assert one.steps[1].before is not None and one.steps[1].before.why_not and one.steps[1].closed is None
    assert "What the remedies win back" in terminal_text(read_results(tmp_path / "d"))


def test_what_is_said_of_it(tmp_path: Path) -> None:
    put_sweep(tmp_path)
    (study,) = study_groups(read_results(tmp_path))
    (finding,) = [one for one in study.findings if one.kind == "remedy"]
    shares = {each.text: each.closed for each in study.remedy_steps[0].steps}
    for text in ("clip wins back", "gptq", "gptq + rotation search"):
        closed = shares[text.removesuffix(" wins back")]
        assert closed is not None
        assert f"{text} {closed.share:.1%} [{closed.low:.1%}, {closed.high:.1%}]" in finding.text
    assert finding.text.startswith("Of the gap in log-perplexity that rtn leaves to the baseline, clip wins back")
    assert finding.runs == ["id_w4a6_rtn", "id_w4a6_clip", "id_w4a6_gptq", "id_w4a6_search"]


def test_what_is_worse_or_may_be_chance_is_not_said(tmp_path: Path) -> None:
    put_sweep(tmp_path, costs={"rtn": 1.0, "clip": 1.2, "gptq": 1.1999})
    (study,) = study_groups(read_results(tmp_path))
    assert not [one for one in study.findings if one.kind == "remedy"]
    closed = study.remedy_steps[0].steps[1].closed
    assert closed is not None and closed.high < 0  # the gap is wider


def test_where_it_is_shown(tmp_path: Path) -> None:
    put_sweep(tmp_path)
    searched = tmp_path / "w4a6_search" / "result.json"
    step_of = '{"round": 1, "matmul": "<q>", "loss": 2.0, "kept": true}'
    account = f'"remedies": {{"rotation": {{"steps": [{step_of}], "loss_before": 2.1}}}}, "error"'
    searched.write_text(searched.read_text().replace('"error"', account))
    result = collect(tmp_path)
    assert result.write_error is None
    page, markdown = (tmp_path / "report.html").read_text(), (tmp_path / "results.md").read_text()
    share = f"{study_groups(read_results(tmp_path))[0].remedy_steps[0].steps[-1].closed.share:.1%}"  # type: ignore[union-attr]
    for text in (page, markdown, result.text):
        assert "What the remedies win back" in text and share in text
        assert "gap closed" in text or text is result.text  # a terminal's headings are folded
    assert "2.1000 nats a token on, &lt;q&gt; (2.0000)" in page and "<q>" not in page
    assert "\\<q\\> (2.0000)" in markdown
    tail = result.text.partition("What the remedies win back")[2].partition("\n\n")[2]
    assert all(word in tail for word in ("gptq +", "rotation", "search")) and "id_" not in tail.partition("\n\n")[0]


def test_how_long_it_took(tmp_path: Path) -> None:
    put_sweep(tmp_path, costs={"rtn": 1.0})
    assert load(tmp_path)["remedies_s"].isna().all()
    put(tmp_path / "gptq", outcomes(BASE), record={"timing": {"eval_s": 1.0, "remedies_s": 12.34}}, **REMEDIES["gptq"])
    (study,) = study_groups(read_results(tmp_path))
    table = won_back_table(study.group, study.remedy_steps)
    assert [texts[table.columns.index("remedies_s")] for texts in table.texts] == ["–", "–", "12.3"]
    assert load(tmp_path)["remedies_s"].dropna().tolist() == [12.34]
    assert "remedies' GPU, MB" not in table.columns
    account = {"calibration": "stories", "search": {"kept_seconds": 30.0}, "ptq": {"kept_seconds": 8.0, "seconds": 2.0}}
    put(
        tmp_path / "searched",
        outcomes(BASE),
        record={"timing": {"eval_s": 1.0, "remedies_s": 2.5}, "remedies": account},
        **REMEDIES["search"],
    )
    assert load(tmp_path)["remedies_s"].dropna().tolist() == [12.34, 40.0]


def test_how_much_memory_it_took(tmp_path: Path) -> None:
    put_sweep(tmp_path, costs={"rtn": 1.0})
    account = {"calibration": "stories", "search": {"peak_gpu_bytes": 4_200_000}, "ptq": {"peak_gpu_bytes": 3_000_000}}
    put(tmp_path / "gptq", outcomes(BASE), record={"remedies": account}, **REMEDIES["gptq"])
    (study,) = study_groups(read_results(tmp_path))
    table = won_back_table(study.group, study.remedy_steps)
    assert [texts[table.columns.index("remedies' GPU, MB")] for texts in table.texts] == ["–", "–", "4.2"]
    assert load(tmp_path)["remedies_gpu_bytes"].dropna().tolist() == [4_200_000]


def test_a_trade_off_of_many_runs_is_told_apart_by_remedies(tmp_path: Path) -> None:
    put_sweep(tmp_path)
    (study,) = study_groups(read_results(tmp_path))
    figure = trade_off_figure(study, DEFAULT_TERMS)
    assert figure is not None
    assert [entry.name for entry in figure.entries][:2] == ["rtn", "clip"]
    for index, fmt in enumerate(("mxfp4", "mint4"), 1):  # formats that came out the same would be one point
        costs = {name: cost + index / 100 for name, cost in COSTS.items()}
        put_sweep(tmp_path, fmt, costs, baseline=False)
    (study,) = study_groups(read_results(tmp_path))
    figure = trade_off_figure(study, DEFAULT_TERMS)
    assert figure is not None
    assert [entry.name for entry in figure.entries][:4] == ["rtn", "clip", "gptq", "gptq + rotation search"]
    formats = {cells[0].split(", ")[0] for cells in figure.cells}  # in the table, and in tooltips
    assert formats == {"w4a6", "mxfp4", "mint4"}
