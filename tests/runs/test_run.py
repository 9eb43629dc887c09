"""One run from Python: the record it returns and leaves, and what becomes of failures."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from mxsweep import compose, run
from mxsweep.evaluate.stories import stories
from mxsweep.files.checkpoints import model_folder
from mxsweep.model.footprint import footprint
from mxsweep.model.linear import MXLinear
from mxsweep.model.load import load_model
from mxsweep.model.meta import meta_model, recipe_problem
from mxsweep.numerics.kernels.cpu_library import CpuLibrary
from mxsweep.results.record import read_record
from mxsweep.runs.new_record import summarize_record

FEW = ["limit=24", "model.device=cpu"]


def test_record_and_files(tmp_path: Path) -> None:
    config = compose(["block_size=16", *FEW])
    record = run(config, tmp_path, overrides=["block_size=16"], stamp="20260207_220640")
    assert record == read_record(tmp_path / "result.json")
    assert record["status"] == "done"
    assert record["error"] is None
    assert record["run_id"] == f"20260207_220640_w4a6_bs16_sb8_ccfalse_{config.config_hash[:8]}"
    assert record["config"] == config.as_dict()
    assert record["overrides"] == ["block_size=16"]
    assert set(record["metrics"]["story"]) == {"acc", "acc_stderr", "perplexity", "perplexity_stderr"}
    assert record["n_effective"] == {"story": 24}
    assert set(record["timing"]) == {
        "load_s",
        "quantize_s",
        "warm_up_s",
        "prepare_s",
        "eval_s",
        "total_s",
    }
    assert record["examples_per_sec"] == pytest.approx(24 / record["timing"]["eval_s"])
    assert record["diagnostics"]["bits_per_weight"] == 4.5
    assert record["memory"]["peak_host_bytes"] > 1e8
    assert record["environment"]["versions"]["lm_eval"]
    samples = pd.read_parquet(tmp_path / "samples.parquet")
    assert samples["acc"].mean() == pytest.approx(record["metrics"]["story"]["acc"])
    assert len(samples) == 24
    results = json.loads((tmp_path / "lm_eval.json").read_text())
    assert results["results"]["story"]["acc,none"] == record["metrics"]["story"]["acc"]
    assert summarize_record(record).startswith("story: acc ")


def test_a_run_can_be_given_its_id(tmp_path: Path) -> None:
    assert run(compose(FEW), tmp_path, run_id="bs16_sb8", stamp="20260207_220640")["run_id"] == "bs16_sb8"
    assert read_record(tmp_path / "result.json")["run_id"] == "bs16_sb8"


def test_progress_is_told_and_no_bar_is_shown(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    told: list[tuple[int, int]] = []
    shutil.copytree(model_folder("embedded"), tmp_path, dirs_exist_ok=True)  # a model that is not kept yet

    def asked(done: int, total: int) -> None:
        told.append((done, total))

    config = compose(["model=hf", f"model.path={tmp_path}", "batch_tokens=200", "task.num_fewshot=1", *FEW])
    assert run(config, progress=asked)["status"] == "done"
    assert {total for _, total in told} == {24}
    assert [done for done, _ in told] == sorted({done for done, _ in told})
    assert len(told) > 5
    assert told[-1] == (24, 24)
    captured = capfd.readouterr()
    assert "it/s" not in captured.err + captured.out


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit])
def test_an_interrupted_run_leaves_no_record_and_the_model_whole(
    interruption: type[BaseException], tmp_path: Path
) -> None:
    config = compose(["kv_quant=fp4_e2m1", *FEW])
    before = run(config)["metrics"]
    model = load_model("embedded", dtype="float32", device="cpu").model
    weights = {name: value.clone() for name, value in model.state_dict().items()}

    def interrupt(_done: int, _total: int) -> None:
        assert any(isinstance(module, MXLinear) for module in model.modules())
        raise interruption

    with pytest.raises(interruption):
        run(config, tmp_path / "run", progress=interrupt)
    assert not (tmp_path / "run").exists()
    assert load_model("embedded", dtype="float32", device="cpu").model is model
    assert not any(isinstance(module, MXLinear) for module in model.modules())
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
    after = model.state_dict()
    assert after.keys() == weights.keys()
    assert all(torch.equal(after[name], weights[name]) for name in weights)
    assert run(config)["metrics"] == before


def test_a_record_that_cannot_be_written_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        run(compose(FEW), tmp_path / "file" / "run")

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device"):
        run(compose(FEW), tmp_path / "run")
    assert not list((tmp_path / "run").glob("*result.json*"))


def test_results_do_not_depend_on_what_ran_before() -> None:
    def metrics(*overrides: str) -> object:
        return run(compose([*overrides, *FEW]))["metrics"]

    baseline = metrics("format=none")
    quantized = metrics("kv_quant=fp4_e2m1", "rounding=stochastic")
    assert quantized != baseline
    assert metrics("format=none") == baseline
    assert metrics("kv_quant=fp4_e2m1", "rounding=stochastic") == quantized
    assert metrics("kv_quant=fp4_e2m1", "rounding=stochastic", "seed=5") != quantized


def test_a_quantized_embedding_leaves_the_tied_lm_head_alone() -> None:
    model = load_model("embedded", dtype="float32", device="cpu").model
    assert model.lm_head.weight is model.model.embed_tokens.weight
    before = model.lm_head.weight.clone()
    record = run(compose(["format=none", "modules={'*embed_tokens': int2}", *FEW]))
    assert record["diagnostics"]["layers_replaced"] == 1 and record["diagnostics"]["max_positions"] == 256
    assert record["metrics"] != run(compose(["format=none", *FEW]))["metrics"]
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert torch.equal(model.lm_head.weight, before)


def test_a_checkpoint_without_all_its_weights_is_refused(tmp_path: Path) -> None:
    shutil.copytree(model_folder("embedded"), tmp_path, dirs_exist_ok=True)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.layers.0.mlp.down_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    record = run(compose(["model=hf", f"model.path={tmp_path}", *FEW]))
    assert (
        "is no whole checkpoint: 1 weights are missing, model.layers.0.mlp.down_proj.weight first"
        in (record["error"]["message"])
    )
    config = compose(["model=hf", f"model.path={tmp_path}", *FEW])
    (tmp_path / "model.safetensors").write_bytes(b"rubbish" * 100)  # after planning, which refuses it
    record = run(config)
    assert record["error"]["message"].startswith(f"model.path: '{tmp_path}' cannot be loaded: ")


def test_trouble_with_the_details_costs_no_result(tmp_path: Path) -> None:
    (tmp_path / "samples.parquet").mkdir()  # nothing can be put in its place
    record = run(compose(FEW), tmp_path)
    assert record["status"] == "done"
    assert record["metrics"]["story"]["acc"] > 0
    assert record["warnings"][0].startswith("samples.parquet was not written: ")
    assert (tmp_path / "lm_eval.json").is_file()


def test_a_refused_run_has_its_versions_all_the_same() -> None:
    record = run(compose([*FEW, "model.device=cuda:7"]))
    assert record["status"] == "failed"
    assert record["environment"]["versions"]["torch"]


def test_modules_reach_the_model() -> None:
    record = run(compose(["modules={model.layers.0.*: none}", *FEW]))
    layers = load_model("embedded", dtype="float32", device="cpu").model.config.num_hidden_layers
    assert record["diagnostics"]["layers_replaced"] == 7 * (layers - 1)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["modules={nothing.*: int8}"], "modules: the pattern 'nothing.*' matches no linear layer"),
        (
            ["model=hf", "model.path=no-such-owner/no-such-model"],
            "model.path: 'no-such-owner/no-such-model' cannot",
        ),
        (["model.device=cuda:7"], "model.device: 'cuda:7' is not there"),
    ],
)
def test_failures_are_recorded(overrides: list[str], message: str, tmp_path: Path) -> None:
    record = run(compose(["limit=4", *overrides]), tmp_path)
    assert record["status"] == "failed"
    assert record["error"]["type"] == "ConfigError"
    assert message in record["error"]["message"]
    assert read_record(tmp_path / "result.json") == record
    assert summarize_record(record).startswith("failed: ")


def test_an_unexpected_failure_is_recorded_with_its_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("the roof is on fire")

    monkeypatch.setattr("mxsweep.runs.evaluator.evaluate", broken)
    record = run(compose(FEW), tmp_path)
    assert (record["status"], record["error"]["message"]) == ("failed", "the roof is on fire")
    assert summarize_record(record) == "failed: RuntimeError: the roof is on fire"
    assert "broken" in record["error"]["traceback"]


def test_a_data_file_written_anew_is_evaluated_anew(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    counts = []
    for count in (3, 5):
        texts = stories(count, seed=count)
        file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        record = run(compose(["task=lambada_openai", f"task.data={file}", "model.device=cpu"]))
        assert record["status"] == "done", record["error"]
        counts.append(record["n_effective"]["lambada_openai"])
    assert counts == [3, 5]


def test_kernel_launches_are_those_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = iter([100, 140, 1000, 1002])  # before and after quantizing the weights; before and after evaluating
    monkeypatch.setattr("mxsweep.runs.evaluate_config.launch_count", lambda: next(counts))
    record = run(compose(FEW))
    assert record["diagnostics"]["cuda_kernel_launches"] == 42


def test_calls_of_triton_are_those_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = iter([100, 100, 1000, 1030])
    monkeypatch.setattr("mxsweep.numerics.native_triton.call_count", lambda: next(counts))
    record = run(compose(FEW))
    assert record["diagnostics"]["triton_kernel_calls"] == 30


def test_calls_in_the_place_of_a_models_operations_are_those_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = iter([100, 100, 1000, 1030])
    monkeypatch.setattr("mxsweep.numerics.kernels.elementwise_cuda.call_count", lambda: next(counts))
    record = run(compose(FEW))
    assert record["diagnostics"]["elementwise_kernel_calls"] == 30


def test_the_compiler_of_the_cpus_library_is_named_where_the_run_took_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CpuLibrary, "built_by", "GCC 1.2.3")
    for counts, named in (([7, 7, 7, 7], None), ([7, 7, 7, 9], "GCC 1.2.3")):
        monkeypatch.setattr("mxsweep.runs.evaluate_config.call_count", iter(counts).__next__)
        record = run(compose(FEW))
        assert record["diagnostics"]["cpu_kernel_calls"] == counts[-1] - 7
        assert record["diagnostics"]["cpu_kernel_compiler"] == named
        assert "GCC 1.2.3" not in str(record["environment"])


def test_custom_cuda_without_a_gpu_says_so_before_a_model_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("mxsweep.runs.evaluator.load_configured", lambda *_, **__: pytest.fail("a model was loaded"))
    record = run(compose(["custom_cuda=true", "limit=24"]))
    assert record["error"]["type"] == "ConfigError"
    assert record["error"]["message"].startswith("custom_cuda: true cannot be had here: ")
    assert "GPU" in record["error"]["message"]


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["block_size=48"],  # blocks that do not divide the rows
        ["block_size=0"],
        ["format=none", "modules={lm_head: int2}"],  # tied to an embedding that stays
        ["format=none", "modules={lm_head: int2, '*embed_tokens': int2}"],
        ["modules={'*embed_tokens': int8}"],
    ],
    ids=" ".join,
)
def test_what_a_plan_says_of_bits_is_what_the_run_records(overrides: list[str]) -> None:
    config = compose([*overrides, "limit=2", "model.device=cpu"])
    model = meta_model("embedded")
    assert model is not None
    planned, recorded = footprint(model, config.recipe), run(config)["diagnostics"]
    assert planned.bits_per_weight == pytest.approx(recorded["bits_per_weight"])
    assert planned.stored_bytes == recorded["parameter_bytes"]
    assert recorded["bits_per_parameter"] == pytest.approx(8 * planned.stored_bytes / 515_968, rel=1e-5)


def test_patterns_are_matched_against_a_model_without_loading_it() -> None:
    model = meta_model("embedded")
    assert model is not None and all(parameter.is_meta for parameter in model.parameters())
    assert recipe_problem(model, compose(["modules={lm_head: int8, '*.q_proj': none}"]).recipe) is None
    problem = recipe_problem(model, compose(["modules={lm_head: int8, '*.q_proj': none, lm_hed: int8}"]).recipe)
    assert problem is not None and "the pattern 'lm_hed' matches no linear layer or embedding of Llama" in problem


def test_a_run_says_by_whose_rules_it_is_computed(caplog: pytest.LogCaptureFixture) -> None:
    words = ["format=mxfp4", *FEW, "limit=4"]
    with caplog.at_level("INFO"):
        predicted = run(compose([*words, "runtime=quark"]))
    assert predicted["diagnostics"]["computed"] == "as Quark computes it"
    assert "Weights and inputs are quantized as Quark computes it" in caplog.text
    own = run(compose([*words, "rounding=even", "scale_rounding=even"]))
    assert "computed" not in own["diagnostics"]
    assert predicted["metrics"] == own["metrics"]
