"""`python -m mxsweep.sensitivity`: what each part costs, as a ranked table, a CSV and a heat map."""

from __future__ import annotations

import csv
import dataclasses
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import AutoModelForCausalLM, AutoTokenizer, MambaConfig

from mxsweep import compose
from mxsweep.files.checkpoints import model_folder
from mxsweep.formats.recipe import LinearFormats, Recipe
from mxsweep.forward.sequence_loss import Divergence, Shift
from mxsweep.measure.configured_sensitivity import measure_config
from mxsweep.measure.sensitivity import Part, PartLoss, Sensitivity, interval_of, measure, parts_of, saved_by
from mxsweep.measure.sensitivity_table import text
from mxsweep.model.load import load_model
from mxsweep.model.prepared import Prepared
from mxsweep.model.quantize import quantize_model
from mxsweep.numerics import MXFormat, decode, encode
from mxsweep.report.figures.panels import draw_sensitivity
from mxsweep.sensitivity import main
from mxsweep.terminal.progress_callback import silent

Printed = pytest.CaptureFixture[str]
FP4 = MXFormat("fp4_e2m1")
MXFP4 = LinearFormats(FP4, FP4)
# One layer's four largest and smallest, so that the tests take seconds.
FEW = Recipe(modules=(("model.layers.0.*", MXFP4), ("model.layers.2.mlp.*", MXFP4)), key=FP4, value=MXFormat("int8"))


@pytest.fixture(scope="module")
def tiny() -> Any:
    return load_model("embedded", device="cpu").model


@pytest.fixture(scope="module")
def divergence(tiny: Any) -> Divergence:
    generator = np.random.default_rng(3)
    tokens = tuple(generator.integers(0, tiny.config.vocab_size, 40) for _ in range(4))
    return Divergence(tiny, tokens)


def nobody(_done: int, _total: int) -> None:
    pass


def test_each_part_alone_and_all_but_it(tiny: Any, divergence: Divergence) -> None:
    told: list[tuple[int, int]] = []
    before = dict(tiny.named_modules())
    found = measure(tiny, FEW, divergence, "module", Prepared(), lambda *a: told.append(a))
    losses = {one.part.name: one for one in found.parts}
    assert len(losses) == 7 + 3 + 2 and told == [(n, 25) for n in range(1, 26)]
    with quantize_model(tiny, FEW):
        assert found.whole == divergence.measure()
    down = "model.layers.2.mlp.down_proj"
    with quantize_model(tiny, Recipe(modules=((down, MXFP4),))):
        assert losses[down].alone == divergence.measure()
    # What is left out by a pattern of its own is left out.
    with quantize_model(tiny, dataclasses.replace(FEW, modules=(*FEW.modules, (down, LinearFormats())))):
        assert losses[down].without == divergence.measure()
    with quantize_model(tiny, Recipe(key=FP4)):
        assert losses["keys"].alone == divergence.measure()
    with quantize_model(tiny, dataclasses.replace(FEW, value=None)):
        assert losses["values"].without == divergence.measure()
    kl = [one.alone.kl for one in found.parts]
    assert kl == sorted(kl, reverse=True) and min(kl) > 0
    assert dict(tiny.named_modules()) == before and divergence() == 0


def test_layers_and_kinds(tiny: Any, divergence: Divergence) -> None:
    recipe = dataclasses.replace(FEW, modules=(*FEW.modules, ("lm_head", LinearFormats(MXFormat("int8")))))
    layers = {part.name: part for part in parts_of(tiny, recipe, "layer")}
    assert list(layers) == ["layer 0", "layer 2", "lm_head"]
    assert (layers["layer 2"].layer, layers["layer 2"].kind, len(layers["layer 2"].modules)) == (2, None, 3)
    assert (layers["lm_head"].layer, layers["lm_head"].kind) == (None, "lm_head")
    kinds = {part.name: part for part in parts_of(tiny, recipe, "kind")}
    assert list(kinds) == ["q", "k", "v", "o", "gate", "up", "down", "lm_head"]
    assert (kinds["q"].layer, kinds["down"].layer, len(kinds["down"].modules)) == (0, None, 2)
    assert [part.place for part in kinds.values()] == list(range(8))
    assert sum(part.weights for part in kinds.values()) == sum(part.weights for part in layers.values())
    found = measure(tiny, FEW, divergence, "kind", Prepared(), nobody)
    (up,) = (one for one in found.parts if one.part.name == "up")
    names = tuple(f"model.layers.{layer}.mlp.up_proj" for layer in (0, 2))
    with quantize_model(tiny, Recipe(modules=tuple((name, MXFP4) for name in names))):
        assert up.alone == divergence.measure()


def test_prepared_weights_are_what_is_measured(tiny: Any, divergence: Divergence) -> None:
    name = "model.layers.1.mlp.down_proj"
    recipe = Recipe(modules=((name, LinearFormats(FP4)),))
    weight = tiny.get_submodule(name).weight.detach()
    # A block an element under a float32 scale, which is the element's magnitude.
    itself = encode(weight, MXFormat("int2", 1, "fp32"))
    assert decode(itself).equal(weight)
    same = Prepared(weights={name: itself})
    found = measure(tiny, recipe, divergence, "module", same, nobody)
    assert found.whole.kl == found.parts[0].alone.kl == found.parts[0].without.kl == 0  # it is the weight itself


def test_an_interrupt_leaves_the_model_as_it_was(tiny: Any, divergence: Divergence) -> None:
    before = dict(tiny.named_modules())
    total = 2 * 12 + 1
    for stop in (3, total // 2 + 4, total):

        def told(done: int, _total: int, _phase: str = "", /, *, stop: int = stop) -> None:
            if done == stop:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            measure(tiny, FEW, divergence, "module", Prepared(), told)
        assert dict(tiny.named_modules()) == before and divergence() == 0


def made_up() -> Sensitivity:
    def part(place: int, layer: int | None, kind: str, alone: float, without: float) -> PartLoss:
        name = kind if layer is None else f"model.layers.{layer}.mlp.{kind}_proj"
        modules = {} if layer is None else {name: MXFP4}
        shifts = [Shift(kl, kl / 10, kl / 2, 0.01, 1000) for kl in (alone, without)]
        return PartLoss(Part(place, name, layer, kind, modules, 64), *shifts)

    parts = (part(3, 10, "down", 0.5, 0.4), part(1, 2, "down", 0.25, 0.6), part(0, 2, "up", 0.1, 0.8))
    return Sensitivity("module", Shift(0.75, 0.05, 0.5, 0.02, 1000), (*parts, part(4, None, "keys", math.nan, 0.7)))


def test_the_table_and_the_rows() -> None:
    found = made_up()
    printed = text(found)
    assert "Everything quantized: KL 0.75, loss +0.5 nats a token,\nover 1,000 positions." in printed
    row = re.search(r"^1 +model\.layers\.10\.mlp\.down_proj +(.*)$", printed, re.MULTILINE)
    assert row is not None
    assert row[1].split() == ["0.5", "66.7%", "+0.25", "0.35"]
    first = found.rows()[0]
    assert first["part"] == "model.layers.10.mlp.down_proj" and (first["layer"], first["kind"]) == (10, "down")
    assert first["formats"] == "weights fp4_e2m1-b32-e8m0, inputs fp4_e2m1-b32-e8m0"
    assert (first["kl_alone"], first["kl_without"], first["kl_whole"]) == (0.5, 0.4, 0.75)
    assert first["kl_saved"] == pytest.approx(0.35) and first["loss_saved"] == pytest.approx(0.3)


def test_intervals_are_those_of_ratios_over_sequences(tiny: Any, divergence: Divergence) -> None:
    found = measure(tiny, FEW, divergence, "kind", Prepared(), nobody)
    whole, one = found.whole, found.parts[0]
    assert whole.sums is not None and one.without.sums is not None
    positions = whole.sums.positions
    n = len(positions)
    assert n > 2 and positions.sum() == whole.positions
    for loss in ("kl", "loss"):
        sums = getattr(whole.sums, loss)
        measured = interval_of(whole, loss)
        assert measured.difference == pytest.approx(getattr(whole, loss)) == pytest.approx(sums.sum() / positions.sum())
        half = stats.t.ppf(0.975, n - 1) * getattr(whole, f"{loss}_stderr")
        assert (measured.high - measured.low) / 2 == pytest.approx(half)
        # What is saved is paired: its interval is that of the differences of the sequences.
        saved = saved_by(whole, one.without, loss)
        differences = sums - getattr(one.without.sums, loss)
        assert saved.difference == pytest.approx(differences.sum() / positions.sum())
        residuals = differences - saved.difference * positions
        stderr = np.sqrt(n / (n - 1) * np.square(residuals).sum()) / positions.sum()
        assert (saved.high - saved.low) / 2 == pytest.approx(stats.t.ppf(0.975, n - 1) * stderr)
    row = next(row for row in found.rows() if row["part"] == one.part.name)
    ends = [row[f"kl_{name}_{end}"] for name in ("alone", "saved") for end in ("low", "high")]
    alone, saved = interval_of(one.alone, "kl"), saved_by(whole, one.without, "kl")
    assert ends == [alone.low, alone.high, saved.low, saved.high]
    assert f"[{alone.low:.3g}, {alone.high:.3g}]" in text(found)
    assert f"of {n} sequences" in text(found) and max(map(len, text(found).splitlines())) <= 100


def test_the_heat_map(tmp_path: Path) -> None:
    png, svg, pdf = draw_sensitivity(made_up().rows(), "mxfp4", tmp_path)
    assert png.read_bytes()[:4] == b"\x89PNG" and pdf.read_bytes()[:4] == b"%PDF"
    drawn = svg.read_text()
    assert "Sensitivity to mxfp4" in drawn and "KL saved when it alone is not" in drawn
    labels = re.findall(r">([^<]*)</text>", drawn)
    start = labels.index("KL when it alone is quantized")
    assert labels[start + 1 : start + 7] == ["up", "down", "keys", "2", "10", "all"]  # 10 after 2
    assert drawn.count("lightgrey") == 1  # the NaN's


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "sensitivity.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_command(tmp_path: Path, capsys: Printed) -> None:
    words = ["--by", "kind", "format=mxfp4", "kv_quant=fp4_e2m1", "calibration.samples=8", "model.device=cpu"]
    assert main([*words, "--output", str(tmp_path)]) == 0
    captured = capsys.readouterr()
    rows = rows_of(tmp_path)
    assert {row["part"] for row in rows} == {"q", "k", "v", "o", "gate", "up", "down", "keys", "values"}
    assert [row["rank"] for row in rows] == [str(rank) for rank in range(1, 10)]
    assert all(0 < float(row["kl_alone"]) < float(row["kl_whole"]) for row in rows)
    assert "tiny, mxfp4, keys and values fp4_e2m1\nCalibration: " in captured.out
    files = [tmp_path / f"sensitivity.{kind}" for kind in ("csv", "png", "svg", "pdf")]
    assert captured.out.endswith("\nWritten:\n" + "".join(f"  {file}\n" for file in files))
    assert captured.err == "" and sorted(tmp_path.iterdir()) == sorted(files)


def test_a_model_without_a_limit_of_positions_is_measured(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(str(model_folder("embedded")))
    config = MambaConfig(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, state_size=4)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "mamba")
    tokenizer.save_pretrained(tmp_path / "mamba")
    (tmp_path / "text.txt").write_text("Irene hid the kettle in the attic . " * 40)
    calibration = ["calibration=text", f"calibration.path={tmp_path / 'text.txt'}", "calibration.length=16"]
    model = ["model=hf", f"model.path={tmp_path / 'mamba'}", "model.device=cpu", "modules={*.dt_proj: none}"]
    measured, described, _ = measure_config(compose([*model, *calibration, "format=mxfp4"]), "layer", silent)
    assert measured.rows() and " sequences of 16 tokens" in described


def test_what_is_worked_out_first_is_measured(tmp_path: Path, capsys: Printed) -> None:
    words = ["--by", "layer", "format=mxfp4", "format.activation=none", "calibration.samples=8", "model.device=cpu"]
    assert main([*words, "--output", str(tmp_path / "rtn")]) == 0
    assert main([*words, "ptq=gptq", "--output", str(tmp_path / "gptq")]) == 0
    rounded, solved = (rows_of(tmp_path / name) for name in ("rtn", "gptq"))
    assert float(solved[0]["kl_whole"]) < 0.8 * float(rounded[0]["kl_whole"])
    assert {row["part"] for row in solved} == {"layer 0", "layer 1", "layer 2"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["format=none"], "format: 'none' with kv_quant=none quantizes nothing"),
        (["format=bogus"], "format: 'bogus' is no format"),
        (["format=mxfp4,nvfp4"], "format: has several values"),
        (["experiment=ex1"], "experiment: is a sweep"),
        (["by=layer"], "by=layer: is an option of this command and no knob; write --by=layer"),
        (["dry_run=true"], "dry_run: has no use here"),
        (["formt=mxfp4"], "formt: there is no such knob (near it: format)"),
        (["modules={nothing.*: none}", "model.device=cpu"], "modules: the pattern 'nothing.*' matches no linear layer"),
        (["format=mxfp4", "--config-dir", "/nowhere"], "--config-dir: '/nowhere' is not a folder"),
        (["calibration=text"], "calibration.path: "),
        pytest.param(
            ["custom_cuda=true"],
            "custom_cuda: true cannot be had here",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, with which it can"),
        ),
    ],
)
def test_what_makes_no_sense_is_one_line(words: list[str], message: str, tmp_path: Path, capsys: Printed) -> None:
    assert main([*words, "--output", str(tmp_path / "out")]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"mxsweep.sensitivity: {message}"), captured.err
    assert captured.err.count("\n") == 1 and captured.out == ""
    assert not (tmp_path / "out").exists()


def test_ctrl_c_is_130(tmp_path: Path, capsys: Printed, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mxsweep.measure.configured_sensitivity.measure", interrupted)
    assert main(["format=mxfp4", "model.device=cpu", "--output", str(tmp_path / "out")]) == 130
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "") and not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_to(tmp_path: Path, capsys: Printed) -> None:
    (tmp_path / "file").write_text("")
    words = ["--by=layer", "format=mxfp4", "calibration.samples=2", "model.device=cpu"]
    assert main([*words, "--output", str(tmp_path / "file")]) == 1
    captured = capsys.readouterr()
    assert "mxsweep.sensitivity: cannot write to" in captured.err and "layer 0" in captured.out


def test_the_help(tmp_path: Path) -> None:
    answer = subprocess.run(
        [sys.executable, "-m", "mxsweep.sensitivity", "--help"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "--by module|layer|kind" in answer.stdout and "calibration=text" in answer.stdout
