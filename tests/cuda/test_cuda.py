"""What holds on the CPU holds on a GPU: training, scores, masks, deltas, whole runs. `make test-cuda`, on a GPU."""

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fishexp as library
from fishexp.fisher import cuda_graphs, diagonal_fisher
from fishexp.fisher.batches import logits_of
from fishexp.fisher.cuda_graphs import OFTEN
from fishexp.masks import top_k
from fishexp.masks.random_masks import random_scores
from fishexp.models import resnet
from fishexp.run.record import read
from fishexp.sparse import sparsify, together
from fishexp.sparse.parameter import SparseParameter, weights
from fishexp.training.passes import graphed_passes
from tests.support.cases import NETS, batched
from tests.support.cli import fishexp
from tests.support.modules import mask_of, random_mask
from tests.support.resuming import SMALL, Cut, assert_alike, cut_after
from tests.support.training import problem

DEVICE = torch.device("cuda")

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU on this machine"),
]

OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True),
    "SGD, fused": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, fused=True),
    "AdamW, foreach": lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0, foreach=True),
    "AdamW, fused": lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0, fused=True),
}


def on_device(data: tuple[Any, Tensor]) -> tuple[Any, Tensor]:
    inputs, labels = data
    if isinstance(inputs, dict):
        return {name: tensor.to(DEVICE) for name, tensor in inputs.items()}, labels.to(DEVICE)
    return inputs.to(DEVICE), labels.to(DEVICE)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, data: tuple[Any, Tensor]) -> None:
    F.cross_entropy(logits_of(model, data[0]), data[1]).backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("net", NETS)
def test_training_is_dense_training_with_masked_gradients(net: str, optimizer: str) -> None:
    """In float64, after every step, and in state_dict; entries outside the mask keep their bits."""
    build, data = NETS[net]
    model, dense = build().to(DEVICE).eval(), build().to(DEVICE).eval()
    mask = {name: kept.to(DEVICE) for name, kept in random_mask(build()).items()}
    before = {name: p.detach().clone() for name, p in dense.named_parameters()}
    sparse = sparsify(model, mask)
    for name, p in dense.named_parameters():
        p.register_hook(lambda gradient, kept=mask[name]: gradient * kept)
    steppers = OPTIMIZERS[optimizer](sparse.parameters()), OPTIMIZERS[optimizer](dense.parameters())
    batch = on_device(data())
    for _ in range(5):
        step(model, steppers[0], batch)
        step(dense, steppers[1], batch)
        now = model.state_dict()
        for name, p in dense.named_parameters():
            torch.testing.assert_close(now[name], p.detach(), rtol=1e-9, atol=1e-11, msg=name)
            assert torch.equal(now[name][~mask[name]], before[name][~mask[name]]), name
    with torch.no_grad():
        torch.testing.assert_close(logits_of(model, batch[0]), logits_of(dense, batch[0]), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("net", NETS)
def test_a_step_never_waits_for_the_device(net: str) -> None:
    build, data = NETS[net]
    model = build().to(DEVICE).train()
    sparse = sparsify(model, {name: kept.to(DEVICE) for name, kept in random_mask(build()).items()})
    optimizer, (inputs, labels) = torch.optim.AdamW(sparse.parameters(), 0.01, fused=True), on_device(data())
    if isinstance(inputs, dict):
        del inputs["attention_mask"]  # transformers looks whether there is padding
    batch = inputs, labels
    for _ in range(2):  # the first passes look for misuse
        step(model, optimizer, batch)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(model, optimizer, batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("net", NETS)
def test_weights_follow_together_as_they_do_one_by_one(net: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the bit: after steps, a weight loaded, a weight or values written through .data, and both at once."""
    build, data = NETS[net]
    batch = on_device(data())

    def trained(*, one_by_one: bool) -> dict[str, Tensor]:
        model = build().to(DEVICE).eval()
        sparse = sparsify(model, {name: kept.to(DEVICE) for name, kept in random_mask(build()).items()})
        if one_by_one:
            together.stop(model)
        else:
            monkeypatch.setattr(SparseParameter, "reconcile", refused)
        optimizer = torch.optim.AdamW(sparse.parameters(), 0.01, fused=True)
        written = next(k for k in model.modules() if isinstance(k, SparseParameter))
        for change in (
            lambda: None,
            lambda: written.weight.data.mul_(1.5),
            lambda: written.values.data.add_(0.25),
            lambda: (written.weight.data.zero_(), written.values.data.add_(0.5)),
        ):
            step(model, optimizer, batch)
            change()
            with torch.no_grad():
                logits_of(model, batch[0])
        monkeypatch.undo()
        return {name: tensor.clone() for name, tensor in model.state_dict().items()}

    found, expected = trained(one_by_one=False), trained(one_by_one=True)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def refused(kept: SparseParameter) -> None:
    raise AssertionError(f"{kept.name} was reconciled by itself")


def test_a_step_asks_for_few_more_operations_than_a_dense_one() -> None:
    """Of a layer it takes the kept entries; how many weights there are costs nothing else."""
    build, data = NETS["bert"]
    batch = on_device(data())

    def launches(*, dense: bool) -> int:
        model = build().to(DEVICE).train()
        parameters = list(model.parameters())
        if not dense:
            parameters = sparsify(model, mask_of(model)).parameters()
        optimizer = torch.optim.AdamW(parameters, 0.01, fused=True)
        for _ in range(3):
            step(model, optimizer, batch)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            step(model, optimizer, batch)
            torch.cuda.synchronize()
        return sum(event.count for event in profile.key_averages() if event.self_device_time_total)

    assert launches(dense=False) < 1.5 * launches(dense=True)


@pytest.mark.parametrize("labels", ["true_label", "expected"])
@pytest.mark.parametrize("net", NETS)
def test_scores_are_those_of_the_cpu(net: str, labels: Any) -> None:
    build, data = NETS[net]
    inputs, targets = data()
    expected = diagonal_fisher(build(), batched(inputs, targets), labels)
    batches = [on_device(batch) for batch in batched(inputs, targets)]
    for name, score in diagonal_fisher(build().to(DEVICE), batches, labels).items():
        assert score.device.type == DEVICE.type
        torch.testing.assert_close(score.cpu(), expected[name], rtol=1e-6, atol=1e-12, msg=name)


def test_examples_are_scored_in_a_batch(caplog: pytest.LogCaptureFixture) -> None:
    """In float32 too, whose convolutions have fewer bits on a GPU unless they are told."""
    images, labels = torch.randn(8, 3, 16, 16, device=DEVICE), torch.randint(10, (8,), device=DEVICE)
    torch.manual_seed(0)
    model = resnet.build(10, 3, layers=8, path=None).network.to(DEVICE)
    conv: Any = torch.backends.cudnn.conv  # pyright: ignore[reportAttributeAccessIssue]
    allowed = conv.fp32_precision
    diagonal_fisher(model, [(images, labels)])
    assert "one example at a time" not in caplog.text
    assert conv.fp32_precision == allowed


@pytest.mark.parametrize("kind", ["true_label", "expected"])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_examples_alone_are_scored_by_replays(
    kind: Any, precision: torch.dtype, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the original does it: in training mode, so that running statistics move. To the bit as without graphs."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    images, labels = torch.randn(2 * OFTEN, 3, 16, 16, device=DEVICE), torch.randint(10, (2 * OFTEN,), device=DEVICE)
    torch.manual_seed(0)
    models = [resnet.build(10, 3, layers=8, path=None).network.to(DEVICE).train()]
    models.append(copy.deepcopy(models[0]))
    torch.use_deterministic_algorithms(True)
    try:
        with caplog.at_level("DEBUG"), torch.autocast("cuda", torch.bfloat16, enabled=precision == torch.bfloat16):
            batches = [(images[:OFTEN], labels[:OFTEN]), (images[OFTEN:], labels[OFTEN:])]
            found, expected = (
                diagonal_fisher(model, batches, kind, as_is=True, cuda_graphs=graphs)
                for model, graphs in zip(models, (True, False), strict=True)
            )
    finally:
        torch.use_deterministic_algorithms(False)
    assert caplog.text.count("passes are CUDA graphs") == 1
    assert all(torch.equal(score, expected[name]) for name, score in found.items())
    assert all(torch.equal(a, b) for a, b in zip(*(model.buffers() for model in models), strict=True))


def test_masks_are_those_of_the_cpu() -> None:
    """Ties too, and random masks by their seed."""
    generator = torch.Generator().manual_seed(0)
    scores = {name: torch.randint(50, (300, 70), generator=generator).float() for name in "abc"}
    for keep in (0.001, 0.1, 0.7):
        found = top_k(
            {name: score.to(DEVICE) for name, score in scores.items()}, keep, always=["b"] if keep > 0.5 else ()
        )
        for name, kept in top_k(scores, keep, always=["b"] if keep > 0.5 else ()).items():
            assert torch.equal(found[name].cpu(), kept)
    shapes = {name: score.shape for name, score in scores.items()}
    drawn = top_k(random_scores(shapes, 7), 0.01)
    assert sum(int(kept.sum()) for kept in drawn.values()) == int(0.01 * 3 * 300 * 70)


@pytest.mark.parametrize("net", NETS)
def test_a_delta_is_applied_and_undone_to_the_bit(net: str, tmp_path: Path) -> None:
    build, data = NETS[net]
    model = build().to(DEVICE).eval()
    sparse = sparsify(model, {name: kept.to(DEVICE) for name, kept in random_mask(build()).items()})
    optimizer = torch.optim.AdamW(sparse.parameters(), 0.01, fused=True)
    step(model, optimizer, on_device(data()))
    sparse.delta().save(tmp_path / "delta.safetensors")
    tuned = {name: p.detach().clone() for name, p in weights(model).items()}
    delta = library.Delta.load(tmp_path / "delta.safetensors")
    for target in (build().to(DEVICE), build()):
        before = copy.deepcopy(target.state_dict())
        undo = delta.apply_(target)
        assert all(torch.equal(p.to(DEVICE), tuned[name]) for name, p in target.named_parameters())
        undo.revert_()
        assert all(torch.equal(tensor, before[name]) for name, tensor in target.state_dict().items())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("method", ["fish", "random", "full", "fish method.unit=row"])
def test_a_run(method: str, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    options = [*f"method={method}".split(), "data=digits", "regime.epochs=4", "device=cuda", f"precision={precision}"]
    assert fishexp(*options, *(["keep=0.1"] if method != "full" else [])).status == 0
    (record,) = read(Path("outputs/records.jsonl"))
    assert record["status"] == "finished"
    assert record["device"] == torch.cuda.get_device_name()
    assert record["metrics"]["accuracy"] > 0.5
    assert 0 < record["peak_memory_bytes"] < 4e9
    assert set(record["gradient_methods"].values()) == ({"dense"} if method != "full" else set())  # convolutions
    (folder,) = Path("outputs/digits").glob("*/*/*")
    model, _ = library.load_run(folder)
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())


@pytest.mark.parametrize(
    ("data", "method"),
    [
        *(("digits", method) for method in ("fish", "random", "full", "fish decay=all", "fish regime.clip=0.1")),
        ("digits", "fish regime=checkpointing regime.mask=every_epoch"),
        ("digits", "fish regime=checkpointing regime.mask=every_epoch compat=fish decay=all"),
        *(("csv", method) for method in ("fish", "random", "full", "lora")),
    ],
)
def test_a_run_is_as_without_graphs(
    data: str, method: str, bert_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images, BatchNorm, a smaller last batch; sentences of several lengths, padding, dropout. To the bit."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    monkeypatch.setattr(cuda_graphs, "OFTEN", 3)
    keep = 0.2 if method == "lora" else 0.1  # LoRA of rank 1 takes more in a model this small
    options = [*f"method={method}".split(), f"keep={keep}", "device=cuda", "regime.epochs=8"]
    if data == "csv":
        options += sentences_of_several_lengths(bert_folder)
    torch.use_deterministic_algorithms(True)
    try:
        for outputs in ("graphs", "plain"):
            result = fishexp(*options, f"outputs={outputs}", f"cuda_graphs={outputs == 'graphs'}")
            assert result.status == 0
            assert ("passes are CUDA graphs from here on" in result.out) == (outputs == "graphs")
    finally:
        torch.use_deterministic_algorithms(False)
    assert_alike("graphs", "plain")


def sentences_of_several_lengths(bert: Path) -> list[str]:
    """Write 120 of them in the words that the BERT knows; return the options to learn from them."""
    words = (bert / "vocab.txt").read_text().split()[5:12]
    lines = [" ".join(words[(i + j) % 7] for j in range(i % 5 + 1)) + f",{i % 2}" for i in range(120)]
    Path("train.csv").write_text("sentence,label\n" + "\n".join(lines) + "\n")
    return [
        *["data=csv", "data.train=train.csv", "data.max_length=20", "regime.batch_size=8"],
        *["model=minilm", "model.pretrained=false", f"model.path={bert}"],
    ]


def test_a_model_that_waits_for_the_device_trains_without_graphs() -> None:
    class Waits(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum().item() < math.inf else -x

    torch.manual_seed(0)
    model = nn.Sequential(Waits(), nn.Linear(5, 3)).double().to(DEVICE)
    ours = replace(problem(model, (5,)), device=DEVICE)
    said: list[str] = []
    passes = graphed_passes(ours, list(model.parameters()), said.append)
    inputs, labels = on_device(ours.data.train.batch(torch.arange(4)))
    losses = []
    for _ in range(OFTEN + 3):
        losses.append(passes(inputs, labels, 1).item())
        assert all(p.grad is not None for p in model.parameters())
        model.zero_grad()
    assert len(set(losses)) == 1
    assert torch.cuda.current_stream() == torch.cuda.default_stream()  # and not that of the capture that failed
    assert len(said) == 1
    assert "passes are no CUDA graphs" in said[0]
    torch.cuda.empty_cache()  # which no allocator does that is in a capture still
    ours = replace(problem(nn.Sequential(*model[1:]), (5,)), device=DEVICE)
    passes = graphed_passes(ours, list(model.parameters()), said.append)
    for _ in range(OFTEN + 3):
        assert passes(inputs, labels, 1).item() == losses[0]
        model.zero_grad()
    assert "passes are CUDA graphs" in said[1]


@pytest.mark.parametrize("net", NETS)
def test_a_whole_step_is_captured_by_hand(net: str) -> None:
    """As a loop of one's own may: forward and backward pass and AdamW in one graph; in float64, against steps."""
    build, data = NETS[net]
    inputs, labels = on_device(data())
    mask = {name: kept.to(DEVICE) for name, kept in random_mask(build()).items()}
    models = [build().to(DEVICE).eval() for _ in range(2)]
    optimizers = [torch.optim.AdamW(sparsify(m, mask).parameters(), 0.01, fused=True, capturable=True) for m in models]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step(models[0], optimizers[0], (inputs, labels))
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        F.cross_entropy(logits_of(models[0], inputs), labels).backward()
        optimizers[0].step()
    for _ in range(4):
        graph.replay()
    for _ in range(7):
        step(models[1], optimizers[1], (inputs, labels))
    expected = models[1].state_dict()
    for name, tensor in models[0].state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-9, atol=1e-11, msg=name)


@pytest.mark.parametrize("regime", ["transfer", "checkpointing"])
def test_a_run_that_was_cut_ends_as_one_that_was_not(
    regime: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    monkeypatch.setattr(cuda_graphs, "OFTEN", 1)  # so that passes are graphs by then
    options = (*SMALL, f"regime={regime}", "regime.epochs=3", "device=cuda")
    torch.use_deterministic_algorithms(True)
    try:
        assert fishexp(*options, "outputs=whole").status == 0
        with monkeypatch.context() as patch:
            cut_after(3, patch)
            with pytest.raises(Cut):
                fishexp(*options, "outputs=cut", "snapshot_minutes=0", "resume=true")
        assert fishexp(*options, "outputs=cut", "snapshot_minutes=0", "resume=true").status == 0
    finally:
        torch.use_deterministic_algorithms(False)
    assert_alike("whole", "cut")
