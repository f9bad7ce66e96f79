"""What W&B's own reader finds in the runs that were left offline."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

# what would send a test's runs elsewhere
WANDB_VARIABLES = (
    "WANDB_RUN_GROUP", "WANDB_API_KEY", "WANDB_MODE", "WANDB_PROJECT", "WANDB_RUN_ID", "WANDB_NAME",
)  # fmt: skip


def inspect(folder: Path) -> list[dict[str, Any]]:
    """Read the records of the only offline run in a folder, through `wandb leet inspect`."""
    (run,) = folder.glob("wandb/offline-run-*")
    wandb = Path(sys.executable).parent / "wandb"
    done = subprocess.run([wandb, "leet", "inspect", "--json", run], capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def only(found: list[dict[str, Any]], kind: str) -> list[Any]:
    """Return what the records of a kind hold."""
    return [record[kind] for record in found if record["type"] == kind]


def items(entry: Any) -> dict[str, Any]:
    """Return what a line of the history or the summary holds: a dict, or a list of keys and JSON values."""
    pairs = entry.get("item", entry.get("update"))
    return pairs if isinstance(pairs, dict) else {pair["key"]: json.loads(pair["value_json"]) for pair in pairs}
