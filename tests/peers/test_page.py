"""docs/peers.md has the rows that are compared, and the versions are those that are installed to be compared with."""

import tomllib
from pathlib import Path

from peers.page import PAGE, beginning, reasons
from peers.rows import ROWS, VERSIONS

REPOSITORY = Path(__file__).resolve().parents[2]


def test_the_page_has_every_row_and_no_other() -> None:
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")][2:]
    assert [line[: len(beginning(row))] for line, row in zip(lines, ROWS, strict=True)] == list(map(beginning, ROWS))


def test_the_page_has_the_note_of_every_exemption() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert [reason for row in ROWS for reason in reasons(row) if f". {reason}\n" not in text] == []


def test_versions_are_those_of_the_extra() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pins = dict(pin.split("==") for pin in project["optional-dependencies"]["peers"])
    assert pins | {"gguf": VERSIONS["gguf"]} == VERSIONS  # which has an extra of its own
    constraints = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert {f"{peer}=={version}" for peer, version in VERSIONS.items()} <= set(constraints)
