"""Settings of the whole suite, made before anything is imported that reads them: threads, and the Hub that is asked."""

import gc
import os
from collections.abc import Callable, Generator

import pytest
from loopback_hub import served

# pytest runs one process per core, and more threads would get in each other's way.
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")

# The Hub's client asks a server of this suite, so that no test can reach another.
HUB = served()


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Keep the garbage collector from going through what is imported, millions of objects, then and ever after."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.collect()
        gc.freeze()


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
