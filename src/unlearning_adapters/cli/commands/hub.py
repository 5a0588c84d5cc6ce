"""`unlearn push` and `unlearn pull`: adapters and their cards to and from the Hub."""

from typing import Any

import click

from unlearning_adapters.cli import options
from unlearning_adapters.cli.command import CommandResult, command
from unlearning_adapters.cli.open import read_result


@command("push", "push an adapter and its card to the Hub")
@click.argument("adapter", metavar="ADAPTER", help="an adapter file, or its folder")
@click.argument("repository", metavar="REPOSITORY", help="where to push it, org/name; made if it is missing")
@click.option("--private", is_flag=True, default=None, help="make a new repository private")
@click.option("--create-pr", is_flag=True, help="open a pull request instead of writing to the branch")
@click.option("--revision", metavar="BRANCH", help="branch to write to (default: main)")
@click.option("--commit-message", metavar="TEXT", help="title of the commit (default: names the concept)")
@click.option("--license", metavar="NAME", help="licence of the adapter, such as apache-2.0 (default: none is named)")
@options.token
@click.option(
    "--clip",
    "clips",
    type=(str, str),
    multiple=True,
    metavar="TEXT FILE",
    help="an .mp4 file for the card and what to write below it; repeat it, such as for before and after",
)
@click.option("--result", metavar="FILE", help="result.json of `unlearn demo`, for the numbers of the card")
def push(adapter: str, repository: str, result: str | None, **settings: Any) -> CommandResult:
    """Push an adapter and its card to the Hub; `settings` are arguments of `push_adapter`."""
    from unlearning_adapters.hub.hub import push_adapter

    measurement = None if result is None else read_result(result)
    url = push_adapter(adapter, repository, result=measurement, **options.given(settings))
    return CommandResult({"repository": repository, "url": url}, url)


@command("pull", "download an adapter, its card and its clips from the Hub")
@click.argument("repository", metavar="REPOSITORY", help="a Hub repository, org/name")
@options.output("DIR", "folder to write to")
@click.option("--revision", metavar="NAME", help="branch, tag or commit (default: main)")
@options.token
def pull(repository: str, output: str, **settings: Any) -> CommandResult:
    """Download an adapter from the Hub; `settings` are arguments of `pull_adapter`."""
    from unlearning_adapters.hub.hub import pull_adapter

    pulled = pull_adapter(repository, output, **options.given(settings))
    data = {"repository": repository, "file": str(pulled.file), "commit": pulled.commit}
    return CommandResult(data, f"{pulled.file}: {repository} at {pulled.commit}")
