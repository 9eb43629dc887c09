"""A folder that somebody else sent: nothing in it is run, whatever command is given in it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


def test_code_in_the_working_folder_is_not_imported(tmp_path: Path) -> None:
    trap = f"open({str(tmp_path / 'ran')!r}, 'w')"
    (tmp_path / "here" / "hydra_plugins").mkdir(parents=True)
    for name in ("pyarrow.py", "yaml.py", "argparse.py", "typing.py", "hydra_plugins/x.py"):
        (tmp_path / "here" / name).write_text(trap)
    for command in (["mxsweep", "dry_run=true"], ["mxsweep.collect", "--help"]):
        answer = subprocess.run(
            [sys.executable, "-m", *command],
            cwd=tmp_path / "here",
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert answer.returncode == 0, answer.stderr
        assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("folder", ["package", "other"])
def test_a_working_folder_with_the_package_in_it_stays(tmp_path: Path, folder: str) -> None:
    (tmp_path / "mxsweep").symlink_to(REPOSITORY / "mxsweep")
    (tmp_path / "mxsweep_words.py").write_text("")
    where = tmp_path if folder == "package" else tmp_path / "other"
    where.mkdir(exist_ok=True)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    answer = subprocess.run(
        [sys.executable, "-m", "mxsweep", "--version"],
        cwd=where,
        env=environment | ({} if folder == "package" else {"PYTHONPATH": str(tmp_path)}),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert answer.returncode == 0, answer.stderr
