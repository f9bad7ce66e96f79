"""The classes of a loaded classifier come into the data set's order by their names."""

import logging
from itertools import permutations

import pytest
import torch
from torch import nn

from fishexp.models import Model
from fishexp.models.labels import align_classes_, classes_of
from tests.support.checks import refusal

NLI = ("entailment", "neutral", "contradiction")


def classifier(classes: int) -> Model:
    """A classifier whose head has two layers, the first of which is as wide as there are classes."""
    torch.manual_seed(0)
    head = nn.Sequential(nn.Linear(4, classes), nn.Tanh(), nn.Linear(classes, classes))
    network = nn.Sequential()
    network.add_module("classifier", head)
    return Model(network, tuple(name for name, _ in network.named_parameters()), lambda folder, *, weights=True: None)


@pytest.mark.parametrize("names", [*permutations(NLI)])
def test_logits_come_in_the_order_of_the_data_set(names: tuple[str, ...]) -> None:
    model, inputs = classifier(3), torch.randn(5, 4)
    before = model.network(inputs)
    align_classes_(model, names, NLI, "there")
    assert torch.equal(model.network(inputs), before[:, [names.index(name) for name in NLI]])


@pytest.mark.parametrize(
    ("found", "order"),
    [
        (("ENTAILMENT", "Neutral", "contradiction"), [0, 1, 2]),
        (("LABEL_0", "LABEL_1", "LABEL_2"), [0, 1, 2]),
        (("2", "1", "0"), [2, 1, 0]),
        (("LABEL_1", "LABEL_0", "contradiction"), [1, 0, 2]),
        (("Contradiction ", "neutral", "LABEL_0"), [2, 1, 0]),
    ],
)
def test_case_and_placeholders(found: tuple[str, ...], order: list[int]) -> None:
    model, inputs = classifier(3), torch.randn(5, 4)
    before = model.network(inputs)
    align_classes_(model, found, NLI, "there")
    assert torch.equal(model.network(inputs), before[:, order])


@pytest.mark.parametrize("names", [("+", "-"), ("C", "C#", "C++"), ("\U0001f600", "\U0001f622")])
def test_signs_alone_tell_classes_apart_where_names_are_the_same_to_the_letter(names: tuple[str, ...]) -> None:
    model = classifier(len(names))
    before = model.network.get_parameter("classifier.2.bias").clone()
    align_classes_(model, names, names, "there")
    assert torch.equal(model.network.get_parameter("classifier.2.bias"), before)
    align_classes_(model, names[::-1], names, "there")
    assert torch.equal(model.network.get_parameter("classifier.2.bias"), before.flip(0))


@pytest.mark.parametrize("found", ["not entailment", "NOT-ENTAILMENT", "not_entailment", "Not  Entailment"])
def test_punctuation(found: str) -> None:
    model = classifier(2)
    before = model.network.get_parameter("classifier.2.bias").clone()
    align_classes_(model, (found, "Entailment"), ("entailment", "not_entailment"), "there")
    assert torch.equal(model.network.get_parameter("classifier.2.bias"), before.flip(0))


@pytest.mark.parametrize(
    "found", [("yes", "no", "perhaps"), ("entailment", "entailment", "neutral"), ("entailment", "neutral"), ("?",) * 3]
)
def test_names_that_do_not_map_are_refused(found: tuple[str, ...]) -> None:
    model = classifier(3)
    before = model.network.get_parameter("classifier.2.bias").clone()
    assert refusal(align_classes_, model, found, NLI, "there") == (
        f"model.path=there classifies {', '.join(found)}, the data set entailment, neutral, contradiction; correct "
        "id2label in its config.json if these are the same classes, or give a model without a classifier"
    )
    assert torch.equal(model.network.get_parameter("classifier.2.bias"), before)


def test_long_lists_of_names_are_cut() -> None:
    line = refusal(align_classes_, classifier(3), [f"x\n{i}" + "y" * 99 for i in range(1000)], NLI, "there")
    assert len(line) < 1000
    assert " and 990 more, the data set entailment" in line


def test_a_data_set_that_names_no_classes(caplog: pytest.LogCaptureFixture) -> None:
    model = classifier(2)
    before = model.network.get_parameter("classifier.2.bias").clone()
    align_classes_(model, ("LABEL_0", "LABEL_1"), (), "there")
    assert not caplog.messages
    align_classes_(model, ("good", "bad"), (), "there")
    assert caplog.messages == ["model.path=there: its classes (good, bad) count by position, the data set names none"]
    assert torch.equal(model.network.get_parameter("classifier.2.bias"), before)


def test_another_order_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        align_classes_(classifier(2), ("bad", "good"), ("bad", "good"), "there")
        align_classes_(classifier(2), ("good", "bad"), ("bad", "good"), "there")
    assert caplog.messages == ["model.path=there classifies good, bad: reordered to bad, good"]


DEFAULT = {0: "LABEL_0", 1: "LABEL_1"}


@pytest.mark.parametrize(
    ("id2label", "label2id", "names"),
    [
        ({0: "good", 1: "bad"}, {"good": 0, "bad": 1}, ("good", "bad")),
        ({1: "bad", 0: "good"}, None, ("good", "bad")),
        ({0: "good", 1: "bad"}, {"LABEL_0": 0, "LABEL_1": 1}, ("good", "bad")),
        (DEFAULT, {"bad": 1, "good": 0}, ("good", "bad")),
        (DEFAULT, {"bad": 1, "good": "0"}, ("LABEL_0", "LABEL_1")),
        (DEFAULT, {"bad": 1, "good": [0]}, ("LABEL_0", "LABEL_1")),
        (DEFAULT, ["bad", "good"], ("LABEL_0", "LABEL_1")),
        ({1: "good", 2: "bad"}, None, ("?", "good")),
        ({0: None, 1: 5}, None, ("None", "5")),
    ],
)
def test_names_in_a_configuration(id2label: dict[int, str], label2id: object, names: tuple[str, ...]) -> None:
    assert classes_of(id2label, label2id, "there") == names


def test_a_configuration_that_contradicts_itself() -> None:
    assert refusal(classes_of, {0: "good", 1: "bad"}, {"bad": 0, "good": 1}, "there") == (
        "model.path=there classifies good, bad by id2label of its config.json, bad, good by label2id; "
        "correct the wrong one"
    )
