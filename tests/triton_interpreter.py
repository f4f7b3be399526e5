"""Triton's interpreter without what it does over and over again, for the same results."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from triton.runtime import interpreter


def prepare_the_language_once() -> None:
    """Replace the language's functions by those of the interpreter once for every launch of a kernel.

    As it comes, it does so at every call of a function inside, and looks through all of the language for it.
    """
    if not hasattr(interpreter, "_LangPatchScope"):  # a Triton that works otherwise
        return
    prepare: Callable[[Any], Any] = interpreter._patch_lang
    prepared: set[int] = set()

    class Scope:
        """What a launch gives back at its end."""

        def __init__(self, scope: Any = None) -> None:
            self.scope = scope

        def restore(self) -> None:
            prepared.clear()
            if self.scope is not None:
                self.scope.restore()

    def prepare_once(function: Any) -> Scope:
        module = id(function.__globals__)
        if module in prepared:
            return Scope()
        prepared.add(module)
        return Scope(prepare(function))

    interpreter._patch_lang = prepare_once


@contextmanager
def overflow_checked(on: bool) -> Iterator[None]:
    """Check every sum and product of whole numbers for overflow, which takes nearly half of the time, or do not."""
    builder = interpreter.interpreter_builder
    before = builder.options
    builder.options = replace(before, sanitize_overflow=on)
    yield
    builder.options = before
