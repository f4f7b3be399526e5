"""What pages of their own are made of: templates, and pictures as text that they hold. Needs no torch."""

import base64
import io
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from PIL import Image


def template(folder: Path, name: str) -> Template:
    """A template of a folder: what it is filled with is text, unless it says that it is HTML, and nothing may miss."""
    return _environment(folder).get_template(name)


@cache
def _environment(folder: Path) -> Environment:
    return Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def webp(picture: Image.Image, quality: int, method: int = 4) -> bytes:
    """A file of WebP; `method`, from 0 to 6, is how long it may take to be small."""
    held = io.BytesIO()
    picture.save(held, "WEBP", quality=quality, method=method)
    return held.getvalue()


def data_address(file: bytes) -> str:
    """The address that holds a file of WebP itself."""
    return f"data:image/webp;base64,{base64.b64encode(file).decode()}"
