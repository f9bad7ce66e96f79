"""The command line of deltas: look at one, apply it, make one of two models, put several together, exchange them."""

import argparse
import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from math import lgamma, log
from pathlib import Path
from typing import get_args

from fishexp.delta import checkpoint
from fishexp.delta.architecture import modules_of
from fishexp.delta.combine import MergeRule, chain, merge, with_same_names
from fishexp.delta.content import Content
from fishexp.delta.delta import Delta
from fishexp.delta.file import POSITIONS, UNMOVED, VALUES, read_beginning
from fishexp.delta.fingerprint import CODES
from fishexp.delta.header import SEED, WHOLE, DeltaHeader, TensorEntry
from fishexp.delta.hub import push_to_hub
from fishexp.delta.model_folder import same_labels
from fishexp.delta.patch import find_patches, new_checkpoint, patch
from fishexp.delta.patches import write_patches
from fishexp.delta.peft_export import write_adapter
from fishexp.delta.peft_import import read_adapter
from fishexp.delta.sources import Source
from fishexp.delta.tasks import merge_tasks, write_tasks
from fishexp.errors import DeltaError
from fishexp.system.program import carry_out

MODEL = "a .safetensors file or the folder of a Hugging Face model"
FORM = "the model, a folder or a file as BASE is"
NEW = "; must not exist yet"
DENSEST = 5  # tensors that `info` shows


def _info(options: argparse.Namespace) -> None:
    """Print entries, bytes, digests and the densest tensors of a delta, in lines."""
    path: Path = options.file
    delta = Delta.load(path)
    with path.open("rb") as file:
        beginning = read_beginning(file, path)
    header, sizes = beginning.header, {name: vector.nbytes for name, vector in beginning.vectors.items()}
    size, encoded = path.stat().st_size, sizes[POSITIONS]
    values = sum(nbytes for name, nbytes in sizes.items() if name.startswith(VALUES))
    positions = encoded + sizes.get(UNMOVED, 0)
    still = delta.kept - delta.changes
    entries = header.moved.values()
    types = Counter(CODES[entry.after.dtype] for entry in entries for _ in range(min(entry.count, 1)))
    total = sum(tensor.entries for tensor in delta.result.values())
    rows = [
        ("file", f"{path}, version {beginning.version}"),
        (
            "entries",
            f"{delta.kept:,} of {total:,}, {_percent(delta.kept, total)}" + f"; {still:,} did not move" * (still > 0),
        ),
        ("tensors", _tensors(header, len(delta.result))),
        ("types", ", ".join(f"{code} in {count:,}" for code, count in sorted(types.items())) or "none"),
        ("bytes", f"{size:,}: values {values:,}, positions {positions:,}, header {size - values - positions:,}"),
        ("positions", _positions(header, encoded)),
        ("base", delta.before),
        ("result", f"{delta.after}; a delta that follows on this one has it as its base"),
    ]
    moved = sorted(header.moved.items(), key=lambda item: (-_density(item[1]), item[0]))
    for name, entry in moved[:DENSEST]:
        rows.append(("densest", f"{_percent(entry.count, entry.after.entries):>8} of {name} {entry.after.shape}"))
    print("\n".join(f"{what:<9}  {text}" for what, text in rows))


def _tensors(header: DeltaHeader, total: int) -> str:
    new = sum(name not in header.base for name in header.moved)
    whole = sum(entry.coding == WHOLE for entry in header.moved.values())
    return (
        f"{len(header.moved):,} of {total:,} have new values, {whole:,} of them all ({new:,} are new); "
        f"{len(header.removed):,} removed"
    )


def _positions(header: DeltaHeader, encoded: int) -> str:
    """Say how many bits a position takes, beside what a mask at random in each tensor would need."""
    if header.mask is not None:
        return f"drawn by seed {header.mask.recipe.seed}"
    sparse = [entry for entry in header.moved.values() if entry.coding not in (WHOLE, SEED)]
    count = sum(entry.count for entry in sparse)
    if not count:
        return "none"
    entropy = sum(_log_choose(entry.after.entries, entry.count) for entry in sparse) / log(2)
    return f"{8 * encoded / count:.2f} bits each; with as many in each tensor, at random, {entropy / count:.2f}"


def _log_choose(total: int, count: int) -> float:
    return lgamma(total + 1) - lgamma(count + 1) - lgamma(total - count + 1)


def _density(entry: TensorEntry) -> float:
    return entry.count / max(entry.after.entries, 1)


def _percent(count: int, total: int) -> str:
    return f"{100 * count / max(total, 1):.3g} %"


def _apply(options: argparse.Namespace) -> None:
    _check_new(options.out)
    deltas = [Delta.load(file) for file in options.files]
    base = checkpoint.read(options.base)
    first, *rest = with_same_names(deltas, base.tensors)
    base = base.named_as(first.all_names)
    find_patches(base, first)  # what does not fit costs no more than this
    _patch(options, base, chain([first, *rest], not options.force), not options.force, options.files[-1].parent)


def _diff(options: argparse.Namespace) -> None:
    _check_new(options.out)
    delta = Delta.diff(options.base, options.tuned)
    delta.save(options.out)
    print(f"{options.out}: {delta}")


def _merge(options: argparse.Namespace) -> None:
    _check_new(options.out)
    base = checkpoint.read(options.base)
    deltas = with_same_names([Delta.load(file) for file in options.files], base.tensors)
    known = {name for delta in deltas for name in (*delta.base, *delta.tied)}
    base = base.named_as(deltas[0].all_names)
    tensors = {name: tensor for name, tensor in base.tensors.items() if name in known}
    if options.keep_heads:
        tasks = merge_tasks(deltas, Source(tensors), options.how)
        print("\n".join([*write_tasks(base, tasks, options.files, options.out), str(tasks.overlap)]))
        return
    merged, overlap = merge(deltas, Source(tensors), options.how)
    _patch(options, base, merged, True, same_labels([file.parent for file in options.files]))
    print(overlap)


def _export(options: argparse.Namespace) -> None:
    _check_new(options.out)
    delta = Delta.load(options.file)
    if options.to == "patches":
        write_patches(delta, options.out)
        print(f"{options.out}: {delta}, NAME.indices and NAME.values of each tensor")
        return
    if options.base is None:
        raise DeltaError(
            "--to peft needs --base BASE: an adapter adds to the values of the base, so they have to be known"
        )
    base = checkpoint.read(options.base)
    (named,) = with_same_names([delta], base.tensors)
    base = base.named_as(named.all_names)
    others = new_checkpoint(base, named, options.file.parent).others
    config = others.read_config() if others else ""
    if not config:
        raise DeltaError("--to peft needs the config.json of the tuned model, in the folder BASE or beside the delta")
    modules = modules_of(config, named.result)
    tensors = {name: tensor for name, tensor in base.tensors.items() if name in {*named.base, *named.tied}}
    print(f"{options.out}: {write_adapter(named, Source(tensors), modules, options.out, str(options.base))}")


def _import(options: argparse.Namespace) -> None:
    _check_new(options.out)
    delta = read_adapter(options.adapter, options.base)
    delta.save(options.out)
    print(f"{options.out}: {delta}")


def _push(options: argparse.Namespace) -> None:
    print(push_to_hub(options.file, options.repo, base_model=options.base_model, private=options.private))


def _patch(
    options: argparse.Namespace, base: checkpoint.Checkpoint, delta: Content, strict: bool, beside: Path | None
) -> None:
    for note in patch(base, delta, options.out, strict, beside):
        print(note)
    print(f"{options.out}: {Delta.of(delta)}")


def _check_new(out: Path) -> None:
    if os.path.lexists(out):
        raise DeltaError(f"{out} exists; give another -o, or delete it first")
    if not out.absolute().parent.is_dir():
        raise DeltaError(f"{out}: there is no folder {out.absolute().parent}; make it first")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m fishexp.delta", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="info | apply | diff | merge | export | import | push")

    def command(
        name: str, work: Callable[[argparse.Namespace], None], text: str, out: str = "", base: str = "base"
    ) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.set_defaults(work=work)
        if out:
            added.add_argument(base, metavar="BASE", type=Path, help=MODEL)
            added.add_argument("-o", dest="out", metavar="OUT", type=Path, required=True, help=out + NEW)
        return added

    info = command("info", _info, "what a delta holds")
    info.add_argument("file", metavar="FILE", type=Path, help="a delta")
    apply = command("apply", _apply, "the model that a delta, or one after another, makes of its base", FORM)
    apply.add_argument("files", metavar="FILE", type=Path, nargs="+", help="deltas, the one for BASE first")
    apply.add_argument("--force", action="store_true", help="compare names, types and shapes with the base, not values")
    difference = command("diff", _diff, "the delta between two models", "the delta")
    difference.add_argument("tuned", metavar="TUNED", type=Path, help=MODEL)
    merger = command("merge", _merge, "the model with what several deltas of one base change", FORM)
    merger.add_argument("files", metavar="FILE", type=Path, nargs="+", help="deltas for BASE")
    merger.add_argument(
        "--keep-heads", action="store_true", help="one backbone, and a head for each delta in OUT/heads"
    )
    merger.add_argument(
        "--how",
        choices=get_args(MergeRule),
        default="sum",
        help="of entries that several change, sum if you do not say; running statistics are averaged",
    )
    export = command("export", _export, "a delta in a form of others", "an adapter's folder, or a file", "--base")
    export.add_argument("file", metavar="FILE", type=Path, help="a delta")
    export.add_argument(
        "--to",
        choices=["peft", "patches"],
        required=True,
        help="peft: an adapter of Super-Tuning, which takes --base; patches: indices and values of each tensor",
    )
    importer = command("import", _import, "the delta of an adapter of PEFT's Super-Tuning", "the delta")
    importer.add_argument("adapter", metavar="ADAPTER", type=Path, help="the adapter's folder")
    push = command("push", _push, "a delta to the Hugging Face hub, with a model card")
    push.add_argument("file", metavar="FILE", type=Path, help="a delta")
    push.add_argument("repo", metavar="USER/NAME", help="the repository, which is made if there is none")
    push.add_argument("--base-model", metavar="ID", help="the hub's id of the model that the delta is for")
    push.add_argument("--private", action="store_true", help="make a new repository private")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return the exit status: 2, with one line on stderr, if something cannot be used."""
    options = _parser().parse_args(arguments)
    return carry_out("fishexp.delta", lambda: options.work(options))


if __name__ == "__main__":
    sys.exit(main())
