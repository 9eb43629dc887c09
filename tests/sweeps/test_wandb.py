"""mxsweep/sweeps/wandb_log.py: runs logged to Weights & Biases, and a sweep that goes on without."""

import importlib.util
import json
import logging
import math
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from mxsweep import compose
from mxsweep.config.option_files import conf_dir
from mxsweep.config.sweep_settings import Logging
from mxsweep.results.record import find_runs, write_record
from mxsweep.runs.new_record import new_record
from mxsweep.sweeps.wandb_log import QUIET, WandbLog, run_identity, summary_of

SETTINGS = Logging("wandb", "mxsweep", None, "online")


def make_run(tmp_path, name="20260101_000000_bs16"):
    run = SimpleNamespace(run_id=name, folder=tmp_path / name, overrides=("block_size=16",), config_hash="0")
    record = new_record(name, compose(["block_size=16"]).as_dict()) | {
        "status": "done",
        "metrics": {"story": {"acc": 0.923, "acc_stderr": 0.0084, "perplexity": math.nan}},
        "n_effective": {"story": 1000},
        "timing": {"eval_s": 1.6},
        "examples_per_sec": 625.0,
    }
    write_record(run.folder, record)
    (run.folder / "lm_eval.json").write_text("{}")
    return run, record


class FakeWandb:
    """Enough of wandb, keeping what it is told."""

    def __init__(self, fail_in=None, error=None):
        self.calls = []
        self.runs = []
        self.fail_in, self.error = fail_in, error
        self.Settings = FakeSettings

    def _step(self, name):
        self.calls.append(name)
        if name == self.fail_in:
            raise self.error

    def init(self, **options):
        self.stdin_is_terminal = sys.stdin.isatty()
        print("wandb: Loaded credentials", file=sys.stderr)
        self._step("init")
        run = SimpleNamespace(options=options, summary={}, artifacts=[], url="https://wandb.example/run", code=None)
        run.log_artifact = lambda artifact: (self._step("log_artifact"), run.artifacts.append(artifact))
        run.finish = lambda exit_code: (setattr(run, "code", exit_code), self._step("finish"))
        self.runs.append(run)
        return run

    def Artifact(self, name, type):
        files = {}
        return SimpleNamespace(
            name=name, type=type, files=files, add_file=lambda path, name, policy: files.update({name: (path, policy)})
        )


class FakeSettings:
    model_fields = dict.fromkeys(["silent", "init_timeout"])  # of a version that has no others

    def __init__(self, **given):
        self.given = given


@pytest.fixture
def fake(monkeypatch):
    def install(**options):
        module = FakeWandb(**options)
        monkeypatch.setitem(sys.modules, "wandb", module)
        return module

    return install


def warnings_of(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_settings_files():
    files = {name: yaml.safe_load((conf_dir() / "logging" / f"{name}.yaml").read_text()) for name in ("none", "wandb")}
    assert files["wandb"] == asdict(SETTINGS)
    assert files["none"] == asdict(SETTINGS) | {"name": "none"}


def test_what_is_logged(tmp_path, fake, capfd):
    module = fake()
    run, record = make_run(tmp_path)
    with WandbLog(replace(SETTINGS, entity="us"), "sweep_7") as log:
        log.begin(run)
        log.advance(run, 1, 2)
        log.advance(run, 1, 2, "gptq")
        assert module.calls == []
        log.end(run, record)
    (logged,) = module.runs
    settings = logged.options.pop("settings")
    assert settings.given == {"silent": True, "init_timeout": QUIET["init_timeout"]}
    assert logged.options == {
        "project": "mxsweep",
        "entity": "us",
        "group": "sweep_7",
        "name": run.run_id,
        "id": run_identity(run),
        "config": record["config"],
        "mode": "online",
        "dir": str(run.folder),
        "reinit": "create_new",
        "resume": "allow",
    }
    assert logged.summary == {
        "status": "done",
        "examples_per_sec": 625.0,
        "story/acc": 0.923,
        "story/acc_stderr": 0.0084,
        "story/perplexity": "NaN",
        "n_effective/story": 1000,
        "timing/eval_s": 1.6,
    }
    (artifact,) = logged.artifacts
    assert set(artifact.files) == {"result.json", "lm_eval.json"}  # there is no samples.parquet here
    assert logged.code == 0
    assert module.calls == ["init", "log_artifact", "finish"]
    assert capfd.readouterr() == ("", "")


def test_a_failed_run(tmp_path, fake):
    module = fake()
    run, record = make_run(tmp_path)
    failed = new_record(run.run_id, record["config"]) | {"error": {"type": "E", "message": "why", "traceback": "long"}}
    WandbLog(SETTINGS, "g").end(run, failed)
    assert module.runs[0].code == 1
    assert module.runs[0].summary == {"status": "failed", "error/type": "E", "error/message": "why"}


def test_offline_resumes_nothing(tmp_path, fake, caplog):
    module = fake()
    run, record = make_run(tmp_path)
    with caplog.at_level(logging.INFO), WandbLog(replace(SETTINGS, mode="offline"), "g") as log:
        log.end(run, record)
    assert module.runs[0].options["mode"] == "offline" and "resume" not in module.runs[0].options
    assert "wandb sync" in caplog.records[-1].getMessage()


def test_an_id_for_each_run_and_always_the_same(tmp_path):
    run, _ = make_run(tmp_path)
    other = SimpleNamespace(run_id=f"{run.run_id}_2", folder=run.folder)
    moved = SimpleNamespace(run_id=run.run_id, folder=Path("/elsewhere") / run.folder.name)
    assert run_identity(run) == run_identity(moved) != run_identity(other)
    assert run_identity(run).isalnum()


@pytest.mark.parametrize("step", ["init", "log_artifact", "finish"])
def test_trouble_is_said_once_and_stops_nothing(tmp_path, fake, caplog, step):
    module = fake(fail_in=step, error=OSError("disk full\nand more"))
    run, record = make_run(tmp_path)
    before = (run.folder / "result.json").read_bytes()
    with WandbLog(SETTINGS, "g") as log:
        log.end(run, record)
        calls = list(module.calls)
        log.end(run, record)
    assert module.calls == calls  # off for the rest of the sweep
    assert ("finish" in calls) is (step != "init")  # a run that was begun is closed
    assert warnings_of(caplog) == [
        "logging=wandb: this run and those after it are not logged: OSError: disk full; "
        "logging.mode=offline needs no server"
    ]
    assert (run.folder / "result.json").read_bytes() == before


def test_no_key_is_not_asked_for(tmp_path, fake, caplog, monkeypatch):
    terminal = SimpleNamespace(isatty=lambda: True)
    monkeypatch.setattr(sys, "stdin", terminal)
    module = fake(fail_in="init", error=RuntimeError("No API key configured. Use `wandb login` to log in."))
    WandbLog(SETTINGS, "g").end(*make_run(tmp_path))
    assert module.stdin_is_terminal is False
    assert sys.stdin is terminal
    assert warnings_of(caplog)[0].endswith("; set WANDB_API_KEY or logging.mode=offline")


def test_an_interruption_goes_through(tmp_path, fake):
    fake(fail_in="init", error=KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        WandbLog(SETTINGS, "g").end(*make_run(tmp_path))


@pytest.mark.parametrize("module", [None, SimpleNamespace()], ids=["missing", "a folder of that name"])
def test_missing_package(tmp_path, monkeypatch, caplog, module):
    monkeypatch.setitem(sys.modules, "wandb", module)
    WandbLog(SETTINGS, "g").end(*make_run(tmp_path))
    (warning,) = warnings_of(caplog)
    assert warning.endswith("; pip install 'mxsweep[wandb]'")


def test_summary_of_a_run_that_never_got_so_far():
    assert summary_of(new_record("id", {})) == {"status": "failed"}


def test_wandb_is_imported_only_when_used():
    code = (
        "import sys; from mxsweep.config.sweep_settings import Logging; from mxsweep.sweeps.wandb_log import WandbLog; "
        f"WandbLog({SETTINGS!r}, 'g'); print('wandb' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


REAL = """
import json, logging, sys
from pathlib import Path
from types import SimpleNamespace
from mxsweep.results.record import read_record
from mxsweep.config.sweep_settings import Logging
from mxsweep.sweeps.wandb_log import WandbLog
logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stdout)
settings, *folders = json.loads(sys.argv[1])
with WandbLog(Logging(**settings), "group_7") as log:
    for folder in map(Path, folders):
        record = read_record(folder / "result.json")
        log.end(SimpleNamespace(run_id=record["run_id"], folder=folder), record)
"""


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed")
class TestReal:
    def go(self, tmp_path, mode, **environment):
        runs = [make_run(tmp_path / "sweep", f"2026_bs{size}")[0] for size in (16, 32)]
        given = json.dumps([asdict(replace(SETTINGS, mode=mode)), *(str(run.folder) for run in runs)])
        clean = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
        done = subprocess.run(
            [sys.executable, "-c", REAL, given],
            capture_output=True,
            text=True,
            check=True,
            timeout=100,
            env=clean | {"HOME": str(tmp_path / "home")} | environment,
        )
        assert done.stderr == ""
        return runs, done.stdout.splitlines()

    def test_offline(self, tmp_path):
        runs, lines = self.go(tmp_path, "offline")
        assert lines == ["INFO logging=wandb: 2 logged offline; `wandb sync` uploads a run's wandb/offline-run-*"]
        for run in runs:
            (kept,) = run.folder.glob(f"wandb/offline-run-*/run-{run_identity(run)}.wandb")
            data = kept.read_bytes()
            for text in (
                "story/acc",
                "story/perplexity",
                "group_7",
                run.run_id,
                "result.json",
                "lm_eval.json",
                "mxfp4",
                "w4a6",
            ):
                assert (text.encode() in data) is (text != "mxfp4"), text
        assert [run.path for run in find_runs(tmp_path / "sweep")] == [run.folder for run in runs]

    def test_online_without_a_key(self, tmp_path):
        _, (line,) = self.go(tmp_path, "online", NETRC=str(tmp_path / "none"))
        assert line.startswith("WARNING logging=wandb: this run and those after it are not logged: No API key")
        assert line.endswith("; set WANDB_API_KEY or logging.mode=offline")

    @pytest.mark.slow
    def test_online_without_a_server(self, tmp_path):
        nobody = {"WANDB_API_KEY": "a" * 40, "WANDB_BASE_URL": "http://127.0.0.1:9"}
        _, (line,) = self.go(tmp_path, "online", **nobody)
        assert line.endswith("connection refused; logging.mode=offline needs no server")
