"""Runs by their records, which are the truth about them, and by their folders; those that words ask for."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from fishexp.errors import FishexpError
from fishexp.report import words as words_of
from fishexp.report.run_folders import run_folders
from fishexp.run.record import RECORD, read
from fishexp.run.run_folder import is_going_on

# name of a file of records in a folder of outputs
RECORDS = "records.jsonl"
# statuses that no record has: a process is at the run; it was killed before it could write a record
GOING_ON, CUT_OFF = "going on", "cut off"
# characters of a value that a message shows
_SHOWN = 40


@dataclass(frozen=True)
class Run:
    """Hold a run as its last record has it, or its folder where it has no record yet.

    Attributes:
        record: The last record that says finished, else the last one.
        status: That of the record, or one of those above.
        file: The file of the record; None if there is no record.
        outputs: Folder in which its folder should be.
        folder: Its folder; None if it is gone.
    """

    record: Mapping[str, Any]
    status: str
    file: Path | None
    outputs: Path
    folder: Path | None

    @property
    def id(self) -> str:
        """Return the digits that no other run has."""
        return self.record["run_id"]

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Return the settings: dotted key -> value."""
        return words_of.settings_and_seed(self.record)

    @property
    def seconds(self) -> float | None:
        """Return how long it took; None if the record does not say."""
        seconds = self.record.get("seconds")
        if not isinstance(seconds, Mapping) or not seconds:
            return None
        return sum(value for value in seconds.values() if isinstance(value, int | float))

    @property
    def headline(self) -> tuple[str, Any]:
        """Return name and value of the first metric; two empty texts if there is none."""
        return next(iter(self.record["metrics"].items()), ("", ""))

    @property
    def ended(self) -> str:
        """Return when it ended, by its record, or when something was last put into its folder; empty if unknown."""
        return str(self.record.get("ended") or "")


def load(places: Sequence[Path]) -> list[Run]:
    """Find the runs in files of records and in folders of outputs, those that ended last behind all others.

    Args:
        places: Files of records; folders with a records.jsonl, or whose folders have one.

    Raises:
        FishexpError: If a place is none of these, or a file holds no records.
    """
    files = list(dict.fromkeys(_files(places)))
    folders = {
        (folder.parents[3], folder.name.rpartition("-")[2]): folder  # outputs/DATA/MODEL/METHOD/seed0-RUN_ID
        for place in dict.fromkeys(file.parent for file in files)
        for folder in run_folders(place)
    }
    runs = [run for file in files for run in _recorded(file, folders)]
    known = {run.folder for run in runs}
    runs += [
        _unrecorded(run_id, folder, outputs) for (outputs, run_id), folder in folders.items() if folder not in known
    ]
    return sorted(runs, key=lambda run: (run.status == GOING_ON, run.ended))


def _files(places: Sequence[Path]) -> Iterator[Path]:
    """List the files of records in places; that of a folder with run folders may be missing."""
    for place in places:
        if not place.is_dir():
            if not place.exists():
                raise FishexpError(f"{place} is missing; name a folder of outputs or a file of records")
            yield place
        elif (place / RECORDS).is_file() or run_folders(place):
            yield place / RECORDS
        elif inside := sorted(place.glob(f"*/{RECORDS}")):
            yield from inside
        else:
            raise FishexpError(f"{place} holds no {RECORDS} and no run folders; runs leave them in outputs")


def _recorded(file: Path, folders: Mapping[tuple[Path, str], Path]) -> Iterator[Run]:
    """List the runs of a file of records, each with its folder: beside the file, or in another place.

    Args:
        folders: (folder of outputs, run_id) -> run folder.
    """
    latest: dict[str, Mapping[str, Any]] = {}
    for record in read(file) if file.exists() else ():
        before = latest.get(record["run_id"])
        if before is None or before["status"] != "finished" or record["status"] == "finished":
            latest[record["run_id"]] = record
    elsewhere = {run_id: outputs for outputs, run_id in folders}
    for run_id, record in latest.items():
        outputs = file.parent if (file.parent, run_id) in folders else elsewhere.get(run_id, file.parent)
        folder = folders.get((outputs, run_id))
        status = GOING_ON if folder is not None and is_going_on(folder) else record["status"]
        yield Run(record, status, file, outputs, folder)


def _unrecorded(run_id: str, folder: Path, outputs: Path) -> Run:
    """Make a run of a folder: of a run that has not ended, or whose record is in its folder only."""
    if (folder / RECORD).is_file():
        record = next(read(folder / RECORD), None)
        if record is not None:
            return Run(record, GOING_ON if is_going_on(folder) else record["status"], None, outputs, folder)
    try:
        config = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
    except (OSError, OmegaConfBaseException, UnicodeDecodeError, YAMLError):  # it is about to be written, or damaged
        config = {}
    written = datetime.fromtimestamp(folder.stat().st_mtime, UTC).isoformat(timespec="seconds")
    record = {"run_id": run_id, "config": config if isinstance(config, dict) else {}, "metrics": {}, "ended": written}
    return Run(record, GOING_ON if is_going_on(folder) else CUT_OFF, None, outputs, folder)


def chosen(runs: Sequence[Run], word: str) -> Run:
    """Find the run that a word names: the folder of one, its id, or how its id begins.

    Raises:
        FishexpError: If there is none, or several.
    """
    path = Path(word)
    if "/" in word or (word and path.is_dir()):
        found = [run for run in runs if run.folder is not None and run.folder.resolve() == path.resolve()]
        if not found and path.is_dir():
            raise FishexpError(f"{word} is no run folder in {_places(runs)}; --in names the folder of outputs")
    else:
        found = [run for run in runs if run.id.startswith(word.rpartition("-")[2])]
    if not found:
        raise FishexpError(f"there is no run {word} in {_places(runs)}; python -m fishexp.runs lists them")
    if len({run.id for run in found}) > 1:
        ids = ", ".join(dict.fromkeys(run.id for run in found[:10]))
        raise FishexpError(f"{word} may be {ids}; give more digits")
    if len(folders := {str(run.folder) for run in found if run.folder is not None}) > 1:
        raise FishexpError(f"{word} is in {' and in '.join(sorted(folders))}; give the folder, or --in")
    return found[-1]


def _places(runs: Sequence[Run]) -> str:
    return ", ".join(dict.fromkeys(str(run.outputs) for run in runs)) or "outputs"


def matching(runs: Sequence[Run], words: Sequence[str]) -> list[Run]:
    """Return the runs that match all words of the form ``key=value`` or ``key=value,value``.

    Raises:
        FishexpError: If a key is that of no run, or a range of seeds counts down.
    """
    return words_of.matching(runs, words, _settings, _COLUMNS)


def in_order(runs: Sequence[Run], key: str) -> list[Run]:
    """Sort runs by a key: numbers first, those that have none last.

    Raises:
        FishexpError: If a key is that of no run.
    """
    value_of = words_of.reader(key, runs, _settings, _COLUMNS)
    return sorted(runs, key=lambda run: _sortable(value_of(run)))


def _settings(run: Run) -> Mapping[str, Any]:
    return run.settings


# columns of the list that are no settings
_COLUMNS: Mapping[str, Callable[[Run], Any]] = {
    "run": lambda run: run.id,
    "status": lambda run: run.status,
    "metric": lambda run: run.headline[1],
    "seconds": lambda run: run.seconds,
    "when": lambda run: run.ended,
}


def _sortable(value: Any) -> tuple[int, float, str]:
    if isinstance(value, int | float) and value == value:
        return 0, value, ""
    return (2, 0, "") if value in (None, "") else (1, 0, str(value))
