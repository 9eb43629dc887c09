"""Files that change under their names between two runs: nothing of the old ones is taken for the new ones'."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mxsweep import compose, run
from mxsweep.evaluate.stories import stories
from mxsweep.files.checkpoints import model_folder
from mxsweep.report.collection import collect
from mxsweep.results.groups import read_results


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A model folder m and rows.jsonl beside it, as two commands in one folder name them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = model_folder("embedded")
    assert folder is not None
    shutil.copytree(folder, "m")
    write_rows(seed=5)
    return ["model=hf", "model.path=m", "model.device=cpu", "task=lambada_openai", "task.data=rows.jsonl"]


def write_rows(seed: int) -> None:
    rows = [json.dumps({"text": text}) for text in stories(24, seed=seed)]
    Path("rows.jsonl").write_text("\n".join(rows) + "\n")


def perturb(file: str) -> None:
    """Make other weights of a model's: its second layer's with noise of a quarter of their spread."""
    weights = load_file(file)
    torch.manual_seed(0)
    for name, weight in weights.items():
        noise = 0.25 * weight.std() * torch.randn_like(weight) if ".layers.1." in name else 0
        weights[name] = weight.clone() + noise
    save_file(weights, "new.safetensors", metadata={"format": "pt"})
    Path("new.safetensors").replace(file)


def evaluate(words: list[str], folder: str) -> dict[str, Any]:
    record = run(compose(words), Path("runs") / folder)
    assert record["status"] == "done", record["error"]
    return dict(record["metrics"]["lambada_openai"])


@pytest.mark.parametrize("changed", ["weights", "rows"])
def test_a_run_is_compared_with_the_baseline_of_its_own_files(words: list[str], changed: str) -> None:
    metrics = {"1_base": evaluate([*words, "format=none"], "1_base"), "2_b16": evaluate(words, "2_b16")}
    perturb("m/model.safetensors") if changed == "weights" else write_rows(seed=6)
    metrics |= {"3_base": evaluate([*words, "format=none"], "3_base"), "4_b16": evaluate(words, "4_b16")}
    assert metrics["1_base"] != metrics["3_base"]
    results = read_results("runs")
    pairs = {
        row.run.path.name: baseline.run.path.name
        for group in results.groups
        for row in group.rows
        if not row.is_baseline and (baseline := group.baseline_for(row)) is not None
    }
    assert pairs == {"2_b16": "1_base", "4_b16": "3_base"}
    text = collect("runs").text
    for run_name, baseline in pairs.items():
        change = metrics[run_name]["perplexity"] / metrics[baseline]["perplexity"] - 1
        assert f"({change:+.1%})" in text
    digest = "model.digest" if changed == "weights" else "task.digest"
    assert len(set(re.findall(rf"{digest}=(\w+)", text))) == 2  # titles for each, which tell them apart


def test_weights_that_an_index_names_elsewhere_are_not_taken_for_older_ones(words: list[str]) -> None:
    Path("cal.txt").write_text("\n\n".join(stories(120, seed=3, split="train")))
    Path("m/model.safetensors").rename("w.safetensors")
    names = dict.fromkeys(load_file("w.safetensors"), "../w.safetensors")
    Path("m/model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    gptq = [*words, "ptq=gptq", "calibration=text", "calibration.path=cal.txt", "calibration.samples=4"]
    before = compose(gptq).config_hash
    old = evaluate(gptq, "old")
    perturb("w.safetensors")
    assert compose(gptq).config_hash != before  # or a sweep would skip it as done
    new = evaluate(gptq, "new")
    shutil.rmtree("cache")
    assert evaluate(gptq, "again") == new != old  # with no older artefact to take
