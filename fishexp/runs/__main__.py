"""The command line of runs: ``python -m fishexp.runs method=fish``, ``show``, ``compare`` and ``remove``."""

import argparse
import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path

from fishexp.errors import FishexpError
from fishexp.system.program import carry_out

_OUTPUTS = Path("outputs")
_COMMANDS = ("show", "compare", "remove")
_EPILOG = """
RUN is the folder of a run, its id, or how the id begins. Words such as method=fish, keep=0.5% or seed=0-2 choose what
is listed: settings as on the command line of runs, and status=finished, failed, interrupted, 'going on' or 'cut off'.

  python -m fishexp.runs method=fish,random data=cifar10 status=finished --sort metric
  python -m fishexp.runs experiments/rules
  python -m fishexp.runs show 1a2b3c4d
  python -m fishexp.runs compare 1a2b3c4d 5e6f7a8b
  python -m fishexp.runs remove 1a2b3c4d --yes
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """List, show, compare or remove runs; return the exit status: 2 for a user's mistake, 130 if interrupted."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words and words[0] in _COMMANDS:
        return carry_out("fishexp.runs", lambda: _about_some(words[0], words[1:]))
    return carry_out("fishexp.runs", lambda: _list(words))


def _list(words: Sequence[str]) -> None:
    parser = ArgumentParser(
        prog="python -m fishexp.runs",
        usage="python -m fishexp.runs [FOLDER or RECORDS ...] [KEY=VALUE ...] [--sort KEY]\n"
        "       python -m fishexp.runs show RUN [--in FOLDER]\n"
        "       python -m fishexp.runs compare RUN RUN ... [--in FOLDER]\n"
        "       python -m fishexp.runs remove RUN ... [--yes] [--in FOLDER]",
        description="List the runs in files of records and folders of outputs (outputs if you name none), newest\n"
        "last; show all about one, compare several, or remove their folders.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("words", nargs="*", metavar="FOLDER, RECORDS or KEY=VALUE", help="where to look, what to list")
    parser.add_argument("--sort", metavar="KEY", help="order by a column or a setting; the time if you do not say")
    options = parser.parse_args(words)

    from fishexp.report.words import apart
    from fishexp.runs.find import in_order, load, matching
    from fishexp.runs.show import print_list

    places, filters = apart(options.words)
    all_runs = load(places or [_OUTPUTS])
    runs = matching(all_runs, filters)
    if options.sort is not None:
        runs = in_order(runs, options.sort)
    if runs:
        print_list(runs)
    else:
        print(f"none of {len(all_runs)} runs is like that" if all_runs else "there are no runs")


def _about_some(command: str, words: Sequence[str]) -> None:
    options = _parser(command).parse_args(words)

    from fishexp.runs.find import chosen, load
    from fishexp.runs.show import about, print_comparison

    runs = load(options.places or [_OUTPUTS])
    found = list({run.id: run for run in (chosen(runs, word) for word in options.runs)}.values())
    if command == "show":
        print("\n\n".join(map(about, found)))
    elif command == "compare":
        if len(found) < 2:
            raise FishexpError("compare takes two runs or more")
        print_comparison(found)
    else:
        from fishexp.runs.remove import remove

        print("\n".join(remove(found, ask=not options.yes)))


def _parser(command: str) -> ArgumentParser:
    about = {
        "show": "Show all about runs: settings, metrics, where their files are, and the command that repeats them.",
        "compare": "Show which settings tell runs apart, and their metrics side by side.",
        "remove": "Remove the folders of runs that are not going on. Their records stay: a file of records only grows.",
    }
    parser = ArgumentParser(prog=f"python -m fishexp.runs {command}", description=about[command])
    parser.add_argument("runs", nargs="+", metavar="RUN", help="the folder of a run, its id, or how the id begins")
    parser.add_argument(
        "--in", dest="places", action="append", type=Path, metavar="FOLDER", help="where to look; outputs by default"
    )
    if command == "remove":
        parser.add_argument("--yes", action="store_true", help="do not ask")
    return parser


if __name__ == "__main__":
    sys.exit(main())
