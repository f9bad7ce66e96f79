"""What lies beside the weights in the folder of a Hugging Face model: its configuration, its tokenizer and notes.

A tuned model may have other labels, another head or a larger vocabulary than its base. Its configuration is the
config.json that lies beside the delta, where there is one, as in the folder of a run; it has to suit the tensors.
Otherwise it is the base's, with what the tensors' names and shapes say of labels, vocabulary and architecture. Where
these do not say it, it is left out, and a line tells why: a folder without a configuration is refused by whoever loads
it, one with a wrong configuration may be read wrongly.
"""

import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fishexp.delta.fingerprint import Fingerprint
from fishexp.errors import DeltaError

CONFIG = "config.json"
DELTA = "delta.safetensors"  # in a folder below the base's: the head of a task
LONGEST = 10_000_000  # bytes of a configuration at most
MOST = 20  # links that a line names
MOST_LABELS = 100_000  # of a classifier at most
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".ot", ".gguf", ".tflite")
TOKENIZER = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
    "vocab.txt", "vocab.json", "merges.txt", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model",
)  # fmt: skip

Kinds = Mapping[str, Fingerprint]  # name -> type and shape of a tensor

_SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")  # of any head's backbone
_VOCABULARY = "vocab_size"
# what the end of a tensor's name says of its rows: their number is this key of the configuration
_ROWS = [
    (re.compile(r"(^|\.)(word_embeddings|embed_tokens|wte|shared)\.weight$"), _VOCABULARY),
    (re.compile(r"(^|\.)(lm_head|lm_head\.decoder|predictions|predictions\.decoder)\.(weight|bias)$"), _VOCABULARY),
    (re.compile(r"(^|\.)position_embeddings\.weight$"), "max_position_embeddings"),
    (re.compile(r"(^|\.)token_type_embeddings\.weight$"), "type_vocab_size"),
]
_LABELS = re.compile(
    r"(^|\.)(classifier|classifier\.out_proj|score|qa_outputs)\.(weight|bias)$"
)  # a row for each label
_HEAD = re.compile(r"(^|\.)(classifier|score|qa_outputs|pooler|pre_classifier|cls|lm_head|position_ids)(\.|$)")
_UNUSED = re.compile(r"(^|\.)position_ids$")  # of older files; no part of the architecture
_READERS = (
    "bert",
    "roberta",
    "xlm-roberta",
    "distilbert",
    "electra",
)  # types of models whose heads are told apart here
_UNPOOLED = ("distilbert", "electra")  # those of them whose models without a head have no pooler


@dataclass(frozen=True)
class Others:
    """Say what is to lie beside the weights of a new model's folder.

    Attributes:
        base: The folder of the base, from which everything else comes.
        config: Text of the configuration; None to take the base's, if any; empty if there is none that suits.
        files: What else is copied, as paths in ``base``.
        tokenizer: The folder that has the tokenizer; None if there is none that suits.
        notes: Lines for whoever made the folder: what it lacks, and why.
    """

    base: Path
    config: str | None
    files: tuple[str, ...]
    tokenizer: Path | None
    notes: tuple[str, ...] = ()

    def read_config(self) -> str:
        """Return the text of the configuration; empty if there is none that suits."""
        if self.config is not None:
            return self.config
        return (self.base / CONFIG).read_text(encoding="utf-8") if _is_own(self.base / CONFIG, self.base) else ""

    def write(self, folder: Path) -> None:
        """Write all of it into ``folder``."""
        for name in self.files:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(self.base / name, folder / name)
        self.write_own(folder)

    def write_own(self, folder: Path) -> None:
        """Write configuration and tokenizer into ``folder``, and nothing else."""
        if self.config is None:
            _copy(self.base, CONFIG, folder)
        elif self.config:
            (folder / CONFIG).write_text(self.config, encoding="utf-8")
        if self.tokenizer is not None:
            for name in TOKENIZER:
                _copy(self.tokenizer, name, folder)


def own_files(folder: Path) -> list[Path]:
    """List configuration and tokenizer of a model, as far as the folder has them, and no link that leads out of it."""
    return [folder / name for name in (CONFIG, *TOKENIZER) if _is_own(folder / name, folder)]


def _copy(source: Path, name: str, folder: Path) -> None:
    if _is_own(source / name, source):
        shutil.copy2(source / name, folder / name)


def _is_own(path: Path, folder: Path) -> bool:
    """Tell whether there is such a file, and it is the folder's own: no link that leads out of it.

    The hub's cache has its files as links to ``blobs``, two folders above: these are the folder's own as well.
    """
    try:
        target, folder = path.resolve(strict=True), folder.resolve()
    except (OSError, RuntimeError):  # a link to nowhere, or to itself
        return False
    roots = [folder, folder.parent.parent / "blobs"] if folder.parent.name == "snapshots" else [folder]
    return target.is_file() and any(
        target.is_relative_to(root) and not any(part.startswith(".") for part in target.relative_to(root).parts)
        for root in roots
    )


def _files(base: Path) -> tuple[list[str], list[str]]:
    """List what lies beside the weights, but for configuration and tokenizer: files to copy, and links to leave out.

    Weights of any form, hidden files and heads of tasks are left out as well. No link to a folder is followed.
    """
    found, links = [], []
    for folder, names, files in os.walk(base):
        links += [os.path.relpath(Path(folder, name), base) for name in names if Path(folder, name).is_symlink()]
        if DELTA in files and Path(folder) != base:
            names.clear()
            continue
        names[:] = sorted(name for name in names if not name.startswith("."))
        own = (CONFIG, *TOKENIZER) if Path(folder) == base else ()
        for name in sorted(files):
            if name in own or name.startswith(".") or name.endswith((*WEIGHTS, ".index.json")):
                continue
            path = Path(folder, name)
            if _is_own(path, base):
                found.append(os.path.relpath(path, base))
            elif path.is_symlink():
                links.append(os.path.relpath(path, base))
    links += [name for name in (CONFIG, *TOKENIZER) if (base / name).is_symlink() and not _is_own(base / name, base)]
    return found, sorted(name for name in links if not name.startswith("."))


def others(base: Path, before: Kinds, after: Kinds, left_out: Sequence[str], beside: Path | None) -> Others:
    """Find what is to lie beside the weights of the model that a delta makes of the one in the folder ``base``.

    Args:
        base: The folder of the base.
        before: The tensors of the delta's base.
        after: Those of the result.
        left_out: Names of tensors that are in the folder and not in the delta's base.
        beside: The folder in which the delta lies; None if it lies nowhere.

    Raises:
        DeltaError: If the configuration that lies beside the delta is not that of the result.
    """
    own = _config(base)
    gone = [name for name in [*before, *left_out] if name not in after and not _UNUSED.search(name)]
    change = _Change(before, after, [name for name in after if name not in before], gone)
    grown = change.vocabulary
    tuned = None if beside is None or beside.resolve() == base.resolve() else _config(beside)
    if beside is not None and tuned is not None and "model_type" in tuned:
        _check(beside / CONFIG, tuned, own or {}, change)
        text, notes, its_own = (beside / CONFIG).read_text(encoding="utf-8"), [], _has_tokenizer(beside)
    else:
        text, notes, its_own = *_changed(own, change), False
    files, links = _files(base)
    if links:
        notes.append(f"left out links to folders or out of BASE: {', '.join(map(repr, links[:MOST]))}")
    tokenizer = beside if its_own else base
    if not its_own and grown is not None and _has_tokenizer(base):
        notes.append(f"left out the tokenizer: BASE's is for {grown[0]:,} tokens, and the model has {grown[1]:,} now")
        tokenizer = None
    return Others(base, text, tuple(files), tokenizer, tuple(notes))


def _has_tokenizer(folder: Path) -> bool:
    return any(_is_own(folder / name, folder) for name in TOKENIZER)


def _config(folder: Path) -> dict[str, Any] | None:
    """Read the configuration in a folder; None if there is none."""
    path = folder / CONFIG
    if not _is_own(path, folder):
        return None
    if path.stat().st_size > LONGEST:
        raise DeltaError(f"{path} has more than {LONGEST:,} bytes; it is no configuration")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        raise DeltaError(f"{path} is damaged: it is no JSON object")
    return config


@dataclass(frozen=True)
class _Change:
    """Say what a delta does to the names and shapes of a model.

    Attributes:
        before: The tensors of the base.
        after: Those of the result.
        new: Names that only the result has.
        gone: Names that only the base has.
    """

    before: Kinds
    after: Kinds
    new: Sequence[str]
    gone: Sequence[str]

    @property
    def grown(self) -> list[str]:
        """Name the tensors that have more rows than before."""
        return [
            name for name, kind in self.before.items() if name in self.after and self.after[name].shape != kind.shape
        ]

    @property
    def vocabulary(self) -> tuple[int, int] | None:
        """Return the number of tokens before and after, if it is another one."""
        for name in self.grown:
            if _key(name) == _VOCABULARY:
                return self.before[name].shape[0], self.after[name].shape[0]
        return None

    @property
    def elsewhere(self) -> list[str]:
        """Name the tensors outside of any head that are new or gone."""
        return [name for name in [*self.new, *self.gone] if not _HEAD.search(name)]

    @property
    def labels(self) -> int | None:
        """Return the number of rows of the result's classifier, if it has one."""
        rows = (kind.shape[0] for name, kind in self.after.items() if _LABELS.search(name) and kind.shape)
        return next(rows, None)

    def sizes(self, config: Mapping[str, Any]) -> dict[str, int]:
        """Return the numbers of rows that the result has and ``config``, the base's, gives otherwise or not at all.

        Raises:
            DeltaError: If that cannot be told.
        """
        found: dict[str, int] = {}
        for name in self.grown:
            key, rows = _key(name), self.after[name].shape[0]
            if _LABELS.search(name):
                continue
            if key is None or config.get(key) != self.before[name].shape[0] or found.setdefault(key, rows) != rows:
                raise DeltaError(f"it does not say which of its numbers are the {rows} rows of {name}")
        return found


def _key(name: str) -> str | None:
    """Return the key of the configuration that is the number of a tensor's rows."""
    return next((key for pattern, key in _ROWS if pattern.search(name)), None)


def _labels(config: Mapping[str, Any]) -> object:
    """Count the labels of a configuration as transformers does; what numbers none from 0 on is returned itself."""
    names = config.get("id2label")
    if names is None:
        return config.get("num_labels", 2)
    numbered = isinstance(names, dict) and names.keys() == {str(i) for i in range(len(names))}
    if numbered:
        return len(names)
    return f"id2label={names!r}" if isinstance(names, int | float) else names  # which is no count


def _check(path: Path, config: Mapping[str, Any], own: Mapping[str, Any], change: _Change) -> None:
    """Refuse a configuration that is not that of the result.

    Args:
        path: Of the file, for the message.
        config: In that file.
        own: The base's.
        change: What the delta does.
    """
    try:
        grown = change.sizes(own)
    except DeltaError:
        grown = {}
    known = ["model_type", *{key for _, key in _ROWS}, *([] if change.elsewhere else _SIZES)]
    wanted = {key: value for key, value in ({key: own.get(key) for key in known} | grown).items() if value is not None}
    found = {key: config.get(key, value) for key, value in wanted.items()}  # what it lacks is what its class has
    if change.labels is not None and not any("MultipleChoice" in str(name) for name in _architectures(config)):
        wanted["number of labels"], found["number of labels"] = change.labels, _labels(config)
    for key, value in wanted.items():
        if found[key] != value or type(found[key]) is not type(value):  # 7.0 and true are no number of rows
            raise DeltaError(
                f"{path} lies beside the delta, but is not its model's: {key} is {found[key]!r:.40}, that of the model "
                f"{value!r}; correct it, or take it away"
            )


def _architectures(config: Mapping[str, Any]) -> list[str]:
    names = config.get("architectures")
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []


def _changed(config: dict[str, Any] | None, change: _Change) -> tuple[str | None, list[str]]:
    """Return the base's configuration with what the delta changes, None if that is nothing, and what to say of it."""
    if config is None or not (change.new or change.gone or change.grown):
        return None, []
    try:
        if (change.labels or 0) > MOST_LABELS:
            raise DeltaError(f"{change.labels:,} labels are too many")
        if change.elsewhere:
            raise DeltaError(f"BASE's says nothing of {change.elsewhere[0]}, which the delta adds or removes")
        config = config | change.sizes(config)
    except DeltaError as error:
        return "", [f"left out {CONFIG}: {error}; put that of the tuned model there, or beside the delta"]
    notes = []
    if (labels := change.labels) and any(_LABELS.search(name) for name in [*change.new, *change.grown]):
        config.pop("problem_type", None)
        config["id2label"] = {str(i): f"LABEL_{i}" for i in range(labels)}
        config["label2id"] = {f"LABEL_{i}": i for i in range(labels)}
        notes.append(f"{CONFIG} has {labels} labels without names; no {CONFIG} beside the delta names them")
    if change.new or change.gone:
        name = _architecture(config, change)
        config["architectures"] = [name] if name else None
        if name is None:
            notes.append(f"{CONFIG} names no architecture: give the class, such as AutoModelForSequenceClassification")
    return json.dumps(config, indent=2) + "\n", notes


def _architecture(config: Mapping[str, Any], change: _Change) -> str | None:
    """Return the class of transformers that has the result's tensors; None if it is not sure."""
    kind, family = (
        config.get("model_type"),
        re.match(r"(\w+?)(Model|For[A-Z]\w*)$", next(iter(_architectures(config)), "")),
    )
    if family is None or kind not in _READERS:
        return None
    ends = {end for name in change.after for end in [".".join(name.split(".")[-i:]) for i in (2, 3)]}
    if "qa_outputs.weight" in ends:
        return f"{family[1]}ForQuestionAnswering"
    if all("pooler" in name for name in change.after if _HEAD.search(name)):
        return f"{family[1]}Model" if "pooler.dense.weight" in ends or kind in _UNPOOLED else None
    pooled = "classifier.weight" in ends and ends & {"pooler.dense.weight", "pre_classifier.weight"}
    if (pooled or "classifier.out_proj.weight" in ends) and (change.labels or 0) > 1:  # one row: or a multiple choice
        return f"{family[1]}ForSequenceClassification"
    return None


def same_labels(folders: Sequence[Path]) -> Path | None:
    """Return the first of the folders that has a configuration, if any; the labels of all that have one are the same.

    Raises:
        DeltaError: If they are not, so that a classifier made of several would mix them up.
    """
    found = {folder: config for folder in folders if (config := _config(folder)) and "model_type" in config}
    for folder, config in found.items():
        first = next(iter(found))
        if config.get("id2label") != found[first].get("id2label"):
            raise DeltaError(f"{first / CONFIG} and {folder / CONFIG} have other labels, or another order of them")
    return next(iter(found), None)
