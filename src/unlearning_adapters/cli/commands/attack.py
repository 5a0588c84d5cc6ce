"""`unlearn attack`: try to bring a concept back from an edited pipeline."""

import json
from pathlib import Path
from typing import Any

import click

from unlearning_adapters.cli import options
from unlearning_adapters.cli.command import CommandResult, command
from unlearning_adapters.cli.open import open_pipeline
from unlearning_adapters.cli.records.record import file_digest, write_record
from unlearning_adapters.errors import ConceptError, ConfigError

BATCH = 16  # clips per call in an embedded world


def _list_attacks(context: click.Context, _option: click.Parameter, wanted: bool) -> None:
    if wanted:
        from unlearning_adapters.attacks.run import ATTACKS

        width = max(map(len, ATTACKS))
        click.echo("\n".join(f"{name:<{width}}  {attack.title}" for name, attack in ATTACKS.items()))
        context.exit()


@command("attack", "try to bring a concept back from an edited pipeline")
@options.pipeline
@options.adapter
@options.output("DIR", "folder of attacks.json and attacks.md")
@click.option(
    "--attack",
    "attacks",
    type=options.NameIn("unlearning_adapters.attacks.run", "ATTACKS"),
    multiple=True,
    help="name of an attack, see --list; repeat it for more (default: all that suit)",
)
@click.option(
    "--list", is_flag=True, is_eager=True, expose_value=False, callback=_list_attacks, help="list the attacks and exit"
)
@click.option(
    "--budget", type=click.Choice(["small", "medium"]), default="small", help="how much each may try (default: small)"
)
@options.suite("the adapter's concept")
@click.option(
    "--reference", metavar="SUITE", help="a concept that was not erased (ShapeWorld and CastWorld have a default)"
)
@options.gold
@click.option(
    "--second",
    metavar="ADAPTER",
    help="another adapter, for the attack on a stack (ShapeWorld and CastWorld have a default)",
)
@click.option("--second-suite", metavar="SUITE", help="suite of the second adapter (default: its concept)")
@options.detectors
@options.call_arguments
@options.batch(None, f"1; ShapeWorld, CastWorld: {BATCH}")
@options.placement
def attack(
    pipeline: str,
    adapter: str,
    output: str,
    attacks: tuple[str, ...],
    budget: str,
    suite: str | None,
    reference: str | None,
    gold: str | None,
    second: str | None,
    second_suite: str | None,
    detectors: tuple[str, ...],
    call: dict[str, Any],
    batch: int | None,
    dtype: str | None,
    device: str | None,
) -> CommandResult:
    """Attack a pipeline with the adapter fused, and write the result."""
    from unlearning_adapters.adapter.adapter import load_adapter

    edit = load_adapter(adapter)
    from unlearning_adapters.adapter.source import find_adapter_file
    from unlearning_adapters.attacks.budget import find_budget
    from unlearning_adapters.attacks.run import run_attacks
    from unlearning_adapters.evaluation.suites.worlds import find_value
    from unlearning_adapters.shapeworld.models.generate import generation_of

    spend = find_budget(budget)
    target, generation, judges = _target(suite or edit.info.concept, spend.prompts, detectors)
    pipe = open_pipeline(pipeline, dtype, device)
    arguments = generation_of(pipe) or generation
    embedded = find_value(target.concept) is not None
    if embedded and spend.denoising_steps:
        arguments["num_inference_steps"] = spend.denoising_steps
    control = reference or _default(target, "reference")
    stacked = not attacks or "stack" in attacks
    data = run_attacks(
        pipe,
        edit,
        target,
        judges,
        list(attacks) or None,
        budget,
        None if control is None else _target(control, spend.prompts, detectors)[0],
        None if gold is None else open_pipeline(gold, dtype, device),
        _second(second, second_suite, pipe, target, spend.prompts, detectors) if stacked else None,
        {**arguments, **call},
        batch or (BATCH if embedded else 1),
    )
    folder = Path(output)
    _record(folder, pipe, pipeline, target, find_adapter_file(adapter), data)
    return _written(data, folder)


def _record(folder: Path, pipe: Any, source: str, target: Any, adapter: Path, data: dict[str, Any]) -> None:
    """Write how the attacks are made again."""
    folder.mkdir(parents=True, exist_ok=True)
    prompts = {
        "named": [request.text for request in target.named],
        "open": [request.text for request in target.open_prompts],
        "adapter": [file_digest(adapter)],
    }
    seeds = {"named": [request.seed for request in target.named]}
    write_record(folder, pipe, source, prompts=prompts, seeds=seeds, results={"attacks": data["attacks"]})


def _written(data: dict[str, Any], folder: Path) -> CommandResult:
    """Write the result as JSON and as Markdown."""
    from unlearning_adapters.attacks.run import to_markdown

    text, files = to_markdown(data), [folder / "attacks.json", folder / "attacks.md"]
    for file, content in zip(files, (json.dumps(data, indent=1, allow_nan=False) + "\n", text), strict=True):
        file.write_text(content, encoding="utf-8")
    names = [str(file) for file in files]
    return CommandResult({**data, "files": names}, "\n".join((text, *names)))


def _target(name: str, count: int, detectors: tuple[str, ...]) -> tuple[Any, dict[str, Any], Any]:
    """Return the target of a suite, its call arguments and its detectors."""
    from unlearning_adapters.attacks.target import target_of, world_target
    from unlearning_adapters.evaluation.detectors.detector import as_detectors
    from unlearning_adapters.evaluation.evaluate import default_detectors, with_validity
    from unlearning_adapters.evaluation.suites.file import read_suite
    from unlearning_adapters.evaluation.suites.worlds import find_value

    suite = read_suite(name)
    judges = with_validity(as_detectors(list(detectors))) if detectors else default_detectors(suite)
    target = world_target(name, count) if find_value(name) else target_of(suite, _pairs(name), count)
    return target, dict(suite.generation), judges


def _pairs(name: str) -> tuple[tuple[str, str], ...]:
    """Return the pairs of a concept; none for a suite that is no concept."""
    from unlearning_adapters.concepts.concept import load_concept

    try:
        return tuple((pair.unsafe, pair.safe) for pair in load_concept(name).pairs if pair.unsafe and pair.safe)
    except (ConceptError, ConfigError):  # a suite's keys are no concept's
        return ()


def _second(
    source: str | None, suite: str | None, pipe: Any, target: Any, count: int, detectors: tuple[str, ...]
) -> Any:
    """Return the second adapter and its target; in an embedded world one is built."""
    if source is not None:
        from unlearning_adapters.adapter.adapter import load_adapter

        adapter = load_adapter(source)
        return adapter, _target(suite or adapter.info.concept, count, detectors)[0]
    name = _default(target, "second")
    if name is None:
        return None
    from unlearning_adapters.building.build import build_adapter
    from unlearning_adapters.concepts.concept import load_concept
    from unlearning_adapters.config import BuildConfig
    from unlearning_adapters.shapeworld.models.generate import generation_of, prompt_length

    length = prompt_length(generation_of(pipe))
    adapter = build_adapter(pipe, load_concept(name), BuildConfig(), progress=False, call_kwargs=length)
    return adapter, _target(name, count, detectors)[0]


def _default(target: Any, role: str) -> str | None:
    """Return the concept that serves as a control, or as the second of a stack, in an embedded world."""
    from unlearning_adapters.evaluation.suites.worlds import find_value

    known = find_value(target.concept)
    if known is None:
        return None
    world, value = known
    return world.concept_name(world.reference(value) if role == "reference" else world.second(value))
