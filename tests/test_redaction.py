import logging
import sys
from pathlib import Path

import pytest

from swin_mim.redaction import (
    RedactingFormatter,
    public_url,
    with_public_urls,
    without_home,
    without_paths,
    without_secrets,
    without_tokens,
)

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
    for hidden in (text, expected):
        assert without_home(without_tokens(hidden)) == expected


def test_a_home_at_the_root_hides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/")
    assert str(Path.home()) == "/"
    assert without_home("/data/photos") == "/data/photos"


def test_tracebacks_too() -> None:
    try:
        raise OSError(f"/home/jo.x/photos {TOKEN}")
    except OSError:
        record = logging.LogRecord("swin_mim", logging.ERROR, "f", 1, "in %s", ("/home/jo.x",), sys.exc_info())
    text = RedactingFormatter("%(message)s").format(record)
    assert text.startswith("in ~\nTraceback")
    assert text.endswith("OSError: ~/photos hf_...")


def test_tokens_and_passwords_are_taken_out_of_any_text() -> None:
    text = "a hf_AbCdEfGhIjKlMnOpQrSt, hf_jwt_eyJh.bG-ci_9 and s3cret at http://me:pass@host/x; hf_hub_download stays"
    expected = "a hf_..., hf_... and hf_... at http://***@host/x; hf_hub_download stays"
    assert without_secrets(text, "s3cret", None) == expected


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://me:secret@host/a.tar?X-Signature=1", "https://host/a.tar"),
        ("s3://bucket/a?.tar", "s3://bucket/a?.tar"),
        ("/data/a?b@c", "/data/a?b@c"),
    ],
)
def test_an_address_is_shown_without_user_and_signature(url: str, expected: str) -> None:
    assert public_url(url) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/home/x/images", "images"),
        ("/images", "images"),
        ("/home/x/images/", "images"),
        ("~/data/images", "images"),
        ("~x/data/images", "images"),
        ("file:///home/x/images", "images"),
        (r"C:\Users\x\my_images", "my_images"),
        ("C:/Users/x/images", "images"),
        (r"\\server\share\images", "images"),
        ("/home/jane", "~"),
        (r"C:\Users\jane", "~"),
        ("--data.source /home/x/images --run.name a", "--data.source images --run.name a"),
        ("--data.source=/home/x/images", "--data.source=images"),
        ("--data.source '/home/x y/my images'", "--data.source 'my images'"),
        ('"/home/x y/my images", "/b/c"', '"my images", "c"'),
        (r"ls /home/x\ y/my\ images", r"ls my\ images"),
        ("A=/x/y:/z/w,~/v", "A=y:w,v"),
        ("[/a/b, /c/d]", "[b, d]"),
        ("(see /a/b).", "(see b)."),
        ("in /data/x.", "in x."),
        ("`/data/x`", "`x`"),
        ("/opt/env/bin/python recipes/pretrain.py", "python recipes/pretrain.py"),
        ("two\n/a/b\nlines", "two\nb\nlines"),
    ],
)
def test_absolute_paths_become_their_last_part(text: str, expected: str) -> None:
    assert without_paths(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "32 images/s on 2 / 3 of the cores, ~3/4 of them and/or more",
        "https://huggingface.co/user/name and hf://datasets/user/name",
        "user/name",
        "recipes/configs/demo.yaml",
        "./images ../images",
        "scale: 1/2, 12:30",
        "</details>",
        "",
    ],
)
def test_what_is_no_absolute_path_stays(text: str) -> None:
    assert without_paths(text) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "data.source: 'https://me:pass@host/a.tar?X-Amz-Signature=abc' -> 'HTTP://h/{0..9}.tar?sig=d&x=y'",
            "data.source: 'https://***@host/a.tar' -> 'HTTP://h/{0..9}.tar'",
        ),
        (f"hub {TOKEN}, s3://user:key@bucket/a?.tar", "hub hf_..., s3://***@bucket/a?.tar"),
        (
            "['http://h/a?k=1', 'http://h/b?k=2'], (https://h/c?k=3) why?",
            "['http://h/a', 'http://h/b'], (https://h/c why?",
        ),
        ("optim.lr: 0.1 -> 0.2", "optim.lr: 0.1 -> 0.2"),
    ],
)
def test_addresses_within_a_line_lose_user_and_query(text: str, expected: str) -> None:
    assert with_public_urls(text) == expected == with_public_urls(expected)
