"""The command line that the table and the plot share: files of records, and a line if they cannot be used."""

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from pathlib import Path

from fishexp.errors import FishexpError, how_to_install
from fishexp.report.pool import Pool, load, pool


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
    try:
        work(pool(load(options.records), uncommitted=options.uncommitted), options)
    except FishexpError as error:
        print(f"fishexp: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if (hint := how_to_install(error)) is None:
            raise
        print(f"fishexp: {hint}", file=sys.stderr)
        return 2
    return 0
