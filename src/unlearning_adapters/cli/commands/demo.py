"""`unlearn demo`: the main job on the embedded model."""

import click

from unlearning_adapters.cli.command import CommandResult, command
from unlearning_adapters.cli.options import COUNT, given, output


@command("demo", "show the main job on the embedded model, with numbers and pictures")
@click.option(
    "--concept", metavar="NAME", help="a ShapeWorld concept, or a file with a `target` (default: shapeworld-red)"
)
@click.option("--clips", type=COUNT, metavar="N", help="prompts of the concept, and of its neighbours (default: 24)")
@output("DIR", "folder of clips, pictures, adapter and result.json (default: unlearn-demo)", required=False)
def demo(concept: str | None, clips: int | None, output: str | None) -> CommandResult:
    """Run the main job on ShapeWorld."""
    from unlearning_adapters.evaluation.demo import OUTPUT, format_demo, run_demo

    result = run_demo(**given({"concept": concept, "clips": clips, "output": output}))
    return CommandResult(result, format_demo(result, output or OUTPUT))
