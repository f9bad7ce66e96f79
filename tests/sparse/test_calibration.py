"""What gradients cost is measured once on a machine, and decides the methods whatever the batch and the weather."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from fishexp.masks import top_k
from fishexp.sparse import calibration, sparsify
from fishexp.sparse.calibration import calibrated, known, measured
from fishexp.sparse.costs import Costs, by_instruction_set
from tests.support.costs import cheap


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "fishexp"


@pytest.mark.alone
def test_what_is_measured_orders_the_parts_as_they_are() -> None:
    """A number that is moved or read takes longer than a multiply-add; one of a sampled product longer than a dense."""
    stream = torch.get_rng_state()
    found = measured()
    assert torch.equal(torch.get_rng_state(), stream)  # else dropout would depend on whether a run has measured
    for types in found.parts.values():
        assert set(types) == {"float64", "float32", "bfloat16", "float16"}
        own = types["float32"]
        assert 0 < own.dense < own.sampled
        assert own.dense < own.reorder
        assert own.dense < 1 < 1e3 * own.dense  # nanoseconds: no core makes a thousand multiply-adds in one


def test_costs_are_measured_once_and_kept_by_machine(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = [cheap("sddmm"), cheap("submatrix")]
    monkeypatch.setattr(calibration, "measured", lambda: made.pop())
    assert known() == by_instruction_set(torch.backends.cpu.get_cpu_capability()).scaled(torch.get_num_threads())
    assert calibrated() == calibrated() == known() == cheap("submatrix").scaled(torch.get_num_threads())
    (file,) = cache.iterdir()
    assert json.loads(file.read_text())["measured on"]["torch"] == torch.__version__
    monkeypatch.setattr(torch, "__version__", "99.0")
    assert calibrated() == cheap("sddmm").scaled(torch.get_num_threads())
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"costs": 1}', '{"costs": {"parts": {"linear": {"float32": {}}}, "call": 1}}']
)
def test_a_damaged_file_of_costs_is_made_anew(text: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "measured", lambda: cheap("sddmm"))
    calibrated()
    (file,) = cache.iterdir()
    file.write_text(text)
    monkeypatch.setattr(calibration, "measured", lambda: cheap("dense"))
    assert calibrated() == known() == cheap("dense").scaled(torch.get_num_threads())


def test_a_cache_that_cannot_be_written_costs_only_time(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.write_text("a file where the folder would be")
    monkeypatch.setattr(calibration, "measured", lambda: cheap("sddmm"))
    assert calibrated() == cheap("sddmm").scaled(torch.get_num_threads())


def test_threads_divide_products_by_their_number_and_what_waits_for_memory_by_less() -> None:
    one = by_instruction_set("AVX2")
    own, four = one.parts["linear"]["float32"], one.scaled(4).parts["linear"]["float32"]
    assert (four.dense, four.narrow) == (own.dense / 4, own.narrow / 4)
    assert own.reorder / 4 < four.reorder < own.reorder
    assert Costs.from_json(json.loads(json.dumps(one.to_json()))) == one


@pytest.mark.parametrize("method", ["dense", "submatrix", "sddmm"])
@pytest.mark.parametrize("layer", ["linear", "conv"])
def test_a_layer_keeps_the_method_of_its_costs_whatever_the_batch(method: str, layer: str) -> None:
    torch.manual_seed(0)
    model: nn.Module = nn.Linear(16, 16) if layer == "linear" else nn.Conv2d(16, 16, 3)
    scores = {name: torch.zeros(p.shape) for name, p in model.named_parameters()}
    scores["weight"][:, 3] = 1.0  # a column, which every method can form
    sparse = sparsify(
        model,
        top_k(scores, 16 * (1 if layer == "linear" else 9) / sum(p.numel() for p in scores.values())),
        costs=cheap(method),
    )
    for size in (1, 700):
        model(torch.randn(size, 16) if layer == "linear" else torch.randn(size % 9, 16, 5, 5)).square().sum().backward()
        assert sparse.ways() == {"weight": method}
