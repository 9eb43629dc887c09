"""Which runs are compared with which: by what was evaluated where records say it, by names where they do not."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers.made_runs import config as made_config
from helpers.made_runs import put

from mxsweep import compose
from mxsweep.files.checkpoints import model_folder
from mxsweep.files.digests import json_digest
from mxsweep.results.groups import Results, read_results
from mxsweep.results.identity import CALIBRATION, DATA, MODEL
from mxsweep.study.comparison import explain_groups

GPTQ = {"ptq": {"method": "gptq"}, "calibration": {"source": "text", "path": "cal.txt"}}


def identity(weights: str = "a", data: str | None = None, quantized: Any = None, **parts: Any) -> dict[str, Any]:
    """A run's identity, as a record holds it."""
    return {
        "model": {"files": weights, "dtype": "float32"}, "attention": "sdpa", "max_length": None, "device": "cpu",
        "task": [["story"], None, False], "data": {"story": data} if data else {}, "limit": None,
        "quantized": quantized, "seed": 1234,
    } | parts  # fmt: skip


def run(folder: Path, weights: str = "a", data: str | None = None, *, recorded: bool = True, **knobs: Any) -> None:
    """Write a run of these weights on these data; one that an earlier version recorded holds no identity."""
    is_baseline = knobs.get("format") == "none"
    own = identity(weights, data, None if is_baseline else {"computed": [folder.name]}, **knobs.pop("parts", {}))
    if knobs.get("noise"):
        own["noise"] = knobs["noise"]
    if "calibrated" in knobs:
        own["quantized"]["calibration"] = {"file": knobs.pop("calibrated")}
    model = {"attention": "sdpa", "max_length": None} | knobs.pop("model", {})
    task = {"apply_chat_template": False, "data": {"story": "s.jsonl"} if data else {}} | knobs.pop("task", {})
    record = {"config_hash": json_digest(own)} | ({"identity": own} if recorded else {})
    put(folder, record=record, model=model, task=task, **knobs)


def baselines(results: Results) -> dict[str, str | None]:
    """The baseline of each quantized run, by the folders' names."""
    pairs = [(row, group.baseline_for(row)) for group in results.groups for row in group.rows if not row.is_baseline]
    return {row.run.path.name: other and other.run.path.name for row, other in pairs}


def grouped(results: Results) -> list[set[str]]:
    return [{row.run.path.name for row in group.rows} for group in results.groups]


def test_an_identity_is_what_the_hash_is_of() -> None:
    for words in (["format=none"], ["ptq=gptq", "noise=2"], ["kv_quant=int8", "limit=0.5"]):
        config = compose(words)
        assert json_digest(config.identity) == config.config_hash
    without = compose(["format=none", "seed=3"]).config_hash
    assert json_digest(compose(["seed=3", "diagnostics=false"]).identity | {"quantized": None}) == without


@pytest.mark.parametrize("eager", [False, True])
def test_attention_by_an_earlier_default_is_no_column(eager: bool, tmp_path: Path) -> None:
    """Runs of a sweep that is gone on with say auto, those done before say sdpa, and their hashes are alike."""
    run(tmp_path / "1_base", format="none")
    run(tmp_path / "2_b16", block_size=16)
    run(tmp_path / "3_b32", block_size=32, model={"attention": "auto"})
    if eager:
        run(tmp_path / "4_eager", block_size=32, model={"attention": "eager"}, parts={"attention": "eager"})
    results = read_results(tmp_path)
    assert ("model.attention" in results.shown) == eager
    assert {row.knobs["model.attention"] for row in results.rows} == {"auto", *(["eager"] if eager else [])}


def test_other_weights_under_one_name_have_a_baseline_of_their_own(tmp_path: Path) -> None:
    for weights in "ab":
        run(tmp_path / f"1_base_{weights}", weights, format="none")
        run(tmp_path / f"2_b16_{weights}", weights, block_size=16)
    results = read_results(tmp_path)
    assert baselines(results) == {"2_b16_a": "1_base_a", "2_b16_b": "1_base_b"}
    assert grouped(results) == [{"1_base_a", "2_b16_a"}, {"1_base_b", "2_b16_b"}]
    digests = [group.conditions[MODEL] for group in results.groups]
    assert len(set(digests)) == 2 and all(
        f"{MODEL}={digest}" in group.title and digest in group.slug
        for digest, group in zip(digests, results.groups, strict=True)
    )
    said = explain_groups(results)
    assert said is not None and f"They differ in {MODEL} ({digests[0]}, {digests[1]})." in said


def test_other_rows_under_one_name_have_a_baseline_of_their_own(tmp_path: Path) -> None:
    for data in "xy":
        run(tmp_path / f"1_base_{data}", data=data, format="none")
        run(tmp_path / f"2_b16_{data}", data=data, block_size=16)
    results = read_results(tmp_path)
    assert baselines(results) == {"2_b16_x": "1_base_x", "2_b16_y": "1_base_y"}
    assert len({group.conditions[DATA] for group in results.groups}) == 2


def test_without_a_baseline_of_its_own_content_a_run_has_none(tmp_path: Path) -> None:
    run(tmp_path / "1_base", "a", format="none")
    run(tmp_path / "2_b16", "b", block_size=16)
    assert baselines(read_results(tmp_path)) == {"2_b16": None}


def test_one_content_is_compared_whatever_it_is_called(tmp_path: Path) -> None:
    run(tmp_path / "1_base", data="x", format="none", model={"name": "m", "path": "m"})
    elsewhere = {"name": "moved", "path": "/elsewhere/moved", "revision": "v2"}
    run(tmp_path / "2_b16", data="x", block_size=16, model=elsewhere, task={"data": {"story": "copy.jsonl"}})
    results = read_results(tmp_path)
    assert baselines(results) == {"2_b16": "1_base"} and explain_groups(results) is None
    assert results.groups[0].title == "model=m or moved, task=story, limit=none"


def test_a_digest_is_shown_only_where_names_tell_nothing_apart(tmp_path: Path) -> None:
    for weights in "ab":
        run(tmp_path / weights, weights, format="none", model={"name": weights, "path": weights})
    results = read_results(tmp_path)
    assert [group.title for group in results.groups] == [f"model={x}, task=story, limit=none" for x in "ab"]
    assert [group.slug for group in results.groups] == ["a", "b"]


def test_conditions_still_part_runs_of_one_content(tmp_path: Path) -> None:
    for name, length in (("m", None), ("n", 64)):
        model = {"name": name, "path": name, "max_length": length}
        run(tmp_path / name, format="none", model=model, parts={"max_length": length})
    assert grouped(read_results(tmp_path)) == [{"m"}, {"n"}]


def test_of_several_baselines_a_runs_own_comes_before_one_with_nearer_knobs(tmp_path: Path) -> None:
    # The hash says that "auto" comes to float32; the knobs alone are nearer to the other baseline's.
    run(tmp_path / "1_bfloat16", format="none", model={"dtype": "auto"},
        parts={"model": {"files": "a", "dtype": "bfloat16"}})  # fmt: skip
    run(tmp_path / "2_float32", format="none", model={"dtype": "float32"}, noise=2)
    run(tmp_path / "3_b16", block_size=16, model={"dtype": "auto"})
    assert baselines(read_results(tmp_path)) == {"3_b16": "2_float32"}


def test_other_calibration_data_under_one_path_tell_runs_apart(tmp_path: Path) -> None:
    run(tmp_path / "1_base", format="none")
    for content in "xy":
        run(tmp_path / f"2_{content}", calibrated=content, **GPTQ)
    results = read_results(tmp_path)
    assert results.shown == ["format", CALIBRATION]  # in the columns of every table
    assert baselines(results) == {"2_x": "1_base", "2_y": "1_base"}


# Records of an earlier version


def test_records_without_identities_go_by_their_names(tmp_path: Path) -> None:
    for weights in "ab":
        run(tmp_path / f"1_base_{weights}", weights, format="none", recorded=False)
    run(tmp_path / "2_b16", "b", block_size=16, recorded=False)
    results = read_results(tmp_path)
    assert grouped(results) == [{"1_base_a", "1_base_b", "2_b16"}]
    assert not any({MODEL, DATA} & row.knobs.keys() for row in results.rows)


@pytest.mark.parametrize("noise", [0, 3])
@pytest.mark.parametrize("data", [None, "x"])
def test_a_resumed_sweep_is_compared_with_the_baseline_that_was_done_before(
    tmp_path: Path, data: str | None, noise: int
) -> None:
    noted = {"noise": noise} if noise else {}
    run(tmp_path / "1_base", data=data, format="none", recorded=False, **noted)
    seeds = {"seed": 7, "parts": {"seed": 7}}
    run(tmp_path / "2_base", data=data, format="none", recorded=False, **seeds)  # of another part of the sweep
    run(tmp_path / "3_b16", data=data, block_size=16, recorded=False)
    run(tmp_path / "4_b32", data=data)
    results = read_results(tmp_path)
    assert grouped(results) == [{"1_base", "2_base", "3_b16", "4_b32"}]
    assert baselines(results) == {"3_b16": "1_base", "4_b32": "1_base"}
    assert MODEL not in results.groups[0].title


def test_an_earlier_record_is_never_compared_with_one_of_another_content(tmp_path: Path) -> None:
    run(tmp_path / "1_base_old", "a", format="none", recorded=False)
    run(tmp_path / "2_b16_old", "a", block_size=16, recorded=False)
    run(tmp_path / "3_base_new", "b", format="none")
    run(tmp_path / "4_b32_new", "b")
    results = read_results(tmp_path)
    assert baselines(results) == {"2_b16_old": "1_base_old", "4_b32_new": "3_base_new"}
    assert {group.conditions[MODEL] for group in results.groups} > {"not recorded"}


def test_an_earlier_run_whose_content_is_unknown_is_compared_with_nothing_new(tmp_path: Path) -> None:
    run(tmp_path / "1_b16_old", block_size=16, recorded=False)
    run(tmp_path / "2_base_new", format="none")
    assert baselines(read_results(tmp_path)) == {"1_b16_old": None}


@pytest.mark.parametrize("damage", [{}, [], "x", {"model": 3}, {"model": {}, "data": 5, "quantized": [1]}])
def test_an_identity_that_makes_no_sense_stops_nothing(tmp_path: Path, damage: Any) -> None:
    run(tmp_path / "1_base", format="none")
    put(tmp_path / "2_b16", record={"identity": damage}, block_size=16)
    assert [len(group.rows) for group in read_results(tmp_path).groups] == [1, 1]


# Of whole commands


def test_weights_that_change_between_two_runs_of_one_path(tmp_path: Path) -> None:
    """The record's identity is of what the path held when the run was planned."""
    folder = model_folder("embedded")
    assert folder is not None
    model = shutil.copytree(folder, tmp_path / "m")
    words = ["model=hf", f"model.path={model}"]
    before = compose(words)
    config = (model / "generation_config.json").read_text()
    (model / "generation_config.json").write_text(config + " ")
    after = compose(words)
    for name, each in (("1", before), ("2", after)):
        put(tmp_path / "runs" / name, record={"identity": each.identity, "config_hash": each.config_hash})
    assert before.as_dict() == after.as_dict()
    assert grouped(read_results(tmp_path / "runs")) == [{"1"}, {"2"}]


def test_made_configs_are_like_real_ones() -> None:
    """These tests prove earlier baselines by what their records' configs tell: real ones must tell it, too."""
    config = compose(["format=none"]).as_dict()
    for part in ("limit", "seed"):
        assert part in config and part in made_config()
    assert {"attention", "max_length", "dtype"} <= config["model"].keys()
    assert {"names", "num_fewshot", "apply_chat_template", "data"} <= config["task"].keys()
