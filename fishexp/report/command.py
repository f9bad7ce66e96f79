"""The command line that the table and the plot share: files of records, and a line if they cannot be used."""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from pathlib import Path

from fishexp.report.pool import Pool, load, pool
from fishexp.system.program import carry_out


def run(parser: ArgumentParser, arguments: Sequence[str] | None, work: Callable[[Pool, Namespace], None]) -> int:
    """Pool the records that the command line names, and hand them to ``work``.

    Args:
        parser: Has the options of the command itself.
        arguments: Command line; None for that of this process.

    Returns:
        Exit status: 0, or 2 if the records cannot be used.
    """
    parser.add_argument("records", nargs="+", type=Path, help="files of records, such as outputs/records.jsonl")
    parser.add_argument(
        "--uncommitted", action="store_true", help="take runs whose code was not committed, too, and mark them"
    )
    options = parser.parse_args(arguments)
    return carry_out("fishexp", lambda: work(pool(load(options.records), uncommitted=options.uncommitted), options))
