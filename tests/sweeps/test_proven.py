"""Runs that others prove: what is taken over and what is not, and that evaluating them comes to the same bits."""

from __future__ import annotations

import itertools
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from mxsweep import compose
from mxsweep.__main__ import main
from mxsweep.evaluate.stories import stories
from mxsweep.files.checkpoints import model_folder
from mxsweep.model.load import load_model
from mxsweep.report.column_table import MEASURED
from mxsweep.report.run_warnings import list_proven
from mxsweep.report.status import status_text
from mxsweep.results.manifest import Command
from mxsweep.results.proven import PROVEN_BY, SIGNIFICAND, WANTED, Candidate, prove
from mxsweep.results.record import find_runs, read_record, write_record
from mxsweep.results.rows import read_rows
from mxsweep.sweeps.alike import groups_of, provers_first, with_provers
from mxsweep.sweeps.begin import plan_command
from mxsweep.sweeps.dry_run import preview
from mxsweep.sweeps.execute import SweepRun, work
from mxsweep.sweeps.run_sweep import _launch, _sweep_run

FEW = ["stamp=t", "limit=6", "model.device=cpu", "baseline=false", "task=story"]
BITS = "scale_bits=5,8"  # ±15 and ±127; what the embedded model's blocks want lies well within ±15
DOWN = "model.layers.2.mlp.down_proj.weight"
Tensors = dict[str, torch.Tensor]


def planned(folder: Path, *words: str) -> list[SweepRun]:
    """Return the runs of a sweep, as one with reuse=proven begins them."""
    plan, _ = plan_command(Command([*FEW, *words], None, str(folder)), multirun=True)
    return provers_first(with_provers([_sweep_run(run, folder / run.subdir, run.run_id) for run in plan.runs]))


def evaluated(folder: Path, *words: str, proving: bool = True) -> dict[int, dict[str, Any]]:
    """Do a sweep's runs, as one with reuse=never does them unless ``proving``; return the records by scale bits."""
    runs = planned(folder, *words)
    never = [replace(run, candidate=None, provers=(), keeps_exponents=False) for run in runs]
    work(runs if proving else never, "launch")
    return {run.config.scale_bits: read_record(run.folder / "result.json") for run in runs if run.config}


def changed(folder: Path, change: Callable[[Tensors], None]) -> str:
    """Write the embedded model with other weights; return the word that names it."""
    embedded = model_folder("embedded")
    assert embedded is not None
    shutil.copytree(embedded, folder)
    (file,) = folder.glob("*.safetensors")
    tensors = {name: tensor.float() for name, tensor in load_file(file).items()}
    change(tensors)
    save_file(tensors, file, {"format": "pt"})
    return f"model.path={folder}"


def block_of(exponent: int) -> Callable[[Tensors], None]:
    """Have one block of a weight want an exponent: of fp4_e2m1, whose largest value is 1.5 * 2^2."""

    def change(tensors: Tensors) -> None:
        tensors[DOWN][3, :32] = torch.tensor(2.0 ** (exponent + 2))

    return change


def zeroed(tensors: Tensors) -> None:
    tensors[DOWN][3, :32] = 0.0
    tensors[DOWN][:, 32:64] = 0.0


def outlier_of_one_example(tensors: Tensors) -> None:
    """Have all channels but one of a token's embedding be tiny beside that one, of a token that one example has."""
    tokenizer = load_model("embedded").tokenizer
    of_each = [set(tokenizer(text)["input_ids"]) for text in stories(6)]
    token, times = min(Counter(itertools.chain(*of_each)).items(), key=lambda item: item[1])
    assert times == 1
    tensors["model.embed_tokens.weight"][token, 0] = 1e9


CHANGES = pytest.mark.parametrize(
    ("change", "is_proven"),
    [
        (block_of(15), True),
        (block_of(16), False),
        (block_of(-15), True),
        (block_of(-16), False),
        (zeroed, True),
        (outlier_of_one_example, False),
    ],
    ids=["top", "above", "bottom", "below", "zeros", "outlier"],
)


@CHANGES
def test_proven_runs_come_to_the_same_bits(
    change: Callable[[Tensors], None], is_proven: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both ways, on models whose scales just do and just do not fit: the same metrics, and the same of each example."""
    check_both_ways(change, is_proven, tmp_path, monkeypatch, "model.dtype=float32")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU on this machine")
@pytest.mark.parametrize("by", ["custom_cuda=true", "custom_cuda=false"])
@CHANGES
def test_runs_on_a_gpu_are_proven_too(
    change: Callable[[Tensors], None], is_proven: bool, by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By exponents that kernels kept, or Triton's."""
    each = check_both_ways(change, is_proven, tmp_path, monkeypatch, "model.device=cuda", "model.dtype=bfloat16", by)
    used = "cuda_kernel_launches" if by == "custom_cuda=true" else "triton_kernel_calls"
    assert each[5]["diagnostics"][used] > 0


def check_both_ways(
    change: Callable[[Tensors], None],
    is_proven: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *more: str,
) -> dict[int, dict[str, Any]]:
    """Compare a sweep's runs that may be proven with the same that are evaluated, and return these records."""
    monkeypatch.chdir(tmp_path)
    model = changed(tmp_path / "model", change)
    words = ["model=hf", model, "kv_quant=fp4_e2m1", "batch_tokens=64", BITS, *more]
    proven = evaluated(tmp_path / "proven", *words)
    each = evaluated(tmp_path / "never", *words, proving=False)
    assert [PROVEN_BY in proven[bits] for bits in (5, 8)] == [False, is_proven]
    assert not any(PROVEN_BY in record for record in each.values())
    for bits in (5, 8):
        assert repr(proven[bits]["metrics"]) == repr(each[bits]["metrics"])
        assert proven[bits]["n_effective"] == each[bits]["n_effective"]
        assert proven[bits]["diagnostics"] == each[bits]["diagnostics"]
        samples = [
            pd.read_parquet(next((tmp_path / way).rglob(f"{records[bits]['run_id']}/samples.parquet")))
            for way, records in (("proven", proven), ("never", each))
        ]
        pd.testing.assert_frame_equal(*samples, check_exact=True)
    low, high = proven[5][WANTED]
    assert (low >= -15 and high <= 15) is is_proven
    return each


def weights_of(significand: float) -> Callable[[Tensors], None]:
    """Have all weights be powers of two but the largest of one block, which has a significand."""

    def change(tensors: Tensors) -> None:
        for name, tensor in tensors.items():
            if tensor.ndim == 2 and name.startswith("model.layers"):
                tensors[name] = tensor.sign() * tensor.abs().clamp(min=2.0**-20).log2().floor().exp2()
        tensors[DOWN][3, :32] = significand

    return change


SIGNIFICANDS = pytest.mark.parametrize(
    ("significand", "proven"),
    [
        (1.0, {"even", "ceil", "rceil"}),
        (1.5, {"even", "rceil"}),
        (1.625, {"even"}),
        (1.75, set()),
    ],
)


@SIGNIFICANDS
def test_roundings_of_scales_are_proven_by_significands(
    significand: float, proven: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both ways, of weights in fp4_e2m1, whose largest value is 1.5 * 2^2, and which has one mantissa bit."""
    check_roundings(significand, proven, tmp_path, monkeypatch, "model.dtype=float32", "arithmetic=exact")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU on this machine")
@SIGNIFICANDS
def test_roundings_of_scales_on_a_gpu_are_proven_too(
    significand: float, proven: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_roundings(significand, proven, tmp_path, monkeypatch, "model.device=cuda", "custom_cuda=true")


def check_roundings(
    significand: float, proven: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *more: str
) -> None:
    """Compare a sweep's runs in four roundings, of which that by floor may prove others, with the same evaluated."""
    monkeypatch.chdir(tmp_path)
    model = changed(tmp_path / "model", weights_of(significand))
    roundings = "scale_rounding=floor,even,ceil,rceil"
    words = ["model=hf", model, "format.activation=none", "kv_quant=none", "scale_bits=8", roundings, *more]
    proving, each = ({}, {})
    for records, is_proving in ((proving, True), (each, False)):
        runs = planned(tmp_path / str(is_proving), *words)
        never = [replace(run, candidate=None, provers=(), keeps_exponents=False) for run in runs]
        work(runs if is_proving else never, "launch")
        records |= {
            run.config.scale_rounding: read_record(run.folder / "result.json") for run in runs if run.config is not None
        }
    assert {rounding for rounding, record in proving.items() if PROVEN_BY in record} == proven
    assert proving["floor"][SIGNIFICAND] == significand
    for rounding, record in each.items():
        assert PROVEN_BY not in record and SIGNIFICAND not in record
        assert repr(proving[rounding]["metrics"]) == repr(record["metrics"])
        assert proving[rounding]["diagnostics"] == record["diagnostics"]
    for rounding in proven:
        assert proving[rounding][PROVEN_BY]["reason"] == (
            f"in no pass was the largest magnitude of a block more than {significand:g} times a power of two, up to "
            f"which scale_rounding {' and '.join(sorted((rounding, 'floor')))} are the same"
        )


def test_a_proven_run_has_no_times_and_says_by_what(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    records = evaluated(tmp_path / "s", "scale_bits=6,8")
    first, second = records[6], records[8]
    assert second["timing"] == {} and second["examples_per_sec"] is None
    assert second[PROVEN_BY]["run_id"] == first["run_id"] and second[PROVEN_BY]["config_hash"] == first["config_hash"]
    low, high = first[WANTED]
    assert second[PROVEN_BY]["reason"] == (
        f"in no pass did a block of any tensor want a scale exponent outside {low} to {high}; scale_bits 6 and 8 hold "
        "±31 at least"
    )
    assert second["config_hash"] == compose([*FEW, "scale_bits=8"]).config_hash  # as of a run that was evaluated
    assert second["diagnostics"]["bits_per_weight"] > first["diagnostics"]["bits_per_weight"]
    found = find_runs(tmp_path / "s")
    assert f"not evaluated: proven by {first['run_id']}" in status_text(found)
    rows = [row for run in found for row in read_rows(run)]
    (line,) = list_proven(rows, lambda row: f"{row.knobs['scale_bits']} bits")
    assert line == f"8 bits, by 6 bits: {second[PROVEN_BY]['reason']}"
    (column,) = (column for column in MEASURED if column.name == "proven_by")
    assert sorted(str(column.value(row)) for row in rows) == sorted(["None", first["run_id"]])


def test_a_done_run_proves_another_launch_and_a_proven_one_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A resumed sweep looks at what is done; what was only proven is no measurement, and proves nothing further."""
    monkeypatch.chdir(tmp_path)
    records = evaluated(tmp_path / "s", "scale_bits=6,7,8")
    assert {records[bits][PROVEN_BY]["run_id"] for bits in (7, 8)} == {records[6]["run_id"]}
    (tmp_path / "s" / records[8]["run_id"] / "result.json").unlink()
    again = evaluated(tmp_path / "s", "scale_bits=6,7,8")
    assert again[8][PROVEN_BY]["run_id"] == records[6]["run_id"]


@pytest.mark.parametrize(
    ("words", "is_group"),
    [
        ([], True),
        (["scale=e5m3"], False),
        (["format=none"], False),
        (["ptq=clip"], False),
        (["custom_cuda=true", "backend=torch"], True),
        (["rotation=hadamard"], True),
    ],
)
def test_which_runs_are_tried(words: list[str], is_group: bool) -> None:
    """Runs that differ in scale bits alone, where there are any and nothing is worked out on data or beforehand."""
    configs = [compose([f"scale_bits={bits}", *words]) for bits in (6, 8)]
    first, second = groups_of(configs)
    assert (first is not None and first == second) is is_group
    assert groups_of([configs[0], compose(["scale_bits=8", *words, "seed=9"])]) == [None, None]


@pytest.mark.parametrize("words", [[], ["arithmetic=exact"], ["custom_cuda=true"]])
def test_roundings_of_scales_are_tried_in_exact_arithmetic(words: list[str]) -> None:
    """In native arithmetic floor has an arithmetic of its own."""
    configs = [
        compose([*rounded, *words]) for rounded in (["scale_rounding=even"], ["scale_rounding=floor", "scale_bits=6"])
    ]
    first, second = groups_of(configs)
    assert (first is not None and first == second) is bool(words)
    of_its_own = compose(["scale_rounding=even", *words, "format.scale_rounding={weight: ceil, activation: even}"])
    assert groups_of([of_its_own, configs[1]]) == [None, None]


def test_a_rounding_is_proven_where_no_maximum_is_lifted(tmp_path: Path) -> None:
    (tmp_path / "samples.parquet").touch()
    by = Candidate("a", tmp_path, "1", 8, 127, "floor", 2.0)
    run = Candidate("b", tmp_path / "b", "2", 6, 31, "even", 1.75)
    record = {"status": "done", "run_id": "a", "config_hash": "1", WANTED: [-31, 31], SIGNIFICAND: 1.5}
    proof = prove(run, by, record)
    assert proof is not None and "outside -31 to 31; scale_bits 6 and 8" in proof.reason
    assert proof.reason.endswith(
        "more than 1.5 times a power of two, up to which scale_rounding even and floor are the same"
    )
    for change in (
        {SIGNIFICAND: 1.75},
        {SIGNIFICAND: None},
        {SIGNIFICAND: "1.5"},
        {SIGNIFICAND: 0.5},
        {WANTED: [-31, 32]},
    ):
        assert prove(run, by, record | change) is None
    wide = replace(run, bits=8, holds=127)
    assert prove(wide, by, record | {WANTED: [-100, 31]}) is not None
    assert prove(wide, by, record | {WANTED: [-101, 31]}) is None  # where a quotient may be no normal number


def test_only_a_whole_record_proves(tmp_path: Path) -> None:
    (tmp_path / "samples.parquet").touch()
    by = Candidate("a", tmp_path, "1", 6, 31)
    run = Candidate("b", tmp_path / "b", "2", 8, 127)
    record = {"status": "done", "run_id": "a", "config_hash": "1", WANTED: [-31, 31]}
    assert prove(run, by, record) is not None
    for change in (
        {"status": "failed"},
        {"config_hash": "3"},
        {WANTED: None},
        {WANTED: [-32, 31]},
        {WANTED: [-31, 32]},
        {WANTED: ["-3", 3]},
        {PROVEN_BY: {}},
    ):
        assert prove(run, by, record | change) is None
    assert prove(run, by, {name: value for name, value in record.items() if name != WANTED}) is None
    (tmp_path / "samples.parquet").unlink()
    assert prove(run, by, record) is None


def test_another_environment_is_evaluated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first, second = planned(tmp_path / "s", "scale_bits=6,8")
    work([first], "launch")
    record = read_record(first.folder / "result.json")
    record["environment"]["device_name"] = "another one"
    write_record(first.folder, record)
    work([second], "launch")
    record = read_record(second.folder / "result.json")
    assert PROVEN_BY not in record and record["timing"]["eval_s"] > 0


def test_the_first_of_each_group_comes_first(tmp_path: Path) -> None:
    """So that several processes do not begin two runs at once of which one proves the other."""
    runs = planned(tmp_path, "block_size=16,32", "scale_bits=6,8")
    assert [(run.config.format.block_size, run.config.scale_bits) for run in runs if run.config] == [
        (16, 6),
        (32, 6),
        (16, 8),
        (32, 8),
    ]


def test_a_dry_run_says_what_may_be_proven() -> None:
    plan, _ = plan_command(Command([*FEW, "block_size=16,32", "scale_bits=6,8"], None, None), multirun=True)
    said = preview(plan.runs, "proven").text
    assert "runs 1, 2 differ in scale bits or rounding alone: the first one done may prove others equal" in said
    assert "runs 3, 4 differ" in said
    assert "may prove" not in preview(plan.runs, "never").text


@pytest.mark.parametrize("reuse", ["proven", "never"])
def test_reuse_decides_whether_runs_are_proven(reuse: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a command, with runs in order of their proofs; unasked every run is evaluated."""
    monkeypatch.chdir(tmp_path)
    command = Command([*FEW, "scale_bits=6,8", *(["reuse=proven"] if reuse == "proven" else [])], None, str(tmp_path))
    plan, _ = plan_command(command, multirun=True)
    (tmp_path / "s").mkdir()
    runs, _ = _launch(plan, tmp_path / "s", command)
    records = [read_record(run.folder / "result.json") for run in runs]
    assert [record["status"] for record in records] == ["done", "done"]
    assert [PROVEN_BY in record for record in records] == [False, reuse == "proven"]
    assert [WANTED in record for record in records] == [reuse == "proven", False]  # not kept where nothing is proven


def test_reuse_is_a_word_of_two(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-m", "scale_bits=6,8", "reuse=always", "dry_run=true"]) == 2
    said = capsys.readouterr().err
    assert "reuse: 'always'" in said and "proven, never" in said
