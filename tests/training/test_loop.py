"""Trainings from their first step to their last, stopped, resumed, and split among passes."""

from __future__ import annotations

import errno
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.training_jobs import training_job
from transformers import AutoModelForCausalLM, AutoTokenizer

import mxsweep.training.curve as curve_module
from mxsweep.formats.mxformat import MXFormat
from mxsweep.formats.training import LayerFormats, OperandFormat, ProductFormats, TrainingRecipe
from mxsweep.terminal.errors import ConfigError
from mxsweep.terminal.progress_callback import silent
from mxsweep.training.curve import Curve
from mxsweep.training.initial_model import _check_fits, _warnings
from mxsweep.training.job import Rows, Trained
from mxsweep.training.quantizing import Quantizer
from mxsweep.training.saved_state import _Hashing, save_state, saved_steps
from mxsweep.training.train_model import train_alone
from mxsweep.training.training_pass import TrainingPass

TESTS = Path(__file__).resolve().parent.parent
KILLED_AT = 5
# Trains with a state every other step, and dies where the first argument says, by the signal that nobody can catch.
PROGRAM = f"""
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {str(TESTS)!r})
from helpers.training_jobs import training_job
from mxsweep.training.train_model import train_alone

def progress(done, total, phase=""):
    if phase == "training" and done == {KILLED_AT}:
        os.kill(os.getpid(), signal.SIGKILL)

train_alone(training_job(steps=8, checkpoint_every=2), Path(sys.argv[1]), progress)
"""


def losses(rows: Rows) -> list[float]:
    return [row["loss"] for row in rows]


def same_weights(a: Trained, b: Trained) -> bool:
    theirs = b.model.state_dict()
    return all(torch.equal(value, theirs[name]) for name, value in a.model.state_dict().items())


def test_a_training_leaves_a_curve_a_model_and_log_likelihoods(tmp_path: Path) -> None:
    heard: list[tuple[int, int, str]] = []
    trained = train_alone(
        training_job(eval_every=4), tmp_path, lambda done, total, phase="": heard.append((done, total, phase))
    )
    assert [row["step"] for row in trained.curve] == [1, 2, 3, 4, 5, 6]
    assert [row["tokens"] for row in trained.curve] == [128, 256, 384, 512, 640, 768]
    assert [math.isnan(row["validation_loss"]) for row in trained.curve] == [True, True, True, False, True, False]
    assert losses(trained.curve)[-1] < losses(trained.curve)[0]
    assert (0, 6, "training") in heard and heard[-1] == (6, 6, "training")
    summary = trained.summary
    assert (summary["steps"], summary["tokens"], summary["diverged_at"], summary["resumed_from"]) == (
        6,
        768,
        None,
        None,
    )
    total = -sum(row["loglikelihood"] for row in trained.validation)
    assert summary["validation_loss"] == pytest.approx(total / sum(row["tokens"] for row in trained.validation))
    assert trained.curve[-1]["validation_loss"] == summary["validation_loss"]
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert all(torch.equal(read.state_dict()[name], value) for name, value in trained.model.state_dict().items())
    assert len(AutoTokenizer.from_pretrained(tmp_path / "model")) == len(trained.tokenizer)


def test_a_training_that_was_killed_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    whole = train_alone(training_job(steps=8, checkpoint_every=2), tmp_path / "whole", silent)
    environment = os.environ | {"PYTHONPATH": str(TESTS.parent), "OMP_NUM_THREADS": str(torch.get_num_threads())}
    killed = subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path / "killed")], env=environment, timeout=300)
    assert killed.returncode == -signal.SIGKILL
    resumed = train_alone(training_job(steps=8, checkpoint_every=2), tmp_path / "killed", silent)
    assert resumed.summary["resumed_from"] == KILLED_AT - 1
    assert same_weights(whole, resumed)
    for name in ("step", "tokens", "lr", "loss", "grad_norm"):
        assert [row[name] for row in whole.curve] == [row[name] for row in resumed.curve]
    assert whole.validation == resumed.validation


def test_a_damaged_state_and_one_of_another_run_are_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="mxsweep")
    first = train_alone(training_job(checkpoint_every=2), tmp_path, silent)
    newest, before = saved_steps(tmp_path)
    assert [path.name for path in (newest, before)] == ["step_6", "step_4"]  # keep=2
    content = bytearray((newest / "state.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (newest / "state.pt").write_bytes(content)
    assert not any("goes on" in message for message in caplog.messages)
    second = train_alone(training_job(checkpoint_every=2), tmp_path, silent)
    assert second.summary["resumed_from"] == 4
    assert "Training goes on from step 4 of 6" in caplog.messages
    assert "step_6" in second.warnings[0] and "damaged" in second.warnings[0]
    assert same_weights(first, second)
    for path in saved_steps(tmp_path):
        account = json.loads((path / "state.json").read_text())
        (path / "state.json").write_text(json.dumps(account | {"identity": "of another"}))
    assert train_alone(training_job(checkpoint_every=2), tmp_path, silent).summary["resumed_from"] is None


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_batch_in_pieces_is_the_same_batch(tmp_path: Path, optimizer: str) -> None:
    changes: dict[str, Any] = {"dtype": "float32", "optimizer": optimizer}
    whole = train_alone(training_job(**changes), tmp_path / "whole", silent)
    pieces = train_alone(training_job(**changes, micro_batch=3), tmp_path / "pieces", silent)
    assert (whole.summary["micro_batch"], pieces.summary["micro_batch"]) == (4, 3)
    np.testing.assert_allclose(losses(pieces.curve), losses(whole.curve), rtol=2e-5)


def test_what_does_not_fit_is_taken_in_smaller_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train_alone(training_job(dtype="float32", steps=2), tmp_path / "whole", silent)
    cross_entropy = torch.nn.functional.cross_entropy

    def short_of_memory(logits: torch.Tensor, *others: Any, **options: Any) -> torch.Tensor:
        if len(logits) > most_rows:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return cross_entropy(logits, *others, **options)

    monkeypatch.setattr(torch.nn.functional, "cross_entropy", short_of_memory)
    most_rows = 2 * 32
    pieces = train_alone(training_job(dtype="float32", steps=2), tmp_path / "pieces", silent)
    assert pieces.summary["micro_batch"] == 2
    np.testing.assert_allclose(losses(pieces.curve), losses(whole.curve), rtol=2e-5)
    most_rows = 31
    with pytest.raises(ConfigError, match=r"train.micro_batch: 1 sequences at a time do not fit"):
        train_alone(training_job(steps=2), tmp_path / "none", silent)


def test_a_training_that_diverges_ends_and_leaves_the_state_before(tmp_path: Path) -> None:
    trained = train_alone(training_job(lr=1e30, clip=None, checkpoint_every=1, schedule="constant"), tmp_path, silent)
    at = trained.summary["diverged_at"]
    assert at is not None and trained.curve[-1]["step"] == at < 6
    assert not math.isfinite(trained.curve[-1]["loss"] + trained.curve[-1]["grad_norm"])
    assert math.isnan(trained.summary["validation_loss"])
    assert f"diverged at step {at}" in trained.warnings[-1]
    assert saved_steps(tmp_path)[0].name == f"step_{at - 1}"
    assert not (tmp_path / "model").exists()


def test_a_loss_that_stays_high_has_diverged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curve_module, "DIVERGED_STEPS", 3)
    values = [3.0, 4.5, 4.5, 3.5, 4.5, 4.5, 4.5, 1.0]
    curve = Curve([], 10, torch.device("cpu"))
    for step, value in enumerate(values[:6], 1):
        curve.add(step, 0.1, torch.tensor(value), torch.tensor(1.0))
    resumed = Curve(curve.rows, 10, torch.device("cpu"))
    for step, value in enumerate(values[6:], 7):
        resumed.add(step, 0.1, torch.tensor(value), torch.tensor(1.0))
    assert (curve.diverged_at, resumed.diverged_at) == (None, 7)
    assert len(resumed.rows) == 7


def test_a_model_is_finetuned_and_the_embedded_one_stays_as_it_was(tmp_path: Path) -> None:
    first = train_alone(training_job(init={"source": "model"}, lr=1e-4), tmp_path / "a", silent)
    again = train_alone(training_job(init={"source": "model"}, lr=1e-4), tmp_path / "b", silent)
    assert losses(first.curve) == losses(again.curve)
    assert losses(first.curve)[0] < 5  # it knows stories
    with pytest.raises(ConfigError, match=r"train.length: 512 is longer than 'tiny' takes"):
        train_alone(training_job(init={"source": "model"}, length=512), tmp_path / "c", silent)


def test_a_training_that_had_taken_its_last_step_ends_with_the_same_validation(tmp_path: Path) -> None:
    drawn = OperandFormat(MXFormat("fp4_e2m1", 16, rounding="stochastic"))
    recipe = TrainingRecipe(LayerFormats(fprop=ProductFormats(drawn, drawn)), arithmetic="exact")
    first = train_alone(training_job(recipe, steps=2), tmp_path, silent)
    again = train_alone(training_job(recipe, steps=2), tmp_path, silent)
    assert again.summary["resumed_from"] == 2
    assert again.validation == first.validation
    assert again.summary["validation_loss"] == first.summary["validation_loss"]


def test_a_state_that_a_full_disk_takes_no_more_of_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: _Hashing, data: bytes) -> int:
        if len(data) > 1000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, data)

    write = _Hashing.write
    monkeypatch.setattr(_Hashing, "write", full)  # torch.save, which it is called from, raises something else then
    with pytest.raises(OSError, match=r"No space left on device: '.*step_3'") as raised:
        save_state(tmp_path, "x", {"step": 3, "weights": torch.zeros(1000)}, 1)
    assert raised.value.errno == errno.ENOSPC
    assert not list(tmp_path.glob("*/*step*"))


def test_weights_that_no_memory_holds_are_refused_before_they_are_made() -> None:
    init = training_job(init={"hidden": 2**18, "heads": 2**10, "kv_heads": 2**10, "mlp": 2**18, "layers": 2**10}).init
    with pytest.raises(ConfigError, match=r"init: the weights of llama-262144x1024-\S+ take \S+ GiB in float32"):
        _check_fits(init, 257)
    _check_fits(training_job().init, 257)


def test_a_large_model_that_sees_little_text_is_warned_of() -> None:
    large = {"hidden": 384, "heads": 6, "kv_heads": 6, "mlp": 1024, "layers": 6}
    (said,) = _warnings(training_job(init=large))
    assert said.startswith("train: llama-10m sees 768 tokens, which is 7.2e-05 for each of its 10,616,832 parameters")
    assert not _warnings(training_job(init=large, steps=10_000))
    assert not _warnings(training_job())


def test_layers_are_told_of_held_out_sequences(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = set()
    quantizer = TrainingPass.quantizer

    def telling(self: TrainingPass, *of: Any) -> Quantizer:
        told.add((torch.is_grad_enabled(), self.step.validates))
        return quantizer(self, *of)

    monkeypatch.setattr(TrainingPass, "quantizer", telling)
    operand = OperandFormat(MXFormat("fp4_e2m1", (4, 4)))
    train_alone(
        training_job(TrainingRecipe(LayerFormats(ProductFormats(operand, operand))), eval_every=2), tmp_path, silent
    )
    assert told == {(True, False), (False, True)}
