"""transformers' Trainer trains the kept entries, and its checkpoints are deltas."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import transformers.trainer
from torch import Tensor, nn
from transformers import BertForSequenceClassification, PreTrainedModel, Trainer, TrainerCallback, set_seed

import fishexp
from fishexp import hf
from fishexp.masks.topk import Mask
from fishexp.sparse.sparsify import mask_gradients
from tests.support.checks import refusal
from tests.support.modules import random_mask
from tests.support.trainers import History, bert, files, gpt2, llama, same, trainer_of

# settings of a trainer under which each step is compared
SETTINGS: dict[str, dict[str, Any]] = {
    "AdamW": {},
    "SGD": {"optim": "sgd", "learning_rate": 0.5},
    "fused": {"optim": "adamw_torch_fused"},
    "accumulation": {"gradient_accumulation_steps": 3, "max_steps": 4},
    "clipping": {"max_grad_norm": 0.01, "optim": "sgd", "learning_rate": 5.0},
    "schedule": {"lr_scheduler_type": "cosine", "warmup_steps": 2},
    "activation checkpointing": {"activation_checkpointing": True},
}


class _Frozen(TrainerCallback):
    """Undo what weight decay does to entries outside the mask, in dense training."""

    def __init__(self, model: nn.Module, mask: Mask) -> None:
        self._before = {name: p.detach().clone() for name, p in model.named_parameters()}
        self._mask = mask

    @torch.no_grad()
    def on_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **rest: Any) -> None:
        for name, p in model.named_parameters():
            p.copy_(torch.where(self._mask[name], p, self._before[name]))


def histories(
    build: Callable[[], nn.Module], folder: Path, labels: str, **settings: Any
) -> tuple[list[dict[str, Tensor]], list[dict[str, Tensor]], Mask]:
    """Train sparsely, and densely with a masked gradient; return the weights after each step of both."""
    sparse, dense = (trainer_of(build(), folder / name, labels, **settings) for name in ("sparse", "dense"))
    mask = random_mask(sparse.model)
    hf.sparsify_trainer(sparse, mask)
    mask_gradients(dense.model, mask)
    dense.add_callback(_Frozen(dense.model, mask))
    found = []
    for trainer in (sparse, dense):
        trainer.add_callback(history := History())
        set_seed(7)  # of dropout and the order of examples
        trainer.train()
        found.append(history.steps)
    return *found, mask


@pytest.mark.parametrize("name", SETTINGS)
def test_each_step_is_that_of_dense_training_with_a_masked_gradient(name: str, tmp_path: Path) -> None:
    """With dropout and weight decay, by the trainer's own rule of which weights decay."""
    first, second, mask = histories(bert, tmp_path, "class", **SETTINGS[name])
    assert len(first) == SETTINGS[name].get("max_steps", 6)
    torch.testing.assert_close(first, second)
    before = dict(bert().named_parameters())
    for weight, kept in mask.items():
        assert torch.equal(first[-1][weight][~kept], before[weight][~kept])
        assert not kept.any() or not torch.equal(first[-1][weight][kept], before[weight][kept])


@pytest.mark.parametrize("build", [gpt2, llama, lambda: llama(tied=True)])
def test_language_models_with_and_without_tied_embeddings(build: Callable[[], nn.Module], tmp_path: Path) -> None:
    first, second, mask = histories(build, tmp_path, "next")
    torch.testing.assert_close(first, second)
    before = dict(build().named_parameters())
    assert all(torch.equal(first[-1][name][~kept], before[name][~kept]) for name, kept in mask.items())


def test_bf16(tmp_path: Path) -> None:
    """Autocast rounds to eight bits, so that paths of training part by some percent of what moved."""
    first, second, mask = histories(lambda: bert().float(), tmp_path, "class", bf16=True, optim="sgd")
    before = dict(bert().float().named_parameters())
    for name, kept in mask.items():
        assert torch.equal(first[-1][name][~kept], before[name][~kept])
        moved = (second[-1][name] - before[name])[kept]
        assert torch.dist(first[-1][name][kept], second[-1][name][kept]) <= 0.1 * moved.norm() + 1e-6, name


def fish_trainer(folder: Path, **settings: Any) -> Any:
    trainer = trainer_of(bert(), folder, **settings)
    scores = hf.fisher_scores(trainer, samples=16)
    hf.sparsify_trainer(trainer, fishexp.top_k(scores, keep=0.1, always=hf.head(trainer.model)))
    return trainer


def test_a_resumed_run_is_an_uninterrupted_one_to_the_bit(tmp_path: Path) -> None:
    settings = {"max_steps": 20, "save_strategy": "steps", "save_steps": 5}  # more than an epoch of eight steps
    whole = fish_trainer(tmp_path, **settings)
    whole.train()
    assert "delta.safetensors" in files(tmp_path, "checkpoint-10")
    assert not [name for name in files(tmp_path, "checkpoint-10") if name.startswith(("model", "pytorch_model"))]
    resumed = fish_trainer(tmp_path, **settings)
    resumed.add_callback(history := History())
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-10"))
    assert len(history.steps) == 10
    assert same(resumed.model.state_dict(), whole.model.state_dict())
    assert not same(history.steps[0], whole.model.state_dict())


def test_a_checkpoint_is_a_delta_of_the_model_before_training(tmp_path: Path) -> None:
    trainer = fish_trainer(tmp_path, save_strategy="steps", save_steps=3)
    trainer.add_callback(history := History())
    trainer.train()
    base = bert()
    fishexp.Delta.load(tmp_path / "checkpoint-3" / "delta.safetensors").apply_(base)
    assert same(base.state_dict(), history.steps[2])


def test_the_mask_of_a_checkpoint_resumes_it_without_scores(tmp_path: Path) -> None:
    settings = {"save_strategy": "steps", "save_steps": 3}
    whole = fish_trainer(tmp_path, **settings)
    whole.train()
    resumed = trainer_of(bert(), tmp_path, **settings)
    delta = fishexp.Delta.load(tmp_path / "checkpoint-3" / "delta.safetensors")
    hf.sparsify_trainer(resumed, delta.mask(resumed.model))
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert same(resumed.model.state_dict(), whole.model.state_dict())


def test_the_best_model_is_loaded_at_the_end_and_evaluated(tmp_path: Path) -> None:
    """The best is the second of three, by a metric that says so."""
    scores = iter([1.0, 3.0, 2.0, 5.0])
    trainer = fish_trainer(
        tmp_path, save_strategy="steps", save_steps=2, eval_strategy="steps", eval_steps=2, load_best_model_at_end=True,
        metric_for_best_model="score", greater_is_better=True,
    )  # fmt: skip
    trainer.compute_metrics = lambda prediction: {"score": next(scores)}
    trainer.add_callback(history := History())
    trainer.train()
    assert str(trainer.state.best_model_checkpoint).endswith("checkpoint-4")
    assert same(trainer.model.state_dict(), history.steps[3])

    found = trainer.evaluate()
    plain = bert()
    plain.load_state_dict(history.steps[3])
    expected = trainer_of(plain, tmp_path).evaluate()
    assert found["eval_loss"] == pytest.approx(expected["eval_loss"], rel=1e-9)
    fishexp.Sparse.of(trainer.model).delta().apply_(base := bert())
    assert same(base.state_dict(), history.steps[3])


def test_save_model_saves_the_whole_model(tmp_path: Path) -> None:
    trainer = fish_trainer(tmp_path, max_steps=2)
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    loaded = BertForSequenceClassification.from_pretrained(tmp_path / "saved", dtype=torch.float64)
    assert same(loaded.state_dict(), trainer.model.state_dict())


@pytest.mark.parametrize("strategy", ["every_save", "checkpoint", "end"])
def test_the_hub_gets_the_whole_model(strategy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under "checkpoint" it gets the last delta beside it."""
    pushed: list[tuple[str | None, set[str]]] = []

    class Hub:
        def create_repo(self, name: str, **rest: Any) -> Any:
            return type("Repo", (), {"repo_id": name})

        def upload_folder(self, folder_path: str, path_in_repo: str | None = None, **rest: Any) -> Any:
            pushed.append((path_in_repo, set(files(Path(folder_path)))))
            return type("Job", (), {"done": lambda self: True, "is_done": lambda self: True})()

    monkeypatch.setattr(transformers.trainer, "hf_api", Hub)
    monkeypatch.setattr(Trainer, "create_model_card", lambda self, **rest: None)
    trainer = fish_trainer(
        tmp_path / "me", max_steps=2, save_strategy="steps", save_steps=1, push_to_hub=True, hub_strategy=strategy,
        hub_model_id="me/it",
    )  # fmt: skip
    trainer.train()
    trainer.push_to_hub()
    models = [names for where, names in pushed if where is None]
    assert len(models) == (1 if strategy == "end" else 3)
    assert all({"config.json", "model.safetensors"} <= names for names in models)
    deltas = [names for where, names in pushed if where is not None]
    assert len(deltas) == (2 if strategy == "checkpoint" else 0)
    assert all("delta.safetensors" in names for names in deltas)


def test_wrong_turns_get_a_line(tmp_path: Path) -> None:
    trainer = trainer_of(bert(), tmp_path, max_steps=1, save_strategy="steps", save_steps=1)
    mask = random_mask(trainer.model)
    assert "takes a Trainer" in refusal(hf.sparsify_trainer, trainer.model, mask)
    trainer.create_optimizer()
    assert "optimizer was made before" in refusal(hf.sparsify_trainer, trainer, mask)
    trainer.optimizer = None
    hf.sparsify_trainer(trainer, mask)
    assert "sparsified already" in refusal(hf.sparsify_trainer, trainer, mask)
    trainer.train()

    other = trainer_of(bert(), tmp_path)
    hf.sparsify_trainer(other, {name: kept.flip(0) for name, kept in mask.items()})
    checkpoint = str(tmp_path / "checkpoint-1")
    assert "keeps other entries of bert.embeddings" in refusal(other.train, resume_from_checkpoint=checkpoint)
    assert same(other.model.state_dict(), bert().state_dict())

    torch.manual_seed(1)
    base = bert()
    with torch.no_grad():
        next(base.parameters())[0] += 1
    other = trainer_of(base, tmp_path)
    hf.sparsify_trainer(other, mask)
    assert "for another base" in refusal(other.train, resume_from_checkpoint=checkpoint)

    (tmp_path / "checkpoint-1" / "delta.safetensors").unlink()
    assert "has no delta.safetensors" in refusal(trainer.train, resume_from_checkpoint=checkpoint)

    made = Trainer(model_init=lambda: cast(PreTrainedModel, bert()), args=trainer.args)
    assert "model_init" in refusal(hf.sparsify_trainer, made, mask)


def test_after_restore_a_trainer_takes_another_mask(tmp_path: Path) -> None:
    trainer = trainer_of(bert(), tmp_path, max_steps=2)
    mask = random_mask(trainer.model)
    sparse = hf.sparsify_trainer(trainer, mask)
    cls = type(trainer)
    assert cls.__name__ == "Trainer"
    trainer.train()
    sparse.restore()
    trainer.optimizer = trainer.lr_scheduler = None
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    hf.sparsify_trainer(trainer, other := {name: ~kept for name, kept in mask.items()})
    assert type(trainer) is cls
    trainer.train()
    after = trainer.model.state_dict()
    assert all(torch.equal(after[name][~kept], before[name][~kept]) for name, kept in other.items())
