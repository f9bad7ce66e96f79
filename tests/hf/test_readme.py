"""What the README shows of the Trainer, of accelerate and of Lightning runs as it stands there."""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from accelerate import Accelerator
from torch.utils.data import DataLoader

import fishexp
from fishexp import hf
from tests.support.modules import random_mask
from tests.support.snippets import ROOT, Snippet, run_python, snippets
from tests.support.trainers import Examples, arguments, bert, columns

README = ROOT / "README.md"
BEGIN = README.read_text(encoding="utf-8").split("\n").index("## With transformers' Trainer, accelerate, Lightning")
TRAINER, ACCELERATE, LIGHTNING = [s for s in snippets(README) if s.line > BEGIN and s.language == "python"][:3]


def run(snippet: Snippet, **known: Any) -> dict[str, Any]:
    return run_python(snippet, known)


def test_trainer(tmp_path: Path) -> None:
    examples, model = Examples(columns(32, "class")), bert()
    smaller = TRAINER.text.replace("keep=0.005", "keep=0.05")  # a tiny model's head is more than half a percent
    assert smaller != TRAINER.text
    known = run(
        replace(TRAINER, text=smaller), transformers=transformers, model=model, train=examples, valid=examples,
        arguments=arguments(tmp_path, save_strategy="steps", save_steps=3),
    )  # fmt: skip
    known["sparse"].delta().apply_(bert())
    assert (tmp_path / "checkpoint-3" / "delta.safetensors").exists()


def test_accelerate(tmp_path: Path) -> None:
    model = bert()
    accelerator = Accelerator(cpu=True)
    loader = DataLoader(Examples(columns(8, "class")), 4)
    known = run(
        ACCELERATE, fishexp=fishexp, hf=hf, torch=torch, model=model, mask=random_mask(model), loader=loader,
        accelerator=accelerator,
    )  # fmt: skip
    for batch in known["loader"]:
        accelerator.backward(known["model"](**batch).loss)
        known["optimiser"].step()
        known["optimiser"].zero_grad()
    accelerator.save_state(str(tmp_path))
    assert known["sparse"].delta().changes
    assert (tmp_path / "delta.safetensors").exists()


def test_lightning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lightning", reason="needs the extra `lightning`")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import lightning

        class Module(lightning.LightningModule):
            def __init__(self) -> None:
                super().__init__()
                self.net = bert()

            def training_step(self, batch: Any, index: int) -> Any:
                return self.net(**batch).loss

            def configure_optimizers(self) -> Any:
                return torch.optim.AdamW(p for p in self.parameters() if p.requires_grad)

        module = Module()
        monkeypatch.chdir(tmp_path)
        loader = DataLoader(Examples(columns(8, "class")), 4)
        run(LIGHTNING, fishexp=fishexp, lightning=lightning, module=module, mask=random_mask(module.net), loader=loader)
    (file,) = tmp_path.rglob("*.ckpt")
    names = torch.load(file, weights_only=False)["state_dict"]
    assert list(names) == ["net.fishexp_delta"]
