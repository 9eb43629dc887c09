"""Import what is large without looking for garbage meanwhile: of what an import makes nearly all stays."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def importing() -> Iterator[None]:
    """Collect no garbage while torch and what goes with it are imported, and none of what is there then ever after.

    Python would look through all objects that there are seven times meanwhile, and through the newest a thousand times;
    with what it looks through later, that is a fifth of the time that these imports take. Where torch is imported
    already, garbage is collected as ever: what is there then may be a model, which is not to stay.
    """
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
