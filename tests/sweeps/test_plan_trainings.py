"""Plans of trainings: their baselines, what a dry run shows, what is refused, and the command that trains."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mxsweep.config.overrides import prepare
from mxsweep.config.sweep_settings import Gpus
from mxsweep.config.train_words import training_words
from mxsweep.inspect import main as inspect
from mxsweep.results.manifest import read_manifest
from mxsweep.sweeps import run_sweep
from mxsweep.sweeps.dry_run import preview
from mxsweep.sweeps.impossible import why_impossible, why_not_here
from mxsweep.sweeps.launchers import check_launcher
from mxsweep.sweeps.plan import Plan, PlannedRun, plan
from mxsweep.terminal.errors import ConfigError
from mxsweep.train import main


def planned(*words: str) -> Plan:
    return plan(prepare(training_words(words, None))[0], multirun=True)


def said(found: Plan) -> list[str]:
    return [" ".join(run.overrides).removeprefix("train=from_scratch ") for run in found.runs]


def only(*words: str) -> PlannedRun:
    """Return the run that was asked for."""
    (run,) = [run for run in planned(*words).runs if not run.added]
    return run


def test_each_seed_and_whatever_else_decides_a_training_has_its_baseline() -> None:
    assert said(planned("recipe=mxfp4,nvfp4", "seed=1,2")) == [
        "seed=1 recipe=bf16", "recipe=mxfp4 seed=1", "seed=2 recipe=bf16", "recipe=mxfp4 seed=2",
        "recipe=nvfp4 seed=1", "recipe=nvfp4 seed=2",
    ]  # fmt: skip
    assert said(planned("recipe=mxfp4", "train.lr=0.1,0.2"))[::2] == [
        "train.lr=0.1 recipe=bf16",
        "train.lr=0.2 recipe=bf16",
    ]
    assert len(planned("recipe=mxfp4", "init=tiny,1m").runs) == 4
    assert len(planned("recipe=mxfp4", "train=from_scratch,finetune").runs) == 4
    same = planned("recipe=mxfp4", "train.micro_batch=1,2", "train.keep=1,2")
    assert len(same.runs) == 2 and len(same.runs[1].same) == 3


def test_a_baseline_that_is_asked_for_is_not_added() -> None:
    found = planned("recipe=bf16,mxfp4", "seed=1,2")
    assert [run.added for run in found.runs] == [False] * 4
    plain = next(run for run in planned("format=none,int8").runs if not run.added)
    assert plain.config_hash == only("recipe=bf16").config_hash


def test_a_baseline_is_that_of_the_recipe_whatever_its_leaves() -> None:
    bf16 = only("recipe=bf16").config_hash
    for words in (["recipe=quartet_like"], ["recipe=nvfp4"], ["format=none", "matmuls.dgrad.grad=fp4_e3m0"]):
        baseline, run = planned(*words).runs
        assert baseline.added and baseline.config_hash == bf16 != run.config_hash


def test_a_dry_run_says_what_would_be_trained() -> None:
    shown = preview(planned("recipe=mxfp4_sr", "seed=1,2", "train.steps=10", "train.batch=32", "init=1m").runs)
    assert not shown.is_refused
    lines = shown.text.splitlines()
    row = next(line.split() for line in lines if line.startswith("2 "))
    assert row[:9] == ["2", "from_scratch", "mxfp4_sr", "llama-1m", "1,064,960", "stories", "1", "10", "32"]
    assert "40,960" in row
    dgrad = next(line for line in lines if line.startswith("2, 4") and "dgrad" in line)
    assert "grad fp4_e2m1-b32-e8m0-round_stochastic" in dgrad and "lm_head embeddings" in dgrad
    assert "bits/weight" not in lines[2]


def test_patterns_are_those_of_the_model_that_is_trained() -> None:
    assert why_impossible(only("init=1m", "modules={model.layers.4.*: none}")) is None
    problem = why_impossible(only("init=tiny", "modules={model.layers.4.*: none}"))
    assert problem is not None and "the pattern 'model.layers.4.*' matches no linear layer" in problem
    problem = why_impossible(only("matmuls.keep_high=['*.k_prj']"))
    assert problem is not None and problem.startswith(
        "matmuls.keep_high: the pattern '*.k_prj' matches no linear layer"
    )
    assert why_impossible(only("train=finetune", "matmuls.keep_high=['*.k_proj',first:2]")) is None


def test_where_all_blocks_are_kept_nothing_is_left_to_quantize() -> None:
    for words in (["matmuls.keep_high=[lm_head,first,last:2]"], ["recipe=nvfp4", "init.layers=1"]):
        problem = why_impossible(only(*words))
        assert problem is not None and problem.startswith("matmuls.keep_high: with [lm_head, "), words
        assert "nothing of LlamaForCausalLM is quantized" in problem
    assert why_impossible(only("matmuls.keep_high=[first,last:2]")) is None  # but for the logits


def test_what_a_machine_lacks_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mxsweep.sweeps.impossible.visible_gpu_count", lambda: 2)
    problem = why_not_here(only("train.processes=4"))
    assert problem == "train.processes: 4 are more than the GPUs that are visible here, 2; allowed: 1 to 2"
    assert (
        why_not_here(only("train.processes=2")) is why_not_here(only("train.processes=4", "model.device=cpu")) is None
    )


def test_a_launcher_gives_a_training_one_process() -> None:
    run = only("train.processes=2", "model.device=cpu")
    assert run.config is not None
    with pytest.raises(ConfigError, match=r"train\.processes: 2 have no say with a launcher"):
        check_launcher(Gpus(None, 0), [run.config])
    check_launcher(None, [run.config])


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert text.index("  train.steps ") < text.index("  matmuls.dgrad.grad ") < text.index("  block_size ")
    assert "(= 0.0)" in text and "mxfp4_sr_unclipped" in text
    assert main(["train.steps=5", "--cfg", "job", "--package", "train"]) == 0
    text = capsys.readouterr().out
    assert "method: from_scratch" in text and "steps: 5" in text
    assert main(["recipe=nothing"]) == 2
    assert capsys.readouterr().err.startswith("mxsweep.train: recipe: 'nothing' is not known; allowed: bf16, mxfp4")


def test_commands_that_run_nothing_train_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert inspect(["train=finetune", "format=mxfp4"]) == 2
    assert capsys.readouterr().err.startswith("mxsweep.inspect: train: has no use here, where nothing is trained")


def test_the_command_is_a_sweep_that_anybody_can_go_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[list[str]] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run_sweep, "launch_runs", lambda launcher, runs, *_: done.append([run.run_id for run in runs]))
    monkeypatch.setattr(run_sweep, "_collect", lambda folder: None)
    main(["seed=1", "hydra.sweep.dir=sweep", "model.device=cpu"])
    manifest = read_manifest(tmp_path / "sweep")
    assert manifest is not None
    assert manifest.commands[0].overrides == ["train=from_scratch", "recipe=mxfp4", "seed=1", "model.device=cpu"]
    main(["resume=true", "hydra.sweep.dir=sweep"])
    assert (
        read_manifest(tmp_path / "sweep") == manifest
        and len(json.loads((tmp_path / "sweep" / "sweep.json").read_text())["runs"]) == 2
    )
    assert [[run_id.partition("_from_")[2].rpartition("_")[0] for run_id in ids] for ids in done] == [
        ["scratch_bf16_s1", "scratch_mxfp4_s1"]
    ] * 2
