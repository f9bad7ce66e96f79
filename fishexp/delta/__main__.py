"""The command line of deltas: look at one, apply it, make one of two checkpoints, put several together."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import get_args

from fishexp.delta import checkpoint
from fishexp.delta.chain import chain
from fishexp.delta.compare import compare
from fishexp.delta.delta import Delta
from fishexp.delta.info import info
from fishexp.delta.merging import How, merge
from fishexp.delta.patch import patch
from fishexp.errors import DeltaError, FishexpError

MODEL = "a .safetensors file or the folder of a Hugging Face model"
FORM = "the model, a folder or a file as BASE is"
NEW = "; must not exist yet"


def _info(options: argparse.Namespace) -> None:
    print(info(options.file))


def _apply(options: argparse.Namespace) -> None:
    _check_new(options.out)
    delta = chain([Delta.load(file) for file in options.files], not options.force)
    _patch(options, Delta.of(delta), not options.force)


def _diff(options: argparse.Namespace) -> None:
    _check_new(options.out)
    after = checkpoint.read(options.tuned)
    delta = Delta.of(compare(checkpoint.read(options.base).named_as(list(after.places)), after))
    delta.save(options.out)
    print(f"{options.out}: {delta}")


def _merge(options: argparse.Namespace) -> None:
    _check_new(options.out)
    deltas = [Delta.load(file) for file in options.files]
    base = checkpoint.read(options.base).named_as(list(deltas[0].base))
    known = {name for delta in deltas for name in (*delta.base, *delta.tied)}
    merged, overlap = merge(deltas, base.source(known), options.how)
    _patch(options, merged, strict=True)
    print(overlap)


def _patch(options: argparse.Namespace, delta: Delta, strict: bool) -> None:
    base = checkpoint.read(options.base).named_as(list(delta.base))
    extra = patch(base, delta, options.out, strict)
    if extra:
        print(f"left out, since the delta's base does not have it: {', '.join(extra)}")
    print(f"{options.out}: {delta}")


def _check_new(out: Path) -> None:
    if os.path.lexists(out):
        raise DeltaError(f"{out} exists; give another -o, or delete it first")
    if not out.absolute().parent.is_dir():
        raise DeltaError(f"{out}: there is no folder {out.absolute().parent}; make it first")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m fishexp.delta", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="info | apply | diff | merge")

    def command(name: str, work: Callable[[argparse.Namespace], None], text: str, out: str) -> argparse.ArgumentParser:
        one = commands.add_parser(name, help=text, description=text)
        one.set_defaults(work=work)
        if out:
            one.add_argument("base", metavar="BASE", type=Path, help=MODEL)
            one.add_argument("-o", dest="out", metavar="OUT", type=Path, required=True, help=out + NEW)
        return one

    one = command("info", _info, "what a delta holds", "")
    one.add_argument("file", metavar="FILE", type=Path, help="a delta")
    one = command("apply", _apply, "the model that a delta, or one after another, makes of its base", FORM)
    one.add_argument("files", metavar="FILE", type=Path, nargs="+", help="deltas, the one for BASE first")
    one.add_argument("--force", action="store_true", help="compare names, types and shapes with the base, not values")
    one = command("diff", _diff, "the delta between two models", "the delta")
    one.add_argument("tuned", metavar="TUNED", type=Path, help=MODEL)
    one = command("merge", _merge, "the model with what several deltas of one base change", FORM)
    one.add_argument("files", metavar="FILE", type=Path, nargs="+", help="deltas for BASE")
    one.add_argument("--how", choices=get_args(How), default="sum", help="of entries that several change")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 2, and one line on stderr, if something cannot be used."""
    options = _parser().parse_args(arguments)
    try:
        options.work(options)
    except (FishexpError, OSError) as error:
        what = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)
        print(f"fishexp.delta: {' '.join(what.split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
