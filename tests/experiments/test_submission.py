"""Predictions for the benchmark's site, from a run folder to a zip whose format is checked."""

import zipfile
from pathlib import Path

import pytest
import torch

import fishexp as library
from experiments.table1 import submission
from experiments.table1.submission import TestSet as Set
from experiments.table1.submission import check_submission, main, write_submission
from fishexp.fisher.batches import logits_of
from tests.support.checks import refusal
from tests.support.cli import fishexp
from tests.support.resuming import run_folder

SENTENCES = ["the cat sees a dog .", "a cat", "the dog sees the cat and the dog .", "the dog", "dog"]


@pytest.fixture
def glue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of the benchmark's with a few made-up sentences; its test sets count as complete."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "glue"
    (folder / "SST-2").mkdir(parents=True)
    for file, count in (("train", 32), ("dev", 8)):
        rows = "".join(f"the cat sees a {'dog' if i % 3 else 'cat and the dog'} .\t{i % 2}\n" for i in range(count))
        (folder / "SST-2" / f"{file}.tsv").write_text(f"sentence\tlabel\n{rows}")
    rows = "".join(f"{i}\t{sentence}\n" for i, sentence in enumerate(SENTENCES))
    (folder / "SST-2" / "test.tsv").write_text(f"index\tsentence\n{rows}")
    monkeypatch.setattr(submission, "TEST_SETS", {"sst2": [Set("test.tsv", "SST-2.tsv", 5)], "cola": []})
    monkeypatch.setattr(submission, "_BATCH", 2)
    return folder


@pytest.fixture
def run(glue: Path, bert_folder: Path) -> Path:
    options = (
        "data=glue",
        "data.task=sst2",
        f"data.root={glue}",
        "model=bert_base",
        "model.pretrained=false",
        "data.max_length=16",
    )
    assert fishexp(*options, f"model.path={bert_folder}", "method=random", "keep=0.3", "regime.epochs=1").status == 0
    return run_folder("outputs")


def test_each_example_gets_its_own_prediction(run: Path, glue: Path, tmp_path: Path) -> None:
    said = write_submission([run], tmp_path / "sub.zip", glue)
    assert said == f"{tmp_path / 'sub.zip'} holds SST-2.tsv; the site wants AX.tsv as well"
    model, prepare = library.load_run(run)
    with torch.no_grad():
        logits = torch.cat([logits_of(model, prepare([sentence])) for sentence in SENTENCES])
    alone = logits.argmax(1).tolist()
    expected = "index\tprediction\n" + "".join(f"{i}\t{label}\n" for i, label in enumerate(alone))
    with zipfile.ZipFile(tmp_path / "sub.zip") as archive:
        assert archive.read("SST-2.tsv").decode() == expected
    first = (tmp_path / "sub.zip").read_bytes()
    write_submission([run], tmp_path / "sub.zip", glue)
    assert (tmp_path / "sub.zip").read_bytes() == first


def test_outputs_stand_in_the_order_of_the_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of pairs, and of sentences of any length, which are computed longest first."""

    class Lengths(torch.nn.Module):
        def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
            return torch.stack([first, second], dim=1)

    def prepare(*texts: list[str]) -> dict[str, torch.Tensor]:
        lengths = (torch.tensor([float(len(text)) for text in column]) for column in texts)
        return dict(zip(("first", "second"), lengths, strict=True))

    monkeypatch.setattr(submission, "_BATCH", 2)
    pairs = [SENTENCES, list(reversed(SENTENCES))]
    found = submission._outputs(Lengths(), prepare, pairs)
    assert found.tolist() == [[len(a), len(b)] for a, b in zip(*pairs, strict=True)]


def test_mistakes_get_a_line(run: Path, glue: Path, tmp_path: Path, capsys) -> None:
    output = tmp_path / "sub.zip"
    assert "both runs of sst2; give one for each task" in refusal(lambda: write_submission([run, run], output, glue))
    assert "is not the folder of a finished run" in refusal(lambda: write_submission([tmp_path], output, glue))
    (glue / "SST-2" / "test.tsv").write_text("index\tsentence\n0\tcat\n")
    assert "has 1 examples, the official file has 5" in refusal(lambda: write_submission([run], output, glue))
    assert not output.exists()
    assert main([str(tmp_path), "-o", str(output)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "text", "wrong"),
    [
        ("SST2.tsv", "", "SST2.tsv is not the name of a test set"),
        ("SST-2.tsv", "index\tlabel\n0\t1\n", "should have the columns index and prediction"),
        ("SST-2.tsv", "index\tprediction\n0\t1\n", "and 5 rows from 0"),
        ("SST-2.tsv", "index\tprediction\n0\t1\n1\t1\n2\t1\n3\t1\n4\t2\n", "holds the prediction '2'"),
    ],
)
@pytest.mark.usefixtures("glue")
def test_a_zip_that_the_site_would_refuse_is_told(name: str, text: str, wrong: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "sub.zip", "w") as archive:
        archive.writestr(name, text)
    assert wrong in refusal(lambda: check_submission(tmp_path / "sub.zip"))


@pytest.mark.parametrize(("score", "label"), [(-0.2, "0.000"), (2.34567, "2.346"), (7.0, "5.000")])
def test_scores_are_numbers_from_0_to_5(score: float, label: str) -> None:
    assert submission._labels("stsb", torch.tensor([[score]])) == [label]


def test_entailment_is_a_word() -> None:
    assert submission._labels("rte", torch.tensor([[1.0, 0.0], [0.0, 1.0]])) == ["entailment", "not_entailment"]
