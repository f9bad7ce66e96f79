"""The page of all records: the generated part of README.md, and the pictures beside it."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.records import Record, by_machine, machine, read
from benchmarks.registry import BENCHMARKS
from fishexp.errors import FishexpError

START, END = "<!-- generated: start -->", "<!-- generated: end -->"
_PACKAGES = ("torch", "transformers", "peft", "backpack-for-pytorch")  # whose versions are named below the tables


def update(home: Path) -> None:
    """Remake the generated part of ``home``'s README.md, and the pictures, from its records.jsonl if there is any.

    Raises:
        FishexpError: If README.md does not have the two marks between which the tables go.
    """
    records = newest(read(home / "records.jsonl"))
    for name, benchmark in BENCHMARKS.items():
        if benchmark.PICTURE and (own := _of(name, records)):
            benchmark.PICTURE.save(own, home / f"{name}.png")
    path = home / "README.md"
    before, start, rest = path.read_text(encoding="utf-8").partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise FishexpError(f"{path} has no {START} ... {END}, where the tables go")
    path.write_text(f"{before}{START}\n{markdown(records)}\n{END}{after}", encoding="utf-8")


def newest(records: Iterable[Record]) -> list[Record]:
    """Keep the last record of each setting, contender and machine."""
    return list({_key(record): record for record in records}.values())


def markdown(records: Sequence[Record]) -> str:
    """Format the pictures, and the tables of each machine."""
    if not records:
        return "\nNo records yet: `make bench`.\n"
    parts = [
        f"![{benchmark.PICTURE.alt}]({name}.png)"
        for name, benchmark in BENCHMARKS.items()
        if benchmark.PICTURE and _of(name, records)
    ]
    for title, measured in by_machine(records).items():
        parts.append(f"## {title}")
        for name, benchmark in BENCHMARKS.items():
            if own := _of(name, measured):
                parts += benchmark.sections(own)
        parts.append(_provenance(measured))
    return "\n" + "\n\n".join(parts) + "\n"


def _of(name: str, records: Sequence[Record]) -> list[Record]:
    return [record for record in records if record["benchmark"] == name]


def _key(record: Record) -> tuple[str, ...]:
    name = record["benchmark"]
    return (machine(record), name, BENCHMARKS[name].title(record), record["precision"], record["contender"])


def _provenance(records: Sequence[Record]) -> str:
    """Name commit, day and versions; there are several where only a part was measured again."""
    runs = {
        f"commit {record['commit']} on {record['ended'][:10]} with "
        + ", ".join(f"{name} {record['versions'][name]}" for name in _PACKAGES if name in record["versions"])
        for record in records
    }
    return "Measured at " + "; ".join(sorted(runs)) + "."
