"""What the command line programs have in common: the exit status, and a line for what the user can mend."""

import os
import sys
from collections.abc import Callable

from fishexp.errors import FishexpError, how_to_install

# exit statuses; the last as a shell has it for Ctrl-C
FAILED, USER_ERROR, INTERRUPTED = 1, 2, 130


def carry_out(name: str, work: Callable[[], int | None], interrupted: Callable[[], str] = lambda: "interrupted") -> int:
    """Do the work of a program, and end it with a line on stderr where it cannot be done.

    Args:
        name: Of the program, which begins the line.
        work: Returns the exit status; None is 0.
        interrupted: Tells the text of the line after Ctrl-C.

    Returns:
        The exit status: that of ``work``; 2 for a user's mistake, a package that is not installed, or a file that
        cannot be read or written; 1 if the reader of the output, ``| head`` say, has gone; 130 after Ctrl-C.
    """
    try:
        status = work() or 0
        sys.stdout.flush()  # so that a reader who has gone is noticed here
        return status
    except ModuleNotFoundError as error:
        if (hint := how_to_install(error)) is None:
            raise
        line, status = hint, USER_ERROR
    except FishexpError as error:
        line, status = str(error), USER_ERROR
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes once more
        return FAILED
    except OSError as error:  # a folder that cannot be made, say
        line, status = f"{error.filename}: {error.strerror}" if error.filename else str(error), USER_ERROR
    except KeyboardInterrupt:
        line, status = interrupted(), INTERRUPTED
    print(f"{name}: {' '.join(line.split())}", file=sys.stderr)
    return status
