"""Lists of planned runs that a stranger wrote: they are read, or refused in one message with the file's name."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers.hostile import VALUES, fuzzing, places, with_value
from helpers.made_runs import put
from hypothesis import given
from hypothesis import strategies as st

from mxsweep.__main__ import main
from mxsweep.report.status import status_text
from mxsweep.results.manifest import MANIFEST_NAME, Command, Manifest, ManifestError, ManifestRun, read_manifest
from mxsweep.results.manifest import merge_manifest as merge
from mxsweep.results.record import find_runs


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run is done, one is planned."""
    folder = tmp_path_factory.mktemp("sweep") / "s"
    put(folder / "done", format="none")
    runs = [
        ManifestRun("done", "done", "hash 0", ["format=none"]),
        ManifestRun("late", "late", "hash 1", ["block_size=16"], [["block_size=016"]]),
    ]
    merge(folder, Command(["block_size=16"], None, str(folder)), runs)
    return folder


# Words that a command may have been typed with, in the place of those that were.
WORDS = st.sampled_from(
    [
        "hydra.sweep.dir=/nowhere",
        "hydra.searchpath=[file:///nowhere]",
        "hydra/launcher=slurm",
        "++hydra.launcher.setup=[id]",
        "model.trust_remote_code=true",
        "model=../x",
        "block_size=${oc.env:HOME}",
        "block_size=range(0,1e12)",
        "task.data=/dev/zero",
        "a\nb=1",
        "\x1b[2J=1",
        "-m",
        "resume=true",
        "dry_run=false",
    ]
)


def changed(sweep: Path, folder: Path, data: Any) -> None:
    """Copy the sweep to a folder, and change what is anywhere in its manifest, or what bytes it has."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(sweep, folder)
    path = folder / MANIFEST_NAME
    content = json.loads(path.read_text())
    for _ in range(data.draw(st.integers(1, 3))):
        there = sorted((place for place in places(content) if place), key=str)
        place = data.draw(st.sampled_from(there))
        content = with_value(content, place, data.draw(VALUES | WORDS))
    written = bytearray(json.dumps(content).encode())
    for _ in range(data.draw(st.sampled_from([0, 0, 0, 1, 2]))):
        written[data.draw(st.integers(0, len(written) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(written)


@given(data=st.data())
@fuzzing(80)
def test_a_manifest_with_anything_anywhere_is_read_or_refused(sweep: Path, tmp_path: Path, data: Any) -> None:
    folder = tmp_path / "s"
    changed(sweep, folder, data)
    try:
        manifest = read_manifest(folder)
    except ManifestError as error:
        assert str(error).startswith(f"{folder / MANIFEST_NAME}: ")
    else:
        assert isinstance(manifest, Manifest)
        assert all((folder / run.folder).resolve().is_relative_to(folder.resolve()) for run in manifest.runs)
        json.dumps([run.overrides for run in manifest.runs])
    runs = find_runs(folder)
    assert "done" in [run.status for run in runs]  # whatever the manifest says of others
    status_text(runs)


@given(data=st.data())
@fuzzing(8)
def test_going_on_with_it_is_refused_in_a_line_or_planned(sweep: Path, tmp_path: Path, data: Any) -> None:
    folder = tmp_path / "s"
    changed(sweep, folder, data)
    before = sorted(tmp_path.rglob("*"))
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(["resume=true", f"hydra.sweep.dir={folder}", "dry_run=true"])
    assert code in (0, 2), err.getvalue()
    said = out.getvalue() + err.getvalue()
    assert said and "Traceback" not in said and not {*said} & {*map(chr, range(32))} - {"\n"}
    if not out.getvalue():
        assert err.getvalue().startswith("mxsweep: ") and code == 2
    assert sorted(tmp_path.rglob("*")) == before
