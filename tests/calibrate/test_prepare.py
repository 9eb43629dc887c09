"""Remedies in whole runs of the embedded model: what they find, what they keep, what they refuse."""

from __future__ import annotations

import json
import math
import os
import re
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from helpers.warned import assert_warned_everywhere

from mxsweep import compose, run
from mxsweep.calibrate.artefacts import Artefact
from mxsweep.calibrate.tuned import Errors, Tuned, Tuning
from mxsweep.calibrate.weight_remedy import _account_for_finetuning, _account_for_tuning
from mxsweep.calibrate.workbench import ARTEFACTS_VERSION, Workbench
from mxsweep.config.overrides import prepare
from mxsweep.config.remedy_config import FINETUNING_RULE, TUNING_RULE
from mxsweep.config.run_config import RunConfig
from mxsweep.config.run_identity import REMEDIES_VERSION
from mxsweep.config.weight_methods import WEIGHT_METHODS
from mxsweep.model.load import load_configured, load_model
from mxsweep.model.quantize import quantize_model
from mxsweep.numerics import NUMERICS_VERSION, MXFormat, encode
from mxsweep.statistics.paired_tests import compare_log_perplexity
from mxsweep.sweeps.plan import plan

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("own_cache")]

SMALL = ["limit=60", "calibration.samples=24", "model.device=cpu"]
W4A4 = [*SMALL, "format=mxfp4"]
LITTLE = ["limit=4", "calibration.samples=4", "model.device=cpu", "format=mxfp4"]  # where nothing depends on how much
ONE_WEIGHT = {"q": encode(torch.ones(1, 32), MXFormat("fp4_e2m1"))}


@cache
def composed(*words: str) -> RunConfig:
    """Return a config, which takes longer to compose than a small run of it."""
    return compose(list(words))


def done(*words: str, folder: Path | None = None) -> dict[str, Any]:
    record = run(composed(*words), folder)
    assert record["status"] == "done", record["error"]
    return record


def nats(record: dict[str, Any]) -> float:
    return math.log(record["metrics"]["story"]["perplexity"])


@cache
def nats_of_plain() -> float:
    """Return what the model leaves with nothing quantized."""
    return nats(done(*SMALL, "format=none"))


def test_gptq_wins_back_what_rounding_lost() -> None:
    rounded = done(*W4A4, "format.activation=none")
    solved = done(*W4A4, "format.activation=none", "ptq=gptq")
    assert nats_of_plain() < nats(solved) < nats(rounded)
    account = solved["remedies"]
    assert account["ptq"]["method"] == "gptq"
    assert account["ptq"]["layers"] == 21
    assert not account["ptq"]["cached"]
    assert "stor" in account["calibration"]
    assert solved["timing"]["remedies_s"] > 0
    assert solved["diagnostics"]["bits_per_weight"] == rounded["diagnostics"]["bits_per_weight"]


def test_learned_rounding_is_of_blocks_and_of_so_many_steps() -> None:
    words = [*W4A4, "limit=20", "ptq=autoround"]
    hashes = {compose([*words, f"ptq.steps={steps}"]).config_hash for steps in (1, 2)}
    assert len(hashes) == 2
    assert compose([*W4A4, "ptq=gptq", "ptq.steps=7"]).config_hash == compose([*W4A4, "ptq=gptq"]).config_hash
    first, again = (done(*words, "ptq.steps=3") for _ in range(2))
    assert first["config"]["ptq"] == {
        "method": "autoround", "clip_loss": "weight", "damping": 0.01, "act_order": True, "steps": 3
    }  # fmt: skip
    assert first["remedies"]["ptq"]["method"] == "autoround" and first["remedies"]["ptq"]["layers"] == 21
    assert not first["remedies"]["ptq"]["cached"] and again["remedies"]["ptq"]["cached"]
    assert again["metrics"] == first["metrics"]
    tuned = [first["remedies"]["ptq"][name] for name in ("blocks_tuned", "blocks_left", "blocks_not_finite")]
    assert sum(tuned[:2]) == 3 and tuned[0] > 0 and tuned[2] == 0
    assert 0.5 < first["remedies"]["ptq"]["error_left"] < 1
    assert again["remedies"]["ptq"]["error_left"] == first["remedies"]["ptq"]["error_left"]
    assert first["identity"]["quantized"]["ptq"]["tuning_rule"] == TUNING_RULE


def test_finetuning_begins_with_what_gptq_left_and_is_kept() -> None:
    words = [*W4A4, "limit=20"]
    solved, first, again, other = (
        done(*words, *of) for of in (["ptq=gptq"], *(["ptq=qat", f"ptq.steps={steps}"] for steps in (4, 4, 3)))
    )
    assert first["config"]["ptq"] == {
        "method": "qat", "clip_loss": "weight", "damping": 0.01, "act_order": True, "steps": 4
    }  # fmt: skip
    account = first["remedies"]["ptq"]
    assert account["method"] == "qat" and account["layers"] == 21 and not account["cached"]
    assert 0 < account["divergence_after"] < account["divergence_before"]
    assert first["metrics"] != solved["metrics"]
    said = {"cached": True, "seconds": 0, "kept_seconds": 0}
    assert again["remedies"]["ptq"] | said == account | said
    assert again["metrics"] == first["metrics"]
    assert not other["remedies"]["ptq"]["cached"]
    assert other["remedies"]["ptq"]["divergence_before"] == account["divergence_before"]
    assert first["identity"]["quantized"]["ptq"]["finetuning_rule"] == FINETUNING_RULE
    assert len(list(Path(os.environ["XDG_CACHE_HOME"]).rglob("block_0000.safetensors"))) == 1  # solved for once


def test_what_was_kept_is_accounted_for_by_what_it_took_then() -> None:
    words = [*W4A4, "limit=20", "calibration.samples=8"]
    solved, again, tuned, kept = (
        done(*words, *of)["remedies"]["ptq"]
        for of in (["ptq=gptq"], ["ptq=gptq"], ["ptq=qat", "ptq.steps=2"], ["ptq=qat", "ptq.steps=2"])
    )
    assert "kept_seconds" not in solved  # all of it was worked out here
    assert again["seconds"] < again["kept_seconds"] <= solved["seconds"]
    # Finetuning begins with kept weights, which took their time, and is kept with both.
    assert tuned["kept_seconds"] == again["kept_seconds"] and not tuned["cached"]
    assert again["kept_seconds"] < kept["kept_seconds"] <= tuned["kept_seconds"] + tuned["seconds"]


def test_blocks_that_cannot_be_tuned_are_counted_and_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    bench = Workbench(load_model("embedded", device="cpu").model, compose(["format=mxfp4"]), lambda *_: None)
    account = _account_for_tuning(bench, Tuning(tuned=1, left=2, not_finite=(0, 2), error_left=0.75))
    assert account == {"blocks_tuned": 1, "blocks_left": 2, "blocks_not_finite": 2, "error_left": 0.75}
    (warning,) = bench.result.warnings
    assert warning.startswith(
        "ptq.method: 2 of 3 decoder blocks (0, 2, counted from 0) have outputs that are not finite"
    )
    assert warning in caplog.messages


@pytest.mark.parametrize(
    ("tuned", "warning"),
    [
        (Tuned(ONE_WEIGHT, Errors(0.2, 0.1)), None),
        (
            Tuned(ONE_WEIGHT, Errors(0.2, 0.2)),
            "none of the checks in 200 steps .* are those that GPTQ chose",
        ),
        (Tuned(ONE_WEIGHT, Errors(None, None)), "no finite divergence from the unquantized one .* were not finetuned"),
        (Tuned(ONE_WEIGHT, Errors(0.2, 0.1), 3), "in 3 of 200 steps of finetuning some gradients were not finite"),
        (Tuned({}, Errors(0.2, 0.2)), None),
    ],
    ids=["better", "no-better", "not-finite", "gradients", "nothing-to-do"],
)
def test_finetuning_that_did_nothing_or_could_not_is_warned_of(tuned: Tuned, warning: str | None) -> None:
    bench = Workbench(load_model("embedded", device="cpu").model, compose(["format=mxfp4", "ptq=qat"]), lambda *_: None)
    assert _account_for_finetuning(bench, tuned, None) == {
        "divergence_before": tuned.errors.first,
        "divergence_after": tuned.errors.best,
        "steps_not_finite": tuned.steps_not_finite,
    }
    assert len(bench.result.warnings) == (warning is not None)
    assert warning is None or re.search(warning, bench.result.warnings[0])


def test_text_of_one_sequence_is_refused_before_weights_are_solved_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mxsweep.calibrate.prepare.solve_for_weights", lambda bench: pytest.fail("solved for"))
    file = tmp_path / "short.txt"
    file.write_text("Mia gave Tom a red ball and a blue one.")
    record = run(compose([*W4A4, "ptq=qat", "calibration=text", f"calibration.path={file}"]))
    assert record["status"] == "failed" and "the text comes out as one sequence" in str(record["error"])


def test_a_finetuned_method_has_the_rules_of_what_it_starts_from(monkeypatch: pytest.MonkeyPatch) -> None:
    ptq = compose(["format=mxfp4", "ptq=qat"]).ptq
    assert ptq.rule == {"finetuning_rule": FINETUNING_RULE}
    monkeypatch.setitem(WEIGHT_METHODS, "qat", replace(WEIGHT_METHODS["qat"], starts_from="autoround"))
    assert ptq.rule == {"tuning_rule": TUNING_RULE, "finetuning_rule": FINETUNING_RULE}


def test_what_was_worked_out_is_not_worked_out_again() -> None:
    first, again = (done(*LITTLE, "ptq=gptq") for _ in range(2))
    assert again["remedies"]["ptq"]["cached"]
    assert again["metrics"] == first["metrics"]
    other = done(*LITTLE, "ptq=gptq", "ptq.damping=0.1")
    assert not other["remedies"]["ptq"]["cached"]
    calibrated_else = done(*LITTLE, "ptq=gptq", "calibration.seed=1")
    assert not calibrated_else["remedies"]["ptq"]["cached"]


def test_clip_by_weight_needs_no_calibration_and_is_on_the_grid() -> None:
    config = compose([*W4A4, "ptq=clip", "ptq.clip_loss=weight"])
    assert not config.needs_calibration
    assert "calibration" not in run(config)["remedies"]
    rounded = done(*W4A4)
    assert done(*W4A4, "ptq=clip")["metrics"] != rounded["metrics"]


def test_a_search_rotates_what_lowers_the_loss() -> None:
    words = [*W4A4, "kv_quant=int4", "rotation.positions=all"]
    record = done(*words, "rotation=search")
    found = record["remedies"]["search"]
    assert found["loss_after"] < found["loss_before"] and found["low"] < found["difference"] < found["high"] < 0
    assert found["difference"] == pytest.approx(found["loss_after"] - found["loss_before"])
    assert found["positions"] == "all" and found["sequences"] == 24 < found["counted"] and "all_tokens" not in found
    kept = [step["change"] for step in found["steps"] if step["kept"]]
    assert sorted(kept) == sorted(found["found"]) != []
    fixed = done(*words, "rotation=hadamard", f"rotation.matmuls=[{','.join(found['found'])}]")
    assert fixed["metrics"] == record["metrics"]
    assert done(*words, "rotation=search")["remedies"]["search"]["cached"]


def test_a_search_does_no_harm_on_the_task(tmp_path: Path) -> None:
    words = ["limit=500", "kv_quant=fp4_e2m1", "model.device=cpu", "rotation.matmuls=[k,qk]"]
    runs = {
        name: done(*words, "rotation=search", f"rotation.positions={name}", folder=tmp_path / name)
        for name in ("auto", "all")
    }
    runs["none"] = done(*words, folder=tmp_path / "none")
    assert runs["auto"]["remedies"]["search"]["counted"] == 4 * 128
    found = {name: runs[name]["remedies"]["search"]["found"] for name in ("auto", "all")}
    likely = {name: _log_likelihoods(tmp_path / name) for name in runs}
    # The loss of all tokens falls with k rotated, and the answers are lost; that of the answers says so.
    assert "k" in found["all"] and compare_log_perplexity(likely["none"], likely["all"]).low > 0
    assert "k" not in found["auto"] and not compare_log_perplexity(likely["none"], likely["auto"]).low > 0


def _log_likelihoods(folder: Path) -> Any:
    return pd.read_parquet(folder / "samples.parquet")["loglikelihood"].to_numpy()


def test_rescue4_wins_back_what_four_bits_of_keys_and_values_lose() -> None:
    words = [*SMALL, "format=none"]
    plain, kept = done(*words, "kv_quant=fp4_e2m1"), done(*words, "kv_quant=rescue4", "kv_quant.rotation=none")
    rescued = done(*words, "kv_quant=rescue4")
    assert nats_of_plain() < nats(rescued) < nats(plain)
    assert rescued["metrics"] != kept["metrics"]


def test_a_text_without_last_words_is_refused_before_a_budget_is_spent(tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text("one two three " * 40)
    text = ["calibration=text", f"calibration.path={file}", "calibration.samples=2", "calibration.length=16"]
    search = ["ptq.budget=5", "rotation=search", "rotation.matmuls=[q]", "rotation.positions=last_words"]
    record = run(compose(["limit=2", "model.device=cpu", "format=mxfp4", *text, *search]))
    assert record["status"] == "failed" and "no sentence ends there in a word" in str(record["error"])
    assert not list((tmp_path / "cache").rglob("costs*"))


def test_losses_of_a_search_by_an_earlier_rule_are_not_taken(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    words = ["limit=2", "model.device=cpu", "format=mxfp4", "calibration.samples=2", "rotation=search"]
    words += ["rotation.matmuls=[q]"]
    search = done(*words)["remedies"]["search"]
    assert not search["cached"] and search["found"] == []
    assert "Search: none of the changes tried (1) lowers the calibration loss of " in caplog.text
    assert "as without it, nothing rotated" in caplog.text
    assert done(*words)["remedies"]["search"]["cached"]
    monkeypatch.setattr("mxsweep.calibrate.prepare.SEARCH_RULE", 0)
    assert not done(*words)["remedies"]["search"]["cached"]


def test_a_search_is_confirmed_with_the_weights_that_the_run_will_have(caplog: pytest.LogCaptureFixture) -> None:
    words = [*W4A4, "kv_quant=int4", "rotation=search", "rotation.positions=all", "rotation.matmuls=[qk]"]
    with caplog.at_level("INFO"):
        search = done(*words, "ptq=gptq")["remedies"]["search"]
    confirmed = search["confirmed"]
    assert confirmed["weights"] == "gptq" and "With gptq's weights: qk rotated, from " in caplog.text
    (one,) = confirmed["compared"]
    assert search["found"] == one["found"] == ["qk"] and one["high"] < 0
    # The losses are those of a search by the method itself.
    own = done(*words, "ptq=gptq", "rotation.judge=ptq")["remedies"]["search"]
    assert (own["loss_before"], own["loss_after"]) == (confirmed["loss_before"], one["loss"])
    assert own["cached"] and "confirmed" not in own
    assert done(*words, "ptq=gptq")["remedies"]["search"]["cached"]
    for rounded in ("rtn", "clip"):
        found = done(*words, f"ptq={rounded}")["remedies"]["search"]
        assert found["found"] == ["qk"] and "confirmed" not in found


def test_a_search_takes_over_what_another_kept_and_counts_no_more_of_it() -> None:
    words = [*LITTLE, "kv_quant=int4", "rotation.positions=all"]
    of_roundings = done(*words, "scale_rounding=search", "ptq=gptq")["remedies"]["search"]
    of_both = done(*words, "scale_rounding=search", "rotation=search", "rotation.matmuls=[qk]", "ptq=gptq")
    of_both = of_both["remedies"]["search"]
    # All that the first asked for, its beginning too, is among what the second asks for, which asks for more.
    assert not of_both["cached"] and 0 < of_both["kept_seconds"] <= of_roundings["seconds"]
    alone = done(*words, "rotation=search", "rotation.matmuls=[qk]", "ptq=gptq")["remedies"]["search"]
    assert alone["cached"] and alone["looked_at"] < of_both["looked_at"]
    assert alone["kept_seconds"] < of_both["seconds"] + of_both["kept_seconds"]


def test_losses_that_cannot_be_kept_are_warned_of_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "mxsweep").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    search = done(*LITTLE, "kv_quant=int4", "rotation=search", "rotation.matmuls=[qk,q]")["remedies"]["search"]
    assert search["looked_at"] > 2 and not search["cached"]
    (warning,) = (message for message in caplog.messages if message.startswith("artefact losses/"))
    assert "is not kept, and worked out again next time" in warning


def test_what_a_search_finds_on_searched_scales_alone_is_undone() -> None:
    words = ["limit=20", "model.device=cpu", "calibration.samples=64", "kv_quant=fp4_e2m1", "ptq=gptq"]
    record = done(*words, "rotation=search", "rotation.matmuls=[qk]")
    search = record["remedies"]["search"]
    (one,) = search["confirmed"]["compared"]
    assert search["high"] < 0 < one["high"] and one["found"] == ["qk"] and search["found"] == []
    assert record["metrics"] == done(*words)["metrics"]


def test_what_gptq_can_be_calibrated_with_only_when_it_is_rotated_is_found_and_confirmed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    embedded, model = load_model("embedded", device="cpu"), load_model("embedded", device="cpu").model
    size = model.config.hidden_size // model.config.num_attention_heads
    outlier = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for name, factor in (("k_proj", 8.0), ("q_proj", 1 / 8)):  # a pair of channels that is turned together
        for weight in (tensor for of, tensor in outlier.items() if f"self_attn.{name}.weight" in of):
            weight.view(-1, size, weight.shape[1])[:, [0, size // 2]] *= factor
    model.save_pretrained(tmp_path / "model", state_dict=outlier)
    embedded.tokenizer.save_pretrained(tmp_path / "model")
    words = ["limit=4", "calibration.samples=4", "model.device=cpu", f"model={tmp_path / 'model'}", "scale_bits=3"]
    words += ["calibration=stories", "format.weight=fp8_e5m2", "format.activation=none", "kv_quant.key=fp4_e2m1"]
    words += ["ptq=gptq", "rotation=search", "rotation.matmuls=[qk]", "rotation.positions=all"]
    for judge in ("clip", "ptq"):
        with caplog.at_level("INFO"):
            search = done(*words, f"rotation.judge={judge}")["remedies"]["search"]
        assert search["found"] == ["qk"] and math.isnan(search["loss_before"])
    assert "Search: the loss of a choice is no number: ptq.method: on the calibration tokens" in caplog.text


def test_a_search_of_scale_roundings_keeps_the_rotation() -> None:
    words = [*W4A4, "calibration.samples=8", "rotation=hadamard"]
    record = done(*words, "scale_rounding=search")
    chosen = record["remedies"]["search"]["scale_rounding"]
    assert done(*words, f"scale_rounding={chosen}")["metrics"] == record["metrics"]


@pytest.mark.parametrize("ptq", ["rtn", "clip"])
def test_a_search_rounds_scales_as_lowers_the_loss(ptq: str) -> None:
    record = done(*W4A4, "kv_quant=int4", "scale_rounding=search", f"ptq={ptq}")
    found = record["remedies"]["search"]
    changes = {step["change"] for step in found["steps"]}
    assert {f"scale_rounding={name}" for name in ("even", "ceil", "rceil")} <= changes and found["found"] == []
    assert (found["high"] < 0) == (found["scale_rounding"] != "floor")
    fixed = done(*W4A4, "kv_quant=int4", f"scale_rounding={found['scale_rounding']}", f"ptq={ptq}")
    assert fixed["metrics"] == record["metrics"]


@pytest.mark.parametrize(
    ("rotation", "block"), [("hadamard", "0"), ("hadamard", "mx"), ("hadamard", "48"), ("wush", "mx"), ("wush", "48")]
)
def test_rotations_change_nothing_without_quantization(rotation: str, block: str) -> None:
    # Formats so wide that quantization is a rounding error; the rotation itself is at work all the same.
    wide = ["format=int16", "kv_quant=int16", "arithmetic=exact"]
    rotated = done(*SMALL, *wide, f"rotation={rotation}", f"rotation_block={block}")
    assert nats(rotated) == pytest.approx(nats_of_plain(), abs=2e-3)


def test_matrices_of_inputs_are_kept_and_serve_every_format_and_weight_method() -> None:
    words = [*SMALL, "limit=20", "rotation=wush", "calibration.samples=8"]
    first = done(*words, "format=mxfp4")
    account = first["remedies"]["wush"]
    assert not account["cached"] and account["inputs"] == 12  # four of each of three layers
    assert account["matrix_elements"] == 3 * (3 * 128 + 256) * 32
    assert 1 < account["largest_condition"] < 1e4
    assert first["remedies"]["calibration"].startswith("8 generated stories")
    assert (first["diagnostics"]["products_rotated"], first["diagnostics"]["products"]) == (21, 21)
    again = done(*words, "format=mxfp4", "calibration.seed=0")
    assert again["remedies"]["wush"]["cached"] and again["metrics"] == first["metrics"]
    others = (["format=int4"], ["ptq=gptq"], ["ptq=autoround", "ptq.steps=2"], ["scale_rounding=search"])
    for other in others:
        record = done(*words, "format=mxfp4", *other)
        assert record["remedies"]["wush"]["cached"], other
        assert record["remedies"]["wush"]["largest_condition"] == account["largest_condition"]
        assert record["metrics"] != first["metrics"] or other == ["scale_rounding=search"]
    for anew in (["rotation_block=16"], ["calibration.seed=1"], ["rotation.matmuls=[q,down]"]):
        assert not done(*words, "format=mxfp4", *anew)["remedies"]["wush"]["cached"], anew


def test_matrices_of_an_earlier_rule_are_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    words = [*W4A4, "limit=2", "rotation=wush", "calibration.samples=2"]
    config_hash = compose(words).config_hash
    done(*words)
    for module in ("config.run_identity", "calibrate.transforms"):
        monkeypatch.setattr(f"mxsweep.{module}.WUSH_RULE", 0)
    assert not done(*words)["remedies"]["wush"]["cached"]
    assert compose(words).config_hash != config_hash


@pytest.mark.parametrize(
    ("words", "remedies"),
    [
        (["format=mxfp4", "ptq=gptq"], ["ptq"]),
        (["format=mxfp4", "scale_rounding=search"], ["search"]),
        (["format=mxfp4", "ptq.budget=5", "ptq.formats=[mxfp4,mxfp8_e4m3]"], ["budget"]),
        (["format=nvfp4", "format.activation_scale=static", "ptq=clip"], ["inputs", "ptq"]),
    ],
    ids=["gptq", "search", "budget", "static inputs and clip"],
)
def test_what_was_made_in_the_basis_of_lost_matrices_is_not_taken(
    words: list[str], remedies: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*SMALL, "limit=20", "rotation=wush", "calibration.samples=4", *words]

    def cached(record: dict[str, Any]) -> list[bool]:
        return [record["remedies"][remedy]["cached"] for remedy in remedies]

    first = done(*words)
    assert all(cached(done(*words)))
    svd = torch.linalg.svd

    def as_good(a: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return what another machine may answer: signs of singular vectors are free."""
        left, values, right = svd(a)
        signs = 1 - 2.0 * (torch.arange(values.shape[-1]) % 3 == 0)  # % 2 would permute the rows of H alone
        return left * signs.to(left), values, signs.to(right)[:, None] * right

    monkeypatch.setattr(torch.linalg, "svd", as_good)
    (matrices,) = (tmp_path / "cache").rglob("matrices.safetensors")
    matrices.unlink()
    record = done(*words)
    assert not record["remedies"]["wush"]["cached"] and not any(cached(record))
    again = done(*words)
    assert all(cached(again)) and again["metrics"] == record["metrics"]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another cache"))
    assert done(*words)["metrics"] == record["metrics"] != first["metrics"]


def test_a_basis_of_its_own_leaves_less_of_the_loss_than_a_rotation() -> None:
    words = [*W4A4, "ptq=gptq"]
    assert nats(done(*words, "rotation=wush")) < nats(done(*words, "rotation=hadamard"))


@pytest.mark.parametrize(
    "words",
    [
        ["format=mxfp4", "ptq.budget=5", "ptq.formats=[mxfp4,mxfp8_e4m3]", "calibration.samples=2"],
        ["format=nvfp4", "format.activation_scale=static"],
        ["format=nvfp4", "format.share_tensor_scale=fused", "ptq=clip"],
        ["format=mxfp4", "rounding=stochastic"],
        ["format=mxfp4", "rotation.residual=true", "kv_quant=rescue4"],
    ],
    ids=" ".join,
)
def test_a_basis_of_their_own_goes_with_other_remedies(words: list[str]) -> None:
    common = [*SMALL, "limit=20", "calibration.samples=4"]
    record = done(*common, *words, "rotation=wush")
    assert record["remedies"]["wush"]["inputs"] == 12
    assert record["diagnostics"]["products_rotated"] == 21
    assert record["metrics"] != done(*common, *words)["metrics"]


def test_a_rotated_residual_stream_changes_nothing_without_quantization() -> None:
    plain = nats_of_plain()  # before anything is rotated
    wide = done(*SMALL, "format=int16", "arithmetic=exact", "rotation.residual=true")
    assert nats(wide) == pytest.approx(plain, abs=2e-3)
    assert nats(done(*SMALL, "format=none")) == plain  # the model is as it was
    assert done(*W4A4, "rotation.residual=true")["metrics"] != done(*W4A4)["metrics"]


def test_a_budget_chooses_formats_and_leaves_a_recipe(tmp_path: Path) -> None:
    record = done(*W4A4, "ptq.budget=4.75", folder=tmp_path / "run")
    spent = record["remedies"]["budget"]
    assert 4.25 < spent["bits_per_weight"] <= 4.75
    assert record["diagnostics"]["bits_per_weight"] == pytest.approx(spent["bits_per_weight"])
    assert len(set(spent["modules"].values())) > 1
    assert nats(record) < nats(done(*W4A4))
    grids, _ = prepare([*W4A4, "experiment=budget"], tmp_path / "run")
    runs = plan(grids, False, tmp_path / "run").runs
    assert runs[0].config is not None, runs[0].error
    assert run(runs[0].config)["metrics"] == record["metrics"]
    other = done(*W4A4, "ptq.budget=5.5")
    assert other["remedies"]["budget"]["cached"]  # the costs hold for any budget


def test_smoothed_keys_and_gptq_together() -> None:
    record = done(*W4A4, "kv_quant=fp4_e2m1", "kv_quant.smooth=0.5", "ptq=gptq")
    assert record["remedies"]["smooth"]["largest_factor"] > 1
    assert record["remedies"]["ptq"]["layers"] == 21


def test_the_model_is_as_it_was_after_everything() -> None:
    model = load_configured(compose(LITTLE).model).model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    done(*LITTLE, "kv_quant=int4", "ptq=gptq", "rotation=search", "rotation.residual=true", "kv_quant.smooth=0.5")
    assert model is load_configured(compose(LITTLE).model).model
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    with quantize_model(model, compose(LITTLE).recipe):  # and can be quantized again
        pass


def test_calibration_on_what_is_evaluated_is_refused(tmp_path: Path) -> None:
    from mxsweep.evaluate.stories import stories

    text = tmp_path / "leak.txt"
    text.write_text("\n".join(stories(40)), encoding="utf-8")
    record = run(compose([*W4A4, "ptq=gptq", "calibration=text", f"calibration.path={text}", "calibration.length=64"]))
    assert record["status"] == "failed"
    assert record["error"]["type"] == "ConfigError"
    assert "calibration" in record["error"]["message"]


def test_a_text_that_is_too_short_is_warned_of_in_every_run(tmp_path: Path) -> None:
    file = tmp_path / "short.txt"
    file.write_text("Mia gave Tom a red ball and a blue one. " * 3)
    words = [*W4A4, "limit=20", "ptq=gptq", "calibration=text", f"calibration.path={file}", "calibration.length=512"]
    for folder in ("first", "again"):  # the text is read once a process
        warning, *_ = done(*words, "calibration.samples=2", folder=tmp_path / folder)["warnings"]
        assert warning == "calibration: short.txt is too short for 2 sequences of 256 tokens: there is one of 33"
        assert_warned_everywhere(tmp_path / folder, warning)


def test_a_baseline_has_no_remedies() -> None:
    record = done(*SMALL, "format=none", "ptq=gptq", "rotation=search")
    assert "remedies" not in record
    assert compose([*SMALL, "format=none", "ptq=gptq"]).config_hash == compose([*SMALL, "format=none"]).config_hash
    assert record["config"]["ptq"] == {"method": "rtn"}


def test_phases_are_told(tmp_path: Path) -> None:
    phases: list[str] = []

    def progress(done: int, total: int, phase: str = "answered") -> None:
        assert 0 <= done <= total
        if not phases or phases[-1] != phase:
            phases.append(phase)

    record = run(compose([*LITTLE, "ptq=gptq", "rotation=search", "ptq.budget=5"]), tmp_path, progress=progress)
    assert record["status"] == "done", record["error"]
    assert phases == ["budget", "search", "gptq", "answered"]
    assert json.loads((tmp_path / "result.json").read_text())["remedies"]["budget"]["budget"] == 5


def test_inputs_that_are_not_finite_are_one_sentence() -> None:
    record = run(compose([*LITTLE, "scale_bits=2", "ptq=gptq"]))
    assert record["status"] == "failed"
    assert record["error"]["type"] == "NotSolvable"
    assert "are not finite" in record["error"]["message"]
    assert "layers.0" in record["error"]["message"]


def test_a_seed_that_nothing_draws_from_costs_nothing() -> None:
    done(*LITTLE, "ptq=gptq")
    assert done(*LITTLE, "ptq=gptq", "seed=7")["remedies"]["ptq"]["cached"]
    done(*LITTLE, "ptq.budget=5")
    assert done(*LITTLE, "kv_quant=int4", "ptq.budget=5")["remedies"]["budget"]["cached"]


def test_kept_weights_of_other_names_or_of_an_earlier_version_are_not_taken(tmp_path: Path) -> None:
    words = [*LITTLE, "ptq=clip", "ptq.clip_loss=weight"]
    first = done(*words)
    (kept,) = (tmp_path / "cache").rglob("weights.safetensors")
    key = json.loads((kept.parent / "key.json").read_text())
    weights = Artefact(key).load("weights")
    assert weights is not None and Artefact(key).folder == kept.parent
    wrong = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    first_q = "model.layers.0.self_attn.q_proj/"
    renamed = {name.replace(first_q, "model.layers.0.self_attn.qkv_proj.q_proj/"): one for name, one in wrong.items()}
    assert renamed.keys() != wrong.keys()
    for names in (renamed, {name: one for name, one in wrong.items() if not name.startswith(first_q)}):
        Artefact(key).save("weights", names)
        again = done(*words)
        assert not again["remedies"]["ptq"]["cached"]
        assert again["remedies"]["ptq"]["layers"] == 21 and again["metrics"] == first["metrics"]
    assert done(*words)["remedies"]["ptq"]["cached"]
    kept.unlink()
    assert key["versions"] == [REMEDIES_VERSION, NUMERICS_VERSION, ARTEFACTS_VERSION]
    Artefact(key | {"versions": key["versions"][:2]}).save("weights", wrong)  # as it was before there was a third
    assert not done(*words)["remedies"]["ptq"]["cached"]
