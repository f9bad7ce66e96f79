"""Fixtures of several folders: the real data where they lie on this machine, a tiny BERT on disk, no network."""

import json
import os
import socket
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("fishexp", deadline=None)  # the machine may be busy
settings.load_profile("fishexp")
os.environ["OMP_NUM_THREADS"] = "1"  # before torch: tiny models, and other processes beside them
# what gradients cost is measured once for all processes of the tests, and the user's own cache is left alone
os.environ["XDG_CACHE_HOME"] = str(Path(tempfile.gettempdir(), f"fishexp-tests-{os.getuid()}"))
os.environ["HF_HUB_OFFLINE"] = "1"  # read when the libraries are imported, hence here: no test asks the hub

# [PAD] is not 0, so that a forgotten padding id shows
WORDS = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]", "the", "a", "cat", "dog", "sees", "runs", "and", "##s", ".", "?"]
TINY = {
    "model_type": "bert",
    "vocab_size": len(WORDS),
    "pad_token_id": WORDS.index("[PAD]"),
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 20,
}


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Return the folder with cifar10/ and glue/ as their makers publish them."""
    folder = os.environ.get("FISHEXP_DATA")
    if not folder:
        pytest.skip("FISHEXP_DATA is not set: the folder that holds cifar10/ and glue/")
    return Path(folder)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every look-up of a name fail at once."""

    def fail(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)


@pytest.fixture
def bert_folder(tmp_path: Path) -> Path:
    """Write config.json and vocabulary of a BERT with two layers, 15 words and 20 positions; no weights."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(TINY))
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return folder
