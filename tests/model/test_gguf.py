"""A GGUF file is loaded as plain weights, exactly what its blocks stand for, and says what they were rounded to."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch
from helpers.gguf_files import TOKENS, gguf, tiny_llama, write_gguf
from torch import nn

import mxsweep.files.gguf_header as gguf_header
from mxsweep import compose, run
from mxsweep.config.overrides import prepare
from mxsweep.files.checkpoints import loading_dtype
from mxsweep.model.load import load_model
from mxsweep.sweeps.dry_run import preview
from mxsweep.sweeps.impossible import why_not_here
from mxsweep.sweeps.plan import plan
from mxsweep.terminal.errors import ConfigError

IDS = torch.tensor([[1, *range(40, 60)]])


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny-q4_0.gguf"
    write_gguf(path, tiny_llama())
    return path


def test_weights_are_those_of_ggufs_own_dequantize_and_logits_follow(file: Path, tmp_path: Path) -> None:
    reference = tiny_llama()
    held = write_gguf(tmp_path / "again.gguf", reference)
    loaded = load_model(str(file), device="cpu")
    weights = loaded.model.state_dict()
    assert weights.keys() == held.keys()
    assert all(torch.equal(weights[name], held[name]) for name in held)
    reference.load_state_dict(held)
    with torch.no_grad():
        assert torch.equal(loaded.model(IDS).logits, reference(IDS).logits)
    assert loaded.model.dtype == torch.float32 == getattr(torch, loading_dtype(str(file)))
    assert type(loaded.model.model.layers[0].mlp.up_proj) is nn.Linear
    assert getattr(loaded.model.config, "quantization_config", None) is None
    assert not getattr(loaded.model, "is_quantized", False)


def test_another_dtype_is_rounded_to_once(file: Path) -> None:
    exact = {name: tensor.clone() for name, tensor in load_model(str(file), device="cpu").model.state_dict().items()}
    model = load_model(str(file), device="cpu", dtype="bfloat16").model
    assert all(torch.equal(tensor, exact[name].bfloat16()) for name, tensor in model.state_dict().items())
    assert model.dtype == model.config.dtype == torch.bfloat16
    assert model.model.rotary_emb.inv_freq.dtype == torch.float32  # as transformers keeps it


def test_its_tokenizer_is_the_files_own(file: Path, tmp_path: Path) -> None:
    """Not that of other files in the folder, which transformers would take."""
    folder = tmp_path / "m"
    folder.mkdir()
    shutil.copy(file, folder / "x.gguf")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path(gguf_header.__file__).parents[1] / "assets" / "tiny" / name, folder)
    for path in (file, folder / "x.gguf"):
        tokenizer = load_model(str(path), device="cpu").tokenizer
        assert tokenizer("path").input_ids == [1, TOKENS.index("p"), TOKENS.index("a"), TOKENS.index("th")]
        assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("<s>", "</s>", "<pad>")


def test_scaled_frequencies_of_llama_3_are_put_in(tmp_path: Path) -> None:
    """llama.cpp keeps them as a tensor, which transformers leaves out."""
    scaling = {
        "rope_type": "llama3",
        "rope_theta": 10000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    scaled, plain = tiny_llama(rope_parameters=scaling), tiny_llama()
    factors = (plain.model.rotary_emb.inv_freq / scaled.model.rotary_emb.inv_freq).numpy()
    held = write_gguf(tmp_path / "m.gguf", scaled, tensors={"rope_freqs.weight": factors})
    scaled.load_state_dict(held), plain.load_state_dict(held)
    loaded = load_model(str(tmp_path / "m.gguf"), device="cpu")
    with torch.no_grad():
        logits = [model(IDS).logits for model in (loaded.model, scaled, plain)]
    torch.testing.assert_close(logits[0], logits[1], rtol=1e-5, atol=1e-5)
    assert (logits[1] - logits[2]).abs().max() > 1e-2
    assert not [text for text in loaded.warnings if "left out" in text]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"metadata": {"llama.rope.scaling.type": "yarn"}}, r"scales rotary positions \(yarn\)"),
        ({"tensors": {"rope_factors_long.weight": torch.ones(8).numpy()}}, r"scales rotary positions \(longrope\)"),
        ({"architecture": "rwkv7"}, "cannot be loaded: .*rwkv7.*a folder of the same model may do"),
    ],
)
def test_what_transformers_does_not_read_is_refused(more: dict, message: str, tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", tiny_llama(), **more)
    with pytest.raises(ConfigError, match=f"model.path: .*{message}") as error:
        load_model(str(tmp_path / "m.gguf"), device="cpu")
    assert "\n" not in str(error.value)


def test_tensors_that_are_left_out_are_warned_of(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", tiny_llama(), tensors={"blk.0.attn_q.bias": torch.ones(64).numpy()})
    (*_, text) = load_model(str(tmp_path / "m.gguf"), device="cpu").warnings
    assert text.endswith("some are left out")


def test_the_record_says_what_the_weights_were(file: Path, tmp_path: Path) -> None:
    words = ["model=hf", f"model.path={file}", "model.device=cpu", "format=mxfp8_e4m3", "limit=2"]
    record = run(compose(words), tmp_path)
    assert record["status"] == "done", record["error"]
    blocks = {"Q4_0": 2 * 2 * 64 * 96, "Q8_0": 2 * (64 + 32 + 32) * 64, "F16": 64 * len(TOKENS)}
    plain = 64 * len(TOKENS) + 5 * 64 + 2 * (64 * 64 + 64 * 96)
    assert record["diagnostics"]["quantized_from"] == {
        "method": "gguf",
        "format": "Q4_0",
        "weights": blocks | {"F32": plain},
    }
    (text,) = [text for text in record["warnings"] if "GGUF" in text]
    assert "the weights come from GGUF Q4_0 (F32 39.4%, Q4_0 25.9%, F16 17.5%, Q8_0 17.2% of them)" in text
    assert record["environment"]["dtype"] == "float32" and record["config"]["model"]["name"] == file.name


def test_content_makes_the_run_not_the_name(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copied = shutil.copy(file, tmp_path / "other.GGUF")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    paths = [str(file), str(copied), "other.GGUF", "~/other.GGUF"]
    hashes = {compose(["model=hf", f"model.path={path}"]).config_hash for path in paths}
    hashes.add(compose([f"model={file}"]).config_hash)
    hashes.add(compose(["model=hf", f"model.path={file}", "model.dtype=float32"]).config_hash)
    assert len(hashes) == 1
    write_gguf(tmp_path / "changed.gguf", tiny_llama(rms_norm_eps=1e-5))
    hashes.add(compose(["model=hf", "model.path=changed.gguf"]).config_hash)
    hashes.add(compose(["model=hf", "model.path=other.GGUF", "model.dtype=bfloat16"]).config_hash)
    assert len(hashes) == 3


def test_a_dry_run_counts_it(file: Path) -> None:
    words = ["model=hf", f"model.path={file}", "format=mxfp4"]
    lines = preview(plan(prepare(words)[0], False).runs).text.splitlines()
    record_bits = lines[4].split("  ")
    assert " 4.25 " in lines[4] and "unknown" not in record_bits


def test_without_the_package_it_is_not_for_this_machine(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (planned,) = plan(prepare(["model=hf", f"model.path={file}", "seed=7"])[0], False).runs
    monkeypatch.setattr("mxsweep.sweeps.impossible.has_package", lambda: False)
    assert (why_not_here(planned) or "").endswith("which takes the package gguf: pip install 'mxsweep[gguf]'")
    monkeypatch.setattr("mxsweep.model.gguf.has_package", lambda: False)
    with pytest.raises(ConfigError, match=r"takes the package gguf: pip install 'mxsweep\[gguf\]'"):
        load_model(str(file), device="cpu", attention="eager")


def damaged(file: Path, to: Path, change: str) -> Path:
    content = file.read_bytes()
    changes = {
        "empty": b"",
        "no GGUF": b"PK" + content[2:],
        "version": content[:4] + b"\x09\0\0\0" + content[8:],
        "header cut": content[:700],
        "tensors cut": content[:-100],
    }
    to.write_bytes(changes[change])
    return to


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("empty", "is no GGUF file"),
        ("no GGUF", "is no GGUF file: it does not begin with the letters GGUF"),
        ("version", "is of version 9 of the GGUF format; versions 2 and 3 are read"),
        ("header cut", "is cut short: its header ends before the file says so"),
        ("tensors cut", r"is cut short: it holds [\d,]+ bytes, and its tensors end at [\d,]+"),
    ],
)
def test_a_damaged_file_is_refused_when_planned(change: str, message: str, file: Path, tmp_path: Path) -> None:
    path = damaged(file, tmp_path / "m.gguf", change)
    with pytest.raises(ConfigError, match=f"model.path: '.*m.gguf' {message}"):
        compose(["model=hf", f"model.path={path}"])


def test_parts_a_missing_file_and_a_folder_of_files_are_refused_when_planned(file: Path, tmp_path: Path) -> None:
    part = tmp_path / "m-00001-of-00002.gguf"
    write_gguf(part, tiny_llama(), metadata={"split.count": 2})
    with pytest.raises(ConfigError, match="is one of 2 parts of a model; join them into one file first"):
        compose(["model=hf", f"model.path={part}"])
    with pytest.raises(ConfigError, match=r"model.path: 'm/x.gguf' is not a file"):
        compose(["model=hf", "model.path=m/x.gguf"])
    with pytest.raises(ConfigError, match=f"holds GGUF files; name the one that is meant, as .*{os.sep}{part.name}"):
        compose(["model=hf", f"model.path={tmp_path}"])


def test_the_header_agrees_with_ggufs_own_reader(file: Path) -> None:
    header, reader = gguf_header.read_header(file), gguf.GGUFReader(file)
    assert [(t.name, t.weights, t.type_number) for t in header.tensors] == [
        (t.name, t.n_elements, t.tensor_type.value) for t in reader.tensors
    ]
    assert header.architecture == "llama" and header.parts == 1 and header.is_quantized
