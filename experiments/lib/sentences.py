"""Cells and studies on GLUE that several experiments share, so that a run counts in each of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from experiments.lib.results import Section
from experiments.lib.settings import Settings
from experiments.lib.study import Study

# rules that score weights, in the order of a table
RULES = (
    "fish", "random", "magnitude", "smallest", "gradient", "snip", "relative", "activation", "lift", "largest_change",
)  # fmt: skip
# rule -> the method, with what has to be said of it so that its runs are told from those of others
_METHODS: dict[str, Settings] = {
    "fish": {"method": "fish", "method.samples": 1024, "method.labels": "true_label"},
    "magnitude": {"method": "magnitude", "method.order": "largest"},
    "smallest": {"method": "magnitude", "method.order": "smallest"},
}
# headlines of the tasks of GLUE
_SCORES = {"cola": "Matthews correlation times 100", "stsb": "Pearson correlation times 100"}
# what the penalty of Diff Pruning's gates, published for BERT-large, is for minilm's weights: all open cost as much
_PENALTY_WEIGHT = 1.85e-6


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
        methods: Method -> further settings of its runs.
        rates: Method, or ``other``, -> the learning rates tried at first, in steps of 4; the grid grows until the best
            is inside.
    """

    name: str
    score: str
    about: str
    settings: Settings
    methods: Mapping[str, Settings]
    rates: Mapping[str, Sequence[float]]


def _task(
    name: str, about: str, settings: Settings, methods: Mapping[str, Settings], rates: Mapping[str, Sequence[float]]
) -> Task:
    settings = {"data": "glue", "data.task": name} | settings
    return Task(name, _SCORES.get(name, "Accuracy in %"), about, settings, methods, rates)


def _small(task: str, examples: int, epochs: int, what: str) -> Task:
    about = f"minilm on {examples:,} {what}, {epochs} epochs in batches of 16; reported on all development examples."
    limits: Settings = {"data.train_limit": examples, "regime.epochs": epochs}
    machine: Settings = {"model": "minilm", "precision": "fp32", "threads": 1, "device": "cpu"}
    methods: Mapping[str, Settings] = {
        "diff_pruning": {"method.penalty_weight": _PENALTY_WEIGHT, "method.stage1_epochs": epochs}
    }
    rates = {"full": (2e-5, 8e-5, 3.2e-4), "diff_pruning": (5e-4, 2e-3), "other": (5e-4, 2e-3, 8e-3)}
    return _task(task, about, limits | machine, methods, rates)


def _large(task: str) -> Task:
    about = (
        "BERT-large (cased, whole-word masking), 7 epochs in batches of 16 (RTE 8); reported on the development set."
    )
    rates = {
        "full": (2.5e-6, 1e-5, 4e-5),
        "bitfit": (1.25e-4, 5e-4, 2e-3),
        "lora": (5e-5, 2e-4, 8e-4),
        "other": (1.25e-5, 5e-5, 2e-4),
    }
    return _task(task, about, {"model": "bert_large", "precision": "bf16", "device": "cuda"}, {}, rates)


# tasks cut for one machine without a GPU (CoLA, so cut, tells no methods apart: LOG.md), and as the paper has them
SMALL: Mapping[str, Task] = {
    "sst2": _small("sst2", 3000, 2, "phrases of SST-2 (the development examples are whole sentences)"),
    "stsb": _small("stsb", 2000, 3, "pairs of STS-B"),
}
LARGE: Mapping[str, Task] = {
    task: _large(task) for task in ("cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2", "stsb")
}


def task_of(section: Section[Cell]) -> Task:
    """Return the task of a section of a report."""
    tasks = SMALL if section.study.common["model"] == "minilm" else LARGE
    return tasks[section.study.common["data.task"]]


def study(task: Task, cells: Sequence[Cell], seeds: Sequence[int], name: str = "") -> Study[Cell]:
    """Describe ``cells`` on ``task``, each with a rate chosen on 500 held-out training examples.

    Args:
        name: Of this part of the experiment; that of the task if empty.
    """
    return Study(
        name=name or task.name,
        about=task.about,
        common=task.settings,
        methods=task.methods,
        choose={"data.holdout": 500},
        rates={method: task.rates.get(method, task.rates["other"]) for method in {cell.method for cell in cells}},
        sources={cell: cell for cell in cells},
        report={},
        seeds=seeds,
        grow=4,
    )
