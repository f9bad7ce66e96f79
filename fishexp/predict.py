"""The command line of predictions: what a finished run says of the rows of a file, or of images, as columns."""

import argparse
import csv
import io
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fishexp.errors import FishexpError
from fishexp.system.program import carry_out

# endings of files that are written -> what separates their columns
_SEPARATORS = {".csv": ",", ".tsv": "\t"}
# the column that is added, beside one for each class
_PREDICTED = "predicted"


def main(arguments: Sequence[str] | None = None) -> int:
    """Predict, and return the exit status: 2, with one line on stderr, if something cannot be used."""
    options = _parser().parse_args(arguments)
    return carry_out("fishexp.predict", lambda: _work(options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m fishexp.predict",
        description="Predict with a finished run: the rows of a csv, tsv, jsonl, json or parquet file, or the images "
        "of a folder, get the predicted label and the probability of each, or the predicted number.",
        epilog="examples: python -m fishexp.predict outputs/csv/minilm/fish-0.005/seed0-1a2b3c4d new.csv -o out.csv; "
        "of a run on images: python -m fishexp.predict RUN photos -o out.csv",
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="the folder of a finished run")
    parser.add_argument(
        "file", metavar="FILE", type=Path,
        help="the examples; a csv's first row names the columns; of a run on images a folder of them, or one",
    )  # fmt: skip
    parser.add_argument("-o", "--output", metavar="OUT", type=Path, help="a .csv or .tsv; printed if you do not say")
    parser.add_argument("--text", metavar="COLUMN", nargs="+", help="one column of sentences, or the two of pairs")
    parser.add_argument("--batch-size", metavar="N", type=int, default=64, help="examples at a time: speed only")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto")
    parser.add_argument(
        "--epoch", metavar="N", type=int, help="of a run with regime=checkpointing; the last if you do not say"
    )
    parser.add_argument("--allow-code", action="store_true", help="import the module that built the run's model")
    parser.add_argument("--allow-download", action="store_true", help="fetch the model that the run began with")
    return parser


def _work(options: argparse.Namespace) -> None:
    """Read, predict and write."""
    out: Path | None = options.output
    if options.batch_size < 1:
        raise FishexpError(f"--batch-size {options.batch_size}: at least one example at a time")
    if out is not None:
        _check_out(out, options.file)

    from fishexp.run.inference import is_on_images, predict, predict_images

    loading = {
        "batch_size": options.batch_size, "device": options.device, "epoch": options.epoch,
        "allow_code": options.allow_code, "allow_download": options.allow_download,
    }  # fmt: skip
    if is_on_images(options.run):
        files = _image_files(options)
        columns: Mapping[str, Sequence[Any]] = {"file": list(map(str, files))}
        predicted = predict_images(options.run, files, **loading)
    else:
        from fishexp.data.tables import read_table

        table = read_table(options.file)
        columns = table.columns
        _check_columns(options.file, columns, [_PREDICTED])  # before what takes long
        predicted = predict(options.run, table, text=options.text, **loading)
    added = [_PREDICTED, *(f"probability_{name}" for name in predicted.names)]
    _check_columns(options.file, columns, added)
    answers = predicted.answers()
    text = io.StringIO()
    writer = csv.writer(text, delimiter=_SEPARATORS[out.suffix.lower()] if out else ",", lineterminator="\n")
    writer.writerow([*columns, *added])
    for row, outputs in enumerate(predicted.outputs.tolist()):
        cells = [_cell(values[row]) for values in columns.values()]
        writer.writerow([*cells, _answer(answers[row]), *(map(_answer, outputs) if predicted.names else ())])
    _write(text.getvalue(), out, len(answers))


def _image_files(options: argparse.Namespace) -> list[Path]:
    """List the images that are named: one, or those in a folder."""
    from fishexp.data.image_files import ENDINGS, image_files

    path: Path = options.file
    if options.text is not None:
        raise FishexpError(f"--text {' '.join(options.text)}: {options.run} is a run on images, which have no columns")
    if not path.exists():
        raise FishexpError(f"{path} is missing; name an image, or a folder of images")
    if not path.is_dir() and path.suffix.lower() not in ENDINGS:
        raise FishexpError(f"{path}: {options.run} is a run on images, which end in {', '.join(ENDINGS)}")
    files = image_files(path) if path.is_dir() else [path]
    if not files:
        raise FishexpError(f"{path} holds no images ({', '.join(ENDINGS)})")
    return files


def _check_columns(file: Path, columns: Mapping[str, Sequence[Any]], added: Sequence[str]) -> None:
    """Refuse a file that has a column of the name of one that is added."""
    if double := [name for name in added if name in columns]:
        raise FishexpError(f"{file} has a column {double[0]!r} already; rename it")


def _cell(value: Any) -> str:
    """Write a value of a column of the file as it is: a number with all its digits, a date without quotes."""
    if value is None:
        return ""
    return json.dumps(value, default=str) if isinstance(value, bool | list | dict) else str(value)


def _answer(value: str | float) -> str:
    """Write what a model says: a name, or a number with six digits."""
    return value if isinstance(value, str) else f"{value:.6g}"


def _check_out(out: Path, file: Path) -> None:
    """Refuse an output that could not be written, before the work."""
    if out.suffix.lower() not in _SEPARATORS:
        raise FishexpError(f"-o {out}: predictions are written as {' or '.join(_SEPARATORS)}")
    if not out.absolute().parent.is_dir():
        raise FishexpError(f"-o {out}: there is no folder {out.absolute().parent}; make it first")
    if out.exists() and file.exists() and out.samefile(file):
        raise FishexpError(f"-o {out} is the file of the examples; give another")


def _write(text: str, out: Path | None, count: int) -> None:
    if out is None:
        print(text, end="")
        return
    from fishexp.system.atomic import replacing

    with replacing(out) as new:
        new.write_text(text, encoding="utf-8", newline="")
    print(f"{out}: {count} predictions")


if __name__ == "__main__":
    sys.exit(main())
