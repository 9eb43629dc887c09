"""result.json: what is written is what is read, and no damage to one hides a run."""

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mxsweep.results import record as record_module
from mxsweep.results.record import (
    SCHEMA,
    RecordError,
    find_runs,
    natural_key,
    newest_sweep,
    read_record,
    write_record,
)


def minimal(**fields: Any) -> dict[str, Any]:
    return {"schema": SCHEMA, "status": "done", "run_id": "run", "config": {}, "metrics": {}} | fields


def start(folder: Path, *overrides: str) -> None:
    """What Hydra leaves when a run begins."""
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "overrides.yaml").write_text("".join(f"- {override}\n" for override in overrides))


def test_round_trip(tmp_path: Path) -> None:
    written = minimal(config={"block_size": [16, 16], "limit": None}, metrics={"story": {"acc": 0.1 + 0.2}})
    path = write_record(tmp_path / "new" / "folder", written)
    assert path == tmp_path / "new" / "folder" / "result.json"
    assert read_record(path) == written


def test_non_finite_numbers_survive_and_the_file_is_valid_json(tmp_path: Path) -> None:
    path = write_record(tmp_path, minimal(diagnostics={"list": [math.nan, math.inf, -math.inf, 1.5]}))

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    json.loads(path.read_text(), parse_constant=refuse)
    values = read_record(path)["diagnostics"]["list"]
    assert math.isnan(values[0])
    assert values[1:] == [math.inf, -math.inf, 1.5]


def test_scalars_and_paths_become_plain_json(tmp_path: Path) -> None:
    fields = {
        "a": np.int64(3),
        "b": np.float32("nan"),
        "c": np.bool_(True),
        "d": Path("x") / "y",
        "e": (1, 2),
    }
    read = read_record(write_record(tmp_path, minimal(environment=fields)))["environment"]
    assert math.isnan(read.pop("b"))
    assert read == {"a": 3, "c": True, "d": os.path.join("x", "y"), "e": [1, 2]}


def test_a_value_that_json_cannot_hold_is_named(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="cannot hold a set"):
        write_record(tmp_path, minimal(diagnostics={"x": {1, 2}}))
    assert list(tmp_path.iterdir()) == []


def test_a_failing_write_leaves_the_old_record_and_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_record(tmp_path, minimal(run_id="old"))

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(record_module.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_record(tmp_path, minimal(run_id="new"))
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]
    assert read_record(tmp_path / "result.json")["run_id"] == "old"


def test_a_record_is_as_readable_as_any_other_file(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("")
    path = write_record(tmp_path, minimal())
    assert path.stat().st_mode == (tmp_path / "other").stat().st_mode


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        pytest.param("", "not valid JSON", id="empty"),
        pytest.param('{"schema": 1, "sta', "not valid JSON", id="cut off"),
        pytest.param("[" * 100_000, "not valid JSON", id="nested too deep"),
        pytest.param("[1, 2]", "not a record", id="a list"),
        pytest.param('{"results": {}}', "not a record", id="another tool's"),
        pytest.param('{"schema": 99}', "schema 99", id="a later schema"),
        pytest.param(json.dumps(minimal(status="ok")), "status 'ok'", id="status"),
        pytest.param(json.dumps(minimal(run_id=None)), "run_id", id="run_id"),
        pytest.param(json.dumps(minimal(config=[])), "config", id="config"),
        pytest.param(json.dumps(minimal(metrics={"story": 1})), "metrics of story", id="metrics"),
        pytest.param(json.dumps(minimal(timing=[1])), "timing", id="timing"),
        pytest.param(json.dumps(minimal(overrides="x")), "overrides", id="overrides"),
    ],
)
def test_what_is_no_record_is_unreadable_and_says_why(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "result.json").write_text(text)
    with pytest.raises(RecordError, match=reason):
        read_record(tmp_path / "result.json")
    (run,) = find_runs([tmp_path])
    assert run.status == "unreadable"
    assert reason in (run.reason or "")


def test_bytes_that_are_no_text_are_unreadable(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_bytes(b"\xff\xfe\x00")
    assert find_runs(tmp_path)[0].status == "unreadable"


def test_every_state_of_a_run_is_found(tmp_path: Path) -> None:
    error = {"type": "ConfigError", "message": "block_size=-1"}
    write_record(tmp_path / "10", minimal(run_id="ten"))
    write_record(tmp_path / "9", minimal(run_id="nine", status="failed", error=error, overrides=["block_size=-1"]))
    start(tmp_path / "2", "block_size='16'", "scale_bits=6")
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "result.json").write_text("{")
    (tmp_path / "no run").mkdir()
    runs = find_runs([tmp_path])
    assert [(run.path.name, run.status) for run in runs] == [
        ("1", "unreadable"),
        ("2", "missing"),
        ("9", "failed"),
        ("10", "done"),
    ]
    assert [run.run_id for run in runs] == ["1", "2", "nine", "ten"]
    assert runs[1].overrides == ["block_size=16", "scale_bits=6"]
    assert "stopped or killed" in (runs[1].reason or "")
    assert runs[2].reason == "ConfigError: block_size=-1"
    assert runs[2].overrides == ["block_size=-1"]
    assert runs[3].reason is None


def test_a_run_found_twice_counts_once(tmp_path: Path) -> None:
    write_record(tmp_path / "a", minimal())
    assert len(find_runs([tmp_path, tmp_path / "a", tmp_path / "a" / ".." / "a"])) == 1


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        find_runs([tmp_path / "nowhere"])


def test_newest_sweep(tmp_path: Path) -> None:
    assert newest_sweep(tmp_path) is None
    write_record(tmp_path / "outputs" / "day" / "run", minimal())
    assert newest_sweep(tmp_path) == tmp_path / "outputs" / "day" / "run"
    for age, name in enumerate(("10-00", "09-00", "08-00")):
        sweep = tmp_path / "multirun" / "day" / name
        for job in ("0", "1"):
            written = write_record(sweep / job, minimal()).stat().st_mtime
        os.utime(sweep / "1" / "result.json", (written - 100 * age,) * 2)
        os.utime(sweep / "0" / "result.json", (written - 1000,) * 2)
        (sweep / "sweep.json").write_text("")
        os.utime(sweep / "sweep.json", (written - 1000,) * 2)
    (tmp_path / "sweep.json").write_text("")
    (tmp_path / "multirun" / "day" / "11-00").mkdir()  # a sweep that left no run
    assert newest_sweep(tmp_path) == tmp_path / "multirun" / "day" / "10-00"


def test_natural_key() -> None:
    assert sorted(["b", "16x16", "8", "a10", "a9", "16", ""], key=natural_key) == [
        "",
        "8",
        "16",
        "16x16",
        "a9",
        "a10",
        "b",
    ]
