"""Data sets are limited to parts of a fixed permutation, and texts come in batches of like length."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fishexp.data.datasets import Dataset, grouped_order
from fishexp.data.metrics import accuracy
from fishexp.data.text import Sentences
from fishexp.errors import FishexpError


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


def test_a_limit_is_no_head_of_the_file_and_draws_from_no_generator_of_others() -> None:
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
