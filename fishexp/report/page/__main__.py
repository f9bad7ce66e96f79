"""The command that writes the page: ``python -m fishexp.report.page outputs/records.jsonl -o report.html``."""

import argparse
import os
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from fishexp.errors import FishexpError
from fishexp.report import command
from fishexp.report.page.beside import read_beside
from fishexp.report.page.document import document
from fishexp.report.pool import Pool
from fishexp.system.atomic import replacing
from fishexp.system.text_table import write_bytes


def _work(pooled: Pool, options: Namespace) -> None:
    if options.runs is not None and not options.runs.is_dir():
        raise FishexpError(f"--runs {options.runs} is not a folder; it holds run folders, as outputs does")
    folders = [options.runs] if options.runs is not None else list(dict.fromkeys(p.parent for p in options.records))
    text = document(pooled, options.records, read_beside(options.records, folders))
    try:
        with replacing(options.output) as new:
            new.write_text(text, encoding="utf-8")
    except OSError as error:
        raise FishexpError(f"{options.output} cannot be written: {error.strerror}") from None
    print(f"{options.output}: {write_bytes(len(text.encode()))}")
    if options.wandb is not None:
        from fishexp.report.artifact import send

        send(pooled, options.output, options.wandb)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page of the files named on the command line; return 2 if that cannot be done."""
    parser = argparse.ArgumentParser(
        prog="python -m fishexp.report.page",
        description="Write the results of runs as one HTML page that needs nothing else: tables that sort and filter, "
        "differences with intervals, scores against kept weights, bytes and seconds, learning curves, where masks put "
        "their budget, and what they have in common.",
        epilog="example: python -m fishexp.report.page outputs/records.jsonl -o report.html",
    )
    parser.add_argument("-o", "--output", metavar="FILE", type=Path, required=True, help="the page to write")
    parser.add_argument(
        "--runs",
        metavar="FOLDER",
        type=Path,
        help="where the run folders are, for learning curves and overlaps; beside the records if you do not say",
    )
    parser.add_argument(
        "--wandb", choices=["offline", "online"], help="send the page, its tables and pictures to W&B, too"
    )
    return command.run(parser, arguments, _work)


if __name__ == "__main__":
    os.environ["MPLBACKEND"] = "agg"  # a notebook hands its own to its commands, where it may be unknown
    sys.exit(main())
