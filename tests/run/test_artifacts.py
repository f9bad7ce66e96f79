"""What a run leaves behind gives the same logits again."""

import json
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file, save_model

from fishexp.data import digits
from fishexp.data.datasets import Dataset
from fishexp.data.metrics import accuracy
from fishexp.data.text import Sentences
from fishexp.delta import Delta
from fishexp.delta.__main__ import main as delta_main
from fishexp.errors import FishexpError
from fishexp.models import Model, bert, resnet
from fishexp.run import runner
from fishexp.run.artifacts import build_model, load_run, save_run
from fishexp.run.record import read
from fishexp.run.yamls import CONF
from fishexp.training.checkpoints import BASE
from tests.support.checks import refusal, same_weights
from tests.support.cli import fishexp

FIRST = ["the cat runs .", "a dog ?", "the dog sees the cat and the dog runs"]
SECOND = ["the cats", "a dog runs and a dog runs and a dog runs", "?"]


def configure(folder: Path, name: str, **options: Any) -> None:
    """config.yaml as the runner leaves it: conf/model/NAME.yaml with ``options``."""
    folder.mkdir(exist_ok=True)
    model = OmegaConf.merge(OmegaConf.load(f"{CONF}/model/{name}.yaml"), options)
    OmegaConf.save({"model": model, "data": {"name": "mine"}}, folder / "config.yaml")


@pytest.fixture(params=[8, 9])
def images(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Model, Dataset]:
    """A ResNet with running statistics of its own, the digits, and the folder of their run."""
    model = resnet.build(10, 1, layers=request.param, path=None)
    data = digits.load(train_limit=32, valid_limit=16, holdout=0)
    if request.param == 9:
        data.train.pixels = data.train.pixels.repeat(1, 1, 4, 4)
        data.valid[""].pixels = data.valid[""].pixels.repeat(1, 1, 4, 4)
    for _ in range(3):
        model.network(data.train.batch(torch.arange(32))[0])
    configure(tmp_path / "run", f"resnet{request.param}")
    save_run(tmp_path / "run", model, data)
    return tmp_path / "run", model, data


def test_images(images: tuple[Path, Model, Dataset]) -> None:
    folder, model, data = images
    network, prepare = load_run(folder)
    assert not network.training
    assert same_weights(network, model.network)
    examples = data.valid[""]
    inputs, _ = examples.batch(torch.arange(len(examples)))
    assert torch.equal(prepare(examples.pixels), inputs)
    assert torch.equal(network(prepare(examples.pixels)), model.network.eval()(inputs))


def test_what_are_no_images_is_refused_with_what_reads_them(images: tuple[Path, Model, Dataset]) -> None:
    folder, _, data = images
    _, prepare = load_run(folder)
    pixels = data.valid[""].pixels
    for given, got in (
        ([pixels[0]], "list"),
        (pixels.numpy(), "ndarray"),
        (pixels[0], f"torch.uint8 {tuple(pixels[0].shape)}"),
        (pixels.float(), f"torch.float32 {tuple(pixels.shape)}"),
        (pixels.movedim(1, -1), f"torch.uint8 {tuple(pixels.movedim(1, -1).shape)}"),
    ):
        assert f" with channels=1, got {got}; torchvision.io.decode_image" in refusal(prepare, given)


def sentences(model: Model, *, pair: bool, max_length: int) -> Dataset:
    part = Sentences(FIRST, SECOND if pair else None, torch.arange(3), max_length).tokenised(model.tokenizer)
    return Dataset(part, {"": part}, classes=3, channels=0, metrics=accuracy)


@pytest.mark.parametrize("pair", [False, True])
@pytest.mark.parametrize("max_length", [20, 6])
@pytest.mark.parametrize("pretrained", [False, True])
def test_sentences(bert_folder: Path, pretrained: bool, pair: bool, max_length: int) -> None:
    """Whatever the weights began as, and cut where training cut them, with no option of the data set's."""
    model = bert.build(3, 0, path=str(bert_folder), pretrained=False, activation_checkpointing=False)
    data = sentences(model, pair=pair, max_length=max_length)
    folder = bert_folder / "run"
    configure(folder, "bert_base", pretrained=pretrained, path="gone")
    save_run(folder, model, data)
    assert json.loads((folder / "preprocessing.json").read_text())["max_length"] == max_length

    network, prepare = load_run(str(folder))
    assert not network.training
    assert same_weights(network, model.network)
    inputs, _ = data.train.batch(torch.arange(3))
    prepared = prepare(FIRST, SECOND) if pair else prepare(FIRST)
    assert prepared.keys() == inputs.keys()
    assert all(torch.equal(prepared[key], inputs[key]) for key in inputs)
    assert torch.equal(network(**prepared).logits, model.network.eval()(**inputs).logits)


@pytest.mark.parametrize("name", ["preprocessing.json", "config.yaml"])
def test_folders_of_no_finished_run(images: tuple[Path, Model, Dataset], name: str) -> None:
    file = images[0] / name
    file.unlink()
    assert refusal(load_run, images[0]) == f"{images[0]} is not the folder of a finished run: {file} is missing"
    assert refusal(load_run, "/no/such/run").startswith("/no/such/run is not the folder of a finished run: ")
    mistyped = images[0].with_name(images[0].name[:-2])
    assert refusal(load_run, mistyped) == (
        f"{mistyped} is not the folder of a finished run: there is none; did you mean {images[0].name}? "
        f"there are: {', '.join(sorted(path.name for path in images[0].parent.iterdir()))}"
    )
    for number in range(30):
        (images[0].parent / f"{number}{number}").mkdir()
    assert refusal(load_run, mistyped).endswith(
        f"there is none; did you mean {images[0].name}? there are: {images[0].name}"
    )


def leave_a_change(folder: Path, model: Model, data: Dataset) -> None:
    """Save a run that changed one weight of ``model``: base and delta, not all weights."""
    folder.mkdir(exist_ok=True)
    save_model(model.network, str(folder / BASE))
    before = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    with torch.no_grad():
        next(model.network.parameters()).view(-1)[0] += 1
    assert "delta" in save_run(folder, model, data, Delta.diff(before, model.network))
    (folder / "model.safetensors").unlink(missing_ok=True)


def test_a_model_is_built_from_what_a_run_changed(images: tuple[Path, Model, Dataset]) -> None:
    folder, model, data = images
    leave_a_change(folder, model, data)
    options = {**OmegaConf.to_container(OmegaConf.load(folder / "config.yaml").model), "path": str(folder)}  # type: ignore[dict-item]
    built = build_model(options, 10, data.channels)
    assert same_weights(built.network, model.network)
    assert built.source == str(folder.resolve())
    assert refusal(build_model, options, 5, data.channels) == (
        f"model.path={folder} has a classifier of 10 labels, the data set has 5; "
        "give a model with as many, or one without a classifier"
    )


def test_random_weights_in_the_shape_of_a_run(bert_folder: Path) -> None:
    """``pretrained=false`` takes configuration and tokenizer from a run folder, and none of its weights."""
    model = bert.build(3, 0, path=str(bert_folder), pretrained=False, activation_checkpointing=False)
    folder = bert_folder / "run"
    leave_a_change(folder, model, sentences(model, pair=False, max_length=6))
    options = {"name": "bert_base", "module": "bert", "path": str(folder), "activation_checkpointing": False}
    again = build_model({**options, "pretrained": True}, 3, 0)
    assert same_weights(again.network, model.network)
    assert not same_weights(build_model({**options, "pretrained": False}, 3, 0).network, model.network)


def test_a_run_without_its_weights(images: tuple[Path, Model, Dataset]) -> None:
    (images[0] / "model.safetensors").unlink()
    assert refusal(load_run, images[0]).startswith(f"model.path={images[0]}: {images[0] / 'model.safetensors'} is no ")


def checkpoint(folder: Path, bert_folder: Path, names: dict[int, str], order: list[int]) -> Path:
    """A classifier that knows the classes of sst2, whose outputs come in another order, as transformers saves it."""
    torch.manual_seed(0)
    model = bert.build(len(names), 0, path=str(bert_folder), pretrained=False, activation_checkpointing=False)
    network: Any = model.network
    with torch.no_grad():  # so that both classes occur
        network.classifier.weight.mul_(100)
        for parameter in network.classifier.parameters():
            parameter.copy_(parameter[order])
    network.config.id2label, network.config.label2id = names, {name: i for i, name in names.items()}
    network.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("keep", ["0.2", pytest.param("1", marks=pytest.mark.slow)])  # leaves a delta, or all weights
def test_the_order_of_a_checkpoints_classes_does_not_matter(
    keep: str, bert_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same function scores the same, before and after training; what is left names the data set's classes."""
    from transformers import AutoModelForSequenceClassification

    monkeypatch.chdir(tmp_path)
    orders = {
        "same": ({0: "NEGATIVE", 1: "POSITIVE"}, [0, 1]),
        "other": ({0: "Positive", 1: "Negative"}, [1, 0]),
        "unnamed": ({0: "LABEL_0", 1: "LABEL_1"}, [0, 1]),
    }
    options = ("data=glue", "data.task=sst2", f"data.root={sst2(tmp_path)}", "data.max_length=16", "model=bert_base")
    options += ("regime.lr=0.01", "method=random", f"keep={keep}", "threads=1", "data.valid_limit=5")
    networks = []
    for name, (names, order) in orders.items():
        start = checkpoint(tmp_path / name, bert_folder, names, order)
        for epochs in (0, 2):
            done = fishexp(*options, f"regime.epochs={epochs}", f"model.path={start}", f"outputs={name}{epochs}")
            assert done.status == 0
        (folder,) = tmp_path.glob(f"{name}2/*/*/*/*")
        network, prepare = load_run(folder)
        assert network.config.id2label == {0: "negative", 1: "positive"}  # type: ignore[union-attr]
        config = json.loads((folder / "config.json").read_text())
        assert config["id2label"] == {"0": "negative", "1": "positive"}
        assert config["label2id"] == {"negative": 0, "positive": 1}
        if keep == "1":
            theirs = AutoModelForSequenceClassification.from_pretrained(folder)
            assert same_weights(theirs, network)
        else:  # the delta is one to the reordered classifier, and is not put into a folder that names another order
            out = tmp_path / f"{name}-out"
            status = delta_main(["apply", str(start), str(folder / "delta.safetensors"), "-o", str(out)])
            assert status == (2 if name == "other" else 0)
            if name == "same":
                theirs = AutoModelForSequenceClassification.from_pretrained(out)
                assert same_weights(theirs, network)
        assert network(**prepare(["the cat runs ."])).logits.shape == (1, 2)
        networks.append(network)
        again = fishexp(*options, "regime.epochs=0", f"model.path={folder}", f"outputs={name}3")
        assert again.status == 0
    assert all(same_weights(network, networks[0]) for network in networks)
    for epochs in (0, 2, 3):
        found = [list(read(tmp_path / f"{name}{epochs}" / "records.jsonl"))[-1]["metrics"] for name in orders]
        assert found[0] == found[1] == found[2]  # of five examples: the other order has another accuracy


def test_a_checkpoint_of_other_classes_is_refused(
    bert_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ("data=glue", "data.task=sst2", f"data.root={sst2(tmp_path)}", "data.max_length=16", "model=bert_base")
    start = checkpoint(tmp_path / "start", bert_folder, {0: "entailment", 1: "not_entailment"}, [0, 1])
    assert fishexp(*options, f"model.path={start}").mistake() == (
        f"model.path={start} classifies entailment, not_entailment, the data set negative, positive; correct id2label "
        "in its config.json if these are the same classes, or give a model without a classifier"
    )


def test_a_run_is_reordered_for_data_of_another_order(images: tuple[Path, Model, Dataset]) -> None:
    """A classifier of images has no configuration: the run says what its classes are."""
    folder, model, data = images
    config: Any = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
    options = {**config["model"], "path": str(folder)}
    inputs = data.train.batch(torch.arange(8))[0]
    names = tuple("jihgfedcba")
    for leave in (save_run, leave_a_change):
        leave(folder, model, replace(data, names=names))
        assert json.loads((folder / "preprocessing.json").read_text())["names"] == list(names)
        logits = model.network.eval()(inputs)
        built = build_model(options, 10, data.channels, names[::-1])
        torch.testing.assert_close(built.network.eval()(inputs), logits.flip(1))
        assert torch.equal(build_model(options, 10, data.channels, names).network.eval()(inputs), logits)
        assert "a, the data set a, b, " in refusal(build_model, options, 10, data.channels, [*"abcdefghix"])
        assert same_weights(load_run(folder)[0], model.network)


def test_a_run_goes_on_with_images_normalised_as_they_were(images: tuple[Path, Model, Dataset]) -> None:
    """Whatever the mean of those is on which it goes on."""
    folder, model, data = images
    config: Any = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
    options = {**config["model"], "path": str(folder)}
    for leave in (save_run, leave_a_change):
        leave(folder, model, data)
        assert build_model(options, 10, data.channels).normalisation == (data.train.mean, data.train.std)
    assert build_model({**options, "path": None}, 10, data.channels).normalisation is None


def test_a_run_of_an_older_version_has_its_data_sets_order(images: tuple[Path, Model, Dataset]) -> None:
    folder, model, data = images
    about = json.loads((folder / "preprocessing.json").read_text())
    del about["names"]
    (folder / "preprocessing.json").write_text(json.dumps(about))
    options: dict[str, Any] = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml").model)  # type: ignore[assignment]
    built = build_model({**options, "path": str(folder)}, 10, data.channels, tuple("jihgfedcba"))
    assert same_weights(built.network, model.network)
    assert same_weights(load_run(folder)[0], model.network)


@pytest.mark.parametrize("content", ["{", "[]", "\xff", "[" * 100_000], ids=["cut", "list", "bytes", "deep"])
def test_a_run_whose_notes_are_damaged(images: tuple[Path, Model, Dataset], content: str) -> None:
    file = images[0] / "preprocessing.json"
    file.write_text(content)
    assert refusal(load_run, images[0]) == f"{file} is damaged: it is not what a run writes; train again"


def sst2(folder: Path) -> Path:
    (folder / "glue" / "SST-2").mkdir(parents=True)
    for file, count in (("train", 24), ("dev", 8)):
        rows = "".join(f"the cat sees a {'dog' if i % 3 else 'cat'} .\t{i % 2}\n" for i in range(count))
        (folder / "glue" / "SST-2" / f"{file}.tsv").write_text(f"sentence\tlabel\n{rows}")
    return folder / "glue"


def test_a_run_from_a_checkpoint_leaves_the_change_alone(
    bert_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found again through the checkpoint, from which others can start too; refused once that is another."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    start = bert.build(2, 0, path=str(bert_folder), pretrained=False, activation_checkpointing=False)
    start.network.get_submodule("bert").save_pretrained(tmp_path / "start")  # type: ignore[operator]
    start.tokenizer.save_pretrained(tmp_path / "start")
    options = ("data=glue", "data.task=sst2", f"data.root={sst2(tmp_path)}", "data.max_length=16", "model=bert_base")
    options += ("regime.lr=0.01", "method=random", "keep=0.2", "threads=1", "regime.epochs=2")
    with monkeypatch.context() as patch:
        trained: list[Model] = []
        original = runner.save_run
        patch.setattr(runner, "save_run", lambda *a: (trained.append(a[1]), original(*a))[1])
        assert fishexp(*options, f"model.path={tmp_path / 'start'}").status == 0
    (folder,) = tmp_path.glob("outputs/*/*/*/*")
    assert not list(folder.glob("model*")) + list(folder.glob("base*"))
    network, prepare = load_run(folder)
    assert same_weights(network, trained[0].network)
    assert network(**prepare(["the cat runs ."])).logits.shape == (1, 2)

    assert fishexp(*options, "regime.epochs=0", f"model.path={folder}", "outputs=again").status == 0
    first, again = (list(read(Path(name) / "records.jsonl"))[-1] for name in ("outputs", "again"))
    assert first["metrics"] == again["metrics"]
    assert first["bytes"]["delta"] == (folder / "delta.safetensors").stat().st_size

    assert fishexp(*options, f"model.path={folder}", "seed=1", "outputs=second").status == 0
    (second,) = tmp_path.glob("second/*/*/*/*")
    assert fishexp(*options, f"model.path={second}", "seed=2", "outputs=third").status == 0
    (third,) = tmp_path.glob("third/*/*/*/*")
    loaded = [load_run(one)[0] for one in (folder, second, third)]
    assert not any(same_weights(one, other) for one, other in pairwise(loaded))
    assert fishexp(*options, "regime.epochs=0", f"model.path={third}", "outputs=last").status == 0
    once, again = (list(read(Path(name) / "records.jsonl"))[-1] for name in ("third", "last"))
    assert once["metrics"] == again["metrics"]
    assert "kept its last epoch only" in refusal(load_run, folder, epoch=0)

    weights = load_file(tmp_path / "start" / "model.safetensors")
    weights["embeddings.word_embeddings.weight"][0, 0] += 1
    save_file(weights, tmp_path / "start" / "model.safetensors", {"format": "pt"})
    assert refusal(load_run, folder).startswith("the delta is for another base: ")
    (tmp_path / "start").rename(tmp_path / "elsewhere")
    assert refusal(load_run, folder).endswith("start, which is not there any more")


EVIL = """
from pathlib import Path
Path("ran").touch()
def build(classes, channels, *, path): raise SystemExit
"""


def test_a_run_folder_runs_no_code_of_its_own(
    images: tuple[Path, Model, Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither by a plain name nor by a dotted one, unless that is asked for."""
    folder, _, _ = images
    (folder / "evil.py").write_text(EVIL)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "evil", raising=False)
    for model in ({"name": "evil"}, {"name": "resnet8", "module": "evil"}, {"name": "os.path"}, {"name": "../evil"}):
        OmegaConf.save({"model": model}, folder / "config.yaml")
        with pytest.raises(FishexpError, match=r"is built by the module .*allow_code=True"):
            load_run(".")
    assert not (folder / "ran").exists()
    OmegaConf.save({"model": {"name": "evil"}}, folder / "config.yaml")
    with pytest.raises(SystemExit):
        load_run(".", allow_code=True)
    assert (folder / "ran").exists()


def test_a_model_folder_runs_no_code_of_its_own(bert_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers would ask on the terminal."""
    config = json.loads((bert_folder / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "evil.Mine"}}
    (bert_folder / "config.json").write_text(json.dumps(config))
    (bert_folder / "evil.py").write_text(EVIL)
    monkeypatch.chdir(bert_folder)
    monkeypatch.setattr("builtins.input", lambda *a: pytest.fail("asked"))
    with pytest.raises(FishexpError, match="cannot be loaded"):
        bert.build(3, 0, path=str(bert_folder), pretrained=True, activation_checkpointing=False)
    assert not (bert_folder / "ran").exists()


def test_a_base_that_is_on_the_hub_is_not_fetched_unasked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configure(tmp_path / "run", "bert_base")
    about = {"classes": 3, "channels": 0, "source": "someone/something", "max_length": 8}
    (tmp_path / "run" / "preprocessing.json").write_text(json.dumps(about))
    (tmp_path / "run" / "delta.safetensors").touch()
    asked = []
    monkeypatch.setattr("socket.getaddrinfo", lambda *a, **k: asked.append(a))
    with pytest.raises(FishexpError, match=r"someone/something cannot be loaded.*allow_download=True"):
        load_run(tmp_path / "run")
    assert not asked


@pytest.mark.parametrize("long", [False, True])
def test_a_run_that_began_with_itself_ends(tmp_path: Path, long: bool) -> None:
    """Also by way of another."""
    folders = [tmp_path / "a", tmp_path / "b"] if long else [tmp_path / "a"]
    for folder, source in zip(folders, [*folders[1:], folders[0]], strict=True):
        configure(folder, "resnet8")
        about = {"classes": 3, "channels": 1, "source": str(source), "mean": [0.0], "std": [1.0]}
        (folder / "preprocessing.json").write_text(json.dumps(about))
        (folder / "delta.safetensors").touch()
    with pytest.raises(FishexpError, match="holds what training changed in itself"):
        load_run(folders[0])


# a few hundred bytes that stand for nine to the ninth words
BILLION_LAUGHS = "a0: &a0 lol\n" + "".join(f"a{i + 1}: &a{i + 1} [{', '.join([f'*a{i}'] * 9)}]\n" for i in range(9))


@pytest.mark.parametrize(
    ("config", "about", "message"),
    [
        ("model: [", {}, "config.yaml is damaged"),
        (BILLION_LAUGHS, {}, "config.yaml has aliases, such as [*]name; it is not what a run writes"),
        ("a: &a [*a]", {}, "config.yaml has aliases, such as [*]name; it is not what a run writes"),
        ("a: &a {b: 1}\nc: {<<: *a}", {}, "config.yaml has aliases, such as [*]name; it is not what a run writes"),
        ("a: 1 # " + 100_000 * "a", {}, "config.yaml has more than 100,000 bytes; it is not what a run writes"),
        ("a: " + 900 * "[", {}, "config.yaml is damaged"),
        ("\0", {}, "config.yaml is damaged"),
        ("- 1", {}, "config.yaml names no model"),
        ("model: {name: 3}", {}, "config.yaml names no model"),
        ("model: {name: resnet8, module: resnet}", {}, "preprocessing.json has classes=None"),
        ("model: {name: resnet8, module: resnet}", {"classes": -1, "channels": 1}, "preprocessing.json has classes=-1"),
        (
            "model: {name: resnet8, module: resnet}",
            {"classes": 2, "channels": 1},
            "does not say how inputs are",
        ),
    ],
)
def test_run_folders_that_no_run_has_written(tmp_path: Path, config: str, about: dict[str, Any], message: str) -> None:
    (tmp_path / "config.yaml").write_text(config)
    (tmp_path / "preprocessing.json").write_text(json.dumps(about))
    start = time.process_time()
    with pytest.raises(FishexpError, match=message):
        load_run(tmp_path)
    assert time.process_time() - start < 10
