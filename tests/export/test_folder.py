"""What says how a checkpoint is packed may be a stranger's: whatever stands in it, it is refused in a sentence."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from mxsweep.export.folder import read_manifest
from mxsweep.files.checkpoints import rotated_layer
from mxsweep.model.exported import load_exported
from mxsweep.terminal.errors import ConfigError

USUAL = {"target": "quark", "dtype": "bfloat16", "run_id": "a", "weights": {}}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"target": "nope"}, "target: 'nope' is not known; allowed: compressed-tensors, "),
        ({"target": 3}, "target: 3 is not known"),
        ({"target": ["quark"]}, "target: ['quark'] is not known"),
        ({"dtype": "nope"}, "dtype: 'nope' is not known; allowed: float32, bfloat16, float16"),
        ({"dtype": 3}, "dtype: 3 is not known"),
        ({"weights": {"a": 3}}, "weights: "),
        ({"weights": {"a": {"weight": "mxfp4", "activation": 3}}}, "weights: "),
        ({"weights": ["a"]}, "weights: "),
    ],
)
def test_what_makes_no_sense_is_refused_before_it_is_used(tmp_path: Path, changed: dict[str, Any], said: str) -> None:
    (tmp_path / "export.json").write_text(json.dumps(USUAL | changed))
    assert rotated_layer(tmp_path) is None
    with pytest.raises(ValueError, match=re.escape(said)):
        read_manifest(tmp_path)
    with pytest.raises(ConfigError, match=r"cannot be read as what mxsweep\.export wrote: .*" + re.escape(said)):
        load_exported(str(tmp_path), tmp_path, {}, {})


def test_what_makes_sense_is_read(tmp_path: Path) -> None:
    layers = {"a": {"weight": "mxfp4"}, "b": {"weight": "mxfp4", "activation": None}}
    (tmp_path / "export.json").write_text(json.dumps(USUAL | {"weights": layers}))
    assert read_manifest(tmp_path)["weights"] == layers
