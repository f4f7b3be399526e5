"""What a user can mend, said in one line."""

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn


class UserError(ValueError):
    """A mistake in a setting, a file or a data set. Names the key or file, the values, and the way out.

    Args:
        local: only this process meets it, so that it has to speak up even if it is not the first.
    """

    def __init__(self, message: str, *, local: bool = False) -> None:
        super().__init__(message)
        self.local = local


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are a `UserError`."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Print a `UserError` as one line and leave with exit code 2. Any other error keeps its traceback.

    Of several processes started together only the first prints an error that all of them meet.
    """
    try:
        yield
    except UserError as error:
        if error.local or os.environ.get("RANK", "0") == "0":
            print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
