"""Chromium without a window, driven through a pipe by the DevTools protocol: nothing but the browser is needed.

https://chromedevtools.github.io/devtools-protocol/ describes the methods and events.
"""

import base64
import json
import os
import queue
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
VARIABLE = "SWIN_MIM_BROWSER"
"""The browser to take; where it is set, what needs a browser fails without it instead of being skipped."""
PATIENCE = 60
"""Seconds for an answer."""


def browser_path() -> str | None:
    """The program, None if there is none.

    Raises:
        FileNotFoundError: the one that is asked for is not there.
    """
    if wanted := os.environ.get(VARIABLE):
        found = shutil.which(wanted)
        if found is None:
            raise FileNotFoundError(f"{VARIABLE} is {wanted}, and there is no such program")
        return found
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Tab:
    """One page, and everything that it asked for, said, or did wrong."""

    def __init__(self, write: int, read: int) -> None:
        self._write, self._answers = write, dict[int, queue.Queue[dict[str, Any]]]()
        self._events: queue.Queue[dict[str, Any]] = queue.Queue()
        self._count, self._session = 0, ""
        self.requests: list[str] = []
        self.faults: list[str] = []
        threading.Thread(target=self._listen, args=(read,), daemon=True).start()
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **arguments: Any) -> dict[str, Any]:
        self._count += 1
        number, message = self._count, {"id": self._count, "method": method, "params": arguments}
        self._answers[number] = queue.Queue()
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        said = self._answers[number].get(timeout=PATIENCE)
        del self._answers[number]
        assert "error" not in said, f"{method}: {said['error']}"
        result: dict[str, Any] = said["result"]
        return result

    def open(self, address: str) -> None:
        """Go there, and wait until it is loaded and drawn."""
        self.call("Page.navigate", url=address)
        while self._events.get(timeout=PATIENCE)["method"] != "Page.loadEventFired":
            pass
        self.settle()

    def settle(self) -> None:
        """Wait for two frames: what was asked for has been drawn."""
        self.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(true))))")

    def run(self, code: str) -> Any:
        """The value of some JavaScript; of a promise what it holds in the end."""
        told = self.call("Runtime.evaluate", expression=code, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in told, told["exceptionDetails"]
        return told["result"].get("value")

    def look(self, *, width: int, height: int, dark: bool = False) -> None:
        """The size of the window, and whether the reader likes it dark."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.settle()

    def press(self, key: str) -> None:
        for kind in ("keyDown", "keyUp"):
            text = {"text": key} if len(key) == 1 and kind == "keyDown" else {}
            codes = {"ArrowLeft": 37, "ArrowRight": 39, "Tab": 9, "Home": 36}
            self.call(
                "Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=codes.get(key, ord(key[0])), **text
            )
        self.settle()

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """Press the mouse, move it, let it go."""
        middle = ((start[0] + end[0]) / 2, (start[1] + end[1]) / 2)
        for kind, (x, y) in (
            *(("mouseMoved", start), ("mousePressed", start), ("mouseMoved", middle)),
            *(("mouseMoved", end), ("mouseReleased", end)),
        ):
            pressed = (
                {"button": "left", "buttons": 1, "clickCount": 1} if kind != "mouseMoved" or (x, y) != start else {}
            )
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **pressed)
        self.settle()

    def picture(self, path: Path, *, whole: bool = False) -> None:
        """A PNG of what is seen, or of the whole page."""
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(shot["data"]))

    def _listen(self, read: int) -> None:
        held = b""
        while part := os.read(read, 1 << 20):
            *whole, held = (held + part).split(b"\0")
            for each in whole:
                self._heard(json.loads(each))

    def _heard(self, message: dict[str, Any]) -> None:
        if "id" in message:
            self._answers[message["id"]].put(message)
            return
        method, about = message["method"], message.get("params", {})
        if method == "Network.requestWillBeSent":
            self.requests.append(about["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            details = about["exceptionDetails"]
            self.faults.append(details.get("exception", {}).get("description") or details["text"])
        elif method == "Runtime.consoleAPICalled" and about["type"] in ("error", "warning", "assert"):
            self.faults.append(" ".join(str(each.get("value")) for each in about["args"]))
        elif method == "Log.entryAdded" and about["entry"]["level"] in ("error", "warning"):
            self.faults.append(about["entry"]["text"])
        self._events.put(message)


@contextmanager
def tab(profile: Path) -> Iterator[Tab]:
    """A browser of its own with an empty profile; it is ended with the block."""
    program = browser_path()
    assert program is not None
    from_us, to_us = os.pipe(), os.pipe()
    flags = [
        *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--mute-audio"),
        *("--hide-scrollbars", "--remote-debugging-pipe", f"--user-data-dir={profile}"),
    ]
    # the browser reads commands from descriptor 3 and answers on 4
    line = f'exec "$0" "$@" 3<&{from_us[0]} 4>&{to_us[1]}'
    process = subprocess.Popen(
        ["bash", "-c", line, program, *flags],
        pass_fds=(from_us[0], to_us[1]),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(from_us[0])
    os.close(to_us[1])
    try:
        yield Tab(from_us[1], to_us[0])
    finally:
        process.kill()
        process.wait()
        os.close(from_us[1])
