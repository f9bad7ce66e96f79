"""What is handed to the model: augmented images, limited data sets, batches of like length, padded tokens."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fishexp.data.datasets import Dataset, grouped_order
from fishexp.data.images import Images
from fishexp.data.metrics import accuracy
from fishexp.data.text import Sentences, Tokens
from fishexp.errors import FishexpError
from fishexp.models import Model, bert

MEAN, STD = (0.4, 0.5), (0.2, 0.3)


def some_images(count: int, height: int, width: int, *, crop: int = 0, flip: bool = False, cutout: int = 0) -> Images:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (count, 2, height, width), generator=generator, dtype=torch.uint8)
    return Images(pixels, torch.arange(count), mean=MEAN, std=STD, crop=crop, flip=flip, cutout=cutout)


def slow_augmentation(images: Images, index: Tensor, generator: torch.Generator) -> Tensor:
    """One image after another: pad, crop, mirror, normalise, cut out; the same draws in the same order."""
    n, (height, width) = len(index), images.pixels.shape[-2:]

    def draw(high: int) -> list[int]:
        return torch.randint(high, (n, 1), generator=generator).flatten().tolist()

    downs, rights = draw(2 * images.crop + 1), draw(2 * images.crop + 1)
    flips = draw(2) if images.flip else [0] * n
    tops, lefts = (draw(side - images.cutout + 1) if images.cutout else [0] * n for side in (height, width))
    batch = []
    for i, down, right, flip, top, left in zip(index.tolist(), downs, rights, flips, tops, lefts, strict=True):
        edge = (images.crop, images.crop)
        padded = np.pad(images.pixels[i].numpy(), ((0, 0), edge, edge), mode="reflect")
        image = padded[:, down : down + height, right : right + width]
        image = image[:, :, ::-1] if flip else image
        normal = np.stack([(image[c].astype(np.float32) / 255 - MEAN[c]) / STD[c] for c in range(2)])
        normal[:, top : top + images.cutout, left : left + images.cutout] = 0.0
        batch.append(torch.from_numpy(normal))
    return torch.stack(batch)


@given(
    height=st.integers(5, 9), width=st.integers(5, 9), crop=st.integers(0, 4), flip=st.booleans(),
    cutout=st.integers(0, 5), index=st.lists(st.integers(0, 6), min_size=1, max_size=9), seed=st.integers(0, 99),
)  # fmt: skip
def test_augmentation_equals_a_slow_one(
    height: int, width: int, crop: int, flip: bool, cutout: int, index: list[int], seed: int
) -> None:
    images = some_images(7, height, width, crop=crop, flip=flip, cutout=cutout)
    found, labels = images.batch(torch.tensor(index), torch.Generator().manual_seed(seed))
    expected = slow_augmentation(images, torch.tensor(index), torch.Generator().manual_seed(seed))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert labels.tolist() == index


def test_every_crop_flip_and_cutout_is_as_likely() -> None:
    """5 x 5 crops of either handedness, then 5 x 5 places of the square: each within 5 standard deviations."""
    draws = 5_000
    for options, kinds in [({"crop": 2, "flip": True}, 50), ({"cutout": 2}, 25)]:
        images = some_images(1, 6, 6, **options)
        batch, _ = images.batch(torch.zeros(draws, dtype=torch.long), torch.Generator().manual_seed(0))
        counts = batch.unique(dim=0, return_counts=True)[1]
        assert len(counts) == kinds
        assert (counts - draws / kinds).abs().max() < 5 * (draws / kinds) ** 0.5


def test_draws_are_new_each_time_and_the_generators_own() -> None:
    images = some_images(50, 8, 8, crop=4, flip=True, cutout=4)
    index, generator, state = torch.arange(50), torch.Generator().manual_seed(3), torch.get_rng_state()
    first, second = images.batch(index, generator)[0], images.batch(index, generator)[0]
    assert not torch.equal(first, second)
    assert torch.equal(first, images.batch(index, torch.Generator().manual_seed(3))[0])
    assert torch.equal(state, torch.get_rng_state())


def test_clean_images_are_normalised_and_not_augmented() -> None:
    images = some_images(20, 6, 7, crop=2, flip=True, cutout=3).subset(torch.tensor([4, 2, 9]))
    found, labels = images.batch(torch.tensor([2, 0]))
    assert labels.tolist() == [9, 4]
    expected = some_images(20, 6, 7).pixels[[9, 4]].float() / 255
    for channel in range(2):
        torch.testing.assert_close(found[:, channel] * STD[channel] + MEAN[channel], expected[:, channel])


def numbered(train: int, valid: int) -> Dataset:
    def part(name: str, count: int) -> Sentences:
        return Sentences([f"{name}{i}" for i in range(count)], None, torch.arange(count), max_length=8)

    return Dataset(
        part("t", train), {"": part("v", valid), "other": part("o", 3)}, classes=2, channels=0, metrics=accuracy
    )


LIMIT = st.none() | st.integers(1, 70)


@given(size=st.integers(2, 60), train=LIMIT, valid=LIMIT, holdout=st.integers(0, 59), seed=st.integers(0, 9))
def test_limits_and_holdout_are_parts_of_one_permutation(
    size: int, train: int | None, valid: int | None, holdout: int, seed: int
) -> None:
    if holdout >= size:
        return
    torch.manual_seed(seed)
    whole, found = numbered(size, 20), numbered(size, 20).limited(train, valid, holdout)
    torch.manual_seed(seed + 1)
    order = numbered(size, 20).limited(size, None, 0).train.first  # the permutation, whatever the seed
    assert sorted(order) == sorted(whole.train.first)
    rest = order[: size - holdout]
    assert found.train.first == (rest[:train] if train or holdout else whole.train.first)
    assert [f"t{label}" for label in found.train.labels.tolist()] == found.train.first
    if holdout:
        assert list(found.valid) == ["holdout"]
        assert found.valid["holdout"].first == order[size - holdout :][:valid]
    else:
        assert {name: len(part) for name, part in found.valid.items()} == {
            "": min(valid or 20, 20),
            "other": min(valid or 3, 3),
        }
        assert set(found.valid[""].first) <= set(whole.valid[""].first)
    assert not set(found.train.first) & {text for part in found.valid.values() for text in part.first}


def test_a_limit_is_no_head_of_the_file_and_draws_from_no_ones_generator() -> None:
    state = torch.get_rng_state()
    assert numbered(100, 50).limited(10, 10, 0).train.first != [f"t{i}" for i in range(10)]
    assert numbered(100, 50).limited(10, 10, 0).valid[""].first != [f"v{i}" for i in range(10)]
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("holdout", [5, 6])
def test_a_holdout_of_everything_is_refused(holdout: int) -> None:
    with pytest.raises(FishexpError) as error:
        numbered(5, 5).limited(None, None, holdout)
    assert str(error.value) == f"data.holdout={holdout} leaves nothing to train on: there are 5 training examples"


@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=700), size=st.integers(1, 9), seed=st.integers(0, 99))
def test_grouped_order_visits_each_example_once_and_the_ragged_batch_last(
    lengths: list[int], size: int, seed: int
) -> None:
    tokens = torch.tensor(lengths)
    order = grouped_order(tokens, size, torch.Generator().manual_seed(seed))
    assert sorted(order.tolist()) == list(range(len(lengths)))
    for batch in order.split(size):  # within a batch longest first: so a batch is a run of a sorted chunk
        assert tokens[batch].tolist() == sorted(tokens[batch].tolist(), reverse=True)


def test_grouped_order_pads_little_and_shuffles_the_batches() -> None:
    tokens, generator = torch.randint(4, 128, (3_001,), generator=torch.Generator().manual_seed(0)), torch.Generator()
    order, again = grouped_order(tokens, 16, generator), grouped_order(tokens, 16, generator)
    batches, others = ({frozenset(batch.tolist()) for batch in epoch.split(16)} for epoch in (order, again))
    assert len(batches & others) < len(batches) / 10  # other neighbours in each epoch
    longest = torch.stack([tokens[batch].max() for batch in order.split(16)])
    padded = sum(int(tokens[batch].max()) * len(batch) for batch in order.split(16))
    assert padded < 1.05 * tokens.sum()  # a random order needs 1.8 times as much
    falls = (longest[1:] < longest[:-1]).double().mean()
    assert 0.4 < falls < 0.6  # sorted batches would fall nearly always


PAIRS = [("the cat runs .", "a dog ?"), ("a", "the dog and the cat"), ("the dog sees the cat and runs", "the cats .")]


def tokens_of(folder: Path, *, pairs: bool, max_length: int) -> tuple[Tokens, Model]:
    model = bert.build(2, 0, path=str(folder), pretrained=False, activation_checkpointing=False)
    first, second = map(list, zip(*PAIRS, strict=True))
    sentences = Sentences(first, second if pairs else None, torch.arange(3), max_length)
    return sentences.tokenised(model.tokenizer), model


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("max_length", [20, 5])
def test_tokens_are_what_the_tokenizer_pads(bert_folder: Path, pairs: bool, max_length: int) -> None:
    tokens, model = tokens_of(bert_folder, pairs=pairs, max_length=max_length)
    index = torch.tensor([1, 0])
    found, labels = tokens.subset(torch.tensor([0, 1])).batch(index)
    texts = [[PAIRS[i][side] for i in index] for side in range(1 + pairs)]
    expected = model.tokenizer(*texts, truncation=True, max_length=max_length, padding=True, return_tensors="pt")
    assert found.keys() == expected.keys() >= {"input_ids", "attention_mask", "token_type_ids"}
    for key, value in expected.items():
        assert torch.equal(found[key], value), key
    assert labels.tolist() == [1, 0]
    assert tokens.lengths.max() <= max_length
    assert tokens.lengths[index].tolist() == found["attention_mask"].sum(1).tolist()


def test_padding_changes_no_logits(bert_folder: Path) -> None:
    tokens, model = tokens_of(bert_folder, pairs=True, max_length=20)
    network = model.network.eval()
    together = network(**tokens.batch(torch.arange(3))[0]).logits
    alone = torch.cat([network(**tokens.batch(torch.tensor([i]))[0]).logits for i in range(3)])
    torch.testing.assert_close(together, alone)
    assert tokens.lengths.unique().numel() > 1
