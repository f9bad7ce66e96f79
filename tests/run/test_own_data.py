"""Data and models of one's own without code: a run, its identity, and what it says of new examples."""

import csv
import json
import shutil
from datetime import date
from pathlib import Path

import pytest
import torch
from PIL import Image
from torchvision import models

import fishexp as library
from fishexp import predict
from fishexp.data import imagefolder
from fishexp.models.torchvision import IMAGENET
from fishexp.run.predictions import read_predictions
from fishexp.run.record import read
from tests.support.checks import refusal
from tests.support.classifiers import FAMILIES, write_classifier
from tests.support.cli import QUICK, Result, fishexp, records
from tests.support.glue_files import LAYOUTS, write_task

TRAIN, VALID = 40, 12  # examples


@pytest.fixture(autouse=True)
def _in_a_new_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, count in (("a.csv", TRAIN), ("b.csv", VALID)):
        rows = [f"the {'cat' if i % 3 else 'dog and a dog'} sees a film{' .' * (i % 4)}" for i in range(count)]
        labels = ["good" if i % 3 else "bad" for i in range(count)]
        Path(name).write_text(
            "id,sentence,label\n" + "".join(f"{i},{x},{y}\n" for i, (x, y) in enumerate(zip(rows, labels, strict=True)))
        )


def options(family: str, *more: str) -> tuple[str, ...]:
    if not Path(family).exists():
        write_classifier(Path(family), family)
    return (
        "data=csv", "train=a.csv", "valid=b.csv", "max_length=16", "model=auto", f"model.path={family}", "keep=0.5",
        "epochs=1", "batch_size=8", "lr=0.01", "threads=1", *more,
    )  # fmt: skip


def finished(result: Result) -> Path:
    assert result.status == 0, result
    (folder,) = Path("outputs").glob("*/*/*/seed0-*")
    return folder


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(text.splitlines()))


@pytest.mark.parametrize("family", FAMILIES)
def test_any_classifier_trains_and_predicts_as_it_was_evaluated(
    family: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = finished(fishexp(*options(family)))
    (record,) = records(Path())
    assert 0 < record["kept"] <= record["total"] / 2
    head = FAMILIES[family][1]
    assert all(record["kept_by"][name][0] == torch.Size(record["kept_by"][name][1:]).numel() for name in head)
    assert (folder / "delta.safetensors").exists() or (folder / "model.safetensors").exists()
    assert predict.main([str(folder), "b.csv"]) == 0
    found = rows(capsys.readouterr().out)
    (run,) = read_predictions(Path("outputs/records.jsonl")).values()
    names = ["bad", "good"]
    assert [row["predicted"] for row in found] == [names[i] for i in run[""].predicted]
    assert [row["label"] for row in found] == [names[i] for i in run[""].labels]
    assert list(found[0]) == ["id", "sentence", "label", "predicted", "probability_bad", "probability_good"]
    for row in found:
        shares = {name: float(row[f"probability_{name}"]) for name in names}
        assert sum(shares.values()) == pytest.approx(1, abs=1e-5)
        assert max(shares, key=lambda name: shares[name]) == row["predicted"]

    pipeline = library.load_pipeline(folder)
    answers = pipeline([row["sentence"] for row in found])
    assert [answer["label"] for answer in answers] == [row["predicted"] for row in found]
    for answer, row in zip(answers, found, strict=True):
        assert answer["score"] == pytest.approx(float(row[f"probability_{row['predicted']}"]), abs=1e-5)
    network, prepare = library.load_run(folder)
    logits = network(**prepare([row["sentence"] for row in found])).logits
    assert [names[i] for i in logits.argmax(-1)] == [row["predicted"] for row in found]


def test_pairs_and_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    lines = [{"sentence1": "a cat", "sentence2": "the dog runs", "score": 0.5 + i % 5} for i in range(TRAIN)]
    Path("a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    folder = finished(fishexp(*options("electra"), "train=a.jsonl", "valid=null", "method=random"))
    assert list(records(Path())[0]["metrics"])[:2] == ["pearson", "spearman"]
    Path("new.jsonl").write_text(json.dumps({"sentence2": "the dog runs", "sentence1": "a cat", "n": 3}) + "\n")
    assert predict.main([str(folder), "new.jsonl", "-o", "out.tsv", "--device", "cpu"]) == 0
    assert capsys.readouterr().out == "out.tsv: 1 predictions\n"
    header, line = Path("out.tsv").read_text().splitlines()
    assert header.split("\t") == ["sentence2", "sentence1", "n", "predicted"]
    network, prepare = library.load_run(folder)
    (number,) = network(**prepare(["a cat"], ["the dog runs"])).logits.tolist()
    assert line.split("\t")[:3] == ["the dog runs", "a cat", "3"]
    assert float(line.split("\t")[3]) == pytest.approx(number[0], rel=1e-5)
    (answer,) = library.load_pipeline(folder)([{"text": "a cat", "text_pair": "the dog runs"}])
    assert answer["score"] == pytest.approx(number[0], rel=1e-5)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1700000000.25, "1700000000.25"), (2**60, str(2**60)), (date(2026, 1, 31), "2026-01-31"), (None, ""),
        (True, "true"), ({"at": date(2026, 1, 31)}, '{"at": "2026-01-31"}'), ("1.50", "1.50"),
    ],
)  # fmt: skip
def test_what_stands_in_a_file_is_written_as_it_is(value: object, text: str) -> None:
    assert predict._cell(value) == text


def test_a_run_on_glue_predicts_for_as_many_sentences_as_it_read(capsys: pytest.CaptureFixture[str]) -> None:
    Path("glue").mkdir()
    write_task(Path("glue"), LAYOUTS["rte"])
    more = ("data=glue", "task=rte", "root=glue", "max_length=16", "model=auto", "model.path=electra", "epochs=0")
    write_classifier(Path("electra"), "electra")
    folder = finished(fishexp(*more, "keep=0.5", "method=random", "threads=1"))
    Path("pairs.csv").write_text("id,sentence1,sentence2\n1,a cat,the dog runs\n")
    assert predict.main([str(folder), "pairs.csv"]) == 0
    capsys.readouterr()
    assert mistake(capsys, str(folder), "b.csv") == (
        "b.csv: the run read sentence1 and sentence2, this is sentence; name others"
    )


def test_the_identity_of_a_run_is_what_its_files_hold() -> None:
    """Not their names, nor what lies beside them; the columns that are told count."""
    first = options("distilbert", "method=random", "resume=true", "data.text=sentence", "data.label=label")
    assert fishexp(*first).status == 0
    shutil.copy("a.csv", "c.csv")
    for name in ("sentence", "label"):
        Path(name).mkdir()
    assert "is done already" in fishexp(*first, "train=c.csv").out
    assert fishexp(*first, "label=id", "kind=number").status == 0
    Path("c.csv").write_text(Path("c.csv").read_text().replace("dog", "cat"))
    assert "is done already" not in fishexp(*first, "train=c.csv").out
    assert len({record["run_id"] for record in records(Path())}) == 3
    assert all(record["config"]["data"]["train"].startswith("@") for record in records(Path()))


def test_a_data_set_has_the_name_that_it_is_given() -> None:
    result = fishexp(*options("distilbert", "method=random", "data.name=films"))
    assert finished(result).parts[:3] == ("outputs", "films", "auto")
    assert "a.csv: 40 examples; text in sentence, such as " in result.out


@pytest.fixture
def run() -> Path:
    return finished(fishexp(*options("distilbert", "method=random")))


def mistake(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert predict.main(list(arguments)) == 2
    error = capsys.readouterr().err
    assert error.startswith("fishexp.predict: ")
    assert error.count("\n") == 1
    return error.removeprefix("fishexp.predict: ").strip()


def test_mistakes_in_predicting_get_a_line(
    run: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.clear()
    Path("title.csv").write_text("title,body\na,b\n")
    Path("done.csv").write_text("title,body,predicted\na,b,c\n")  # said before a column is looked for
    Path("hole.csv").write_text("id,sentence\n1,a\n2,\n")
    assert mistake(capsys, str(run), "none.csv") == "none.csv is missing; name a file of examples"
    assert mistake(capsys, str(run), "title.csv").startswith("title.csv: which column holds the sentences? there are: ")
    assert mistake(capsys, str(run), "title.csv", "--text", "titel").startswith(
        "title.csv has no column 'titel'; did you"
    )
    assert mistake(capsys, str(run), "title.csv", "--text", "title", "body") == (
        "title.csv: the run read sentence, this is title and body; name others"
    )
    assert mistake(capsys, str(run), "done.csv") == "done.csv has a column 'predicted' already; rename it"
    assert mistake(capsys, str(run), "hole.csv") == "hole.csv line 3: sentence is empty; fill it, or remove the row"
    assert mistake(capsys, "nowhere", "b.csv").startswith("nowhere is not the folder of a finished run: ")
    assert (
        mistake(capsys, str(run), "b.csv", "-o", "out.xlsx") == "-o out.xlsx: predictions are written as .csv or .tsv"
    )
    assert mistake(capsys, str(run), "b.csv", "-o", "b.csv") == "-o b.csv is the file of the examples; give another"
    assert mistake(capsys, str(run), "b.csv", "-o", "no/out.csv").startswith("-o no/out.csv: there is no folder ")
    assert mistake(capsys, str(run), "b.csv", "--batch-size", "0") == "--batch-size 0: at least one example at a time"
    assert predict.main([str(run), "title.csv", "--text", "title"]) == 0
    assert not caplog.messages
    Path("other.csv").write_text("id,review\n1,a film\n2,another film\n")
    assert predict.main([str(run), "other.csv"]) == 0
    assert caplog.messages == ["other.csv: the run read sentence, which it lacks; review is read instead"]


@pytest.mark.parametrize("weights", [False, True])
def test_images_in_folders_and_a_network_of_torchvision(weights: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """With a file of weights they are resized and normalised as those of ImageNet, also when the run is loaded."""
    for colour, name in enumerate(("blue", "green", "red")):
        for part, count in (("train", 8), ("val", 3)):
            (Path("photos") / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = torch.randint(0, 100, (24, 30, 3), dtype=torch.uint8)
                pixels[..., 2 - colour] += 150
                Image.fromarray(pixels.numpy()).save(f"photos/{part}/{name}/{i}.png")
    torch.save(models.shufflenet_v2_x0_5().state_dict(), "published.pth")
    more = ("model.weights=published.pth", "model.size=40") if weights else ()
    folder = finished(
        fishexp(
            "data=imagefolder", "root=photos", "data.size=32", "arch=shufflenet_v2_x0_5", "epochs=1", "batch_size=8",
            "threads=1", "method=fish", "keep=0.1", *more,
        )
    )  # fmt: skip
    assert folder.parts[:4] == ("outputs", "imagefolder", "torchvision-shufflenet_v2_x0_5", "fish-0.1")
    (record,) = records(Path())
    assert record["kept_by"]["fc.weight"] == [3 * 1024, 3, 1024]
    Path("published.pth").unlink()  # a run needs it no more
    network, prepare = library.load_run(folder)
    about = json.loads((folder / "preprocessing.json").read_text())
    assert (about["mean"] == list(IMAGENET[0])) == weights
    data = imagefolder.load(
        root="photos", size=32, flip=True, valid_fraction=0.1, train_limit=None, valid_limit=None, holdout=0
    )
    (run,) = read_predictions(Path("outputs/records.jsonl")).values()
    with torch.no_grad():
        logits = network(prepare(data.valid[""].pixels))
    assert logits.argmax(-1).tolist() == run[""].predicted.tolist()
    loss = torch.nn.functional.cross_entropy(logits, data.valid[""].labels).item()
    assert loss == pytest.approx(record["metrics"]["loss"], rel=1e-4)
    assert about["names"] == ["blue", "green", "red"]
    if weights:  # whoever goes on from the run has to read images as it did
        again = ("data=imagefolder", "root=photos", "data.size=32", "arch=shufflenet_v2_x0_5", "epochs=0", "threads=1")
        again += (f"model.path={folder}", "outputs=again")
        assert fishexp(*again).mistake() == (
            f"model.path={folder} was trained with model.weights=published.pth; give it here too"
        )
        refused = fishexp(*again, "model.weights=published.pth").mistake()
        assert refused.endswith(" was trained with model.size=40; give it here too")
        assert fishexp(*again, *more).status == 0
        (gone_on,) = [line for line in read(Path("again/records.jsonl")) if line["status"] == "finished"]
        assert gone_on["metrics"] == pytest.approx(record["metrics"])
    assert predict.main([str(folder), "photos/val", "--batch-size", "4"]) == 0
    found = rows(capsys.readouterr().out)
    assert [row["file"] for row in found] == sorted(map(str, Path("photos/val").rglob("*.png")))
    assert [row["predicted"] for row in found] == [about["names"][i] for i in run[""].predicted]
    expected = logits.softmax(-1)
    for row, shares in zip(found, expected.tolist(), strict=True):
        named = [float(row[f"probability_{name}"]) for name in about["names"]]
        assert named == pytest.approx(shares, abs=1e-5)


@pytest.fixture
def digits(capsys: pytest.CaptureFixture[str]) -> Path:
    folder = finished(fishexp(*QUICK))
    capsys.readouterr()
    return folder


def test_an_image_is_read_in_the_channels_and_the_size_that_the_run_had_them_in(
    digits: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A digit in colours, with margins at its sides, is the digit."""
    pixels = torch.randint(0, 256, (1, 1, 8, 8), dtype=torch.uint8)
    wide = torch.nn.functional.pad(pixels[0, 0], (5, 5), value=9)
    Image.fromarray(wide.numpy()).convert("RGB").save("digit.png")
    assert predict.main([str(digits), "digit.png"]) == 0
    (row,) = rows(capsys.readouterr().out)
    network, prepare = library.load_run(digits)
    with torch.no_grad():
        shares = network(prepare(pixels)).softmax(-1)[0].tolist()
    assert [float(row[f"probability_{digit}"]) for digit in range(10)] == pytest.approx(shares, abs=1e-5)
    assert row["file"] == "digit.png"
    assert row["predicted"] == str(shares.index(max(shares)))


def test_mistakes_in_predicting_of_images_get_a_line(digits: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = f"{digits} is a run on images, this reads text; fishexp.load_run gives its model"
    assert refusal(library.load_pipeline, digits) == message
    assert mistake(capsys, str(digits), "b.csv").startswith(f"b.csv: {digits} is a run on images, which end in .bmp, ")
    assert mistake(capsys, str(digits), "none") == "none is missing; name an image, or a folder of images"
    Path("empty").mkdir()
    assert mistake(capsys, str(digits), "empty").startswith("empty holds no images (.bmp, ")
    assert mistake(capsys, f"{digits}x", "empty").startswith(f"{digits}x is not the folder of a finished run: there ")
    Path("empty/torn.png").write_bytes(b"\x89PNG and no more")
    assert mistake(capsys, str(digits), "empty").startswith("empty/torn.png is no image that can be read (")
    assert mistake(capsys, str(digits), "empty", "--text", "a").startswith("--text a: ")
    about = json.loads((digits / "preprocessing.json").read_text())
    Image.new("L", (8, 8)).save("empty/torn.png")
    for change, said in (
        ({"names": ["0", "1"]}, "does not name 10 classes; it is not what a run writes"),
        ({"size": None}, "does not say how large its images were, as runs of earlier versions do not; "),
        ({"size": [8, 10**9]}, "has size=[8, 1000000000]; it is not what a run writes"),
        ({"channels": 2}, "is a run on images of 2 channels; files have one or three"),
    ):
        (digits / "preprocessing.json").write_text(json.dumps(about | change))
        assert said in mistake(capsys, str(digits), "empty")
