"""A checkpoint as the target's own library loads it: by layer, as mxsweep loads it, and what is not compared."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Phi3Config, PreTrainedModel

from mxsweep import compose, run
from mxsweep.export.folder import read_weights
from mxsweep.model.exported import load_state, state_of
from mxsweep.runs import foreign_loader, foreign_reader
from mxsweep.runs.export_run import export_run
from mxsweep.terminal.errors import ConfigError

pytestmark = pytest.mark.usefixtures("own_cache")

ASSETS = Path(foreign_loader.__file__).parents[1] / "assets" / "tiny"
WORDS = ["limit=4", "model.device=cpu", "model.attention=sdpa"]


class Library:
    """Stand for the package: load what mxsweep reads, in this process, and keep how it was asked to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: dict[str, Any] = {}
        self.error = 0.0  # added to every weight
        self.missing: set[str] = set()
        stand_in = SimpleNamespace(from_pretrained=self.load)
        monkeypatch.setattr(foreign_reader, "AutoModelForCausalLM", stand_in)
        monkeypatch.setattr(foreign_reader, "import_module", lambda name: None)
        monkeypatch.setattr(foreign_loader, "installed", lambda package: "1.0")
        monkeypatch.setattr(foreign_loader, "ask", foreign_reader.read)

    def load(
        self, folder: Path, *, dtype: torch.dtype, trust_remote_code: bool, output_loading_info: bool, **rest: Any
    ) -> tuple[PreTrainedModel, dict[str, set[str]]]:
        self.asked = {"trust_remote_code": trust_remote_code, **rest}
        weights, plain = read_weights(folder)
        state = state_of(weights, plain)
        for name in weights:
            state[f"{name}.weight"] += self.error
        found = {"missing_keys": self.missing, "unexpected_keys": set(), "mismatched_keys": set()}
        return load_state(folder, state, {"dtype": dtype, **rest}, {})[0], found


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    return Library(monkeypatch)


def said(tmp_path: Path, *words: str, target: str = "compressed-tensors") -> str:
    config = compose([*WORDS, *words])
    record = run(config, overrides=[*WORDS, *words])
    assert record["status"] == "done", record["error"]
    export = export_run(config, record, tmp_path, target, tmp_path / "out")
    return str(export.manifest["verified"]["loader"])


def phi3(folder: Path) -> Path:
    shutil.copytree(ASSETS, folder, ignore=shutil.ignore_patterns("*.safetensors", "config.json", "generation*"))
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Phi3Config(**sizes, vocab_size=568, pad_token_id=0, max_position_embeddings=512)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def test_fused_layers_are_compared_as_they_are_stored(tmp_path: Path, library: Library) -> None:
    path = phi3(tmp_path / "phi3")
    found = said(tmp_path, "model=hf", f"model.path={path}", "format=mxfp4", "format.activation=none")
    assert "reads the same weights, and answers with the same logits" in found
    assert library.asked == {"trust_remote_code": False, "attn_implementation": "sdpa"}


def test_other_weights_are_found_out(tmp_path: Path, library: Library) -> None:
    library.error = 1.0
    with pytest.raises(ConfigError, match=r"^export: compressed-tensors 1\.0 reads model\.layers\.0\..* otherwise"):
        said(tmp_path, "format=mxfp4")


def test_other_logits_are_found_out(
    tmp_path: Path, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:  # as by a library that quantizes inputs otherwise
    monkeypatch.setattr(foreign_loader, "as_served", lambda recipe, target: recipe)
    with pytest.raises(ConfigError, match=r"^export: compressed-tensors 1\.0 answers with other logits than mxsweep"):
        said(tmp_path, "format=mxfp4")


def test_a_tensor_that_the_library_misses_is_found_out(tmp_path: Path, library: Library) -> None:
    library.missing = {"model.layers.0.mlp.up_proj.weight_global_scale"}
    with pytest.raises(RuntimeError, match=r"missing keys: model\.layers\.0\.mlp\.up_proj\.weight_global_scale"):
        said(tmp_path, "format=mxfp4")


def test_logits_are_compared_where_the_stored_scale_of_inputs_is_the_one_by_its_rules(
    tmp_path: Path, library: Library
) -> None:
    found = said(tmp_path, "format=nvfp4", "format.share_tensor_scale=fused", "format.activation_scale=10")
    assert "reads the same weights; its logits are not compared: the scale of model.layers.0." in found
    assert "is stored as 268.79" in found and "by its rules is 270.0" in found


def test_without_the_library_it_says_which_package_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foreign_loader, "installed", lambda package: None)
    assert said(tmp_path, "format=mxfp4", target="quark") == "not checked: amd-quark is not installed"


def test_a_library_that_cannot_load_what_was_written_is_named(tmp_path: Path) -> None:
    ids = torch.zeros(1, 2, dtype=torch.int64)
    with pytest.raises(ConfigError, match=r"^export: compressed-tensors cannot load what was written: .*no-verify"):
        foreign_loader.ask(tmp_path / "nothing", "compressed-tensors", ids, {})


def test_a_library_that_does_not_end_is_waited_for_no_longer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foreign_loader, "PATIENCE_S", 0.01)
    with pytest.raises(ConfigError, match=r"^export: compressed-tensors did not load .* within 0\.01 s; --no-verify"):
        foreign_loader.ask(tmp_path / "nothing", "compressed-tensors", torch.zeros(1, 2, dtype=torch.int64), {})


NVFP4 = ("format=nvfp4", "format.share_tensor_scale=fused", "format.activation_scale=static")
SAME_LOGITS = "reads the same weights, and answers with the same logits as mxsweep by its rules (54,528, in bfloat16)"
LOADED = {
    "compressed-tensors": (("format=mxfp4",), SAME_LOGITS),
    "quark": (("format=mxfp4", "format.activation=fp6_e2m3"), SAME_LOGITS),
    "auto-round": (("format=nvfp4", "format.tensor_scale=false", "scale=e5m3"), SAME_LOGITS),
    "modelopt": (NVFP4, "reads the same weights; logits are not compared: neither it nor transformers makes a model"),
}


@pytest.mark.parametrize("target", LOADED)
def test_the_library_itself_loads_the_same_model(tmp_path: Path, target: str) -> None:
    package = foreign_reader.LIBRARIES[target].package
    release = foreign_loader.installed(package)
    if release is None:
        pytest.skip(f"{package} is not installed (pip install -c constraints.txt -e '.[peers]')")
    words, expected = LOADED[target]
    assert f"{package} {release} {expected}" in said(tmp_path, *words, "model.dtype=bfloat16", target=target)
