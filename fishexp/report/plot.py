"""The command that draws records: ``python -m fishexp.report.plot outputs/records.jsonl -o demo.png``."""

import argparse
import os
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from fishexp.report import command
from fishexp.report.pool import Pool


def _work(pooled: Pool, options: Namespace) -> None:
    from fishexp.report.picture import figure
    from fishexp.report.style import check_ending, save

    check_ending(options.output)
    save(figure(pooled, options.metric), options.output)


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw the records of the files named on the command line; return 2 if there is nothing to draw."""
    parser = argparse.ArgumentParser(
        prog="python -m fishexp.report.plot",
        description="Draw the results of runs of one data set and one model: a row for each method with a dot for each "
        "seed, or a line for each method against keep where the runs have several.",
        epilog="example: python -m fishexp.report.plot outputs/records.jsonl data=glue task=rte -o results.pdf",
    )
    parser.add_argument(
        "-o", "--output", metavar="FILE", type=Path, required=True, help="the picture to write: a .png, .svg or .pdf"
    )
    parser.add_argument(
        "--metric", metavar="NAME", help="what to draw, such as f1; the first metric of the records if you do not say"
    )
    return command.run(parser, arguments, _work)


if __name__ == "__main__":
    os.environ["MPLBACKEND"] = "agg"  # a notebook hands its own to its commands, where it may be unknown
    sys.exit(main())
