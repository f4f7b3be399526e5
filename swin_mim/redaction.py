"""What must not get into a published file: the folders of the machine that a model was made on."""

import re


def without_paths(text: str) -> str:
    """Absolute paths -> their last part, whoever's they are: "/home/x/images" -> "images".

    Paths of Linux, macOS and Windows, under ~ and after file://; one with spaces only in quotes or after "key: " to
    the end of a line. A home folder itself becomes ~. URLs, names of the Hub and relative paths stay.
    """
    return _PATH.sub(lambda match: _last_part(match[0]), text)


def name_of(path: str) -> str:
    """`without_paths` of a text that is one path and nothing else, which may hold spaces."""
    return without_paths(f'"{path}"')[1:-1]


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
    """`without_paths`, where a value without quotes may hold spaces: "source: /home/x/my images"."""
    text = _YAML_VALUE.sub(lambda match: match[1] + without_paths(f'"{match[2]}{match[3]}"')[1:-1], text)
    return without_paths(text)
