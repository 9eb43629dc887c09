"""Write and read the record that a run leaves, `result.json`, and find the folders that runs leave it in.

A record is written last and atomically, so a run is in one of five states:

    done         result.json says so
    failed       result.json says so, with the error
    running      a process works on it (see files/locks.py); an earlier failure may still be there
    missing      there is no result.json: planned (see manifest.py) and not begun, or begun, and stopped or killed
    unreadable   result.json is damaged, or is not a record of this schema

JSON has no NaN and no infinity. A record holds them as the strings "NaN", "Infinity" and "-Infinity",
which stay valid JSON for every reader, and `read_record` makes floats of them again. (A text that is
exactly one of these three strings would come back as a float, too; no field of a record is one.)
"""

import json
import math
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mxsweep.files.atomic import write_atomically
from mxsweep.files.locks import holder
from mxsweep.files.regular import read_regular
from mxsweep.results.manifest import MANIFEST_NAME, ManifestError, read_manifest

SCHEMA = 1
# What a run leaves in its folder.
RECORD_NAME = "result.json"
SAMPLES_NAME = "samples.parquet"
DIAGNOSTICS_NAME = "diagnostics.parquet"
NOISE_NAME = "noise.parquet"
CURVES_NAME = "curves.parquet"
ROLES_NAME = "roles.parquet"
LM_EVAL_NAME = "lm_eval.json"
LOG_NAME = "mxsweep.log"
HYDRA_FOLDER = ".hydra"
VALIDATION = "validation"  # the task under which a record has what a training measured on its held-out sequences
Folders = Path | str | Iterable[Path | str]  # one folder, or several
STATUSES = ("done", "failed", "running", "missing", "unreadable")

MOST_BYTES = 64_000_000  # of a record; that of a thousand layers has less than a million

_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class RecordError(ValueError):
    """Say why a result.json is no record, without the file's name."""


@dataclass(frozen=True)
class RunFolder:
    """Describe a folder that a run wrote to, and what became of the run."""

    path: Path
    status: str  # one of STATUSES
    record: dict[str, Any] | None = None  # of a done or failed run
    reason: str | None = None  # why the run is not done
    overrides: list[str] = field(default_factory=list)

    @property
    def run_id(self) -> str:
        """Return the record's run_id; of a run without a record the folder's name."""
        return self.record["run_id"] if self.record else self.path.resolve().name


def write_record(folder: Path | str, record: dict[str, Any]) -> Path:
    """Write `record` to `folder`/result.json so that a reader sees all of it or nothing."""
    text = json.dumps(_encode({"schema": SCHEMA, **record}), indent=2, allow_nan=False)
    path = Path(folder) / RECORD_NAME
    write_atomically(path, text + "\n")
    return path


def read_record(path: Path | str) -> dict[str, Any]:
    """Read the record in `path`, a result.json. Raises RecordError if it is not one."""
    try:
        record = _decode(json.loads(read_regular(Path(path), MOST_BYTES), parse_int=_whole))
    except OSError as error:
        raise RecordError(f"cannot be read: {error.strerror}") from error
    except RecordError:
        raise
    except (ValueError, RecursionError) as error:
        raise RecordError(f"not valid JSON: {error}") from error
    _check(record)
    return record


def find_runs(dirs: Folders) -> list[RunFolder]:
    """Find every run at or below `dirs`, begun or only planned, each once, in natural order of the folders' names.

    Raises FileNotFoundError for a folder that is not there. A sweep.json that cannot be read counts as an unreadable
    run.
    """
    runs: dict[Path, RunFolder] = {}
    begun, sweeps = _walk(dirs)
    planned: dict[Path, tuple[Path, list[str]]] = {}
    for path, named in sweeps.items():
        try:
            manifest = read_manifest(named)
        except ManifestError as error:
            runs[path / MANIFEST_NAME] = RunFolder(named, "unreadable", reason=str(error))
            continue
        for run in manifest.runs if manifest else []:
            planned[(named / run.folder).resolve()] = named / run.folder, run.overrides
    for path, named in begun.items():
        runs[path] = _open_run(named, planned.get(path, (named, []))[1])
    for path, (named, overrides) in planned.items():
        if path not in runs:
            runs[path] = RunFolder(named, "missing", reason="not begun", overrides=overrides)
    return sorted(runs.values(), key=lambda run: natural_key(str(run.path)))


def newest_sweep(root: Path | str = ".", *, only_sweeps: bool = False) -> Path | None:
    """Find the folder of the newest sweep below `root`/multirun or, if there is none, run below `root`/outputs.

    `only_sweeps` leaves out single runs. Newest is the one that was written to last; equal times (a copied tree) are
    told apart by name.
    """
    for base in (Path(root) / "multirun", Path(root) / "outputs"):
        begun, sweeps = _walk([base]) if base.is_dir() else ({}, {})
        written = {sweep: (sweep / MANIFEST_NAME).stat().st_mtime for sweep in sweeps.values()}
        for run in begun.values():
            sweep = next((folder for folder in (run, *run.parents) if folder in written), run)
            if sweep in written or not only_sweeps:
                written[sweep] = max(written.get(sweep, 0.0), _written_at(run))
        if written:
            return max(written, key=lambda sweep: (written[sweep], str(sweep)))
    return None


def natural_key(text: str) -> list[str | int]:
    """Return a sort key that puts "8" before "16": digits count as numbers."""
    return [int(part) if index % 2 else part for index, part in enumerate(re.split(r"([0-9]+)", text))]


def _encode(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _encode(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_encode(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, str | int | float | None):
        return value
    if hasattr(value, "item"):  # a numpy or torch scalar
        return _encode(value.item())
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"a record cannot hold a {type(value).__name__}: {value!r}")


def _decode(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _decode(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_decode(item) for item in value]
    return _NON_FINITE.get(value, value) if isinstance(value, str) else value


def _whole(text: str) -> int:
    """Return a whole number that every reader of results holds. Raises RecordError for one beyond an int64."""
    if len(text) > 20 or not -(2**63) <= (number := int(text)) < 2**63:
        raise RecordError(f"holds a whole number of {len(text.lstrip('-'))} digits, more than an int64 has room for")
    return number


def _check(record: Any) -> None:
    """Raise RecordError unless `record` has the fields, of the types, that its readers count on."""
    if not isinstance(record, dict) or "schema" not in record:
        raise RecordError("not a record of mxsweep: it has no schema")
    if record["schema"] != SCHEMA:
        raise RecordError(f"schema {record['schema']!r}, and this version reads schema {SCHEMA}")
    if record.get("status") not in ("done", "failed"):
        raise RecordError(f"status {record.get('status')!r}, expected 'done' or 'failed'")
    if not isinstance(record.get("run_id"), str):
        raise RecordError("run_id is missing or no text")
    for name in ("config", "metrics"):
        if not isinstance(record.get(name), dict):
            raise RecordError(f"{name} is missing or no mapping")
    for name in ("n_effective", "timing", "error"):
        if not isinstance(record.get(name) or {}, dict):
            raise RecordError(f"{name} is no mapping")
    if not isinstance(record.get("overrides") or [], list):
        raise RecordError("overrides is no list")
    for task, metrics in record["metrics"].items():
        if not isinstance(metrics, dict):
            raise RecordError(f"metrics of {task} are no mapping")


def _walk(dirs: Folders) -> tuple[dict[Path, Path], dict[Path, Path]]:
    """Find the folders of runs that began, and those of sweeps: resolved path to path as named."""
    begun: dict[Path, Path] = {}
    sweeps: dict[Path, Path] = {}
    for top in map(Path, [dirs] if isinstance(dirs, Path | str) else dirs):
        if not top.is_dir():
            raise FileNotFoundError(f"no such folder: {top}")
        for name, folders, files in os.walk(top):
            if RECORD_NAME in files or HYDRA_FOLDER in folders:
                begun.setdefault(Path(name).resolve(), Path(name))
            if MANIFEST_NAME in files:
                sweeps.setdefault(Path(name).resolve(), Path(name))
            folders[:] = [folder for folder in folders if not folder.startswith(".")]
    return begun, sweeps


def _open_run(path: Path, planned: list[str]) -> RunFolder:
    at_work = holder(path)
    if at_work is not None:
        return RunFolder(path, "running", reason=_who_works(at_work), overrides=planned or _hydra_overrides(path))
    if not (path / RECORD_NAME).exists():
        reason = "begun, and stopped or killed before it finished"
        return RunFolder(path, "missing", reason=reason, overrides=planned or _hydra_overrides(path))
    try:
        record = read_record(path / RECORD_NAME)
    except RecordError as error:
        return RunFolder(path, "unreadable", reason=str(error), overrides=planned or _hydra_overrides(path))
    overrides = [str(override) for override in record.get("overrides") or []]
    return RunFolder(path, record["status"], record, _failure_reason(record), overrides)


def _who_works(notes: dict[str, Any]) -> str:
    who = f"process {notes.get('pid', '?')} on {notes.get('host', '?')}"
    if phase := notes.get("phase"):
        share = _share(notes.get("done"), notes.get("total"))
        return f"{who}, {share} of {phase}" if share else f"{who}, {phase}"
    share = _share(notes.get("answered"), notes.get("requests"))
    return f"{who}, {share} answered" if share else who


def _share(done: Any, total: Any) -> str:
    """Return what a claim says of how much is done; nothing where it makes no sense."""
    if not all(isinstance(number, int | float) and 0 < number < 2**63 for number in (done, total)):
        return ""
    return f"{min(done / total, 1):.0%}"


def _failure_reason(record: dict[str, Any]) -> str | None:
    if record["status"] == "done":
        return None
    cause = record.get("error") or {}
    return ": ".join(str(cause[key]) for key in ("type", "message") if cause.get(key)) or "no reason recorded"


def _hydra_overrides(path: Path) -> list[str]:
    """Read the overrides that were noted when the run began; none if it came to nothing."""
    # One "- name=value" a line; not worth a YAML parser, which would take longer than the rest.
    try:
        content = read_regular(path / HYDRA_FOLDER / "overrides.yaml", MOST_BYTES)
        lines = content.decode("utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return []
    return [line[2:].strip().replace("'", "") for line in lines if line.startswith("- ")]


def _written_at(run: Path) -> float:
    record = run / RECORD_NAME
    return (record if record.exists() else run / HYDRA_FOLDER).stat().st_mtime
