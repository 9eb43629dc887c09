"""Published results: the package's own, a user's, and what goes beside what."""

from pathlib import Path
from typing import Any

import pytest
from helpers.made_runs import REMEDIES, put

from mxsweep.results.groups import read_results
from mxsweep.study.published import BadReferenceError, ReferenceRow, load_reference, match_reference

HEAD = "source: a paper\nconditions: {model: org/Name-1B, task: story, n: 100}\n"
LLAMA = {"name": "llama3_2_1b", "path": "meta-llama/Llama-3.2-1B"}
LAMBADA = {"name": "lambada_openai", "names": ["lambada_openai"]}


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "own.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def put_llama(folder: Path, acc: float, n: int = 5153, **knobs: Any) -> None:
    metrics = {"lambada_openai": {"acc": acc, "perplexity": 9.0}}
    environment = {"device_name": "Tesla T4", "versions": {"lm_eval": "0.4.13"}}
    record = {"n_effective": {"lambada_openai": n}, "environment": environment}
    put(folder, None, metrics, record=record, model=LLAMA, task=LAMBADA, **knobs)


def by_knobs(rows: list[ReferenceRow], **knobs: Any) -> list[ReferenceRow]:
    return [each for each in rows if each.theirs and all(each.theirs.knobs.get(k) == v for k, v in knobs.items())]


def test_the_report_that_this_starts_from() -> None:
    reference = load_reference("ex_report")
    assert reference.name == "ex_report" and "2.1" in reference.source
    assert len(reference.rows) == 26  # the baseline, twelve of Ex1, twelve limited and one whole of Ex2
    assert [row.is_baseline for row in reference.rows].count(True) == 1
    baseline = reference.rows[0]
    assert baseline.n == 5153 and baseline.eval_time_s == 492.293
    assert baseline.metrics["acc"] == 0.622356 and baseline.metrics["perplexity_stderr"] == 0.128561
    limited = [row for row in reference.rows if row.conditions["limit"] == 0.25]
    assert len(limited) == 12 and {row.n for row in limited} == {1289}
    times = [row.eval_time_s for row in limited if row.knobs["block_size"] == 64 and row.knobs["custom_cuda"] is True]
    assert times == [154.085, 154.078]
    seen = {(tuple(row.knobs.items()), row.conditions["limit"]) for row in reference.rows}
    assert len(seen) == 26


def test_mase_s_tutorial(tmp_path: Path) -> None:
    """Its runs and ours go together by their remedies, not by their formats alone."""
    task = {"name": "wikitext", "names": ["wikitext"]}
    put(tmp_path / "base", None, {"wikitext": {"word_perplexity": 12.9}}, format="none", model=LLAMA, task=task)
    for name, ppl in (("rtn", 54.0), ("gptq", 30.0), ("search", 20.0)):
        metrics = {"wikitext": {"word_perplexity": ppl}}
        put(tmp_path / name, None, metrics, model=LLAMA, task=task, format="mint4", kv_quant="mint4", **REMEDIES[name])
    put(tmp_path / "other", None, {"wikitext": {"word_perplexity": 1.0}}, model=LLAMA, task=task, **REMEDIES["rtn"])
    found = match_reference(read_results(tmp_path), load_reference("tutorial7"))
    published = [(each.theirs.metrics["word_perplexity"], each.ours) for each in found if each.theirs]
    names = [(theirs, ours.run.path.name if ours else None) for theirs, ours in published]
    assert names == [(12.88, "base"), (54.89, "rtn"), (31.04, "gptq"), (20.41, "search")]
    assert found[1].difference["word_perplexity"] == pytest.approx(54.0 - 54.89)
    assert [each.ours.run.path.name for each in found if each.theirs is None and each.ours] == ["other"]


def test_who_says_nothing_of_remedies_had_none(tmp_path: Path) -> None:
    for name in ("rtn", "gptq"):
        put(tmp_path / name, **REMEDIES[name])
    put(tmp_path / "head", kv_quant="fp4_e2m1", kv={"scales": "head"}, **REMEDIES["rtn"])
    rows = "rows: [{knobs: {format: w4a6}, metrics: {acc: 0.5}}]"
    found = match_reference(read_results(tmp_path), load_reference(write(tmp_path, HEAD + rows)))
    assert [each.ours.run.path.name for each in found if each.theirs and each.ours] == ["rtn"]


@pytest.mark.parametrize(
    "knobs",
    [
        "kv_quant: rescue4",
        "kv_quant: fp4_e2m1, kv_quant.first: 4, kv_quant.recent: 32, kv_quant.rotation: hadamard",
    ],
)
def test_an_option_of_keys_and_values_goes_with_its_parts(tmp_path: Path, knobs: str) -> None:
    put(tmp_path / "plain", kv_quant="fp4_e2m1", kv={"first": 0, "recent": 0, "rotation": "none"})
    put(tmp_path / "rescued", kv_quant="fp4_e2m1", kv={"first": 4, "recent": 32, "rotation": "hadamard"})
    found = match_reference(
        read_results(tmp_path),
        load_reference(write(tmp_path, f"{HEAD}rows: [{{knobs: {{{knobs}}}, metrics: {{acc: 0.5}}}}]")),
    )
    assert [each.ours.run.path.name for each in found if each.theirs and each.ours] == ["rescued"]


def test_the_standard_errors_of_accuracies_fit_their_n() -> None:
    """A slip in copying a figure would show: stderr = sqrt(acc (1 - acc) / (n - 1))."""
    for row in load_reference("ex_report").rows:
        acc = row.metrics["acc"]
        assert row.n is not None
        expected = (acc * (1 - acc) / (row.n - 1)) ** 0.5
        assert row.metrics["acc_stderr"] == pytest.approx(expected, abs=2e-6 if row.eval_time_s else 5e-5)


def test_ours_beside_theirs(tmp_path: Path) -> None:
    put_llama(tmp_path / "base", 0.625, format="none")
    put_llama(tmp_path / "run", 0.53, block_size=16, scale_bits=6)
    put_llama(tmp_path / "extra", 0.53, block_size=8, scale_bits=6)
    found = match_reference(read_results(tmp_path), load_reference("ex_report"))
    assert len(found) == 27
    (base,) = by_knobs(found, format="none")
    assert base.ours is not None and base.ours.run.path.name == "base"
    assert base.difference["acc"] == pytest.approx(0.625 - 0.622356)
    assert base.difference["eval_time_s"] == pytest.approx(1 - 492.293)
    assert {name: each.match for name, each in base.conditions.items()} == dict.fromkeys(base.conditions, True)
    assert list(base.conditions) == ["model", "task", "limit", "n", "hardware", "library"] and base.note is None
    (run,) = by_knobs(found, block_size=16, scale_bits=6, custom_cuda=False, kv_quant="none")
    assert run.ours is not None and run.ours.run.path.name == "run"
    assert run.difference["perplexity"] == pytest.approx(9.0 - 8.385442)
    without = [each for each in found if each.ours is None]
    assert len(without) == 24 and {each.note for each in without} == {"No finished run here has these knobs."}
    assert found[-1].theirs is None and found[-1].ours is not None and found[-1].ours.run.path.name == "extra"
    assert found[-1].note == "The reference has no row with these knobs."


def test_of_several_runs_that_with_the_same_conditions_is_taken(tmp_path: Path) -> None:
    knobs: dict[str, Any] = {"block_size": 16, "scale_bits": 6, "kv_quant": "fp4_e2m1"}
    put_llama(tmp_path / "whole", 0.33, **knobs)
    put_llama(tmp_path / "quarter", 0.28, n=1289, limit=0.25, **knobs)
    put(tmp_path / "story", None, {"story": {"acc": 0.9}}, **knobs)
    found = match_reference(read_results(tmp_path), load_reference("ex_report"))
    pairs = {
        each.theirs.conditions["limit"]: each.ours.run.path.name
        for each in found
        if each.theirs and each.ours is not None
    }
    assert pairs == {None: "whole", 0.25: "quarter"}
    assert not [each for each in found if each.theirs is None]  # nor is the third said to have no row


def test_runs_that_match_equally_well_are_all_shown(tmp_path: Path) -> None:
    put_llama(tmp_path / "a", 0.53, block_size=16, scale_bits=6)
    put_llama(tmp_path / "b", 0.54, block_size=16, scale_bits=6, seed=9999)
    found = match_reference(read_results(tmp_path), load_reference("ex_report"))
    assert [each.ours.run.path.name for each in found if each.ours is not None] == ["a", "b"]


def test_other_conditions_are_said(tmp_path: Path) -> None:
    path = write(tmp_path, HEAD + "rows:\n  - knobs: {format: none}\n    metrics: {acc: 0.5}\n")
    put(tmp_path / "a", None, {"story": {"acc": 0.25}}, record={"n_effective": {"story": 50}}, format="none", limit=50)
    (row,) = match_reference(read_results(tmp_path), load_reference(path))
    assert row.difference == {"acc": -0.25}
    assert row.note == "Other conditions: model (org/Name-1B; ours: embedded), n (100; ours: 50)."
    assert row.conditions["task"].match is True
    assert row.conditions["limit"].match is None  # theirs is not known
    assert row.conditions["hardware"].match is None and row.conditions["hardware"].theirs is None


@pytest.mark.parametrize(
    ("path", "matches"),
    [
        ("org/Name-1B", True),
        ("/data/models/Name-1B/", True),
        ("/cache/models--org--Name-1B/snapshots/0123", True),
        ("org/Name-1B-Instruct", False),
        ("embedded", False),
    ],
)
def test_models_are_known_by_name(tmp_path: Path, path: str, matches: bool) -> None:
    own = write(tmp_path, HEAD + "rows:\n  - knobs: {format: none}\n    metrics: {acc: 0.5}\n")
    put(tmp_path / "a", None, {"story": {"acc": 0.25}}, format="none", model={"name": "x", "path": path})
    (row,) = match_reference(read_results(tmp_path), load_reference(str(own)))
    assert row.conditions["model"].match is matches


def test_knobs_not_named_may_be_anything_and_named_ones_not(tmp_path: Path) -> None:
    text = HEAD + "rows:\n  - knobs: {format: mxfp4, model.dtype: bfloat16}\n    metrics: {acc: 0.5}\n"
    put(tmp_path / "a", None, format="mxfp4", model={"dtype": "bfloat16"}, block_size=16)
    put(tmp_path / "b", None, format="mxfp4", model={"dtype": "float32"})
    found = match_reference(read_results(tmp_path), load_reference(write(tmp_path, text)))
    ours = [each.ours.run.path.name for each in found if each.ours is not None]
    assert ours == ["a", "b"] and [each.theirs is None for each in found] == [False, True]


def test_failed_runs_are_not_put_beside_anything(tmp_path: Path) -> None:
    put(tmp_path / "a", None, format="none", record={"status": "failed", "metrics": {}})
    path = write(tmp_path, HEAD + "rows:\n  - knobs: {format: none}\n    metrics: {acc: 0.5}\n")
    assert match_reference(read_results(tmp_path), load_reference(path)) == [
        ReferenceRow(load_reference(path).rows[0], None)
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rows: [", "is not valid YAML"),
        ("a text", "has no list of rows"),
        ("rows: []", "has no list of rows"),
        ("{}", "has no list of rows"),
        ("rows: [{knobs: {format: none}}]\nauthor: me", "author is not known; allowed: source, conditions, rows"),
        ("rows: [{metrics: {acc: 1}}]", r"rows\[0\] has no knobs"),
        ("rows: [3]", r"rows\[0\]: 3 is no mapping"),
        ("rows: [{knobs: {format: none}, metrics: {acc: high}}]", r"rows\[0\].acc: 'high' is no number"),
        ("rows: [{knobs: {format: none}, metrics: {acc: .nan}}]", "is no number"),
        ("rows: [{knobs: {format: none}, eval_time_s: fast}]", "eval_time_s: 'fast' is no number"),
        ("rows: [{knobs: {format: none}, n: 2.5}]", "n = 2.5 is no number of examples"),
        ("rows: [{knobs: {format: none}, acc: 1}]", r"rows\[0\].acc is not known; allowed: knobs"),
        ("conditions: {gpu: T4}\nrows: [{knobs: {format: none}}]", "conditions.gpu is not known; allowed: model"),
    ],
)
def test_what_is_no_reference_says_why(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(BadReferenceError, match=message) as caught:
        load_reference(write(tmp_path, text))
    assert "own.yaml: " in str(caught.value) and "\n" not in str(caught.value)


def test_a_name_that_is_not_there_says_what_is(tmp_path: Path) -> None:
    with pytest.raises(
        BadReferenceError, match=r"no reference of this name \(ex_report, mx_training, tutorial7\) and no such file"
    ):
        load_reference("ex_repotr")
    with pytest.raises(BadReferenceError, match="no such file"):
        load_reference(tmp_path)
    (tmp_path / "own.yaml").write_bytes(b"\xff\xfe\x00rows")
    with pytest.raises(BadReferenceError, match="is not valid YAML"):
        load_reference(tmp_path / "own.yaml")


def test_a_knob_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("rows: [{knobs: {blocksize: 16}, metrics: {acc: 0.5}}]")
    with pytest.raises(BadReferenceError, match=r"blocksize: there is no such knob \(near it: block_size\)"):
        load_reference(tmp_path / "own.yaml")
