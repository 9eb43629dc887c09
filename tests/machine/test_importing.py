"""While torch is imported no garbage is collected, and what no run calls is left out; afterwards all is as before."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mxsweep.machine import importing as importing_module
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


def test_a_function_that_no_run_calls_is_imported_when_it_is_called() -> None:
    program = (
        "import sys; from mxsweep.runs.run import import_evaluation; import_evaluation()\n"
        "from transformers.loss import loss_for_object_detection as loss, loss_rt_detr\n"
        "assert not {'scipy.optimize', 'sklearn.metrics'} & sys.modules.keys()\n"
        "costs = [[4, 1, 3], [2, 0, 5], [3, 2, 2]]\n"
        "found = [module.linear_sum_assignment(costs, maximize=True) for module in (loss, loss_rt_detr)]\n"
        "import scipy.optimize\n"
        "for rows, columns in found: assert columns.tolist() == [0, 2, 1] and rows.tolist() == [0, 1, 2]\n"
        "assert scipy.optimize.linear_sum_assignment.__module__.startswith('scipy'), 'the real one'"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A package whose module has two functions, of which one is to be imported when it is called."""
    (tmp_path / "some_tools").mkdir()
    (tmp_path / "some_tools" / "__init__.py").write_text("")
    (tmp_path / "some_tools" / "more.py").write_text("def later(a, b=1): return a - b\ndef other(): return later(5)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(importing_module, "CALLED_BY_NO_RUN", {"some_tools.more": "later"})
    monkeypatch.setattr(importing_module, "IMPORTER", __name__)
    yield "some_tools.more"
    for name in [name for name in sys.modules if name.startswith("some_tools")]:
        del sys.modules[name]


def test_only_the_name_of_that_function_is_had_without_an_import(module: str) -> None:
    with importing():
        from some_tools.more import later  # type: ignore[import-not-found]

        assert "some_tools" not in sys.modules
    assert module not in sys.modules
    assert later(3, b=2) == 1 and module in sys.modules


def test_whoever_wants_more_has_the_module_itself(module: str) -> None:
    with importing():
        from some_tools.more import later, other

        assert other() == 4 and sys.modules[module].__file__
        import some_tools.more

        assert some_tools.more.later is other.__globals__["later"] and some_tools.more.later is not later
    assert later(2) == 1 and sys.modules[module] is some_tools.more


def test_a_module_that_is_there_is_left_alone(module: str) -> None:
    import some_tools.more

    with importing():
        from some_tools.more import later
    assert later is some_tools.more.later


def test_what_is_not_installed_is_missing_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importing_module, "CALLED_BY_NO_RUN", {"no_such_package.tools": "call"})
    with importing(), pytest.raises(ModuleNotFoundError, match="no_such_package"):
        import no_such_package.tools  # type: ignore[import-not-found]  # noqa: F401
