"""Merge deltas of several tasks on one base: one backbone, and for each task the head that it trained.

On disk the backbone is a model's folder like any other, and each head a delta that follows on it, in a folder of its
own with the configuration and the tokenizer of its task::

    OUT/model.safetensors, OUT/config.json, ...                 the merged backbone, without a head
    OUT/heads/TASK/delta.safetensors, config.json, ...          `apply OUT OUT/heads/TASK/delta.safetensors -o MODEL`
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fishexp.delta.checkpoint import SINGLE, Checkpoint
from fishexp.delta.combine import MergeRule, Overlap, chain, merge, whole_result, with_same_names
from fishexp.delta.content import Content, TensorDelta
from fishexp.delta.delta import Delta
from fishexp.delta.diff import by_common_name
from fishexp.delta.model_folder import DELTA, others
from fishexp.delta.names import match
from fishexp.delta.patch import new_checkpoint
from fishexp.delta.sources import Source, TensorReader, Tensors, read_fingerprint, source
from fishexp.errors import DeltaError
from fishexp.system.atomic import new_folder

HEADS = "heads"  # the folder of all heads

# heads that a base may have already, of transformers' classifiers and of torchvision's
_HEAD = re.compile(r"(^|\.)(classifier|pre_classifier|score|qa_outputs)\.|^(fc|head)\.")


@dataclass(frozen=True)
class MergedTasks:
    """Hold one backbone and a head for each task.

    Attributes:
        backbone: Makes the merged backbone of the base; heads are no part of it.
        heads: For each task, what follows on the backbone: its head, stored whole.
        overlap: How many entries of each tensor several tasks moved.
    """

    backbone: Delta
    heads: tuple[Delta, ...]
    overlap: Overlap

    def task(self, number: int) -> Delta:
        """Return the delta that makes the model of a task, counted from 0, of the base; it brings its head along."""
        return Delta.of(chain([self.backbone, self.heads[number]]))


def merge_tasks(deltas: Sequence[Content], base: Tensors | Source, how: MergeRule = "sum") -> MergedTasks:
    """Merge the backbones of several tasks, and keep each task's head.

    A head is what the base does not have, and a classifier that it has (``classifier``, ``score``, ``qa_outputs``,
    ``fc`` or ``head``), which each task may have trained, or made larger, for itself.

    Args:
        deltas: For the same base, heads aside.
        base: In any form that :meth:`Delta.diff` takes; it may have a head, or none.
        how: As for :func:`fishexp.delta.merge`.

    Raises:
        DeltaError: If no delta has a head, or a delta is for another base, or contradicts itself; or several move what
            has no sum, and do not agree.
        OSError: If a file cannot be read.
    """
    found = source(base)
    names = [*found.tensors, *found.tied]
    deltas = with_same_names(deltas, names)
    if deltas:
        found = found.named_as(match(names, deltas[0].all_names).names)
    new = {name for delta in deltas for name in delta.moved if name not in delta.base}
    heads = new | {name for delta in deltas for name in delta.result if _HEAD.search(name)}
    if not heads:
        raise DeltaError("no delta has a head of its own, so there is none to keep; merge without --keep-heads")
    own = by_common_name(found, {})
    for number, delta in enumerate(deltas, 1):
        _check_heads(delta, heads, own, number)
    rest = {name: tensor for name, tensor in found.tensors.items() if name not in heads and not _HEAD.search(name)}
    tied = {name: first for name, first in found.tied.items() if name not in heads and first in rest}
    merged, overlap = merge([_without(delta, heads) for delta in deltas], Source(rest, tied), how)
    kept = (_only(delta, heads, own) for delta in deltas)
    return MergedTasks(merged, tuple(Delta(merged.result, moved, (), ties) for moved, ties in kept), overlap)


def _without(delta: Content, heads: Iterable[str]) -> Content:
    """Return the delta of the backbone."""
    skipped = {*heads, *(name for name in delta.base if _HEAD.search(name))}
    return Content(
        {name: tensor for name, tensor in delta.base.items() if name not in skipped},
        {name: moved for name, moved in delta.moved.items() if name not in skipped},
        tuple(name for name in delta.removed if name not in skipped),
        {name: first for name, first in delta.tied.items() if name not in skipped and first not in skipped},
    )


def _check_heads(delta: Content, heads: Iterable[str], base: Mapping[str, TensorReader], number: int) -> None:
    """Refuse a delta that is for another head; what the merge of the backbones looks at is not looked at here."""
    for name in sorted({*heads} & delta.base.keys()):
        here, its = base.get(name), delta.base[name]
        if here is None or replace(its, sha256=None) != here.kind:
            found = "missing" if here is None else str(here.kind)
            raise DeltaError(f"delta {number} is for another base: {name} is {found}, the delta's base has {its}")
        if its.sha256 not in (None, read_fingerprint(here).sha256):
            raise DeltaError(f"delta {number} is for another base: {name} has other values than in the delta's base")


def _only(
    delta: Content, heads: Iterable[str], base: Mapping[str, TensorReader]
) -> tuple[dict[str, TensorDelta], dict[str, str]]:
    """Return the head of the delta's result, each tensor whole, and the ties in it."""
    moved = {}
    for name in sorted({*heads} & delta.result.keys()):
        moved[name] = whole_result(name, base.get(name) if name in delta.base else None, delta.moved.get(name))
    return moved, {name: first for name, first in delta.tied.items() if first in moved}


def write_tasks(base: Checkpoint, merged: MergedTasks, files: Sequence[Path], out: Path) -> list[str]:
    """Write backbone and heads to the folder ``out``, whole or not at all.

    Args:
        base: Renamed as the deltas have its tensors.
        merged: To write.
        files: The deltas of the tasks; beside each its configuration and its tokenizer may lie.
        out: To make.

    Returns:
        Lines that say what is where, and what is lacking.
    """
    new = new_checkpoint(base, merged.backbone)
    lines = list(new.notes)
    before = {name: tensor.kind for name, tensor in new.tensors.items()}
    with new_folder(out) as folder:
        if base.path.is_dir():
            new.write_folder(folder, strict=True)
        else:
            new.write_file(folder / SINGLE, strict=True)
        for name, file, head in zip(task_names(files), files, merged.heads, strict=True):
            place = folder / HEADS / name
            place.mkdir(parents=True)
            head.save(place / DELTA)
            lines.append(f"{out / HEADS / name}: {', '.join(f'{n} {t.shape}' for n, t in head.moved.items())}")
            after = before | {name: moved.kind for name, moved in head.moved.items()}
            about = others(folder, before, after, (), file.parent)
            about.write_own(place)
            lines += [f"{out / HEADS / name}: {note}" for note in about.notes]
    return lines


def task_names(files: Sequence[Path]) -> list[str]:
    """Return a name for each task: the first part of the files' paths in which they all differ, or else numbers."""
    paths = [file.resolve() for file in files]
    paths = [path.with_suffix("") if path.suffix == ".safetensors" else path for path in paths]
    if len(paths) == 1:
        return [paths[0].name]
    for parts in zip(*(path.parts for path in paths), strict=False):
        if len(set(parts)) == len(parts):
            return list(parts)
    return [str(number) for number in range(1, len(files) + 1)]
