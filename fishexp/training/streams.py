"""Random streams of a run: one for each use, by name and rank, so that no two uses share their random numbers.

A stream follows from the run's seed, its name and a rank alone. Whoever changes what a stream draws raises ``STREAMS``
in ``fishexp/run/record.py``, by which records made before and after are told apart.
"""

from typing import Literal, TypeAlias

import numpy as np
import torch

Name: TypeAlias = Literal["weights", "mask", "labels", "order", "shard", "dropout", "gates"]

# name -> first part of its spawn key; the rank is the second
_KEYS: dict[Name, int] = {
    "weights": 0,  # initial weights
    "mask": 1,  # scoring examples, sampled labels, random scores
    "labels": 2,  # labels that a worker samples for its share of the scoring examples; their seed is drawn from mask
    "order": 3,  # order of the training examples, and their augmentation
    "shard": 4,  # which worker has which training examples
    "dropout": 5,  # whatever a model draws while it trains
    "gates": 6,  # gates of diff pruning; their seed is drawn from mask
}
# words of 32 bits in the state of a Mersenne twister, and where torch has them among the words of 64 bits in a state
_TWISTER = 624
_WORDS = slice(3, 3 + _TWISTER)


def stream(seed: int, name: Name, rank: int = 0) -> torch.Generator:
    """Make the generator of a stream, on the CPU.

    All words of its state are set: ``manual_seed`` reads 32 bits of a seed, too few to tell many streams apart.

    Args:
        seed: The run's, 0 or more.
        rank: Of the worker whose own stream it is; 0 where all workers draw the same numbers.
    """
    state = torch.Generator().manual_seed(0).get_state()
    state.numpy().view(np.uint64)[_WORDS] = _sequence(seed, name, rank).generate_state(_TWISTER)
    generator = torch.Generator()
    generator.set_state(state)
    return generator


def seed_torch(seed: int, name: Name, rank: int = 0) -> None:
    """Let torch draw from a stream wherever it is given no generator, on the CPU and on the GPUs.

    Args:
        seed: The run's, 0 or more.
        rank: Of the worker whose own stream it is; 0 where all workers draw the same numbers.
    """
    torch.manual_seed(int(_sequence(seed, name, rank).generate_state(1, np.uint64)[0]))  # GPUs read all 64 bits
    torch.set_rng_state(stream(seed, name, rank).get_state())


def _sequence(seed: int, name: Name, rank: int) -> np.random.SeedSequence:
    return np.random.SeedSequence(seed, spawn_key=(_KEYS[name], rank))
