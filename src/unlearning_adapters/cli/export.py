"""The command `unlearn export`: adapters as a plain LoRA, or a pipeline with the edit in its weights."""

import os
import shutil
from argparse import SUPPRESS, ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from unlearning_adapters.errors import AdapterFileError, ConfigError

from .commands import Report, open_pipeline

LAYOUTS = (
    "diffusers",
    "native",
    "native-for-diffusers",
    "sglang",
    "split",
    "tensorrt-llm",
    "peft-folder",
    "kohya",
    "comfyui",
)
DTYPES = ("float32", "bfloat16", "float16")


def export_options(command: ArgumentParser) -> None:
    """Add the options of the command to its parser."""
    add = command.add_argument
    add("adapters", metavar="ADAPTER", nargs="+", help="adapter files, folders or Hub repositories")
    add(
        "-o",
        "--output",
        metavar="OUT",
        required=True,
        help="folder or file to write; nothing is overwritten",
    )
    add("--component", metavar="NAME", help="denoiser that the LoRA is for (default: the one that is edited)")
    add("--strength", action="append", type=float, help="repeat it for each adapter (default: its own)")
    add("--base", metavar="PIPELINE", help="another base that the LoRA is for (default: the one of the adapters)")
    add("--layout", choices=LAYOUTS, default=SUPPRESS, help="names of the tensors (default: diffusers)")
    add("--fused", action="store_true", help="write a whole pipeline with the edit in its weights; needs --base")
    add("--dtype", choices=DTYPES, help="number type of the base's weights (default: float32 on a CPU)")
    add("--device", help="where the base is opened, such as cuda (default: a GPU if there is one)")


def export(options: Namespace) -> Report:
    """Write adapters for programs without this package."""
    if options.fused:
        return _pipeline(options)
    from unlearning_adapters.export.lora import export_lora

    base = None if options.base is None else open_pipeline(options.base, options.dtype, options.device)
    lora = export_lora(
        options.adapters,
        options.output,
        component=options.component,
        strengths=options.strength,
        base=base,
        layout=getattr(options, "layout", "diffusers"),
    )
    data = {**vars(lora), "file": str(lora.file), "bytes": lora.file.stat().st_size}
    return Report(
        {name: list(value) if isinstance(value, tuple) else value for name, value in data.items()},
        f"{lora.file}: LoRA of {_named(lora.concepts, lora.strengths)} for {lora.component} of "
        f"{lora.base_model or 'an unknown base'}, names of {lora.layout}, rank {lora.rank}, {lora.layers} layers, "
        f"{data['bytes']:,} bytes",
    )


def _pipeline(options: Namespace) -> Report:
    """Write the base with the edit in its weights, as `pipe.save_pretrained` does; whole or not at all."""
    for name in ("component", "layout"):
        if getattr(options, name, None) is not None:
            raise ConfigError(f"--fused writes a whole pipeline and takes no --{name}. Leave it out.")
    if options.base is None:
        raise ConfigError("--fused writes a whole pipeline and needs one to edit. Name it with --base.")
    folder = Path(options.output)
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise AdapterFileError(f"{str(folder)!r} exists already and was not changed. Choose another folder.")
    from unlearning_adapters.adapter.adapter import load_adapter
    from unlearning_adapters.runtime.verbs import fuse_unlearning_adapters, load_unlearning_adapter

    strengths = options.strength or [None] * len(options.adapters)
    if len(strengths) != len(options.adapters):
        raise ConfigError(
            f"Got {len(strengths)} values of --strength for {len(options.adapters)} adapters. "
            "Give one for each, in their order, or none to use their own."
        )
    adapters = [load_adapter(source) for source in options.adapters]  # before the pipeline, which takes longer
    pipe = open_pipeline(options.base, options.dtype, options.device)
    for number, (adapter, strength) in enumerate(zip(adapters, strengths, strict=True), start=1):
        load_unlearning_adapter(pipe, adapter, adapter_name=f"adapter-{number}", strength=strength)
    fuse_unlearning_adapters(pipe)
    _save(pipe, folder)
    concepts = [adapter.info.concept for adapter in adapters]
    amounts = [a.strength if given is None else given for a, given in zip(adapters, strengths, strict=True)]
    data = {"folder": str(folder), "base": options.base, "concepts": concepts, "strengths": amounts, "fused": True}
    return Report(data, f"{folder}: {options.base} without {_named(concepts, amounts)}, fused into its weights")


def _save(pipe: Any, folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = folder.with_name(f".{folder.name}.{os.urandom(4).hex()}")
    try:
        pipe.save_pretrained(draft)
        draft.replace(folder)  # an empty folder may be there
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _named(concepts: Any, strengths: Any) -> str:
    return ", ".join(f"{name} ({amount:.3g})" for name, amount in zip(concepts, strengths, strict=True))
