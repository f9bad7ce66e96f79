"""What a run says after an epoch."""

import json
import logging
from pathlib import Path

import pytest

from fishexp.training.logger import Logger


@pytest.mark.parametrize(("predicted", "said"), [(1.0, "; it predicts the same class for all examples"), (0.9, "")])
def test_a_line_of_an_epoch_says_when_one_class_is_all_that_is_predicted(
    predicted: float, said: str, tmp_path: Path
) -> None:
    with Logger(tmp_path, "name", {}, "disabled") as logger:
        assert logging.getLogger("fishexp").isEnabledFor(logging.INFO)
        logger.begin({})
        logger.epoch(1, {"accuracy": 0.5, "largest_class": 0.5, "largest_predicted": predicted})
    assert not logging.getLogger("fishexp").isEnabledFor(logging.INFO)  # whoever imports fishexp decides again
    assert (tmp_path / "log.txt").read_text().endswith(f"epoch 1: accuracy 0.5{said}\n")
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["largest_predicted"] == predicted
