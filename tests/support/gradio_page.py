"""The page of `unlearn app` in a process of its own, and a browser in front of it; both note whom they ask."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from browser import CHROMIUM
from fresh import environment

# Python's own connections are noted by an audit hook, which no library can go round.
SERVER = """
import faulthandler, signal, sys
faulthandler.register(signal.SIGUSR1)
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's job in the background is deaf to Ctrl-C
def note(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo"):
        place = arguments[1] if event == "socket.connect" else arguments[0]
        print("ASKED", place, file=sys.stderr, flush=True)
sys.addaudithook(note)
{body}
"""
PAGE = "from unlearning_adapters.cli.main import main\nsys.exit(main(sys.argv[1:]))"


@dataclass
class Server:
    """A running page."""

    address: str
    process: subprocess.Popen[str]
    log: Path

    def asked(self) -> set[str]:
        """Hosts that the process has asked for, without this machine."""
        lines = [line for line in self.log.read_text("utf-8", "replace").splitlines() if line.startswith("ASKED")]
        own = ("127.0.0.1", "localhost", "::1", "None", "/")
        return {line for line in lines if not any(name in line for name in own)}


@contextmanager
def serving(
    folder: Path, *arguments: str, body: str = PAGE, python: str = sys.executable, **variables: str
) -> Iterator[Server]:
    """Start a page on a free port and wait until it answers; end it afterwards as Ctrl-C does."""
    log = folder / "server.log"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [python, "-c", SERVER.format(body=body), *(word.replace("PORT", str(port)) for word in arguments)]
    with log.open("w") as file:
        values = environment(GRADIO_SERVER_PORT=str(port), TMPDIR=str(folder), **variables)
        process = subprocess.Popen(command, stderr=file, stdout=file, text=True, cwd=folder, env=values)
    try:
        _wait(port, process, log)
        yield Server(f"http://127.0.0.1:{port}/", process, log)
    finally:
        for _ in range(2):  # as a person does, who presses again where nothing happens
            process.send_signal(signal.SIGINT)
            try:
                process.wait(15)
                break
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGUSR1)  # its log gets what each thread does
        else:
            process.kill()
            process.wait()


def _wait(port: int, process: subprocess.Popen[str], log: Path) -> None:
    for _ in range(600):
        assert process.poll() is None, log.read_text("utf-8", "replace")[-3000:]
        with socket.socket() as probe:
            probe.settimeout(1)
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise AssertionError(log.read_text("utf-8", "replace")[-3000:])


@dataclass
class Visit:
    """A tab of the browser, with all that it asked for and all errors of its scripts."""

    page: Any
    asked: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def hosts(self) -> set[str]:
        """Hosts that were asked."""
        return {urlsplit(url).hostname or "" for url in self.asked if not url.startswith(("data:", "blob:"))}

    def tab(self, name: str) -> None:
        """Open a tab of the page; those that a phone has no room for are in a menu."""
        tab = self.page.get_by_role("tab", name=name, exact=True)
        if not tab.count():
            self.page.get_by_role("button", name="More tabs").click()
            tab = self.page.locator(".overflow-menu").get_by_text(name, exact=True)
        tab.click()

    def press(self, name: str) -> None:
        """Press a button that can be seen."""
        self.page.get_by_role("button", name=name, exact=True).filter(visible=True).first.click()

    def sees(self, text: str, seconds: float = 60) -> Any:
        """Wait for a text that can be seen, and return its element."""
        found = self.page.get_by_text(text).filter(visible=True).first
        found.wait_for(timeout=1000 * seconds)
        return found

    def overflow(self) -> int:
        """Pixels by which the page is wider than its window."""
        return int(self.page.evaluate("document.documentElement.scrollWidth - innerWidth"))


@contextmanager
def browsing() -> Iterator[Any]:
    """A browser; give it to `visit`."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield browser
        browser.close()


def visit(browser: Any, address: str, width: int = 1280, dark: bool = False) -> Visit:
    """Open a page in a fresh profile."""
    scheme = "dark" if dark else "light"
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    seen = Visit(context.new_page())
    seen.page.on("request", lambda request: seen.asked.append(request.url))
    seen.page.on("pageerror", lambda error: seen.errors.append(str(error)))
    seen.page.goto(address)
    seen.page.get_by_role("button", name="Build").wait_for()
    return seen
