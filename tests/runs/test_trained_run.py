"""A run that trains: what it leaves, where it goes on from, and what becomes of one that diverges."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from helpers.small_trainings import TRAINED, answers_of, curve_of

from mxsweep import compose, run
from mxsweep.inspect import main as inspect
from mxsweep.model import load
from mxsweep.results.record import read_record
from mxsweep.runs.new_record import summarize_record
from mxsweep.sensitivity import main as sensitivity
from mxsweep.terminal.progress_callback import TRAINING
from mxsweep.training.saved_state import saved_steps


def trained(folder: Path | None, *words: str, **options: Any) -> dict[str, Any]:
    record = run(compose([*TRAINED, *words]), folder, **options)
    assert record["status"] == "done", record["error"]
    return record


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("undisturbed")
    return folder, trained(folder, "recipe=mxfp4_sr", "train.checkpoint_every=2", "train.eval_every=3")


def test_record_and_files(undisturbed: tuple[Path, dict[str, Any]]) -> None:
    folder, record = undisturbed
    assert record == read_record(folder / "result.json")
    assert list(record["metrics"]) == ["validation", "story"]
    assert record["n_effective"] == {"validation": 3, "story": 6}
    training, loss = record["training"], record["metrics"]["validation"]
    assert (training["steps"], training["tokens"]) == (6, 6 * 2 * 32)
    assert training["diverged_at"] is None and training["resumed_from"] is None
    assert set(loss) == {"loss", "loss_stderr"} and loss["loss"] == training["validation_loss"]
    assert {"train_s", "load_s", "quantize_s", "eval_s", "total_s"} <= set(record["timing"])
    assert record["examples_per_sec"] == pytest.approx(6 / record["timing"]["eval_s"])
    assert record["diagnostics"]["layers_replaced"] == 14 and record["memory"]["peak_host_bytes"] > 1e8
    samples = pd.read_parquet(folder / "samples.parquet")
    held = samples[samples["task"] == "validation"]
    assert -held["loglikelihood"].sum() / held["tokens"].sum() == pytest.approx(loss["loss"])
    assert held["doc_hash"].nunique() == 3 and (samples["task"] == "story").sum() == 6
    curve = curve_of(folder)
    assert curve["step"].tolist() == [1, 2, 3, 4, 5, 6]
    assert curve["validation_loss"].notna().tolist() == [False, False, True, False, False, True]
    assert curve["validation_loss"].iloc[-1] == loss["loss"]
    roles = pd.read_parquet(folder / "roles.parquet")
    assert {"fprop.input", "dgrad.grad", "wgrad.grad", "dW", "dX"} <= set(roles["operand"])
    assert (folder / "model" / "model.safetensors").is_file() and not (folder / "checkpoints").exists()
    said = summarize_record(record)
    assert said.startswith("validation: loss ") and "(training: 6 steps in " in said and "6 examples in " in said


def test_the_model_is_a_checkpoint_as_any_other(
    undisturbed: tuple[Path, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, record = undisturbed
    model = ["model=hf", f"model.path={folder}/model", "model.device=cpu"]
    again = run(compose([*model, "format=mxfp4", "rounding=even", "limit=6"]))
    assert again["metrics"]["story"] == record["metrics"]["story"]
    assert again["diagnostics"]["bits_per_weight"] == record["diagnostics"]["bits_per_weight"]
    assert run(compose([*model, "format=none", "limit=6"]))["metrics"]["story"] != record["metrics"]["story"]
    assert inspect([*model, "format=mxfp4"]) == 0
    assert "model.layers.0" in capsys.readouterr().out
    stories = ["calibration=stories", "calibration.samples=2", "calibration.length=32"]
    assert sensitivity([*model, *stories, "format=mxfp4"]) == 0


def test_no_model_is_kept_afterwards(undisturbed: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    load.load_model("embedded", device="cpu")
    trained(tmp_path, "recipe=bf16", "train.steps=1")
    assert not load._kept


class Stopped(BaseException):
    """What Ctrl-C, or a signal of Slurm's, does."""


def stop_at(step: int) -> Any:
    def progress(done: int, _total: int, phase: str = "", /) -> None:
        if phase == TRAINING and done == step:
            raise Stopped

    return progress


def test_a_training_goes_on_where_it_was_stopped(undisturbed: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    words = ["recipe=mxfp4_sr", "train.checkpoint_every=2", "train.eval_every=3"]
    for step, newest in ((3, 2), (5, 4)):
        with pytest.raises(Stopped):
            trained(tmp_path, *words, progress=stop_at(step))
        assert not (tmp_path / "result.json").exists()
        assert saved_steps(tmp_path)[0].name == f"step_{newest}"
    record = trained(tmp_path, *words)
    assert record["training"]["resumed_from"] == 4
    assert answers_of(tmp_path, record) == answers_of(*undisturbed)
    assert not (tmp_path / "checkpoints").exists()


def test_checkpoints_of_another_config_are_passed_over(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        trained(tmp_path, "train.checkpoint_every=2", progress=stop_at(3))
    record = trained(tmp_path, "train.checkpoint_every=2", "seed=5")
    assert record["training"]["resumed_from"] is None


def test_a_run_that_failed_after_its_training_keeps_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no evaluation today")

    with monkeypatch.context() as patch:
        patch.setattr("mxsweep.runs.evaluator.evaluate", broken)
        record = run(compose([*TRAINED]), tmp_path)
        assert record["status"] == "failed" and record["error"]["message"] == "no evaluation today"
    assert trained(tmp_path)["training"]["resumed_from"] == 6


def test_a_diverged_training_is_a_result(tmp_path: Path) -> None:
    record = trained(tmp_path, "recipe=mxfp4", "train.lr=1e30", "train.warmup=0", "train.clip=null")
    at = record["training"]["diverged_at"]
    assert 1 <= at <= 6 and record["training"]["steps"] == at
    assert any(f"diverged at step {at}" in warning for warning in record["warnings"])
    assert set(record["metrics"]) == {"validation", "story"}
    assert set(record["metrics"]["story"]) == {"acc", "perplexity"}
    assert all(math.isnan(value) for metrics in record["metrics"].values() for value in metrics.values())
    assert record["n_effective"]["story"] == 0
    assert len(curve_of(tmp_path)) == at and not (tmp_path / "model").exists()
    assert pd.read_parquet(tmp_path / "samples.parquet")["loglikelihood"].isna().all()
    assert f"diverged in step {at}" in summarize_record(record)


def test_without_a_task_the_held_out_loss_is_all(tmp_path: Path) -> None:
    record = trained(tmp_path, "recipe=mxfp8", "task=none", "train.steps=1")
    assert list(record["metrics"]) == ["validation"] and record["n_effective"] == {"validation": 3}
    assert record["diagnostics"]["bits_per_weight"] == 8.25 and record["examples_per_sec"] is None
    assert not (tmp_path / "lm_eval.json").exists() and (tmp_path / "model").is_dir()
    assert "examples in" not in summarize_record(record)


def test_what_training_kept_high_the_evaluation_keeps(tmp_path: Path) -> None:
    record = trained(None, "recipe=mxfp4", "matmuls.keep_high=[lm_head,embeddings,last]", "train.steps=1")
    assert record["diagnostics"]["layers_replaced"] == 7


def test_a_training_that_quantizes_gradients_alone_is_no_baseline_that_guesses(tmp_path: Path) -> None:
    config = compose([*TRAINED, "recipe=bf16", "matmuls.dgrad.grad=mxint8", "train.steps=1", "train.lr=1"])
    assert config.recipe.is_baseline and not config.is_baseline
    (warning,) = (text for text in run(config, tmp_path)["warnings"] if "a guess" in text)
    assert "quantized in this way, the model is no better than a guess" in warning and "is no baseline" not in warning


def test_finetuning_begins_with_the_models_weights(tmp_path: Path) -> None:
    few = ["train=finetune", "train.steps=2", "train.batch=2", "train.length=32", "train.eval_sequences=3"]
    record = run(compose([*few, "recipe=bf16", "limit=6", "model.device=cpu"]), str(tmp_path / "a run"))
    assert record["status"] == "done", record["error"]
    assert record["metrics"]["story"]["acc"] > 0.5
    assert (tmp_path / "a run" / "model").is_dir()
    plain = load.load_model("embedded", dtype="float32", device="cpu").model
    assert plain.training is False
