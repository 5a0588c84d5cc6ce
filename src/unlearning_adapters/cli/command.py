"""`command` makes a command of `unlearn` out of a function that returns a `CommandResult`."""

import contextlib
import functools
import json
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import click

from unlearning_adapters.errors import UnlearningError

SETTINGS: dict[str, Any] = {"help_option_names": ["-h", "--help"], "max_content_width": 110}
as_json = click.option("--json", "as_json", is_flag=True, help="print one JSON object")


class InOrder(click.Group):
    """A group that lists its commands in the order in which they were added, not by name."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  (click's signature)
        """Return the names of the commands."""
        return list(self.commands)


@dataclass(frozen=True)
class CommandResult:
    """What a command returns.

    Args:
        data: The result for `--json`. If it is empty, nothing is printed: so do all processes of a launcher but one.
        text: The result for people.
        code: The exit code.
        failure: Why the command fails although it has a result; "" if it does not.
    """

    data: dict[str, Any]
    text: str
    code: int = 0
    failure: str = ""


def command(name: str, summary: str) -> Callable[[Callable[..., CommandResult]], click.Command]:
    """Return a decorator that makes a command out of a function.

    The command has the option `--json`, prints the result of the function, and returns the exit code.

    Args:
        name: What users type.
        summary: What the command does, without a full stop, for the list of commands and for its own help.
    """

    def decorate(function: Callable[..., CommandResult]) -> click.Command:
        text = f"{summary[0].upper()}{summary[1:]}."
        make = click.command(name, short_help=summary, help=text, context_settings=SETTINGS)
        return make(as_json(printing(function)))

    return decorate


def printing(function: Callable[..., CommandResult]) -> Callable[..., int]:
    """Return a function that calls `function`, prints its result, and returns the exit code."""

    @functools.wraps(function)
    def run(*, as_json: bool, **options: Any) -> int:
        # Libraries print what they like: stdout belongs to the result alone.
        with contextlib.redirect_stdout(sys.stderr), _plain_warnings():
            result = function(**options)
        group = click.get_current_context().parent
        if result.data:
            whole = as_json or bool(group and group.params.get("as_json"))  # `unlearn concepts --json list`
            print(json.dumps(result.data, allow_nan=False) if whole else result.text, flush=True)
        if result.failure:
            raise UnlearningError(result.failure)
        return result.code

    return run


@contextlib.contextmanager
def _plain_warnings() -> Iterator[None]:
    """Print warnings as one line each, without the line of code that they come from."""

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        print(f"warning: {' '.join(str(message).split())}", file=sys.stderr)

    with warnings.catch_warnings():
        for kind in (FutureWarning, DeprecationWarning):  # of libraries, for people who write code
            warnings.simplefilter("ignore", kind)
        warnings.showwarning = show
        yield
