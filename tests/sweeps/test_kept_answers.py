"""What shapes said of a recipe is kept: the same is shown without torch, and nothing outlives what it is of."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mxsweep import compose
from mxsweep.config.overrides import prepare
from mxsweep.config.run_config import RunConfig
from mxsweep.files.checkpoints import model_folder
from mxsweep.sweeps import kept_answers
from mxsweep.sweeps.dry_run import preview
from mxsweep.sweeps.kept_answers import FOLDER, KeptAnswers
from mxsweep.sweeps.plan import plan


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the cache folder of a test, empty; nothing is known of tests before it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    _forget(monkeypatch)
    return tmp_path / "cache" / "mxsweep"


def _forget(monkeypatch: pytest.MonkeyPatch) -> KeptAnswers:
    """Begin anew, as another process would."""
    answers = KeptAnswers()
    for module in ("kept_answers", "impossible", "dry_run"):
        monkeypatch.setattr(f"mxsweep.sweeps.{module}.ANSWERS", answers)
    return answers


def shown(*words: str) -> str:
    return preview(plan(prepare(list(words))[0], True).runs).text


GRID = [
    "format=mxfp4,w4a6",
    "ptq.budget=null,6",
    "export=auto",
    "modules={lm_head: mxfp8_e4m3},{'*.o_proj.x': none}",
    "kv_quant.latent=cache,expanded",
    "kv_quant=fp4_e2m1",
]


def test_the_same_text_comes_without_torch(tmp_path: Path) -> None:
    first = shown(*GRID)
    assert " cannot be: " in first and "will not be written" in first
    program = (
        "import sys; from mxsweep.__main__ import main; code = main(['-m', *sys.argv[1:], 'dry_run=true']);"
        "assert code == 2 and 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    words = [sys.executable, "-c", program, *GRID]
    done = subprocess.run(words, cwd=tmp_path, env=dict(os.environ), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{first}\n"


def test_another_recipe_is_asked_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    before = shown("format=mxfp4")
    _forget(monkeypatch)
    assert "fp8_e4m3-b32-e8m0" in shown("format=mxfp8_e4m3") and shown("format=mxfp4") == before
    assert shown("format=mxfp4", "block_size=16").count("4.50") == 1


def test_another_model_of_the_same_name_is_asked_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    embedded, folder = model_folder("embedded"), tmp_path / "model"
    assert embedded is not None
    shutil.copytree(embedded, folder)
    words = ("model=hf", f"model.path={folder}", "format=mxfp4")
    before = shown(*words)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 2 * config["intermediate_size"]}))
    _forget(monkeypatch)
    assert shown(*words) != before


@pytest.mark.parametrize("more", [True, False])
def test_what_a_packed_checkpoint_stores_is_asked_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: bool
) -> None:
    embedded, folder = model_folder("embedded"), tmp_path / "model"
    assert embedded is not None
    shutil.copytree(embedded, folder)

    def shown_with(ends: list[str]) -> str:
        layers = {f"model.layers.{n}.{end}": {"weight": "fp4_e2m1-b32-e8m0"} for n in range(3) for end in ends}
        (folder / "export.json").write_text(json.dumps({"target": "quark", "weights": layers}))
        _forget(monkeypatch)
        return shown("model=hf", f"model.path={folder}", "runtime=vllm", "format=mxfp4", "format.weight=none")

    every = [f"self_attn.{part}_proj" for part in "qkvo"] + [f"mlp.{part}_proj" for part in ("gate", "up", "down")]
    problem = "weights in none by inputs in fp4_e2m1"
    for ends in (every, every[-1:]) if more else (every[-1:], every):
        assert (problem in shown_with(ends)) == (ends != every)


def asked(config: RunConfig, answers: KeptAnswers, question: str = "q") -> bool:
    """Return whether a question has to be answered, rather than that the answer is kept."""
    said: list[None] = []
    answers.ask(config, question, lambda: said.append(None))
    answers.keep()
    return bool(said)


def test_an_answer_is_of_one_question_run_and_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    config = compose(["format=mxfp4"])
    assert asked(config, KeptAnswers()) and not asked(config, KeptAnswers())
    assert asked(config, KeptAnswers(), "another")
    for words in ("model.dtype=float16", "model.attention=eager", "scale_rounding=even", "ptq.budget=5"):
        other = compose(["format=mxfp4", words])
        assert asked(other, KeptAnswers()) and not asked(other, KeptAnswers())
    here = kept_answers._environment()
    monkeypatch.setattr(kept_answers, "_environment", lambda: [*here[:2], ["torch-0.1.dist-info"], here[3]])
    assert asked(config, KeptAnswers())
    changed = here[0] | {"model/sites.py": "0" * 64}
    monkeypatch.setattr(kept_answers, "_environment", lambda: [changed, *here[1:]])
    assert asked(config, KeptAnswers())


@pytest.mark.parametrize(
    "words",
    [
        ["train=from_scratch"],
        ["model=hf", "model.path=someone/on-the-hub"],
        ["model.attention=flash_attention_2"],
        ["model.trust_remote_code=true", "model=hf", "model.path={folder}"],
    ],
)
def test_what_may_say_something_else_next_time_is_not_kept(words: list[str], cache: Path) -> None:
    config = compose([word.format(folder=model_folder("embedded")) for word in words])
    assert asked(config, KeptAnswers()) and asked(config, KeptAnswers())
    assert not (cache / FOLDER).exists()


@pytest.mark.parametrize("damage", [lambda page: page.write_text("{"), lambda page: page.unlink()])
def test_a_page_that_is_damaged_is_written_again(damage: Callable[[Path], object], cache: Path) -> None:
    config = compose(["format=mxfp4"])
    assert asked(config, KeptAnswers())
    (page,) = (cache / FOLDER).glob("*.json")
    damage(page)
    assert asked(config, KeptAnswers()) and not asked(config, KeptAnswers())


def test_what_two_processes_find_at_once_is_kept_of_both() -> None:
    one, other = KeptAnswers(), KeptAnswers()
    configs = [compose(["format=mxfp4", f"block_size={size}"]) for size in (16, 32)]
    for answers, config in zip((one, other), configs, strict=True):
        answers.ask(config, "q", lambda: 1)
    one.keep()
    other.keep()
    assert not any(asked(config, KeptAnswers()) for config in configs)


def test_the_oldest_pages_make_room(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_answers, "_MOST_PAGES", 2)
    for age, dtype in enumerate(("float32", "float16", "bfloat16")):
        assert asked(compose(["format=mxfp4", f"model.dtype={dtype}"]), KeptAnswers())
        for page in (cache / FOLDER).glob("*"):
            if page.stat().st_mtime > 1e9:
                os.utime(page, (age, age))
    assert len(list((cache / FOLDER).iterdir())) == 4


def test_without_a_cache_folder_everything_is_answered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert asked(compose(["format=mxfp4"]), KeptAnswers()) and asked(compose(["format=mxfp4"]), KeptAnswers())
