"""The transfer regime against a plain loop in float64, and what a method must not change."""

import math
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fishexp.data.datasets import Dataset
from fishexp.data.images import Images
from fishexp.data.metrics import accuracy
from fishexp.masks.topk import Mask
from fishexp.methods import fish, magnitude, random
from fishexp.regimes import transfer
from fishexp.sparse.parameter import weights
from fishexp.training.logger import Logger
from fishexp.training.snapshots import Snapshots
from fishexp.training.trainable import Decay
from tests.support.cases import CLASSES, conv_net
from tests.support.training import ALL_EPOCHS, EXAMPLES, mlp, problem


def some(model: nn.Module) -> Mask:
    generator = torch.Generator().manual_seed(5)
    return {name: torch.rand(p.shape, generator=generator) < 0.4 for name, p in model.named_parameters()}


EPOCHS, SIZE, GROUP, LR, DECAY, WARMUP, CLIP = 4, 4, 2, 0.5, 0.1, 1, 0.2


def plain_loop(decay: Decay, drop_last: bool) -> tuple[nn.Module, list[list[int]]]:
    """What the regime should do, spelled out: mask, clip, decay, Nesterov momentum, straight lines up and down."""
    model, rows = mlp(), problem(mlp(), (5,)).data.train
    mask, order = some(model), torch.Generator().manual_seed(1)
    momentum = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    used = EXAMPLES // SIZE * SIZE if drop_last else EXAMPLES
    steps = math.ceil(math.ceil(used / SIZE) / GROUP)
    asked: list[list[int]] = []
    for epoch in range(EPOCHS):
        batches = torch.randperm(EXAMPLES, generator=order)[:used].split(SIZE)
        asked += [batch.tolist() for batch in batches]
        for step in range(steps):
            index = torch.cat(batches[GROUP * step : GROUP * (step + 1)])
            model.zero_grad()
            F.cross_entropy(model(rows.inputs[index]), rows.labels[index]).backward()
            t, total, rise = epoch * steps + step, EPOCHS * steps, WARMUP * steps
            lr = LR * min((t + 1) / rise, (total - t) / (total - rise))
            with torch.no_grad():
                gradients = {name: p.grad * mask[name] for name, p in model.named_parameters() if p.grad is not None}
                norm = torch.cat([gradient.flatten() for gradient in gradients.values()]).norm()
                for name, p in model.named_parameters():
                    gradient = gradients[name] * min(1.0, CLIP / (norm + 1e-6))
                    gradient = gradient + DECAY * p * (mask[name] if decay == "kept" else 1)
                    momentum[name].mul_(0.9).add_(gradient)
                    p -= lr * (gradient + 0.9 * momentum[name])
    return model, asked


OPTIONS = {
    "epochs": EPOCHS, "batch_size": SIZE, "accumulate": GROUP, "lr": LR, "optimiser": "sgd", "weight_decay": DECAY,
    "warmup": WARMUP, "clip": CLIP, "evaluation_batch_size": 5, **ALL_EPOCHS,
}  # fmt: skip


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("decay", ["kept", "all"])
def test_training_equals_the_plain_loop(decay: Decay, drop_last: bool, tmp_path: Path) -> None:
    ours = problem(mlp(), (5,))
    mask = some(ours.model)
    with Logger(tmp_path, "", {}, "disabled") as log:
        snapshots = Snapshots(tmp_path / "snapshots", minutes=math.inf)
        outcome = transfer.train(ours, lambda: mask, log, snapshots, [], decay, drop_last=drop_last, **OPTIONS)  # type: ignore[arg-type]
    metrics = outcome.evaluation.metrics
    reference, asked = plain_loop(decay, drop_last)
    for found, expected in zip(weights(ours.model).values(), reference.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert ours.data.train.asked == asked
    assert all(ours.data.train.augmented)

    before, rows = mlp(), ours.data.train
    unmoved = [found == p for found, p in zip(weights(ours.model).values(), before.parameters(), strict=True)]
    frozen = [~kept for kept in mask.values()]
    for same, off in zip(unmoved, frozen, strict=True):
        assert bool(same[off].all()) if decay == "kept" else not bool(same[off].any())
    logits = reference(rows.inputs)
    assert metrics["accuracy"] == (logits.argmax(-1) == rows.labels).double().mean().item()
    assert metrics["loss"] == pytest.approx(F.cross_entropy(logits, rows.labels).item(), rel=1e-9)
    predicted = logits.argmax(-1).bincount().max().item()
    assert metrics["largest_predicted"] == predicted / len(rows)
    assert metrics["largest_class"] == rows.labels.bincount().max().item() / len(rows)


def test_training_resumes_from_what_it_is_given_and_keeps_none_of_it(tmp_path: Path) -> None:
    """Twice: from nothing, and from the last snapshot but one, with the mask that it has."""
    resumed, trained = [], []
    for masks in (iter([some(mlp())]), iter([])):
        ours = problem(mlp(), (5,))
        with Logger(tmp_path, "", {}, "disabled") as log:
            snapshots = Snapshots(tmp_path / "snapshots", minutes=0)
            transfer.train(ours, masks.__next__, log, snapshots, resumed, "kept", drop_last=False, **OPTIONS)  # type: ignore[arg-type]
        assert resumed == []  # its tensors may be as large as the model
        trained.append([p.detach().clone() for p in weights(ours.model).values()])
        shutil.rmtree(max((tmp_path / "snapshots").iterdir()))
        resumed = snapshots.load()
        assert [snapshot.about["steps"] for snapshot in resumed] == [EPOCHS * 3 - 1]
    assert all(torch.equal(first, second) for first, second in zip(*trained, strict=True))


def test_the_method_changes_neither_the_order_of_the_data_nor_their_augmentation(tmp_path: Path) -> None:
    """Scoring draws examples, labels and random scores from a stream of its own, and clean examples."""
    orders = []
    for scores in (
        lambda p: fish.scores(p, samples=9, labels="sampled", power="square"),
        lambda p: random.scores(p, unit="entry"),
        lambda p: magnitude.scores(p, order="largest"),
    ):
        ours = problem(mlp(), (5,))
        scores(ours)
        scored = len(ours.data.train.asked)
        assert not any(ours.data.train.augmented)
        with Logger(tmp_path, "", {}, "disabled") as log:
            snapshots = Snapshots(tmp_path / "snapshots", minutes=math.inf)
            transfer.train(ours, lambda p=ours: some(p.model), log, snapshots, [], "kept", drop_last=False, **OPTIONS)  # type: ignore[arg-type]
        orders.append(ours.data.train.asked[scored:])
    assert orders[0] == orders[1] == orders[2]


def test_fish_scores_distinct_examples_in_random_order_and_says_when_there_are_fewer(
    caplog: pytest.LogCaptureFixture,
) -> None:
    ours = problem(conv_net(), (2, 4, 4))
    fish.scores(ours, samples=9, labels="true_label", power="square")
    (asked,) = ours.data.train.asked
    assert len(set(asked)) == 9
    assert asked != sorted(asked)
    fish.scores(ours, samples=100, labels="true_label", power="square")
    assert sorted(ours.data.train.asked[-1]) == list(range(EXAMPLES))
    assert "method.samples=100: there are 22 training examples, all are used" in caplog.text


@pytest.mark.parametrize("trained", [False, True])
def test_compat_scores_augmented_examples_in_the_mode_of_the_original(trained: bool) -> None:
    """Its first mask was scored in training mode, batch normalisation of one image, whose running statistics move."""
    ours = problem(conv_net().eval(), (2, 4, 4), as_original=True)
    norm = ours.model.get_submodule("1")
    assert isinstance(norm, nn.BatchNorm2d)
    if not trained:
        norm.reset_running_stats()
    assert norm.running_mean is not None
    before = norm.running_mean.clone()
    fish.scores(ours, samples=9, labels="true_label", power="square")
    assert all(ours.data.train.augmented)
    assert torch.equal(norm.running_mean, before) == trained


def test_random_scores_spare_no_layer() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(100, 100), nn.Linear(100, 100))
    scores = random.scores(problem(model, (100,)), unit="entry")
    for name, score in scores.items():
        if name.endswith("weight"):
            share = (score > 0.9).double().mean().item()
            assert 0.08 < share < 0.12, name
    assert not torch.equal(scores["0.weight"], scores["1.weight"])


def test_magnitude_scores() -> None:
    model = mlp()
    largest, smallest = (magnitude.scores(problem(model, (5,)), order=order) for order in ("largest", "smallest"))
    for name, p in model.named_parameters():
        assert torch.equal(largest[name], p.abs())
        assert torch.equal(smallest[name], -p.abs())


def test_bf16_rounds_what_is_computed_and_not_the_weights() -> None:
    exact, rounded = (problem(mlp().float(), (5,), precision=precision) for precision in ("fp32", "bf16"))
    inputs = exact.data.train.inputs.float()
    a, b = exact.logits(inputs), rounded.logits(inputs)
    assert b.dtype == torch.float32
    assert not torch.equal(a, b)
    torch.testing.assert_close(a, b, rtol=0.02, atol=0.02)
    assert all(p.dtype == torch.float32 for p in rounded.model.parameters())


def test_images_are_augmented_in_training_only() -> None:
    pixels = torch.randint(256, (EXAMPLES, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    ours = problem(mlp(), (5,))
    images = Images(pixels, torch.zeros(EXAMPLES, dtype=torch.long), mean=(0.5,), std=(0.5,), crop=2, cutout=3)
    ours.data = Dataset(images, {"": images}, CLASSES, 1, accuracy)
    clean = images.normalise(pixels)
    trained = torch.cat([inputs for inputs, _ in ours.epoch(4, drop_last=False) if isinstance(inputs, Tensor)])
    assert not torch.equal(trained.sort(0).values, clean.sort(0).values)
    for batches in (ours.batches(4), ours.evaluation(images, 4)):
        assert torch.equal(torch.cat([inputs for inputs, _ in batches if isinstance(inputs, Tensor)]), clean)


def test_sentences_are_scored_longest_first_and_are_the_ones_that_were_drawn() -> None:
    ours, by_length = problem(mlp(), (5,)), problem(mlp(), (5,))
    by_length.data.train.lengths = (torch.arange(EXAMPLES) * 7) % 5
    drawn, _ = (list(p.batches(4, shuffle=True, limit=10)) for p in (ours, by_length))
    assert [len(labels) for _, labels in drawn] == [4, 4, 2]
    expected, found = ([i for asked in p.data.train.asked for i in asked] for p in (ours, by_length))
    assert found == sorted(expected, key=lambda i: -by_length.data.train.lengths[i])  # stable
    assert torch.equal(ours.generator.get_state(), by_length.generator.get_state())
