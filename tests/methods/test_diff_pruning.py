"""Diff pruning against its formulas, spelled out in float64 with gradients by hand, and the runs that use it."""

import math
from collections import Counter
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fishexp.delta import Delta
from fishexp.errors import FishexpError
from fishexp.masks.budget import budget
from fishexp.masks.started import Started, above_threshold
from fishexp.methods import diff_pruning
from fishexp.methods.diff_pruning import GatedModel, Penalty
from fishexp.sparse.calibration import known
from fishexp.sparse.parameter import weights
from fishexp.training.problem import Problem
from fishexp.training.streams import seed_torch, stream
from fishexp.training.trainable import Decay, Trainable
from tests.support.cases import conv_net, sentences, tiny_bert
from tests.support.cli import QUICK, fishexp, records
from tests.support.resuming import Cut, assert_alike, cut_after, run_folder
from tests.support.training import mlp, problem

HEAD = ("2.weight", "2.bias")
OPTIONS: dict[str, Any] = {
    "structured": True, "penalty": "paper", "penalty_weight": 1e-3, "stage1_epochs": 3, "stage1_lr": 0.01,
    "stage1_batch_size": 4, "stage1_accumulate": 2, "stage1_drop_last": False,
}  # fmt: skip


def small(model: nn.Module | None = None, shape: tuple[int, ...] = (5,)) -> Problem:
    ours = problem(model or mlp(), shape)
    ours.head = HEAD if model is None else ()
    return ours


def score(of: Problem, **more: Any) -> Started:
    return diff_pruning.scores(of, **{**OPTIONS, **more})


class Reference:
    """The formulas of gate, gradient and penalty, one by one."""

    left, right = -1.5, 1.5

    def __init__(self, structured: bool, penalty: Penalty, generator: torch.Generator) -> None:
        self.structured, self.kind, self.generator = structured, penalty, generator

    def gate(self, alpha: Tensor) -> tuple[Tensor, Tensor]:
        """Draw z, and compute its derivative by alpha."""
        u = torch.rand(alpha.shape, generator=self.generator, dtype=alpha.dtype).clamp(1e-4, 0.9999)
        s = 1 / (1 + torch.exp(-(u.log() - (1 - u).log() + alpha)))
        stretched = s * (self.right - self.left) + self.left
        inside = ((stretched > 0) & (stretched < 1)).to(alpha)
        return stretched.clamp(0, 1), inside * (self.right - self.left) * s * (1 - s)

    def gates(self, alpha: Tensor, group: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        z, dz = self.gate(alpha)
        one, none = torch.ones_like(group), torch.zeros_like(group)
        return z, dz, *(self.gate(group) if self.structured else (one, none))

    def penalty_gradients(self, alpha: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
        c = math.log(-self.left / self.right)
        p, q = torch.sigmoid(alpha - c), torch.sigmoid(group - c)
        if not self.structured:
            return p * (1 - p), torch.zeros_like(group)
        if self.kind == "code":
            return p * (1 - p), q * (1 - q)
        return p * (1 - p) * q, p.sum() * q * (1 - q)


class OldAdamW:
    """AdamW as transformers had it, with the correction of the bias and without decay."""

    def __init__(self, size: int) -> None:
        self.first, self.second, self.steps = torch.zeros(size).double(), torch.zeros(size).double(), 0

    def step(self, gradient: Tensor, lr: float) -> Tensor:
        self.steps += 1
        gradient = gradient * min(1.0, 1.0 / (gradient.norm().item() + 1e-6))
        self.first = 0.9 * self.first + 0.1 * gradient
        self.second = 0.999 * self.second + 0.001 * gradient**2
        size = lr * math.sqrt(1 - 0.999**self.steps) / (1 - 0.9**self.steps)
        return -size * self.first / (self.second.sqrt() + 1e-8)


def flat(tensors: dict[str, Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors.values()])


def moved(tensors: dict[str, Tensor], change: Tensor) -> dict[str, Tensor]:
    parts = change.split([tensor.numel() for tensor in tensors.values()])
    return {name: t + part.view(t.shape) for (name, t), part in zip(tensors.items(), parts, strict=True)}


def reference_stage1(structured: bool, penalty: Penalty) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Stage 1 of the small problem; returns |z_g z w| and W0 + w."""
    ours = small()
    base = {name: p.detach().clone() for name, p in ours.model.named_parameters()}
    seed = int(torch.randint(2**62, (), generator=ours.generator))
    formulas = Reference(structured, penalty, stream(seed, "gates"))
    order, rows = stream(seed, "order"), ours.data.train
    change = {name: torch.zeros_like(p) for name, p in base.items()}
    alpha = {name: torch.full_like(p, 5.0) for name, p in base.items() if name not in HEAD}
    groups = {name: torch.tensor(5.0).double() for name in alpha}
    of_changes = OldAdamW(sum(p.numel() for p in base.values()))
    of_gates = OldAdamW(sum(a.numel() + 1 for a in alpha.values()))
    total, done = 3 * 3, 0
    for _ in range(3):
        batches = torch.randperm(len(rows), generator=order).split(4)
        for batch in (batches[i : i + 2] for i in range(0, len(batches), 2)):
            by_change = {name: torch.zeros_like(p) for name, p in base.items()}
            by_alpha = {name: torch.zeros_like(a) for name, a in alpha.items()}
            by_group = {name: torch.zeros_like(g) for name, g in groups.items()}
            examples = sum(map(len, batch))
            for index in batch:
                drawn = {name: formulas.gates(alpha[name], groups[name]) for name in base if name in alpha}
                now = {}
                for name, p in base.items():
                    z, _, z_g, _ = drawn.get(name, (torch.ones_like(p),) * 4)
                    now[name] = (p + z_g * z * change[name]).requires_grad_()
                x, y = rows.inputs[index], rows.labels[index]
                logits = F.linear(
                    torch.tanh(F.linear(x, now["0.weight"], now["0.bias"])), now["2.weight"], now["2.bias"]
                )
                (F.cross_entropy(logits, y) * len(index) / examples).backward()
                for name, w in now.items():
                    gradient = w.grad
                    assert gradient is not None
                    if name not in alpha:
                        by_change[name] += gradient
                        continue
                    z, dz, z_g, dz_g = drawn[name]
                    by_change[name] += gradient * z * z_g
                    by_alpha[name] += gradient * change[name] * z_g * dz
                    by_group[name] += (gradient * change[name] * z).sum() * dz_g
            for name in alpha:
                first, second = formulas.penalty_gradients(alpha[name], groups[name])
                by_alpha[name] += 1e-3 * first
                by_group[name] += 1e-3 * second
            lr = 0.01 * (total - done) / total
            change = moved(change, of_changes.step(flat(by_change), lr))
            both = of_gates.step(torch.cat([flat(by_alpha), flat(by_group)]), 0.1).split(
                [alpha_size(alpha), len(groups)]
            )
            alpha, groups = moved(alpha, both[0]), moved(groups, both[1]) if structured else groups
            done += 1
    found = {}
    for name, w in change.items():
        z, _, z_g, _ = formulas.gates(alpha[name], groups[name]) if name in alpha else (torch.ones_like(w),) * 4
        found[name] = (z_g * z * w).abs()
    return found, {name: base[name] + change[name] for name in base}


def alpha_size(alpha: dict[str, Tensor]) -> int:
    return sum(a.numel() for a in alpha.values())


@pytest.mark.parametrize("penalty", ["paper", "code"])
@pytest.mark.parametrize("structured", [True, False])
def test_stage_1_is_the_formulas_with_gradients_by_hand(structured: bool, penalty: Penalty) -> None:
    scores = score(small(), structured=structured, penalty=penalty)
    expected, start = reference_stage1(structured, penalty)
    assert list(scores) == list(expected)
    for name in expected:
        torch.testing.assert_close(scores[name], expected[name], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(scores.start[name], start[name], rtol=1e-9, atol=1e-12)
    hidden = torch.cat([scores[name].flatten() for name in ("0.weight", "0.bias")])
    assert hidden.any()


DRAWS = 400_000


@pytest.mark.parametrize("logit", [-3.0, -0.5, 0.0, 1.0, 5.0])
def test_gates_are_open_as_often_as_the_closed_form_says(logit: float) -> None:
    """P(z > 0), P(z = 1) and the mean of z, which is the integral over the uniform number."""
    network = nn.Linear(DRAWS, 1, bias=False).double()
    model = GatedModel(network, (), stream(3, "gates"), structured=False)
    model.gates["weight"].data.fill_(logit)
    model.changes["weight"].data.fill_(1.0)
    with torch.no_grad():
        z = model.change("weight")
    grid = (torch.arange(1_000_000).double() + 0.5) / 1_000_000
    exact = ((torch.logit(grid) + logit).sigmoid() * 3 - 1.5).clamp(0, 1)
    opened = 1 / (1 + math.exp(-logit))
    closed = 1 / (1 + math.exp(-logit + math.log(5)))  # above 5/6 of the sigmoid
    for found, expected in (((z > 0).double(), opened), ((z == 1).double(), closed), (z, exact.mean().item())):
        error = 5 * math.sqrt(expected * (1 - expected) / DRAWS) + 1e-4  # the numbers are cut at 1e-4
        assert found.mean().item() == pytest.approx(expected, abs=error)
    penalty = model.penalty("paper")
    assert penalty.item() == pytest.approx(DRAWS * opened)
    penalty.backward()
    gradient = model.gates["weight"].grad
    assert gradient is not None
    torch.testing.assert_close(gradient, torch.full_like(gradient, opened * (1 - opened)))


@pytest.mark.parametrize("kind", ["paper", "code"])
def test_the_penalty_is_the_product_of_the_paper_or_the_sum_of_the_code(kind: Penalty) -> None:
    model = GatedModel(mlp(), HEAD, stream(0, "gates"), structured=True)
    for i, logits in enumerate([*model.gates.values(), *model.tensor_gates.values()]):
        logits.data.copy_(torch.randn(logits.shape, generator=torch.Generator().manual_seed(i)))
    expected = 0.0
    for name in ("0.weight", "0.bias"):
        p, q = model.gates[name].sigmoid(), model.tensor_gates[name].sigmoid()
        expected += sum((a * q).item() if kind == "paper" else a.item() for a in p.flatten())
        expected += 0 if kind == "paper" else q.item()
    assert model.penalty(kind).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("structured", [True, False])
def test_gradients_are_those_of_finite_differences_at_the_same_draws(structured: bool) -> None:
    network, (inputs, labels) = tiny_bert(), sentences()
    head = ("classifier.weight", "classifier.bias")
    generator = torch.Generator()
    model = GatedModel(network.eval(), head, generator, structured=structured)
    for i, change in enumerate(model.changes.values()):
        change.data.copy_(0.1 * torch.randn(change.shape, generator=torch.Generator().manual_seed(i)))
    for logits in (*model.gates.values(), *model.tensor_gates.values()):
        logits.data.fill_(0.3)
    sloped = Counter[int]()
    names = ("bert.embeddings.word_embeddings.weight", "bert.encoder.layer.1.output.dense.weight", head[0])
    for seed, name in product(range(6), names):

        def loss(seed: int = seed) -> Tensor:
            generator.manual_seed(seed)
            return F.cross_entropy(model(**inputs).logits, labels)

        for number, part in enumerate((model.changes, model.gates, model.tensor_gates)):
            if name not in part:
                continue
            (gradient,) = torch.autograd.grad(loss(), part[name])
            for place in gradient.abs().flatten().topk(min(3, gradient.numel())).indices.tolist():
                entry = part[name].data.view(-1)
                entry[place] += 1e-6
                above = loss().item()
                entry[place] -= 2e-6
                below = loss().item()
                entry[place] += 1e-6
                slope = gradient.flatten()[place].item()
                assert (above - below) / 2e-6 == pytest.approx(slope, rel=1e-4, abs=1e-9)
                sloped[number] += slope != 0
    assert sloped[0] > 30
    assert sloped[1] > 20
    assert sloped[2] >= 3 * structured


def test_a_large_penalty_closes_the_gates_and_a_small_one_does_not() -> None:
    """As does the loss alone: entries whose change it wants stay open."""
    shares = []
    for weight in (0.0, 1e-7, 10.0):
        scores = score(small(), penalty_weight=weight, stage1_epochs=60)
        hidden = torch.cat([scores[name].flatten() for name in scores if name not in HEAD])
        shares.append((hidden > 0).double().mean().item())
        assert all(bool(scores[name].any()) for name in HEAD)
    assert shares[0] > 0.9
    assert shares[2] < 0.1


def everything(of: Problem) -> Iterator[Tensor]:
    yield from (tensor.clone() for tensor in of.model.state_dict().values())
    yield from (*of.random_streams().values(), of.order.get_state())


def test_model_and_streams_stay_as_they_are_and_scores_follow_from_the_seed() -> None:
    ours = small(conv_net(), (2, 4, 4))  # with running statistics, and dropout
    before = list(everything(ours))
    first = score(ours)
    assert all(torch.equal(old, new) for old, new in zip(before, everything(ours), strict=True))
    assert all(p.requires_grad and p.grad is None for p in ours.model.parameters())
    seed_torch(9, "dropout")
    ours.generator.manual_seed(0)
    again, other = score(ours), score(ours)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert all(torch.equal(first.start[name], again.start[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first if first[name].numel() > 4)


@pytest.mark.parametrize("decay", ["kept", "all"])
def test_kept_entries_begin_where_stage_1_has_brought_them_and_the_base_is_before_it(decay: Decay) -> None:
    network = mlp()
    generator = torch.Generator().manual_seed(2)
    mask = {name: torch.rand(p.shape, generator=generator) < 0.4 for name, p in network.named_parameters()}
    mask["0.bias"][:], mask["2.bias"][:] = True, False
    start = {name: torch.randn(p.shape, generator=generator).double() for name, p in network.named_parameters()}
    base = {name: p.detach().clone() for name, p in network.named_parameters()}
    trainable = Trainable.chosen(network, lambda: Started(mask, start), decay, known())
    for name, p in weights(network).items():
        assert torch.equal(p, torch.where(mask[name], start[name], base[name])), name
    if decay == "kept":
        for name, (values, positions) in trainable.entries().items():
            assert torch.equal(values.flatten(), start[name].flatten()[positions]), name
        delta, other = trainable.delta(), mlp()
        assert delta.changes == sum(int(kept.sum()) for kept in mask.values())
        delta.apply_(other)
        assert all(torch.equal(p, q) for p, q in zip(other.parameters(), weights(network).values(), strict=True))


def test_a_threshold_selects_as_in_the_authors_code() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = {"a": torch.rand(200, generator=generator) ** 4, "b": torch.rand(300, generator=generator) ** 4}
    scores["b"][:100] = 0
    scores |= {"head": torch.linspace(0.5, 1, 20)}
    mask = above_threshold(scores, 0.1, ["head"])
    everywhere = torch.cat([*scores.values()])
    threshold = next(t / 1e5 for t in range(100_001) if int((everywhere > t / 1e5).sum()) <= 52)
    assert all(mask["head"])
    for name in ("a", "b"):
        assert torch.equal(mask[name], scores[name] > threshold)
    assert int(mask["a"].sum() + mask["b"].sum()) + int((scores["head"] > threshold).sum()) == 52
    assert not above_threshold(scores | {"b": torch.zeros(300)}, 1.0, [])["b"].any()  # those that are 0 have no change


RUN = (*QUICK[:3], "method=diff_pruning", "stage1_epochs=1", "keep=0.02", "threads=1")


@pytest.fixture
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("_in_a_folder")
@pytest.mark.parametrize("compat", ["none", "fish"])
def test_a_run_keeps_k_entries_and_leaves_a_delta_like_any_other(compat: str, tmp_path: Path) -> None:
    from fishexp import load_run

    assert fishexp(*RUN, f"compat={compat}").status == 0
    (record,) = records(tmp_path)
    folder = run_folder("outputs")
    k = budget(0.02, record["total"])
    assert record["kept"] == k if compat == "none" else 0 < record["kept"] != k
    trained, _ = load_run(folder)
    delta = Delta.load(folder / "delta.safetensors")
    assert fishexp(*RUN, "epochs=0", "outputs=base").status == 0
    base, _ = load_run(run_folder("base"))
    mask = delta.mask(base)
    assert sum(int(kept.sum()) for kept in mask.values()) == record["kept"]
    for (name, p), before in zip(trained.named_parameters(), base.parameters(), strict=True):
        assert torch.equal(p[~mask[name]], before[~mask[name]]), name
    delta.apply_(base)
    assert all(torch.equal(p, q) for p, q in zip(base.parameters(), trained.parameters(), strict=True))


@pytest.mark.usefixtures("_in_a_folder")
def test_a_run_that_reads_its_scores_trains_as_one_that_computes_them(tmp_path: Path) -> None:
    assert fishexp(*RUN, "lr=0.1").status == 0
    assert fishexp(*RUN, "lr=0.05").status == 0
    assert fishexp(*RUN, "lr=0.05", "outputs=alone", "records=outputs/records.jsonl").status == 0
    assert [record["scores_read"] for record in records(tmp_path)] == [False, True, False]
    (alone,) = Path("alone").glob("*/*/*/*/delta.safetensors")
    assert alone.read_bytes() in [file.read_bytes() for file in Path("outputs").glob("*/*/*/*/delta.safetensors")]
    assert fishexp(*RUN, "lr=0.05", "seed=1").status == 0
    first, second = records(tmp_path)[-2:]
    assert first["metrics"] != second["metrics"]


@pytest.mark.usefixtures("_in_a_folder")
def test_a_run_that_is_cut_in_stage_3_resumes_to_the_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    run = (*RUN, "epochs=2", "snapshot_minutes=0")
    assert fishexp(*run, "outputs=whole").status == 0
    with monkeypatch.context() as patch:
        cut_after(3, patch)
        with pytest.raises(Cut):
            fishexp(*run, "outputs=cut")
    result = fishexp(*run, "outputs=cut", "resume=true")
    assert "continued from a snapshot after 3 steps" in result.out
    assert "learning gates" not in result.out
    assert_alike("whole", "cut")


@pytest.mark.usefixtures("_in_a_folder")
def test_where_it_cannot_be_right_it_is_refused() -> None:
    for regime in ("checkpointing", "distributed"):
        message = fishexp(*RUN, f"regime={regime}").mistake()
        assert message == f"method=diff_pruning needs regime=transfer, got regime={regime}"
    assert "unknown key method.unit" in fishexp(*RUN, "method.unit=row").mistake()
    network = tiny_bert()
    network.activation_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
    with pytest.raises(FishexpError, match=r"take model\.activation_checkpointing=false"):
        score(problem(network, (5,)))
