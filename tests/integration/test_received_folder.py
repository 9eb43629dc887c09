"""A folder that somebody else sent: nothing in it is run, whatever command is given in it."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.made_report import put_study
from helpers.training_jobs import training_job

from mxsweep.runs.foreign_loader import ask
from mxsweep.terminal.errors import ConfigError
from mxsweep.training.train_model import train_shared

REPOSITORY = Path(__file__).resolve().parents[2]


def test_code_in_the_working_folder_is_not_imported(tmp_path: Path) -> None:
    trap = f"open({str(tmp_path / 'ran')!r}, 'w')"
    (tmp_path / "here" / "hydra_plugins").mkdir(parents=True)
    for name in ("pyarrow.py", "yaml.py", "argparse.py", "typing.py", "hydra_plugins/x.py"):
        (tmp_path / "here" / name).write_text(trap)
    for command in (["mxsweep", "dry_run=true"], ["mxsweep.collect", "--help"]):
        answer = subprocess.run(
            [sys.executable, "-m", *command],
            cwd=tmp_path / "here",
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert answer.returncode == 0, answer.stderr
        assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("process", ["loader", "training"])
def test_processes_that_are_started_import_no_code_of_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, process: str
) -> None:
    here = tmp_path / "here"
    for name in ("mxsweep/__init__.py", "torch/__init__.py", "numpy.py", "typing.py"):
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.chdir(here)
    if process == "loader":
        with pytest.raises(ConfigError, match="cannot load what was written"):
            ask(tmp_path / "nothing", "modelopt", torch.zeros(1, 2, dtype=torch.int64), {})
    else:
        job = training_job(length=4096, processes=2, init={"source": "model"})
        with pytest.raises(ConfigError, match=r"train\.length: 4096"):
            train_shared(job, tmp_path / "run", lambda *_: None)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("folder", ["package", "other"])
def test_a_working_folder_with_the_package_in_it_stays(tmp_path: Path, folder: str) -> None:
    (tmp_path / "mxsweep").symlink_to(REPOSITORY / "mxsweep")
    (tmp_path / "mxsweep_words.py").write_text("")
    where = tmp_path if folder == "package" else tmp_path / "other"
    where.mkdir(exist_ok=True)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    answer = subprocess.run(
        [sys.executable, "-m", "mxsweep", "--version"],
        cwd=where,
        env=environment | ({} if folder == "package" else {"PYTHONPATH": str(tmp_path)}),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert answer.returncode == 0, answer.stderr


# Ends the process at the first file that is written elsewhere, connection, or program that is started but Python's own.
GUARD = """
import os, sys
allowed = [os.path.realpath(folder) for folder in os.environ["MAY_WRITE"].split(":")]
programs = ("git", os.path.basename(sys.executable))
def guard(event, words):
    path = None
    if event == "open" and isinstance(words[0], (str, bytes)):
        mode, flags = words[1], words[2] or 0
        if (mode and set(mode) & set("wax+")) or flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC):
            path = words[0]
    elif event in ("os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.chmod", "shutil.rmtree"):
        path = words[0]
    elif event in ("os.rename", "os.link", "os.symlink"):
        path = words[1]
    elif event in ("socket.connect", "os.system", "os.exec", "os.posix_spawn"):
        path = "/" + event
    elif event == "subprocess.Popen" and os.path.basename(str(words[0])) not in programs:
        path = f"/{words[0]}"
    if path is not None and not isinstance(path, int):
        head, tail = os.path.split(os.fsdecode(path))
        real = os.path.join(os.path.realpath(head or "."), tail)
        if real != "/dev/null" and not any(real == folder or real.startswith(folder + "/") for folder in allowed):
            os.write(2, f"GUARD: {event} {real}\\n".encode())
            os._exit(99)
sys.addaudithook(guard)
import runpy
sys.argv = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


@pytest.fixture
def received(tmp_path: Path) -> Path:
    """A sweep of somebody who means ill, in every way that is known."""
    trap = f"open({str(tmp_path / 'ran')!r}, 'w')"
    folder = tmp_path / "s"
    put_study(folder, blocks=(16, 32), scale_bits=(8,), kv=("none",), noise=False)
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim" / "file").write_text("mine")
    runs = sorted(path.parent for path in folder.glob("*/result.json"))
    for index, run in enumerate(runs):
        record = json.loads((run / "result.json").read_text())
        record["metrics"]["story"]["acc,../../../victim/pwn"] = 0.5 + index
        record["config"]["format"]["name"] = '=HYPERLINK("http://evil/") ![t](http://evil/x.png)'
        record["warnings"] = ["\x1b]52;c;ZXZpbA==\x07\x1b[2J", "<script>alert(1)</script>", "\\input{/etc/passwd}"]
        (run / "result.json").write_text(json.dumps(record))
    for name in ("pipe", "huge"):
        shutil.copytree(runs[0], folder / name)
    (folder / "pipe" / "result.json").unlink()
    os.mkfifo(folder / "pipe" / "result.json")
    os.mkfifo(folder / "pipe" / ".claim")
    (folder / "huge" / "result.json").write_text((runs[0] / "result.json").read_text().replace("1234", "9" * 999))
    (runs[1] / "samples.parquet").unlink()
    os.mkfifo(runs[1] / "samples.parquet")
    for name in ("results.csv", "report.html", "results.md", "accuracy_vs_block_size.png"):
        (folder / name).symlink_to(tmp_path / "victim" / "file")
    (folder / "model").mkdir()
    (folder / "model" / "evil.py").write_text(trap)
    (folder / "model" / "config.json").write_text('{"model_type": "evil", "auto_map": {"AutoConfig": "evil.C"}}')
    (folder / "model" / "model.safetensors").write_bytes(b"\2\0\0\0\0\0\0\0{}")
    (folder / "hydra_plugins").mkdir()
    for name in ("pyarrow.py", "yaml.py", "hydra_plugins/x.py"):
        (folder / name).write_text(trap)
    words = [
        "model=s/model",
        "model.trust_remote_code=true",
        "hydra/launcher=slurm",
        f"hydra.launcher.setup=[{trap!r}]",
    ]
    content = {"schema": 1, "commands": [{"overrides": words, "config_dir": None, "cwd": str(tmp_path)}], "runs": []}
    (folder / "sweep.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (["mxsweep.collect", "s"], 0),
        (["mxsweep.collect", "--status", "s"], 0),
        (["mxsweep.collect", "--reference", "ex_report", "s"], 0),
        (["mxsweep", "resume=true", "hydra.sweep.dir=s"], 2),
        (["mxsweep", "resume=true", "hydra.sweep.dir=s", "dry_run=true"], 2),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_hostile_folder_touches_nothing_else(received: Path, tmp_path: Path, command: list[str], code: int) -> None:
    for name in ("home", "cache", "temporary"):
        (tmp_path / name).mkdir()
    environment = os.environ | {
        "PYTHONPATH": str(REPOSITORY),
        "PYTHONDONTWRITEBYTECODE": "1",
        "HOME": str(tmp_path / "home"),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "TMPDIR": str(tmp_path / "temporary"),
        "MAY_WRITE": ":".join(str(tmp_path / name) for name in ("s", "cache", "temporary")),
        "A_TOKEN": "a made up token",
    }
    answer = subprocess.run(
        [sys.executable, "-P", "-c", GUARD, *command],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert answer.returncode == code, answer.stderr
    assert "GUARD" not in answer.stderr and "Traceback" not in answer.stderr
    assert not (tmp_path / "ran").exists()
    assert [path.name for path in (tmp_path / "victim").iterdir()] == ["file"]
    assert (tmp_path / "victim" / "file").read_text() == "mine"
    assert list((tmp_path / "home").iterdir()) == [] and list((tmp_path / "temporary").iterdir()) == []
    said = answer.stdout + answer.stderr
    assert not set(said) & set(map(chr, [*range(9), *range(11, 32), 127, *range(128, 160)]))
    if "resume=true" in command:
        assert "if you trust it" in answer.stderr
    else:
        assert "2 unreadable" in said
    if command[:2] == ["mxsweep.collect", "s"]:
        written = {path.name: path for path in received.iterdir() if path.is_file()}
        assert not any(path.is_symlink() for path in written.values())
        with written["results.csv"].open(newline="", encoding="utf-8") as file:
            cells = [cell for row in csv.reader(file) for cell in row]
        assert any("HYPERLINK" in cell for cell in cells) and not any(cell.startswith("=") for cell in cells)
        assert "![t]" not in written["results.md"].read_text(encoding="utf-8")
        assert "<script>alert" not in written["report.html"].read_text(encoding="utf-8")
        assert "\\input" not in written["results.tex"].read_text(encoding="utf-8")
