"""The profiles of Table 1: how large it may be made."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from experiments.lib.sentences import LARGE, SMALL, Cell, Task, study
from experiments.lib.settings import Settings
from experiments.lib.study import Study

CELLS = (
    Cell("full", None), Cell("fish"), Cell("fish", 0.0008), Cell("random"), Cell("magnitude"), Cell("bitfit", None),
    Cell("diff_pruning"), Cell("lora"),
)  # fmt: skip
# the authors' learning rates: dense training, masks, Bit-Fit by task; those of magnitude and LoRA are ours
_RATES = {"full": 1e-5, "lora": 2e-4}
_BITFIT = {"cola": 1e-3, "mnli": 1e-3, "qnli": 1e-4}
# of Diff Pruning: the first stage's rate by task, and the tasks whose last stage has five epochs, not three
_STAGE_1 = {"qnli": 2e-5, "qqp": 2e-5, "sst2": 5e-5}
_LONG = ("mrpc", "rte", "stsb", "sst2")


def _published(task: Task, settings: Settings, seeds: Sequence[int]) -> Study[Cell]:
    """Return the study at the original's rates, which are not chosen."""
    known = {cell: _RATES.get(cell.rule, 5e-5) for cell in CELLS}
    known[Cell("bitfit", None)] = _BITFIT.get(task.name, 5e-4)
    recipe: Mapping[str, Settings] = {
        "diff_pruning": {
            "method.stage1_lr": _STAGE_1.get(task.name, 1e-5),
            "regime.batch_size": 8,
            "regime.epochs": 5 if task.name in _LONG else 3,
        }
    }
    tuned, common = study(task, CELLS, seeds), task.settings | settings
    return replace(tuned, common=common, methods=recipe, choose=None, rates={}, known=known, grow=None)


PROFILES: dict[str, Sequence[Study[Cell]]] = {
    "cpu": [study(task, CELLS, range(3)) for task in SMALL.values()],
    "gpu": [study(task, CELLS, range(3)) for task in LARGE.values()],
    "paper": [_published(task, {"precision": "fp32"}, (0,)) for task in LARGE.values()],
}
