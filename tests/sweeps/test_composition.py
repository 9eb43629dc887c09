"""Relative paths of a sweep that is resumed elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from mxsweep.config.overrides import prepare
from mxsweep.sweeps.composition import composing
from mxsweep.sweeps.plan import plan
from mxsweep.terminal.errors import ConfigError


@pytest.fixture
def begun_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with a file `a` and a folder `m`, from another folder that has a file `b`."""
    begun_in, here = tmp_path / "begun", tmp_path / "here"
    for folder in (begun_in / "m", here):
        folder.mkdir(parents=True)
    (begun_in / "a").touch()
    (here / "b").touch()
    monkeypatch.chdir(here)
    return begun_in


def composed(knob: str, folder: Path, *words: str) -> Any:
    (overrides,), _ = prepare(list(words))
    with composing(overrides, paths_from=folder) as composer:
        cfg = composer.compose(overrides, 0)
    value: Any = cfg
    for part in knob.split("."):
        value = value[part]
    return value


@pytest.mark.parametrize(
    ("words", "path"),
    [
        (["model=hf", "model.path=m"], "/m"),
        (["model=m"], "/m"),
        (["model=./m"], "/m"),
        (["model=hf", "model.path=${seed}", "seed=1"], "1"),  # a name on the hub
        (["model=owner/name"], "owner/name"),
        (["model=hf", "model.path=~/m"], "~/m"),
        (["model=hf", "model.path=/m"], "/m of its own"),
        ([], "embedded"),
    ],
)
def test_a_models_folder(words: list[str], path: str, begun_in: Path) -> None:
    expected = f"{begun_in}/m" if path == "/m" else path.removesuffix(" of its own")
    assert str(composed("model.path", begun_in, *words)) == expected


def test_files_of_tasks_and_of_calibration(begun_in: Path) -> None:
    assert composed("task.data", begun_in, "task.data=a") == f"{begun_in}/a"
    mapping = composed("task.data", begun_in, "task.data={x.y: a, z: /b, w: nowhere}")
    assert mapping == {"x.y": f"{begun_in}/a", "z": "/b", "w": "nowhere"}
    assert composed("calibration.path", begun_in, "calibration=text", "calibration.path=a") == f"{begun_in}/a"
    assert composed("calibration.path", begun_in, "calibration=task", "calibration.path=a") == "a"  # lm-eval's name
    assert composed("calibration.path", begun_in) is None


def test_a_file_that_only_the_current_folder_has_is_not_taken_for_it(begun_in: Path) -> None:
    for words in (["model=b"], ["task.data={x: b}"], ["calibration=text", "calibration.path=b"]):
        with pytest.raises(ConfigError, match=f"resume: .*: 'b' is here, and is not in '{begun_in}', where the sweep"):
            composed("seed", begun_in, *words)


def test_the_environment_is_not_looked_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A token of the user's would stand in the record."""
    monkeypatch.setenv("A_TOKEN", "made up")
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\nmodel: {name: '${oc.env:A_TOKEN}'}\n")
    refused = r"\$\{oc.env:A_TOKEN\} is not looked up: a config is recorded, for others to read; write the value$"
    for words, folder in ((["model.name=${oc.env:A_TOKEN}"], None), (["experiment=mine"], tmp_path)):
        overrides, sweeps = prepare(words, folder)
        with pytest.raises(ConfigError, match=f"^model.name: {refused}"):
            planned = plan(overrides, sweeps, folder).runs
            raise ConfigError(planned[0].error or "was looked up")
    assert OmegaConf.create({"a": "${oc.env:A_TOKEN}"}).a == "made up"  # for others, as it was
