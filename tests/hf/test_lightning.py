"""Lightning's Trainer trains the kept entries; its checkpoints are deltas, and resume to the bit."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

import fishexp
from fishexp.errors import FishexpError
from tests.support.cases import conv_net
from tests.support.modules import random_mask
from tests.support.trainers import same

pytest.importorskip("lightning", reason="needs the extra `lightning`")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of its own imports
    import lightning.pytorch as pl

from fishexp.lightning import DeltaCheckpoints

pytestmark = pytest.mark.filterwarnings("ignore::Warning:lightning", "ignore:.*isinstance.treespec:Warning")


class Classifier(pl.LightningModule):
    """Train a network with running statistics, and a weight beside it."""

    def __init__(self, *, flipped: bool = False, moved: bool = False) -> None:
        super().__init__()
        self.net: Any = conv_net().float()
        self.net[3] = nn.Identity()  # no dropout: Lightning does not restore random streams
        self.scale = nn.Parameter(torch.ones(1))
        with torch.no_grad():
            self.net[0].weight += moved
        mask = random_mask(self.net)
        self.sparse = fishexp.sparsify(self.net, {n: k.flip(0) for n, k in mask.items()} if flipped else mask)

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        return F.cross_entropy(self.net(batch[0]) * self.scale, batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=0.01)


def fit(folder: Path, module: pl.LightningModule, epochs: int, checkpoint: Path | None = None) -> pl.Trainer:
    generator = torch.Generator().manual_seed(2)
    data: Any = [(torch.randn(2, 4, 4, generator=generator), i % 3) for i in range(8)]
    trainer = pl.Trainer(
        max_epochs=epochs, default_root_dir=folder, accelerator="cpu", callbacks=[DeltaCheckpoints()], logger=False,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False, accumulate_grad_batches=2,
        gradient_clip_val=0.1,
    )  # fmt: skip
    trainer.fit(module, DataLoader(data, 2), ckpt_path=checkpoint, weights_only=True if checkpoint else None)
    return trainer


def test_a_checkpoint_is_a_delta_and_resumes_to_the_bit(tmp_path: Path) -> None:
    whole = Classifier()
    fit(tmp_path, whole, 2)
    first = Classifier()
    fit(tmp_path, first, 1).save_checkpoint(tmp_path / "one.ckpt")
    state = torch.load(tmp_path / "one.ckpt", weights_only=True)["state_dict"]
    assert sorted(state) == ["net.fishexp_delta", "scale"]
    resumed = Classifier()
    fit(tmp_path, resumed, 2, tmp_path / "one.ckpt")
    assert same(resumed.state_dict(), whole.state_dict())
    assert not same(resumed.state_dict(), first.state_dict())


@pytest.mark.parametrize(("other", "line"), [("flipped", "keeps other entries"), ("moved", "for another base")])
def test_another_mask_or_base_is_refused(other: str, line: str, tmp_path: Path) -> None:
    fit(tmp_path, Classifier(), 1).save_checkpoint(tmp_path / "one.ckpt")
    with pytest.raises(FishexpError, match=line):
        fit(tmp_path, Classifier(**{other: True}), 2, tmp_path / "one.ckpt")


def test_a_module_that_is_not_sparsified_is_refused(tmp_path: Path) -> None:
    module = Classifier()
    module.sparse.restore()
    with pytest.raises(FishexpError, match="0 sparsified models in this Classifier"):
        fit(tmp_path, module, 1)
