"""Fixtures of tests with models of transformers."""

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture
def quiet_transformers() -> Iterator[None]:
    """Silence transformers' own reports, which are no part of what is tested."""
    import transformers

    level = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity(logging.CRITICAL)
    yield
    transformers.utils.logging.set_verbosity(level)
