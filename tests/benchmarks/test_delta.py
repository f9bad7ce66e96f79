"""The benchmark of deltas, on a tiny BERT: sizes are those of the files, and what is wrong is not timed."""

from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import nn

from benchmarks import models, page
from benchmarks.__main__ import run
from benchmarks.delta import contenders
from benchmarks.delta.case import DeltaCase
from benchmarks.delta.check import State, check_same, state
from benchmarks.delta.contenders import Ours
from benchmarks.delta.masks import SENTENCES, masks
from benchmarks.delta.measurement import DTYPES, DeltaResult, measure
from benchmarks.records import read
from benchmarks.timing import Effort
from fishexp.delta import Delta, Stack
from fishexp.errors import FishexpError
from fishexp.masks.random_masks import Seeded
from fishexp.masks.topk import count

TWO = Effort(0.0, least=2, warmup=1)
KEEP = 0.005


def built() -> tuple[nn.Module, tuple[str, ...]]:
    return models.build("tiny-bert")


def by_mask(case: DeltaCase) -> dict[tuple[str, str | None], DeltaResult]:
    return {(result.contender, result.mask): result for result in measure(case, torch.device("cpu"), TWO)}


def test_sizes_and_times_of_every_contender_that_is_installed() -> None:
    found = by_mask(DeltaCase("tiny-bert", "fp32"))
    ours = {mask: result for (name, mask), result in found.items() if name == "ours"}
    total = found["dense", None].total
    assert list(ours) == ["random", "seed", "columns"]
    assert found["dense", None].file_bytes > 4 * total
    assert list(found["dense", None].seconds) == ["save", "load", "apply"]
    for mask, result in ours.items():
        assert (result.entries, result.lost, result.rounds) == (int(KEEP * total), 0, 2)
        operations = {"save", "load", "decode", "apply", "undo", "switch", "fingerprint"}
        assert result.seconds.keys() == operations | ({"encode"} if mask != "seed" else set())
        assert all(0 < low <= middle <= high for low, middle, high in result.seconds.values())
        assert result.file_bytes > 3.25 * result.entries + result.entries * (result.position_bits or 0) / 8.2
    bits, entropy = ours["random"].position_bits, ours["random"].entropy_bits
    assert bits is not None
    assert entropy is not None
    assert 8.9 < entropy < bits < 1.03 * entropy
    assert ours["seed"].position_bits == 0
    assert (ours["columns"].position_bits or 0) < entropy / 2
    assert ours["seed"].file_bytes < ours["columns"].file_bytes < ours["random"].file_bytes


def test_adapters_of_peft_as_they_are_saved_if_it_is_installed() -> None:
    found = by_mask(DeltaCase("tiny-bert", "bf16"))
    ours = found["ours", "random"]
    assert 2 < found["dense", None].file_bytes / ours.total < 2.1
    assert ours.file_bytes < 5 * ours.entries  # two bytes of value, positions, and the fingerprints of the base
    adapters = [("SHiRA", "random", 64), ("Super-Tuning", "largest", 32)] if find_spec("peft") else []
    assert [key for key in found if key[0] not in ("dense", "ours")] == [adapter[:2] for adapter in adapters]
    for name, mask, bits in adapters:
        result = found[name, mask]
        assert result.position_bits == bits
        assert result.entropy_bits is None
        assert result.entries == pytest.approx(ours.entries, rel=0.2)
        assert result.file_bytes > (4 + bits / 8) * (result.entries - 130)  # but for the head, values of four bytes
        assert result.lost is not None
        assert result.lost > 0
        assert list(result.seconds) == ["save", "load", "apply", "undo"]


def test_a_wrong_delta_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """One bit of one weight, once in the trained model, once in the base."""
    right = contenders.train

    def wrong(model: nn.Module, mask: dict[str, torch.Tensor]) -> tuple[Delta, State]:
        delta, trained = right(model, mask)
        trained["bert.pooler.dense.bias"].view(torch.int32)[3] ^= 1
        return delta, trained

    monkeypatch.setattr(contenders, "train", wrong)
    with pytest.raises(
        FishexpError, match=r"random: after apply_: 1 entries of bert.pooler.dense.bias have other bits"
    ):
        by_mask(DeltaCase("tiny-bert", "fp32", ("ours",)))


def test_each_step_of_the_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, head = built()
    base = state(model)
    mask = masks(DeltaCase("tiny-bert", "fp32"), model, head)["random"]
    for method, said in [("_revert", "after revert_"), ("switch", "on the stack")]:
        ours = Ours("random", model, mask, Stack(model), tmp_path / "delta.safetensors")
        monkeypatch.setattr(ours, method, lambda: None)
        with pytest.raises(FishexpError, match=said):
            ours.check(base)
        if method == "_revert":
            ours._undo.revert_()
    check_same("at last", base, model)


def test_masks_of_one_size_at_random_and_in_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FISHEXP_DATA", raising=False)
    model, head = built()
    found = masks(DeltaCase("minilm", "fp32"), model, head)
    total = sum(p.numel() for p in model.parameters())
    assert list(found) == ["random", "seed", "columns"]
    assert {count(mask) for mask in found.values()} == {int(KEEP * total)}
    assert all(mask[name].all() for mask in found.values() for name in head)
    assert isinstance(found["seed"], Seeded)
    assert not isinstance(found["random"], Seeded)
    assert all(torch.equal(found["random"][name], kept) for name, kept in found["seed"].items())
    words = found["columns"]["bert.embeddings.word_embeddings.weight"]
    assert words.any(0).sum() == 1  # of 64 columns
    assert 0.2 < words[:, words.any(0)].float().mean() < 0.5


def test_a_mask_by_the_fisher_information_on_sentences(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "glue" / "SST-2").mkdir(parents=True)
    for part in ("train", "dev"):
        (tmp_path / f"glue/SST-2/{part}.tsv").write_text("sentence\tlabel\na fine film\t1\na dull one\t0\n")
    monkeypatch.setenv("FISHEXP_DATA", str(tmp_path))
    model, head = built()
    found = masks(DeltaCase("minilm", "fp32"), model, head)["fish"]
    rows = found["bert.embeddings.word_embeddings.weight"].any(1).nonzero().flatten()
    assert 0 < len(rows) <= 8  # six words, and the two tokens around them: no other embedding has a gradient
    assert list(masks(DeltaCase("tiny-bert", "fp32"), model, head))[2] == "columns"
    assert SENTENCES == 256


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "most"), [("fp32", 3.6), ("bf16", 1.7)])
def test_bytes_an_entry_of_a_real_fish_mask(
    precision: Literal["fp32", "bf16"], most: float, real_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real weights, a mask by real sentences; random numbers stand for gradients."""
    monkeypatch.setenv("FISHEXP_DATA", str(real_data))
    model, head = models.build("minilm")
    mask = masks(DeltaCase("minilm", precision), model, head)["fish"]  # in float32: bfloat16 is slow where emulated
    model = model.to(DTYPES[precision])
    ours = Ours("fish", model, mask, Stack(model), tmp_path / "delta.safetensors")
    ours.check(state(model))
    assert ours.entries == 113_569
    assert ours.file.stat().st_size <= most * ours.entries


def test_run_records_and_makes_the_tables(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "README.md").write_text(f"before {page.START} old {page.END} after")
    run([DeltaCase("tiny-bert", "fp32", ("dense", "ours"))] * 2, TWO, "cpu", tmp_path)
    records = read(tmp_path / "records.jsonl")
    assert len(records) == 2 * 4
    assert len(page.newest(records)) == 4
    assert {record["threads"] for record in records} == {1}
    text = (tmp_path / "README.md").read_text()
    newest = {record["mask"]: record for record in records[4:]}
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if "| tiny-bert" in line]
    assert [row[:4] for row in rows[:4]] == [row[:4] for row in rows[4:]]
    assert [row[3] for row in rows[:4]] == ["", "random", "seed", "columns"]
    for size, times in zip(rows[:4], rows[4:], strict=True):
        record = newest[size[3] or None]
        assert size[4:6] == [f"{record['entries']:,}", f"{record['file_bytes']:,}"]
        assert float(size[6]) == pytest.approx(100 * record["file_bytes"] / newest[None]["file_bytes"], rel=5e-3)
        assert float(size[7]) == pytest.approx(record["file_bytes"] / record["entries"], abs=6e-3)
        assert float(times[6]) == pytest.approx(1e3 * record["seconds"]["save"][1], rel=5e-3)
        assert times[12] == ("" if record["mask"] is None else "0")
    random = newest["random"]
    assert float(rows[1][10]) == pytest.approx(random["position_bits"] / random["entropy_bits"], abs=6e-4)
    assert float(rows[5][11]) == pytest.approx(random["seconds"]["fingerprint"][1], rel=5e-3)
    assert [row[10] for row in (rows[0], rows[2])] == ["", ""]
    assert "delta: tiny-bert, keep 0.005" in capsys.readouterr().out
