"""Failures that one process writes down and others read: one line, of a known kind, and the first of them counts."""

import json
from pathlib import Path
from typing import Any

import pytest
from torch.distributed import FileStore  # pyright: ignore[reportPrivateImportUsage]

from fishexp.distributed import failures
from fishexp.errors import BusyError, FishexpError, RunFailed


def report_of(facts: dict[str, Any], error: BaseException | None = None) -> str:
    return json.dumps({"error": error and failures.from_error(error), "facts": facts})


OURS = {"commit": "abc", "torch": "2.15", "resume": False, "regime": {"lr": 0.2, "workers": 2}, "seed": 0}


@pytest.mark.parametrize(
    ("theirs", "line"),
    [
        ({**OURS}, None),
        ({**OURS, "commit": "abd"}, "worker 1 has commit=abd, worker 0 has abc; all need the same code and command"),
        ({**OURS, "commit": None}, "worker 1 has commit=None, worker 0 has abc"),
        ({**OURS, "torch": "2.11"}, "worker 1 has torch=2.11, worker 0 has 2.15"),
        ({**OURS, "resume": True}, "worker 1 has resume=True, worker 0 has False"),
        ({**OURS, "regime": {"lr": 0.1, "workers": 2}}, "worker 1 has regime.lr=0.1, worker 0 has 0.2"),
        ({**OURS, "regime": {"lr": 0.2}}, "worker 1 has regime.workers=None, worker 0 has 2"),
        ({**OURS, "more": 1}, "worker 1 has more=1, worker 0 has None"),
    ],
)
def test_the_first_fact_that_is_not_the_same_everywhere(theirs: dict[str, Any], line: str | None) -> None:
    failure = failures.disagreement([report_of(OURS), report_of(theirs), report_of(OURS)])
    if line is None:
        assert failure is None
    else:
        assert failure is not None
        error = failures.to_error(failure)
        assert isinstance(error, FishexpError)
        assert str(error).startswith(line)


def test_an_error_counts_before_facts_and_says_whose_it_is() -> None:
    failure = failures.disagreement(
        [report_of({}), report_of(OURS, RunFailed("broken")), report_of({}, FishexpError("wrong"))]
    )
    assert failure is not None
    error = failures.to_error(failure)
    assert (type(error), str(error)) == (RunFailed, "worker 1: broken")
    failure = failures.disagreement([report_of({}, BusyError("busy")), report_of({})])
    assert failure is not None
    error = failures.to_error(failure)
    assert (type(error), str(error)) == (BusyError, "busy")


@pytest.mark.parametrize("strange", ["", "[]", "{}", '{"error": {"kind": 1}, "facts": {}}', '{"error": null}', "null"])
def test_what_makes_no_sense_is_an_answer_too(strange: str) -> None:
    failure = failures.disagreement([report_of(OURS), strange])
    assert failure is not None
    assert "different versions of fishexp" in failure["text"]


def test_a_failure_gives_one_line_of_a_known_kind() -> None:
    failure = failures.from_error(ZeroDivisionError("over\nnought"), rank=2)
    error = failures.to_error(failure)
    assert (type(error), str(error)) == (
        RunFailed,
        "worker 2: ZeroDivisionError: over; debug=true shows where",
    )
    assert "over\nnought" in error.__notes__[0]  # the traceback
    assert isinstance(failures.to_error(failures.from_error(KeyboardInterrupt())), KeyboardInterrupt)
    strange = failures.to_error({"kind": "SystemExit", "text": "a\nb" * 9999, "trace": ""})
    assert type(strange) is RunFailed
    assert len(str(strange)) == 2000
    assert "\n" not in str(strange)


def test_the_first_failure_stays(tmp_path: Path) -> None:
    store = FileStore(str(tmp_path / "failures"))
    assert failures.find(store) is None
    first, second = failures.from_error(FishexpError("first")), failures.from_error(RunFailed("second"))
    assert failures.report(store, first) == first
    assert failures.report(store, second) == first
    assert failures.find(store) == first
