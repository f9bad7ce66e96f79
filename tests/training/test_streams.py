"""Random streams: none equals another, none changes unnoticed, and runs draw from the one that is meant."""

import itertools
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import nn

from fishexp.masks.units import Unit
from fishexp.methods import random
from fishexp.run import runner
from fishexp.training.streams import Name, seed_torch, stream
from tests.support.cli import QUICK, fishexp

NAMES: tuple[Name, ...] = get_args(Name)
# near each other, equal in their low 32 bits, and the largest
SEEDS = [*range(200), *(seed + 2**32 for seed in range(1, 20)), *(seed << 32 for seed in range(1, 20)), 2**62 - 1]
RANKS = range(8)


def test_no_stream_equals_another() -> None:
    found = [stream(*which) for which in itertools.product(SEEDS, NAMES, RANKS)]
    assert len({bytes(generator.get_state().numpy()) for generator in found}) == len(found)
    assert len({tuple(torch.rand(6, generator=generator).tolist()) for generator in found}) == len(found)


@pytest.mark.parametrize(
    ("which", "drawn"),
    [
        ((0, "weights", 0), [60348, 53403, 49946]),
        ((0, "mask", 0), [54951, 4269, 54435]),
        ((0, "labels", 1), [42408, 36978, 18416]),
        ((1, "order", 0), [59721, 63098, 370]),
        ((2**40 + 7, "order", 3), [43668, 19725, 48174]),
        ((0, "shard", 0), [28435, 7596, 23246]),
        ((5, "dropout", 1), [50241, 9250, 44399]),
    ],
)
def test_streams_of_version_2_draw_these_numbers(which: tuple[int, Name, int], drawn: list[int]) -> None:
    """Others are another version: STREAMS in fishexp/run/record.py."""
    assert torch.randint(2**16, (3,), generator=stream(*which)).tolist() == drawn


def test_torch_draws_what_the_words_of_the_state_say() -> None:
    """As numpy's Mersenne twister does from the same words."""
    words = np.random.SeedSequence(3, spawn_key=(1, 2)).generate_state(624).astype(np.uint32)
    twister = np.random.MT19937()
    twister.state = {"bit_generator": "MT19937", "state": {"key": words, "pos": 624}}
    expected = twister.random_raw(2000) % 2**16  # type: ignore[operator]
    assert torch.randint(2**16, (2000,), generator=stream(3, "mask", 2)).tolist() == expected.tolist()


def test_torch_itself_can_draw_from_a_stream() -> None:
    seed_torch(4, "dropout", 1)
    assert torch.equal(torch.rand(5), torch.rand(5, generator=stream(4, "dropout", 1)))
    seed_torch(4, "dropout", 1)
    first = nn.functional.dropout(torch.ones(100))
    seed_torch(4, "dropout", 0)
    assert not torch.equal(nn.functional.dropout(torch.ones(100)), first)


@pytest.mark.parametrize("seed", [0, 1])
def test_each_part_of_a_run_draws_from_its_own_stream(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    states: dict[Name, torch.Tensor] = {}
    build, score = runner.build_model, random.scores

    def build_model(*arguments: Any) -> Any:
        states["weights"] = torch.get_rng_state()
        return build(*arguments)

    def scores(problem: Any, *, unit: Unit) -> Any:
        states["mask"], states["order"] = problem.generator.get_state(), problem.order.get_state()
        states["dropout"] = torch.get_rng_state()
        return score(problem, unit=unit)

    monkeypatch.setattr(runner, "build_model", build_model)
    monkeypatch.setattr(random, "scores", scores)
    assert fishexp(*QUICK, f"seed={seed}").status == 0
    assert len({bytes(state.numpy()) for state in states.values()}) == 4
    assert all(torch.equal(state, stream(seed, name).get_state()) for name, state in states.items())
