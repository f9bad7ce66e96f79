"""The hub is not asked again and again if there is no network."""

import pytest
from huggingface_hub import constants

from fishexp.system.hub import fail_fast_offline


@pytest.mark.usefixtures("no_network")
def test_a_name_that_cannot_be_looked_up_means_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("fishexp.system.hub.getproxies", lambda: {"https": "http://proxy.invalid"})
    fail_fast_offline()
    assert not constants.HF_HUB_OFFLINE  # the proxy looks names up
    monkeypatch.setattr("fishexp.system.hub.getproxies", dict)
    fail_fast_offline()
    assert constants.HF_HUB_OFFLINE


def test_a_name_that_is_found_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("socket.getaddrinfo", lambda *_: [("family", "kind", 0, "", ("127.0.0.1", 443))])
    monkeypatch.setattr("fishexp.system.hub.getproxies", dict)
    fail_fast_offline()
    assert not constants.HF_HUB_OFFLINE
