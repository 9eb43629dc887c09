"""The runs that a command line means: each once, with their baselines, model by model."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mxsweep.config.overrides import prepare
from mxsweep.sweeps.dry_run import preview
from mxsweep.sweeps.impossible import why_impossible
from mxsweep.sweeps.plan import Plan, plan
from mxsweep.sweeps.without_effect import check_effects
from mxsweep.terminal.errors import ConfigError


def planned(*words: str, multirun: bool = True) -> Plan:
    overrides, sweeps = prepare(list(words))
    return plan(overrides, multirun or sweeps)


def said(found: Plan) -> list[str]:
    return [" ".join(run.overrides) for run in found.runs]


def test_a_sweep_has_its_baseline_first() -> None:
    assert said(planned("block_size=16,32", "limit=10")) == [
        "limit=10 format=none kv_quant=none",
        "block_size=16 limit=10",
        "block_size=32 limit=10",
    ]


def test_a_baseline_names_its_folder_by_what_one_would_type() -> None:
    runs = planned("block_size=16", "limit=10", "stamp=a", "hydra.sweep.subdir=${hydra.job.override_dirname}").runs
    assert [run.subdir for run in runs] == [
        "format='none',kv_quant='none',limit='10',stamp=a",
        "block_size='16',limit='10',stamp=a",
    ]


def test_no_baseline_if_nobody_wants_one() -> None:
    assert said(planned("block_size=16,32", "baseline=false")) == ["block_size=16", "block_size=32"]
    assert said(planned("block_size=16", multirun=False)) == ["block_size=16"]


def test_a_baseline_that_is_asked_for_is_not_added() -> None:
    assert said(planned("format=none,mxfp4")) == ["format=none", "format=mxfp4"]
    # What a baseline has no use for does not make it another one.
    assert said(planned("format=none,mxfp4", "block_size=16")) == [
        "format=none block_size=16",
        "format=mxfp4 block_size=16",
    ]


def test_a_baseline_that_is_asked_for_goes_before_the_runs_compared_with_it() -> None:
    assert said(planned("format=mxfp4,none")) == ["format=none", "format=mxfp4"]
    assert said(planned("limit=10,20", "format=mxfp4,none", "baseline=false")) == [
        "limit=10 format=none",
        "limit=10 format=mxfp4",
        "limit=20 format=none",
        "limit=20 format=mxfp4",
    ]
    trainings = planned("train=from_scratch", "seed=1,2", "recipe=mxfp4,bf16")
    assert [f"{run.config.recipe.is_baseline} {run.config.seed}" for run in trainings.runs if run.config] == [
        "True 1",
        "False 1",
        "True 2",
        "False 2",
    ]


@pytest.mark.parametrize(
    ("swept", "baselines"),
    [
        ("limit=10,20", 2),
        ("model.dtype=float32,bfloat16", 2),
        ("task=story,lambada_openai", 2),
        ("model.max_length=64,128", 2),
        ("seed=1,2", 1),
        ("seed=1,2 task.num_fewshot=2", 2),
        ("rounding=nearest,even", 1),
        ("kv_quant=none,int8 custom_cuda=true,false", 1),
        ("batch_tokens=100,200", 1),
    ],
)
def test_a_baseline_for_each_model_task_limit_and_dtype(swept: str, baselines: int) -> None:
    runs = planned(*swept.split(), "format=mxfp4").runs
    found = [run for run in runs if run.config and run.config.recipe.is_baseline]
    assert len(found) == baselines


@pytest.mark.parametrize("recipe", ["ex1", "ex2", "ex3"])
def test_a_recipe_has_a_baseline(recipe: str) -> None:
    runs = planned(f"experiment={recipe}", "limit=10").runs
    baseline, *others = runs
    assert baseline.config is not None and baseline.config.recipe.is_baseline
    assert baseline.config.limit == 10
    assert not any(run.config and run.config.recipe.is_baseline for run in others)
    assert baseline.run_id.split("_")[2] == "none" and baseline.run_id.split("_")[5] == "ccfalse"


def test_a_baseline_whatever_leaves_an_experiment_sets(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "own.yaml").write_text(
        "# @package _global_\nkv_quant: {key: int8, value: int4}\nmodules: {lm_head: int8}\n"
        "sweep: {block_size: [16, 32]}\n"
    )
    overrides, _ = prepare(["experiment=own"], tmp_path)
    baseline, *others = plan(overrides, True, tmp_path).runs
    assert baseline.config is not None and baseline.config.recipe.is_baseline
    assert len(others) == 2 and all(run.config and run.config.kv_quant.value == "int4" for run in others)


def test_the_grids_of_an_experiment_are_one_sweep(tmp_path: Path) -> None:
    """One baseline for all of them, and what comes twice once; what is typed wins in each."""
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "own.yaml").write_text(
        "# @package _global_\nsweep:\n- {block_size: [16, 32]}\n- {scale_bits: [6, 8], block_size: [32]}\n"
    )
    grids, sweeps = prepare(["experiment=own"], tmp_path)
    assert sweeps
    assert said(plan(grids, True, tmp_path)) == [
        "experiment=own format=none kv_quant=none",
        "experiment=own block_size=16",
        "experiment=own block_size=32",
        "experiment=own scale_bits=6 block_size=32",
    ]
    typed, _ = prepare(["experiment=own", "block_size=64"], tmp_path)
    assert said(plan(typed, True, tmp_path))[1:] == [
        "experiment=own block_size=64",
        "experiment=own block_size=64 scale_bits=6",
    ]


@pytest.mark.parametrize(
    ("recipe", "runs"),
    [("tutorial7", 6), ("kv_rescue", 16), ("pareto", 26), ("attribution", 7), ("leaderboard", 113)],
)
def test_recipes_of_remedies(recipe: str, runs: int) -> None:
    """Each run can be, none comes twice, no word is without effect, and the task is left to the user."""
    runs_planned = planned(f"experiment={recipe}", "task=wikitext").runs
    assert check_effects(runs_planned) == []
    baseline, *others = runs_planned
    assert baseline.config is not None and baseline.config.recipe.is_baseline
    assert [run.error for run in others if run.error] == []
    assert len(others) == runs and not any(run.same for run in others)
    assert all(run.config and run.config.task.name == "wikitext" for run in others)


def test_a_recipe_that_takes_a_format_apart() -> None:
    """Each kind of tensor alone, together as they are read, and all, in the formats that were asked for."""
    for words, linear, kv in (
        ((), ("fp4_e2m1-b32-e8m0", "fp6_e2m3-b32-e8m0"), "fp4_e2m1-b32-e8m0"),
        (("format=nvfp4", "kv_quant=fp8_e4m3"), ("fp4_e2m1-b16-e4m3-tensor",) * 2, "fp8_e4m3-b16-e4m3-tensor"),
    ):
        baseline, *others = planned("experiment=attribution", *words).runs
        assert baseline.config is not None and baseline.config.recipe.is_baseline
        found = []
        for run in others:
            assert run.config is not None, run.error
            recipe = run.config.recipe
            formats = (recipe.linear.weight, recipe.linear.activation, recipe.key, recipe.value)
            found.append(tuple(fmt and str(fmt) for fmt in formats))
        weight, activation = linear
        assert found == [
            (weight, None, None, None),
            (None, activation, None, None),
            (weight, activation, None, None),
            (None, None, kv, None),
            (None, None, None, kv),
            (None, None, kv, kv),
            (weight, activation, kv, kv),
        ]


def test_a_dry_run_names_the_remedies() -> None:
    words = ("format=mxfp4", "kv_quant=int4", "kv_quant.first=0,4", "rotation=none,hadamard", "baseline=false")
    lines = preview(planned(*words).runs).text.splitlines()[4:8]
    names = [re.split(r"\s{2,}", line)[8] for line in lines]
    kept, turned = "first 4 tokens kept", "keys rotated"
    assert names == ["rtn", f"rtn + rotation + {turned}", f"rtn + {kept}", f"rtn + rotation + {kept} + {turned}"]
    text = preview(planned("format=mxfp4", "ptq=gptq", "ptq.budget=4.5").runs).text
    assert re.search(r"gptq \+ budget of 4.5 bits .* ≤ 4.5 ", text) and "Under a budget (≤)" in text
    assert "matrices" not in text
    text = preview(planned("format=mxfp4", "rotation=wush").runs).text
    assert "Under rotation=wush stored has the matrices of inputs in it" in text


def test_more_runs_than_anybody_means(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    grid = "- {seed: [" + ",".join(map(str, range(90))) + "], block_size: [" + ",".join(map(str, range(1, 90))) + "]}\n"
    (tmp_path / "experiment" / "own.yaml").write_text(f"# @package _global_\nsweep:\n{grid}{grid}")
    grids, _ = prepare(["experiment=own"], tmp_path)
    with pytest.raises(ConfigError, match="come to 16,020 runs or more; allowed: 10,000"):
        plan(grids, True, tmp_path)


def test_runs_that_are_the_same_are_run_once() -> None:
    found = planned("scale=e8m0,e5m3", "scale_bits=6,8", "baseline=false").runs
    assert [run.overrides for run in found] == [
        ("scale=e8m0", "scale_bits=6"),
        ("scale=e8m0", "scale_bits=8"),
        ("scale=e5m3", "scale_bits=6"),
    ]
    assert found[2].same == (("scale=e5m3", "scale_bits=8"),)


def test_the_attention_that_transformers_picks_is_no_run_beside_sdpa() -> None:
    found = planned("model.attention=auto,sdpa,eager", "baseline=false").runs
    assert [(run.overrides, run.same) for run in found] == [
        (("model.attention=auto",), (("model.attention=sdpa",),)),
        (("model.attention=eager",), ()),
    ]


def test_a_value_typed_twice_is_one_run() -> None:
    (run,) = planned("block_size=48,48", "baseline=false").runs
    assert run.same == ()


def test_a_model_is_loaded_once() -> None:
    found = planned("block_size=16,32", "model.dtype=float32,bfloat16", "baseline=false")
    assert said(found) == [
        "block_size=16 model.dtype=float32",
        "block_size=32 model.dtype=float32",
        "block_size=16 model.dtype=bfloat16",
        "block_size=32 model.dtype=bfloat16",
    ]


def test_a_run_that_cannot_be_has_an_id_of_its_own() -> None:
    found = planned("scale_bits=1,40,8").runs
    baseline, *runs = sorted(found, key=lambda run: run.overrides[-1] != "kv_quant=none")
    assert baseline.error is None
    assert sum(run.error is not None for run in runs) == 2
    assert len({run.run_id for run in found}) == len({run.subdir for run in found}) == 4
    assert all(run.composed["scale_bits"] in (1, 40) for run in runs if run.error)


def test_all_runs_of_a_sweep_have_one_stamp() -> None:
    assert len({run.run_id[:15] for run in planned("block_size=16,32,64").runs}) == 1
    assert (
        planned("stamp='20260207_220640'", "block_size=16").runs[1].run_id.startswith("20260207_220640_w4a6_bs16_sb8_")
    )


@pytest.mark.parametrize("path", ["gpt2", "openai-community/gpt2", "1e5", "FOLDER", "./FOLDER", "a, b"])
def test_a_model_of_ones_own_is_that_path(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FOLDER", "a, b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text('{"model_type": "llama"}')
        save_file({"w": torch.zeros(1)}, tmp_path / name / "model.safetensors")
    monkeypatch.chdir(tmp_path)
    typed = f"'{path}'" if "," in path else path
    (run,) = planned(f"model={typed}", multirun=False).runs
    (at_length,) = planned("model=hf", f"model.path={typed}", multirun=False).runs
    assert run.config == at_length.config and run.config is not None
    assert (run.config.model.name, run.config.model.path) == ("hf", path)
    assert run.overrides == (f"model={path}",)


def test_models_of_ones_own_are_swept() -> None:
    runs = planned("model=tiny,gpt2,a/b", "baseline=false").runs
    assert said(planned("model=tiny,gpt2,a/b", "baseline=false")) == ["model=tiny", "model=gpt2", "model=a/b"]
    assert [run.config and run.config.model.path for run in runs] == ["embedded", "gpt2", "a/b"]
    (run,) = planned("model=gpt2", "model.path=b", multirun=False).runs
    assert run.config is not None and run.config.model.path == "b"


def test_modules_by_any_glob() -> None:
    words = ("modules={model.layers.[01].*: none, '*.[!q]_proj':{weight: int8, activation: none}},null", "format=mxfp4")
    first, second = (run.config for run in planned(*words, "baseline=false").runs)
    assert first is not None and second is not None
    assert list(first.modules) == ["model.layers.[01].*", "*.[!q]_proj"] and second.modules == {}
    assert first.modules["*.[!q]_proj"].weight == "int8"
    assert "  model.layers.[01].*: none\n" in planned(*words, "baseline=false").runs[0].yaml["config.yaml"]


def test_a_task_option_of_ones_own_in_a_list(tmp_path: Path) -> None:
    (tmp_path / "task").mkdir()
    (tmp_path / "task" / "mine.yaml").write_text("names: [arc_easy]\nfields: {arc_easy: question}\n")
    grids, _ = prepare(["task=[mine,story]"], tmp_path)
    (run,) = plan(grids, False, tmp_path).runs
    assert run.config is not None and run.config.task.names == ("arc_easy", "story")


@pytest.mark.parametrize("word", ["ptq.formats={a:b}", "rotation.matmuls={}"])
def test_a_mapping_in_the_place_of_names_is_refused_in_the_users_words(word: str) -> None:
    field, _, value = word.partition("=")
    with pytest.raises(ConfigError) as refused:
        plan(*prepare([word, "rotation=search", "ptq.budget=5"]))
    assert str(refused.value) == f"{field}: {value} cannot be its value; allowed: names in brackets, as [a,b]"


def test_one_folder_for_two_runs_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"hydra.sweep.subdir: 'same' would be the folder of two runs"):
        planned("block_size=16,32", "hydra.sweep.subdir=same")
    found = planned("block_size=16,32", "hydra.sweep.subdir=${hydra.job.num}")
    assert len({run.subdir for run in found.runs}) == 3


def test_an_added_baseline_has_a_number_of_its_own_beside_repeated_values() -> None:
    found = planned("block_size=16,16,16,32", "hydra.sweep.subdir=${hydra.job.num}")
    assert [run.subdir for run in found.runs] == ["4", "0", "3"]


def test_what_hydra_composed_goes_along() -> None:
    (run,) = planned("block_size=16", "baseline=false").runs
    assert "block_size: 16" in run.yaml["config.yaml"]
    assert run.yaml["overrides.yaml"] == "- block_size=16\n"


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("baseline=3", "baseline: 3 is not a yes or no"),
        ("resume=maybe", "resume: 'maybe' is not a yes or no"),
        ("logging.mode=loud", "logging.mode: 'loud' is not known; allowed: online, offline"),
        ("logging=mlflow", "logging: 'mlflow' is not known; allowed: none, wandb"),
        ("hydra/launcher=gpus hydra.launcher.n=0", "hydra.launcher.n: 0 is not allowed"),
        ("hydra/launcher=gpus hydra.launcher.m=1", "hydra.launcher.m: there is no such knob"),
        ("hydra/launcher=gpus +hydra.launcher.m=1", "hydra.launcher.m: there is no such knob; allowed below"),
        ("hydra/launcher=slurm hydra.launcher.time_min=0", "hydra.launcher.time_min: 0 is not allowed"),
        ("hydra/launcher=slurm hydra.launcher.setup=x", "hydra.launcher.setup: 'x' must be a list"),
        ("hydra/launcher=slurm hydra.launcher.mem_gb=-1", "hydra.launcher.mem_gb: -1 is not allowed"),
    ],
)
def test_knobs_of_a_sweep_are_checked(word: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        planned(*word.split())
    assert message in str(caught.value)


def test_a_plan_can_be_written_down() -> None:
    """What goes into sweep.json is plain data."""
    for run in planned("block_size=16,[8,8]", "format.activation=none").runs:
        json.dumps([run.overrides, run.run_id, run.subdir, run.config_hash, run.composed])


def test_more_examples_than_the_rows_of_a_file_are_refused_when_planned(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"text": f"row number {number}"}) + "\n\n" for number in range(5)))
    words = ["task=lambada_openai", f"task.data={file}", "task.fewshot_evaluated=true"]
    few, many = (planned(*words, f"task.num_fewshot={count}").runs[0] for count in (4, 5))
    assert why_impossible(few) is None
    assert why_impossible(many) == (
        "task.num_fewshot: 5 examples are more than lambada_openai has rows for: its split 'test' holds 4 beside the "
        "one that is asked; allowed: 0 to 4"
    )
    (plain,) = (run for run in planned(*words[:2], "task.num_fewshot=5", "format=none").runs)
    assert (why_impossible(plain) or "").endswith(
        "beside the one that is asked; allowed: 0, or 0 to 4 with task.fewshot_evaluated=true, which takes them from "
        "the evaluated rows"
    )
    file.write_text(json.dumps({"text": "the only row"}) + "\n")
    assert (why_impossible(planned(*words[:2], "task.num_fewshot=1").runs[0]) or "").endswith("; allowed: 0")


@pytest.mark.parametrize("line", ["process_docs: !function rows.expand", "fewshot_config: {samples: [{q: a, a: 0}]}"])
def test_tasks_that_make_rows_of_their_own_are_judged_when_loaded(line: str, tmp_path: Path) -> None:
    (tmp_path / "common").write_text(f"{line}\n")
    (tmp_path / "rows.py").write_text("def expand(rows):\n    return rows\n")
    task = "task: expanded\ndataset_path: json\ntest_split: test\ndoc_to_text: q\ndoc_to_target: a\n"
    file = tmp_path / "rows.jsonl"
    file.write_text('{"q": "one", "a": "yes"}\n{"q": "two", "a": "no"}\n')
    words = [f"task={tmp_path}/expanded.yaml", f"task.data={file}", "task.num_fewshot=3", "task.fewshot_evaluated=true"]
    for include, is_judged in ((f"{line}\n", False), ("include: common\n", False), ("", True)):
        (tmp_path / "expanded.yaml").write_text(task + include)
        why = why_impossible(planned(*words).runs[0])
        assert (why is not None and "3 examples are more than expanded has rows for" in why) == is_judged, include


@pytest.mark.parametrize(("name", "is_judged"), [("piqa", True), ("hellaswag", False)])  # which has process_docs
def test_tasks_of_lm_eval_that_make_rows_are_judged_when_loaded(name: str, is_judged: bool, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "one"}\n{"text": "two"}\n')
    words = [f"task={name}", f"task.data={file}", "task.num_fewshot=3", "task.fewshot_evaluated=true"]
    assert (why_impossible(planned(*words).runs[0]) is not None) == is_judged
