"""What a model is called with."""

import torch
from torch import Tensor, nn

from fishexp.fisher.batches import logits_of
from fishexp.training.problem import without_mask_of_ones
from tests.support.cases import images, sentences, tiny_bert


class Own(nn.Module):
    """Without a mask, do something else."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return -input_ids if attention_mask is None else input_ids


def test_a_mask_of_ones_is_left_out_where_the_model_does_without() -> None:
    inputs, _ = sentences()
    model, ones = (
        tiny_bert().eval(),
        {"input_ids": inputs["input_ids"], "attention_mask": torch.ones_like(inputs["input_ids"])},
    )
    without = without_mask_of_ones(model, ones)
    assert without == {"input_ids": ones["input_ids"]}
    assert torch.equal(logits_of(model, without), logits_of(model, ones))
    assert without_mask_of_ones(nn.Sequential(model), ones).keys() == without.keys()  # type: ignore[union-attr]


def test_a_mask_that_masks_or_is_of_a_model_of_ones_own_stays() -> None:
    inputs, _ = sentences()
    assert without_mask_of_ones(tiny_bert(), inputs) is inputs
    ones = {"input_ids": inputs["input_ids"], "attention_mask": torch.ones_like(inputs["input_ids"])}
    assert without_mask_of_ones(Own(), ones) is ones
    pixels, _ = images()
    assert without_mask_of_ones(tiny_bert(), pixels) is pixels
