"""Tiny models, under names that cases may use."""

import pytest

from benchmarks import models


@pytest.fixture(autouse=True)
def tiny_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(models.MODELS, "tiny-bert", lambda: models._bert(1, 64))
    monkeypatch.setitem(models.MODELS, "resnet8", lambda: models._resnet(8))
