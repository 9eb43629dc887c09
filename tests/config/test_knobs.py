"""The table of knobs against the config files, and what is derived from it."""

from __future__ import annotations

import subprocess
import sys

import pytest
import yaml

from mxsweep.config import knobs
from mxsweep.config.knob import UNSET, Kind, Scope
from mxsweep.config.knob_table import TABLE, by_path
from mxsweep.config.option_files import conf_dir, option_names


def test_every_value_in_conf_is_a_knob_and_every_knob_has_its_default_there() -> None:
    config = yaml.safe_load((conf_dir() / "config.yaml").read_text(encoding="utf-8"))
    groups = {key.removeprefix("override ") for entry in config["defaults"] if isinstance(entry, dict) for key in entry}
    assert groups | {"hydra/launcher"} == {knob.path for knob in knobs.all_knobs() if knob.is_group}
    with_default = set()
    for key, value in config.items():
        if isinstance(value, dict) and key != "hydra":
            with_default |= {f"{key}.{leaf}" for leaf in value}
        elif key not in ("defaults", "hydra"):
            with_default.add(key)
    for group in groups - {"experiment", "logging"}:  # what each option of a group sets for itself
        options = [yaml.safe_load((conf_dir() / group / f"{name}.yaml").read_text()) for name in option_names(group)]
        of_all = set.intersection(*map(set, options))
        in_root = (conf_dir() / group / f"{option_names(group)[0]}.yaml").read_text().startswith("# @package _global_")
        with_default |= of_all if in_root else {f"{group}.{leaf}" for leaf in of_all}
    with_default |= {f"logging.{leaf}" for leaf in yaml.safe_load((conf_dir() / "logging" / "none.yaml").read_text())}
    of_runs = {knob.path for group in ("", *knobs.groups()) for knob in knobs.leaves(group)} | {"stamp", "sweep"}
    assert of_runs == with_default


def test_a_path_is_declared_once() -> None:
    with pytest.raises(ValueError, match="seed is declared twice"):
        by_path([TABLE["seed"], TABLE["noise"], TABLE["seed"]])


def test_labels_are_of_knobs_that_are_labelled_once() -> None:
    names = [knob.name for knob in knobs.all_knobs()]
    assert len(set(names)) == len(names)
    assert all(knob.help and not knob.help.endswith(".") for knob in knobs.all_knobs())


def test_what_the_command_line_takes_as_typed() -> None:
    assert set(knobs.paths()) == {"model.path", "task.data", "calibration.path"}
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
