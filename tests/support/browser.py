"""A headless Chromium: what a page holds after its scripts have run, and how it looks. It can reach no other host."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)  # fmt: skip
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")


def open_page(address: str, folder: Path, *options: str) -> str:
    """Open a page and return its document as HTML.

    Args:
        address: A file or a page of a loopback server.
        folder: For the profile of the browser, which is new.
        options: Further options, such as a window size.
    """
    command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={folder / 'profile'}", *options, "--dump-dom", address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr[-1000:]
    return done.stdout


def photograph(address: str, picture: Path, width: int, height: int, *options: str) -> None:
    """Write a picture of a page in a window of some size."""
    command = [
        str(CHROMIUM),
        *FLAGS,
        f"--user-data-dir={picture.parent / 'profile'}",
        f"--window-size={width},{height}",
    ]
    command += [*options, f"--screenshot={picture}", address]
    subprocess.run(command, capture_output=True, timeout=180, check=True)
