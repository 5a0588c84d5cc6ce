"""`unlearn apply`: clips of a pipeline with adapters."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from unlearning_adapters.cli import options
from unlearning_adapters.cli.command import CommandResult, command
from unlearning_adapters.cli.open import open_pipeline
from unlearning_adapters.errors import ConfigError


@command("apply", "generate clips with adapters on a pipeline")
@options.pipeline
@options.adapters
@click.option("--prompt", "prompts", multiple=True, required=True, metavar="TEXT", help="repeat it for more clips")
@options.output("FILE", "the .mp4 file; numbered for more clips")
@options.strengths
@click.option("--fuse", is_flag=True, help="write the edit into the weights instead of attaching it")
@click.option("--seed", type=int, default=0, help="seed of the noise (default: 0)")
@click.option("--fps", type=float, default=8.0, help="frames per second of the file (default: 8)")
@click.option("--negative-prompt", metavar="TEXT", help="what to steer away from")
@click.option("--steps", "num_inference_steps", type=options.COUNT, metavar="N", help="denoising steps")
@click.option("--guidance", "guidance_scale", type=float, metavar="X", help="guidance scale")
@options.frame_size
@options.placement
def apply(
    pipeline: str,
    adapters: tuple[str, ...],
    prompts: tuple[str, ...],
    output: str,
    strengths: tuple[Any, ...],
    fuse: bool,
    seed: int,
    fps: float,
    dtype: str | None,
    device: str | None,
    **call: Any,
) -> CommandResult:
    """Generate clips with adapters on a pipeline; `call` holds arguments of the pipeline's call."""
    files = _numbered(output, len(prompts))
    edits = load_edits(adapters, strengths)  # before the pipeline, which takes longer
    pipe = open_pipeline(pipeline, dtype, device)
    arguments = call_arguments(pipe, options.given(call))
    from unlearning_adapters.runtime.verbs import fuse_unlearning_adapters, load_unlearning_adapter

    for number, (adapter, strength) in enumerate(edits, start=1):
        load_unlearning_adapter(pipe, adapter, adapter_name=f"adapter-{number}", strength=strength)
    if fuse:
        fuse_unlearning_adapters(pipe)
    for prompt, file in zip(prompts, files, strict=True):
        _write_clip(pipe, prompt, file, seed, fps, arguments)
    data: dict[str, Any] = {
        "files": [str(file) for file in files],
        "prompts": list(prompts),
        "adapters": list(adapters),
        "concepts": [adapter.info.concept for adapter, _ in edits],
        "strengths": [strength for _, strength in edits],
        "fused": fuse,
        "seed": seed,
    }
    return CommandResult(data, "\n".join(data["files"]))


def load_edits(sources: tuple[str, ...], strengths: tuple[Any, ...]) -> list[tuple[Any, Any]]:
    """Return each adapter with its strength: the one that is given, or its own.

    Raises:
        ConfigError: If there are strengths, but not one for each adapter.
    """
    from unlearning_adapters.adapter.adapter import load_adapter

    if strengths and len(strengths) != len(sources):
        raise ConfigError(
            f"Got {len(strengths)} values of --strength for {len(sources)} adapters. "
            "Give one for each, in their order, or none to use their own."
        )
    adapters = [load_adapter(source) for source in sources]
    return list(zip(adapters, strengths or [adapter.strength for adapter in adapters], strict=True))


def call_arguments(pipe: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a pipeline's call: its own, and those that the options give.

    Raises:
        ConfigError: If the pipeline does not take one of them.
    """
    from inspect import signature

    from unlearning_adapters.shapeworld.models.generate import generation_of

    accepted = signature(type(pipe).__call__).parameters
    for option in click.get_current_context().command.params:
        if option.name in options and option.name not in accepted:
            raise ConfigError(f"{type(pipe).__name__} takes no `{option.name}`. Leave {option.opts[0]} out.")
    return {**generation_of(pipe), **options}


def _write_clip(pipe: Any, prompt: str, file: Path, seed: int, fps: float, arguments: dict[str, Any]) -> None:
    import torch

    from unlearning_adapters.clips import save_clip, to_clip

    generator = torch.Generator("cpu").manual_seed(seed)
    output = pipe(prompt, generator=generator, output_type="np", **arguments)
    if not hasattr(output, "frames"):
        raise ConfigError(f"{type(pipe).__name__} makes no clips, and `unlearn apply` writes nothing else.")
    save_clip(to_clip(output.frames[0]), file, fps)


def _numbered(output: str, count: int) -> list[Path]:
    """Return the path of each clip: out.mp4, or out-1.mp4, out-2.mp4, ..."""
    path = Path(output)
    if path.suffix.lower() != ".mp4":
        raise ConfigError(f"Clips are saved as .mp4 files, but got {output!r}. Give a path that ends in .mp4.")
    return [path] if count == 1 else [path.with_stem(f"{path.stem}-{number}") for number in range(1, count + 1)]
