"""Write adapters as a plain LoRA, for programs that know no adapters: one denoiser, one base, fixed strengths."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unlearning_adapters.adapter.adapter import UnlearningAdapter, load_adapter
from unlearning_adapters.adapter.versions import version_of
from unlearning_adapters.errors import ConfigError
from unlearning_adapters.runtime.strengths import Strengths

from .engine_file import EngineFile, fit_to_engine
from .engines import engine_named, instructions, reads_of
from .joint_lora import (
    base_named,
    base_of,
    chosen_component,
    joint_factors,
    joint_mixes,
    part_of,
    rendered,
    strengths_on,
    warn_of_near_duplicates,
)
from .layouts import layout_named
from .layouts.fused_layers import factors_in
from .lora_file import lora_name, place_of, write_lora
from .names.families import FAMILIES, family_of
from .style import read_lora, with_style

EXPORT_VERSION = 2


@dataclass(frozen=True)
class ExportedLora:
    """What `export_lora` wrote.

    Args:
        file: Path of the file.
        component: The denoiser that the LoRA is for.
        layout: Whose names its tensors have.
        base_model: Name of the base whose weights its B factors hold for, "" if unknown.
        concepts: Concept of each adapter in it.
        strengths: Strength of each adapter in it.
        layers: Number of layers in it; those of the first releases may hold several of diffusers'.
        rank: Rank of all of them.
        engine: Name of the engine that it is for, "" for none.
        keys: Number of tensors in it.
        keys_read: How many of them the engine reads, None without an engine.
        left_out: Layers that the engine would not have read, and that are not in it (`force=True` alone).
        expert: What users call the denoiser where the model has two, such as "high_noise"; "" otherwise.
        instructions: The line, flag, JSON or node that loads the file in its engine; "" without one.
    """

    file: Path
    component: str
    layout: str
    base_model: str
    concepts: tuple[str, ...]
    strengths: tuple[float, ...]
    layers: int
    rank: int
    engine: str = ""
    keys: int = 0
    keys_read: int | None = None
    left_out: tuple[str, ...] = ()
    expert: str = ""
    instructions: str = ""

    @property
    def place(self) -> Path:
        """What a program is told to load: the file, or the folder where the layout is one."""
        return self.file.parent if layout_named(self.layout).folder else self.file


def export_lora(
    adapters: UnlearningAdapter | str | Path | Sequence[UnlearningAdapter | str | Path],
    destination: str | Path,
    *,
    component: str | None = None,
    strengths: Strengths = None,
    base: Any = None,
    layout: str | None = None,
    engine: str | None = None,
    loras: Mapping[str | Path, float] | None = None,
    force: bool = False,
) -> ExportedLora:
    """Write one LoRA for one denoiser that does what one or several adapters do together.

    Per layer `lora_A = A` and `lora_B = -(W V) G^-1 L` (docs/maths.md 5): the joint edit, which is not the sum of the
    adapters' own LoRAs. `W V` comes from the adapters' files, or is computed anew from the weights of `base`. The file
    is a LoRA, not an adapter: it holds for one base, at these strengths, and does not stack (docs/format.md 10).

    Args:
        adapters: An adapter, its file, folder or Hub repository, or several of these.
        destination: A path that ends in ".safetensors", or a folder; nothing may be there yet.
        component: Which denoiser, such as "transformer_2"; None if the adapters edit just one.
        strengths: One for all, or one for each adapter; None is an adapter's own. Each of them may be a dictionary with
            a strength for each component.
        base: A pipeline of the same architecture whose weights the LoRA is for; None takes the one that the adapters
            were built on, and trusts the stock factors in their files.
        layout: Whose names the tensors have, one of `LAYOUTS` (docs/engines.md); by default those that the engine reads
            best, and without an engine "diffusers", for `pipe.load_lora_weights` (for `transformer_2` with
            `load_into_transformer_2=True`).
        engine: Which program the file is for, one of `ENGINES` (docs/engines.md). The file is written if that engine
            reads all of it.
        loras: Other LoRA files with their scales that are folded in; what they add reads the edited input.
        force: Whether to leave out what the engine does not read, in place of an error.

    Returns:
        What was written, and where.

    Raises:
        AdapterFileError: If there is a file already, or a source is not a valid adapter.
        AdapterNotFoundError: If there is nothing at a source.
        BaseMismatchError: If the adapters were built on different bases, or on another architecture than `base`.
        ConfigError: If a setting is out of range, or the component has to be named.
        EngineError: If the engine would not read all of the file.
        FuseError: If a factor is needed and cannot be computed: a weight is quantised, offloaded, or holds a LoRA.
        SiteError: If `base` lacks sites, or a layer has no name in the layout.

    Example:
        >>> export_lora(["no-red", "no-left"], "lora", strengths=[1.0, 1.2]).file
        PosixPath('lora/pytorch_lora_weights.safetensors')
        >>> print(export_lora("no-red", "lora", engine="diffsynth").instructions)
        pipe.load_lora(pipe.dit, "lora/without-red.safetensors", alpha=1)
    """
    program = None if engine is None else engine_named(engine)
    if layout is not None:
        layout_named(layout)
    sources: list[Any] = list(adapters) if isinstance(adapters, (list, tuple)) else [adapters]
    members = [item if isinstance(item, UnlearningAdapter) else load_adapter(item) for item in sources]
    component = chosen_component(members, component)
    amounts = strengths_on(component, members, strengths)
    parts = [part_of(adapter, component) for adapter in members]
    made_for = base_of(parts, component) if base is None else base_named(base, component)
    denoiser, concepts = made_for["denoiser"], tuple(adapter.info.concept for adapter in members)
    reads = None if program is None else reads_of(program, _family(denoiser, program.title))
    names = layout_named(layout or (reads.layouts[0] if reads else "diffusers"))
    expert = _expert(members, denoiser, component)
    path = place_of(destination, names, lora_name(concepts, expert) if engine not in (None, "diffusers") else None)
    if base is not None:
        parts = [rendered(base, part, component) for part in parts]
    factors = joint_factors(parts, amounts)
    warn_of_near_duplicates(parts, amounts)
    for file, scale in (loras or {}).items():
        factors = with_style(factors, joint_mixes(parts, amounts), read_lora(file, denoiser, scale))
    fit = EngineFile(factors, None, ())
    if program is not None and reads is not None:
        fit = fit_to_engine(factors, program, reads, names, denoiser, force)
    by_layer = factors_in(names, denoiser, fit.factors)
    record = {
        "export_version": EXPORT_VERSION,
        "layout": names.name,
        "engine": engine or "",
        "component": component,
        **made_for,
        "adapters": [_origin(adapter, strength) for adapter, strength in zip(members, amounts, strict=True)],
        "loras": [{"file": Path(file).name, "scale": float(scale)} for file, scale in (loras or {}).items()],
        "left_out": list(fit.left_out),
        "versions": {"unlearning-adapters": version_of("unlearning-adapters")},
    }
    rank, tensors = write_lora(path, names, by_layer, record)
    usage = "" if program is None or reads is None else instructions(program, reads, {expert: path}, names.folder)
    return ExportedLora(
        path, component, names.name, made_for["base_model"], concepts, amounts, len(by_layer), rank,
        "" if program is None else program.name, len(tensors), fit.keys_read, fit.left_out, expert, usage,
    )  # fmt: skip


def _family(denoiser: str, title: str) -> str:
    family = family_of(denoiser)
    if family is None:
        raise ConfigError(
            f"No engine of the table serves {denoiser or 'an unknown denoiser'}, so that nothing is known of what "
            f"{title} reads. Export it without `engine`."
        )
    return family


def _expert(adapters: Sequence[UnlearningAdapter], denoiser: str, component: str) -> str:
    """Return what users call a denoiser, "" if no adapter shows that the model has two."""
    family = family_of(denoiser)
    names = {name for adapter in adapters for name in (*adapter.components, *adapter.info.denoisers)}
    return "" if family is None or "transformer_2" not in names else FAMILIES[family].experts.get(component, "")


def _origin(adapter: UnlearningAdapter, strength: float) -> dict[str, Any]:
    info = adapter.info
    texts = ("concept", "method", "base_model", "base_revision", "pairs_hash")
    return {**{key: getattr(info, key) for key in texts}, "strength": strength}
