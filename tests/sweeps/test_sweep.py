"""Sweeps in one process, with an evaluation that only pretends: folders, resuming, failures, status."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from helpers.hostile import keep_from_this_user
from safetensors.torch import save_file

from mxsweep.__main__ import main
from mxsweep.collect import main as collect
from mxsweep.config.run_config import RunConfig
from mxsweep.files.atomic import HOST
from mxsweep.files.locks import CLAIM_NAME, Lock
from mxsweep.report.figures import draw
from mxsweep.results.manifest import read_manifest
from mxsweep.results.record import find_runs, read_record
from mxsweep.runs import evaluate_config as evaluation
from mxsweep.runs import run as one_run
from mxsweep.runs.run_result import RunFiles, RunResult


@pytest.fixture
def evaluated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Counter[int]:
    """How often each block size was evaluated; 666 fails."""
    monkeypatch.chdir(tmp_path)
    counts: Counter[int] = Counter()

    def pretend(config: RunConfig, progress: Callable[[int, int], object] | None, _overrides: Any) -> RunResult:
        size = 0 if config.recipe.is_baseline else config.format.block_size
        assert isinstance(size, int)
        counts[size] += 1
        if size == 666:
            raise RuntimeError("the roof is on fire")
        if progress:
            progress(4, 8)
        entries = {
            "metrics": {"story": {"acc": 1 / (1 + size), "acc_stderr": 0.01}},
            "n_effective": {"story": 8},
            "timing": {"load_s": 0.0, "quantize_s": 0.0, "prepare_s": 0.0, "eval_s": 0.1},
            "examples_per_sec": 80.0,
        }
        return RunResult(entries, {"device": "cpu"}, RunFiles([], {}))

    monkeypatch.setattr(evaluation, "evaluate_config", pretend)
    return counts


SWEEP = ["-m", "block_size=16,32", "hydra.sweep.dir=s"]


def statuses(folder: str = "s") -> list[str]:
    return sorted(run.status for run in find_runs(folder))


def test_a_sweep_and_its_manifest(evaluated: Counter[int], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(SWEEP) == 0
    assert evaluated == {0: 1, 16: 1, 32: 1}
    manifest = read_manifest(Path("s"))
    assert manifest is not None
    assert [command.overrides for command in manifest.commands] == [["block_size=16,32"]]
    assert [run.overrides for run in manifest.runs] == [
        ["format=none", "kv_quant=none"],
        ["block_size=16"],
        ["block_size=32"],
    ]
    for run in manifest.runs:
        record = read_record(Path("s") / run.folder / "result.json")
        assert (record["run_id"], record["config_hash"]) == (run.run_id, run.config_hash)
        assert (Path("s") / run.folder / ".hydra" / "config.yaml").is_file()
    assert "run 3 of 3: story: acc 0.0303" in capsys.readouterr().err


@pytest.mark.usefixtures("drawing_processes")
def test_what_draws_gets_ready_before_the_first_run(evaluated: Counter[int], monkeypatch: pytest.MonkeyPatch) -> None:
    ready: list[bool] = []
    started = draw._started

    def start(program: str) -> subprocess.Popen[bytes]:
        ready.append(not evaluated)
        return started(program)

    monkeypatch.setattr(draw, "_started", start)
    assert main(SWEEP) == 0
    assert ready[0] and not draw._waiting


def test_a_folder_that_holds_a_sweep_is_not_taken_for_another(
    evaluated: Counter[int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(SWEEP) == 0
    assert main(SWEEP) == 2
    assert "hydra.sweep.dir: 's' already holds a sweep; add resume=true" in capsys.readouterr().err
    assert sum(evaluated.values()) == 3


def test_resuming_runs_what_is_missing_and_what_failed(
    evaluated: Counter[int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["-m", "block_size=16,32,666", "hydra.sweep.dir=s"]) == 1
    captured = capsys.readouterr()
    assert "Failed: 1" in captured.out and "the roof is on fire" in captured.out
    (lost,) = Path("s").glob("*bs16*/result.json")
    lost.unlink()
    before = {path: path.stat().st_mtime_ns for path in Path("s").glob("*/result.json")}
    assert main(["resume=true"]) == 2  # there is no sweep below ./multirun
    assert "resume: there is no sweep below ./multirun" in capsys.readouterr().err
    assert main(["resume=true", "hydra.sweep.dir=s"]) == 1
    assert "2 of 4 runs are done and are skipped, 1 failed and are run again, 1 are missing" in capsys.readouterr().out
    assert evaluated == {0: 1, 16: 2, 32: 1, 666: 2}
    unchanged = [path for path, written in before.items() if path.stat().st_mtime_ns == written]
    assert len(unchanged) == 2
    assert statuses() == ["done", "done", "done", "failed"]
    assert len(list(Path("s").glob("*/.hydra"))) == 4  # each in the folder that it had


def test_resuming_with_other_knobs_adds_to_the_sweep(evaluated: Counter[int]) -> None:
    assert main(SWEEP) == 0
    assert main(["-m", "resume=true", "block_size=32,64", "hydra.sweep.dir=s"]) == 0
    assert evaluated == {0: 1, 16: 1, 32: 1, 64: 1}
    assert sorted(pd.read_csv("s/results.csv")["block_size"].dropna()) == [16, 32, 64]
    manifest = read_manifest(Path("s"))
    assert manifest is not None and len(manifest.commands) == 2
    next(Path("s").glob("*bs64*/result.json")).unlink()
    assert main(["resume=true", "hydra.sweep.dir=s"]) == 0  # both commands
    assert evaluated == {0: 1, 16: 1, 32: 1, 64: 2}


def test_the_newest_sweep_is_resumed_with_its_own_settings(evaluated: Counter[int]) -> None:
    assert main(["-m", "block_size=16,32", "baseline=false"]) == 0
    next(Path("multirun").glob("*/*bs16*/result.json")).unlink()
    assert main(["resume=true"]) == 0
    assert evaluated == {16: 2, 32: 1}
    assert len(list(Path("multirun").iterdir())) == 1


def test_resuming_where_nothing_is_needs_knobs(evaluated: Counter[int], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["resume=true", "hydra.sweep.dir=nowhere"]) == 2
    assert "resume: 'nowhere' holds no sweep" in capsys.readouterr().err
    assert main(["-m", "block_size=16", "resume=true", "hydra.sweep.dir=new"]) == 0
    assert evaluated == {0: 1, 16: 1}


def test_a_damaged_manifest_is_one_message(evaluated: Counter[int], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(SWEEP) == 0
    Path("s/sweep.json").write_text('{"schema": 1}')
    for words in (SWEEP, ["resume=true", "hydra.sweep.dir=s"], [*SWEEP, "resume=true"]):
        assert main(words) == 2
        assert "sweep.json: is no list of planned runs" in capsys.readouterr().err
    assert collect(["s"]) == 0  # the results are there all the same
    assert "sweep.json: is no list of planned runs" in capsys.readouterr().out


def test_a_record_of_another_config_is_no_result(evaluated: Counter[int]) -> None:
    assert main(SWEEP) == 0
    (path,) = Path("s").glob("*bs16*/result.json")
    path.write_text(path.read_text().replace('"config_hash": "', '"config_hash": "0'))
    assert main(["resume=true", "hydra.sweep.dir=s"]) == 0
    assert evaluated[16] == 2


def test_a_run_that_another_process_does_is_left_to_it(
    evaluated: Counter[int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(SWEEP) == 0
    (path,) = Path("s").glob("*bs16*/result.json")
    path.unlink()
    claim = Lock.take(path.parent / CLAIM_NAME)
    assert claim is not None
    claim.write({"host": "elsewhere", "pid": 7, "answered": 3, "requests": 4})
    assert main(["resume=true", "hydra.sweep.dir=s"]) == 0
    assert evaluated[16] == 1
    capsys.readouterr()
    assert collect(["--status", "s"]) == 0
    status = capsys.readouterr().out
    assert "3 runs: 2 done, 1 running, 0 failed, 0 missing" in status
    assert "process 7 on elsewhere, 75% answered" in status
    claim.release()
    assert statuses() == ["done", "done", "missing"]


def test_status_says_why(evaluated: Counter[int], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-m", "block_size=16,666", "scale_bits=8,1", "hydra.sweep.dir=s"]) == 1
    (lost,) = Path("s").glob("*bs16_sb8*/result.json")
    lost.unlink()
    capsys.readouterr()
    assert collect(["--status", "s"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "s"
    assert lines[-2] == "5 runs: 1 done, 0 running, 3 failed, 1 missing"
    assert lines[-1] == "To go on: python -m mxsweep resume=true hydra.sweep.dir=s"
    (burnt,) = (line for line in lines if "roof" in line)
    assert burnt.startswith("failed") and "block_size=666 scale_bits=8" in burnt
    assert sum("scale_bits: 1 is not allowed; allowed: 2 to 8" in line for line in lines) == 2
    assert any(line.startswith("missing") and "stopped or killed" in line for line in lines)


def test_what_is_planned_and_not_begun_is_missing(evaluated: Counter[int]) -> None:
    assert main(SWEEP) == 0
    manifest = json.loads(Path("s/sweep.json").read_text())
    manifest["runs"].append(manifest["runs"][0] | {"folder": "later", "config_hash": "1", "overrides": ["x=1"]})
    Path("s/sweep.json").write_text(json.dumps(manifest))
    assert statuses() == ["done", "done", "done", "missing"]
    (missing,) = (run for run in find_runs("s") if run.status == "missing")
    assert (missing.path, missing.overrides, missing.reason) == (Path("s/later"), ["x=1"], "not begun")


def test_two_sweeps_of_one_second_have_a_folder_each(evaluated: Counter[int]) -> None:
    for _ in range(3):
        assert main(["-m", "block_size=16", "baseline=false", "stamp='20260207_220640'"]) == 0
    folders = sorted(path.name for path in Path("multirun").iterdir())
    assert folders == ["20260207_220640", "20260207_220640.2", "20260207_220640.3"]
    assert evaluated == {16: 3}


def test_an_interrupted_sweep_says_how_to_go_on(
    evaluated: Counter[int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pretend = evaluation.evaluate_config

    def interrupted(config: RunConfig, progress: Any, overrides: Any) -> RunResult:
        if config.format.block_size == 32 and not config.recipe.is_baseline:
            raise KeyboardInterrupt
        return pretend(config, progress, overrides)

    monkeypatch.setattr(evaluation, "evaluate_config", interrupted)
    assert main(["-m", "block_size=16,32,64", "hydra.sweep.dir=it's here"]) == 130
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("mxsweep: interrupted; 2 of 4 runs are done and kept. To go on: python -m mxsweep ")
    assert message.endswith("""resume=true hydra.sweep.dir='it'"'"'s here'""")
    monkeypatch.setattr(evaluation, "evaluate_config", pretend)
    assert main(["resume=true", "hydra.sweep.dir=it's here"]) == 0
    assert evaluated == {0: 1, 16: 1, 32: 1, 64: 1}


def test_a_full_disk_stops_the_sweep_with_one_message(
    evaluated: Counter[int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write = one_run.write_record

    def full(folder: Path, record: dict[str, Any]) -> Path:
        if len(list(Path("s").glob("*/result.json"))) == 2:
            raise OSError(28, "No space left on device", str(folder / "result.json"))
        return write(folder, record)

    monkeypatch.setattr(one_run, "write_record", full)
    assert main(["-m", "block_size=16,32,64", "hydra.sweep.dir=s"]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "cannot write (No space left on device" in error and "2 of 4 runs are done and kept" in error
    assert sum(evaluated.values()) == 3  # the next run would not have fared better
    monkeypatch.setattr(one_run, "write_record", write)
    assert main(["resume=true", "hydra.sweep.dir=s"]) == 0


def test_a_single_run_is_not_added_to_a_folder(evaluated: Counter[int], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["block_size=16", "hydra.run.dir=one"]) == 0
    assert main(["block_size=16", "hydra.run.dir=one"]) == 2
    assert "hydra.run.dir: 'one' already holds a run" in capsys.readouterr().err
    assert evaluated == {16: 1}


@pytest.mark.parametrize("word", ["logging.mode=offline", "batch_tokens=512", "batch_size=2", "baseline=true"])
def test_knobs_that_decide_no_result_do_not_change_what_is_resumed(evaluated: Counter[int], word: str) -> None:
    assert main(SWEEP) == 0
    next(Path("s").glob("*bs16*/result.json")).unlink()
    assert main(["resume=true", "hydra.sweep.dir=s", word]) == 0
    assert evaluated == {0: 1, 16: 2, 32: 1}
    manifest = read_manifest(Path("s"))
    assert manifest is not None and len(manifest.commands) == 1


def test_a_sweep_is_resumed_with_another_launcher(evaluated: Counter[int]) -> None:
    assert main([*SWEEP, "hydra/launcher=basic"]) == 0
    manifest = json.loads(Path("s/sweep.json").read_text())
    manifest["commands"][0]["overrides"] += ["hydra/launcher=slurm", "hydra.launcher.partition=gpu"]
    manifest["commands"][0]["overrides"].remove("hydra/launcher=basic")
    Path("s/sweep.json").write_text(json.dumps(manifest))
    next(Path("s").glob("*bs16*/result.json")).unlink()
    assert main(["resume=true", "hydra.sweep.dir=s", "hydra/launcher=basic"]) == 0
    assert evaluated == {0: 1, 16: 2, 32: 1}


def test_what_could_not_be_and_can_now_takes_its_failures_place(evaluated: Counter[int]) -> None:
    Path("a.jsonl").write_text('{"text": "one two"}\n')
    words = ["-m", "task=lambada_openai", "task.data=a.jsonl,b.jsonl", "block_size=16", "baseline=false"]
    assert main([*words, "hydra.sweep.dir=s"]) == 1
    assert statuses() == ["done", "failed"]
    Path("b.jsonl").write_text('{"text": "three four"}\n')
    assert main(["resume=true", "hydra.sweep.dir=s"]) == 0
    assert statuses() == ["done", "done"]
    assert evaluated == {16: 2}


def test_paths_of_a_sweep_count_from_the_folder_it_was_begun_in(
    evaluated: Counter[int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever knob names them, however, and whatever has the same name where the sweep is resumed."""
    Path("elsewhere").mkdir()
    (Path("model").mkdir(), Path("elsewhere/model").mkdir())
    for folder, text in (("", "one two"), ("elsewhere", "another")):
        Path(folder, "a.jsonl").write_text(f'{{"text": "{text}"}}\n')
        Path(folder, "cal.txt").write_text(f"{text}\n" * 999)
        Path(folder, "model", "config.json").write_text('{"model_type": "llama"}')
        save_file({text: torch.zeros(1)}, Path(folder, "model", "model.safetensors"))
    Path("conf/experiment").mkdir(parents=True)
    Path("conf/experiment/mine.yaml").write_text(
        "# @package _global_\ncalibration: {source: text, path: cal.txt}\nsweep: {block_size: [16, 32]}\n"
    )
    absolute = Path("model").resolve()
    commands = [
        ["-m", "task=lambada_openai", "task.data=a.jsonl", "block_size=16"],
        ["-m", "task=[lambada_openai,wikitext]", "task.data={lambada_openai: a.jsonl}", "block_size=32", "limit=1"],
        ["-m", "model=model", "block_size=64", "format=mxfp4,mxfp8_e4m3"],
        ["-m", "model=hf", f"model.path=model,{absolute}", "block_size=8"],
        ["-m", "experiment=mine", "ptq=gptq", "--config-dir", "conf"],
    ]
    for words in commands:
        assert main([*words, "resume=true", "hydra.sweep.dir=s"]) == 0
    before = {run.config_hash: run.folder for run in read_manifest(Path("s")).runs}  # type: ignore[union-attr]
    evaluated.clear()
    sweep = Path("s").resolve()
    monkeypatch.chdir("elsewhere")
    assert main(["resume=true", f"hydra.sweep.dir={sweep}"]) == 0
    assert evaluated == {}
    assert {run.config_hash: run.folder for run in read_manifest(sweep).runs} == before  # type: ignore[union-attr]
    for folder in sweep.glob("*_bs16_*"):
        (folder / "result.json").unlink()
    assert main(["resume=true", f"hydra.sweep.dir={sweep}"]) == 0
    assert set(evaluated) == {16} and {run.config_hash for run in read_manifest(sweep).runs} == before.keys()  # type: ignore[union-attr]
    Path("../a.jsonl").unlink()
    capsys.readouterr()
    assert main(["resume=true", f"hydra.sweep.dir={sweep}"]) == 2
    assert "resume: task.data: 'a.jsonl' is here, and is not in " in capsys.readouterr().err


@pytest.mark.parametrize("subdir", ["${hydra.job.override_dirname}", "a/" * 2200 + "${hydra.job.num}"])
def test_a_folder_that_cannot_be_made_is_refused_before_the_sweep_begins(
    subdir: str, evaluated: Counter[int], capsys: pytest.CaptureFixture[str]
) -> None:
    knobs = [
        "format.activation=none",
        "modules={" + ", ".join(f"model.layers.{n}.self_attn.*: mxfp8_e4m3" for n in range(3)) + "}",
    ]
    words = ["-m", "block_size=16,32", *knobs, "rounding=even", "limit=100", "model.dtype=bfloat16", "seed=1234"]
    words += ["kv_quant=fp4_e2m1", "scale_rounding=even", "task.num_fewshot=0", "hydra.sweep.dir=s", "baseline=false"]
    assert main([*words, f"hydra.sweep.subdir={subdir}"]) == 2
    assert "is too long: a name has 255 bytes at most" in capsys.readouterr().err
    assert not Path("s").exists()
    assert main(words) == 0


def test_a_launcher_is_for_sweeps(evaluated: Counter[int], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["block_size=16", "hydra/launcher=gpus"]) == 2
    assert "hydra/launcher: is for sweeps; add -m, or leave it out" in capsys.readouterr().err


@pytest.mark.parametrize(
    "spoil",
    [
        "result.json a folder",
        "mxsweep.log a link",
        "mxsweep.log a pipe",
        ".hydra a link",
        ".claim a link",
        "itself a link",
    ],
)
def test_what_is_in_the_place_of_a_file_leaves_out_its_run(
    evaluated: Counter[int], spoil: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """And nothing is written elsewhere, nor waited for."""
    assert main(SWEEP) == 0
    for lost in Path("s").glob("*_bs*/result.json"):
        lost.unlink()
    (folder,) = Path("s").glob("*_bs16_*")
    Path("outside").mkdir()
    Path("victim").write_text("mine")
    name, _, what = spoil.partition(" a ")
    place = folder if name == "itself" else folder / name
    shutil.rmtree(place) if place.is_dir() else place.unlink(missing_ok=True)
    if what == "link":
        place.symlink_to(Path("outside" if name in ("itself", ".hydra") else "victim").resolve())
    elif what == "pipe":
        os.mkfifo(place)
    else:
        place.mkdir()
    capsys.readouterr()
    assert main(["resume=true", "hydra.sweep.dir=s"]) == 1
    assert f"{folder} is left out: " in capsys.readouterr().err
    assert evaluated == {0: 2, 16: 1, 32: 2}
    assert list(Path("outside").iterdir()) == [] and Path("victim").read_text() == "mine"


def test_a_claim_of_another_user_leaves_out_its_run(
    evaluated: Counter[int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(SWEEP) == 0
    for lost in Path("s").glob("*_bs*/result.json"):
        lost.unlink()
    (folder,) = Path("s").glob("*_bs16_*")
    keep_from_this_user(folder / CLAIM_NAME, monkeypatch)
    capsys.readouterr()
    assert main(["resume=true", "hydra.sweep.dir=s"]) == 1
    said = capsys.readouterr()
    assert f"{folder} is left out: '.claim' in it is another user's" in said.err and "Traceback" not in said.err
    assert evaluated == {0: 2, 16: 1, 32: 2} and statuses() == ["done", "done", "missing"]
    assert collect(["s"]) == 0 and collect(["--status", "s"]) == 0


def test_a_run_that_a_manifest_puts_elsewhere_is_refused(
    evaluated: Counter[int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(SWEEP) == 0
    next(Path("s").glob("*_bs16_*/result.json")).unlink()
    content = json.loads(Path("s/sweep.json").read_text())
    for folder in ("../outside", str(Path("outside").absolute()), "a/../../outside", ".ssh", ""):
        content["runs"][1]["folder"] = folder
        Path("s/sweep.json").write_text(json.dumps(content))
        assert main(["resume=true", "hydra.sweep.dir=s"]) == 2
        assert f"{folder!r} is no folder below the sweep's" in capsys.readouterr().err
    assert not Path("outside").exists()


def test_links_in_the_place_of_what_is_written_are_replaced(evaluated: Counter[int]) -> None:
    assert main(SWEEP) == 0
    Path("victim").write_text("mine")
    for name in ("results.csv", "results.md", "report.html", "accuracy_vs_block_size.png", "sweep.json"):
        content = Path("s", name).read_bytes()
        Path("s", name).unlink()
        if name == "sweep.json":
            Path("victim").write_bytes(content)
        Path("s", name).symlink_to(Path("victim").resolve())
    before = Path("victim").read_bytes()
    assert collect(["s"]) == 0
    assert main(["-m", "resume=true", "block_size=64", "hydra.sweep.dir=s"]) == 0
    assert Path("victim").read_bytes() == before
    assert not any(path.is_symlink() for path in Path("s").iterdir())


def test_what_a_killed_process_left_is_removed_on_resuming(evaluated: Counter[int]) -> None:
    assert main(SWEEP) == 0
    (folder,) = Path("s").glob("*_bs16_*")
    (folder / "result.json").unlink()
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    left = [
        folder / f".samples.parquet.{HOST}-{dead.stdout.strip()}.1.tmp",
        Path("s") / f".report.html.{HOST}-{dead.stdout.strip()}.1.tmp",
    ]
    others = [
        Path("s") / f".report.html.{HOST}-{os.getppid()}.1.tmp",
        Path("s") / f".report.html.{HOST[::-1]}-{dead.stdout.strip()}.1.tmp",  # of another host
        folder / ".notes.tmp",
    ]
    for path in (*left, *others):
        path.write_text("half")
    assert main(["resume=true", "hydra.sweep.dir=s"]) == 0
    assert not any(path.exists() for path in left) and all(path.exists() for path in others)
