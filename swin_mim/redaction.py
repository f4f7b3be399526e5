"""Hides what must not get into logs, messages, run folders and cards: secrets, and the folders of the machine."""

import logging
import re
from pathlib import Path

_TOKEN = re.compile(r"\bhf_(?:(?:oauth|jwt|app)_[\w.\-]+|[A-Za-z0-9]{16,})")


def without_tokens(text: str, *tokens: str | None) -> str:
    """Write every token in a text, these and whatever looks like one of the Hub's, as "hf_..."."""
    for token in tokens:
        if token:
            text = text.replace(token, "hf_...")
    return _TOKEN.sub("hf_...", text)


def without_secrets(text: str, *tokens: str | None) -> str:
    """As `without_tokens`; users and passwords in addresses become "***"."""
    return re.sub(r"(?<=://)[^/\s@]+@", "***@", without_tokens(text, *tokens))


def without_home(text: str) -> str:
    """Write the home folder as "~", which every setting that is a path understands."""
    try:
        home = str(Path.home()).rstrip("/")
    except RuntimeError:  # a container's user that has neither HOME nor a name
        return text
    return re.sub(rf"(?<![\w./~-]){re.escape(home)}(?![\w.-])", "~", text) if home else text


class RedactingFormatter(logging.Formatter):
    """Formats a log record, traceback included, without secrets and without the home folder."""

    def format(self, record: logging.LogRecord) -> str:
        return without_home(without_secrets(super().format(record)))


def public_url(url: str) -> str:
    """Drop the user and the query, which may be a signature, from a URL; a path stays as it is."""
    if "://" not in url:
        return url
    url = url.split("?")[0] if url.startswith("http") else url  # elsewhere ? is part of a pattern
    return re.sub(r"(?<=://)[^/@]*@", "", url)


def with_public_urls(text: str) -> str:
    """As `without_secrets`; of http(s) addresses anywhere in a text the query, which may be a signature, goes too."""
    return _QUERY.sub(r"\1", without_secrets(text))


def without_paths(text: str) -> str:
    """Shorten absolute paths, whoever's they are, to their last part: "/home/x/images" -> "images".

    Paths of Linux, macOS and Windows, under ~ and after file://; one with spaces only in quotes or after "key: " to
    the end of a line. A home folder itself becomes ~. URLs, names of the Hub and relative paths stay.
    """
    return _PATH.sub(lambda match: _last_part(match[0]), text)


def name_of(path: str) -> str:
    """Apply `without_paths` to a text that is one path and nothing else, which may hold spaces."""
    return without_paths(f'"{path}"')[1:-1]


_QUERY = re.compile(r"""(https?://[^\s?"'<>]*)\?[^\s"'<>]*""", re.IGNORECASE)
_START = r"(?:(?:file://)?(?:~(?:[A-Za-z_][\w.-]*)?/|(?<!:)/+|(?<=:)/|(?<=file://)/)|[A-Za-z]:[\\/]+|\\\\)(?=[^\s/\\])"
_PATH = re.compile(
    rf"""(?<=["']){_START}[^"'\n]*(?=["'])"""  # in quotes a path may hold spaces
    # elsewhere it ends at a space without a backslash, or where the next path of a list starts
    rf"""|(?<![^\s"'`=(\[{{,;:|]){_START}(?:\\[ ]|[^\s"'`:,;]|[:,;](?![/~]))*"""
)
_HOME = re.compile(r"(?:[A-Za-z]:)?[\\/]+(?:home|Users)[\\/]+[^\\/]+[\\/]*")
_YAML_VALUE = re.compile(
    r"""^([ \t]*(?:- +)*(?:[\w.-]+: +)?)([~/]|[A-Za-z]:[\\/])([^"'#\n]*?)(?=[ \t]*(?:#|$))""", re.MULTILINE
)


def _last_part(path: str) -> str:
    path = path.removeprefix("file://")
    if _HOME.fullmatch(path):
        return "~"
    windows = not path.startswith(("/", "~"))
    parts = re.split(r"[\\/]+" if windows else "/+", path)
    return next(part for part in reversed(parts) if part)


def yaml_without_paths(text: str) -> str:
    """Apply `without_paths` where a value without quotes may hold spaces: "source: /home/x/my images"."""
    text = _YAML_VALUE.sub(lambda match: match[1] + name_of(match[2] + match[3]), text)
    return without_paths(text)
