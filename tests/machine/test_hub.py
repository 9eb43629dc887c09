"""Without a network, the hub's libraries are told so, rather than left to try again and again."""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from typing import Any

import huggingface_hub
import pytest

from mxsweep.evaluate.tasks import load_tasks
from mxsweep.machine.hub import offline_where_unreachable
from mxsweep.model.load import load_model
from mxsweep.terminal.errors import ConfigError


def test_offline_only_while_it_lasts(no_network: list[object]) -> None:
    with offline_where_unreachable():
        assert huggingface_hub.constants.HF_HUB_OFFLINE
    assert not huggingface_hub.constants.HF_HUB_OFFLINE and len(no_network) == 1


def test_a_hub_that_answers_anything_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbid(request: urllib.request.Request, timeout: float) -> Any:
        raise urllib.error.HTTPError(request.full_url, 403, "Forbidden", {}, None)  # type: ignore[arg-type]

    monkeypatch.setattr(urllib.request, "urlopen", forbid)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with offline_where_unreachable():
        assert not huggingface_hub.constants.HF_HUB_OFFLINE


@pytest.mark.parametrize(
    ("proxies", "endpoint"),
    [({"all": "http://proxy:1"}, "https://huggingface.co"), ({"no": "localhost"}, "a-mirror-without-a-scheme")],
)
def test_what_python_cannot_tell_is_left_to_the_client(
    proxies: dict[str, str], endpoint: str, no_network: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its client knows proxies that Python's own means do not, and says itself what is wrong with an address."""
    monkeypatch.setattr(urllib.request, "getproxies", lambda: proxies)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
    with offline_where_unreachable():
        assert not huggingface_hub.constants.HF_HUB_OFFLINE and not no_network


def test_a_model_on_the_hub_is_asked_for_once(no_network: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its libraries wait before they try again; none waits here."""
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail(f"waited for {seconds} s"))
    with pytest.raises(ConfigError, match=r"'no-such-owner/no-such-model' cannot be loaded: We couldn't connect to"):
        load_model("no-such-owner/no-such-model", device="cpu")
    assert len(no_network) == 1


def test_data_of_tasks_on_the_hub_are_asked_for_once(no_network: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of tasks whose data are here nothing is asked."""
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail(f"waited for {seconds} s"))
    assert load_tasks(("story",))["tasks"] and not no_network
    # What helps comes before the reason, which a terminal cuts off.
    said = r"^task: lambada_openai cannot be loaded; without a network, task.data=FILE.jsonl gives a task's rows in a "
    with pytest.raises(ConfigError, match=said + r"local file \(ConnectionError: Couldn't reach"):
        load_tasks(("lambada_openai",))
    assert len(no_network) == 1
