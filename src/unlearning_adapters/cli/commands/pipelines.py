"""`unlearn pipelines`: the video pipelines of diffusers that adapters run on, and what was tested of them."""

import json
from importlib import resources
from typing import Any

import click

from unlearning_adapters.cli.command import CommandResult, command
from unlearning_adapters.errors import ConfigError

TABLE = "pipelines.json"  # written by tests/pipeline_table.py from the tests' own tables


@command("pipelines", "list the video pipelines of diffusers, and what was tested")
@click.argument("name", metavar="[NAME]", default="", help="part of the name of a pipeline or denoiser (default: all)")
def pipelines(name: str) -> CommandResult:
    """List the video pipelines, with their denoisers, text sites, open doors and tests.

    Raises:
        ConfigError: If no pipeline has this name.
    """
    table = json.loads(resources.files("unlearning_adapters.cli").joinpath(TABLE).read_text(encoding="utf-8"))
    part = name.lower()
    rows = [row for row in table["pipelines"] if part in f"{row['pipeline']} {row['denoiser']}".lower()]
    if not rows:
        raise ConfigError(
            f"No pipeline or denoiser of diffusers {table['diffusers']} has {name!r} in its name. "
            "`unlearn pipelines` lists all."
        )
    tested = sum(row["tested"] == "whole" for row in rows)
    head = f"{len(rows)} pipelines of diffusers {table['diffusers']}, {tested} of them run as a whole by the tests"
    return CommandResult({**table, "pipelines": rows}, "\n".join([head, *map(_lines, rows)]))


def _lines(row: dict[str, Any]) -> str:
    """Format a pipeline: its name and test, then what is edited and what is not."""
    lines = [
        f"{row['pipeline']}: {row['tested']}{' (' + ', '.join(row['variants']) + ')' if row['variants'] else ''}",
        f"  {' and '.join(row['components'])}: {row['denoiser']}, {row['attention']}",
        f"  text sites: {', '.join(row['text_sites']) or 'none'}",
        f"  open doors: {'; '.join(row['open_doors']) or 'none'}",
    ]
    lines += [f"  takes: {row['takes']}"] if row["takes"] else []
    lines += [f"  remarks: {row['remarks']}"] if row["remarks"] else []
    return "\n".join(lines)
