"""No garbage is collected while torch is imported, and afterwards it is as it was before."""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest

from mxsweep.machine.importing import importing


def test_garbage_is_collected_as_ever_where_torch_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", sys.modules.get("torch", sys))
    frozen = gc.get_freeze_count()
    with importing():
        assert gc.isenabled()
    assert gc.get_freeze_count() == frozen


@pytest.mark.parametrize("enabled", [True, False])
def test_collecting_is_afterwards_as_it_was(enabled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    was, frozen = gc.isenabled(), gc.get_freeze_count()
    (gc.enable if enabled else gc.disable)()
    try:
        with pytest.raises(ImportError), importing():
            assert not gc.isenabled()
            raise ImportError
        assert gc.isenabled() is enabled and gc.get_freeze_count() == frozen  # nothing was imported
    finally:
        (gc.enable if was else gc.disable)()


def test_a_run_imports_without_collecting_and_then_collects() -> None:
    program = (
        "import gc, sys; from mxsweep import compose; from mxsweep.runs.run import run; seen = []\n"
        "names = ('torch', 'transformers', 'lm_eval.api.task', 'mxsweep.runs.evaluate_config')\n"
        "def look(phase, info):\n"
        "    there = [sys.modules[name] for name in names if name in sys.modules]\n"
        "    seen.append([module for module in there if module.__spec__._initializing])\n"
        "gc.callbacks.append(look); record = run(compose(['limit=2']))\n"
        "assert record['status'] == 'done' and gc.isenabled() and gc.get_freeze_count() and seen, record['error']\n"
        "assert not any(seen), seen"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
