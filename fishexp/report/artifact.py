"""A report on Weights & Biases: its page, tables and pictures, as an artifact of a run of its own."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from fishexp.report.formats import csv_text
from fishexp.report.picture import figure
from fishexp.report.pool import Pool
from fishexp.report.style import save
from fishexp.report.table import held_out_columns, latex_document, markdown, reported_columns
from fishexp.system.wandb_start import start


def send(pooled: Pool, page: Path, mode: Literal["offline", "online"]) -> None:
    """Send a report to W&B: the tables and pictures to look at there, and all files as the artifact ``report``.

    Args:
        page: The HTML page.
        mode: ``offline`` writes files only, below the current folder; ``online`` sends them too.

    Raises:
        FishexpError: If W&B refuses, without an account for example.
    """
    import wandb

    run = start("--wandb ", mode, Path.cwd(), job_type="report")
    with TemporaryDirectory(prefix="fishexp-") as name:
        folder = Path(name)
        for file, text in {
            "table.md": markdown(pooled), "table.tex": latex_document(pooled), "table.csv": csv_text(pooled),
        }.items():  # fmt: skip
            (folder / file).write_text(text + "\n", encoding="utf-8")
        pictures = _draw(pooled, folder)
        artifact = wandb.Artifact("report", type="report")
        for file in sorted(folder.iterdir()):
            artifact.add_file(str(file))
        artifact.add_file(str(page), "report.html")
        run.log_artifact(artifact)
        tables = {"reported": reported_columns(pooled)} if pooled.reported else {}
        tables |= {"held out": held_out_columns(pooled)} if pooled.held_out else {}
        shown = {title: _table(columns) for title, columns in tables.items()}
        run.log(shown | {picture.stem: wandb.Image(str(picture)) for picture in pictures})
        run.finish()


def _draw(pooled: Pool, folder: Path) -> list[Path]:
    """Draw the reported groups of each data set, model and metric as PNG, and as PDF beside it; return the PNGs."""
    kinds: dict[tuple[str, str, str], list[Any]] = {}
    for group in pooled.reported:
        kinds.setdefault((group.data, group.model, group.metric), []).append(group)
    drawn = []
    for number, (kind, groups) in enumerate(kinds.items()):
        picture = figure(Pool(groups, pooled.held_out, Counter()))
        safe = "".join(char if char.isalnum() else "-" for char in "-".join(kind))
        drawn.append(folder / f"{number}-{safe}.png")
        for path in (drawn[-1], drawn[-1].with_suffix(".pdf")):
            save(picture, path)
    return drawn


def _table(columns: dict[str, list[str]]) -> Any:
    import wandb

    rows: Sequence[tuple[str, ...]] = list(zip(*columns.values(), strict=True))
    return wandb.Table(columns=list(columns), data=[list(row) for row in rows])
