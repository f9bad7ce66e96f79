"""The Hugging Face hub where there is no network."""

import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlparse
from urllib.request import getproxies

from fishexp.errors import FishexpError


def fail_fast_offline() -> None:
    """Use what is cached, instead of retrying for half a minute, if the hub's name cannot be looked up."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE or getproxies().keys() - {"no"}:
        return
    try:
        socket.getaddrinfo(urlparse(constants.ENDPOINT).hostname, 443)
    except OSError:
        constants.HF_HUB_OFFLINE = True
        if "datasets" in sys.modules:
            sys.modules["datasets"].config.HF_HUB_OFFLINE = True


@contextmanager
def cached_only(advice: str) -> Iterator[None]:
    """Fetch nothing from the hub for a while, but take what is cached.

    Args:
        advice: How to allow it, for the message of an error meanwhile.
    """
    from huggingface_hub import constants

    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    except FishexpError as error:
        missing = "cached" in str(error) or "offline" in str(error).lower()  # as huggingface_hub says
        raise FishexpError(f"{error}; {advice}" if missing else str(error)) from None
    finally:
        constants.HF_HUB_OFFLINE = before
