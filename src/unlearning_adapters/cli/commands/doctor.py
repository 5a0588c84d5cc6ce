"""`unlearn doctor`: whether adapters act on a pipeline, and in what surroundings."""

from typing import Any

import click

from unlearning_adapters.cli import options
from unlearning_adapters.cli.command import CommandResult, command
from unlearning_adapters.cli.commands.apply import load_edits
from unlearning_adapters.cli.open import open_pipeline


@command("doctor", "check whether adapters act on a pipeline, and show what it runs on")
@options.pipeline
@click.argument("adapters", metavar="[ADAPTER...]", nargs=-1, help="adapter files, folders or Hub repositories")
@options.strengths
@click.option("--fuse", is_flag=True, help="write the edit into the weights instead of attaching it")
@options.placement
def doctor(
    pipeline: str,
    adapters: tuple[str, ...],
    strengths: tuple[Any, ...],
    fuse: bool,
    dtype: str | None,
    device: str | None,
) -> CommandResult:
    """Load adapters onto a pipeline, verify each edit without generating, and show what the pipeline runs on."""
    edits = load_edits(adapters, strengths)  # before the pipeline, which takes longer
    pipe = open_pipeline(pipeline, dtype, device)
    from unlearning_adapters.runtime.checks.environment import describe_environment
    from unlearning_adapters.runtime.verbs import (
        fuse_unlearning_adapters,
        load_unlearning_adapter,
        verify_unlearning_adapters,
    )

    for adapter, strength in edits:
        load_unlearning_adapter(pipe, adapter, strength=strength)
    if fuse and edits:
        fuse_unlearning_adapters(pipe)
    answer = verify_unlearning_adapters(pipe)
    environment = describe_environment(pipe)
    text = "\n".join([*_lines(environment), "", answer.table()])
    return CommandResult({**answer.to_dict(), "environment": environment}, text, code=0 if answer.ok else 1)


def _lines(environment: dict[str, Any]) -> list[str]:
    """Return the environment as a table: a line for each fact."""
    facts = {
        "pipeline": environment["pipeline"],
        "versions": ", ".join(f"{name} {number}" for name, number in environment["versions"].items()),
        "python": f"{environment['python']}, {environment['platform']}",
        "devices": ", ".join(environment["devices"]),
    }
    for name, denoiser in environment["denoisers"].items():
        facts |= {f"{name} {fact}": _said(value) for fact, value in denoiser.items()}
    width = max(map(len, facts))
    return [f"{fact.replace('_', ' ').ljust(width)}  {value}" for fact, value in facts.items()]


def _said(value: Any) -> str:
    if isinstance(value, dict):
        value = [f"{name} ({state})" for name, state in value.items()]
    if isinstance(value, bool):
        return "yes" if value else "no"
    return (", ".join(value) if isinstance(value, list) else value) or "none"
