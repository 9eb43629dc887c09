"""Make what runs in the page: Vega as one script, the policy that forbids others, data that end no element."""

import base64
import hashlib
import json
import math
import re
from collections.abc import Sequence
from functools import cache
from typing import Any

from mxsweep.files.kept_texts import keep_text, kept_text
from mxsweep.machine.versions import version_of
from mxsweep.report.figures.draw import VEGA_LITE, bundle


def policy(scripts: Sequence[str]) -> str:
    """Return the Content-Security-Policy: nothing but these scripts, styles of the page, and images made in it."""
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def vega() -> str | None:
    """Return Vega, Vega-Lite and vega-embed as one script, which leaves vegaEmbed in window; None where there is none.

    Where it could not be made, the next page tries again.
    """
    script = made_vega()
    if script is None:
        made_vega.cache_clear()
    return script


@cache
def made_vega() -> str | None:
    """Return the script of :func:`vega`, made once a process.

    Putting it together takes vl-convert 1.2 s, so it is kept in the cache folder, by version.
    """
    kept = f"vega-{version_of('vl-convert-python')}-{VEGA_LITE}.js"
    script = kept_text(kept)
    if script is None and (made := bundle()) is not None:
        script = closed(made)
        keep_text(kept, script)
    return script


def closed(script: str) -> str:
    """Return a script that can stand in a page: none of its texts ends the element, and its names stay its own."""
    script = re.sub("</(?=script)", r"<\\/", script, flags=re.IGNORECASE).replace("<!--", "<\\!--")
    return f'(function () {{\n"use strict";\n{script}\n}})();'


def as_json(data: Any) -> str:
    """Return data as JSON for a script element: no text in it can end the element, and NaN is null."""
    try:
        text = json.dumps(data, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    except ValueError:
        text = json.dumps(_finite(data), separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
