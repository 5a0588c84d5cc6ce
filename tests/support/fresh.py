"""Python in new processes, which start a fifth faster without the libraries of the extra `quantised`."""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

WITHOUT_EXTRAS = str(Path(__file__).parent / "without_extras")


def environment(*path: object, **variables: str) -> dict[str, str]:
    """Return the environment of a process without the extra.

    Args:
        path: Folders that it imports from, in place of those of PYTHONPATH; "" for none.
        variables: Further variables.
    """
    folders = [*map(str, path)] or [os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join([WITHOUT_EXTRAS, *filter(None, folders)]), **variables}


def python(*command: object, path: Sequence[object] = (), cwd: Path | None = None, **variables: str) -> str:
    """Run Python with some arguments in a new process, which has to succeed; return what it prints."""
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=cwd, capture_output=True, text=True, timeout=600, env=environment(*path, **variables),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip()


def in_copy(*command: object, path: Sequence[object] = (), cwd: Path | None = None, **variables: str) -> str:
    """The same in a copy of one Python that has imported much: in a third of the time, if all of that is needed.

    What is imported there and reads its variables at once, such as the Hub's client, has read those of this process.
    """
    copy = Copy(*command, path=path, cwd=cwd, **variables)
    code, out, err = copy.communicate()
    assert code == 0, err[-3000:]
    return out.strip()


class Copy:
    """A copy of `interpreter.py` that runs a program, from its start on; see `in_copy`."""

    def __init__(
        self, *command: object, path: Sequence[object] = (), cwd: Path | None = None, **variables: str
    ) -> None:
        first, *others = map(str, command)
        program, *arguments = others if first == "-c" else (first, *others)
        values = environment(*path, **variables)
        folders = ["" if first == "-c" else str(Path(program).parent), *values["PYTHONPATH"].split(os.pathsep)]
        self._out, self._err = (_interpreter().new_file() for _ in range(2))
        self.code: int | None = None
        self.pid = _interpreter().ask(
            program=program, is_file=first != "-c", arguments=arguments, path=folders, variables=values,
            folder=str(cwd or Path.cwd()), out=str(self._out), err=str(self._err),
        )  # fmt: skip

    def communicate(self) -> tuple[int, str, str]:
        """Wait for its end; return its exit code and what it printed."""
        if self.code is None:
            self.code = _interpreter().ask(wait=self.pid, until_it_ends=True)
        return self.code, self._out.read_text(encoding="utf-8"), self._err.read_text(encoding="utf-8")

    def poll(self) -> int | None:
        """Return its exit code, or None while it runs."""
        if self.code is None:
            self.code = _interpreter().ask(wait=self.pid, until_it_ends=False)
        return self.code

    def kill(self) -> None:
        """End it."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


class _Interpreter:
    """The process that is copied."""

    def __init__(self) -> None:
        self._lock, self._folder = threading.Lock(), tempfile.TemporaryDirectory()
        self._errors = self.new_file()
        program = Path(__file__).with_name("interpreter.py")
        with self._errors.open("w") as errors:
            self._process = subprocess.Popen(
                [sys.executable, program], env=environment(""), text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
            )  # fmt: skip
        atexit.register(self._end)

    def new_file(self) -> Path:
        """Return an empty file for what a copy prints."""
        number, name = tempfile.mkstemp(dir=self._folder.name)
        os.close(number)
        return Path(name)

    def ask(self, **order: Any) -> Any:
        """Give an order, and return the answer."""
        with self._lock:
            print(json.dumps(order), file=self._process.stdin, flush=True)
            answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"The interpreter ended: {self._errors.read_text(encoding='utf-8')[-3000:]}")
        return json.loads(answer)

    def _end(self) -> None:
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
        self._folder.cleanup()


@cache
def _interpreter() -> _Interpreter:
    return _Interpreter()
