"""Reports name no home and no absolute folder of the machine that they were made on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.made_runs import put

from mxsweep.report.collection import collect
from mxsweep.report.shared_paths import shared_path, without_homes


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("model.path: /home/alice/m", "model.path: ~/m"),
        ("'/Users/alice/m' and /root/x", "'~/m' and ~/x"),
        ("<td>/home/alice</td>", "<td>~</td>"),
        (
            "../../home/alice/x /data/home/alice http://x/home/alice",
            "../../home/alice/x /data/home/alice http://x/home/alice",
        ),
        ("/me/private/x /me/privately", "~/x /me/privately"),
    ],
)
def test_homes(text: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/me/private")
    assert without_homes(text) == shown


def test_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert shared_path(Path("a/b")) == "a/b"
    assert shared_path(tmp_path / "a" / "b") == "a/b"
    assert shared_path("/x/y/z/run") == "z/run"


def test_reports_name_neither(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "alice"
    monkeypatch.setenv("HOME", str(home))
    put(home / "s" / "a", metrics={"story": {"acc": 0.5}}, model={"path": str(home / "model")})
    (home / "s" / "bad").mkdir()
    (home / "s" / "bad" / "result.json").write_text("{")
    command = {"overrides": ["limit=4"], "config_dir": str(home / "conf"), "cwd": str(home)}
    (home / "s" / "sweep.json").write_text(json.dumps({"schema": 1, "commands": [command], "runs": []}))
    assert collect(home / "s").unreadable == 1
    for name in ("report.html", "results.md", "results.tex"):
        content = (home / "s" / name).read_text(encoding="utf-8")
        assert str(tmp_path) not in content and "alice" not in content, name
    assert "s/bad" in (home / "s" / "report.html").read_text(encoding="utf-8")
