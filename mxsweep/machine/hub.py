"""Ask the Hugging Face hub nothing where this machine does not reach it."""

from __future__ import annotations

import logging
import ssl
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from typing import Any

import huggingface_hub

log = logging.getLogger(__name__)

PATIENCE_S = 5.0


@contextmanager
def offline_where_unreachable() -> Iterator[None]:
    """Look into the hub's cache alone, while the context lasts, if the hub does not answer.

    Otherwise its libraries try again for half a minute, file by file, before they say so.
    """
    # The library of data sets has a switch of its own, where it is imported: what is to heed it is imported before.
    holders: list[Any] = [huggingface_hub.constants]
    if "datasets" in sys.modules:
        holders.append(sys.modules["datasets"].config)
    before = [holder.HF_HUB_OFFLINE for holder in holders]
    if not any(before) and not _is_reachable():
        log.info("The Hugging Face hub does not answer; only what is in its cache can be had")
        for holder in holders:
            holder.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for holder, value in zip(holders, before, strict=True):
            holder.HF_HUB_OFFLINE = value


def _is_reachable() -> bool:
    """Return whether the hub answers at all, by Python's own means: which library the hub's client uses changes."""
    if set(urllib.request.getproxies()) - {"no"}:
        return True  # the client knows more kinds of proxies than Python: it finds out for itself
    try:
        request = urllib.request.Request(huggingface_hub.constants.ENDPOINT, method="HEAD")
        urllib.request.urlopen(request, timeout=PATIENCE_S).close()
    except urllib.error.HTTPError:
        return True  # an answer, if not to this question
    except urllib.error.URLError as error:
        return isinstance(error.reason, ssl.SSLError)  # the client may know other certificates
    except (OSError, HTTPException):
        return False
    except ValueError:
        return True  # an address that is none: the client says what is wrong with it
    return True
