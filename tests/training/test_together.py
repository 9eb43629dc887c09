"""Several processes train one model as one process does, or go on where one was, on the CPU."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.training_jobs import training_job

from mxsweep.formats.mxformat import MXFormat
from mxsweep.formats.training import LayerFormats, OperandFormat, ProductFormats, TrainingRecipe
from mxsweep.terminal.errors import ConfigError
from mxsweep.training.saved_state import FOLDER
from mxsweep.training.together import BETWEEN, _last_lines
from mxsweep.training.train_model import train_alone, train_shared

pytestmark = pytest.mark.long


def recipe() -> TrainingRecipe:
    """Return a recipe that rounds gradients stochastically."""
    nearest = OperandFormat(MXFormat("fp4_e2m1", 16))
    drawn = OperandFormat(MXFormat("fp4_e2m1", 16, rounding="stochastic"))
    return TrainingRecipe(
        LayerFormats(ProductFormats(nearest, nearest), ProductFormats(drawn, nearest), ProductFormats(drawn, nearest)),
        arithmetic="exact",
    )


@pytest.mark.parametrize(
    ("parallel", "begun", "steps"),
    [("ddp", None, 3), ("ddp", 1, 2), ("fsdp", None, 2), ("fsdp", 1, 3)],
    ids=["ddp", "ddp, begun by one", "fsdp", "fsdp, begun by one"],
)
def test_two_processes_train_as_one_does(
    parallel: str, begun: int | None, steps: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[tuple[int, int, str]] = []

    def progress(done: int, total: int, phase: str = "") -> None:
        seen.append((done, total, phase))

    options: dict[str, Any] = {"steps": steps, "dtype": "float32", "micro_batch": 1, "checkpoint_every": 1, "keep": 3}
    options["optimizer"] = "muon" if parallel == "fsdp" else "adamw"
    alone = train_alone(training_job(recipe(), **options), tmp_path / "alone", progress)
    if begun is not None:
        saved = Path(FOLDER, f"step_{begun}")
        shutil.copytree(tmp_path / "alone" / saved, tmp_path / "shared" / saved)
    seen.clear()
    caplog.set_level("INFO", logger="mxsweep")
    job = training_job(recipe(), **options, processes=2, parallel=parallel)
    shared = train_shared(job, tmp_path / "shared", progress)
    # The process that waits for the two says where they go on from.
    assert shared.summary["resumed_from"] == begun
    assert [message for message in caplog.messages if "goes on" in message] == (
        [] if begun is None else [f"Training goes on from step {begun} of {steps}"]
    )
    for one, other in zip(alone.curve, shared.curve, strict=True):
        # Of sums in another order; with other random numbers the first gradients would differ by a tenth.
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-3)
    assert [row["doc_hash"] for row in alone.validation] == [row["doc_hash"] for row in shared.validation]
    assert alone.summary["validation_loss"] == pytest.approx(shared.summary["validation_loss"], rel=1e-4)
    assert shared.summary["processes"] == 2
    assert (steps, steps, "training") in seen
    for name, tensor in alone.model.state_dict().items():
        torch.testing.assert_close(shared.model.state_dict()[name], tensor, atol=2e-3, rtol=0)
    assert (tmp_path / "shared" / "model" / "model.safetensors").exists()
    gone_on = train_alone(training_job(recipe(), **options), tmp_path / "shared", progress)  # from what two have saved
    assert gone_on.summary["resumed_from"] == steps
    for name, tensor in gone_on.model.state_dict().items():
        assert torch.equal(shared.model.state_dict()[name], tensor)


def test_what_a_user_can_mend_is_said_by_the_process_that_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (temporary := tmp_path / "temporary").mkdir()
    (tmp_path / f"{BETWEEN}of_a_killed_process").mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr("tempfile.tempdir", None)  # which remembers the folder before
    job = training_job(length=4096, processes=2, init={"source": "model"})
    with pytest.raises(ConfigError, match=r"train\.length: 4096"):
        train_shared(job, tmp_path, lambda *_: None)
    assert not list(temporary.iterdir())
    assert not list(tmp_path.glob(f"{BETWEEN}*"))


def test_a_process_that_died_is_told_of_by_its_error(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("a line\n[rank1]: Traceback (most recent call last):\n[rank1]: OSError: no space\nthe launcher's\n")
    assert _last_lines(log).splitlines()[0] == "OSError: no space"
    log.write_text("a line\n")
    assert _last_lines(log).strip() == "a line"
