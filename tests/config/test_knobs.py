"""The table of knobs against the config files, and what is derived from it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import knob_lists

from mxsweep import compose
from mxsweep.__main__ import main
from mxsweep.config import effects, knobs
from mxsweep.config.knob import UNSET, Kind, Knob, Scope
from mxsweep.config.knob_page import knob_page, words_of
from mxsweep.config.knob_table import TABLE, by_path
from mxsweep.config.option_files import conf_dir, option_names
from mxsweep.config.overrides import prepare
from mxsweep.config.run_identity import PLACES
from mxsweep.config.value_types import Whole
from mxsweep.report.data_files import load
from mxsweep.results.groups import read_results
from mxsweep.results.record import write_record
from mxsweep.sweeps.plan import plan
from mxsweep.terminal.errors import ConfigError


def paths_of(config: dict[str, Any], prefix: str = "") -> set[str]:
    """Return the paths of the values in a config file."""
    paths = set()
    for key, value in config.items():
        path = f"{prefix}{key}"
        paths |= paths_of(value, f"{path}.") if path in (*knobs.groups(), "logging") else {path}
    return paths - {"defaults", "hydra"}


def test_every_value_in_conf_is_a_knob_and_every_knob_has_its_default_there() -> None:
    config = yaml.safe_load((conf_dir() / "config.yaml").read_text(encoding="utf-8"))
    groups = {key.removeprefix("override ") for entry in config["defaults"] if isinstance(entry, dict) for key in entry}
    assert groups | {"hydra/launcher"} == {knob.path for knob in knobs.all_knobs() if knob.is_group}
    with_default = paths_of(config)
    for group in groups - {"experiment", "logging"}:  # what each option of a group sets for itself
        texts = [(conf_dir() / group / f"{name}.yaml").read_text() for name in option_names(group)]
        options = []
        for text in texts:
            in_root = text.startswith("# @package _global_")
            content = yaml.safe_load(text) or {}
            options.append(content if in_root else {group: content})
        with_default |= set.intersection(*map(paths_of, options))
    with_default |= {f"logging.{leaf}" for leaf in yaml.safe_load((conf_dir() / "logging" / "none.yaml").read_text())}
    of_runs = {knob.path for group in ("", *knobs.groups()) for knob in knobs.leaves(group)} | {"stamp", "sweep"}
    assert of_runs == with_default


def test_every_condition_of_a_knob_has_words() -> None:
    assert "| run and baseline, where train.schedule is wsd |" in knob_page()
    of_matmuls = next(line for line in knob_page().splitlines() if line.startswith("| `rotation.matmuls`"))
    assert "the weight method" not in of_matmuls and "where rotation is not none" in of_matmuls
    with pytest.raises(KeyError):
        words_of(lambda values: True)


def test_a_path_is_declared_once() -> None:
    with pytest.raises(ValueError, match="seed is declared twice"):
        by_path([TABLE["seed"], TABLE["noise"], TABLE["seed"]])


def test_labels_are_of_knobs_that_are_labelled_once() -> None:
    names = [knob.name for knob in knobs.all_knobs()]
    assert len(set(names)) == len(names)
    assert all(knob.help and not knob.help.endswith(".") for knob in knobs.all_knobs())


def test_what_the_command_line_takes_as_typed() -> None:
    assert set(knobs.paths()) == {
        "model.path", "task.data", "task.include_path", "calibration.path", "corpus.path", "corpus.heldout",
        "init.tokenizer",
    }  # fmt: skip
    assert set(knobs.folders()) == {"hydra.run.dir", "hydra.sweep.dir"}
    assert {"model.revision", "calibration.name", "logging.project"} <= set(knobs.free_text())
    assert not set(knobs.paths()) & set(knobs.free_text())


@pytest.mark.parametrize(
    ("key", "of_sweep", "decides_no_result", "only_quantized"),
    [
        ("dry_run", True, True, False), ("logging", True, True, False), ("logging.mode", True, True, False),
        ("hydra/launcher", True, True, False), ("hydra.launcher.n", True, True, False), ("stamp", False, True, False),
        ("batch_tokens", False, True, False), ("model", False, False, False), ("model.path", False, False, False),
        ("model.name", False, True, False), ("seed", False, False, False), ("experiment", False, False, False),
        ("noise", False, False, False), ("format", False, False, True), ("format.weight", False, False, True),
        ("calibration", False, False, True), ("rotation_block", False, False, True), ("nothing", False, False, False),
    ],
)  # fmt: skip
def test_scopes(key: str, of_sweep: bool, decides_no_result: bool, only_quantized: bool) -> None:
    assert knobs.is_of_sweep(key) == of_sweep
    assert knobs.decides_no_result(key) == decides_no_result
    assert knobs.decides_only_quantized(key) == only_quantized


def test_what_is_off_is_allowed() -> None:
    for path, value in knobs.switches().items():
        TABLE[path].type.check(path, value)
    assert all(knob.off is UNSET for knob in knobs.all_knobs() if knob.scope is Scope.SWEEP)
    assert all(knob.scope is Scope.SWEEP for knob in knobs.all_knobs() if knob.kind is Kind.FOLDER)


def test_the_table_imports_neither_torch_nor_hydra() -> None:
    code = "import sys; import mxsweep.config.knobs; print([m for m in ('torch', 'omegaconf') if m in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_every_place_in_an_identity_is_one_that_is_made() -> None:
    places = {knob.place for knob in knobs.all_knobs() if knob.scope in (Scope.RUN, Scope.BASELINE)} - {None}
    assert places == PLACES
    # What stands there by itself under its path, of every run: a knob without a value at which it is left out.
    alone = [knob.path for knob in knobs.all_knobs() if knob.scope is Scope.BASELINE and knob.place is None]
    assert alone == ["limit", "model.add_bos_token", "task.fewshot_evaluated", "seed", "diagnostics", "noise"]


def test_the_page_is_current() -> None:
    page = Path(__file__).parents[2] / "docs" / "knobs.md"
    assert page.read_text(encoding="utf-8") == knob_page(), "python -m mxsweep.config.knob_page > docs/knobs.md"


def declare(knob: Knob, default: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Knob:
    """Add a knob: its declaration, and in a copy of conf/ its default, under its group or, of none, at the top."""
    monkeypatch.setitem(TABLE, knob.path, knob)
    conf = shutil.copytree(conf_dir(), folder / "conf")
    config = (conf / "config.yaml").read_text(encoding="utf-8")
    place = f"\n{knob.group}:\n" if knob.group else "\nseed:"
    entry = f"{place}  {default}\n" if knob.group else f"\n{default}{place}"
    (conf / "config.yaml").write_text(config.replace(place, entry), encoding="utf-8")
    for name, module in list(sys.modules.items()):
        if name.startswith("mxsweep.") and getattr(module, "conf_dir", None) is conf_dir:
            monkeypatch.setattr(module, "conf_dir", lambda: conf)
    return knob


@pytest.fixture
def dither(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Knob:
    knob = Knob(
        "ptq.dither", "how much weights are dithered, for trying out", Whole("0 or more"), Scope.RUN, off=0,
        effect=effects.quantizes_weights,
    )  # fmt: skip
    return declare(knob, "dither: 0", tmp_path, monkeypatch)


def test_a_knob_that_no_type_has_a_field_for_is_in_the_hash_whatever_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    knob = Knob("ptq.shrink", "for trying out", Whole("0 or more"), Scope.RUN, off=0, place="ptq")
    declare(knob, "shrink: 0", tmp_path, monkeypatch)
    words = ["format=mxfp4", "ptq=clip"]
    hashes = [compose([*words, f"ptq.shrink={value}"]).config_hash for value in (0, 1, 2)]
    assert len(set(hashes)) == 3
    assert compose(words).config_hash == hashes[0]


def test_runs_that_differ_in_a_knob_of_baselines_have_a_baseline_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    declare(
        Knob("order", "for trying out", Whole("0 or more"), Scope.BASELINE, off=0), "order: 0", tmp_path, monkeypatch
    )
    runs = plan(prepare(["order=0,2", "format=mxfp4,nvfp4"])[0], multirun=True).runs
    assert [" ".join(run.overrides) for run in runs] == [
        "order=0 format=none kv_quant=none", "order=0 format=mxfp4", "order=0 format=nvfp4",
        "order=2 format=none kv_quant=none", "order=2 format=mxfp4", "order=2 format=nvfp4",
    ]  # fmt: skip
    assert runs[0].config_hash == compose(["format=none"]).config_hash != runs[3].config_hash


def test_a_knob_more_of_calibration_is_recorded_where_something_is_calibrated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    knob = Knob(
        "calibration.skip", "for trying out", Whole("0 or more"), Scope.RUN, off=0, effect=effects.calibrates
    )  # fmt: skip
    declare(knob, "skip: 0", tmp_path, monkeypatch)
    plain, calibrated = (compose([*words, "calibration.skip=2"]) for words in ([], ["ptq=gptq"]))
    assert plain.as_dict()["calibration"] is None and plain.config_hash == compose([]).config_hash
    assert calibrated.as_dict()["calibration"]["skip"] == 2
    assert calibrated.config_hash != compose(["ptq=gptq"]).config_hash


def test_a_knob_more_is_one_declaration_and_its_default(
    dither: Knob, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, off, on = (compose(words) for words in ([], ["ptq.dither=0"], ["ptq.dither=3"]))
    # A run's identity: as it was where the knob is off or without effect, another where it is on.
    assert plain.config_hash == off.config_hash != on.config_hash
    assert "ptq.dither" not in plain.identity["quantized"] and on.identity["quantized"]["ptq.dither"] == 3
    assert compose(["format=none", "ptq.dither=3"]).config_hash == compose(["format=none"]).config_hash
    with pytest.raises(ConfigError, match=r"ptq\.dither: -1 is not allowed; allowed: 0 or more"):
        compose(["ptq.dither=-1"])
    # Its baseline's config.
    assert knobs.decides_only_quantized("ptq.dither") and "ptq.dither=0" in knobs.baseline_words()
    # What the command line and --help know, what is fuzzed, and the page.
    assert knobs.is_knob("ptq.dither") and "near it: ptq.dither" in knobs.no_such_knob("ptq.diter")
    assert main(["--help"]) == 0
    assert "  ptq.dither                    how much weights are dithered" in capsys.readouterr().out
    assert "ptq.dither" in knob_lists.leaves()
    assert "| `ptq.dither` | how much weights are dithered, for trying out | 0 or more | `0` |" in knob_page()
    # What is recorded, varies in a table, and has a column.
    for name, config in (("a", off), ("b", on)):
        record = {
            "run_id": name, "status": "done", "config": config.as_dict(), "overrides": [],
            "metrics": {"story": {"acc": 0.5}},
        }  # fmt: skip
        write_record(tmp_path / "runs" / name, record)
    results = read_results(tmp_path / "runs")
    assert results.shown == ["ptq.dither"]
    assert [row.knobs["ptq.dither"] for row in results.groups[0].rows] == [0, 3]
    assert list(load(tmp_path / "runs")["ptq.dither"]) == [0, 3]
