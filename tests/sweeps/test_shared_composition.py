"""Runs composed from what they have in common are those that Hydra composes one by one."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra._internal.config_repository import ConfigRepository
from hydra.plugins.config_source import ConfigResult
from omegaconf import DictConfig, OmegaConf

from mxsweep.config.overrides import prepare
from mxsweep.sweeps import composition
from mxsweep.sweeps import plan as planning
from mxsweep.sweeps.composition import Composer
from mxsweep.sweeps.plan import Plan, plan
from mxsweep.terminal.errors import ConfigError

STAMP = "stamp=20260101_000000"
SWEEPS = [
    ["block_size=8,48,32", "scale_bits=4,8"],
    ["format=mxfp4,w4a6,nvfp4,fp6_e3m2,none", "kv_quant=none,fp4_e2m1,fp6_e3m2"],  # files, and values of one's own
    ["rounding=nearest,even,nonsense", "seed=1,2.5"],  # what cannot be says so
    ["modules={'*.down_proj': none},{'*.up_proj': mxfp8_e4m3}", "format=mxfp4"],
    ["limit=0.1,100,7", "batch_size='${limit}',8", "noise=0,1"],  # a reference
    ["task=[story],story", "model.dtype=float32,bfloat16", "model.dtype=float16"],
    ["calibration=stories,task", "ptq=gptq,clip", "ptq.damping=0.01,1e-2"],
    ["rotation=hadamard,none", "rotation.matmuls=[q,k],[down]", "tensor_scale=true,auto"],
    ["runtime=none,vllm,llama_cpp", "format=mxfp4,mxfp8_e4m3", "format.scale_rule=mxsweep,torchao"],
    ["ptq.budget=null,5", "ptq.formats=[mxfp4,mxfp8_e4m3]", "hydra.sweep.subdir='${hydra.job.num}_${block_size}'"],
    ["experiment=ex1", "kv_quant=none,fp4_e2m1"],
    ["recipe=mxfp4,nvfp4,bf16", "train.steps=20,30", "train.betas=[0.9,0.95],[0.8,0.9]"],
    ["matmuls.keep_high=[lm_head],[embeddings]", "train=from_scratch", "init=1m,tiny", "matmuls.signs=fixed,random"],
    ["recipe=mxfp4,nvfp4", "format=mxfp4,mxint4", "seed=1,2"],
    ["format=mxfp4", "matmuls.fprop.weight=auto,{block_size: [16, 16]},none", "train=from_scratch", "seed=1,2"],
    ["matmuls.dgrad.grad={element: fp4_e2m1},{rounding: stochastic}", "recipe=mxfp4", "train=from_scratch"],
    ["+seed=1,2"],
    ["task.data=null,{story: a.txt}"],
]


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bool]]:
    """Yield a list that is told of every run whether it was composed from what runs have in common."""
    told: list[bool] = []
    like_one_before = Composer._like_one_before

    def like(self: Composer, overrides: Any) -> DictConfig | None:
        cfg = like_one_before(self, overrides)
        told.append(cfg is not None)
        return cfg

    monkeypatch.setattr(Composer, "_like_one_before", like)
    yield told


def planned(words: list[str], config_dir: Path | None = None) -> Plan | str:
    overrides, _ = prepare([*words, STAMP], config_dir)
    try:
        return plan(overrides, True, config_dir)
    except ConfigError as error:
        return str(error)


@pytest.mark.parametrize("words", SWEEPS, ids=" ".join)
def test_a_sweep_is_planned_as_hydra_composes_it(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    together = planned(words)
    monkeypatch.setattr(Composer, "_like_one_before", lambda self, overrides: None)
    assert planned(words) == together
    monkeypatch.setattr(composition, "read_options_once", lambda: None)
    assert planned(words) == together


def test_each_option_is_read_once_for_all_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    read: Counter[str] = Counter()
    load = ConfigRepository.load_config

    def counted(self: ConfigRepository, config_path: str) -> ConfigResult | None:
        read[config_path] += 1
        return load(self, config_path)

    monkeypatch.setattr(ConfigRepository, "load_config", counted)
    told = planned(["recipe=mxfp4,nvfp4", "train=from_scratch", "seed=1,2"])
    assert not isinstance(told, str) and {"recipe/mxfp4", "recipe/nvfp4"} <= read.keys()
    assert set(read.values()) == {1}


@pytest.mark.parametrize(
    ("words", "by_hydra"),
    [
        (["block_size=8,48,32", "format=mxfp4,fp6_e3m2", "rounding=nearest,even"], 2),  # the first, and its baseline
        (["experiment=ex1", "kv_quant=none,fp4_e2m1"], 2),
        (["seed=1,2,3"], 2),
        (["recipe=mxfp4,nvfp4", "seed=1,2,3"], 2),  # recipes choose formats
    ],
    ids=["values", "experiment", "leaf", "recipes"],
)
def test_hydra_composes_one_run_of_a_sweep_and_its_baseline(
    words: list[str], by_hydra: int, shared: list[bool]
) -> None:
    assert isinstance(planned(words), Plan)
    assert shared.count(False) == by_hydra
    assert shared.count(True) >= 2


@pytest.mark.parametrize("word", ["seed=1,2", "block_size=16,32", "format=mxfp4,mxint8"])
def test_what_hydra_notes_of_a_run_is_noted(word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def noted() -> list[Any]:
        found: list[Any] = []
        real = planning._planned

        def note(cfg: DictConfig, *words: Any) -> Any:
            found.append(OmegaConf.to_container(cfg, resolve=False))
            return real(cfg, *words)

        with monkeypatch.context() as patch:
            patch.setattr(planning, "_planned", note)
            planned([word, "rounding=nearest,even"])
        return found

    together = noted()
    monkeypatch.setattr(Composer, "_like_one_before", lambda self, overrides: None)
    one_by_one = noted()
    assert len(together) == len(one_by_one) == 5
    for one, other in zip(together, one_by_one, strict=True):
        assert one == other
        assert list(_keys(one)) == list(_keys(other))  # in the same order


def _keys(data: Any) -> Iterator[str]:
    if isinstance(data, dict):
        yield from data
        yield from itertools.chain.from_iterable(_keys(value) for value in data.values())


@pytest.mark.parametrize(
    "option",
    [
        "defaults:\n  - override /format: ${block_size_of}\n",  # what cannot be composed at all
        "# @package _global_\ndefaults:\n  - override /format: mxfp4\nseed: 7\n",
        "# @package _global_\nhydra:\n  sweep:\n    subdir: mine_${run_id:}\nseed: 7\n",
        "# @package _global_\nseed: 7\nbatch_size: ${seed}\nnoise: ???\n",
        "# @package task\nnum_fewshot: 2\n",
    ],
)
def test_options_that_choose_others_or_lie_elsewhere(
    option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ptq").mkdir()
    (tmp_path / "ptq" / "own.yaml").write_text(option)
    words = ["ptq=rtn,own,clip", "block_size=8,16"]
    together = planned(words, tmp_path)
    monkeypatch.setattr(Composer, "_like_one_before", lambda self, overrides: None)
    assert planned(words, tmp_path) == together
