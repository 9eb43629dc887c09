"""A weight method costs a file and its declaration: one that is registered here is found in every output of a run."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from torch import Tensor

from mxsweep import run
from mxsweep.config.overrides import prepare
from mxsweep.config.run_config import RunConfig
from mxsweep.config.weight_methods import WEIGHT_METHODS, Needs, WeightMethod, register_weight_method
from mxsweep.numerics import Encoded, MXFormat, encode
from mxsweep.report.result_texts import terminal_text
from mxsweep.results.groups import read_results, value_order
from mxsweep.solvers.methods import load_method
from mxsweep.sweeps.plan import plan

SMALL = ["limit=60", "calibration.samples=8", "model.device=cpu", "format=mxfp4", "arithmetic=exact"]


@pytest.fixture
def calls() -> list[tuple[Mapping[str, Any], bool]]:
    """The options of each call of the toy method, and whether it was given a Hessian."""
    return []


@pytest.fixture(params=[Needs.NOTHING, Needs.HESSIAN], ids=["alone", "calibrated"])
def toy(
    request: pytest.FixtureRequest,
    calls: list[tuple[Mapping[str, Any], bool]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Needs]:
    """A method that halves each rounded weight, with the option `damping`, and an option file for the command line."""

    def solve(weight: Tensor, fmt: MXFormat, hessian: Tensor | None, options: Mapping[str, Any]) -> Encoded:
        calls.append((options, hessian is not None))
        return encode(weight / 2, fmt)

    module = ModuleType("toy_method")
    module.solve = solve  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "toy_method", module)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "conf" / "ptq").mkdir(parents=True)
    (tmp_path / "conf" / "ptq" / "toy.yaml").write_text("method: toy\n")
    register_weight_method(WeightMethod("toy", ("damping",), lambda options: request.param, "toy_method"))
    yield request.param
    del WEIGHT_METHODS["toy"]


def planned(folder: Path, *words: str) -> RunConfig:
    (job,) = plan(prepare([*SMALL, *words], folder)[0], False, folder).runs
    assert job.config is not None, job.error
    return job.config


def test_a_new_method_is_in_the_run_the_record_the_table_and_the_hash(
    toy: Needs, calls: list[tuple[Mapping[str, Any], bool]], tmp_path: Path
) -> None:
    conf = tmp_path / "conf"
    configs = {words: planned(conf, *words) for words in (("ptq=rtn",), ("ptq=toy",), ("ptq=toy", "ptq.damping=0.5"))}
    assert len({config.config_hash for config in configs.values()}) == 3
    other = planned(conf, "ptq=toy", "ptq.clip_loss=weight")  # which is no option of the method
    assert other.config_hash == configs["ptq=toy",].config_hash
    assert configs["ptq=toy",].needs_calibration is (toy is Needs.HESSIAN)

    records = [run(config, tmp_path / "runs" / str(index)) for index, config in enumerate(list(configs.values())[:2])]
    assert [record["status"] for record in records] == ["done", "done"], records[1]["error"]
    assert records[1]["config"]["ptq"] == {"method": "toy", "damping": 0.01}
    assert records[1]["remedies"]["ptq"]["method"] == "toy" and records[1]["remedies"]["ptq"]["layers"] == 21
    assert {given for _, given in calls} == {toy is Needs.HESSIAN}
    assert all(options == {"damping": 0.01} for options, _ in calls)
    assert records[1]["metrics"] != records[0]["metrics"]

    results = read_results([tmp_path / "runs"])
    assert "ptq" in results.shown
    assert "toy" in terminal_text(results)
    assert value_order("ptq", "gptq") < value_order("ptq", "toy")  # registered later: more is done


def test_a_new_method_is_in_the_messages(toy: Needs, tmp_path: Path) -> None:
    (job,) = plan(prepare([*SMALL, "ptq.method=tyo"], tmp_path / "conf")[0], False, tmp_path / "conf").runs
    assert job.error is not None and "ptq.method" in job.error
    assert ", ".join(WEIGHT_METHODS) in job.error and "toy" in WEIGHT_METHODS


def test_a_name_stands_for_one_method(toy: Needs) -> None:
    with pytest.raises(ValueError, match=r"^ptq\.method: 'toy' stands for another method already"):
        register_weight_method(WeightMethod("toy"))


def test_every_declared_method_has_its_solve() -> None:
    for name, method in WEIGHT_METHODS.items():
        assert method.solver_module == (method.module or f"mxsweep.solvers.{name}")
        assert callable(load_method(name))
