"""The command `unlearn`: its commands and its exit codes."""

import os
import sys
from collections.abc import Sequence

import click

from unlearning_adapters.errors import UnlearningError

from .app.command import app
from .command import SETTINGS, InOrder
from .commands.apply import apply
from .commands.attack import attack
from .commands.build import build
from .commands.check import check
from .commands.compare import compare
from .commands.concepts import concepts
from .commands.demo import demo
from .commands.doctor import doctor
from .commands.evaluate import evaluate
from .commands.export import export
from .commands.hub import pull, push
from .commands.inspect import inspect
from .commands.pipelines import pipelines
from .commands.search import search
from .guided import completed
from .records.reproduce import reproduce
from .records.verify import verify

COMMANDS: tuple[click.Command, ...] = (
    demo, app, build, search, inspect, apply, doctor, export, check, verify, evaluate, compare, attack, push, pull,
    reproduce, concepts, pipelines,
)  # fmt: skip
INTERRUPTED = 130
TRACEBACK = "UNLEARNING_ADAPTERS_TRACEBACK"  # environment variable: show where an error comes from


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: The command line without the program's name; None takes that of the process.

    Returns:
        0; or 1 after an error, which is one line on stderr, or if a check found errors; or 2 after wrong usage; or 130
        after Ctrl-C.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        words = completed(words)
        with unlearn.make_context("unlearn", words, obj=tuple(words)) as context:
            return int(unlearn.invoke(context))
    except click.exceptions.Exit as end:  # after --help and --version
        return end.exit_code
    except click.ClickException as wrong_usage:
        wrong_usage.show()
        return wrong_usage.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # nobody reads on, as in `unlearn concepts | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (UnlearningError, OSError) as error:
        print(f"error: {' '.join(str(error).split()) or type(error).__name__}", file=sys.stderr)
        return 1
    except Exception as error:
        if os.environ.get(TRACEBACK):
            raise
        reason = " ".join(str(error).split())[:400].rstrip(".")
        print(
            f"error: unexpected {type(error).__name__}{f': {reason}' if reason else ''}. "
            f"Set {TRACEBACK}=1 to see where it was raised.",
            file=sys.stderr,
        )
        return 1


def _show_version(context: click.Context, _option: click.Parameter, wanted: bool) -> None:
    if wanted:
        from unlearning_adapters import __version__

        click.echo(f"unlearn {__version__}")
        context.exit()


def group(commands: Sequence[click.Command]) -> click.Group:
    """Return `unlearn` with these commands."""
    text = "show the version and exit"
    version = click.Option(
        ["--version"], is_flag=True, is_eager=True, expose_value=False, callback=_show_version, help=text
    )
    summary = "Make diffusers video models forget a concept."
    return InOrder("unlearn", commands=commands, params=[version], help=summary, context_settings=SETTINGS)


unlearn = group(COMMANDS)
