"""Numbers, times and settings as a page shows them."""

import math
from datetime import datetime
from typing import Any

from swin_mim.redaction import public_url, without_secrets


def number(value: float | None) -> str:
    """0.31234 -> "0.3123", 12800 -> "12,800", 0.00002 -> "2e-05"; "–" for None, "not finite" for NaN and infinities."""
    if value is None:
        return "–"
    if not math.isfinite(value):
        return "not finite"
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}"
    if abs(value) >= 100:
        return f"{value:,.1f}"
    return f"{value:.4g}" if abs(value) < 0.001 else f"{value:.4f}".rstrip("0").rstrip(".")


def share(value: float | None) -> str:
    """0.5234 -> "52.3 %"."""
    return "–" if value is None else "not finite" if not math.isfinite(value) else f"{100 * value:.1f} %"


def duration(seconds: float) -> str:
    """3725 -> "1 h 2 min", 65 -> "1 min 5 s"."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = [(days, "d"), (hours, "h"), (minutes, "min"), (seconds, "s")]
    shown = [f"{count} {unit}" for count, unit in parts if count]
    return " ".join(shown[:2]) or "0 s"


def file_size(count: int) -> str:
    """1234567 -> "1.2 MB"."""
    size, units = float(count), ["bytes", "kB", "MB", "GB"]
    while size >= 1000 and len(units) > 1:
        size, units = size / 1000, units[1:]
    return f"{size:.0f} {units[0]}" if units[0] == "bytes" or size >= 100 else f"{size:.1f} {units[0]}"


def moment(stamp: str | None) -> str:
    """ "2026-01-31T12:00:00+0100" -> "31 Jan 2026, 12:00"; as it is where it is no time."""
    if not stamp:
        return ""
    try:
        time = datetime.strptime(stamp, "%Y-%m-%dT%H:%M:%S%z")
    except ValueError:
        return stamp
    return f"{time.day} {time:%b %Y, %H:%M}"


def setting(value: Any) -> str:
    """A setting as a command line would have it: True -> "true", (0.67, 1) -> "0.67 1", None -> "none".

    Of an address without users, passwords and signatures: pages are passed around.
    """
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return " ".join(map(setting, value)) or "(empty)"
    return f"{value:g}" if isinstance(value, float) else public_url(without_secrets(str(value)))
