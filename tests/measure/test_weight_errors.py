"""`python -m mxsweep.inspect`: the error of every weight, as a table, a CSV and a heat map."""

from __future__ import annotations

import csv
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mxsweep.files.checkpoints import model_folder
from mxsweep.inspect import main
from mxsweep.measure.weight_errors import Inspected
from mxsweep.measure.weight_tables import side_by_side_text, verdict
from mxsweep.model.tensor_statistics import TensorStatistics
from mxsweep.numerics import BlockStatistics, MXFormat, quantize

Printed = pytest.CaptureFixture[str]


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "inspect.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_every_weight_in_one_format(tmp_path: Path, capsys: Printed) -> None:
    assert main(["format=mxfp4", "block_size=16", "--output", str(tmp_path), "model.device=cpu"]) == 0
    folder = model_folder("embedded")
    assert folder is not None
    weights = load_file(folder / "model.safetensors")
    rows = rows_of(tmp_path)
    assert len(rows) == 21
    for row in rows:
        x = weights[f"{row['module']}.weight"].float()
        y = quantize(x, MXFormat("fp4_e2m1", 16)).double()
        error = x.double() - y
        assert float(row["sqnr_db"]) == pytest.approx(10 * math.log10(x.double().square().sum() / error.square().sum()))
        assert float(row["rmse"]) == pytest.approx(float(error.square().mean().sqrt()))
        # Saturated: beyond the largest value of its block's grid, by whichever exponent its maximum has.
        blocks = x.unflatten(-1, (-1, 16))
        scale = 2.0 ** (blocks.abs().amax(-1, keepdim=True).log2().floor() - 2)
        assert int(row["saturated"]) == int(((blocks / scale).abs() > 6).sum())
        assert int(row["flushed"]) == int(((x != 0) & (y == 0)).sum())
        assert int(row["exponent_max"]) == int(scale.log2().max())
        assert (row["clamped"], row["exponent_limit"], row["format"]) == ("0", "127", "fp4_e2m1-b16-e8m0")
    printed = capsys.readouterr().out
    assert "mxfp4: fp4_e2m1-b16-e8m0, 4.50 bits a weight" in printed
    assert len(re.findall(r"^model\.layers\.\d\.\S+ +\d+\.\d\d ", printed, re.MULTILINE)) == 21
    assert re.search(r"^all weights +18\.\d\d .* 0 of 27,648 ", printed, re.MULTILINE)
    png, svg = (tmp_path / f"inspect.{kind}" for kind in ("png", "svg"))
    assert png.read_bytes()[:4] == b"\x89PNG" and "gate_proj" in svg.read_text()
    assert f"Written:\n  {tmp_path / 'inspect.csv'}\n  {png}\n  {svg}\n" in printed


def test_two_formats_side_by_side(tmp_path: Path, capsys: Printed) -> None:
    assert main(["format=mxfp4,nvfp4", f"--output={tmp_path}", "model.device=cpu"]) == 0
    printed = capsys.readouterr().out
    rows = rows_of(tmp_path)
    assert [row["config"] for row in rows] == ["mxfp4"] * 21 + ["nvfp4"] * 21
    first, second = (float(rows[index]["sqnr_db"]) for index in (0, 21))
    found = re.search(
        r"^model\.layers\.0\.self_attn\.q_proj +([\d.]+) +([\d.]+) +(\w+) +([\d.]+)$", printed, re.MULTILINE
    )
    assert found is not None
    assert found.groups() == (f"{first:.2f}", f"{second:.2f}", "nvfp4", f"{second - first:.2f}")
    assert re.search(
        r"^nvfp4 keeps the weights better than mxfp4 by 1\.\d\d dB over all of them, at 0\.25 more bits a weight; "
        r"it is the best in 21 of 21 weights\.$",
        printed,
        re.MULTILINE,
    )
    svg = (tmp_path / "inspect.svg").read_text()
    assert "mxfp4 (4.25 bits a weight)" in svg and "nvfp4 less mxfp4" in svg


def test_any_knob_can_be_swept(tmp_path: Path, capsys: Printed) -> None:
    words = [
        "-m",
        "format=none,mxfp4",
        "block_size=16,32",
        "scale_bits=8",
        "--output",
        str(tmp_path),
        "model.device=cpu",
    ]
    assert main(words) == 0
    # The baseline quantizes no weight.
    assert {row["config"] for row in rows_of(tmp_path)} == {"block_size=16", "block_size=32"}
    assert "the best in" in capsys.readouterr().out


def test_formats_that_do_the_same_are_called_equal(tmp_path: Path, capsys: Printed) -> None:
    assert main(["format=mxfp4", "scale_bits=6,8", "--output", str(tmp_path), "model.device=cpu"]) == 0
    assert "keep the weights equally well." in capsys.readouterr().out


def test_weights_outside_the_blocks_and_several_formats(tmp_path: Path, capsys: Printed) -> None:
    words = ["modules={lm_head: nvfp4, *.q_proj: none}", "task=arc_easy", "--output", str(tmp_path), "model.device=cpu"]
    assert main(words) == 0
    rows = {row["module"]: row for row in rows_of(tmp_path)}
    assert rows["lm_head"]["layer"] == "" and rows["lm_head"]["exponent_min"] == ""
    assert not any("q_proj" in name for name in rows)
    assert "fp4_e2m1-b16-e4m3-tensor" in capsys.readouterr().out
    assert ">none<" in (tmp_path / "inspect.svg").read_text()


def test_blocks_without_a_scale_are_grey_and_the_worst(tmp_path: Path, capsys: Printed) -> None:
    assert main(["format=mxfp4", "scale_bits=2,8", "--output", str(tmp_path), "model.device=cpu"]) == 0
    rows = rows_of(tmp_path)
    assert any(row["sqnr_db"] == "nan" for row in rows)  # a block that wants more than 2 bits hold becomes NaN
    printed = capsys.readouterr().out
    assert " nan " in printed and (tmp_path / "inspect.png").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["format=bogus"], "format: 'bogus' is no format"),
        (["formt=mxfp4"], "formt: there is no such knob (near it: format)"),
        (["format=none"], "format: no weight is quantized, so there is nothing to measure"),
        (["format=none", "kv_quant=int8"], "format: no weight is quantized"),
        (["dry_run=true"], "dry_run: has no use here"),
        (["hydra.sweep.dir=x"], "hydra.sweep.dir: has no use here"),
        (["modules={nothing.*: none}", "model.device=cpu"], "modules: the pattern 'nothing.*' matches no linear layer"),
        (["model=hf", "model.path=/nowhere/at/all"], "model.path: "),
        (["block_size=16,zero"], "block_size: "),
        (["mxfp4"], "mxfp4: cannot be read as KNOB=VALUE"),
        (["format=mxfp4", "--config-dir", "/nowhere"], "--config-dir: '/nowhere' is not a folder"),
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
    assert captured.err.startswith(f"mxsweep.inspect: {message}"), captured.err
    assert captured.err.count("\n") == 1 and captured.out == ""
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_to(tmp_path: Path, capsys: Printed) -> None:
    (tmp_path / "file").write_text("")
    assert main(["format=mxfp4", "model.device=cpu", "--output", str(tmp_path / "file")]) == 1
    captured = capsys.readouterr()
    assert "mxsweep.inspect: cannot write to" in captured.err and "all weights" in captured.out


def test_the_command_without_lm_eval(tmp_path: Path) -> None:
    code = (
        "import sys; from mxsweep.inspect import main; code = main(['format=mxfp4']);"
        "assert 'lm_eval' not in sys.modules and 'datasets' not in sys.modules; sys.exit(code)"
    )
    answer = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    assert answer.stderr == ""
    (folder,) = (tmp_path / "outputs").iterdir()
    assert re.fullmatch(r"inspect_\d{8}_\d{6}", folder.name)
    help_text = subprocess.run(
        [sys.executable, "-m", "mxsweep.inspect", "--help"], cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout
    assert "KNOB=VALUE" in help_text and "format=mxfp4,nvfp4" in help_text


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU on this machine")
def test_on_a_gpu(tmp_path: Path) -> None:
    words = ["format=mxfp4", "arithmetic=exact"]
    assert main([*words, "model.device=cpu", "--output", str(tmp_path / "cpu")]) == 0
    assert main([*words, "model.device=cuda", "backend=cuda", "--output", str(tmp_path / "gpu")]) == 0
    for a, b in zip(rows_of(tmp_path / "cpu"), rows_of(tmp_path / "gpu"), strict=True):
        assert float(a["sqnr_db"]) == pytest.approx(float(b["sqnr_db"]))
        assert a["saturated"] == b["saturated"]


@pytest.mark.parametrize(
    "words", ["ptq=gptq", "ptq=clip", "ptq.budget=5", "rotation=search", "rotation=wush", "scale_rounding=search"]
)
def test_what_a_run_works_out_is_refused(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["format=mxfp4", *words.split()]) == 2
    assert "inspect measures weights rounded to nearest; allowed here: " in capsys.readouterr().err


def inspected(label: str, *ratios: float) -> Inspected:
    """Return a config whose weights, of 32 elements and a signal of 1 each, have these ratios in dB."""
    tensors = []
    for index, ratio in enumerate(ratios):
        noise = math.nan if math.isnan(ratio) else 10 ** (-ratio / 10)
        of = BlockStatistics(1, 0, 32, 0, 0, 0, 0, sqnr_db=ratio, signal=1.0, noise=noise)
        tensors.append(TensorStatistics("weight", str(index), None, MXFormat("fp4_e2m1"), of))
    return Inspected(label, tensors, 4.25)


def test_configs_whose_sums_were_added_up_in_another_order_are_equally_good() -> None:
    for a, b in ((20.0, math.nextafter(20.0, 99)), (math.nextafter(20.0, 99), 20.0), (math.inf, math.inf)):
        same = [inspected("a", a, 10.0), inspected("b", b, 10.0)]
        text = side_by_side_text(same)
        assert verdict(same) == "a and b keep the weights equally well." and verdict(same) in text
        assert not re.search(r" 0\.00$", text, re.MULTILINE)
    assert verdict([inspected("c", 9.0), *same]).startswith("a and b keep")
    close = [inspected("c", 9.0), inspected("a", 20.0), inspected("b", 20.5)]
    assert verdict(close).startswith("b keeps the weights better than a, the next best, by 0.50 dB over all of them")


@pytest.mark.parametrize(("better", "worse"), [(math.inf, 20.0), (20.0, -math.inf), (20.0, math.nan)])
def test_an_infinite_distance_is_not_said_in_decibels(better: float, worse: float) -> None:
    text = verdict([inspected("a", worse), inspected("b", better)])
    assert text == (
        "b keeps the weights better than a over all of them, at the same bits; it is the best in 1 of 1 weights."
    )
