"""Files of records, for the tests of command lines."""

import json

import pytest


@pytest.fixture
def written(tmp_path):
    def write(records, name="records.jsonl"):
        path = tmp_path / name
        path.write_text("".join(json.dumps(line) + "\n" for line in records))
        return path

    return write
