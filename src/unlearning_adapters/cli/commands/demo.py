"""`unlearn demo`: the main job on the embedded model."""

import click

from unlearning_adapters.cli.command import CommandResult, command
from unlearning_adapters.cli.open import SHAPEWORLD, open_pipeline
from unlearning_adapters.cli.options import COUNT, given, output
from unlearning_adapters.cli.records.record import write_record


@command("demo", "show the main job on the embedded model, with numbers and pictures")
@click.option(
    "--concept", metavar="NAME", help="a ShapeWorld concept, or a file with a `target` (default: shapeworld-red)"
)
@click.option("--clips", type=COUNT, metavar="N", help="prompts of the concept, and of its neighbours (default: 24)")
@output("DIR", "folder of clips, pictures, adapter and result.json (default: unlearn-demo)", required=False)
def demo(concept: str | None, clips: int | None, output: str | None) -> CommandResult:
    """Run the main job on ShapeWorld."""
    from unlearning_adapters.concepts.concept import load_concept
    from unlearning_adapters.evaluation.demo import OUTPUT, SEED, format_demo, run_demo

    result = run_demo(**given({"concept": concept, "clips": clips, "output": output}))
    forgotten = load_concept(result["concept"] if concept is None else concept)
    write_record(
        output or OUTPUT,
        open_pipeline(SHAPEWORLD, device="cpu"),
        SHAPEWORLD,
        prompts={"pairs": [forgotten.pairs_hash], "neutral": forgotten.neutral},
        seeds={"prompts": SEED},
        results=result,
    )
    return CommandResult(result, format_demo(result, output or OUTPUT))
