"""Import what is large for as little as it takes: no garbage is looked for, and what nobody will call is left out."""

from __future__ import annotations

import gc
import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

# What transformers imports with any model where it is installed, for losses of models that see and for drafts of
# several models: the function, by its module, each of which imports some two or three hundred others.
IMPORTER = "transformers."
CALLED_BY_NO_RUN = {"scipy.optimize": "linear_sum_assignment", "sklearn.metrics": "roc_curve"}


@contextmanager
def importing() -> Iterator[None]:
    """Import torch and what goes with it in this context: without looking for garbage, and with as little as it takes.

    Of what an import makes nearly all stays. Python would look through all objects that there are seven times
    meanwhile, and through the newest a thousand times; with what it looks through later, that is a fifth of the time
    that these imports take. So it collects none, and none of what is there then ever after. Where torch is imported
    already, garbage is collected as ever: what is there then may be a model, which is not to stay.
    """
    with _called_later(CALLED_BY_NO_RUN):
        if "torch" in sys.modules or not gc.isenabled():
            yield
            return
        gc.disable()
        try:
            yield
        finally:
            if "torch" in sys.modules:
                gc.freeze()
            gc.enable()


@contextmanager
def _called_later(functions: dict[str, str]) -> Iterator[None]:
    """Import modules, of which someone wants one function each in this context, when that is called, or more wanted."""
    waiting = {name: _Later(name, function) for name, function in functions.items() if name not in sys.modules}
    sys.modules.update(waiting)
    try:
        yield
    finally:
        for name, module in waiting.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]


class _Later(ModuleType):
    """Stand for a module until something of it is wanted other than the name of one function."""

    def __init__(self, name: str, function: str) -> None:
        super().__init__(name)
        self.__spec__ = ModuleSpec(name, None)
        self.__function = function

    def __getattr__(self, name: str) -> Any:
        if name == self.__function:
            return _calling(self._imported, name)
        # Python asks for __path__ whenever something is imported from a module: here who imports one function. Others
        # who ask may want a module of the package. Who goes through all modules, as `inspect`, wants nothing of this.
        of_one_function = name == "__path__" and sys._getframe(1).f_globals.get("__name__", "").startswith(IMPORTER)
        if of_one_function or (name.startswith("__") and name not in ("__path__", "__all__")):
            raise AttributeError(name)
        return getattr(self._imported(), name)

    def _imported(self) -> ModuleType:
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return importlib.import_module(self.__name__)


def _calling(module: Callable[[], ModuleType], name: str) -> Callable[..., Any]:
    """Return a function that calls the one of that name in a module, which is imported then."""

    def call(*args: Any, **named: Any) -> Any:
        return getattr(module(), name)(*args, **named)

    return call
