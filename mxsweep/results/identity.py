"""Tell runs that evaluated the same model on the same data from runs whose names alone agree.

A record holds its run's identity: what its `config_hash` is the digest of, files by their content. Two runs may be
compared where the identities of model and data agree, whatever the two are called; and a run's own baseline is the one
whose hash is that of the run's identity with nothing quantized.

A record of an earlier version has no identity, only the hash. Its baselines are known by their hashes all the same;
its other runs follow the baselines that stand beside them under the same names, and go by their names where there is
none, or one that is of another model.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from mxsweep.files.digests import json_digest
from mxsweep.results.record import RunFolder
from mxsweep.results.rows import Row, label

MODEL = "model.digest"  # knobs of a row, beside those of its config: what the names below stand for
DATA = "task.digest"
CALIBRATION = "calibration.digest"
NAMES = {MODEL: ("model", "model.path", "model.revision"), DATA: ("task.data", "task.include_path")}
NOT_RECORDED = "not recorded"
_SHOWN_DIGITS = 12


def with_identities(rows: Sequence[Row]) -> list[Row]:
    """Return the rows with the digests of what they evaluated among their knobs, and "not recorded" for unknown ones.

    Rows all of which are of an earlier version come back as they are.
    """
    if not any(_identity(row.run) for row in rows):
        return list(rows)
    digests = [_digests(row) for row in rows]
    unknown = [index for index, known in enumerate(digests) if known is None]
    proven = _proven(rows, [index for index in unknown if rows[index].is_baseline])
    alike: dict[tuple[str, ...], list[int]] = {}
    for index in unknown:
        alike.setdefault(_names(rows[index]), []).append(index)
    for members in alike.values():
        baselines = [proven.get(index) for index in members if rows[index].is_baseline]
        shared = baselines[0] if baselines and all(each == baselines[0] for each in baselines) else None
        for index in members:
            digests[index] = proven.get(index, shared)
    return [replace(row, knobs=row.knobs | (known or _unknown(row))) for row, known in zip(rows, digests, strict=True)]


def is_own_baseline(baseline: Row, row: Row) -> bool:
    """Return whether a baseline is certainly the row's: the same model, data and conditions, nothing quantized."""
    identity = _identity(row.run)
    record = baseline.run.record or {}
    return identity is not None and _baseline_hash(identity, _noise(baseline.run)) == record.get("config_hash")


def baseline_hashes(run: RunFolder) -> set[str]:
    """Return the config_hash of the run's baseline, with its repeats under noise and without; none where unknown."""
    identity = _identity(run)
    return set() if identity is None else {_baseline_hash(identity, noise) for noise in (0, _noise(run))}


def comparable(row: Row, names: Iterable[str]) -> tuple[str, ...]:
    """Return what two rows have the same of that may be compared: the values of knobs, content in place of names."""
    known = {digest for digest in NAMES if row.knobs.get(digest, NOT_RECORDED) != NOT_RECORDED}
    if DATA not in row.knobs and MODEL in known:  # a task with data of its own
        known.add(DATA)
    by_content = {name for digest in known for name in NAMES[digest]}
    values = ["" if name in by_content else label(row.knobs.get(name)) for name in names if name not in NAMES]
    return (*values, *(str(row.knobs.get(digest, "")) for digest in NAMES))


def _identity(run: RunFolder) -> dict[str, Any] | None:
    """Return the identity in a run's record; None of an earlier version's."""
    identity = (run.record or {}).get("identity")
    return identity if isinstance(identity, dict) and isinstance(identity.get("model"), dict) else None


def _digests(row: Row) -> dict[str, str] | None:
    identity = _identity(row.run)
    return None if identity is None else _digests_of(identity, row.task)


def _digests_of(identity: dict[str, Any], task: str | None) -> dict[str, str]:
    # The dtype is a condition like any other, in a knob of its own.
    model = {name: value for name, value in identity["model"].items() if name != "dtype"}
    quantized = identity.get("quantized")
    digests = {MODEL: _short(model)}
    if (data := _data(identity, task)) is not None:
        digests[DATA] = _short(data)
    if isinstance(quantized, dict) and "calibration" in quantized:
        digests[CALIBRATION] = _short(quantized["calibration"])
    return digests


def _data(identity: dict[str, Any], task: str | None) -> Any:
    """Return the content of what a task reads: its file, the files that make it a task of one's own, or both."""
    data, own = identity.get("data"), identity.get("own_tasks")
    file = data.get(task) if isinstance(data, dict) else None
    if not isinstance(own, dict) or not own:
        return file
    files = own.get(task, own)  # of a task of a group, which has the group's name there, all there are
    return files if file is None else [file, files]


def _short(what: Any) -> str:
    return json_digest(what)[:_SHOWN_DIGITS]


def _unknown(row: Row) -> dict[str, str]:
    data = {DATA: NOT_RECORDED} if row.knobs.get("task.data") else {}
    return {MODEL: NOT_RECORDED, **data}


def _names(row: Row) -> tuple[str, ...]:
    """Return what an earlier version told models and data by."""
    return tuple(label(row.knobs.get(name)) for names in (*NAMES.values(), ("task", "limit")) for name in names)


def _proven(rows: Sequence[Row], baselines: Sequence[int]) -> dict[int, dict[str, str]]:
    """Return the digests of baselines of an earlier version, by index, whose hashes are of a model and data known here.

    All else that such a hash is of stands in the record's config.
    """
    known = [identity for row in rows if (identity := _identity(row.run))]
    evaluated = {
        json_digest([identity.get(part) for part in ("model", "data", "device")]): identity for identity in known
    }
    proven: dict[int, dict[str, str]] = {}
    for index in baselines:
        row = rows[index]
        record = row.run.record or {}
        for identity in evaluated.values():
            theirs = identity | _conditions(record["config"], identity)
            if _baseline_hash(theirs, _noise(row.run)) == record.get("config_hash"):
                proven[index] = _digests_of(theirs, row.task)
                break
    return proven


def _conditions(config: dict[str, Any], identity: dict[str, Any]) -> dict[str, Any]:
    """Return the parts of an identity that a record's config tells, the model's and the data's content being known."""
    model, task = (part if isinstance(part := config.get(name), dict) else {} for name in ("model", "task"))
    dtype = model.get("dtype")
    data = identity.get("data") or {}
    return {
        "model": identity["model"] | ({} if dtype in (None, "auto") else {"dtype": dtype}),
        "attention": model.get("attention"),
        "max_length": model.get("max_length"),
        "task": [task.get(name) for name in ("names", "num_fewshot", "apply_chat_template")],
        "data": {name: data.get(name) for name in task.get("data") or {}},
        "limit": config.get("limit"),
        "seed": config.get("seed"),
    }


def _baseline_hash(identity: dict[str, Any], noise: Any) -> str:
    """Return the config_hash of a run's baseline, which may have been asked for other notes."""
    rest = {name: value for name, value in identity.items() if name not in ("diagnostics", "noise")}
    return json_digest(rest | {"quantized": None} | ({"noise": noise} if noise else {}))


def _noise(run: RunFolder) -> Any:
    config = (run.record or {}).get("config") or {}
    noise = config.get("noise")
    return noise if isinstance(noise, int) else 0
