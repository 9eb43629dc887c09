"""The command line and its surroundings at their oddest: there is a result, or one message."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import knob_lists, stand_in
from helpers.hostile import fuzzing
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from mxsweep.__main__ import main
from mxsweep.collect import main as collect
from mxsweep.config.option_files import option_names
from mxsweep.config.override_grammar import verbatim
from mxsweep.report import written_report
from mxsweep.results.record import find_runs
from mxsweep.runs import backend_check, trained_run
from mxsweep.runs import evaluate_config as evaluation
from mxsweep.runs.run_result import RunFiles, RunResult

pytestmark = pytest.mark.long

JARGON = (
    "Traceback", "is not in struct", "full_key:", "object_type=", "hydra.cc", "HYDRA_FULL_ERROR", "Config search path",
    "LexerNoViable", "mismatched input", "no viable alternative", "omegaconf.", "hydra.errors", "ConfigLoader",
)  # fmt: skip

GROUPS = [*knob_lists.groups(), "reference"]
LEAVES = knob_lists.leaves()
OF_HYDRA = [
    "hydra/launcher", "hydra.launcher", "hydra.launcher.n", "hydra.launcher.retries", "hydra.launcher.name",
    "hydra.launcher._target_", "hydra.launcher.x", "hydra.sweep.dir", "hydra.run.dir", "hydra.sweep.subdir", "hydra",
    "hydra.run", "hydra.job.chdir", "hydra.job.num", "hydra.searchpath", "hydra.mode", "hydra.verbose", "hydra.output",
    "hydra/sweeper", "hydra/job_logging", "hydra/callbacks", "hydra/",
]  # fmt: skip
NO_KNOBS = [
    "",
    "x",
    "blocksize",
    "format.",
    ".",
    "..",
    "a.b.c",
    "formät",
    "💥",
    "a b",
    "'seed'",
    "format/x",
    "$",
    "-",
    ":",
]
VALUES = [
    "", "null", "true", "none", "auto", "16", "8", "-0", "0", "-1", "1e999", "nan", "inf", "-inf", "0x10", "1_6", "012",
    "0.25", "1.5", "1e-400", "9" * 45, "9" * 5000, "x" * 5000, "a,b", "16,32", "6,8,6", ",", "a,,b", "[", "]", "{", "}",
    "[]", "[1,2]", "[[1],2]", "[" * 300, "{}", "{a:1}", "{a: {b: [1]}}", "{1: none}", "{null: x}", "{'*': none}",
    "{a: ../model/hf}", '{"[": int8}', "'", '"', "'a", "'a b'", '"16"', "''", "'null'", "'-'", "'2020-01-01'", "'1,2'",
    "a'b", "it's", "a b", " 16", "16 ", "a=b", "==", "a:b", "a#b", "a$b", "$", "${", "${}", "${nothing}", "${seed}",
    "${oc.env:HOME}", "${oc.env:NOWHERE_AT_ALL}", "${nothing:1}", "${run_id:}", "${now:%Y}", "${hydra:job.num}",
    "${.x}", "${..x}", "'${x'", "\\${a}", "\\", "a\\", "\\'", "???", "*", "glob(*)", "glob(zz*)", "glob()", "glob([)",
    "choice(6,8)", "choice()", "choice(a", "range(4,8)", "range(8,4)", "range(1,2,0)", "range(0,1e12)", "range(a,b)",
    "range(0,nan)", "interval(0,1)", "sort(8,6)", "shuffle(6,8)", "sort(6,a)", "tag(a,6,8)", "int(6)", "int(x)",
    "float(6)", "str([1])", "bool(x)", "json_str({a:1})", "extend_list(1)", "f(x)", "../x", "/etc/passwd", "/dev/null",
    "/proc/self/mem", "/proc/nowhere", ".", "..", "~", "~/x", "~nobody_at_all/x", "/" + "n" * 300, "a/b", "FILE.yaml",
    "tiny", "hf", "story", "lambada_openai", "mxfp4", "nvfp4", "w4a6", "int3", "fp6_e3m2", "fp99_e9m9", "cuda", "gpus",
    "slurm", "basic", "ex1", "ex3", "ex1,ex2", "offline", "ü", "模型", "💥", "שלום", "\u202e16", "\0", "\udcff",
    "\ud800", "a\nb", "a\tb", "\x1b[31m", "%s", "%(x)s", "{0}", "<b>", "[bold]x[/bold]", "; ls", "$(ls)", "`ls`", "&",
]  # fmt: skip
FLAGS = ["-m", "--multirun", "--", "-", "--help", "-h", "--hydra-help", "--version", "-r", "--cfg", "job", "--info",
         "all", "-p", "--resolve", "--config-dir", "nowhere", "-cd", "-cn", "-cp", "-sc", "--nope", "--cfg=job",
         "--config-dir=", "-mm", "--experimental-rerun"]  # fmt: skip

texts = st.text(st.characters(codec=None, categories=None), max_size=12)
values = st.sampled_from(VALUES) | texts | st.integers().map(str) | st.floats().map(str)
values |= st.lists(st.sampled_from(VALUES), min_size=2, max_size=3).map(",".join)
values |= st.lists(st.sampled_from(VALUES), max_size=3).map(lambda items: f"[{','.join(items)}]")
keys = st.sampled_from(GROUPS) | st.sampled_from(LEAVES) | st.sampled_from(OF_HYDRA) | st.sampled_from(NO_KNOBS) | texts
overrides = st.builds(
    lambda mark, key, package, value: f"{mark}{key}{package}{value}",
    st.sampled_from([""] * 9 + ["+", "++", "~"]),
    keys,
    st.sampled_from([""] * 12 + ["@", "@x", "@a.b", "@_global_", "@:x"]),
    values.map("={}".format) | st.just(""),
)
options = [f"{group}={name}" for group in GROUPS for name in option_names(group)]
words = st.lists(overrides | st.sampled_from(options) | st.sampled_from(FLAGS), min_size=1, max_size=4)


@dataclass(frozen=True)
class Answer:
    code: int
    out: str
    err: str
    left: list[str]


def evaluated(config: Any, progress: Any, overrides: Any = ()) -> RunResult:
    """In the place of the evaluation: at once, and the same every time."""
    task = next(iter(config.task.names), "validation")
    entries = {
        "metrics": {task: {"acc": 0.5, "acc_stderr": 0.01}},
        "n_effective": {task: 8},
        "timing": {"load_s": 0.0, "quantize_s": 0.0, "prepare_s": 0.0, "eval_s": 0.1},
        "examples_per_sec": 80.0,
    }
    return RunResult(entries, {"device": "cpu"}, RunFiles([], {}))


def collected(folder: Path) -> None:
    """In the place of the tables and figures at a sweep's end, which have tests of their own."""


@pytest.fixture(scope="module")
def quick() -> Iterator[None]:
    """Runs that take no time, and no hub and no workers to wait for."""
    with pytest.MonkeyPatch.context() as patch:
        from mxsweep.sweeps import run_sweep

        for name in ("evaluate_config", "evaluate_proving"):
            patch.setattr(evaluation, name, evaluated)
        patch.setattr(
            trained_run, "train_and_evaluate", lambda config, folder, progress, words: evaluated(config, progress)
        )
        patch.setattr(run_sweep, "_collect", collected)
        patch.setattr(run_sweep, "launch_runs", _in_this_process(run_sweep.launch_runs))
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        # On a machine with a GPU, too, which torch may have found already.
        patch.setattr("mxsweep.sweeps.begin.visible_gpu_count", lambda: 0)
        problem = backend_check.backend_problem
        patch.setattr(
            backend_check, "backend_problem", lambda name: "no GPU was found" if name == "cuda" else problem(name)
        )
        yield


def _in_this_process(launch_runs: Any) -> Any:
    return lambda launcher, runs, launch, observers: launch_runs(None, runs, launch, observers)


def ask(arguments: list[str]) -> Answer:
    """What the command answers, in an empty folder."""
    out, err = io.StringIO(), io.StringIO()
    before = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                try:
                    code = main(arguments)
                except SystemExit as end:  # of argparse, or of Hydra after --help
                    code = end.code if isinstance(end.code, int) else 1
            left = os.listdir(folder)
        finally:
            os.chdir(before)
    return Answer(code, out.getvalue(), err.getvalue(), left)


def check(arguments: list[str]) -> Answer:
    answer = ask(arguments)
    said = answer.err + ("" if {"--cfg", "--cfg=job", "--info"} & set(arguments) else answer.out)
    asked_of_hydra = any(word.startswith("-") for word in arguments)
    for word in JARGON:
        if word in said and not any(word in argument for argument in arguments):
            assert asked_of_hydra and word == "hydra.cc" and answer.code == 0, (word, said)  # --hydra-help has a link
    assert isinstance(answer.code, int)
    assert answer.code in (0, 1, 2, 130), said
    # A run may fail; what is typed is no reason for its result not to be written.
    assert answer.code != 1 or (" failed: " in answer.err and "written" not in answer.err), said
    if answer.code == 2:
        first = answer.err.partition("\n")[0] or answer.out.partition("\n")[0]
        assert first.startswith(("mxsweep: ", "usage: ")) or "planned, nothing run" in first, said
        assert len(answer.err) < 2000
        assert answer.err.encode("utf-8", "strict")
        assert answer.left == []
    return answer


# What was answered with a traceback, with a page of Hydra's, or not at all, before it was mended.
MENDED = [
    ["task=FILE.yaml"], ["task=a/b"], ["task=../x"], ["format=a/b"], ["block_size=${oc.env:HOME}"], ["limit=${seed}"],
    ["block_size=${nothing}"], ["seed=${nothing}"], ["seed=${seed}"], ["seed=${oc.env:NOWHERE_AT_ALL}"], ["seed=${"],
    ["scale_bits=range(1,2,0)"], ["-m", "scale_bits=range(8,4)"], ["-m", "scale_bits=interval(1,2)"],
    ["-m", "seed=glob(*)"], ["-m", "scale_bits=glob(x*)"], ["-m", "seed=range(0,1e12)"], ["-m", "seed=range(0,20000)"],
    ["-m", "seed=range(0,200)", "batch_size=range(1,100)"], ["limit=" + "9" * 400], ["seed=" + "9" * 5000],
    ["modules=" + "[" * 2000], ["block_size='2020-01-01'"], ["block_size='-'"], ["stamp="], ["stamp=../../x"],
    ["hydra.run.dir="], ["hydra.run.dir=${nothing}"], ["hydra.run.dir=~nobody_at_all/x"],
    ["hydra.run.dir=" + "n" * 300], ["-m", "hydra.sweep.dir=" + "n" * 300], ["resume=true", "hydra.sweep.dir=\0"],
    ["resume=true", "hydra.sweep.dir=" + "n" * 300], ["-m", "hydra.sweep.subdir=../..", "baseline=false"],
    ["-m", "hydra.sweep.subdir=.hidden", "baseline=false"], ["hydra/launcher=null"], ["hydra/launcher=foo"],
    ["hydra/launcher=[a,b]"], ["-m", "hydra/launcher=gpus,basic"], ["hydra.launcher=null"], ["hydra.launcher=x"],
    ["+hydra.launcher.x=1"], ["hydra.launcher.n=2"], ["hydra/launcher=gpus", "hydra.launcher.name=x"], ["hydra=1"],
    ["hydra.run=x"], ["hydra/job_logging=foo"], ["~logging"], ["~modules"], ["~sweep"], ["~x"], ["x@y=1"], ["sweep=1"],
    ["++format=mxfp4", "~format=none"], ["+experiment=ex9"], ["experiment=../format/mxfp4"], ["+seed=1"],
    ["model=hf", "model.path='~nobody_at_all'"], ["model=hf", "model.path=" + "n" * 300], ["task.names={a:1}"],
    ["task=lambada_openai", "task.data='~nobody_at_all/x'"], ["task=lambada_openai", "task.data=" + "n" * 300],
    ["task=lambada_openai", "task.fields=null", "task.data=/etc/passwd"], ["task.fields={a:1}"], ["model=hf"],
    ["task=nowhere.yaml"], ["task=a/b"], ["task=[a.yaml,b.yaml]"], ["task.include_path="], ["task.include_path=[a]"],
    ["task.include_path=~nobody_at_all/x"], ["task.include_path=/dev/null"], ["task.names=[a.yaml]"],
    ["modules={a:../model/hf}"], ["modules={null:none}"], ["logging.name=x"], ["logging.entity=[]"],
    ["logging=none,wandb"],
    ["experiment=ex3"], ["-m", "custom_cuda=true", "block_size=16,32"], ["backend=cuda"], ["--cfg", "job", "seed=${x}"],
    ["-cn", "x"], ["-cp", "x"], ["--config-dir="], ["-sc"], ["-sc", "install=tcsh"], ["-sc", "query=bash"],
    ["--cfg=job", "x=1"],
    ["--nope"], ["--cfg=nope"], ["-p", "model"], ["--cfg", "job", "-p", "nope"], ["--experimental-rerun", "x"],
    ["hydra.verbose=true"], ["hydra.verbose=[a,b]"], ["hydra/sweeper=basic"], ["hydra.job.chdir=true"],
    ["model=null"], ["model="], ["model=tny"], ["model=${seed}"], ["model=./nowhere"], ["model=[a,b]"],
    ["modules={nowhere: none}"], ["-m", "modules={nowhere.[01]: none}", "block_size=16,32"],
    ["block_size=\udcff"], ["hydra.sweep.dir=\udcff"], ["a\0b=1"], ["\x1b[31m=1"],
]  # fmt: skip


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("arguments", MENDED, ids=lambda words: " ".join(words).encode("unicode_escape").decode()[:60])
def test_bad_input_is_one_message(arguments: list[str]) -> None:
    answer = check(arguments)
    assert answer.code == 2, answer
    assert answer.err.startswith(("mxsweep: ", "usage: "))
    assert answer.err.count("\n") == 1


ALLOWED = [
    ["experiment=null"], ["+experiment=ex1", "custom_cuda=false", "limit=1"], ["+format=mxfp4"], ["-h"],
    ["--help", "experiment=ex1"], ["--cfg", "job", "experiment=ex1"], ["-m", "--info", "searchpath"], ["--hydra-help"],
    ["--hydra-help", "model=hf", "model.path=x/y"], ["--version"], ["--cfg", "job", "-p", "model"],
    ["task=[story]"], ["--cfg", "hydra", "-p", "hydra.sweep"], ["format=[mxfp4]"],
    ["modules={model.layers.[01].*: none}"], ["hydra.run.dir=a,b"], ["hydra.run.dir=[1]"],
    ["hydra.run.dir=true"],
    ["hydra.run.dir=null"],
    ["-m", "hydra.sweep.dir=1,2"], ["-m", "stamp=now", "hydra.sweep.dir=here/${stamp}"], ["block_size=1_6"],
    ["block_size=[2,16]", "format.activation=none"], ["task=[story,wikitext]"], ["hydra/launcher=basic"], ["-m"],
]  # fmt: skip


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("arguments", ALLOWED, ids=" ".join)
def test_odd_but_meant(arguments: list[str]) -> None:
    assert check(arguments).code == 0


@pytest.mark.usefixtures("quick")
@fuzzing(75)
@given(words)
def test_fuzz(arguments: list[str]) -> None:
    check(arguments)


# ------------------------------------------------------------------------------------------- odd folders

FOLDERS = [
    "with space", " at both ends ", "it's", 'say "hi"', "'quoted'", "a,b", "a=b", "übung 模型 💥 שלום", "cost $5",
    "${HOME}", "x${stamp}", "\\${x}", "[x]{y}(z)", "100%s %(x)s", "two\nlines", "n" * 200, "-dash", "~tilde", "null",
    "1e3",
    "back\\slash\\", "\\'", "#;&|<>*?!`", "true", "a: b", "...", "\u202ertl",
]  # fmt: skip
# Names of which a whole process is started, which decodes what it is given by itself.
STARTED = {"it's", "übung 模型 💥 שלום", "two\nlines"}
STATES = ("done", "done", "done")


def in_a_shell(command: str, folder: Path, **environment: object) -> subprocess.CompletedProcess[str]:
    """What a shell makes of `mxsweep ...` (with the stand-in for the evaluation) and of `collect ...`."""
    functions = (
        f'mxsweep() {{ {shlex.join(stand_in.command())} "$@"; }}; '
        f'collect() {{ {shlex.quote(sys.executable)} -m mxsweep.collect "$@"; }}; set -o pipefail; '
    )
    return subprocess.run(
        ["bash", "-c", functions + command], cwd=folder, capture_output=True, text=True, errors="replace", timeout=120,
        env=stand_in.environment(Path(tempfile.gettempdir()), STAND_IN_S=0.001, **environment),
    )  # fmt: skip


def as_a_shell_reads(command: str, folder: Path) -> list[str]:
    """The arguments that a shell hands to `mxsweep`."""
    functions = "mxsweep() { printf '%s\\0' \"$@\"; }; "
    said = subprocess.run(["bash", "-c", functions + command], cwd=folder, capture_output=True, check=True).stdout
    return [os.fsdecode(word) for word in said.split(b"\0")[:-1]]


def states(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(run.status for run in find_runs(folder)))


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("name", FOLDERS, ids=ascii)
def test_what_an_interrupted_sweep_says_can_be_pasted(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(config: Any, progress: Any, overrides: Any) -> RunResult:
        if not config.recipe.is_baseline:
            raise KeyboardInterrupt
        return evaluated(config, progress)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(evaluation, "evaluate_config", interrupted)
    typed = verbatim(name) if "${" in name else f"./{name}" if name.startswith("~") or name == "'quoted'" else name
    assert main(["-m", "block_size=16,32", f"hydra.sweep.dir={typed}"]) == 130
    assert os.listdir() == [name]
    said = capsys.readouterr().err
    assert "1 of 3 runs are done and kept. To go on: python -m mxsweep resume=true" in said
    command = said.partition("To go on: python -m ")[2]
    if name in STARTED:
        answer = in_a_shell(command, tmp_path)
        assert answer.returncode == 0, answer.stderr
        said = answer.stdout
    else:
        monkeypatch.setattr(evaluation, "evaluate_config", evaluated)
        assert main(as_a_shell_reads(command, tmp_path)) == 0
        said = capsys.readouterr().out
    assert "1 of 3 runs are done and are skipped, 2 are missing" in said
    assert os.listdir() == [name]
    assert states(Path(name)) == STATES


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("names", [FOLDERS[first::6] for first in range(6)], ids=ascii)  # one inside the other
def test_work_in_odd_folders(names: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path.joinpath(*names)
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    assert main(["-m", "block_size=16,32"]) == 0
    assert main(["block_size=16"]) == 0
    assert main(["resume=true"]) == 0
    assert states(folder / "multirun") == STATES
    assert collect(["--status"]) == 0
    assert collect(["--status", str(folder)]) == 0


def test_the_embedded_model_in_odd_folders(tmp_path: Path) -> None:
    folder, name = tmp_path / ("n" * 200), "übung 模型, it's=50% [$x]\n💥"
    (folder / name).mkdir(parents=True)
    command = [sys.executable, "-m", "mxsweep", "-m", "limit=1", "baseline=false", f"hydra.sweep.dir={name}"]
    answer = subprocess.run(command, cwd=folder / name, capture_output=True, text=True, timeout=300)
    assert answer.returncode == 0, answer.stderr
    assert states(folder / name / name) == ("done",)
    assert {"results.csv", "results.md", "results.parquet"} <= set(os.listdir(folder / name / name))


@pytest.fixture(scope="module")
def done_sweep(quick: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep that is done, for tests to copy."""
    folder = tmp_path_factory.mktemp("done")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["-m", "block_size=16,32", "hydra.sweep.dir=s"]) == 0
    return folder / "s"


# Command, exit code, and what is said of it, where a process of its own is what matters.
SURROUNDINGS = [
    ("mxsweep -m baseline=false | head -0", 0, ""),
    ("PYTHONUNBUFFERED=1 mxsweep -m baseline=false | head -0", 0, ""),
    ("mxsweep -m block_size=16,32 scale_bits=4,5,6 dry_run=true | head -1", 0, "7 runs planned"),
    ("mxsweep --help | head -1", 0, "mxsweep: what does"),
    ("mxsweep -m baseline=false 2>&1 >/dev/null | head -0", 0, ""),
    ("mxsweep -m baseline=false >&-", 0, "run 1 of 1"),
    ("mxsweep -m baseline=false 2>&-", 0, "Written to"),
    ("mxsweep -m baseline=false >&- 2>&-", 0, ""),
    ("mxsweep -m baseline=false <&-", 0, "Written to"),
    ("mxsweep seed=x 2>&-", 2, ""),
    ("mxsweep -m baseline=false >/dev/full", 1, "the output could not be written"),
    ("mxsweep -m baseline=false 2>/dev/full", 1, "Written to"),
    ("mxsweep seed=x 2>/dev/full", 2, ""),
    ("LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0 mxsweep -m", 0, "Written to"),
    ("LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0 mxsweep -m hydra.sweep.dir=ü", 2, "is not UTF-8 text"),
    ("LC_ALL=C mxsweep -m hydra.sweep.dir=ü && ls ü/results.md", 0, "Written to"),
    ("LC_ALL=C mxsweep model=hf model.path=/ü", 2, "does not exist"),
    ("env -u HOME bash -c 'true'; unset HOME; mxsweep -m baseline=false", 0, "Written to"),
    ("PATH=/nowhere mxsweep -m baseline=false", 0, "Written to"),  # no git, no anything
    ("HOME=/proc/nowhere XDG_CACHE_HOME=/proc/nowhere mxsweep -m baseline=false", 0, "Written to"),
    ("HOME=/proc/nowhere mxsweep hydra.run.dir='~/x'", 2, "hydra.run.dir: '/proc/nowhere/x' cannot be made"),
    ("mkdir d; cd d; rmdir ../d; mxsweep", 2, "the folder that this was started in is gone"),
    ("mkdir d; cd d; rmdir ../d; collect", 2, "no run below"),
    ("mkdir d; cd d; rmdir ../d; collect --status ../d", 2, "no such folder"),
    (
        "collect $DONE --output /proc/nowhere",
        1,
        "cannot write to /proc/nowhere",
    ),
    ("collect --status $DONE | head -0", 0, ""),
    ("collect $DONE >/dev/full", 1, "the output could not be written"),
]

# The same of commands that answer as much in this process, after what a shell does first.
IN_THE_WAY = [
    ("touch f; mxsweep hydra.run.dir=f", 2, "hydra.run.dir: 'f' cannot be made or written (File exists)"),
    ("touch f; mxsweep hydra.run.dir=f/g", 2, "hydra.run.dir: 'f/g' cannot be made or written (Not a directory)"),
    ("touch f; mxsweep -m hydra.sweep.dir=f", 2, "hydra.sweep.dir: 'f' cannot be made or written (File exists)"),
    ("touch f; mxsweep resume=true hydra.sweep.dir=f", 2, "sweep.json: cannot be read: Not a directory"),
    ("touch multirun outputs; mxsweep", 2, "hydra.run.dir: 'outputs/"),
    ("touch multirun outputs; mxsweep -m", 2, "hydra.sweep.dir: 'multirun/"),
    ("touch multirun outputs; mxsweep resume=true", 2, "there is no sweep below ./multirun"),
    ("touch multirun outputs; collect", 2, "no run below"),
    ("mxsweep hydra.run.dir=/proc/self", 2, "hydra.run.dir: '/proc/self' cannot be made or written"),
    ("mxsweep -m hydra.sweep.dir=/sys/kernel", 2, "hydra.sweep.dir: '/sys/kernel' cannot be made or written"),
    ("mkdir c; touch c/f; mxsweep --config-dir c/f", 2, "--config-dir: 'c/f' is not a folder"),
    ("mkdir -p c/format; printf '\\xff' > c/format/f.yaml; mxsweep --config-dir c format=f", 2, ""),
    ("mkdir -p c/format; echo '{' > c/format/f.yaml; mxsweep --config-dir c format=f", 2, ""),
    ("mkdir -p c/format; echo '- 1' > c/format/f.yaml; mxsweep --config-dir c format=f", 2, ""),
    ("mkdir -p c/experiment; echo '{' > c/experiment/f.yaml; mxsweep --config-dir c experiment=f", 2, "f.yaml"),
    (
        "mkdir -p c/experiment; echo 'sweep: {x: [1]}' > c/experiment/f.yaml; mxsweep --config-dir c experiment=f",
        2,
        "x:",
    ),
    ("collect nowhere", 2, "no such folder: nowhere"),
    ("touch f; collect f", 2, "no such folder: f"),
    (f"collect {'n' * 300}", 2, "File name too long"),
    ("mkdir 'ü 模型'; collect 'ü 模型'", 2, "no run in ü 模型"),
    ("mkdir 'ü'; collect --status ü", 2, "no run in ü"),
    ("collect /proc/self/task", 2, "no run in /proc/self/task"),
    ("collect --nope", 2, "usage: "),
]


@pytest.mark.parametrize(("command", "code", "message"), SURROUNDINGS, ids=[case[0][:70] for case in SURROUNDINGS])
def test_surroundings(command: str, code: int, message: str, tmp_path: Path, done_sweep: Path) -> None:
    answer = in_a_shell(command, tmp_path, DONE=done_sweep)
    said = answer.stdout + answer.stderr
    assert answer.returncode == code, said
    assert message in said
    for word in (*JARGON, "Exception ignored"):
        assert word not in said or "--help" in command


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(("command", "code", "message"), IN_THE_WAY, ids=[case[0][:70] for case in IN_THE_WAY])
def test_what_is_in_the_way(
    command: str,
    code: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    *first, last = command.split("; ")
    for line in first:
        subprocess.run(["bash", "-c", line], check=True)
    name, *words = shlex.split(last)
    try:
        answered: object = {"mxsweep": main, "collect": collect}[name](words)
    except SystemExit as end:  # of argparse
        answered = end.code
    captured = capsys.readouterr()
    said = captured.out + captured.err
    assert answered == code, said
    assert message in said
    assert not any(word in said for word in JARGON)


# None: a folder takes the file's place.
DAMAGE = [
    "", "{", "[]", "null", "1", '"x"', "\0\0\0", "[" * 100_000, '{"schema": 1}', '{"schema": 2}', '{"schema": null}',
    '{"schema": 1, "commands": [], "runs": []}', '{"schema": 1, "commands": {}, "runs": 3}', '{"schema": NaN}',
    '{"schema": 1, "commands": [1], "runs": [1]}', '{"schema": 1, "commands": [{"overrides": 1}], "runs": []}',
    '{"schema": 1, "commands": [{"overrides": [1]}], "runs": []}',
    '{"schema": 1, "commands": [{"overrides": [], "config_dir": "/nowhere"}], "runs": []}',
    '{"schema": 1, "commands": [{"overrides": [], "config_dir": 3}], "runs": []}',
    '{"schema": 1, "commands": [], "runs": [{"run_id": 1, "folder": 2, "config_hash": 3, "overrides": 4}]}', None,
]  # fmt: skip


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("names", "damages"),
    [
        *((("sweep.json",), (damage,)) for damage in DAMAGE),
        *((("result.json",), DAMAGE[first : first + 2]) for first in range(0, len(DAMAGE), 2)),  # of each run another
        # Apart, as what is damaged in one may end a command before it reads the other.
        *(
            (names, (damage,))
            for names in ((".claim", ".sweep.lock"), (".hydra/overrides.yaml",))
            for damage in ("\0", "[]", None)
        ),
    ],
    ids=lambda texts: " ".join(repr(text)[:50] for text in texts),
)
def test_damaged_files_are_no_traceback(
    names: tuple[str, ...],
    damages: Sequence[str | None],
    done_sweep: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(written_report, "draw_figures", lambda *_: {})
    shutil.copytree(done_sweep, "s")
    paths = [path for name in names for path in (Path("s") / name, *sorted(Path("s").glob(f"*bs*/{name}")))]
    for path, damage in zip(filter(Path.exists, paths), cycle(damages), strict=False):
        path.unlink()
        if damage is None:
            path.mkdir()
        else:
            path.write_text(damage)
    capsys.readouterr()
    commands = (
        lambda: main(["resume=true", "hydra.sweep.dir=s"]),
        lambda: main(["-m", "resume=true", "hydra.sweep.dir=s", "block_size=16,64"]),
        lambda: collect(["--status", "s"]),
        lambda: collect(["s"]),
    )
    for command in commands:
        code = command()
        captured = capsys.readouterr()
        said = captured.out + captured.err
        assert code in (0, 1, 2), said
        assert not any(word in said for word in JARGON), said
        # Runs that are left out are named before the others are done.
        assert code == 0 or any(line.startswith("mxsweep") for line in captured.err.splitlines()), said


def test_a_hub_that_does_not_answer_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def asking(config: Any, progress: Any, overrides: Any) -> RunResult:
        hub = logging.getLogger("huggingface_hub.utils._http")
        for attempt in range(1, 6):
            hub.warning("'[Errno -2] Name or service not known' thrown while requesting HEAD https://huggingface.co/x")
            hub.warning(f"Retrying in 1s [Retry {attempt}/5].")
        hub.warning("a warning of another kind")
        return evaluated(config, progress)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(evaluation, "evaluate_config", asking)
    assert main(["-m", "block_size=16,32"]) == 0
    said = capsys.readouterr().err
    assert said.count("the hub does not answer") == 1
    assert "Retrying" not in said
    assert "a warning of another kind" in said


@pytest.mark.parametrize("row", ['{"text": null}', '{"text": 3}', '{"text": ["a"]}'])
@pytest.mark.usefixtures("quick")
def test_a_later_row_without_text_is_shown_when_planned(row: str, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "a cat sat"}\n\n' + row)
    answer = check(["task=lambada_openai", f"task.data={tmp_path / 'rows.jsonl'}"])
    assert answer.code == 2 and answer.left == []  # when planned, though it is not the first row
    assert f"line 3: the field 'text' is {row[9:-1]}; allowed: text, in quotes" in answer.err


@pytest.mark.usefixtures("quick")
def test_a_folder_without_weights_is_not_loaded(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    answer = check(["model=hf", f"model.path={tmp_path}"])
    assert "is a folder without weights; give one that holds a model.safetensors" in answer.err
    (tmp_path / "model.safetensors").touch()
    assert "model.safetensors is empty" in check(["model=hf", f"model.path={tmp_path}"]).err
    save_file({"w": torch.zeros(1)}, tmp_path / "model.safetensors")
    assert check(["model=hf", f"model.path={tmp_path}"]).code == 0


@pytest.mark.usefixtures("quick")
def test_a_sweep_of_which_nothing_asked_for_can_be_does_not_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = check(["-m", "custom_cuda=true", "block_size=16,32"])
    assert answer.code == 2 and answer.left == []  # though its baseline could be
    assert answer.err.startswith("mxsweep: custom_cuda: true cannot be had here")
    mixed = check(["-m", "custom_cuda=true,false", "block_size=16"])
    assert mixed.code == 1 and mixed.left == ["multirun"]
