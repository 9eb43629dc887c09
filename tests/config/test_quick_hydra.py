"""Hydra composes in tests, where it keeps what it has read and merged, what it composes by itself."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.quick_hydra import REPLACED, make_plain, quicken
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from omegaconf import Container, OmegaConf

from mxsweep.config.option_files import conf_dir

COMPOSED = [
    [],
    ["block_size='16'", "scale_bits='6'"],
    ["format=mxfp4"],
    ["format=nvfp4", "format=mxfp4"],
    ["format=mint4", "kv_quant='${format}'"],  # a choice that refers to another one
    ["format=none", "kv_quant='${format}'"],
    ["format=mxfp4", "format.rounding=even"],  # the same options, and another value
    ["format=nvfp4", "kv_quant=fp4_e2m1", "ptq=gptq", "ptq.damping=0.1"],
    ["+format.of_ones_own=1"],
    ["++seed=7", "++of_ones_own={a: [1, {b: null}]}"],
    ["+format@another=mxint8", "+format@another.below=nvfp4"],
    ["~limit"],
    ["~ptq", "~seed"],
    ["~format.inf"],
    ["~ptq=rtn"],
    ["experiment=ex1"],
    ["experiment=ex1", "format=mxfp6_e3m2"],
    ["experiment=leaderboard"],
    ["experiment=mx_training", "train.steps=3"],
    ["train=from_scratch", "init=1m", "recipe=nvfp4"],
    ["seed=${block_size}", "noise='${nothing.of.this.name}'", "batch_size=${oc.env:NOWHERE}"],
    ["seed=???", "task.data=null", "modules={down_proj: none}"],
    ["hydra/launcher=gpus", "hydra.launcher.n=2"],
    ["hydra.sweep.subdir='${hydra.job.num}_${block_size}'", "hydra.job.num=3"],
    ["hydra.job.num=4"],
]
REFUSED = [
    ["format=of_no_file"],
    ["experiment=of_no_file"],
    ["nothing=1"],
    ["format.nothing=1"],
    ["+seed=1"],
    ["+format=mxfp4"],
    ["~nothing"],
    ["~ptq=gptq"],
    ["format@nowhere=mxfp4"],
    ["format@kv_quant=mxint8"],
    ["format='${nothing}'"],
    ["format='${ptq'"],
    ["format='${ptq}'"],
    ["block_size=16"],
    ["modules={'*.down_proj': none}"],
    ["hydra/launcher=of_no_file"],
    ["seed=[1"],
    ["block_size=16,32"],
]
WORDS = [*COMPOSED, *REFUSED]


def nodes(node: Any) -> Iterator[tuple[Any, ...]]:
    """Yield the name, types, flags and value of a node, and of all below it, in order."""
    about = {name: value for name, value in vars(node._metadata).items() if name != "resolver_cache"}
    below = isinstance(node, Container) and not (node._is_none() or node._is_missing() or node._is_interpolation())
    yield type(node), node._get_full_key(None), about, None if below else (type(node._value()), node._value())
    if below:
        for key in node if OmegaConf.is_dict(node) else range(len(node)):
            yield from nodes(node._get_node(key))


def answer(words: list[str]) -> Any:
    """Return all that there is to a config, or the error with which Hydra refuses it."""
    try:
        cfg = compose("config", overrides=words, return_hydra_config=True)
    except Exception as error:
        cause = error.__cause__
        return type(error), str(error), type(cause), str(cause)
    found = OmegaConf.to_yaml(cfg), list(nodes(cfg))
    OmegaConf.update(cfg, "format.element", "of whoever changes what was composed", force_add=True)
    return found


def answers(lists: list[list[str]]) -> list[Any]:
    with initialize_config_dir(str(conf_dir()), version_base="1.3", job_name="mxsweep"):
        return [answer(words) for words in lists]


def test_hydra_composes_quickly_what_it_composes_by_itself() -> None:
    assert all(plain.__module__.startswith("hydra.") for _, _, plain in REPLACED)
    with pytest.MonkeyPatch.context() as patch:
        make_plain(patch)
        plain = answers(WORDS)
    with pytest.MonkeyPatch.context() as patch:
        quicken(patch)  # with nothing kept yet
        quick, again = answers(WORDS), answers(WORDS)
    assert [len(found) for found in plain] == [2] * len(COMPOSED) + [4] * len(REFUSED)
    for words, *found in zip(WORDS, plain, quick, again, strict=True):
        assert found[1] == found[0], words
        assert found[2] == found[0], words


@pytest.mark.parametrize("group", ["ptq", "hydra/launcher"])
def test_a_folder_of_configs_is_read_each_time(group: str, tmp_path: Path) -> None:
    (tmp_path / group).mkdir(parents=True)

    def write(text: str) -> None:
        (tmp_path / group / "own.yaml").write_text(text)

    texts = ["a: 1\n", "a: 2\n", "defaults:\n  - override /format: ${ptq}\n", "defaults: [/format: ${a}]\n"]
    check_in_turn(write, texts, [f"hydra.searchpath=[file://{tmp_path}]", f"{group}=own"])


def test_what_was_typed_is_told_by_its_content(monkeypatch: pytest.MonkeyPatch) -> None:
    store = ConfigStore.instance()
    monkeypatch.setattr(store, "repo", copy.deepcopy(store.repo))

    def put(content: object) -> None:
        store.store(group="ptq", name="own", node={"ptq": content}, package="_global_")

    check_in_turn(put, [{"a": 1}, {"a": 2}, {"a": "1"}, {"a": True}], ["ptq=own"])


def check_in_turn(change: Callable[[Any], None], contents: list[Any], words: list[str]) -> None:
    """Compose the same words after each change, in both ways."""
    found: list[list[Any]] = []
    for how in (make_plain, quicken):
        with pytest.MonkeyPatch.context() as patch:
            how(patch)
            found.append([])
            for content in contents:
                change(content)
                found[-1] += answers([words])
    assert found[1] == found[0]
    assert len({repr(one) for one in found[0]}) == len(contents)
