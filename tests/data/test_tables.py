"""Files of examples are read as they are meant, and what cannot be right gets a line that says where."""

import json
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from fishexp.data.tables import Table, read_table
from tests.support.checks import refusal

ROWS = [("plain", "a"), ('says "no", and', "b"), ("two\nlines", "a"), ("Über 5 € – naïve", "b"), (" blanks ", "a")]
QUOTED = 'text,label\nplain,a\n"says ""no"", and",b\n"two\nlines",a\nÜber 5 € – naïve,b\n blanks ,a\n'


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def rows(table: Table) -> list[tuple[object, ...]]:
    assert list(table.columns) == ["text", "label"]
    return list(zip(*table.columns.values(), strict=True))


@pytest.mark.parametrize("bom", ["", "\ufeff"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_a_csv(bom: str, newline: str, tmp_path: Path) -> None:
    content = bom + QUOTED.replace("\n", newline)
    table = read_table(write(tmp_path / "a.csv", content))
    assert rows(table) == [(text.replace("\n", newline), label) for text, label in ROWS]
    assert table.lines == [2, 3, 4, 6, 7]
    assert table.place(3) == f"{tmp_path}/a.csv line 6"


def test_a_csv_of_a_spreadsheet_with_semicolons(tmp_path: Path) -> None:
    table = read_table(write(tmp_path / "a.csv", 'text;label\none, two;a\n"x;y";b\n'))
    assert rows(table) == [("one, two", "a"), ("x;y", "b")]


def test_blank_rows_and_columns_without_a_name_are_left_out(tmp_path: Path) -> None:
    """As pandas writes its index, and spreadsheets the rest of their grid."""
    table = read_table(write(tmp_path / "a.csv", ",text,label\n\n0,x,a\n,,\n \n , ,\n1,y,b\n\n"))
    assert rows(table) == [("x", "a"), ("y", "b")]
    assert table.lines == [3, 7]


def test_quotes_in_a_tsv_mean_something_where_all_are_well_formed(tmp_path: Path) -> None:
    plain = 'text\tlabel\n"a lone one\ta\nand "another"\tb\n"two" words\ta\n'
    assert rows(read_table(write(tmp_path / "a.tsv", plain))) == [
        ('"a lone one', "a"), ('and "another"', "b"), ('"two" words', "a"),
    ]  # fmt: skip
    quoted = 'text\tlabel\n"a ""lone"" one"\ta\n"with\ttab"\tb\n"two\nlines"\ta\n'
    assert rows(read_table(write(tmp_path / "b.tsv", quoted))) == [
        ('a "lone" one', "a"), ("with\ttab", "b"), ("two\nlines", "a"),
    ]  # fmt: skip


def test_a_long_text(tmp_path: Path) -> None:
    assert rows(read_table(write(tmp_path / "a.csv", f"text,label\n{'x' * 200_000},a\n")))[0][0] == "x" * 200_000


def test_json(tmp_path: Path) -> None:
    objects = [{"text": "x\u2028y", "label": 1}, {"label": None, "text": "z", "more": [1]}]
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in objects)
    files = [
        write(tmp_path / "a.jsonl", f"\n{lines}\n\n"),
        write(tmp_path / "a.json", lines),
        write(tmp_path / "b.json", json.dumps(objects)),
    ]
    for file in files:
        assert read_table(file).columns == {"text": ["x\u2028y", "z"], "label": [1, None], "more": [None, [1]]}
    assert read_table(files[0]).place(1) == f"{files[0]} line 3"
    assert read_table(files[2]).place(1) == f"{files[2]} row 2"


def test_parquet(tmp_path: Path) -> None:
    import datasets

    columns = {"text": ["x", "y"], "label": [1, 0], "__index_level_0__": [5, 6]}
    parquet.write_table(pa.table(columns), tmp_path / "a.parquet")
    table = read_table(tmp_path / "a.parquet")
    assert (rows(table), table.classes) == ([("x", 1), ("y", 0)], {})
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    datasets.Dataset.from_dict({"text": ["x", "y"], "label": [1, 0]}, features=features).to_parquet(
        str(tmp_path / "b.parquet")
    )
    table = read_table(tmp_path / "b.parquet")
    assert (rows(table), table.classes) == ([("x", 1), ("y", 0)], {"label": ("no", "yes")})


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", None, " is missing; name a file of examples"),
        ("a.csv", "", " is empty"),
        ("a.csv", "\n\n", " is empty"),
        ("a.csv", "\ufeff", " is empty"),
        ("a.csv", "text,label\n", " holds no examples"),
        ("a.csv", ",\n1,2\n", " holds no examples"),
        ("a.csv", "text,text\na,b\n", " line 1: two columns are called 'text'; rename one"),
        (
            "a.csv",
            "text,label\na,b\nc,d,e\nf\n",
            " line 3 has 3 columns, its header 2 (2 of 3 rows are so); a value that holds the separator stands in "
            "quotes",
        ),
        (
            "a.csv",
            'text,label\na,b\n"open,b\nc,d\n',
            " line 3: unexpected end of data; a quote that opens a value is to be closed",
        ),
        (
            "a.csv",
            'text,label\n"a"b,c\n',
            " line 2: ',' expected after '\"'; a quote that opens a value is to be closed",
        ),
        ("a.csv", "text,label\ncaf\xe9,b\n".encode("latin-1"), " line 2 is not UTF-8 text; save it as UTF-8"),
        ("a.csv", "text,label\na,b\n".encode("utf-16"), " line 1 is not UTF-8 text; save it as UTF-8"),
        ("a.xlsx", "x", ": files of examples end in .csv, .tsv, .jsonl, .json, .parquet; save it as one of these"),
        ("a.jsonl", '{"text": 1}\n{"text"\n', " line 2 is no JSON: Expecting ':' delimiter: line 1 column 8 (char 7)"),
        ("a.jsonl", '{"text": 1}\n\n[1]\n', ' line 3 is no object such as {"text": ..., "label": ...}'),
        ("a.json", "[1]", ' row 1 is no object such as {"text": ..., "label": ...}'),
        ("a.json", "[1", ": Expecting ',' delimiter: line 1 column 3 (char 2)"),
        ("a.jsonl", "{}", " holds no examples"),
        ("a.json", "[]", " holds no examples"),
        ("a.parquet", "no parquet", " cannot be read: "),
    ],
)
def test_files_that_cannot_be_read(name: str, content: str | bytes | None, message: str, tmp_path: Path) -> None:
    file = tmp_path / name
    if content is not None:
        write(file, content)
    found = refusal(read_table, file)
    assert found.startswith(f"{file}{message}") if message.endswith(": ") else found == f"{file}{message}"


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    assert refusal(read_table, tmp_path) == f"{tmp_path} is a folder; name a file of examples"
