"""Run by tests in a process of its own: a Python that has imported torch, transformers and PEFT, and copies itself.

It reads orders from its standard input, each a line of JSON, and answers each with a line: the id of a new process that
runs a program, or, when that has ended, its exit code. It has never imported diffusers or this package; a program is
the first to do so, as in a new process, of whose time this saves two thirds.
"""

import json
import os
import runpy
import sys
import traceback
from contextlib import suppress
from typing import Any, NoReturn

sys.path.pop(0)  # the folder of this file

import ftfy  # noqa: E402, F401
import peft  # noqa: E402, F401
import scipy.stats  # noqa: E402, F401
import torch._dynamo  # noqa: E402, F401
import transformers.modeling_utils  # noqa: E402, F401

assert not {"diffusers", "unlearning_adapters"} & {name.partition(".")[0] for name in sys.modules}


def run(order: dict[str, Any]) -> NoReturn:
    """Run a program, code or a file, as `python -c` or `python FILE` does."""
    code = 1
    try:
        for number, name in ((0, os.devnull), (1, order["out"]), (2, order["err"])):
            os.dup2(os.open(name, os.O_RDWR), number)
        os.chdir(order["folder"])
        os.environ.clear()
        os.environ.update(order["variables"])
        sys.path[:0] = order["path"]
        sys.argv = [order["program"] if order["is_file"] else "-c", *order["arguments"]]
        if order["is_file"]:
            runpy.run_path(order["program"], run_name="__main__")
        else:
            exec(compile(order["program"], "<string>", "exec"), {"__name__": "__main__"})
        code = 0
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else int(left.code is not None)
        if isinstance(left.code, str):
            print(left.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def main() -> None:
    """Obey until the input ends."""
    for line in sys.stdin:
        order = json.loads(line)
        if "wait" in order:
            pid, status = os.waitpid(order["wait"], 0 if order["until_it_ends"] else os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        else:
            answer = os.fork() or run(order)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
