"""The identity of a run: everything that decides its numbers, whatever it is called and wherever it lies."""

import hashlib
import importlib.util
import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path, PurePath
from typing import Annotated, Any, get_args, get_origin

from fishexp.run.record import STREAMS
from fishexp.run.settings import EPOCH_CHOICE, GROUPS, Config, chooses_epoch, component_module, is_ours, options_of
from fishexp.system.folders import walk

# settings that change neither the numbers nor their meaning, so that a run keeps its identity
NOT_IDENTITY = (
    "records", "wandb", "tensorboard", "resume", "minutes", "snapshot_minutes", "snapshot_keep", "debug", "outputs",
    "plan", "cuda_graphs",
)  # fmt: skip
NOT_IDENTITY_OF_REGIME = ("snapshot_steps", "restarts", "timeout", "bandwidth", "latency")
# settings of a method that there were not always -> the value that says what was so before, and is no part of identity
_AS_BEFORE = {"per": "network"}
# function of a component's module that lists the files which its options stand for
FILES = "files"
# names in a folder that no run reads: what other runs report there
_REPORTS = {"config.yaml", "record.json", "metrics.jsonl", "log.txt", "snapshots", "workers", "wandb", "tensorboard"}
# endings of files that no run reads: texts about a model, and its weights for other programs
_UNREAD = {".md", ".h5", ".msgpack", ".onnx", ".ot", ".tflite"}
# types that a text has, or may be in
_HOLDS_TEXT = (str, Any, object, list, tuple, dict)
# a name and a password in an address
_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]+@")


def run_id(config: Config) -> str:
    """Return eight hexadecimal digits that two runs share if, and only if, they ask for the same numbers."""
    identity = canonical(shareable(config)) | {"streams": STREAMS}
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]


def run_name(config: Config) -> str:
    """Return a readable path for a run, which no other has: digits/resnet8/fish-0.005/seed0-1a2b3c4d."""
    return f"{settings_name(config)}/seed{config['seed']}-{run_id(config)}"


def settings_name(config: Config) -> str:
    """Return the first part of :func:`run_name`, which runs may share that differ in other settings, too."""
    data, model, method = (config[group]["name"].replace("/", ".") for group in ("data", "model", "method"))
    task = f"-{config['data']['task']}" if "task" in config["data"] else ""
    arch = f"-{config['model']['arch']}" if "arch" in config["model"] else ""
    unit = f"-{unit}" if (unit := config["method"].get("unit", "entry")) != "entry" else ""
    per = f"-per-{per}" if (per := config["method"].get("per", "network")) != "network" else ""
    keep = f"-{config['keep']:g}" if config["keep"] is not None else ""
    return f"{data}{task}/{model}{arch}/{method}{unit}{per}{keep}"


def shareable(config: Config) -> Config:
    """Leave out of a configuration what belongs to this machine or to this call: paths, records, W&B, debugging.

    Files and folders that a component's options name become a digest of what is in them. In data it stands alone, so
    that the same examples are the same wherever they lie; elsewhere it follows the name: ``bert@0123456789ab``. A data
    module decides what is in the digest of its folder with a function ``files``, which takes options of ``load`` and
    lists the files that are read; it may list none.
    """
    shared = {key: value for key, value in config.items() if key not in NOT_IDENTITY}
    for group in GROUPS:
        shared[group] = _shareable_options(group, config[group], Path(config.get("outputs", "outputs")))
    unused = () if chooses_epoch(config["regime"]) else EPOCH_CHOICE  # runs before there was a choice have none of it
    left_out = {*NOT_IDENTITY_OF_REGIME, *unused}
    shared["regime"] = {key: value for key, value in shared["regime"].items() if key not in left_out}
    return shared


def own_code(config: Config) -> dict[str, str]:
    """Return the digest of each module in a configuration that is not one of fishexp's: name -> 12 digits."""
    found = {}
    for group in GROUPS:
        name = config[group].get("module", config[group]["name"])
        spec = None if is_ours(group, name) else importlib.util.find_spec(name)
        if spec is not None and spec.origin is not None:
            found[name] = _file_digest(Path(spec.origin))[:12]
    return found


def package_code() -> str:
    """Return the digest of fishexp's own modules, 12 digits, whether or not they are committed."""
    folder = Path(__file__).parents[1]
    return _digest_of(list(folder.rglob("*.py")), folder)


def without_credentials(text: str) -> str:
    """Take names and passwords out of the addresses in a text."""
    return _CREDENTIALS.sub("", text)


def _shareable_options(group: str, options: Mapping[str, Any], outputs: Path) -> dict[str, Any]:
    module, offers = component_module(group, options)
    texts = _takes_text(getattr(module, offers))
    shared = dict(options)
    listed = getattr(module, FILES, None)
    if listed is not None and not str(options.get("root") or "").startswith("@"):
        files = listed(**{key: options.get(key) for key in options_of(listed)})
        shared["root"] = f"@{_digest_of(files)}" if files else None
        texts -= {"root"}
    for key in texts & options.keys():
        shared[key] = _shareable_value(options[key], outputs, named=group != "data")
    return shared


def _shareable_value(value: Any, outputs: Path, *, named: bool) -> Any:
    """Return what a record says of an option, of whose texts, also in lists, each may name a file."""
    if isinstance(value, Mapping):
        return {key: _shareable_value(item, outputs, named=named) for key, item in value.items()}
    if isinstance(value, list):
        return [_shareable_value(item, outputs, named=named) for item in value]
    return _shareable_text(value, outputs, named=named) if isinstance(value, str) else value


def _shareable_text(text: str, outputs: Path, *, named: bool) -> str:
    """Return what a record says of an option: a digest of the file or folder that it names, or no more than a name."""
    try:
        exists = bool(text) and Path(text).exists()
    except (OSError, ValueError):  # too long for a name, or with a NUL
        exists = False
    if exists:
        path = Path(text)
        digest = _file_digest(path)[:12] if path.is_file() else _digest_of(_files_in(path, outputs, named), path)
        return f"{path.resolve().name if named else ''}@{digest}"
    return PurePath(text).name if text.startswith(("/", "~")) else without_credentials(text)


@cache
def _takes_text(function: Any) -> frozenset[str]:
    """Return the options of a component that may be or hold any text, and so may name a file."""
    return frozenset(key for key, (hint, _) in options_of(function).items() if _may_be_text(hint))


def _may_be_text(hint: Any) -> bool:
    if get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    return hint in _HOLDS_TEXT or any(map(_may_be_text, get_args(hint)))


def _digest_of(files: Iterator[Path] | list[Path], folder: Path | None = None) -> str:
    """Hash files, each with its name, or with its path in ``folder``, in 12 digits."""
    lines = [[str(file.relative_to(folder)) if folder else file.name, _file_digest(file)] for file in files]
    return hashlib.sha256(json.dumps(sorted(lines)).encode()).hexdigest()[:12]


def _files_in(folder: Path, outputs: Path, of_model: bool) -> Iterator[Path]:
    """List the files in a folder that a run may read, also behind links; of data that is all but what is hidden.

    Args:
        outputs: Folder of the outputs, which is passed over.
        of_model: It may be that of a model, or of a run, in which lies what no run reads.
    """
    for here, folders, files in walk(folder):
        for names in (folders, files):
            names[:] = [name for name in names if not name.startswith(".") and not (of_model and name in _REPORTS)]
        folders[:] = [name for name in folders if (here / name).resolve() != outputs.resolve()]
        yield from (here / name for name in files if not (of_model and Path(name).suffix in _UNREAD))


def _file_digest(file: Path) -> str:
    """Hash a file, once for as long as it seems to be the same; empty if it cannot be read, as the run will say."""
    try:
        about = file.stat()
        return _hashed(file, about.st_size, about.st_mtime_ns, about.st_ino)
    except OSError:
        return ""


@cache
def _hashed(file: Path, *_: int) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def canonical(shared: Config) -> dict[str, Any]:
    """Bring what :func:`shareable` returned, or a record has of it, into the form in which equal runs are equal."""
    found = _with_integers(shared)
    if isinstance(method := found.get("method"), Mapping):
        found["method"] = {k: v for k, v in method.items() if k not in _AS_BEFORE or v != _AS_BEFORE[k]}
    return found


def _with_integers(value: Any) -> Any:
    """Turn floats such as 1.0 into integers: the same number is the same run however it was typed."""
    if isinstance(value, Mapping):
        return {key: _with_integers(item) for key, item in value.items()}
    return int(value) if isinstance(value, float) and value.is_integer() else value
