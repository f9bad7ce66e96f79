"""Deltas of several tasks merged on one backbone: each keeps its own head, in memory and on disk."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from safetensors.torch import save_file
from torch import Tensor, nn

from fishexp.delta import Delta, merge_tasks
from fishexp.delta.__main__ import main
from fishexp.delta.tasks import task_names
from fishexp.masks import top_k
from fishexp.masks.random_masks import random_scores
from fishexp.sparse import sparsify
from fishexp.sparse.parameter import weights
from tests.support.checks import refusal
from tests.support.delta_cases import same_bits, snapshot

pytestmark = pytest.mark.usefixtures("quiet_transformers")

INPUTS = {"input_ids": torch.tensor([[2, 7, 9, 4, 3], [2, 5, 5, 8, 3]])}
LABELS = [["no", "yes"], ["contradiction", "neutral", "entailment"], ["yes", "no"]]


def config(**options: Any) -> hf.BertConfig:
    return hf.BertConfig(
        vocab_size=40, hidden_size=16, num_attention_heads=2, num_hidden_layers=1, intermediate_size=32,
        max_position_embeddings=20, **options,
    )  # fmt: skip


def trained(base: nn.Module, task: int, fresh: bool) -> tuple[nn.Module, Delta]:
    """A classifier of the task's labels on the backbone of ``base``, of which a tenth moved."""
    torch.manual_seed(task + 1)
    model = hf.BertForSequenceClassification(config(id2label=dict(enumerate(LABELS[task])))).eval()
    head = [name for name in model.state_dict() if name.startswith("classifier")]
    skipped = head if fresh else []
    model.load_state_dict({n: t for n, t in base.state_dict().items() if n not in skipped}, strict=False)
    mask = top_k(random_scores({name: p.shape for name, p in weights(model).items()}, task), 0.2, head)
    sparse = sparsify(model, mask)
    for values in sparse.parameters():
        values.grad = torch.randn_like(values)
    torch.optim.SGD(sparse.parameters(), lr=0.1).step()
    delta = sparse.delta(fresh=head) if fresh else sparse.delta()
    sparse.restore()
    return model, delta


def expected(base: nn.Module, models: list[nn.Module], how: str) -> list[dict[str, Tensor]]:
    """By hand: differences to the backbone, added where several models moved an entry, and each model's own head."""
    found = []
    for model in models:
        state = snapshot(model)
        for name, start in base.state_dict().items():
            if not name.startswith("classifier"):
                others = torch.stack([other.state_dict()[name] for other in models])
                moved = (others != start).sum(0)
                total = start.double() + (others.double() - start.double()).sum(0) / (
                    moved.clamp(min=1) if how == "mean" else 1
                )
                one = torch.where(others != start, others, 0).sum(0)  # of a single model: its very value
                state[name] = torch.where(moved == 1, one, torch.where(moved == 0, start, total.float()))
        found.append(state)
    return found


def logits(model: nn.Module, state: dict[str, Tensor]) -> Tensor:
    model = copy.deepcopy(model).eval()
    model.load_state_dict(state)
    with torch.no_grad():
        return model(**INPUTS).logits


def base_model() -> nn.Module:
    torch.manual_seed(0)
    return hf.BertForSequenceClassification(config()).eval()


@pytest.mark.parametrize("how", ["sum", "mean"])
def test_each_head_on_the_merged_backbone_in_memory(how: Any) -> None:
    base = base_model()
    models, deltas = map(list, zip(*(trained(base, task, fresh=True) for task in range(3)), strict=True))
    below = {n: t for n, t in snapshot(base).items() if not n.startswith("classifier")}
    tasks = merge_tasks(deltas, below, how)
    assert tasks.overlap.count > 50
    for task, (model, state) in enumerate(zip(models, expected(base, models, how), strict=True)):
        target = copy.deepcopy(model)
        target.load_state_dict(base.state_dict() | {n: t for n, t in snapshot(model).items() if n[:10] == "classifier"})
        undo = tasks.task(task).apply_(target)
        assert same_bits(target, state)
        assert torch.equal(logits(target, snapshot(target)), logits(model, state))
        undo.revert_()
        as_dict = snapshot(below)
        tasks.backbone.apply_(as_dict)
        tasks.heads[task].apply_(as_dict)
        assert same_bits(as_dict, state)


@pytest.mark.parametrize("form", ["folder", "below", "shards", "file"])
@pytest.mark.parametrize("beside", [True, False])
def test_each_head_on_the_merged_backbone_on_disk(
    form: str, beside: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """OUT is a folder that transformers loads, and with the delta of a head the folder of that task's classifier."""
    base, files = base_model(), []
    folder = tmp_path / "base"
    match form:
        case "folder":
            base.save_pretrained(folder)  # type: ignore[operator]
        case "below":
            base.bert.save_pretrained(folder)  # type: ignore[operator,union-attr]
        case "shards":
            base.save_pretrained(folder, max_shard_size="4KB")  # type: ignore[operator]
        case "file":
            save_file(base.state_dict(), folder)
    models = []
    for task in range(3):
        model, delta = trained(base, task, fresh=True)
        files.append(tmp_path / f"task{task}" / "delta.safetensors")
        files[-1].parent.mkdir()
        delta.save(files[-1])
        if beside:
            model.config.architectures = ["BertForSequenceClassification"]  # type: ignore[union-attr]
            model.config.save_pretrained(files[-1].parent)  # type: ignore[operator,union-attr]
        models.append(model)
    out = tmp_path / "out"
    arguments = ["merge", str(folder), *map(str, files), "-o", str(out)]
    capsys.readouterr()
    assert main(arguments) == 2
    words = "classifier.bias: the deltas make its shape (2,) and (3,); one of them has to change, or --keep-heads "
    assert words in capsys.readouterr().err
    assert main([*arguments, "--keep-heads"]) == 0
    printed = capsys.readouterr().out
    assert f"{out}/heads/task1: classifier.bias (3,), classifier.weight (3, 16)\n" in printed
    assert "the deltas meet in " in printed.splitlines()[-1]

    states = expected(base, models, "sum")
    if form != "file":
        backbone = hf.BertModel.from_pretrained(out)
        assert same_bits(backbone, {n[5:]: t for n, t in states[0].items() if n.startswith("bert.")})
    for task, (model, state) in enumerate(zip(models, states, strict=True)):
        head = out / "heads" / f"task{task}" / "delta.safetensors"
        assert main(["apply", str(out), str(head), "-o", str(tmp_path / f"model{task}")]) == 0
        again = (
            hf.AutoModelForSequenceClassification.from_pretrained(tmp_path / f"model{task}")
            if (form != "file" or beside)
            else None
        )
        if again is None:  # nobody said what the model is
            assert not (tmp_path / f"model{task}" / "config.json").exists()
            continue
        assert same_bits(again, state)
        assert torch.equal(logits(again, snapshot(again)), logits(model, state))
        names = LABELS[task] if beside else [f"LABEL_{i}" for i in range(len(LABELS[task]))]
        assert again.config.id2label == dict(enumerate(names))
        assert again.config.architectures == ["BertForSequenceClassification"]


def test_a_head_that_the_base_has_is_kept_for_each_task(tmp_path: Path) -> None:
    """Without --keep-heads their differences are added."""
    base = base_model()
    models, deltas = map(list, zip(*(trained(base, task, fresh=False) for task in (0, 2)), strict=True))
    tasks = merge_tasks(deltas, base)
    for task, state in enumerate(expected(base, models, "sum")):
        target = copy.deepcopy(base)
        tasks.task(task).apply_(target)
        assert same_bits(target, state)
    untouched = Delta.diff(base, base)
    tasks = merge_tasks([*deltas, untouched], base)
    assert torch.equal(tasks.heads[2].values("classifier.weight").view(2, 16), base.classifier.weight)  # type: ignore[union-attr]


def test_what_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = base_model()
    _, delta = trained(base, 0, fresh=False)
    state = snapshot(base)
    below = {n: t for n, t in state.items() if not n.startswith("classifier")}
    moved = below | {"bert.pooler.dense.bias": torch.ones(16)}
    words = "no delta has a head of its own, so there is none to keep; merge without --keep-heads"
    assert refusal(merge_tasks, [Delta.diff(below, moved)], below) == words
    other = state | {"classifier.bias": torch.ones(2)}
    words = "delta 2 is for another base: classifier.bias has other values than in the delta's base"
    assert refusal(merge_tasks, [Delta.diff(other, other), delta], other) == words
    words = "delta 1 is for another base: classifier.bias is missing, the delta's base has float32 (2,)"
    assert refusal(merge_tasks, [delta], below) == words
    delta.values("classifier.bias")[0] += 1
    words = "the delta contradicts itself: its values of classifier.bias do not give its result"
    assert refusal(merge_tasks, [delta], base) == words
    save_file(state, tmp_path / "base")
    delta.save(tmp_path / "d")
    here = sorted(tmp_path.rglob("*"))
    arguments = ["merge", "--keep-heads", str(tmp_path / "base"), str(tmp_path / "d"), "-o", str(tmp_path / "out")]
    assert main(arguments) == 2
    assert capsys.readouterr().err == f"fishexp.delta: {words}\n"
    assert sorted(tmp_path.rglob("*")) == here


@pytest.mark.parametrize(
    ("files", "names"),
    [
        ("/r/glue-sst2/s0-a/delta.safetensors /r/glue-mrpc/s0-b/delta.safetensors", "glue-sst2 glue-mrpc"),
        ("/r/one.safetensors /r/two.safetensors", "one two"),
        ("/r/a/x.1 /r/a/x.2 /r/b/x.3", "x.1 x.2 x.3"),
        ("/r/a/x /r/a/y /r/b/x", "1 2 3"),
        ("/r/x /r/x", "1 2"),
        ("/r/only.safetensors", "only"),
        ("/r/../a/x /r/b/x", "a r"),
    ],
)
def test_names_of_tasks(files: str, names: str) -> None:
    assert task_names([Path(file) for file in files.split()]) == names.split()


def test_a_head_of_a_task_is_json_that_names_its_labels(tmp_path: Path) -> None:
    base = base_model()
    base.save_pretrained(tmp_path / "base")  # type: ignore[operator]
    _, delta = trained(base, 1, fresh=True)
    delta.save(tmp_path / "nli.safetensors")
    arguments = [str(tmp_path / "base"), str(tmp_path / "nli.safetensors"), "-o", str(tmp_path / "out")]
    assert main(["merge", "--keep-heads", *arguments]) == 0
    about = json.loads((tmp_path / "out" / "heads" / "nli" / "config.json").read_text())
    assert about["id2label"] == {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}
