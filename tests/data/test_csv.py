"""Examples of one's own: which columns are what, what labels mean, and what is reported on."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fishexp.data import csv
from fishexp.data.datasets import Dataset
from fishexp.data.metrics import accuracy, correlations
from tests.support.checks import refusal

FILMS = "".join(f"film {i},{'good' if i % 3 else 'bad'}\n" for i in range(20))


@pytest.fixture(autouse=True)
def _in_a_new_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def load(content: str, valid: str | None = None, name: str = "a.csv", **options: Any) -> Dataset:
    Path(name).write_text(content)
    if valid is not None:
        Path("b.csv").write_text(valid)
    unsaid: dict[str, Any] = {"valid_fraction": 0.1, "text": None, "label": None, "kind": None, "max_length": 16}
    unsaid |= {"train_limit": None, "valid_limit": None, "holdout": 0}
    return csv.load(train=name, valid=None if valid is None else "b.csv", **unsaid | options)


def test_classes_are_names_and_what_was_found_is_said(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    data = load(f"text,label\n{FILMS}", "label,text\nbad,x\ngood,y\n")
    assert (data.classes, data.names, data.metrics, data.columns) == (2, ("bad", "good"), accuracy, ("text",))
    assert data.train.first == [f"film {i}" for i in range(20)]
    assert data.train.labels.tolist() == [int(i % 3 > 0) for i in range(20)]
    assert data.train.labels.dtype == torch.long
    assert (data.valid[""].first, data.valid[""].labels.tolist()) == (["x", "y"], [0, 1])
    assert data.train.max_length == 16
    assert caplog.messages == [
        "a.csv: 20 examples; text in text, such as 'film 0'; labels in label: 2 classes (bad, good)"
    ]


@pytest.mark.parametrize(
    ("header", "found"),
    [
        ("text,label", (("text",), "label")),
        ("Label,Sentence", (("Sentence",), "Label")),
        ("id,review,stars", (("review",), "stars")),
        ("premise,hypothesis,label", (("premise", "hypothesis"), "label")),
        ("idx,sentence2,sentence1,label", (("sentence1", "sentence2"), "label")),
        ("question,sentence,label", (("question", "sentence"), "label")),
        ("what people wrote,what they meant", None),
        ("text,label,label_text", (("text",), "label")),
        ("text,whatever", (("text",), "whatever")),
        ("label,whatever", (("whatever",), "label")),
    ],
)
def test_columns_are_found(header: str, found: tuple[tuple[str, ...], str] | None) -> None:
    names = header.split(",")
    values = {"id": "7", "idx": "7", "Label": "{y}", "label": "{y}", "stars": "{y}", "whatever": "{y}"}
    values |= {"whatever": "some {i}"} if header.startswith("label,w") else {}
    lines = [",".join(values.get(name, f"{name} {{i}}").format(i=i, y=i % 2) for name in names) for i in range(8)]
    content = "\n".join([header, *lines])
    if found is None:
        assert "which column holds the sentences? there are: what people wrote, what they meant; " in refusal(
            load, content
        )
        return
    text, label = found
    data = load(content)
    assert data.columns == text
    order = [data.train.first[i].split()[-1] for i in range(len(data.train))]
    assert data.train.first[0].startswith(text[0] if text != ("whatever",) else "some")
    assert (data.train.second is not None) == (len(text) == 2)
    assert [str(int(i) % 2) for i in order] == [data.names[y] for y in data.train.labels]
    assert label in names


def test_columns_are_told() -> None:
    content = "title,text,label,other\n" + "".join(f"t{i},film {i},{i % 2},{i % 5}\n" for i in range(20))
    data = load(content, text=["text", "title"], label="other")
    assert (data.columns, data.names) == (("text", "title"), ("0", "1", "2", "3", "4"))
    assert load(content, text="title").columns == ("title",)
    assert load(content, text=["title"]).train.second is None


MISTAKES: dict[str, tuple[str, dict[str, Any], str]] = {
    "no such text": (f"text,label\n{FILMS}", {"text": "txt"}, "has no column 'txt'; did you mean text? there are: "),
    "no such label": (f"text,label\n{FILMS}", {"label": "y"}, "a.csv has no column 'y'; there are: label, text"),
    "both": (f"text,label\n{FILMS}", {"label": "text", "text": "text"}, "text is a column of sentences too"),
    "twice": (f"text,label\n{FILMS}", {"text": ["text", "text"]}, "text=text,text names a column twice"),
    "three": ("a,b,c,d\n1,2,3,4", {"text": ["a", "b", "c"]}, "an example is one sentence or a pair"),
    "none": ("a,b,c,d\n1,2,3,4", {"text": []}, "an example is one sentence or a pair"),
    "several texts": ("title,text,label\na,b,c", {}, "which column holds the sentences? there are: text, title; name"),
    "several labels": ("text,class,topic\na,b,c", {}, "which column holds the labels? there are: class, topic; name"),
    "no label": ("text,a,b\nx,y,z", {}, "which column holds the labels? there are: a, b; name it with data.label"),
    "no text": ("id,label\n1,a\n2,b", {}, "no column holds sentences; there are: id, label"),
    "no header": (FILMS, {}, "its first row should name the columns, such as text,label; 'bad' looks like a value"),
    "no header, numbers": (
        "a film,1\nfilm 2,0\nc,2",
        {},
        "its first row should name the columns, such as text,label; '1'",
    ),
    "empty text": (f"text,label\n{FILMS}  ,good\n,bad\n", {}, "a.csv line 22: text is empty (2 rows are so); fill it"),
    "empty label": (f"text,label\n{FILMS}x,\n", {}, "a.csv line 22: label is empty; every example needs a label"),
    "one class": ("text,label\na,b\nc,b", {}, "label is 'b' everywhere; two classes are needed"),
    "no classes": (
        "text,label\n" + "".join(f"a {i},b {i}\n" for i in range(21)),
        {},
        "label has 21 different values in 21 examples; if they are labels, say data.kind=classes or data.kind=number",
    ),
    "no numbers": (f"text,label\n{FILMS}", {"kind": "number"}, "line 2: the label 'bad' is no number"),
    "infinite": ("text,label\na,1.5\nb,inf\n", {}, "a.csv line 3: the label 'inf' is no number"),
    "one example": ("text,label\na,1.5\n", {}, "a.csv has 1 examples, too few to report on some of them"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_what_cannot_be_right_gets_a_line(name: str) -> None:
    content, options, message = MISTAKES[name]
    assert message in refusal(load, content, **options)


def test_valid_has_the_columns_and_the_labels_of_train() -> None:
    train = f"text,label\n{FILMS}"
    assert refusal(load, train, "sentence,label\na,good\n") == (
        "b.csv has no column 'text', which a.csv has; there are: label, sentence"
    )
    assert refusal(load, train, "text,label\na,good\nb,new\n") == (
        "b.csv line 3: the label 'new' is not one of a.csv's: bad, good"
    )


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ("0 1 1 0", ("0", "1")),
        ("5 1 3 10", ("1", "3", "5", "10")),
        ("-1 1 -1 1", ("-1", "1")),
        ("1.0 0.0 1.0 0.0", ("0", "1")),
        ("01 1 02 1", ("01", "02", "1")),
        ("b a  b c", ("a", "b", "c")),
        ("NA null NA None", ("NA", "None", "null")),
        ("True False True False", ("False", "True")),
    ],
)
def test_names_of_classes(values: str, names: tuple[str, ...]) -> None:
    labels = values.split()
    data = load(
        "text,label\n" + "".join(f"film {i},{y} \n" for i, y in enumerate(labels)),
        f"text,label\nx,{labels[0]}\n",
    )
    assert data.names == names
    numbers = [str(int(float(y))) if names[0] in ("0",) else y for y in labels]
    assert [names[y] for y in data.train.labels] == numbers
    assert names[data.valid[""].labels[0]] == numbers[0]


def test_numbers_with_a_fraction_are_a_regression() -> None:
    data = load("text,score\na,1.5\nb,2\nc,-3e1\n", "text,score\nx,4\n")
    assert (data.classes, data.names, data.metrics) == (1, (), correlations)
    assert data.train.labels.tolist() == [1.5, 2, -30]
    assert data.train.labels.dtype == data.valid[""].labels.dtype == torch.float
    assert load("text,score\na,1\nb,2\nc,3\n", kind="number").classes == 1
    assert load("text,score\na,1.5\nb,2\nc,3\n", kind="classes").names == ("1.5", "2", "3")


def test_integers_that_no_float_holds_are_classes_of_their_own() -> None:
    rows = [{"text": f"film {i}", "label": 2**53 + i % 2} for i in range(4)]
    Path("a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    options = {"valid_fraction": 0.1, "text": None, "label": None, "kind": None, "max_length": 16}
    data = csv.load(train="a.jsonl", valid="a.jsonl", train_limit=None, valid_limit=None, holdout=0, **options)  # type: ignore[arg-type]
    assert data.names == ("9007199254740992", "9007199254740993")
    assert data.train.labels.tolist() == [0, 1, 0, 1]


def test_names_that_a_file_has_for_its_numbers() -> None:
    import datasets

    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    rows = {"text": ["x", "y", "z"], "label": [1, 0, 1]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet("a.parquet")
    options = {"valid_fraction": 0.1, "text": None, "label": None, "kind": None, "max_length": 16}
    data = csv.load(train="a.parquet", valid="a.parquet", train_limit=None, valid_limit=None, holdout=0, **options)  # type: ignore[arg-type]
    assert data.names == ("no", "yes")
    assert data.train.labels.tolist() == [1, 0, 1]


@pytest.mark.parametrize("rows", [[{"text": ["a", "b"], "label": 1}], [{"text": "a", "label": [0, 1]}]])
def test_lists_are_no_examples(rows: list[dict[str, Any]]) -> None:
    content = "\n".join(json.dumps(row) for row in [{"text": "x", "label": 0}, *rows])
    assert "a text or a number is needed" in refusal(load, content, name="a.jsonl", text="text")


def test_a_text_of_numbers_is_said(caplog: pytest.LogCaptureFixture) -> None:
    data = load("id,label\n1,a\n2,b\n3,a\n", text="id")
    assert sorted(data.train.first + data.valid[""].first) == ["1", "2", "3"]
    assert "a.csv: the texts in id are all numbers" in caplog.messages


def test_without_valid_a_fixed_part_of_train_is_reported_on(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    content = "text,label\n" + "".join(f"film {i},{i % 2}\n" for i in range(100))
    first, again = load(content), load(content)
    assert "a.csv: 10 of its 100 examples, the same for every seed, are reported on" in caplog.messages
    assert first.valid[""].first == again.valid[""].first
    assert (len(first.train), len(first.valid[""])) == (90, 10)
    assert sorted(first.train.first + first.valid[""].first) == sorted(f"film {i}" for i in range(100))
    assert len(load(content, valid_fraction=0.25).valid[""]) == 25
    held = load(content, holdout=30, train_limit=20)
    assert (list(held.valid), len(held.valid["holdout"]), len(held.train)) == (["holdout"], 30, 20)
    assert not set(held.valid["holdout"].first) & (set(held.train.first) | set(first.valid[""].first))


def test_examples_that_are_trained_and_reported_on_are_said(caplog: pytest.LogCaptureFixture) -> None:
    load(f"text,label\n{FILMS}", "text,label\nfilm 3,bad\nfilm 99,good\n")
    assert caplog.messages == ["1 of the 2 reported examples are among those for training too"]
