"""What a model is called with."""

import torch
from torch import Tensor, nn

from fishexp.fisher.batches import logits_of
from fishexp.training.problem import without_mask_of_ones
from tests.support.cases import images, sentences, tiny_bert


class Needs(nn.Module):
    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return input_ids * attention_mask


def test_a_mask_of_ones_is_left_out_where_the_model_does_without() -> None:
    inputs, _ = sentences()
    model, ones = (
        tiny_bert().eval(),
        {"input_ids": inputs["input_ids"], "attention_mask": torch.ones_like(inputs["input_ids"])},
    )
    without = without_mask_of_ones(model, ones)
    assert without == {"input_ids": ones["input_ids"]}
    assert torch.equal(logits_of(model, without), logits_of(model, ones))


def test_a_mask_that_masks_or_is_needed_stays() -> None:
    inputs, _ = sentences()
    assert without_mask_of_ones(tiny_bert(), inputs) is inputs
    ones = {"input_ids": inputs["input_ids"], "attention_mask": torch.ones_like(inputs["input_ids"])}
    assert without_mask_of_ones(Needs(), ones) is ones
    pixels, _ = images()
    assert without_mask_of_ones(tiny_bert(), pixels) is pixels
