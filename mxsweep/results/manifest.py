"""Keep the list of runs that a sweep was to do, `sweep.json`, written before its first run begins.

A run is known by its config_hash: that of what determines its result. Resuming a sweep, or running another command in
its folder, adds to the file; a run that is in it already keeps its folder.
"""

import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mxsweep.files.atomic import write_atomically
from mxsweep.files.locks import one_at_a_time
from mxsweep.files.regular import read_regular

SCHEMA = 1
MANIFEST_NAME = "sweep.json"
LOCK_NAME = ".sweep.lock"
MOST_BYTES = 256_000_000  # of a manifest; that of ten thousand runs has some millions
INVALID = "invalid-"  # in front of the hash of a run that cannot be, which is of its overrides


class ManifestError(ValueError):
    """Say why a file is no sweep.json, with the file's name."""


@dataclass(frozen=True)
class ManifestRun:
    """Describe a planned run.

    `folder` is relative to the sweep's; `same` holds the overrides of further runs that would be the same one.
    """

    run_id: str
    folder: str
    config_hash: str
    overrides: list[str]
    same: list[list[str]] = field(default_factory=list)

    @property
    def is_invalid(self) -> bool:
        """Return whether the run has no config, being impossible when it was planned."""
        return self.config_hash.startswith(INVALID)

    def __post_init__(self) -> None:
        _check_texts([self.run_id, self.folder, self.config_hash])
        if not is_below(self.folder):
            raise TypeError(f"{self.folder!r} is no folder below the sweep's")
        for words in (self.overrides, *self.same):
            _check_texts(words)


@dataclass(frozen=True)
class Command:
    """Hold what was typed to begin or extend a sweep: overrides, and the folder of further config groups."""

    overrides: list[str]
    config_dir: str | None = None
    cwd: str | None = None  # where it was typed, from which its relative paths go

    def __post_init__(self) -> None:
        _check_texts(self.overrides)
        _check_texts([self.config_dir or "", self.cwd or ""])


@dataclass(frozen=True)
class Manifest:
    """Hold a sweep's commands and the runs that they mean."""

    commands: list[Command]
    runs: list[ManifestRun]


def is_below(folder: str) -> bool:
    """Return whether a path is that of a folder below the sweep's, not hidden from who looks for results."""
    parts = Path(folder).parts
    return bool(parts) and "\0" not in folder and not any(part.startswith((".", "/")) for part in parts)


def _check_texts(words: Any) -> None:
    """Raise TypeError unless the words are texts: somebody may have edited the file."""
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise TypeError(f"{words!r} is no list of texts")


def read_manifest(folder: Path) -> Manifest | None:
    """Read the manifest of the sweep in `folder`; None if there is none. Raises ManifestError."""
    path = folder / MANIFEST_NAME
    try:
        content = json.loads(read_regular(path, MOST_BYTES))
        if content["schema"] != SCHEMA:
            raise ManifestError(f"{path}: schema {content['schema']!r}, and this version reads schema {SCHEMA}")
        runs = [ManifestRun(**run) for run in content["runs"]]
        return Manifest([Command(**command) for command in content["commands"]], runs)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ManifestError(f"{path}: cannot be read: {error.strerror}") from error
    except ManifestError:
        raise
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ManifestError(f"{path}: is no list of planned runs ({error})") from error


def merge_manifest(folder: Path, command: Command | None, runs: Iterable[ManifestRun]) -> Manifest:
    """Put `command` and `runs` into the manifest of the sweep in `folder`, and return the whole of it.

    Processes that do this at once do it one after the other. Raises ManifestError, and OSError.
    """
    with one_at_a_time(folder / LOCK_NAME):
        before = read_manifest(folder) or Manifest([], [])
        known = {run.config_hash: run for run in before.runs}
        for run in runs:
            old = known.get(run.config_hash)
            if old is not None:
                new = [words for words in run.same if words not in old.same]
                known[run.config_hash] = dataclasses.replace(old, same=old.same + new)
                continue
            # What could not be, and can now, takes the place of its own failure.
            for past in [other for other in known.values() if other.is_invalid and other.overrides == run.overrides]:
                del known[past.config_hash]
                run = dataclasses.replace(run, folder=past.folder)
            known[run.config_hash] = run
        commands = before.commands + ([command] if command is not None and command not in before.commands else [])
        after = Manifest(commands, list(known.values()))
        if after != before:
            content = {"schema": SCHEMA, **dataclasses.asdict(after)}
            write_atomically(folder / MANIFEST_NAME, json.dumps(content, indent=1) + "\n")
        return after
