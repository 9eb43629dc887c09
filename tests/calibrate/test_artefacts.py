"""Artefacts: exact, whole or absent, worked out once however many processes ask, and never a reason to fail."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from mxsweep.calibrate.artefacts import Artefact, Cost
from mxsweep.files.digests import json_digest
from mxsweep.files.locks import CLAIM_NAME, Lock, is_held, this_process

pytestmark = pytest.mark.usefixtures("own_cache")

DTYPES = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2),
    *(torch.int64, torch.int8, torch.uint8, torch.bool),
)
KEY = {"kind": "test", "model": "abc", "settings": {"damping": 0.01}}

# Works out three parts, each slowly, and notes which; told a part, dies in the middle of writing it.
WORKER = """
import logging, os, signal, sys, time
from pathlib import Path
import torch
import mxsweep.calibrate.artefacts as cache
log, dies_at = Path(sys.argv[1]), sys.argv[2]
logging.basicConfig(level=logging.INFO, format="%(message)s")
artefact = cache.Artefact({"kind": "weights", "n": 1})
replace = os.replace
def dying(source, target):
    if Path(target).name == dies_at + ".safetensors":
        os.truncate(source, os.path.getsize(source) // 2)
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)
os.replace = dying
print("ready", flush=True)
sys.stdin.readline()
with artefact.lock():
    for index in range(3):
        name = f"part_{index}"
        found = artefact.load(name)
        if found is None:
            with log.open("a") as file:
                file.write(f"{os.getpid()} {name}\\n")
            time.sleep(0.3)
            found = {"w": torch.full((4, 5), float(index))}
            artefact.save(name, found)
        assert torch.equal(found["w"], torch.full((4, 5), float(index)))
print("done", flush=True)
"""


def started(log: Path, dies_at: str = "never") -> subprocess.Popen[str]:
    """A worker that has imported everything and waits for a line."""
    worker = subprocess.Popen(
        [sys.executable, "-c", WORKER, str(log), dies_at],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert worker.stdout is not None and worker.stdout.readline() == "ready\n"
    return worker


def made(log: Path) -> list[str]:
    return [line.split()[1] for line in log.read_text().splitlines()]


def damages(caplog: pytest.LogCaptureFixture) -> int:
    return sum("is damaged and made again" in record.getMessage() for record in caplog.records)


def test_the_folder_follows_from_the_key(tmp_path: Path) -> None:
    artefact = Artefact(KEY)
    folder = tmp_path / "cache" / "mxsweep" / "artefacts"
    assert artefact.digest == json_digest(KEY) and artefact.folder == folder / artefact.digest
    assert Artefact(dict(reversed(KEY.items()))).digest == artefact.digest
    assert Artefact(KEY | {"model": "abd"}).digest != artefact.digest
    assert not folder.exists()  # nothing is written before there is something


def test_the_folder_without_xdg_is_in_the_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    artefact = Artefact(KEY)
    assert artefact.folder == tmp_path / ".cache" / "mxsweep" / "artefacts" / artefact.digest


@pytest.mark.parametrize("dtype", DTYPES)
def test_tensors_come_back_exactly(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    bits = torch.randint(0, 256, (6, 8 * dtype.itemsize), dtype=torch.uint8)
    whole = bits > 127 if dtype == torch.bool else bits.view(dtype)  # NaNs and infinities among them
    parts = {"whole": whole, "turned": whole.T, "rows": whole[1::2], "none": whole[:0], "one": whole[0, 0]}
    artefact = Artefact(KEY)
    assert artefact.load("part") is None
    artefact.save("part", parts)
    found = Artefact(KEY).load("part")
    assert found is not None and found.keys() == parts.keys()
    for name, expected in parts.items():
        assert found[name].dtype == dtype and found[name].shape == expected.shape
        assert bytes_of(found[name]) == bytes_of(expected)


def bytes_of(tensor: Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def test_what_was_loaded_does_not_depend_on_the_file() -> None:
    artefact = Artefact(KEY)
    artefact.save("part", {"w": torch.ones(1000)})
    found = artefact.load("part")
    assert found is not None and artefact.folder is not None
    file = artefact.folder / "part.safetensors"
    file.write_bytes(bytes(file.stat().st_size))
    assert found["w"].sum() == 1000


def test_tensors_need_a_gradient_no_more_and_none_is_changed() -> None:
    artefact = Artefact(KEY)
    weight = torch.nn.Parameter(torch.ones(3))
    artefact.save("part", {"w": weight, "again": weight})
    found = artefact.load("part")
    assert found is not None and not found["w"].requires_grad and torch.equal(found["again"], torch.ones(3))
    assert weight.requires_grad


def test_an_empty_part_is_a_part() -> None:
    artefact = Artefact(KEY)
    artefact.save("part", {})
    assert artefact.load("part") == {}


def test_plain_data_comes_back() -> None:
    artefact = Artefact(KEY)
    value = {"losses": {"q": 0.1 + 0.2, "k": float("inf")}, "order": ["q", None, True], "text": "ä"}
    assert artefact.load_json("search") is None
    artefact.save_json("search", value)
    assert Artefact(KEY).load_json("search") == value
    artefact.save_json("search", {10: "ten", 9: (1, 2)})
    assert artefact.load_json("search") == {"10": "ten", "9": [1, 2]}


def test_the_key_stands_beside_the_parts_for_people() -> None:
    artefact = Artefact(KEY)
    artefact.save_json("search", 1)
    assert artefact.folder is not None
    assert json.loads((artefact.folder / "key.json").read_text()) == KEY


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "key", "a b"])
def test_a_name_is_a_file_of_the_folder(name: str) -> None:
    for act in (Artefact(KEY).load, Artefact(KEY).load_json, lambda name: Artefact(KEY).save(name, {})):
        with pytest.raises(ValueError, match="name="):
            act(name)


def test_a_key_is_plain_data() -> None:
    with pytest.raises(TypeError):
        Artefact({"model": torch.ones(1)})


def test_what_parts_cost_stays_beside_them(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, peaks = [0.0], [300]
    monkeypatch.setattr("mxsweep.calibrate.artefacts.time.perf_counter", lambda: clock[0])

    def work(seconds: float, *names: str) -> Artefact:
        artefact = Artefact(KEY, lambda: peaks[0])
        with artefact.lock():
            for name in names:
                clock[0] += seconds
                artefact.save_json(name, name)
            clock[0] += 100  # after the last part: of no part's cost
        return artefact

    assert work(2, "a", "b").kept == Cost()
    peaks[0] = 200
    assert work(3, "c").kept == Cost(4, 300)
    assert work(0).kept == Cost(7, 300)
    other = Artefact({"kind": "made of it"})
    with other.lock():
        other.take_over(work(0))
        clock[0] += 1
        other.save_json("d", 0)
    assert other.kept == Cost(7, 300)
    with other.lock():
        assert other.kept == Cost(7 + 100 + 1, 300)  # in the lock, what was locked meanwhile took its time, too
    with other.lock():  # whose work was interrupted between two parts, and begins again
        other.take_over(work(0))
        assert other.kept == Cost(7, 300)
        clock[0] += 1
        other.save_json("d", 0)
    with other.lock():
        assert other.kept == Cost(7 + 100 + 1, 300)


def test_waiting_for_another_process_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("mxsweep.calibrate.artefacts.time.perf_counter", lambda: clock[0])
    take = Lock.take

    def after_a_while(path: Path) -> Lock | None:
        clock[0] += 50
        return take(path)

    of_start, made = Artefact({"kind": "start"}), Artefact({"kind": "made of it"})
    with made.lock():
        monkeypatch.setattr(Lock, "take", after_a_while)
        with of_start.lock():
            clock[0] += 3
            of_start.save_json("a", 1)
        assert of_start.waited == 50
        made.take_over(of_start)
        clock[0] += 2
        made.save_json("b", 2)
        assert made.waited == 50
    for artefact, seconds in ((of_start, 3), (made, 5)):
        with artefact.lock():
            assert artefact.kept == Cost(seconds)


def test_a_cost_that_is_not_there_or_damaged_is_none() -> None:
    artefact = Artefact(KEY)
    with artefact.lock():
        artefact.save_json("a", 1)
    assert artefact.folder is not None
    for damage in (lambda file: file.write_text("{"), lambda file: file.unlink()):
        damage(artefact.folder / "cost.json")
        with artefact.lock():
            assert artefact.kept == Cost() and artefact.load_json("a") == 1
        (artefact.folder / "cost.json").write_text("[]")


def test_a_damaged_part_is_made_again(caplog: pytest.LogCaptureFixture) -> None:
    """Whatever is cut off and whatever byte is another: nothing but what was saved is ever loaded."""
    artefact = Artefact(KEY)
    saved = {"w": torch.arange(6, dtype=torch.float32), "b": torch.ones(2, dtype=torch.int8)}
    artefact.save("part", saved)
    assert artefact.folder is not None
    file = artefact.folder / "part.safetensors"
    content = file.read_bytes()
    changed = [content[:i] for i in range(len(content))]
    changed += [content[:i] + bytes([content[i] ^ 1 << i % 8]) + content[i + 1 :] for i in range(len(content))]
    changed += [content + b"\0", b"", b"\0" * len(content), b"\xff" * 8]
    refused = 0
    for damaged in changed:
        file.write_bytes(damaged)
        found = artefact.load("part")
        if found is None:
            refused += 1
        else:  # a byte of the header's padding or of the name of the digest
            assert found.keys() == saved.keys() and all(torch.equal(found[name], saved[name]) for name in saved)
    assert refused >= len(changed) - 8 and damages(caplog) == refused
    artefact.save("part", saved)
    assert artefact.load("part") is not None


def test_a_file_of_other_tensors_is_damaged(caplog: pytest.LogCaptureFixture) -> None:
    artefact = Artefact(KEY)
    artefact.save("part", {"w": torch.ones(2)})
    assert artefact.folder is not None
    safetensors.torch.save_file({"w": torch.zeros(2)}, artefact.folder / "part.safetensors")
    assert artefact.load("part") is None and damages(caplog) == 1


@pytest.mark.parametrize(
    "content", [b"", b"{", b"12", b'{"value": 1}', b'{"value": 2, "sha256": "00"}', b"\xff", b"[]"]
)
def test_damaged_plain_data_is_made_again(content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    artefact = Artefact(KEY)
    artefact.save_json("search", {"a": 1})
    assert artefact.folder is not None
    (artefact.folder / "search.json").write_bytes(content)
    assert artefact.load_json("search") is None and damages(caplog) == 1
    artefact.save_json("search", {"a": 1})
    assert artefact.load_json("search") == {"a": 1}


def test_a_folder_in_the_place_of_a_part_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    artefact = Artefact(KEY)
    assert artefact.folder is not None
    (artefact.folder / "part.safetensors").mkdir(parents=True)
    assert artefact.load("part") is None and "cannot be read and is made again" in caplog.text
    artefact.save("part", {"w": torch.ones(2)})
    assert "is not kept" in caplog.text
    assert not list(artefact.folder.glob(".*.tmp"))


def test_two_processes_work_out_each_part_once(tmp_path: Path) -> None:
    log = tmp_path / "log"
    workers = [started(log) for _ in range(2)]
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("go\n")
        worker.stdin.flush()
    heard = [worker.communicate(timeout=60) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], heard
    assert sorted(made(log)) == ["part_0", "part_1", "part_2"]
    assert len({line.split()[0] for line in log.read_text().splitlines()}) == 1  # all by the one who came first
    first = int(log.read_text().split()[0])
    waited = [errors for worker, (_, errors) in zip(workers, heard, strict=True) if worker.pid != first]
    host = this_process()["host"]
    assert waited[0].count("waiting for process") == 1
    assert f"waiting for process {first} on {host}" in waited[0] and "artefact weights/" in waited[0]


def test_a_process_that_dies_while_it_writes_leaves_what_is_whole(tmp_path: Path) -> None:
    log = tmp_path / "log"
    dies = started(log, dies_at="part_1")
    assert dies.communicate("go\n", timeout=60)[0] == "" and dies.returncode == -signal.SIGKILL
    folder = Artefact({"kind": "weights", "n": 1}).folder
    assert folder is not None and not is_held(folder / CLAIM_NAME)
    assert (folder / "part_0.safetensors").is_file() and not (folder / "part_1.safetensors").exists()
    assert len(list(folder.glob(".*.tmp"))) == 1  # the half that it wrote
    goes_on = started(log)
    said, errors = goes_on.communicate("go\n", timeout=60)
    assert said == "done\n" and "damaged" not in errors and goes_on.returncode == 0
    assert made(log) == ["part_0", "part_1", "part_1", "part_2"]
    assert not list(folder.glob(".*.tmp"))


def test_a_process_that_waits_goes_on_when_the_other_is_killed(tmp_path: Path) -> None:
    log = tmp_path / "log"
    dies, waits = started(log, dies_at="part_2"), started(log)
    assert dies.stdin is not None
    dies.stdin.write("go\n")
    dies.stdin.flush()
    while not log.exists():
        time.sleep(0.01)
    said, errors = waits.communicate("go\n", timeout=60)
    dies.communicate(timeout=60)
    assert said == "done\n" and f"waiting for process {dies.pid}" in errors
    assert made(log) == ["part_0", "part_1", "part_2", "part_2"]


def test_the_lock_is_given_back_after_an_error() -> None:
    artefact = Artefact(KEY)
    assert artefact.folder is not None
    for error in (OSError("of the work, not of the cache"), KeyboardInterrupt()):
        with pytest.raises(type(error)), artefact.lock():
            assert is_held(artefact.folder / CLAIM_NAME)
            raise error
        assert not is_held(artefact.folder / CLAIM_NAME)


def unusable(folder: Path) -> Artefact:
    """An artefact whose cache is a file, which nobody, the superuser included, can write into."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.write_text("no folder")
    return Artefact(KEY)


def test_a_cache_that_cannot_be_written_stops_nothing(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    artefact = unusable(tmp_path / "cache" / "mxsweep")
    done = False
    with artefact.lock():
        for index in range(3):
            assert artefact.load(f"part_{index}") is None
            artefact.save(f"part_{index}", {"w": torch.ones(1)})
            artefact.save_json(f"data_{index}", index)
            assert artefact.load_json(f"data_{index}") is None
        done = True
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert done and len(warnings) == 1 and "is not kept" in caplog.text


def test_without_a_home_nothing_is_kept(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", nowhere)
    artefact = Artefact(KEY)
    with artefact.lock():
        artefact.save("part", {"w": torch.ones(1)})
        assert artefact.load("part") is None and artefact.load_json("part") is None
    assert artefact.folder is None and caplog.text.count("is not kept") == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
def test_a_cache_that_may_only_be_read_is_read(caplog: pytest.LogCaptureFixture) -> None:
    artefact = Artefact(KEY)
    artefact.save("part", {"w": torch.ones(1)})
    assert artefact.folder is not None
    artefact.folder.chmod(0o500)
    try:
        again = Artefact(KEY)
        with again.lock():
            assert again.load("part") is not None
            again.save("other", {"w": torch.ones(1)})
    finally:
        artefact.folder.chmod(0o700)
    assert caplog.text.count("is not kept") == 1


def test_a_full_disk_leaves_what_was_there(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    artefact = Artefact(KEY)
    artefact.save("part", {"w": torch.ones(1)})

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    artefact.save("part", {"w": torch.zeros(1)})
    found = artefact.load("part")
    assert found is not None and found["w"].item() == 1 and "No space left on device" in caplog.text
    assert artefact.folder is not None and not list(artefact.folder.glob(".*.tmp"))


def test_a_file_system_without_locks_stops_nothing(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: Any) -> None:
        raise OSError(38, "this file system has no locks (flock); mount it with them")

    monkeypatch.setattr(Lock, "take", no_locks)
    artefact = Artefact(KEY)
    with artefact.lock():
        artefact.save("part", {"w": torch.ones(1)})
    assert artefact.load("part") is not None and "has no locks" in caplog.text
