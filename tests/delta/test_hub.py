"""Deltas on the hub: pushed with a card to a stand-in of it, loaded by id, and one clear line for what goes wrong."""

from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
import yaml
from huggingface_hub import constants

from fishexp.delta import Delta, load_from_hub, push_to_hub
from tests.support.checks import refusal
from tests.support.delta_cases import example, same_bits
from tests.support.delta_commands import mistake, run
from tests.support.hub_server import HubServer, hub_server


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubServer]:
    with hub_server(str(tmp_path / "cache")) as server:
        yield server


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A delta as a run folder has it, with what lies beside it."""
    folder = tmp_path / "run"
    folder.mkdir()
    Delta.diff(*example()).save(folder / "delta.safetensors")
    (folder / "config.json").write_text('{"model_type": "bert"}')
    (folder / "vocab.txt").write_text("a\n")
    (folder / "tokenizer.json").symlink_to("/etc/hostname")
    (folder / "record.json").write_text("{}")
    return folder / "delta.safetensors"


def test_a_delta_is_pushed_with_a_card_and_loaded_by_its_id(
    hub: HubServer, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("push", file, "ann/rte", "--base-model", "google-bert/bert-base-uncased", "--private") == 0
    assert capsys.readouterr().out.startswith(f"{hub.url}/ann/rte/commit/")
    pushed = hub.files["ann/rte"]
    assert pushed.keys() == {"README.md", "config.json", "delta.safetensors", "vocab.txt"}  # no link out of the folder
    assert hub.private == {"ann/rte"}
    before, after = example()
    delta = load_from_hub("ann/rte")
    delta.apply_(before)
    assert same_bits(before, after)
    _, front, text = pushed["README.md"].decode().split("---\n")
    about = yaml.safe_load(front)
    assert (about["library_name"], about["base_model"]) == ("fishexp", "google-bert/bert-base-uncased")
    assert delta.before in text
    assert delta.after in text
    total = sum(tensor.numel() for tensor in after.values())
    assert f"new values for {delta.changes} of {total} weights" in text.replace("\n", " ")
    assert f"{len(pushed['delta.safetensors']):,} bytes" in text
    assert 'load_from_hub("ann/rte")' in text


def test_what_was_fetched_is_had_without_a_network(hub: HubServer, file: Path) -> None:
    assert push_to_hub(str(file), "ann/rte").startswith(f"{hub.url}/ann/rte/commit/")
    assert "base_model" not in hub.files["ann/rte"]["README.md"].decode()
    first = load_from_hub("ann/rte")
    with mock.patch.object(constants, "HF_HUB_OFFLINE", True):
        assert load_from_hub("ann/rte").after == first.after
        assert refusal(load_from_hub, "ann/other") == (
            f"ann/other: the hub ({hub.url}) is out of reach (HF_HUB_OFFLINE is set), and the cache does not have it"
        )


def test_what_the_hub_refuses_is_said_in_a_line(
    hub: HubServer, file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "has no model ann/none, or it is another's and private; log in" in refusal(load_from_hub, "ann/none")
    hub.files["ann/other"] = {"model.safetensors": b""}
    assert refusal(load_from_hub, "ann/other") == "ann/other on the hub has no delta.safetensors, so it is no delta"
    assert refusal(load_from_hub, "ann/other", revision="v9") == "ann/other on the hub has no such revision"
    hub.files["ann/bad"] = {"delta.safetensors": b"no"}
    assert "not a safetensors file, or damaged" in refusal(load_from_hub, "ann/bad")
    assert mistake(capsys, "push", file, "a/b/c").startswith("'a/b/c' is no id of a model on the hub, user/name")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert mistake(capsys, "push", file, "ann/rte") == (
        "the hub refuses ann/rte (HTTP 401); log in with `hf auth login`, or set HF_TOKEN"
    )
    assert "ann/rte" not in hub.files
    number = len(hub.requests)
    assert "not a safetensors file" in mistake(capsys, "push", file.with_name("config.json"), "ann/rte")
    assert len(hub.requests) == number  # nothing is asked before the file is known to be a delta


def test_a_push_without_a_network_is_refused_in_a_line(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with mock.patch.object(constants, "HF_HUB_OFFLINE", True):
        assert mistake(capsys, "push", file, "ann/rte") == (
            f"ann/rte: the hub ({constants.ENDPOINT}) is out of reach (HF_HUB_OFFLINE is set), so it is not pushed"
        )


def test_a_path_is_never_looked_up_on_the_hub(hub: HubServer, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Delta.load("ann/rte")
    assert run("info", tmp_path / "ann" / "rte") == 2
    assert not hub.requests
