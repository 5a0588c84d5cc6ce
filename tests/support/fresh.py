"""Python in new processes, which start a fifth faster without the libraries of the extra `quantised`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

WITHOUT_EXTRAS = str(Path(__file__).parent / "without_extras")
# One interpreter imports what neither library is, and is copied for each program: most of the time is saved.
EACH_IN_A_COPY = """
import json, os, sys
import ftfy, peft, scipy.stats, torch._dynamo, transformers.modeling_utils
assert not {"diffusers", "unlearning_adapters"} & {name.partition(".")[0] for name in sys.modules}
for code in json.loads(sys.argv[1]):
    child = os.fork()
    if not child:
        exec(code, {"__name__": "__main__"})
        sys.stdout.flush()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, code
"""


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


def in_copies(programs: Sequence[str]) -> list[str]:
    """Run programs, of which each prints one word, each as the first to import diffusers and this package."""
    return python("-c", EACH_IN_A_COPY, json.dumps(list(programs))).split()
