"""A dry run: the bits and bytes of the run's own operands, and what cannot be known is unknown."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mxsweep.config.overrides import prepare
from mxsweep.files.checkpoints import model_folder
from mxsweep.formats.export_targets import TARGET_NAMES
from mxsweep.sweeps.dry_run import _runs, preview
from mxsweep.sweeps.plan import plan


def dry_run(*words: str) -> list[str]:
    return preview(plan(prepare(list(words))[0], False).runs).text.splitlines()


def numbers(*words: str) -> tuple[str, ...]:
    """Bits a weight, megabytes stored and in memory, of the only run."""
    return tuple(cell.strip() for cell in dry_run(*words)[4].split("  ") if cell)[-3:]


def test_the_embedded_model() -> None:
    assert numbers("format=mxfp4") == ("4.25", "0.5 MB", "3.8 MB")
    assert numbers("format=mxfp4", "model.dtype=float16") == ("4.25", "0.4 MB", "1.9 MB")
    assert numbers("format=mxfp4", "ptq.budget=4.5")[0] == "≤ 4.5"
    assert numbers("format=none") == ("-", "2.1 MB", "2.1 MB")


@pytest.mark.parametrize(("runtime", "by"), [("vllm", "as vLLM"), ("quark", "as Quark"), ("none", "")])
def test_the_runtime_that_computes_is_named(runtime: str, by: str) -> None:
    (line,) = [line for line in dry_run("format=mxfp4", f"runtime={runtime}", "arithmetic=exact") if "exact" in line]
    assert line.split("torch, exact")[1].split("4.25")[0].strip() == by


def test_which_target_holds_the_formats() -> None:
    assert dry_run("format=mxfp4")[-1] == (
        "note, of run 1: mxsweep.export can write it for compressed-tensors, as far as formats tell"
    )
    assert dry_run("format=w4a6", "export=quark")[-1].endswith(
        "its model will be written for quark, as far as formats tell"
    )
    *_, head, reason = dry_run("format=mxfp4", "export=modelopt")
    assert head == "note, of run 1: export: its model will not be written:" and reason.startswith("  modelopt: ")


def test_why_no_target_holds_them_is_said_target_by_target_where_one_is_asked_for() -> None:
    *_, why = "\n".join(dry_run("format=mxfp8_e5m2", "export=auto")).partition("will not be written:\n")
    assert [line.split(":")[0].strip() for line in why.splitlines()] == list(TARGET_NAMES)
    assert why.startswith("  compressed-tensors: elements fp8_e5m2 have no place; allowed: fp4_e2m1")
    assert dry_run("format=mxfp4", "kv_quant=fp4_e2m1", "export=auto")[-1].startswith("  keys and values in blocks")


def test_inputs_with_matrices_of_their_own_are_planned_without_calibration_data() -> None:
    told = dry_run("format=mxfp4", "rotation=wush", "ptq=gptq", "export=auto")
    assert "gptq + WUSH" in told[4] and "4.25" in told[4]
    assert told[-1].startswith("  inputs whose blocks are multiplied by matrices of their own as the model runs")


@pytest.mark.parametrize("method", ["hadamard", "wush"])
@pytest.mark.parametrize("words", ["format=mxfp4 modules={'*':none}", "format=none modules={lm_head:mxfp4}"])
def test_a_rotation_of_what_stays_as_it_is_is_said_to_have_no_effect(method: str, words: str) -> None:
    told = dry_run(*words.split(), f"rotation={method}")
    assert any(line.startswith(f"warning, of run 1: rotation={method}: has no effect in this run") for line in told)
    told = dry_run("format=mxfp4", f"rotation={method}")
    assert not any("has no effect" in line for line in told)


def test_what_no_target_holds_is_said_in_one_line_where_none_was_asked_for() -> None:
    runs = plan(prepare(["format=mxfp8_e5m2", "scale=e8m0,fp32", "kv_quant=none,int8"])[0], True).runs
    said = [line for line in preview(runs).text.splitlines() if "mxsweep.export" in line]
    assert said == ["note, of runs 2 to 5: mxsweep.export has no target for it; with export=auto a dry run says why"]
    asked = prepare(["train=from_scratch", "recipe=mxfp8_e5m2_grad", "format=mxfp8_e5m2"])[0]
    assert "export" not in preview(plan(asked, False).runs).text


NVFP4 = "{weight: fp4_e2m1, activation: none, block_size: 16, scale: e4m3, tensor_scale: true}"


def test_targets_are_asked_for_every_operand() -> None:
    mixed = dry_run("format=mxfp4", "export=compressed-tensors", "modules={*.q_proj: mxfp8_e4m3}")[-1]
    assert "  compressed-tensors: model.layers.0.self_attn.q_proj, " in mixed
    assert "are one layer where vLLM loads them, and have several formats" in mixed
    # A scale of the tensor of its own is in the way only of layers that vLLM has as one.
    down, q = (
        dry_run("format=mxfp4", "format.activation=none", "export=compressed-tensors", f"modules={{{name}: {NVFP4}}}")
        for name in ("*.down_proj", "*self_attn.[qkv]_proj")
    )
    assert down[-1].endswith("its model will be written for compressed-tensors, as far as formats tell")
    assert "each has a scale of the tensor of its own" in q[-1]
    columns = dry_run("format=nvfp4", "format.activation=none", "modules={*.down_proj: none}", "export=auto")[-1]
    assert columns.endswith("its model will be written for gguf, as far as formats tell")
    assert "lm_head" not in columns


def test_a_pattern_that_matches_nothing() -> None:
    *_, problem = dry_run("format=mxfp4", "modules={lm_hed: none}")
    assert "cannot be: modules: the pattern 'lm_hed' matches no linear layer or embedding: no module" in problem
    assert numbers("format=mxfp4", "modules={lm_hed: none}") == ("unknown", "unknown", "unknown")


def test_what_refuses_several_runs_is_said_once() -> None:
    runs = plan(prepare(["format=mxfp4", "limit=1,2,3,4", "modules={lm_hed: none}"])[0], True).runs
    problems = [line for line in preview(runs).text.splitlines() if "cannot be: " in line]
    assert len(problems) == 1
    assert problems[0].startswith("runs 2, 4, 6, 8 cannot be: modules: the pattern 'lm_hed'")  # baselines between them
    (alone,) = [line for line in dry_run("format=mxfp4", "modules={lm_hed: none}") if "cannot be: " in line]
    assert "(format=mxfp4 " in alone


@pytest.mark.parametrize(
    ("numbers", "text"), [([3], "run 3"), ([1, 2], "runs 1, 2"), ([2, 4, 6, 7, 8, 10], "runs 2, 4, 6 to 8, 10")]
)
def test_three_runs_in_a_row_are_a_range(numbers: list[int], text: str) -> None:
    assert _runs(numbers) == text


@pytest.mark.parametrize("path", ["someone/on-the-hub", "folder"])
def test_what_is_not_here_or_cannot_be_built_is_unknown(path: str, tmp_path: Path) -> None:
    folder = model_folder("embedded")
    assert folder is not None
    shutil.copytree(folder, tmp_path / "folder")
    (tmp_path / "folder" / "config.json").write_text('{"model_type": "no-such-type"}')
    where = path if "/" in path else str(tmp_path / path)
    assert numbers("format=mxfp4", "model=hf", f"model.path={where}") == ("unknown", "unknown", "unknown")


def test_a_plan_for_a_model_on_the_hub_imports_no_torch(tmp_path: Path) -> None:
    program = (
        "import sys; from mxsweep.__main__ import main; sys.argv[1:] = ['model=hf', 'model.path=someone/on-the-hub',"
        "'modules={lm_head: none}', 'dry_run=true']; main(); assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "unknown" in done.stdout
