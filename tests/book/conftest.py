"""The built book, a server for it and a headless Chromium, for every test of this folder."""

from __future__ import annotations

import functools
import http.server
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]


def build(folder: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    """Lay out the committed book and build it into ``folder``, with the environment of this Python."""
    values = {"HTML": str(folder), "VENV": sys.prefix, **settings}
    command = ["make", "--no-print-directory", "site", *(f"{name}={value}" for name, value in values.items())]
    environment = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL")}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="session")
def build_book() -> Callable[..., subprocess.CompletedProcess[str]]:
    return build


@pytest.fixture(scope="session")
def html() -> Path:
    """The folder of the built book: ``BOOK_HTML``, or the committed book built now."""
    if configured := os.environ.get("BOOK_HTML"):
        folder = Path(configured).resolve()
        assert (folder / "index.html").is_file(), f"BOOK_HTML: {folder} holds no index.html"
        return folder
    folder = ROOT / "build" / "test-html"
    done = build(folder)
    assert done.returncode == 0, f"the book does not build:\n{done.stdout}\n{done.stderr}"
    return folder


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Say nothing: failed requests are found in the browser."""


class QuietServer(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Say nothing of a page that was closed while it still loaded."""


@pytest.fixture(scope="session")
def site(html: Path) -> Iterator[str]:
    """The address of the book, served from this machine."""
    handler = functools.partial(QuietHandler, directory=str(html))
    with QuietServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="session")
def browser() -> Iterator[object]:
    """Chromium from ``CHROMIUM`` or the PATH; without one the tests that need it are skipped."""
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install -e .[test]")
    program = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip("no Chromium: install one (Debian: apt install chromium) or name it in CHROMIUM")
    with playwright.sync_playwright() as running:
        chromium = running.chromium.launch(executable_path=program, args=ARGUMENTS)
        yield chromium
        chromium.close()
