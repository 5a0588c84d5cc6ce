"""`unlearn reproduce`: run again what a `reproduce.json` says, and say what differs."""

import os
import tempfile
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import click

from unlearning_adapters.cli.command import CommandResult, command
from unlearning_adapters.errors import ConfigError

from .record import FILE, differences, read_record, with_output

REPEATABLE = ("build", "eval", "search", "compare", "attack", "demo")
ABOUT = ("versions", "base", "hashes", "seeds", "machine")


@command("reproduce", "run a result's command again, and say what differs")
@click.argument("file", metavar="FILE", help=f"a {FILE}, or the folder that holds it")
@click.option("-o", "--output", metavar="DIR", help="new folder for the result (default: a temporary one, removed)")
def reproduce(file: str, output: str | None) -> CommandResult:
    """Run the command in this folder, with another output, and compare the two records."""
    then = read_record(file)
    words = then["command"]
    if words[0] not in REPEATABLE:
        raise ConfigError(f"{file!r} names the command {words[0]!r}, and only {', '.join(REPEATABLE)} are run again.")
    if output is not None:
        if Path(output).exists():
            raise ConfigError(f"{output!r} is there already. Name a new folder.")
        return _again(then, words, output)
    with tempfile.TemporaryDirectory(prefix="unlearn-reproduce-") as folder:
        return _again(then, words, str(Path(folder) / "again"))


def _again(then: dict[str, Any], words: list[str], output: str) -> CommandResult:
    root = click.get_current_context().find_root()
    group: Any = root.command
    again = with_output(words, output)
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
        with group.make_context("unlearn", again, obj=tuple(again)) as context:
            group.invoke(context)
    now = read_record(Path(output) / then.get("part", ""))
    about = [line for part in ABOUT for line in differences(then.get(part), now[part], part)]
    results = list(differences(then.get("results"), now["results"], "results"))
    lines = [f"unlearn {' '.join(words)}", *about]
    lines += results or [
        "the result is the same, bit for bit" if "sha256" in now["results"] else "the numbers are the same"
    ]
    data = {"command": words, "same": not results, "differences": [*about, *results]}
    return CommandResult(data, "\n".join(lines), 1 if results else 0)
