"""`unlearn export`: adapters as a plain LoRA, or a pipeline with the edit in its weights."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import click

from unlearning_adapters.cli import options
from unlearning_adapters.cli.command import CommandResult, command
from unlearning_adapters.cli.open import LOADERS, open_pipeline
from unlearning_adapters.errors import ConfigError
from unlearning_adapters.export.layouts import ALIASES, LAYOUTS

from .apply import load_edits
from .check import ENGINE


@command("export", "write adapters as a plain LoRA, or a pipeline with them fused")
@options.adapters
@options.output("OUT", "folder or file to write; nothing is overwritten")
@click.option("--engine", type=ENGINE, help="program that the LoRA is for; both files for a model of two denoisers")
@click.option("--component", metavar="NAME", help="denoiser that the LoRA is for (default: the one that is edited)")
@options.strengths
@click.option("--base", metavar="PIPELINE", help="another base that the LoRA is for (default: the one of the adapters)")
@click.option(
    "--layout",
    type=click.Choice((*LAYOUTS, *ALIASES)),
    help="names of the tensors (default: the engine's; diffusers)",
)
@click.option(
    "--with", "loras", metavar="[COMPONENT=]FILE", multiple=True, help="another LoRA to fold in; repeat it for more"
)
@click.option("--scale", "scales", type=float, multiple=True, help="repeat it for each --with (default: 1)")
@click.option("--force", is_flag=True, help="leave out what the engine does not read, in place of an error")
@click.option("--fused", is_flag=True, help="write a whole pipeline with the edit in its weights; needs --base")
@click.option("--push-to", metavar="REPOSITORY", help="with --fused: upload the pipeline to the Hub")
@options.placement
def export(
    adapters: tuple[str, ...],
    output: str,
    engine: str | None,
    component: str | None,
    strengths: tuple[Any, ...],
    base: str | None,
    layout: str | None,
    loras: tuple[str, ...],
    scales: tuple[float, ...],
    force: bool,
    fused: bool,
    push_to: str | None,
    dtype: str | None,
    device: str | None,
) -> CommandResult:
    """Write adapters for programs without this package."""
    if fused:
        for name, value in {"component": component, "layout": layout, "engine": engine, "with": loras}.items():
            if value:
                raise ConfigError(f"--fused writes a whole pipeline and takes no --{name}. Leave it out.")
        if base is None:
            raise ConfigError("--fused writes a whole pipeline and needs one to edit. Name it with --base.")
        return _fused(adapters, strengths, base, Path(output), push_to, dtype, device)
    if push_to is not None:
        raise ConfigError("--push-to uploads a whole pipeline. Add --fused, or upload the LoRA by hand.")
    from unlearning_adapters.export.for_engine import export_for_engine
    from unlearning_adapters.export.lora import export_lora

    others = _others(loras, scales)
    pipe = None if base is None else open_pipeline(base, dtype, device)
    amounts = list(strengths) or None
    if engine is not None and component is None:
        result = export_for_engine(
            adapters, output, engine=engine, strengths=amounts, base=pipe, layout=layout, loras=others, force=force
        )
        loras_data = [_described(lora) for lora in result.loras]
        text = "\n".join([*(line for _, line in loras_data), "", f"In {engine}:", result.instructions])
        data = loras_data[0][0] if len(loras_data) == 1 else {"files": [each for each, _ in loras_data]}
        return CommandResult({**data, "instructions": result.instructions}, text)
    lora = export_lora(
        adapters,
        output,
        component=component,
        strengths=amounts,
        base=pipe,
        layout=layout,
        engine=engine,
        loras=others.get(component or "transformer"),
        force=force,
    )
    data, text = _described(lora)
    if engine is not None:
        text = f"{text}\n\nIn {engine}:\n{lora.instructions}"
    return CommandResult(data, text)


def _described(lora: Any) -> tuple[dict[str, Any], str]:
    """Return what was written, as plain values and as a line."""
    size = lora.file.stat().st_size
    data = {**vars(lora), "file": str(lora.file), "bytes": size}
    text = (
        f"{lora.file}: LoRA of {_named(lora.concepts, lora.strengths)} for {lora.component} of "
        f"{lora.base_model or 'an unknown base'}, names of {lora.layout}, rank {lora.rank}, {lora.layers} layers, "
        f"{size:,} bytes"
    )
    if lora.keys_read is not None:
        text += f"\n  {lora.keys_read} of {lora.keys} keys are read by {lora.engine}"
    if lora.left_out:
        text += f"\n  left out, so that they still know it: {', '.join(lora.left_out)}"
    return {name: list(value) if isinstance(value, tuple) else value for name, value in data.items()}, text


def _others(files: tuple[str, ...], scales: tuple[float, ...]) -> dict[str, dict[str | Path, float]]:
    """Return the other LoRAs with their scales, by the denoiser that they are for."""
    if scales and len(scales) != len(files):
        raise ConfigError(f"Got {len(scales)} values of --scale for {len(files)} of --with. Give one for each.")
    others: dict[str, dict[str | Path, float]] = {}
    for text, scale in zip(files, scales or (1.0,) * len(files), strict=True):
        component, equals, file = text.partition("=")
        for name in (component,) if equals and "/" not in component else ("transformer", "transformer_2"):
            others.setdefault(name, {})[file if equals and "/" not in component else text] = scale
    return others


def _fused(
    adapters: tuple[str, ...],
    strengths: tuple[Any, ...],
    base: str,
    folder: Path,
    push_to: str | None,
    dtype: str | None,
    device: str | None,
) -> CommandResult:
    """Write the base with the edit in its weights; layer by layer, unless it has to be opened to be cast."""
    from unlearning_adapters.export.fused_pipeline import export_fused

    edits = load_edits(adapters, strengths)  # before the pipeline, which takes longer
    pipeline: Any = base if base not in LOADERS and dtype is None else open_pipeline(base, dtype, device)
    out = export_fused(
        [adapter for adapter, _ in edits],
        folder,
        base=pipeline,
        strengths=[amount for _, amount in edits],
        push_to=push_to,
    )
    data: Mapping[str, Any] = {
        "folder": str(folder), "base": base, "concepts": list(out.concepts), "strengths": list(out.strengths),
        "fused": True, "layers": out.layers, "files": out.files, "deviation": out.deviation, "commit": out.commit,
    }  # fmt: skip
    text = (
        f"{folder}: {base} without {_named(out.concepts, out.strengths)}, fused into its weights: {out.layers} "
        f"layers of {out.files} files, at most {out.deviation:.1e} off the exact edit"
    )
    return CommandResult(dict(data), f"{text}\n{out.commit}" if out.commit else text)


def _named(concepts: Iterable[str], strengths: Iterable[Any]) -> str:
    return ", ".join(f"{name} ({_said(amount)})" for name, amount in zip(concepts, strengths, strict=True))


def _said(strength: float | Mapping[str, float]) -> str:
    if isinstance(strength, Mapping):
        return ", ".join(f"{amount:.3g} on {component}" for component, amount in strength.items())
    return f"{strength:.3g}"
