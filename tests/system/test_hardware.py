"""Devices of workers that share a machine."""

import pytest
import torch

from fishexp.system import hardware
from tests.support.checks import refusal


def test_each_worker_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    with hardware.device("auto", 2, 3) as device:
        assert (device, chosen) == (torch.device("cuda", 2), [2])
    line = refusal(hardware.device("cuda", 0, 4).__enter__)
    assert line.startswith("4 workers on a machine with 3 GPUs: each needs one of its own; take fewer workers")
    with hardware.device("cpu", 0, 4) as device:
        assert device.type == "cpu"


def test_a_processor_is_named_with_its_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one name stands for processors with and without AVX-512, whose numbers and times differ."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    name = hardware.name(torch.device("cpu"))
    assert name.endswith(" with AVX2")
    assert name.removesuffix(" with AVX2")


def test_the_slowdown_of_bf16_is_that_of_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each repeat reads the clock before and after the product in fp32, then in bf16."""
    moments = iter([t for i in range(100) for t in (10.0 * i, 10.0 * i + 1, 10.0 * i + 2, 10.0 * i + 5)])
    monkeypatch.setattr(hardware.time, "perf_counter", lambda: next(moments))
    assert hardware.bf16_slowdown() == 3
