"""sweep.json: everything that was planned, by whomever, and one message where it is damaged."""

from __future__ import annotations

import json
import multiprocessing
import os
from pathlib import Path

import pytest

from mxsweep.__main__ import main
from mxsweep.results.manifest import (
    MANIFEST_NAME,
    SCHEMA,
    Command,
    Manifest,
    ManifestError,
    ManifestRun,
    merge_manifest,
    read_manifest,
)


def planned(name: str, *overrides: str, same: list[list[str]] | None = None) -> ManifestRun:
    return ManifestRun(f"stamp_{name}", f"stamp_{name}", f"hash of {name}", list(overrides), same or [])


def test_round_trip(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "sweep"
    command = Command(["block_size=16,32", "task='ä b'"], "/some/folder")
    runs = [planned("a", "block_size=16", same=[["block_size=auto"]]), planned("b", "block_size=32")]
    written = merge_manifest(folder, command, runs)
    assert written == Manifest([command], runs) == read_manifest(folder)
    content = json.loads((folder / MANIFEST_NAME).read_text())
    assert content["schema"] == SCHEMA


def test_no_manifest(tmp_path: Path) -> None:
    assert read_manifest(tmp_path) is None
    assert read_manifest(tmp_path / "nowhere") is None


def test_runs_keep_their_folders_and_new_ones_are_added(tmp_path: Path) -> None:
    first = merge_manifest(tmp_path, Command(["seed=1"]), [planned("a", "seed=1"), planned("b", "seed=2")])
    again = ManifestRun("later", "later", "hash of a", ["seed=1"], [["seed=01"]])
    merged = merge_manifest(tmp_path, Command(["seed=1,3"]), [again, planned("c", "seed=3")])
    assert [run.folder for run in merged.runs] == ["stamp_a", "stamp_b", "stamp_c"]
    assert [run.run_id for run in merged.runs] == ["stamp_a", "stamp_b", "stamp_c"]
    assert merged.runs[0].same == [["seed=01"]] and merged.runs[1] == first.runs[1]
    assert merged.commands == [Command(["seed=1"]), Command(["seed=1,3"])]
    assert read_manifest(tmp_path) == merged


def test_what_changes_nothing_writes_nothing(tmp_path: Path) -> None:
    runs = [planned("a", "seed=1", same=[["seed=01"]])]
    before = merge_manifest(tmp_path, Command(["seed=1"]), runs)
    written = (tmp_path / MANIFEST_NAME).stat()
    assert merge_manifest(tmp_path, Command(["seed=1"]), runs) == before
    assert merge_manifest(tmp_path, None, []) == before
    now = (tmp_path / MANIFEST_NAME).stat()
    assert (now.st_ino, now.st_mtime_ns) == (written.st_ino, written.st_mtime_ns)


def merge_many(folder: Path, name: str, count: int) -> None:
    for number in range(count):
        merge_manifest(
            folder, Command([f"{name}={number}"]), [planned(f"{name}{number}"), planned(f"shared{number}", name)]
        )


def test_processes_that_merge_at_once_lose_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=merge_many, args=(tmp_path, name, 12)) for name in "abcd"]
    for process in processes:
        process.start()
    while any(process.is_alive() for process in processes):
        read_manifest(tmp_path)  # whole at any time, or this would raise
    assert [process.exitcode for process in processes] == [0] * 4
    manifest = read_manifest(tmp_path)
    assert manifest is not None
    expected = {f"stamp_{name}{number}" for name in (*"abcd", "shared") for number in range(12)}
    assert {run.run_id for run in manifest.runs} == expected and len(manifest.runs) == len(expected)
    assert sorted(command.overrides[0] for command in manifest.commands) == sorted(
        f"{name}={number}" for name in "abcd" for number in range(12)
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == [".sweep.lock", MANIFEST_NAME]


RUN = {"run_id": "a", "folder": "a", "config_hash": "0", "overrides": []}
DAMAGED = {
    "empty": "",
    "half": '{"schema": 1, "comm',
    "a list": "[]",
    "text": '"sweep"',
    "null": "null",
    "no runs": '{"schema": 1, "commands": []}',
    "no schema": '{"commands": [], "runs": []}',
    "another schema": '{"schema": 99, "commands": [], "runs": []}',
    "runs are no list": '{"schema": 1, "commands": [], "runs": 3}',
    "a run is no mapping": '{"schema": 1, "commands": [], "runs": ["a"]}',
    "a run without a folder": '{"schema": 1, "commands": [], "runs": [{"run_id": "a"}]}',
    "a run with more": json.dumps({"schema": 1, "commands": [], "runs": [RUN | {"color": "red"}]}),
    "a folder that is a number": json.dumps({"schema": 1, "commands": [], "runs": [RUN | {"folder": 3}]}),
    "a command that is a text": '{"schema": 1, "commands": ["seed=1"], "runs": []}',
    "a command whose overrides are a text": '{"schema": 1, "commands": [{"overrides": "seed=1"}], "runs": []}',
    "not UTF-8": b"\xff\xfe\xfa",
    "nested too deep": "[" * 100_000,
}


@pytest.mark.parametrize("damage", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_manifest_gives_one_message_and_is_not_written_over(
    damage: str | bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / MANIFEST_NAME
    content = damage if isinstance(damage, bytes) else damage.encode()
    path.write_bytes(content)
    with pytest.raises(ManifestError) as caught:
        read_manifest(tmp_path)
    assert str(caught.value).startswith(f"{path}: ")
    with pytest.raises(ManifestError):
        merge_manifest(tmp_path, Command(["seed=1"]), [planned("a")])
    for arguments in (["resume=true"], ["-m", "seed=1,2"], ["-m", "seed=1,2", "resume=true"]):
        assert main([*arguments, f"hydra.sweep.dir={tmp_path}"]) == 2
        said = capsys.readouterr()
        assert said.out == "" and said.err.count("\n") == 1
        assert said.err.startswith(f"mxsweep: hydra.sweep.dir: {path}: ")
    assert path.read_bytes() == content


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_manifest_that_may_not_be_read(tmp_path: Path) -> None:
    (tmp_path / MANIFEST_NAME).touch(mode=0)
    with pytest.raises(ManifestError, match="cannot be read: Permission denied"):
        read_manifest(tmp_path)


def test_a_manifest_that_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / MANIFEST_NAME).mkdir()
    with pytest.raises(ManifestError, match="cannot be read: Is a directory"):
        read_manifest(tmp_path)
