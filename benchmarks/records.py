"""Reading records.jsonl, which has a line for each measured contender."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeAlias

Record: TypeAlias = dict[str, Any]


def read(path: Path) -> list[Record]:
    """Read all records in the order in which they were written; none if there is no file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def machine(record: Record) -> str:
    """Name the device and the number of threads that a record was measured with."""
    return f"{record['device']}, {record['threads']} thread{'s' * (record['threads'] != 1)}"


def by_machine(records: Iterable[Record]) -> dict[str, list[Record]]:
    """Group records by device and number of threads."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(machine(record), []).append(record)
    return groups
