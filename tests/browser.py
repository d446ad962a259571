"""A headless Chromium for tests, driven by playwright, that can reach this machine and nothing else.

Chromium is the system's own (`apt-get install chromium`), found on PATH or named by PREHAB_CHROMIUM; playwright downloads
none. A test file asks for it by importing the fixtures: `from tests.browser import chromium, visit  # noqa: F401`. Without
Chromium or playwright the tests are skipped, and say why.
"""

import os
import shutil
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--no-sandbox",  # as root, in a container, Chromium starts only without it
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",  # every other name is unknown
)
HERE = ("127.0.0.1", "localhost", "::1")
WITHOUT_HOST = ("file", "data", "blob", "about")


def executable() -> str | None:
    """Chromium's path: PREHAB_CHROMIUM where it is set, else the first of NAMES on PATH; None where there is none."""
    named = os.environ.get("PREHAB_CHROMIUM")
    return next(filter(None, map(shutil.which, [named] if named else NAMES)), None)


@dataclass
class Seen:
    """A page, and what happened while it was open."""

    page: object  # playwright.sync_api.Page
    errors: list[str] = field(default_factory=list)  # console errors, uncaught exceptions, what could not be loaded
    requests: list[str] = field(default_factory=list)  # addresses, websockets included

    @property
    def outside(self) -> list[str]:
        """Requests that would have left the machine."""
        parts = {address: urlsplit(address) for address in self.requests}
        return [one for one, part in parts.items() if part.scheme not in WITHOUT_HOST and part.hostname not in HERE]

    def overflow(self) -> int:
        """Pixels by which the page is wider than its window: above 0 it scrolls sideways."""
        widest = "Math.max(document.documentElement.scrollWidth, document.body.scrollWidth)"
        return self.page.evaluate(f"{widest} - document.documentElement.clientWidth")


def watch(page) -> Seen:
    """Record from now on what a page asks for and what goes wrong in it.

    A request that the browser gave up itself is no error: the page was left before its icon had come, say.
    """
    seen = Seen(page)

    def failed(request):
        if request.failure != "net::ERR_ABORTED":
            seen.errors.append(f"not loaded: {request.url} ({request.failure})")

    page.on("console", lambda line: seen.errors.append(line.text) if line.type == "error" else None)
    page.on("pageerror", lambda error: seen.errors.append(str(error)))
    page.on("requestfailed", failed)
    page.on("request", lambda request: seen.requests.append(request.url))
    page.on("websocket", lambda socket: seen.requests.append(socket.url))
    return seen


@pytest.fixture(scope="module")
def chromium():
    """playwright's Browser, started once a test file; skips where there is none."""
    api = pytest.importorskip("playwright.sync_api", reason="browser tests need playwright: pip install -e '.[dev]'")
    if executable() is None:
        pytest.skip("browser tests need Chromium: apt-get install chromium, or set PREHAB_CHROMIUM")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable(), args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium):
    """visit(address, width=1280) -> Seen, once the page has loaded, in a window of its own."""
    contexts = []

    def open_page(address: str, width: int = 1280) -> Seen:
        context = chromium.new_context(viewport={"width": width, "height": 900})
        context.set_default_timeout(60_000)
        contexts.append(context)
        seen = watch(context.new_page())
        seen.page.goto(address)
        return seen

    yield open_page
    for context in contexts:
        context.close()
