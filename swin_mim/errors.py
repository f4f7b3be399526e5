"""What a user can mend, said in one line."""

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

MISTAKE = 2
"""Exit code: a setting, a file or a data set is wrong; the same command will not do better."""
DATA_ERROR = 65
"""Exit code: the numbers or the images are so bad that going on makes no sense (EX_DATAERR)."""
UNAVAILABLE = 69
"""Exit code: where the images lie could not be reached; start again when it can (EX_UNAVAILABLE)."""
PEER_LOST = 70
"""Exit code: another process died, or its weights are not what they should be; start again (EX_SOFTWARE)."""
CANNOT_WRITE = 73
"""Exit code: checkpoints cannot be written; make room and start again (EX_CANTCREAT)."""
STOPPED = 75
"""Exit code: asked to stop, with a checkpoint; start again to go on (EX_TEMPFAIL)."""
INTERRUPTED = 130
"""Exit code: interrupted before there was anything to save."""


class UserError(ValueError):
    """A mistake in a setting, a file or a data set. Names the key or file, the values, and the way out.

    Args:
        local: only this process meets it, so that it has to speak up even if it is not the first.
        code: the exit code that it ends the program with.
    """

    def __init__(self, message: str, *, local: bool = False, code: int = MISTAKE) -> None:
        super().__init__(message)
        self.local = local
        self.code = code


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are a `UserError`."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


@contextmanager
def one_line_errors(interrupted: str = "interrupted") -> Iterator[None]:
    """Print a `UserError` as one line and leave with its exit code; Ctrl-C too. Any other error keeps its traceback.

    Of several processes started together only the first prints an error that all of them meet, or that it was
    interrupted.
    """
    try:
        yield
    except UserError as error:
        if error.local or os.environ.get("RANK", "0") == "0":
            print(f"error: {error}", file=sys.stderr)
        sys.exit(error.code)
    except KeyboardInterrupt:
        if os.environ.get("RANK", "0") == "0":
            print(interrupted, file=sys.stderr)
        sys.exit(INTERRUPTED)
