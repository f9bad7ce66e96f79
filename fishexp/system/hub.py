"""The Hugging Face hub where there is no network."""

import socket
import sys
from urllib.parse import urlparse
from urllib.request import getproxies


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
