"""The benchmarks run at a tiny size without a GPU: whole tables, and reasons for what cannot be measured."""

import json
import math
import os
import random
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
TINY = ["--shape", "tiny", "--limit", "20"]
UNAVAILABLE = ("mxsweep-cuda", "stock-cuda")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of the shape of LAMBADA's."""
    words = ["the", "of", "to", "and", "was", "he", "she", "said", "with", "for", "had", "that"]
    draw = random.Random(0)
    path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    texts = [" ".join(draw.choices(words, k=draw.randint(10, 30))) for _ in range(30)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def benchmark(name: str, *arguments: str, output: Path) -> tuple[str, dict[str, Any]]:
    """Run a benchmark on a machine that shows it no GPU; its report and its figures."""
    command = [sys.executable, "-m", f"benchmarks.{name}", *TINY, "--json", str(output), *arguments]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout, json.loads(output.read_text())


@pytest.mark.slow
def test_evaluate_measures_what_it_can_and_names_the_rest(rows: Path, tmp_path: Path) -> None:
    wanted = ["mxsweep-none", "mxsweep-cuda", "mxsweep-torch", "stock-none", "stock-cuda"]
    options = ["--paths", ",".join(wanted), "--repeats", "2", "--warmup", "4"]
    stock = ["--stock-limit", "10", "--stock-batch", "4", "--stock-bootstrap", "100"]
    text, figures = benchmark("evaluate", "--data", str(rows), *options, *stock, output=tmp_path / "figures.json")

    paths = {path["path"]: path for path in figures["paths"]}
    assert list(paths) == wanted
    assert all(f"| {name} " in text for name in wanted)
    for name, path in paths.items():
        if name in UNAVAILABLE:
            assert path["reason"] and not path["error"] and path["examples_per_s"] is None
            assert f"{name} was not measured: {path['reason']}" in text
        else:
            assert path["reason"] is None
            assert path["examples"] == (10 if name.startswith("stock") else 20)
            assert path["examples_per_s"] > 0 and math.isfinite(path["metrics"]["perplexity"])
    assert [len(paths[name]["seconds"]) for name in ("mxsweep-torch", "stock-none")] == [2, 1]
    assert "measured on 10 of 20 examples" in text
    assert figures["material"]["rows"] == 20 and figures["machine"]["gpu"] is None
    assert "trained on the evaluated file itself" in text


@pytest.mark.slow
def test_grid_takes_the_wall_time_apart(rows: Path, tmp_path: Path) -> None:
    small = ["block_size=32", "scale_bits=8", "custom_cuda=false", "kv_quant=none"]
    text, figures = benchmark("grid", "--data", str(rows), "--stock-runs", "", *small, output=tmp_path / "figures.json")

    ours = figures["mxsweep"]
    assert [run["status"] for run in ours["runs"]] == ["done", "done"]
    assert sum(ours["parts_s"].values()) == pytest.approx(ours["wall_s"], abs=0.05)
    assert all(seconds > -0.05 for seconds in ours["parts_s"].values()), ours["parts_s"]
    assert "results.md" in ours["report"]
    assert "| baseline " in text and "stock" not in figures


@pytest.mark.slow
def test_grid_is_timed_by_one_worker_and_by_two(rows: Path, tmp_path: Path) -> None:
    small = ["block_size=32", "scale_bits=6,8", "custom_cuda=false", "kv_quant=none", "reuse=proven"]
    text, figures = benchmark("grid", "--data", str(rows), "--workers", "1,2", *small, output=tmp_path / "figures.json")

    one, two = figures["workers"]["1"], figures["workers"]["2"]
    for grid in (one, two):
        assert [run["status"] for run in grid["runs"]] == ["done"] * 3
        assert grid["until_first_s"] > 0 and grid["span_s"] > 0
        assert grid["until_first_s"] + grid["span_s"] < grid["wall_s"]
        assert "results.md" in grid["report"]
    assert [run["metrics"] for run in one["runs"]] == [run["metrics"] for run in two["runs"]]
    assert one["proven"] == 1  # two workers may be at both runs at once, and prove neither
    table = [line.split("|") for line in text.splitlines() if line.startswith("| ")]
    assert [row[-2].strip() for row in table[-2:]] == ["-", "yes"]
    assert "stock" not in figures


@pytest.mark.slow
def test_remedies_that_take_steps_are_measured_by_a_part_of_these(rows: Path, tmp_path: Path) -> None:
    words = random.Random(1)
    calibration = tmp_path / "text.txt"
    calibration.write_text(" ".join("".join(words.choices("abcdefgh", k=5)) for _ in range(2000)), encoding="utf-8")
    options = ["--data", str(rows), "--text", str(calibration), "--samples", "3", "--length", "32", "--steps", "2"]
    options += ["--remedies", "autoround,qat,gptq", "ptq.steps=6"]
    text, figures = benchmark("remedies", *options, output=tmp_path / "figures.json")

    *tuned, plain = figures["remedies"]
    assert [one["name"] for one in tuned] == ["autoround", "qat"] and plain["of_steps_s"] == 0
    for one in tuned:
        assert 0 < one["of_steps_s"] < one["measured_s"]
        assert one["seconds"] == pytest.approx(one["measured_s"] + 2 * one["of_steps_s"])
        (line,) = [line for line in text.splitlines() if line.startswith(f"| {one['name']} ")]
        assert "2 of 6 steps measured" in line and "counted 3 times" in line and f"{one['seconds']:.2f}" in line
    assert not any(one["cached"] for one in figures["remedies"])


@pytest.fixture
def grid_stock(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(REPOSITORY))
    from benchmarks import grid_stock

    return grid_stock


def result(quantized: str, block_size: int, key_value: bool, seconds: float) -> dict[str, Any]:
    point = {"quantized": quantized, "block_size": block_size, "key_value": key_value}
    return {"point": point, "examples": 10, "seconds": [seconds]}


def test_stock_time_is_scaled_to_25_runs(grid_stock: ModuleType) -> None:
    kinds = [(quantized, kv) for quantized in ("cuda", "torch") for kv in (False, True)]
    # Of an unquantized example 0.1 s, of the others 0.2 s; block 64 was measured for one kind only, at 0.5 s.
    results = [result("none", 32, False, 1.0)] + [result(quantized, 32, kv, 2.0) for quantized, kv in kinds]
    total, formula = grid_stock.scale(3.0, [*results, result("torch", 64, True, 5.0)], examples=100)
    # torch with KV: block 32 at 0.2 s, 64 at 0.5 s, 16 at their mean, twice each.
    assert total == pytest.approx(25 * 3 + 100 * (0.1 + 18 * 0.2 + 2 * (0.35 + 0.2 + 0.5)))
    assert "25 processes x 3.0 s + 100 examples" in formula


def test_no_stock_time_from_a_part_of_the_kinds(grid_stock: ModuleType) -> None:
    total, formula = grid_stock.scale(
        3.0, [result("none", 32, False, 1.0), result("torch", 32, False, 1.0)], examples=100
    )
    assert total is None
    assert "nothing measured for microxcaling CUDA, microxcaling CUDA with KV, microxcaling PyTorch with KV" in formula


def test_scoring_is_measured_beside_the_decoder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from benchmarks import vocabulary

    output = tmp_path / "figures.json"
    options = ["--shape", "tiny", "--entries", "512,1024", "--tokens", "160", "--repeats", "1"]
    assert vocabulary.main([*options, "--json", str(output)]) == 0
    text, figures = capsys.readouterr().out, json.loads(output.read_text())["figures"]
    assert [list(figures[entries]) for entries in ("512", "1024")] == [["words", "texts"]] * 2
    for kind, each in figures["1024"].items():
        assert each["scored"] > 0 and each["decoder"] > 0
        shown = [f"{each['scored']:.3f}"] + [f"{each['scored'] / each[name]:.2f}" for name in ("logits", "decoder")]
        (line,) = [line for line in text.splitlines() if line.startswith(f"| {kind}") and "1,024" in line]
        assert all(figure in line for figure in shown)


@pytest.mark.slow
def test_diagnostics_are_measured_on_the_embedded_model_without_data(tmp_path: Path) -> None:
    options = ["--paths", "embedded", "--repeats", "1", "--warmup", "4", "limit=20", "--data", str(tmp_path / "none")]
    text, figures = benchmark("diagnostics", *options, output=tmp_path / "figures.json")
    (path,) = figures["paths"]
    assert path["examples"] == 20 and path["ratio_first"] > 0 and path["same_metrics"]
    assert figures["material"] is None and "embedded: diagnostics take" in text


def test_missing_data_is_said(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.evaluate", *TINY]
    environment = {**os.environ, "MXSWEEP_SHARED": str(tmp_path)}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert str(tmp_path) in done.stderr and "--data" in done.stderr
