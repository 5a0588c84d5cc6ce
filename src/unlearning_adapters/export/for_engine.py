"""The files that an engine needs for a whole model: one, or one for each of two denoisers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unlearning_adapters.adapter.adapter import UnlearningAdapter, load_adapter
from unlearning_adapters.adapter.missing import is_path
from unlearning_adapters.errors import ConfigError, EngineError
from unlearning_adapters.runtime.strengths import Strengths, for_each

from .engines import engine_named
from .joint_lora import strengths_on
from .layouts import layout_named
from .lora import ExportedLora, export_lora


@dataclass(frozen=True)
class ForEngine:
    """What `export_for_engine` wrote.

    Args:
        loras: One for each denoiser, in the order that the engine wants.
        instructions: The line, flag, JSON or node that loads them there.
    """

    loras: tuple[ExportedLora, ...]
    instructions: str


def export_for_engine(
    adapters: UnlearningAdapter | str | Path | Sequence[UnlearningAdapter | str | Path],
    folder: str | Path,
    *,
    engine: str,
    strengths: Strengths = None,
    base: Any = None,
    layout: str | None = None,
    loras: Mapping[str, Mapping[str | Path, float]] | None = None,
    force: bool = False,
) -> ForEngine:
    """Write the LoRA files of all denoisers that adapters edit, as one engine reads them.

    Args:
        adapters: As for `export_lora`.
        folder: Folder for the files; those of Wan 2.2 are named `high_noise` and `low_noise`.
        engine: Name of the engine.
        strengths: As for `export_lora`.
        base: As for `export_lora`.
        layout: As for `export_lora`.
        loras: Other LoRA files with their scales that are folded in, by component.
        force: As for `export_lora`.

    Returns:
        What was written, and how it is loaded.

    Raises:
        EngineError: If the engine would not read all, or gives one file to both denoisers.
        UnlearningError: As `export_lora`.
    """
    program = engine_named(engine)
    sources: list[Any] = list(adapters) if isinstance(adapters, (list, tuple)) else [adapters]
    if not is_path(folder):
        raise ConfigError(f"Expected `folder` to be a path, but got {folder!r:.80}.")
    loaded = [item if isinstance(item, UnlearningAdapter) else load_adapter(item) for item in sources]
    if not loaded:
        raise ConfigError("Expected at least one adapter to export, but got none.")
    components = list(dict.fromkeys(name for adapter in loaded for name in adapter.components))
    if len(components) > 1 and not program.experts:
        raise EngineError(
            f"{program.title} {program.version} gives one LoRA to both denoisers of a model, and what is right for "
            f"{components[0]} is wrong for {components[1]}: write a fused checkpoint with export_fused (--fused)."
        )
    plans = {}
    for component in components:  # names what is wrong with the strengths before anything is written
        of_it = [adapter for adapter in loaded if component in adapter.components]
        chosen = zip(loaded, for_each(strengths, len(loaded)), strict=True)
        amounts = [value for adapter, value in chosen if component in adapter.components]
        plans[component] = of_it, strengths_on(component, of_it, amounts)
    written: list[ExportedLora] = []
    for component, (of_it, amounts_here) in plans.items():
        place = folder if len(components) == 1 else _folder_for(Path(folder), component, engine, layout)
        written.append(
            export_lora(
                of_it, place, component=component, strengths=amounts_here, base=base, layout=layout, engine=engine,
                loras=(loras or {}).get(component), force=force,
            )
        )  # fmt: skip
    if len(written) == 1:
        return ForEngine(tuple(written), written[0].instructions)
    return ForEngine(tuple(written), program.instructions({lora.expert: str(lora.place) for lora in written}))


def _folder_for(folder: Path, component: str, engine: str, layout: str | None) -> Path:
    """Return a folder of its own for each denoiser where the names of the files in it are fixed."""
    fixed = engine == "diffusers" or (layout is not None and layout_named(layout).folder)
    return (
        folder / {"transformer": "high_noise", "transformer_2": "low_noise"}.get(component, component)
        if fixed
        else folder
    )
