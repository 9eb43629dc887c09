"""The tensors of a run, read back from diagnostics.parquet."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from mxsweep.results.record import DIAGNOSTICS_NAME, RunFolder
from mxsweep.results.tensor_errors import read_tensors

MODULES = ["h.0.attn.c_proj", "h.0.mlp.c_proj", "lm_head"]


def write(folder: Path, **more: list[object]) -> None:
    numbers = {"elements": 64, "blocks": 2, "sqnr_db": 18.0, "saturated": 1, "flushed": 2, "clamped": 0}
    table = pd.DataFrame({"kind": "weight", "module": MODULES, "layer": [0, 0, None], **numbers, **more})
    table.astype({"layer": "Int64"}).to_parquet(folder / DIAGNOSTICS_NAME, index=False)


def test_parts_are_those_that_the_run_wrote(tmp_path: Path) -> None:
    write(tmp_path, part=["attn.c_proj", "mlp.c_proj", "lm_head"], role=["other", "other", "head"])
    tensors = read_tensors(RunFolder(tmp_path, "done", None))
    assert [tensor.part for tensor in tensors] == ["attn.c_proj", "mlp.c_proj", "lm_head"]
    assert [tensor.layer for tensor in tensors] == [0, 0, None]


def test_files_of_earlier_versions_are_read_without_parts(tmp_path: Path) -> None:
    write(tmp_path)
    tensors = read_tensors(RunFolder(tmp_path, "done", None))
    assert [tensor.part for tensor in tensors] == ["c_proj", "c_proj", "lm_head"]


def test_a_part_that_is_no_text_makes_the_file_no_diagnostics(tmp_path: Path) -> None:
    write(tmp_path, part=[1, 2, 3])
    assert read_tensors(RunFolder(tmp_path, "done", None)) == []
