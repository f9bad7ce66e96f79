"""The benchmarks' own checks, on tiny models: what is wrong is not timed, and tables say what the records say."""

from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks import cases, check, contenders, fishers, measure, report
from benchmarks.__main__ import HOME, _say_what_disturbs, run
from benchmarks.cases import Case
from benchmarks.timing import Effort, quartiles, ratios
from fishexp.errors import FishexpError
from fishexp.masks.topk import Mask
from fishexp.sparse.parameter import SparseParameter

TWO = Effort(0.0, least=2, warmup=1)
BERT = Case("step", "tiny-bert", 2, 8, cases.STEP_ALL, 0.02, "random")
CONV = Case("step", "resnet8", 4, None, cases.STEP_CONV, 0.02, "fish")
SCORES = Case("fisher", "resnet8", 3, None, cases.FISHER_CONV, examples=4)


@pytest.fixture(autouse=True)
def tiny_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cases.MODELS, "tiny-bert", lambda: cases._bert(1, 64))
    monkeypatch.setitem(cases.MODELS, "resnet8", lambda: cases._resnet(8))


def prepared(case: Case) -> tuple[nn.Module, Mask]:
    model, head = cases.build(case.model)
    return model, cases.choose_mask(case, model, head)


@pytest.mark.parametrize("case", [BERT, CONV], ids=lambda case: case.model)
def test_a_step_of_every_contender_that_is_installed(case: Case) -> None:
    found = list(measure.measure(case, torch.device("cpu"), TWO))
    names = [name for name in case.contenders if name not in measure.PACKAGES or find_spec(measure.PACKAGES[name])]
    assert [(one.precision, one.contender) for one in found] == [(p, n) for p in ("fp32", "bf16") for n in names]
    first = {one.contender: one for one in found[: len(names)]}
    tensors = len(list(cases.build(case.model)[0].parameters()))
    total = first["dense"].total
    assert first["dense"].trained == total
    assert first["dense"].state_bytes == 16 * total + 4 * tensors  # value, gradient, two moments; a step count each
    assert first["original"].state_bytes == 20 * total + 4 * tensors
    assert first["ours"].trained == first["floor"].trained == int(0.02 * total)
    assert 16 * int(0.02 * total) < (first["floor"].state_bytes or 0) < (first["ours"].state_bytes or 0) < total
    assert first["dense"].ratio == [1.0, 1.0, 1.0]
    assert all(one.rounds == 2 and 0 < one.seconds[0] <= one.seconds[1] <= one.seconds[2] for one in found)


def test_the_fisher_information_of_every_contender_that_is_installed() -> None:
    found = [one.contender for one in measure.measure(SCORES, torch.device("cpu"), TWO)]
    assert found == [name for name in SCORES.contenders if name != "BackPACK" or find_spec("backpack")]


def note(outputs: dict[str, bool], key: str, module: nn.Module, inputs: object, output: Tensor) -> None:
    outputs[key] = output.requires_grad


def test_gradients_of_the_floor_flow_as_far_as_ours() -> None:
    """With the lowest layers empty, a layer in part, the head whole."""
    reached = []
    for name in ("ours", "floor"):
        model, mask = prepared(BERT)
        for key, kept in mask.items():
            kept &= "embeddings" not in key and "layer.0.attention" not in key
        contender = contenders.make(name, model, mask, ())
        outputs: dict[str, bool] = {}
        for key, module in contender.model.named_modules():
            if not isinstance(module, SparseParameter) and all(
                isinstance(child, SparseParameter) for child in module.children()
            ):  # after the floor's own hook, hence what the next layer gets
                module.register_forward_hook(partial(note, outputs, key))
        contenders.step(contender, cases.batches(2, 2, 8, torch.device("cpu"))[0], "fp32")
        reached.append(outputs)
    assert reached[0] == reached[1]
    assert len(set(reached[0].values())) == 2


def test_a_wrong_step_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """One gradient too large; Adam's first step would not tell."""
    model, mask = prepared(CONV)
    right = check.sparsify

    def wrong(model: nn.Module, mask: Mask) -> Any:
        sparse = right(model, mask)
        model.get_parameter("stem.conv.weight_kept.values").register_hook(lambda gradient: gradient + 1e-3)
        return sparse

    check.check_step(CONV, model, mask)
    monkeypatch.setattr(check, "sparsify", wrong)
    with pytest.raises(FishexpError, match=r"resnet8: two steps of ours differ from the reference by .* at stem.conv"):
        check.check_step(CONV, model, mask)


def test_a_frozen_entry_that_moved_and_a_mask_that_moves_nothing() -> None:
    model, mask = prepared(CONV)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with pytest.raises(FishexpError, match="no entry moved"):
        check.check_frozen(CONV, model, before, mask)
    with torch.no_grad():
        model.get_parameter("layer1.conv1.weight").add_(1e-3)
    with pytest.raises(FishexpError, match=r"entries of layer1.conv1.weight outside the mask moved"):
        check.check_frozen(CONV, model, before, mask)


def test_wrong_scores_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = fishers.diagonal_fisher
    monkeypatch.setattr(fishers, "diagonal_fisher", lambda *args: {k: v * 1.001 for k, v in right(*args).items()})
    with pytest.raises(FishexpError, match="the scores of ours differ from the reference"):
        list(measure.measure(SCORES, torch.device("cpu"), TWO))


def test_run_records_and_remakes_the_table_and_the_picture(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "README.md").write_text(f"before {report.START} old {report.END} after")
    few = [Case("step", "resnet8", 2, None, cases.STEP, 0.02, "random")] * 2
    run(few, TWO, "cpu", tmp_path)
    records = report.read(tmp_path / "records.jsonl")
    assert len(records) == 2 * 2 * 3
    assert len(report.newest(records)) == 6
    text = (tmp_path / "README.md").read_text()
    assert text.startswith(f"before {report.START}")
    assert text.endswith(f"{report.END} after")
    assert text.count("| resnet8, 2 images, keep 0.02 |") == 2 + 3  # precisions, contenders
    assert (tmp_path / "step.png").stat().st_size > 10_000
    assert "resnet8, 2 images, keep 0.02" in capsys.readouterr().out


def test_a_repeated_setting_shows_its_newest_numbers_and_devices_stay_apart() -> None:
    own = {
        "benchmark": "step",
        "model": "m",
        "batch": 1,
        "length": None,
        "examples": None,
        "keep": 0.5,
        "mask": "random",
    }
    own |= {"precision": "fp32", "rounds": 9, "total": 4, "trained": 2, "state_bytes": 8, "threads": 2}
    own |= {"commit": "abc", "ended": "2026-01-01T00:00:00+00:00", "versions": {"torch": "2"}}
    slow, fast = (
        {"seconds": [1.0, 2.0, 3.0], "ratio": [1.0, 2.0, 3.0]},
        {"seconds": [0.1, 0.2, 0.3], "ratio": [1.0] * 3},
    )
    cpu, gpu = {"device": "EPYC", "peak_bytes": None}, {"device": "NVIDIA H200", "peak_bytes": 3 * 2**20}
    lines = [own | {"contender": "dense"} | one for one in (slow | cpu, slow | gpu, fast | cpu)]
    text = report.markdown(report.newest(lines))
    assert "## EPYC, 2 threads" in text
    assert "## NVIDIA H200, 2 threads" in text
    rows = [line for line in text.splitlines() if line.startswith("| m, 1 images, keep 0.5 | fp32")]
    assert [row.split("|")[3].strip() for row in rows] == ["0.2", "2"]
    assert text.count("peak fp32, MiB") == 1
    assert report.markdown([]).strip() == "No records yet: `make bench`."


def test_the_readme_is_what_its_records_give() -> None:
    text = (HOME / "README.md").read_text(encoding="utf-8")
    found = report.newest(report.read(HOME / "records.jsonl"))
    assert text.partition(report.START)[2].partition(report.END)[0].strip() == report.markdown(found).strip()


def test_quartiles_and_ratios_within_a_round() -> None:
    assert quartiles([4.0, 1.0, 3.0, 2.0, 5.0]) == [2.0, 3.0, 4.0]
    assert quartiles([7.0]) == [7.0, 7.0, 7.0]
    assert ratios({"a": [1.0, 4.0, 9.0], "b": [2.0, 4.0, 3.0]}, "a", "b") == [0.75, 1.0, 2.0]


def test_a_missing_package_and_a_busy_machine_are_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("benchmarks.__main__.find_spec", lambda name: None)
    monkeypatch.setattr("os.getloadavg", lambda: (7.0, 0.0, 0.0))
    _say_what_disturbs([BERT])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("warning: the load is 7.0")
    assert lines[1:] == ["SHiRA is left out: pip install peft", "Super-Tuning is left out: pip install peft"]
