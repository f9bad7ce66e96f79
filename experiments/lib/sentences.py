"""Cells and studies on GLUE that several experiments share, so that a run counts in each of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from experiments.lib.settings import Settings
from experiments.lib.study import Study

# rules that score weights, in the order of a table
RULES = (
    "fish", "random", "magnitude", "smallest", "gradient", "snip", "relative", "activation", "lift", "largest_change",
)  # fmt: skip
# learning rates in steps of 4; the grid grows until the best is inside
_SPARSE_RATES, _DENSE_RATES = (5e-4, 2e-3, 8e-3), (2e-5, 8e-5, 3.2e-4)
# rule -> the method, with what has to be said of it so that its runs are told from those of others
_METHODS: dict[str, Settings] = {
    "fish": {"method": "fish", "method.samples": 1024, "method.labels": "true_label"},
    "magnitude": {"method": "magnitude", "method.order": "largest"},
    "smallest": {"method": "magnitude", "method.order": "smallest"},
}
# rules whose masks keep no budget
_WITHOUT_KEEP = ("bitfit", "full")


@dataclass(frozen=True)
class Cell:
    """Stand for runs that differ in the seed only.

    Attributes:
        rule: Name of a method, or ``smallest``: magnitude with the smallest weights.
        keep: Fraction of all weights; None for rules that name their weights outright.
        per: Within what scores compete.
        samples: Examples that FISH scores.
        labels: By which labels FISH scores.
    """

    rule: str
    keep: float | None = 0.005
    per: str = "network"
    samples: int = 1024
    labels: str = "true_label"

    @property
    def method(self) -> str:
        """Return the method's name on the command line."""
        return str(_METHODS.get(self.rule, {}).get("method", self.rule))

    @property
    def settings(self) -> Settings:
        """Return the settings that distinguish the cell."""
        settings = {key: value for key, value in _METHODS.get(self.rule, {}).items() if key != "method"}
        if self.rule == "fish":
            settings |= {"method.samples": self.samples, "method.labels": self.labels}
        if self.rule in RULES:
            settings |= {"method.per": self.per, "method.unit": "entry"}
        return settings if self.keep is None else settings | {"keep": self.keep}


@dataclass(frozen=True)
class Task:
    """Describe a task of GLUE as one machine can carry it out.

    Attributes:
        score: The headline metric and its unit.
        about: What is trained on, for the report.
        settings: Settings of every run.
    """

    name: str
    score: str
    about: str
    settings: Settings


def _small(task: str, score: str, examples: int, epochs: int, what: str) -> Task:
    about = f"minilm on {examples:,} {what}, {epochs} epochs in batches of 16; reported on all development examples."
    limits: Settings = {"data": "glue", "data.task": task, "data.train_limit": examples, "regime.epochs": epochs}
    return Task(task, score, about, limits | {"model": "minilm", "precision": "fp32", "threads": 1, "device": "cpu"})


SMALL: Mapping[str, Task] = {
    "sst2": _small("sst2", "Accuracy in %", 3000, 2, "sentences of SST-2"),
    "stsb": _small("stsb", "Pearson correlation times 100", 2000, 3, "pairs of STS-B"),
    "cola": _small("cola", "Matthews correlation times 100", 4000, 3, "sentences of CoLA"),
}


def rates(rule: str) -> Sequence[float]:
    """Return the learning rates tried for a rule at first."""
    return _DENSE_RATES if rule == "full" else _SPARSE_RATES


def study(task: Task, cells: Sequence[Cell], seeds: Sequence[int], name: str = "") -> Study[Cell]:
    """Describe ``cells`` on ``task``, each with a rate chosen on 500 held-out training examples.

    Args:
        name: Of this part of the experiment; that of the task if empty.
    """
    return Study(
        name=name or task.name,
        about=task.about,
        common=task.settings,
        methods={},
        choose={"data.holdout": 500},
        rates={cell.method: rates(cell.rule) for cell in cells},
        sources={cell: cell for cell in cells},
        report={},
        seeds=seeds,
        grow=4,
    )
