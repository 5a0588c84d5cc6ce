"""`unlearn check`: how much of a LoRA file an engine reads."""

from collections import Counter

import click

from unlearning_adapters.cli.command import CommandResult, command
from unlearning_adapters.export.check import check_lora
from unlearning_adapters.export.engines import ALIASES, ENGINES
from unlearning_adapters.export.names.families import FAMILIES

ENGINE = click.Choice((*ENGINES, *ALIASES))


@command("check", "say how many keys of a LoRA file an engine reads")
@click.argument("file", metavar="FILE", help="a LoRA file of whatever origin, or a folder of PEFT or diffusers")
@click.option("--engine", type=ENGINE, required=True, help="the program that loads it")
@click.option("--family", type=click.Choice(tuple(FAMILIES)), help="the model (default: as the names tell)")
@click.option("--model", metavar="PATH", help="folder of the model, a safetensors file of it, or JSON with its keys")
def check(file: str, engine: str, family: str | None, model: str | None) -> CommandResult:
    """Say how many keys of a LoRA file an engine reads, and why it does not read the others."""
    reading = check_lora(file, engine=engine, family=family, model=model)
    data = {
        "file": file,
        "engine": reading.engine.name,
        "version": reading.engine.version,
        "family": reading.family,
        "keys": reading.total,
        "keys_read": len(reading.read),
        "layers": list(reading.layers),
        "dropped": dict(reading.dropped),
        "notes": list(reading.notes),
    }
    reasons = Counter(reading.dropped.values())
    first: dict[str, str] = {}
    for name, why in reading.dropped.items():
        first.setdefault(why, name)
    lines = [f"{file}: {reading.summary} ({reading.family}, {len(reading.layers)} layers)"]
    lines += [f"  {count} not read, such as {first[why]}: {why}" for why, count in reasons.items()]
    lines += [f"  note: {note}" for note in reading.notes]
    return CommandResult(data, "\n".join(lines), code=1 if reading.dropped else 0)
