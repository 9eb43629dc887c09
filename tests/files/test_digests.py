"""Digests of files: their content, read once, kept in the cache folder for as long as it is surely the same."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mxsweep.files import digests


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache folder of the test's own, in which every file counts as large and as settled."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(digests, "LARGE_BYTES", 0)
    monkeypatch.setattr(digests, "_TICK_NS", -1)
    monkeypatch.setattr(digests, "_kept", {})
    yield tmp_path / "cache" / "mxsweep" / "digests.json"


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files read from here on."""
    names: list[str] = []
    read = digests._read

    def noting(path: str) -> Any:
        names.append(Path(path).name)
        return read(path)

    monkeypatch.setattr(digests, "_read", noting)
    return names


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_digests_are_sha256_and_in_order(tmp_path: Path) -> None:
    contents = [b"", b"a", b"b" * (2**20 + 1), b"a"]
    files = [tmp_path / str(number) for number in range(len(contents))]
    for file, content in zip(files, contents, strict=True):
        file.write_bytes(content)
    assert digests.file_digests([*files, files[1]]) == [*map(sha256, contents), sha256(b"a")]
    assert digests.file_digests([]) == []


def test_a_large_file_is_read_once(
    cache: Path, reads: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "large"
    file.write_bytes(b"12")
    for _ in range(2):
        assert digests.file_digests([file]) == [sha256(b"12")]
    monkeypatch.setattr(digests, "_kept", {})  # another process
    assert digests.file_digests([file]) == [sha256(b"12")]
    assert reads == ["large"]
    status = file.stat()
    file.write_bytes(b"34")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))  # the same size and time of modification
    assert digests.file_digests([file]) == [sha256(b"34")]
    file.rename(tmp_path / "moved")
    assert digests.file_digests([tmp_path / "moved"]) == [sha256(b"34")]
    assert reads == ["large", "large", "moved"]
    assert [path.name for path in cache.parent.iterdir()] == [cache.name]


def test_a_small_file_is_read_once_a_process(
    cache: Path, reads: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digests, "LARGE_BYTES", 3)
    (tmp_path / "small").write_bytes(b"12")
    for _ in range(2):
        digests.file_digests([tmp_path / "small"])
    assert reads == ["small"] and not cache.exists()


def test_the_digest_of_a_file_just_written_is_not_kept(
    cache: Path, reads: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digests, "_TICK_NS", 10**12)
    (tmp_path / "new").write_bytes(b"12")
    for _ in range(2):
        digests.file_digests([tmp_path / "new"])
    assert reads == ["new", "new"] and not cache.exists()


@pytest.mark.parametrize(
    "damage", ["", "{", "[1]", "null", "\xff\xfe", '{"FILE": 3}', '{"FILE": [1, 2, 3]}', "[" * 100_000]
)
def test_a_damaged_cache_costs_time_only(
    cache: Path, reads: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    file = tmp_path / "large"
    file.write_bytes(b"12")
    cache.parent.mkdir(parents=True)
    cache.write_bytes(damage.replace("FILE", str(file)).encode("latin-1"))
    assert digests.file_digests([file]) == [sha256(b"12")]
    monkeypatch.setattr(digests, "_kept", {})
    assert digests.file_digests([file]) == [sha256(b"12")]
    assert reads == ["large"]


@pytest.mark.parametrize("number", [0, 1, 2, 3])
def test_a_cached_digest_holds_for_the_same_stamp_only(
    cache: Path, reads: list[str], tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "large"
    file.write_bytes(b"12")
    digests.file_digests([file])
    entries = json.loads(cache.read_text())
    entries[str(file)][number] += 1
    entries[str(file)][4] = "0" * 64
    cache.write_text(json.dumps(entries))
    monkeypatch.setattr(digests, "_kept", {})
    assert digests.file_digests([file]) == [sha256(b"12")]


def test_a_cache_that_cannot_be_written_costs_time_only(
    cache: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    (tmp_path / "large").write_bytes(b"12")
    assert digests.file_digests([tmp_path / "large"]) == [sha256(b"12")]
    assert "are not kept" in caplog.text


def test_the_cache_does_not_grow_without_end(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "_CACHED_FILES", 3)
    for number in range(5):
        (tmp_path / str(number)).write_bytes(b"12")
        digests.file_digests([tmp_path / str(number)])
    assert [Path(path).name for path in json.loads(cache.read_text())] == ["2", "3", "4"]


def test_processes_and_threads_at_once(cache: Path, tmp_path: Path) -> None:
    files = [tmp_path / str(number) for number in range(20)]
    for file in files:
        file.write_bytes(file.name.encode())
    code = (
        "import sys; from pathlib import Path; from mxsweep.files import digests as i\n"
        "i.LARGE_BYTES = 0; i._TICK_NS = -1\n"
        "for file in sys.argv[1:]: i.file_digests([Path(file)])"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code, *map(str, files)]) for _ in range(3)]
    threads = [threading.Thread(target=lambda: [digests.file_digests([file]) for file in files]) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [process.wait(timeout=60) for process in processes] == [0, 0, 0]
    kept = json.loads(cache.read_text())
    assert kept and all(entry[4] == sha256(Path(path).name.encode()) for path, entry in kept.items())
    assert [path.name for path in cache.parent.iterdir()] == [cache.name]
