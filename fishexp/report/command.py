"""The command line that the table and the plot share: files of records, and a line if they cannot be used."""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from typing import Any

from fishexp.errors import FishexpError
from fishexp.report.pool import Pool, load, pool
from fishexp.report.words import apart, matching, reader, settings_and_seed
from fishexp.system.program import carry_out

# values that a message lists
_MOST_VALUES = 8


def run(parser: ArgumentParser, arguments: Sequence[str] | None, work: Callable[[Pool, Namespace], None]) -> int:
    """Pool the records that the command line names, and hand them to ``work``.

    Args:
        parser: Has the options of the command itself.
        arguments: Command line; None for that of this process.

    Returns:
        Exit status: 0, or 2 if the records cannot be used.
    """
    parser.add_argument(
        "records",
        nargs="+",
        metavar="RECORDS or KEY=VALUE",
        help="files of records, such as outputs/records.jsonl; words such as data=digits or method=fish,random take "
        "some of their runs",
    )
    parser.add_argument(
        "--uncommitted", action="store_true", help="take runs whose code was not committed, too, and mark them"
    )
    options = parser.parse_args(arguments)
    return carry_out("fishexp", lambda: work(_pooled(options), options))


def _pooled(options: Namespace) -> Pool:
    """Pool the records, or those that the words among them choose; leave the files alone in ``options.records``."""
    options.records, words = apart(options.records)
    if not options.records:
        raise FishexpError("name a file of records, such as outputs/records.jsonl")
    records = list(load(options.records))
    chosen = _chosen(records, words)
    if records and not chosen:
        found = [
            f"{word.partition('=')[0]} is {_values(records, word)}" for word in words if not _chosen(records, [word])
        ]
        there = f": {'; '.join(found)}" if found else ""
        raise FishexpError(f"none of the {len(records)} records is of {' '.join(words)}{there}")
    return pool(chosen, uncommitted=options.uncommitted)


def _chosen(records: Sequence[dict[str, Any]], words: Sequence[str]) -> list[dict[str, Any]]:
    return matching(records, words, settings_and_seed, {}) if words else list(records)


def _values(records: Sequence[dict[str, Any]], word: str) -> str:
    """List the values that records have of what a word asks for."""
    value_of = reader(word.partition("=")[0], records, settings_and_seed, {})
    values = list(dict.fromkeys(str(value) for record in records if (value := value_of(record)) is not None))
    return ", ".join([*values[:_MOST_VALUES], *(["..."] if len(values) > _MOST_VALUES else [])])
