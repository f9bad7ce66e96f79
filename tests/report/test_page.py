"""The report page: all that it shows, nothing that a hostile record could do, and nothing from elsewhere."""

import base64
import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

from fishexp.delta import Delta
from fishexp.report.page import __main__ as page
from fishexp.report.page.beside import Beside, read_beside
from fishexp.report.page.budget import kind_of, layer_of
from fishexp.report.page.comparison import Comparison, data_sets
from fishexp.report.page.curves import read_histories
from fishexp.report.page.document import document
from fishexp.report.page.markup import tag
from fishexp.report.page.scale import scale
from fishexp.report.page.tradeoff import Point, bytes_of, draw_rates, front
from fishexp.report.pool import pool
from tests.support.records import held_out, one_class, record

_NOTHING = Beside()
HOSTILE = "</script><script>alert(1)</script>\" onload='x' <img src=x onerror=alert(1)> &amp; ]]>"


class Reader(HTMLParser):
    """Read a page: its elements with their attributes, in order, and its texts."""

    VOID = ("meta", "input", "br", "col")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.texts.append(data)

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def text_of(records: list[dict[str, Any]], beside: Beside = _NOTHING, **options: Any) -> str:
    return document(pool(records, **options), [Path("records.jsonl")], beside)


def read(records: list[dict[str, Any]], **options: Any) -> Reader:
    return Reader(text_of(records, **options))


def full_of_everything() -> list[dict[str, Any]]:
    records = [record(0.8 + s / 100, seed=s, keep=k, run_id=f"f{s}{k}") for s in range(3) for k in (0.005, 0.02)]
    records += [record(0.7, method="random", run_id="r"), record(0.95, method="full", run_id="d")]
    records += [held_out(0.7, lr, run_id=f"h{lr}") for lr in (0.1, 0.2)] + [one_class(0.6, data__task="x", run_id="o")]
    for run in records:
        run["bytes"] = {"dense": 1000, "delta": run["kept"] * 4}
        run["kept_by"] = {"layer1.0.conv1.weight": [run["kept"], 8, 8, 3, 3], "fc.weight": [100, 10, 10]}
    return records


def test_the_page_has_the_numbers_and_where_they_come_from() -> None:
    reader = read(full_of_everything())
    text = " ".join(reader.texts)
    for wanted in ("81.0 ± 1.0", "n = 3", "0123456789ab", "seed=0,1,2", "python -m fishexp -m data=digits", "60.0 ‡"):
        assert wanted in text, wanted
    assert {"f00.005", "r", "d", "h0.1"} <= set(reader.texts)  # every run by its name
    assert "records.jsonl" in reader.texts
    assert "11 finished" in text


def test_every_row_has_what_it_unfolds_to_and_every_point_its_row() -> None:
    reader = read(full_of_everything())
    names = [attributes["id"] for _, attributes in reader.elements if "id" in attributes]
    assert len(names) == len(set(names))
    for _, attributes in reader.elements:
        for key in ("aria-controls", "aria-labelledby"):
            assert key not in attributes or attributes[key] in names
    links = [attributes["href"] or "" for attributes in reader.named("a")]
    assert [link for link in links if link.startswith("#row-")]
    assert all(link.startswith("#") and link[1:] in names for link in links)


def test_nothing_comes_from_elsewhere_and_no_other_script_runs() -> None:
    text = text_of(full_of_everything())
    assert not re.search(r"https?:|//|url\(|@import|<link|<iframe|\bsrc=", re.sub(r"(?m)^\s*//.*|  //.*", "", text))
    script = re.search(r"<script>(.*?)</script>", text, re.DOTALL)
    assert script is not None
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert f"script-src &#x27;sha256-{digest}&#x27;" in text
    assert "default-src &#x27;none&#x27;" in text


def test_hostile_records_are_texts_and_nothing_else() -> None:
    plain = [record(run_id="a"), record(0.5, method="random", run_id="b"), held_out(0.6, 0.1, run_id="c")]
    nasty = [
        record(run_id=f"a{HOSTILE}", method__labels=HOSTILE, commit=HOSTILE, data__name=HOSTILE, model__name=HOSTILE),
        record(0.5, method=HOSTILE, run_id="b", commit=f"{HOSTILE}2", data__name=HOSTILE, model__name=HOSTILE),
        held_out(0.6, 0.1, run_id="c", data__name=HOSTILE, model__name=HOSTILE),
    ]
    for run in [*plain, *nasty]:
        run |= {"versions": {"torch": HOSTILE}, "device": HOSTILE, "ended": HOSTILE, "bytes": {"delta": HOSTILE}}
        run["kept_by"] = {f"{HOSTILE}.weight": [3, 3], "x": HOSTILE, "y": [], "z": [-1, "a"]}
        run["metrics"] |= {f"f1{HOSTILE}": 0.5}
    reader = read(nasty)
    kinds = [name for name, _ in read(plain).elements]
    assert {name for name, _ in reader.elements} == set(kinds)
    assert len(reader.named("script")) == 1
    assert not [attributes for _, attributes in reader.elements if any(key.startswith("on") for key in attributes)]
    assert HOSTILE in reader.texts


@pytest.mark.parametrize("field", ["bytes", "kept_by", "versions", "device", "ended", "inputs"])
@pytest.mark.parametrize("value", [None, [], "x", {"delta": True, "sent": -1, "a": [1]}, 3])
def test_fields_that_are_not_as_ours_do_no_harm(field: str, value: Any) -> None:
    runs = [record(run_id=str(seed), seed=seed) | {field: value} for seed in range(2)]
    assert "80.0 ± 0.0" in read(runs).texts


def test_pictures_are_well_formed_and_within_their_frame() -> None:
    text = text_of(
        full_of_everything(),
        Beside(histories={"f00.005": [{"epoch": 1.0, "accuracy": 0.5, "train_loss": 2.0}] * 2}),
    )
    pictures = re.findall(r"<svg .*?</svg>", text, re.DOTALL)
    assert len(pictures) > 5
    for picture in pictures:
        root = ElementTree.fromstring(picture)
        _, _, width, height = map(float, root.attrib["viewBox"].split())
        for element in root.iter():
            for x, y in re.findall(r"(-?[\d.]+)[ ,](-?[\d.]+)", element.attrib.get("points", "")):
                assert 0 <= float(x) <= width
                assert 0 <= float(y) <= height
            for key, most in (("x", width), ("x1", width), ("x2", width), ("y", height), ("y1", height)):
                assert 0 <= float(element.attrib.get(key, 0)) <= most
    assert "Learning curves" in text


def test_groups_are_compared_only_with_those_measured_alike() -> None:
    records = [record(), record(method="random"), record(data__train_limit=100), record(regime__epochs=1)]
    records += [record(model__name="other"), held_out(0.5, 0.1), record(regime__mask="fixed")]
    (found,) = data_sets(pool(records))
    assert sorted([group.label for group in one.groups] for one in found.reported) == [
        ["fish"], ["fish"], ["fish"], ["fish", "fish", "random"],
    ]  # fmt: skip
    assert [one.letter for one in [*found.reported, *found.held_out]] == list("ABCDE")
    lengths = [re.findall(r"\d+ epochs?", one.title) for one in found.reported]
    assert sorted(lengths) == [["1 epoch"], *[["10 epochs"]] * 3]
    (names,) = [[line.name for line in one.lines] for one in found.reported if len(one.groups) == 3]
    assert sorted(names) == ["fish", "fish, mask=fixed", "random"]


def test_comparisons_whose_titles_would_be_the_same_say_what_tells_them_apart() -> None:
    usual = "resnet10, transfer, 10 epochs, all training examples"

    def titles(*records: dict[str, Any]) -> list[str]:
        (found,) = data_sets(pool(list(records)))
        return sorted(one.title for one in found.reported)

    assert titles(record(), record(streams=None)) == [f"{usual}, streams=1", f"{usual}, streams=2"]
    paths = [record(data__path=path, run_id=path) | {"inputs": {"examples": f"of {path}"}} for path in ("a", "b")]
    assert titles(*paths, record(regime__epochs=3)) == [
        f"{usual}, path=a", f"{usual}, path=b", usual.replace("10 epochs", "3 epochs"),
    ]  # fmt: skip
    examples = [record(run_id=name) | {"inputs": {"examples": name}} for name in ("a", "b")]
    assert titles(*examples) == [f"{usual}, examples=a", f"{usual}, examples=b"]
    assert titles(record(data__root="@x"), record(streams=None)) == [f"{usual}, streams=1", f"{usual}, streams=2"]


def test_pictures_show_the_best_rates_and_say_so_of_none() -> None:
    records = [record(0.6, regime__lr=0.1), record(0.7, regime__lr=0.2), held_out(0.8, 0.1), held_out(0.7, 0.2)]
    (found,) = data_sets(pool(records))
    assert [group.lr for one in found.reported for group in one.best] == [0.1]
    assert [group.lr for one in found.held_out for group in one.best] == [0.1]
    (only,) = data_sets(pool([record(0.6, regime__lr=0.2), held_out(0.8, 0.1), held_out(0.7, 0.2)]))
    assert only.reported[0].best == []
    assert "another learning rate was better" in text_of([record(0.6, regime__lr=0.2), held_out(0.8, 0.1)])


def test_rates_are_drawn_where_several_were_tried() -> None:
    records = [held_out(0.5 + lr, lr, keep=keep) for lr in (0.01, 0.04, 0.16) for keep in (0.005, 0.02)]
    (comparison,) = data_sets(pool([*records, held_out(0.6, 0.1, method="random")]))[0].held_out
    picture = str(draw_rates(comparison, comparison.lines))
    curves = re.findall(r'<polyline points="([^"]*)"', picture)
    assert [len(curve.split()) for curve in curves] == [3, 3]  # one for each budget; random has a single rate
    assert picture.count("<a ") == 7
    assert {"0.01", "0.04", "0.1", "0.16"} <= set(re.findall(r">([\d.]+)</text>", picture))
    (comparison,) = data_sets(pool([record(), record(method="random")]))[0].reported
    assert draw_rates(comparison, comparison.lines) is None


def test_the_front_is_what_nothing_betters() -> None:
    groups = pool([record(score, method=f"m{i}", kept=k) for i, (k, score) in enumerate(COSTS)]).reported
    (line, *_) = Comparison("A", groups, groups).lines
    points = [Point(line, group, group.share or 0, group.mean or 0) for group in groups]
    better = [  # brute force
        (p.cost, p.score) for p in points
        if not any((q.cost <= p.cost and q.score >= p.score) and (q.cost, q.score) != (p.cost, p.score) for q in points)
    ]  # fmt: skip
    assert [(point.cost, point.score) for point in front(points)] == sorted(better)
    assert len(better) == 3


COSTS = [(10, 0.5), (20, 0.4), (30, 0.7), (30, 0.6), (50, 0.7), (40, 0.65), (60, 0.9)]


def test_bytes_are_those_sent_or_those_stored() -> None:
    runs = [record(seed=0) | {"bytes": {"delta": 100}}, record(seed=1) | {"bytes": {"delta": 200}}]
    assert bytes_of(pool(runs).reported[0]) == (150, "of what is stored")
    assert bytes_of(pool([record() | {"bytes": {"sent": 7, "dense": 9}}]).reported[0]) == (7, "sent by a worker")
    assert bytes_of(pool([runs[0], record(seed=1)]).reported[0]) == (None, "")


@pytest.mark.parametrize(
    ("low", "high"), [(1, 1), (0, 0), (0.1, 0.3), (1e-4, 1), (55869, 11173962), (-3, 5), (99, 101)]
)
@pytest.mark.parametrize("may_be_log", [True, False])
def test_scales_have_room_and_a_few_round_ticks(low: float, high: float, may_be_log: bool) -> None:
    found = scale([low, high], 100, 500, may_be_log=may_be_log)
    assert 100 < found.at(low) <= found.at(high) < 500
    ticks = found.ticks(5)
    assert 1 <= len(ticks) <= 6
    assert ticks == sorted(ticks)
    assert all(found.low <= tick <= found.high for tick in ticks)
    assert all(float(f"{tick:.4g}") == pytest.approx(tick) for tick in ticks)


@pytest.mark.parametrize(
    ("name", "dimensions", "kind", "layer"),
    [
        ("bert.embeddings.word_embeddings.weight", 2, "embeddings", "embeddings"),
        ("bert.embeddings.LayerNorm.weight", 1, "normalisation", "embeddings"),
        ("bert.encoder.layer.3.attention.self.query.weight", 2, "query", "layer 3"),
        ("bert.encoder.layer.3.attention.self.key.weight", 2, "key", "layer 3"),
        ("bert.encoder.layer.3.attention.self.value.bias", 1, "biases", "layer 3"),
        ("bert.encoder.layer.11.attention.output.dense.weight", 2, "attention output", "layer 11"),
        ("bert.encoder.layer.0.attention.output.LayerNorm.bias", 1, "biases", "layer 0"),
        ("bert.encoder.layer.0.intermediate.dense.weight", 2, "feed-forward", "layer 0"),
        ("bert.encoder.layer.0.output.dense.weight", 2, "feed-forward", "layer 0"),
        ("bert.pooler.dense.weight", 2, "pooler", "pooler"),
        ("classifier.bias", 1, "classifier", "classifier"),
        ("conv1.weight", 4, "convolutions", "conv 1"),
        ("layer2.0.downsample.1.weight", 1, "normalisation", "layer 2"),
        ("layer1.1.weight", 1, "normalisation", "layer 1"),
        ("fc.weight", 2, "classifier", "classifier"),
        ("mine", 2, "other matrices", "mine"),
    ],
)
def test_weights_are_told_apart_by_kind_and_layer(name: str, dimensions: int, kind: str, layer: str) -> None:
    assert kind_of(name, dimensions) == kind
    assert layer_of(name, dimensions) == layer


def test_the_budget_is_in_percent_of_what_was_kept() -> None:
    runs = [record(seed=seed) | {"kept_by": {"conv1.weight": [30, 4, 4, 3, 3], "fc.bias": [10, 10]}} for seed in (0, 1)]
    reader = read([*runs, record(method="random")])
    assert reader.texts.count("75.0") == 2  # by kind, and by layer
    assert reader.texts.count("25.0") == 2
    assert "these records do not say" not in " ".join(reader.texts)
    assert "these records do not say" in text_of([record()])


def folder_of(tmp_path: Path, run_id: str, lines: str) -> None:
    folder = tmp_path / f"digits/resnet8/fish-0.005/seed0-{run_id}"
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text(lines)


def test_learning_curves_come_from_run_folders(tmp_path: Path) -> None:
    folder_of(tmp_path, "cafe0000", '{"epoch": 1, "accuracy": 0.5, "train_loss": 2}\n{"epoch": 2, "accuracy": 0.75}\n')
    folder_of(tmp_path, "cafe0001", '{"epoch": 1, "accuracy": NaN, "x": null, "b": "c"}\nnot JSON\n[1]\n{"epoch": 3')
    histories = read_histories([tmp_path])
    assert histories["cafe0000"] == [{"epoch": 1, "accuracy": 0.5, "train_loss": 2}, {"epoch": 2, "accuracy": 0.75}]
    assert histories["cafe0001"] == [{"epoch": 1}]
    text = text_of([record(run_id="cafe0000"), record(seed=1, run_id="other")], Beside(histories=histories))
    assert "seed 0: 75 after epoch 2" in text
    assert "1 of 2 runs have no folder here" in text
    assert "No learning curves" in text_of([record()])


def test_the_command_finds_folders_beside_the_records(
    written, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder_of(tmp_path, "cafe0000", '{"epoch": 1, "accuracy": 0.5}\n{"epoch": 2, "accuracy": 0.75}\n')
    records, out = str(written([record(run_id="cafe0000")])), tmp_path / "report.html"
    assert page.main([records, "-o", str(out)]) == 0
    assert "seed 0: 75 after epoch 2" in out.read_text()
    assert capsys.readouterr().out == f"{out}: {len(out.read_bytes()) / 1000:.4g} kB\n"
    (tmp_path / "empty").mkdir()
    assert page.main([records, "-o", str(out), "--runs", str(tmp_path / "empty")]) == 0
    assert "No learning curves" in out.read_text()


def three(score: float, **settings: Any) -> list[dict[str, Any]]:
    return [record(score + step / 100, seed=seed, **settings) for seed, step in enumerate((0, 1, 3))]


def test_differences_to_each_reference_have_intervals_and_only_clear_ones_are_bold() -> None:
    lines = three(0.8) + [record(0.7 + seed / 100, seed=seed, method="random") for seed in range(3)]
    lines += [record(score, seed=seed, method="full") for seed, score in enumerate((0.81, 0.83, 0.84))]
    reader = read([*lines, *three(0.6, keep=0.02)])
    summaries = [text for text in reader.texts if text.startswith("Differences to ")]
    assert summaries == [
        "Differences to full: 3, 2 of them clear",  # fish at 0.02 and random, not fish at 0.005
        "Differences to random: 2, 2 of them clear",
        "Differences to fish: 3, 2 of them clear",
    ]
    at = reader.texts.index("Differences to random: 2, 2 of them clear")
    assert reader.texts[at + 1 : at + 4] == ["method", "accuracy, % against random", "95 % over seeds"]
    row = reader.texts.index("fish", at)
    assert reader.texts[row : row + 3] == ["fish", "+10.33", "[+8.90, +11.77]"]
    assert len(reader.named("strong")) == 6
    assert "Differences" not in text_of([record(0.8), record(0.7, method="random")])  # a seed gives no interval
    chosen = [held_out(0.7 + s / 100, 0.1, seed=s, method=m) for s in range(3) for m in ("fish", "random")]
    assert "Differences" not in text_of(chosen)


def test_overlaps_come_from_the_deltas_in_run_folders(tmp_path: Path) -> None:
    masks = {"fish": ([0, 1, 2, 3], [0, 1]), "random": ([2, 3, 4, 5], [0, 9]), "magnitude": ([7, 8, 9], None)}
    lines, base = [], {"a": torch.zeros(30), "head": torch.zeros(3)}
    for method, kept in masks.items():
        for seed, entries in enumerate(kept):
            lines.append(record(0.8, seed=seed, method=method, run_id=f"{method}{seed}"))
            if entries is not None:
                folder = tmp_path / f"digits/resnet8/{method}-0.005/seed{seed}-{method}{seed}"
                folder.mkdir(parents=True)
                moved = torch.zeros(30).index_fill(0, torch.tensor(entries), 1.0)
                Delta.diff(base, {"a": moved, "head": torch.ones(3)}).save(folder / "delta.safetensors")
    lines.append(record(0.8, method="magnitude", keep=0.02, run_id="alone"))
    reader = Reader(text_of(lines, read_beside([], [tmp_path])))
    at = reader.texts.index("What masks have in common")
    assert reader.texts[at + 1 : at + 17] == [
        "keep 0.005", "fish", "random", "magnitude",
        "fish", "100", "50", "0",
        "random", "50", "100", "0",
        "magnitude", "0", "0", "100",
    ]  # fmt: skip
    assert "keep 0.02" not in reader.texts[at:]
    assert "in common" not in text_of(lines)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "missing/report.html"], "missing/report.html cannot be written: No such file or directory"),
        (["-o", "."], ". cannot be written: Is a directory"),
        (
            ["-o", "x.html", "--runs", "nowhere"],
            "--runs nowhere is not a folder; it holds run folders, as outputs does",
        ),
    ],
)
def test_what_cannot_be_read_or_written_is_a_line(
    arguments: list[str], message: str, written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert page.main([str(written([record()])), *arguments]) == 2
    assert capsys.readouterr().err == f"fishexp: {message}\n"


def test_a_thousand_runs_are_less_than_five_megabytes() -> None:
    tensors = {f"bert.encoder.layer.{i}.attention.self.query.weight": [1000, 384, 384] for i in range(100)}
    runs = [
        record(seed=s, method=f"m{m}", run_id=f"{s}-{m}") | {"kept_by": tensors} for s in range(50) for m in range(20)
    ]
    curve = [{"epoch": float(epoch), "accuracy": 0.5, "train_loss": 1.0} for epoch in range(50)]
    assert len(text_of(runs, Beside(histories={str(run["run_id"]): curve for run in runs}))) < 5e6


def test_markup_is_escaped_in_texts_and_attributes() -> None:
    assert tag("a", "<b>", tag("i", "&"), title='"<') == '<a title="&quot;&lt;">&lt;b&gt;<i>&amp;</i></a>'
    assert tag("input", disabled=True, hidden=False, value=None) == "<input disabled>"
    assert tag("p", ["a", "<"], None, x_y=1.26) == '<p x-y="1.3">a&lt;</p>'
