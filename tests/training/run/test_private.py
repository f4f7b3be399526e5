import logging
import sys
from pathlib import Path

import pytest

from swin_mim.training.run.private import PrivateFormatter, without_secrets

TOKEN = "hf_" + "aB3" * 11


@pytest.fixture(autouse=True)
def _home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/jo.x")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("source: /home/jo.x/photos", "source: ~/photos"),
        ("root: /home/jo.x", "root: ~"),
        ("'/home/jo.x/a b' and (/home/jo.x/c)", "'~/a b' and (~/c)"),
        ("/home/jo.xy/photos", "/home/jo.xy/photos"),
        ("/home/joax/photos", "/home/joax/photos"),
        ("/data/home/jo.x/photos", "/data/home/jo.x/photos"),
        ("/data/photos ~/x", "/data/photos ~/x"),
        (f"Authorization: Bearer {TOKEN}, again {TOKEN}", "Authorization: Bearer hf_..., again hf_..."),
        ("hf_hub_download", "hf_hub_download"),
    ],
)
def test_homes_and_tokens(text: str, expected: str) -> None:
    assert without_secrets(text) == expected
    assert without_secrets(expected) == expected


def test_a_home_at_the_root_hides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/")
    assert str(Path.home()) == "/"
    assert without_secrets("/data/photos") == "/data/photos"


def test_tracebacks_too() -> None:
    try:
        raise OSError(f"/home/jo.x/photos {TOKEN}")
    except OSError:
        record = logging.LogRecord("swin_mim", logging.ERROR, "f", 1, "in %s", ("/home/jo.x",), sys.exc_info())
    text = PrivateFormatter("%(message)s").format(record)
    assert text.startswith("in ~\nTraceback")
    assert text.endswith("OSError: ~/photos hf_...")
