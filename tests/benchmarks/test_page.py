"""The page: tables say what the records say."""

from benchmarks import page
from benchmarks.__main__ import HOME
from benchmarks.records import read


def test_a_repeated_setting_shows_its_newest_numbers_and_devices_stay_apart() -> None:
    own = {
        "benchmark": "step",
        "model": "m",
        "batch": 1,
        "length": None,
        "examples": None,
        "keep": 0.5,
        "mask": "random",
    }
    own |= {"precision": "fp32", "rounds": 9, "total": 4, "trained": 2, "state_bytes": 8, "threads": 2}
    own |= {"commit": "abc", "ended": "2026-01-01T00:00:00+00:00", "versions": {"torch": "2"}}
    slow, fast = (
        {"seconds": [1.0, 2.0, 3.0], "ratio": [1.0, 2.0, 3.0]},
        {"seconds": [0.1, 0.2, 0.3], "ratio": [1.0] * 3},
    )
    cpu, gpu = {"device": "EPYC", "peak_bytes": None}, {"device": "NVIDIA H200", "peak_bytes": 3 * 2**20}
    lines = [own | {"contender": "dense"} | rest for rest in (slow | cpu, slow | gpu, fast | cpu)]
    text = page.markdown(page.newest(lines))
    assert "## EPYC, 2 threads" in text
    assert "## NVIDIA H200, 2 threads" in text
    rows = [line for line in text.splitlines() if line.startswith("| m, 1 images, keep 0.5 | fp32")]
    assert [row.split("|")[3].strip() for row in rows] == ["0.2", "2"]
    assert text.count("peak fp32, MiB") == 1
    assert page.markdown([]).strip() == "No records yet: `make bench`."


def test_the_readme_is_what_its_records_give() -> None:
    text = (HOME / "README.md").read_text(encoding="utf-8")
    found = page.newest(read(HOME / "records.jsonl"))
    assert text.partition(page.START)[2].partition(page.END)[0].strip() == page.markdown(found).strip()
