"""What the README shows of the Trainer, of accelerate and of Lightning runs as it stands there."""

import re
import warnings
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
from tests.support.trainers import Examples, arguments, bert, columns

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
SECTION = README.split("## With transformers' Trainer, accelerate, Lightning")[1].split("\n## ")[0]
TRAINER, ACCELERATE, LIGHTNING = re.findall(r"```python\n(.*?)```", SECTION, re.S)


def run(snippet: str, **known: Any) -> dict[str, Any]:
    exec(snippet, known)
    return known


def test_trainer(tmp_path: Path) -> None:
    examples, model = Examples(columns(32, "class")), bert()
    shown = TRAINER.replace("keep=0.005", "keep=0.05")  # a tiny model's head is more than half a percent
    assert shown != TRAINER
    known = run(
        shown, transformers=transformers, model=model, train=examples, valid=examples,
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
