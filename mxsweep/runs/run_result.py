"""Hold what came out of a run, and write what is left beside its record."""

from __future__ import annotations

import functools
import json
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mxsweep.files.atomic import write_atomically
from mxsweep.files.training_columns import ROLE_COLUMNS
from mxsweep.results.record import (
    CURVES_NAME,
    DIAGNOSTICS_NAME,
    LM_EVAL_NAME,
    NOISE_NAME,
    ROLES_NAME,
    SAMPLES_NAME,
)
from mxsweep.terminal.logged_warnings import LoggedWarnings

log = logging.getLogger(__name__)

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class RunFiles:
    """Hold what goes beside the record of a run.

    Attributes:
        samples: of samples.parquet, a row an example; None where that is a copy.
        lm_eval: lm-eval's own results, for lm_eval.json; None where it evaluated nothing.
        tensors: of diagnostics.parquet, a row a tensor; None where no diagnostics were taken.
        noise: of noise.parquet, a row an example and repeat; None without repeats.
        curve: of curves.parquet, a row a step; None where nothing was trained.
        roles: of roles.parquet, a row an operand or gradient and measured step; None where nothing was trained.
        texts: more files, path in the run's folder to content.
        copies: files of another run, which become this one's under their names.
    """

    samples: Rows | None
    lm_eval: Mapping[str, Any] | None = None
    tensors: Rows | None = None
    noise: Rows | None = None
    curve: Rows | None = None
    roles: Rows | None = None
    texts: Mapping[str, str] = field(default_factory=dict)
    copies: Sequence[Path] = ()

    def write(self, folder: Path) -> list[str]:
        """Write the files; return a warning for each that could not be: the metrics are in the record all the same."""
        warnings = LoggedWarnings(log)
        for name, content in self._contents().items():
            try:
                write_atomically(folder / name, content, durable=False)
            except (OSError, ValueError) as error:
                warnings.warn(f"{name} was not written: {type(error).__name__}: {error}")
        return warnings

    def _contents(self) -> dict[str, str | Callable[[Path], object]]:
        """Return the files' contents by their names, as :func:`write_atomically` takes them."""
        contents: dict[str, str | Callable[[Path], object]] = {
            path.name: functools.partial(shutil.copyfile, path) for path in self.copies
        }
        if self.samples is not None:
            contents[SAMPLES_NAME] = _parquet(self.samples)
        if self.lm_eval is not None:
            from lm_eval.utils import handle_non_serializable

            contents[LM_EVAL_NAME] = json.dumps(
                self.lm_eval, indent=2, default=handle_non_serializable, ensure_ascii=False
            )
        if self.tensors is not None:
            # Here, since it imports torch: whoever only starts runs, or waits for others', does without.
            from mxsweep.model.tensor_statistics import COLUMNS

            contents[DIAGNOSTICS_NAME] = _parquet(self.tensors, COLUMNS)
        if self.noise is not None:
            contents[NOISE_NAME] = _parquet(self.noise)
        if self.curve is not None:
            contents[CURVES_NAME] = _parquet(self.curve)
        if self.roles:
            contents[ROLES_NAME] = _parquet(self.roles, ROLE_COLUMNS)
        return contents | dict(self.texts)


@dataclass(frozen=True)
class RunResult:
    """Hold what came out of an evaluated config.

    Attributes:
        entries: of the run's record.
        device: of the record's ``environment``: where the model was, and in which dtype.
        files: what goes beside the record.
    """

    entries: dict[str, Any]
    device: dict[str, Any]
    files: RunFiles


def _parquet(rows: Rows, types: Mapping[str, str] | None = None) -> Callable[[Path], object]:
    """Return a function that writes rows as a Parquet file, under the columns of ``types`` where these are given."""
    import pandas as pd

    frame = pd.DataFrame(rows) if types is None else pd.DataFrame(rows, columns=list(types)).astype(dict(types))
    return lambda path: frame.to_parquet(path, index=False)
