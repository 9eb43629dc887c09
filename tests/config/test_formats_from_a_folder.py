"""Formats of one's own, from a folder given by --config-dir, and flags inside formats."""

from __future__ import annotations

from pathlib import Path

import pytest

from mxsweep import compose
from mxsweep.config.option_files import conf_dir
from mxsweep.config.overrides import prepare
from mxsweep.config.run_config import RunConfig
from mxsweep.numerics import MXFormat
from mxsweep.sweeps.plan import plan
from mxsweep.terminal.errors import ConfigError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "format").mkdir()
    (tmp_path / "format" / "mine.yaml").write_text("weight: int3\nactivation: int8\nblock_size: 64\n")
    (tmp_path / "format" / "theirs.yaml").write_text("weight: fp4_e2m1\nactivation: fp4_e2m1\n")  # as mxfp4
    return tmp_path


def composed(folder: Path, *words: str) -> RunConfig:
    overrides, _ = prepare(list(words), folder)
    (run,) = plan(overrides, False, folder).runs
    assert run.config is not None, run.error
    return run.config


def test_its_name_is_in_the_record_and_the_runs_name(folder: Path) -> None:
    config = composed(folder, "format=mine")
    assert config.recipe.linear.weight == MXFormat("int3", 64)
    assert config.format.name == config.as_dict()["format"]["name"] == "mine"
    assert config.run_id("T").startswith("T_mine_bs64_sb8_ccfalse_")
    assert composed(folder, "format=mine", "format.weight=int4").format.name == "w:int4,a:int8"


def test_of_two_names_for_one_format_the_chosen_one_is_shown_and_the_run_is_the_same(folder: Path) -> None:
    theirs, ours = composed(folder, "format=theirs"), composed(folder, "format=mxfp4")
    assert (theirs.format.name, ours.format.name) == ("theirs", "mxfp4")
    assert theirs.config_hash == ours.config_hash


def test_it_is_known_in_modules_and_to_a_budget(folder: Path) -> None:
    config = composed(folder, "modules={lm_head: mine}", "ptq=gptq", "ptq.budget=5", "ptq.formats=[mine,mxfp8_e4m3]")
    assert config.recipe.modules[0][1].weight == MXFormat("int3", 64)
    assert config.budget_formats["mine"].activation == MXFormat("int8", 64)
    assert config.as_dict()["modules"]["lm_head"] == {
        "weight": "int3", "activation": "int8", "block_size": 64, "scale": "e8m0", "tensor_scale": False
    }  # fmt: skip
    with pytest.raises(ConfigError, match="'mine' is"):
        compose(["modules={lm_head: mine}"])


@pytest.mark.parametrize("value", ["off", "no", "2", "nope", "null"])
def test_a_flag_inside_modules_is_read_as_every_flag(value: str) -> None:
    words = "weight: fp4_e2m1, activation: none, scale: e4m3"
    with pytest.raises(ConfigError, match=r"modules\[lm_head\].tensor_scale: .* is not a yes or no"):
        compose([f"modules={{lm_head: {{{words}, tensor_scale: {value}}}}}"])
    for asked, meant in (("true", True), ("false", False)):
        recipe = compose([f"modules={{lm_head: {{{words}, tensor_scale: {asked}}}}}"]).recipe
        assert recipe.modules[0][1].weight == MXFormat("fp4_e2m1", scale="e4m3", tensor_scale=meant)


@pytest.mark.parametrize(
    ("words", "beginning"),
    [
        ([], "T_w4a6_bs32_sb8_ccfalse_"),
        (["format=none"], "T_none_bs32_sb8_ccfalse_"),
        (["format=none", "kv_quant=fp4_e2m1"], "T_none_kvfp4e2m1_bs32_sb8_ccfalse_"),
        (["kv_quant=fp4_e2m1", "block_size=16"], "T_w4a6_kvfp4e2m1_bs16_sb8_ccfalse_"),
        (["kv_quant=int8", "kv_quant.key=none"], "T_w4a6_kvknone-vint8_bs32_sb8_ccfalse_"),
        (["kv_quant=rescue4", "rotation=hadamard"], "T_w4a6_kvrescue4_bs32_sb8_ccfalse_"),
        (["kv_quant=rescue4", "kv_quant.recent=8"], "T_w4a6_kvfp4e2m1_bs32_sb8_ccfalse_"),
        (["format.weight=int8"], "T_wint8-afp6e2m3_bs32_sb8_ccfalse_"),
        (["format=none", "modules={lm_head: int8}"], "T_none+modules_bs32_sb8_ccfalse_"),
        (["format=none", "modules={lm_head: none}"], "T_none_bs32_sb8_ccfalse_"),
        (["block_size=[4,16]", "format.activation=none"], "T_wfp4e2m1-anone_bs4x16_sb8_ccfalse_"),
        (["format=mxfp4", "runtime=vllm"], "T_mxfp4_vllm_bs32_sb8_ccfalse_"),
        (["seed=7"], "T_w4a6_bs32_sb8_ccfalse_s7_"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_runs_name_tells_its_formats_runtime_and_seed(words: list[str], beginning: str) -> None:
    config = compose(words)
    assert config.run_id("T") == f"{beginning}{config.config_hash[:8]}"


@pytest.mark.parametrize("knob", ["format=NAME", "modules={lm_head: NAME}", "ptq.formats=[NAME]"])
def test_a_file_that_lacks_a_field_or_has_another_is_refused_wherever_it_is_named(folder: Path, knob: str) -> None:
    (folder / "format" / "half.yaml").write_text("weight: int3\n")
    (folder / "format" / "typo.yaml").write_text("weight: int3\nactivation: int8\nblok_size: 8\n")
    for name, field in (("half", "activation"), ("typo", "blok_size")):
        overrides, _ = prepare([knob.replace("NAME", name)], folder)
        (run,) = plan(overrides, False, folder).runs
        assert run.error is not None and f".{field}: " in run.error


def test_a_file_that_nobody_chose_may_be_broken(folder: Path) -> None:
    (folder / "format" / "broken.yaml").write_text("{")
    assert composed(folder, "format=int5").format.name == "int5"


@pytest.mark.parametrize("knob", ["format=mxfp4", "modules={lm_head: mxfp4}", "ptq.formats=[mxfp4]"])
def test_a_file_with_the_name_of_mxsweeps_own_is_refused_unless_it_says_the_same(folder: Path, knob: str) -> None:
    theirs = folder / "format" / "mxfp4.yaml"
    theirs.write_text((conf_dir() / "format" / "mxfp4.yaml").read_text())
    same = composed(folder, knob).config_hash
    theirs.write_text("weight: fp4_e2m1\nactivation: fp4_e2m1\nblock_size: 8\n")
    with pytest.raises(ConfigError, match=r"format: 'mxfp4' is mxsweep's own, and .* says something else"):
        overrides, _ = prepare([knob], folder)
        (run,) = plan(overrides, False, folder).runs
        raise ConfigError(run.error or "")
    assert same == compose([knob]).config_hash
