"""Drop a photo on the page of a server, in a Chromium without a window, and print the answer that the page shows.

Run: python examples/drop_photo.py http://127.0.0.1:8000 photo.jpg, beside a running 'ostinato serve'. It needs Chromium
and its chromedriver, in Debian: apt-get install chromium chromium-driver
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from socket import socket
from tempfile import TemporaryDirectory
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
"""Names of its command."""


def installed() -> str | None:
    """The command of Chromium, if it and its driver are installed."""
    return next(filter(None, map(shutil.which, CHROMIUM)), None) if shutil.which("chromedriver") else None


def free_port() -> int:
    """A port of 127.0.0.1 that nothing listens on."""
    with socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def until(found: Callable[[], Any], what: str, seconds: float = 60.0) -> Any:
    """Wait until a call returns something, and return it; errors of connections count as nothing.

    Raises:
        TimeoutError: that names ``what``.
    """
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if result := found():
                return result
        except (URLError, ConnectionError):
            pass
        time.sleep(0.05)
    raise TimeoutError(f"waited {seconds:g} seconds for {what}")


class Page:
    """A page in a browser, by the WebDriver protocol.

    Args:
        session: address of the browser's session at its driver.
    """

    def __init__(self, session: str) -> None:
        self.session = session

    def open(self, url: str) -> None:
        """Load a page."""
        call(f"{self.session}/url", {"url": url})

    def run(self, script: str, *arguments: Any) -> Any:
        """The value that a function's body returns."""
        return call(f"{self.session}/execute/sync", {"script": script, "args": arguments})

    def drop(self, files: list[Path], target: str) -> None:
        """Drag files onto an element, as a hand would, and let go."""
        box = self.run("return document.querySelector(arguments[0]).getBoundingClientRect().toJSON()", target)
        place = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}
        dragged = {"items": [], "files": [str(file.resolve()) for file in files], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            event = {"type": kind, **place, "data": dragged}
            call(f"{self.session}/goog/cdp/execute", {"cmd": "Input.dispatchDragEvent", "params": event})

    def texts(self, target: str) -> list[str]:
        """Visible texts of all elements of a kind."""
        return self.run("return [...document.querySelectorAll(arguments[0])].map(one => one.innerText)", target)


def call(url: str, body: dict[str, Any] | None = None, kind: str | None = None) -> Any:
    """The value that the driver answers."""
    data = None if body is None else json.dumps(body).encode()
    request = Request(url, data, {"Content-Type": "application/json"}, method=kind)
    try:
        with urlopen(request, timeout=60) as answer:
            return json.load(answer)["value"]
    except HTTPError as error:
        raise RuntimeError(f"chromedriver: {json.load(error)['value']['message']}") from None


@contextmanager
def browser(chromium: str) -> Iterator[Page]:
    """An empty page in a browser that ends with the block."""
    port = free_port()
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        arguments = ["--headless=new", "--disable-gpu", "--disable-background-networking", f"--user-data-dir={folder}"]
        if os.geteuid() == 0:  # its sandbox refuses root
            arguments.append("--no-sandbox")
        driver = subprocess.Popen(["chromedriver", f"--port={port}"], stdout=subprocess.DEVNULL)
        try:
            base = f"http://127.0.0.1:{port}"
            until(lambda: call(f"{base}/status")["ready"], "chromedriver")
            options = {"goog:chromeOptions": {"binary": chromium, "args": arguments}}
            made = call(f"{base}/session", {"capabilities": {"alwaysMatch": options}})
            session = f"{base}/session/{made['sessionId']}"
            try:
                yield Page(session)
            finally:
                call(session, kind="DELETE")
        finally:
            driver.terminate()
            driver.wait()


def drop_photo(chromium: str, url: str, photo: Path) -> str:
    """The answer that the page of a server shows for a photo: lines of a class and its probability, best first."""
    with browser(chromium) as page:
        page.open(url)
        page.drop([photo], "#drop")
        return until(lambda: page.texts("#answers li"), "an answer on the page")[0]


if __name__ == "__main__":
    command = installed()
    if command is None:
        sys.exit("Chromium and chromedriver must be installed: apt-get install chromium chromium-driver")
    print(drop_photo(command, sys.argv[1], Path(sys.argv[2])))
