"""What the commands of this package share: records in, one line and status 2 if they cannot be used."""

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from pathlib import Path

from fishexp.errors import FishexpError
from fishexp.report.pool import Pool, load, pool


def run(parser: ArgumentParser, arguments: Sequence[str] | None, work: Callable[[Pool, Namespace], None]) -> int:
    """Hand ``work`` the pooled records that the command line names; the exit status."""
    parser.add_argument("records", nargs="+", type=Path, help="files that runs appended their records to")
    parser.add_argument("--uncommitted", action="store_true", help="take runs of uncommitted code too, marked")
    options = parser.parse_args(arguments)
    try:
        work(pool(load(options.records), uncommitted=options.uncommitted), options)
    except FishexpError as error:
        print(f"fishexp: {error}", file=sys.stderr)
        return 2
    return 0
