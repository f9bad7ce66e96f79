"""What a command line program says and returns where its work cannot be done."""

import os
import subprocess
import sys

import pytest

from fishexp.errors import FishexpError
from fishexp.system.program import carry_out


def raising(error: BaseException):
    def work() -> int:
        raise error

    return work


@pytest.mark.parametrize(("returned", "status"), [(None, 0), (0, 0), (1, 1), (130, 130)])
def test_the_status_is_that_of_the_work(returned: int | None, status: int, capsys) -> None:
    assert carry_out("fishexp.this", lambda: returned) == status
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (FishexpError("keep=2: above 1;\n give less"), 2, "keep=2: above 1; give less"),
        (FileNotFoundError(2, "No such file or directory", "a.csv"), 2, "a.csv: No such file or directory"),
        (OSError("disk gone"), 2, "disk gone"),
        (ModuleNotFoundError("No module", name="peft.tuners"), 2, "peft is not installed; pip install 'fishexp[lora]'"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_what_the_user_can_mend_is_one_line(error: BaseException, status: int, line: str, capsys) -> None:
    assert carry_out("fishexp.this", raising(error)) == status
    assert capsys.readouterr() == ("", f"fishexp.this: {line}\n")


@pytest.mark.parametrize("error", [ZeroDivisionError("ours"), ModuleNotFoundError("No module", name="nosuch")])
def test_what_is_our_fault_is_not_hidden(error: Exception) -> None:
    with pytest.raises(type(error)):
        carry_out("fishexp.this", raising(error))


@pytest.mark.parametrize("lines", [1, 100_000])
def test_a_reader_of_the_output_who_goes_ends_it_in_silence(lines: int) -> None:
    """Few lines are still in the buffer when the work is done."""
    work = f"lambda: print('more\\n' * {lines})"
    program = "import sys; from fishexp.system.program import carry_out; print('first', flush=True); sys.stdin.read(); "
    program += f"sys.exit(carry_out('this', {work}))"
    buffered = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    command, pipe = [sys.executable, "-c", program], subprocess.PIPE
    with subprocess.Popen(command, env=buffered, stdin=pipe, stdout=pipe, stderr=pipe) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"first\n"
        process.stdout.close()
        process.stdin.close()
        assert process.stderr.read() == b""
        assert process.wait() == 1
