"""`unlearn export`: adapters as a plain LoRA, or a pipeline with the edit in its weights."""

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from unlearning_adapters.cli import options
from unlearning_adapters.cli.command import CommandResult, command
from unlearning_adapters.cli.open import open_pipeline
from unlearning_adapters.errors import AdapterFileError, ConfigError
from unlearning_adapters.export.layouts import ALIASES, LAYOUTS

from .apply import load_edits


@command("export", "write adapters as a plain LoRA, or a pipeline with them fused")
@options.adapters
@options.output("OUT", "folder or file to write; nothing is overwritten")
@click.option("--component", metavar="NAME", help="denoiser that the LoRA is for (default: the one that is edited)")
@options.strengths
@click.option("--base", metavar="PIPELINE", help="another base that the LoRA is for (default: the one of the adapters)")
@click.option("--layout", type=click.Choice((*LAYOUTS, *ALIASES)), help="names of the tensors (default: diffusers)")
@click.option("--fused", is_flag=True, help="write a whole pipeline with the edit in its weights; needs --base")
@options.placement
def export(
    adapters: tuple[str, ...],
    output: str,
    component: str | None,
    strengths: tuple[float, ...],
    base: str | None,
    layout: str | None,
    fused: bool,
    dtype: str | None,
    device: str | None,
) -> CommandResult:
    """Write adapters for programs without this package."""
    if fused:
        for name, value in {"component": component, "layout": layout}.items():
            if value is not None:
                raise ConfigError(f"--fused writes a whole pipeline and takes no --{name}. Leave it out.")
        if base is None:
            raise ConfigError("--fused writes a whole pipeline and needs one to edit. Name it with --base.")
        return _fused(adapters, strengths, base, Path(output), dtype, device)
    from unlearning_adapters.export.lora import export_lora

    lora = export_lora(
        adapters,
        output,
        component=component,
        strengths=list(strengths) or None,
        base=None if base is None else open_pipeline(base, dtype, device),
        layout=layout or "diffusers",
    )
    data = {**vars(lora), "file": str(lora.file), "bytes": lora.file.stat().st_size}
    return CommandResult(
        {name: list(value) if isinstance(value, tuple) else value for name, value in data.items()},
        f"{lora.file}: LoRA of {_named(lora.concepts, lora.strengths)} for {lora.component} of "
        f"{lora.base_model or 'an unknown base'}, names of {lora.layout}, rank {lora.rank}, {lora.layers} layers, "
        f"{data['bytes']:,} bytes",
    )


def _fused(
    adapters: tuple[str, ...],
    strengths: tuple[float, ...],
    base: str,
    folder: Path,
    dtype: str | None,
    device: str | None,
) -> CommandResult:
    """Write the base with the edit in its weights, as `pipe.save_pretrained` does; whole or not at all."""
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise AdapterFileError(f"{str(folder)!r} exists already and was not changed. Choose another folder.")
    edits = load_edits(adapters, strengths)  # before the pipeline, which takes longer
    from unlearning_adapters.runtime.verbs import fuse_unlearning_adapters, load_unlearning_adapter

    pipe = open_pipeline(base, dtype, device)
    for number, (adapter, strength) in enumerate(edits, start=1):
        load_unlearning_adapter(pipe, adapter, adapter_name=f"adapter-{number}", strength=strength)
    fuse_unlearning_adapters(pipe)
    _save(pipe, folder)
    concepts, amounts = [adapter.info.concept for adapter, _ in edits], [strength for _, strength in edits]
    data = {"folder": str(folder), "base": base, "concepts": concepts, "strengths": amounts, "fused": True}
    return CommandResult(data, f"{folder}: {base} without {_named(concepts, amounts)}, fused into its weights")


def _save(pipe: Any, folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = folder.with_name(f".{folder.name}.{os.urandom(4).hex()}")
    try:
        pipe.save_pretrained(draft)
        draft.replace(folder)  # an empty folder may be there
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _named(concepts: Iterable[str], strengths: Iterable[float]) -> str:
    return ", ".join(f"{name} ({amount:.3g})" for name, amount in zip(concepts, strengths, strict=True))
