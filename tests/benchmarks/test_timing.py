"""Quartiles, ratios, and the cores that a benchmark is given."""

import os

import torch

from benchmarks.timing import quartiles, ratios, single_core


def test_quartiles_and_ratios_within_a_round() -> None:
    assert quartiles([4.0, 1.0, 3.0, 2.0, 5.0]) == [2.0, 3.0, 4.0]
    assert quartiles([7.0]) == [7.0, 7.0, 7.0]
    assert ratios({"a": [1.0, 4.0, 9.0], "b": [2.0, 4.0, 3.0]}, "a", "b") == [0.75, 1.0, 2.0]


def test_one_core_is_one_core_and_then_as_many_as_before() -> None:
    threads, cores = torch.get_num_threads(), os.sched_getaffinity(0)
    torch.set_num_threads(2)
    try:
        with single_core():
            assert torch.get_num_threads() == 1
            assert len(os.sched_getaffinity(0)) == 1
        assert (torch.get_num_threads(), os.sched_getaffinity(0)) == (2, cores)
    finally:
        torch.set_num_threads(threads)
