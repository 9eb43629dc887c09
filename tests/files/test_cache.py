"""Where what can be made again is kept, and that nobody needs such a place."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mxsweep.files.cache import cache_folder


def test_the_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert cache_folder() == tmp_path / "cache" / "mxsweep"
    assert cache_folder("kernels") == tmp_path / "cache" / "mxsweep" / "kernels"
    for nothing in ("", None):
        monkeypatch.delenv("XDG_CACHE_HOME") if nothing is None else monkeypatch.setenv("XDG_CACHE_HOME", nothing)
        assert cache_folder("kernels") == tmp_path / "home" / ".cache" / "mxsweep" / "kernels"
    assert list(tmp_path.iterdir()) == []  # nothing is made before there is something to keep


def test_no_home_is_an_error_like_any_other_of_files(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", nowhere)
    with pytest.raises(OSError, match=r"^no folder to keep it in: .*Set HOME or XDG_CACHE_HOME$"):
        cache_folder()


def test_nothing_else_decides_where_caches_are_or_how_files_take_their_place() -> None:
    """One rule each: modules that wrote a second one would keep things elsewhere, or leave litter."""
    package = Path(__file__).parents[2] / "mxsweep"
    for module in package.rglob("*.py"):
        name, text = module.relative_to(package).as_posix(), module.read_text(encoding="utf-8")
        if name != "files/cache.py":
            assert "XDG_CACHE_HOME" not in text and "Path.home" not in text, name
        if name != "files/atomic.py":
            assert not re.search(r'os\.replace|os\.rename|\.partial"|NamedTemporaryFile|mkstemp', text), name
