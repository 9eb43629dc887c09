"""Keep on disk what takes minutes to work out, under a hash of everything that it depends on: artefacts.

An artefact is a folder with parts, each a file that is whole or absent, so that work which was interrupted goes on
where it was. Parts are in the folder `artefacts` of the cache folder, which may be removed at any
time. A cache that cannot be used costs the work again, and a warning; never a run.

Beside its parts an artefact keeps what they cost to work out, so that a run that finds them kept can say it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from mxsweep.files.atomic import write_atomically
from mxsweep.files.cache import cache_folder
from mxsweep.files.digests import json_digest
from mxsweep.files.locks import CLAIM_NAME, Lock, holder, this_process

log = logging.getLogger(__name__)

T = TypeVar("T")

KEY_FILE = "key.json"
_COST = "cost"  # the part that holds it
_WAIT_S = 0.2  # between two looks at a lock that another process holds
_DIGEST = "sha256"


@dataclass(frozen=True)
class Cost:
    """Hold what parts cost to work out: seconds, and the most bytes of GPU memory; 0 where that is not known."""

    seconds: float = 0.0
    peak_gpu_bytes: int = 0

    def and_then(self, other: Cost) -> Cost:
        """Return the cost of both, one after the other."""
        return Cost(self.seconds + other.seconds, max(self.peak_gpu_bytes, other.peak_gpu_bytes))


class Artefact:
    """Keep the parts of one piece of work, by name: mappings of tensors, and plain data.

    Use it as ::

        with artefact.lock():
            for layer in layers:
                weights = artefact.load(layer)
                if weights is None:
                    artefact.save(layer, weights := work_out(layer))

    Args:
        key: everything that the parts depend on, the version of the code included; plain data.
        peak_gpu_bytes: returns the most bytes of GPU memory that the work has taken since it began.
        warned_of: the kinds of artefacts of which it was said that they cannot be kept, and is not said again; this
            one's is added.

    Attributes:
        digest: SHA-256 (hex) of the key.
        folder: where the parts are; None where there is no place for them.
        kept: what the parts cost that were there when the artefact was locked.
        waited: seconds for which another process had it then.
    """

    def __init__(
        self,
        key: Mapping[str, Any],
        peak_gpu_bytes: Callable[[], int] = lambda: 0,
        warned_of: set[str] | None = None,
    ) -> None:
        self._key = dict(key)
        self.digest = json_digest(self._key)
        self.kept = Cost()
        self.waited = 0.0
        self._peak_gpu_bytes = peak_gpu_bytes
        self._cost = Cost()
        self._since: float | None = None  # when the work began whose cost is not in the above; None outside of the lock
        self._warned_of = set() if warned_of is None else warned_of
        self.folder: Path | None
        try:
            self.folder = cache_folder("artefacts") / self.digest
        except OSError as error:
            self.folder = None
            self._cannot_be_kept(error)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the artefact: another process waits here, and finds everything done afterwards.

        Not to be entered twice by one process at a time. Where locks cannot be had, nobody waits: work may then be done
        twice, and each part is whole all the same.
        """
        lock = None
        asked = time.perf_counter()
        if self.folder is not None:
            try:
                lock = self._wait(self.folder)
                lock.write(this_process())
                self._tidy(self.folder)
            except OSError as error:
                self._cannot_be_kept(error)
        self.kept = self._cost = self._kept_cost()
        self._since = time.perf_counter()
        self.waited = self._since - asked
        try:
            yield
        finally:
            self._since = None
            if lock is not None:
                lock.release()

    def take_over(self, other: Artefact) -> None:
        """Count what the kept parts of another cost, of which this one is made anew, and not for how long it waited.

        What this one's own parts cost is not counted: made anew, they are of no use.
        """
        self.kept = self._cost = other.kept
        self.waited += other.waited
        if self._since is not None:
            self._since += other.waited

    def load(self, name: str) -> dict[str, Tensor] | None:
        """Return the tensors of a part, on the CPU, as they were saved; None if there are none, or they are damaged."""
        return self._read(f"{_checked(name)}.safetensors", _read_tensors)

    def save(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep tensors, of any device and dtype, as a part; in the place of what was there."""
        copies = {key: _copy(tensor) for key, tensor in tensors.items()}

        def content() -> bytes:
            return safetensors.torch.save(copies, metadata={_DIGEST: tensors_digest(copies)})

        self._add_cost()
        self._write(f"{_checked(name)}.safetensors", content)

    def load_json(self, name: str) -> Any | None:
        """Return the plain data of a part; None if there is none, or it is damaged."""
        return self._read(f"{_checked(name)}.json", _read_json)

    def save_json(self, name: str, value: Any) -> None:
        """Keep plain data as a part; tuples come back as lists, and keys of mappings as text."""
        self._add_cost()
        self._write_json(_checked(name), value)

    def _write_json(self, name: str, value: Any) -> None:
        plain = json.loads(json.dumps(value))
        kept = {_DIGEST: json_digest(plain), "value": plain}
        self._write(f"{name}.json", json.dumps(kept, indent=1).encode)

    def _add_cost(self) -> None:
        """Keep what the work cost since the last part, or since the artefact was locked: before the next part is."""
        if self._since is None:
            return
        now = time.perf_counter()
        self._cost = self._cost.and_then(Cost(now - self._since, self._peak_gpu_bytes()))
        self._since = now
        self._write_json(_COST, asdict(self._cost))

    def _kept_cost(self) -> Cost:
        kept = self._read(f"{_COST}.json", _read_json)
        return Cost(**kept) if isinstance(kept, dict) else Cost()  # of an earlier version there is none

    def _wait(self, folder: Path) -> Lock:
        """Return the lock, once nobody else has it. Raises OSError."""
        said = False
        while (lock := Lock.take(folder / CLAIM_NAME)) is None:
            if not said:
                who = holder(folder) or {}
                log.info(
                    "waiting for process %s on %s, which works on the same (%s)",
                    *(who.get("pid", "?"), who.get("host", "?"), self._title()),
                )
                said = True
            time.sleep(_WAIT_S)
        return lock

    def _tidy(self, folder: Path) -> None:
        """Remove what processes left that died while they wrote: whoever holds the lock is the only one who writes."""
        for file in folder.glob(".*.tmp"):
            file.unlink(missing_ok=True)

    def _read(self, file: str, read: Callable[[Path], T]) -> T | None:
        if self.folder is None:
            return None
        path = self.folder / file
        try:
            return read(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            log.warning("%s cannot be read and is made again: %s", path, error)
            return None
        except (ValueError, safetensors.SafetensorError) as error:
            log.warning("%s is damaged and made again: %s", path, " ".join(str(error).split())[:200])
            return None

    def _write(self, file: str, content: Callable[[], bytes]) -> None:
        if self.folder is None:
            return
        try:
            if not (self.folder / KEY_FILE).exists():  # for people
                write_atomically(self.folder / KEY_FILE, json.dumps(self._key, indent=1))
            write_atomically(self.folder / file, content())
        except OSError as error:
            self._cannot_be_kept(error)

    def _cannot_be_kept(self, error: Exception) -> None:
        """Warn, once: the parts that follow, and other artefacts of the kind, cannot be kept either."""
        kind = str(self._key.get("kind"))
        if kind not in self._warned_of:
            log.warning("%s is not kept, and worked out again next time: %s", self._title(), error)
        self._warned_of.add(kind)

    def _title(self) -> str:
        kind = self._key.get("kind")
        return f"artefact {kind}/{self.digest[:8]}" if isinstance(kind, str) else f"artefact {self.digest[:8]}"


def _checked(name: str) -> str:
    """Return a part's name if a file may have it. Raises ValueError."""
    taken = Path(KEY_FILE).stem, _COST
    if not re.fullmatch(r"\w[\w.-]*", name) or name in taken:
        raise ValueError(f"name={name!r}: must be of letters, digits and _.-, and none of {', '.join(taken)}")
    return name


def _copy(tensor: Tensor) -> Tensor:
    """Return a copy on the CPU, contiguous and in a storage by itself, as safetensors demands."""
    return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """Return SHA-256 (hex) of names, dtypes, shapes and values of contiguous tensors on the CPU."""
    content = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        content.update(repr((name, str(tensor.dtype), tuple(tensor.shape))).encode())
        content.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return content.hexdigest()


def _read_tensors(path: Path) -> dict[str, Tensor]:
    with path.open("rb"):  # which says in Python's own errors if it is not there
        pass
    with safetensors.safe_open(path, framework="pt") as file:
        # Copies, since a tensor of the file's own memory is lost with the file.
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - it is no mapping
        expected = (file.metadata() or {}).get(_DIGEST)
    if tensors_digest(tensors) != expected:  # safetensors checks sizes, not whether a bit flipped
        raise ValueError("it does not hold what was written")
    return tensors


def _read_json(path: Path) -> Any:
    kept = json.loads(path.read_bytes())
    if not isinstance(kept, dict) or "value" not in kept or kept.get(_DIGEST) != json_digest(kept["value"]):
        raise ValueError("it does not hold what was written")
    return kept["value"]
