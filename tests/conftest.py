"""Settings of the whole suite, made before anything is imported that reads them: threads, and the Hub that is asked."""

import atexit
import os
import shutil
import tempfile
from collections.abc import Callable

import pytest
from loopback_hub import LoopbackHub

# pytest runs one process per core, and more threads would get in each other's way.
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")

# The Hub's client asks a server of this suite, so that no test can reach another.
HUB = LoopbackHub()
HOME = tempfile.mkdtemp(prefix="unlearning-adapters-")
atexit.register(shutil.rmtree, HOME, ignore_errors=True)
os.environ.update(
    HF_ENDPOINT=HUB.endpoint,  # read once, when huggingface_hub is imported
    HF_HOME=HOME,
    HF_HUB_DISABLE_XET="1",  # files go through LFS, which the server knows
    HF_HUB_DISABLE_TELEMETRY="1",
    HF_HUB_DISABLE_PROGRESS_BARS="1",
)
for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
    os.environ.pop(name, None)


@pytest.fixture
def hub():
    """The loopback Hub, empty."""
    HUB.forget()
    yield HUB
    HUB.forget()


@pytest.fixture
def unlearn(capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run one command in this process; return its exit code, stdout and stderr."""
    from unlearning_adapters.cli import main as cli

    def run(*arguments: object) -> tuple[int, str, str]:
        capfd.readouterr()
        try:
            code = cli.main([str(argument) for argument in arguments])
        except SystemExit as leave:
            code = int(leave.code or 0)
        return code, *capfd.readouterr()

    return run
