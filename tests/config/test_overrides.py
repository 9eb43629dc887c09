"""The command line as typed, and what Hydra gets to see."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig

from mxsweep.config.option_files import conf_dir, option_names, read_option
from mxsweep.config.override_grammar import excerpt, verbatim
from mxsweep.config.overrides import prepare
from mxsweep.terminal.errors import ConfigError


def composed(*arguments: str) -> DictConfig:
    (overrides,), _ = prepare(list(arguments))
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return compose("config", overrides=overrides)


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("block_size=16", "block_size='16'"),
        ("block_size='16'", "block_size='16'"),
        ("block_size=16,48", "block_size='16','48'"),
        ("block_size=range(16,65,16)", "block_size='16','32','48','64'"),
        ("custom_cuda=false,true", "custom_cuda='false','true'"),
        ("limit=none,0.25,500", "limit='none','0.25','500'"),
        ("limit=null", "limit='none'"),
        ("block_size=[4,16]", "block_size='4+16'"),
        ("task=[story,wikitext],lambada_openai", "task='story+wikitext','lambada_openai'"),
        ("model.max_length=512", "model.max_length=512"),
        ("rounding=even", "rounding=even"),
        ("hydra.sweep.dir=here", "hydra.sweep.dir=here"),
        ("hydra.sweep.dir=a,b", "hydra.sweep.dir='a,b'"),
        ("hydra.sweep.dir='a b'", "hydra.sweep.dir='a b'"),
        ("hydra.sweep.dir=it's", "hydra.sweep.dir='it\\'s'"),
        ("hydra.sweep.dir=a\\", "hydra.sweep.dir='a\\\\'"),
        ("hydra.sweep.dir=multirun/${stamp}", "hydra.sweep.dir='multirun/${stamp}'"),
        ("hydra.run.dir=1e3", "hydra.run.dir='1e3'"),
        ("hydra.run.dir=null", "hydra.run.dir='null'"),
        ("model.path=/data/模型", "model.path='/data/模型'"),
        ("model.path=a,b", "model.path=a,b"),
        ("task.data={wikitext: a.jsonl}", "task.data={wikitext: a.jsonl}"),
        ("+format=mxfp4", "format='mxfp4'"),
        ("++experiment=ex3", "experiment='ex3'"),
        ("hydra/launcher=gpus", "hydra/launcher='gpus'"),
        ("scale=glob(e*)", "scale='e4m3','e5m3','e8m0'"),
        ('modules={"model.layers.0.*": none}', "modules={model.layers.0.*: none}"),
        ("modules={a.[01].*: none}", """modules='{"a.[01].*": "none"}'"""),
        (
            "modules={a.[!0]:{block_size:[2,8]}},{b: int8}",
            """modules='{"a.[!0]": {"block_size": [2, 8]}}','{"b": "int8"}'""",
        ),
        ("task=[story]", "task='story'"),
        ("format=[mxfp4],nvfp4", "format='mxfp4','nvfp4'"),
        ("block_size=[16]", "block_size='16'"),
        ("kv_quant=[none]", "kv_quant='none'"),
        ("model.revision=3e56378", "model.revision='3e56378'"),
        ("model.revision=0123,1e5,main,1.0", "model.revision=0123,'1e5',main,'1.0'"),
        ("model.revision=null", "model.revision=null"),
        ("model.revision=it's", "model.revision='it\\'s'"),
        ("stamp=20260207_220640", "stamp='20260207_220640'"),
        ("model.path=1e3", "model.path='1e3'"),
        ("model=tiny", "model='tiny'"),
    ],
)
def test_rewritten(typed: str, expected: str) -> None:
    assert prepare([typed]) == ([[expected]], False)


def test_every_option_file_can_be_chosen_without_quotes() -> None:
    for folder in conf_dir().iterdir():
        if folder.is_dir() and folder.name not in ("hydra", "reference"):
            for name in option_names(folder.name):
                (overrides, *_), _ = prepare([f"{folder.name}={name}"])
                with initialize_config_dir(str(conf_dir()), version_base="1.3"):
                    compose("config", overrides=overrides[:1])  # without what an experiment sweeps


@pytest.mark.parametrize(
    ("typed", "key", "value"),
    [
        ("block_size=48", "block_size", 48),
        ("block_size=[4,16]", "block_size", [4, 16]),
        ("scale_bits=3", "scale_bits", 3),
        ("limit=0.3", "limit", 0.3),
        ("limit=-3", "limit", -3),
        ("custom_cuda=maybe", "custom_cuda", "maybe"),
        ("scale=e9m9", "scale", "e9m9"),
        ("format=fp6_e3m2", "format.activation", "fp6_e3m2"),
        ("kv_quant=int3", "kv_quant.key", "int3"),
        ("task=arc_easy", "task.names", ["arc_easy"]),
        ("task=[arc_easy]", "task.names", ["arc_easy"]),
        ("format=[fp6_e3m2]", "format.activation", "fp6_e3m2"),
        ("model=gpt2", "model.path", "gpt2"),
        ("task=[lambada_openai,wikitext]", "task.fields", {"lambada_openai": "text", "wikitext": "page"}),
    ],
)
def test_values_without_an_option_file(typed: str, key: str, value: object) -> None:
    from omegaconf import OmegaConf

    assert OmegaConf.select(composed(typed), key) == value


def test_experiment_sweeps_by_itself_and_yields_to_what_was_typed() -> None:
    (overrides,), sweeps = prepare(["experiment=ex1", "block_size=16"])
    assert sweeps
    assert overrides == ["experiment='ex1'", "block_size='16'", "scale_bits='6','8'", "custom_cuda='false','true'"]
    assert prepare(["experiment=ex3"]) == ([["experiment='ex3'"]], False)


def test_experiment_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(
        "# @package _global_\nsweep: {block_size: [16, [2, 16]], limit: [null, 0.1]}\n"
    )
    (overrides,), sweeps = prepare(["experiment=mine"], tmp_path)
    assert sweeps
    assert overrides[1:] == ["block_size='16','2+16'", "limit='none','0.1'"]


def test_an_experiment_sweeps_what_hydra_has_no_words_for(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(
        "sweep: {model.path: ['a,b', \"it's\"], model.revision: ['3e56378', main], task: [[story]],\n"
        "  model: [tiny, a/b], modules: [null, {'*.[01].*': {weight: int8}}, {lm_head: none}]}\n"
    )
    ((_, *words),), _ = prepare(["experiment=mine"], tmp_path)
    assert words[:3] == ["model.path='a,b','it\\'s'", "model.revision='3e56378','main'", "task='story'"]
    assert words[3].startswith("model='tiny','hf-")
    assert words[4] == """modules=null,'{"*.[01].*": {"weight": "int8"}}','{"lm_head": "none"}'"""


def test_experiment_of_several_grids(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(
        "sweep:\n- {block_size: [16, 32], rotation.matmuls: [[q, k]]}\n- {scale_bits: [6]}\n- {}\n"
    )
    grids, sweeps = prepare(["experiment=mine", "seed=1"], tmp_path)
    first = ["experiment='mine'", "seed=1"]
    assert sweeps
    assert grids == [
        [*first, "block_size='16','32'", "rotation.matmuls=[q,k]"],
        [*first, "scale_bits='6'"],
        first,
    ]
    typed = ["experiment='mine'", "block_size='8'"]
    assert prepare(["experiment=mine", "block_size=8"], tmp_path) == (
        [[*typed, "rotation.matmuls=[q,k]"], [*typed, "scale_bits='6'"], typed],
        True,
    )


@pytest.mark.parametrize(
    ("content", "typed", "emptied"),
    [
        ("train: {tokens: 900}", [], ["train.steps=null"]),
        ("train: {steps: 9}", [], ["train.tokens=null"]),
        ("train: {tokens: 900, steps: null}", [], []),
        ("train: {tokens: 900}", ["train.steps=7"], ["train.tokens=null"]),
        ("train: {tokens: 900}", ["train.tokens=70"], ["train.steps=null"]),
        ("train: {steps: 9}\nsweep: {train.tokens: [900]}", [], ["train.tokens=900", "train.steps=null"]),
    ],
)
def test_the_length_of_an_experiments_training_takes_the_place_of_the_default(
    tmp_path: Path, content: str, typed: list[str], emptied: list[str]
) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(f"# @package _global_\n{content}\n")
    (overrides,), _ = prepare(["experiment=mine", *typed], tmp_path)
    assert overrides == ["experiment='mine'", *typed, *emptied]


@pytest.mark.parametrize(
    "content",
    [
        *("sweep: [1]", "sweep: {block_size: 3}", "sweep: {block_size: []}", "- 1"),
        *("sweep: [{block_size: [16]}, {scale_bits: 6}]", "sweep: [[block_size]]", "sweep: word"),
    ],
)
def test_experiment_that_makes_no_sense(tmp_path: Path, content: str) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "bad.yaml").write_text(content)
    with pytest.raises(ConfigError, match=r"bad") as caught:
        prepare(["experiment=bad"], tmp_path)
    assert str(caught.value).count("\n") == 0


def test_several_experiments_are_refused() -> None:
    with pytest.raises(
        ConfigError,
        match="choose one of attribution, ex1, ex2, ex3, kv_rescue, leaderboard, mx_finetune, mx_training, "
        "nvfp4_training, pareto, tutorial7",
    ):
        prepare(["experiment=ex1,ex2"])


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("block_size=[", "block_size=\\[: cannot be read as KNOB=VALUE; a value with other than letters"),
        ("seed=ü", "seed=ü: cannot be read as KNOB=VALUE"),
        ("seed=\udcff", r"seed=\\udcff: is not UTF-8 text"),
        ("seed=\0", r"seed=\\x00: holds a NUL"),
        ("task=a/FILE.json", "task: 'a/FILE.json' is no name of a task; allowed: one, FILE.yaml of your own"),
        ("format=a/b", "format: 'a/b' is not known; allowed: mint4, mxfp4, "),
        ("block_size=${seed}", "block_size: .* is not known; allowed: auto, 8, 16"),
        ("block_size=range(1,2,0)", "has no end; allowed: range"),
        ("block_size=range(0,1e9)", "is 1,000,000,000 values; allowed: range.* of at most 10,000"),
        ("block_size=range(8,4)", "comes to no value"),
        ("block_size=interval(0,1)", "names no values; allowed: A,B,C"),
        ("scale=glob(zz*)", "comes to no value"),
        (
            "model=tny",
            "model: 'tny' is not known; near it: tiny; allowed: hf, llama3_2_1b, tiny, a folder, or a name on",
        ),
        ("model=null", "model: 'null' is not known; allowed: hf, llama3_2_1b, tiny"),
        ("modules={a[: none}", "cannot be read as KNOB=VALUE"),
        ("modules={a[0]: none,none", "cannot be read as KNOB=VALUE"),
        ("hydra/launcher=foo", "hydra/launcher: 'foo' is not known; allowed: basic, gpus, slurm"),
    ],
)
def test_refused(typed: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        prepare([typed])


def test_no_experiment_is_the_default() -> None:
    assert prepare(["experiment=null", "seed=1"]) == ([["seed=1"]], False)


def test_an_option_is_not_a_file_elsewhere() -> None:
    assert read_option("format", "../model/hf") is None
    assert read_option("format", "mxfp4") == {"weight": "fp4_e2m1", "activation": "fp4_e2m1"}


@pytest.mark.parametrize("content", ["{", "\x00", "a: [", "- 1"])
def test_an_option_file_that_is_no_yaml(tmp_path: Path, content: str) -> None:
    (tmp_path / "format").mkdir()
    (tmp_path / "format" / "bad.yaml").write_text(content)
    with pytest.raises(ConfigError, match=r"bad\.yaml: "):
        read_option("format", "bad", [tmp_path])


@settings(derandomize=True, database=None, deadline=None, max_examples=300)
@given(
    st.text(st.sampled_from("ab$\\{}'\"[](),:=~ .\n\tü💥%#?&"), min_size=1, max_size=8).filter(
        lambda text: text != "???"
    )
)
def test_verbatim_is_what_hydra_and_omegaconf_read(text: str) -> None:
    assume(text != "???")  # by which OmegaConf means that a value is missing, however it is quoted
    from omegaconf import OmegaConf

    from mxsweep.config.override_grammar import read_override

    value = read_override(f"x={verbatim(text)}").value()
    assert OmegaConf.create({"x": getattr(value, "text", value)}).x == text


def test_an_excerpt_is_short_and_can_be_printed() -> None:
    assert excerpt("a=b") == "a=b"
    assert len(excerpt("a" * 5000)) < 220
    assert excerpt("a\n\x1b\udcff") == "a\\n\\x1b\\udcff"
