"""What must not get into the files of a run: a token of the Hub, and whose home folder it was."""

import logging
import re
from pathlib import Path

_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{16,}")


def without_secrets(text: str) -> str:
    """The home folder -> "~", which every setting that is a path understands; tokens of the Hub -> "hf_..."."""
    try:
        home = str(Path.home()).rstrip("/")
    except RuntimeError:  # a container's user that has neither HOME nor a name
        home = ""
    if home:
        text = re.sub(rf"(?<![\w./~-]){re.escape(home)}(?![\w.-])", "~", text)
    return _TOKEN.sub("hf_...", text)


class PrivateFormatter(logging.Formatter):
    """Formats a log record, traceback included, without either."""

    def format(self, record: logging.LogRecord) -> str:
        return without_secrets(super().format(record))
