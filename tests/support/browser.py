"""A headless Chromium: what a page holds after its scripts have run, and how it looks. It can reach no other host."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
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
    return _run(folder / "profile", *options, "--dump-dom", address)


def photograph(address: str, picture: Path, width: int, height: int, *options: str) -> None:
    """Write a picture of a page in a window of some size."""
    _run(picture.parent / "profile", f"--window-size={width},{height}", *options, f"--screenshot={picture}", address)


def _run(profile: Path, *options: str) -> str:
    """Run Chromium and return what it prints; a second time if it hangs."""
    for attempt in range(2):
        command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={profile}-{attempt}", *options]
        # Files and not pipes: its helpers outlive it for a moment, and hold on to a pipe.
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            process = subprocess.Popen(command, stdout=out, stderr=err, start_new_session=True)
            try:
                code: int | None = process.wait(90)
            except subprocess.TimeoutExpired:
                code = None
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            said, errors = ((file.seek(0), file.read().decode("utf-8", "replace"))[1] for file in (out, err))
        if code == 0:
            return said
        assert code is None, errors[-1000:]
    raise AssertionError(f"Chromium hung twice: {errors[-1000:]}")
