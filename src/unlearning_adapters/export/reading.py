"""How much of a LoRA file an engine reads, from the names of its tensors alone; imports no torch."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

from .engines.engine import Engine, Reads, Spelling
from .names.families import FAMILIES
from .names.model_layers import ModelLayers
from .names.naming import expand

KOHYA = "lora_unet_"
_ALPHA = ".alpha"
_LORA = re.compile(r"(.+)\.lora[._](?:A|B|down|up)\b.*")
_PREFIX = re.compile(r"^(?:base_model\.model\.|model\.diffusion_model\.|diffusion_model\.|transformer(?:_2)?\.|unet\.)")


@dataclass(frozen=True)
class Reading:
    """Which tensors of a file an engine reads.

    Args:
        engine: The engine.
        family: Family of the model.
        read: Names of the tensors that it reads.
        dropped: Why it does not read each of the others, by name.
        layers: The layers that the file changes there, as diffusers names them.
        notes: Further remarks for the user.
    """

    engine: Engine
    family: str
    read: tuple[str, ...]
    dropped: Mapping[str, str]
    layers: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        """Number of tensors in the file."""
        return len(self.read) + len(self.dropped)

    @property
    def summary(self) -> str:
        """One line: how many keys are read."""
        return f"{len(self.read)} of {self.total} keys are read by {self.engine.title} {self.engine.version}"


@dataclass
class _Sorting:
    """The tensors of a file while they are sorted."""

    engine: Engine
    family: str
    reads: Reads
    model: ModelLayers | None
    dropped: dict[str, str] = field(default_factory=dict)
    # A layer of the file, with its tensors and the layers of diffusers that it is.
    tensors: dict[str, list[str]] = field(default_factory=dict)
    layers: dict[str, tuple[str, ...]] = field(default_factory=dict)
    needs_whole: dict[str, tuple[str, ...]] = field(default_factory=dict)


def read_keys(
    engine: Engine, family: str, reads: Reads, names: Iterable[str], model: ModelLayers | None = None
) -> Reading:
    """Return which tensors of a LoRA file an engine reads.

    Args:
        engine: The engine.
        family: Family of the model.
        reads: What the engine reads of it.
        names: Names of the tensors.
        model: The layers of the model, if they are known; a layer that it does not have is not read.

    Returns:
        What is read, and why the rest is not.
    """
    names = tuple(names)
    sorting = _Sorting(engine, family, reads, model)
    for name in names:
        if not name.endswith(_ALPHA):
            _sort(sorting, name, names)
    _drop_halves(sorting)
    _drop_incomplete(sorting)
    alphas = [name for name in names if name.endswith(_ALPHA)]
    for name in alphas:
        if name.removesuffix(_ALPHA) in sorting.tensors:
            sorting.tensors[name.removesuffix(_ALPHA)].append(name)
        else:
            sorting.dropped[name] = "it belongs to no layer that is read"
    unknown = [name for name in sorting.dropped if engine.strict == "tensors" or _LORA.fullmatch(name)]
    if engine.strict and unknown:
        first, why = unknown[0], sorting.dropped[unknown[0]]
        refusal = f"{engine.title} refuses a file with a tensor that it does not know: {first} ({why})"
        return Reading(engine, family, (), dict.fromkeys(names, refusal), ())
    read_names = {tensor for tensors in sorting.tensors.values() for tensor in tensors}
    layers = dict.fromkeys(path for layer in sorting.tensors for path in sorting.layers[layer])
    notes = (f"the file has {len(alphas)} alphas, and {engine.title} scales by {engine.alpha}",) if alphas else ()
    return Reading(engine, family, tuple(n for n in names if n in read_names), sorting.dropped, tuple(layers), notes)


def _sort(sorting: _Sorting, name: str, names: Sequence[str]) -> None:
    suffix = next((end for pair in sorting.engine.suffixes for end in pair if name.endswith(end)), None)
    if suffix is None:
        is_factor = _LORA.fullmatch(name)
        sorting.dropped[name] = "its suffix is unknown there" if is_factor else "it is no LoRA factor"
        return
    layer = name.removesuffix(suffix)
    paths, why = _layers_of(sorting, layer, names)
    if why:
        sorting.dropped[name] = why
        return
    sorting.tensors.setdefault(layer, []).append(name)
    sorting.layers[layer] = paths


def _layers_of(sorting: _Sorting, layer: str, names: Sequence[str]) -> tuple[tuple[str, ...], str]:
    """Return the layers of diffusers that a layer of the file is, or why it is not read."""
    reasons: list[str] = []
    for spelling in sorting.reads.spellings:
        for prefix in _prefixes(sorting.engine, spelling):
            if not layer.startswith(prefix):
                continue
            path = layer.removeprefix(prefix)
            paths = _kohya_layers(spelling, path) if prefix == KOHYA else spelling.naming.layers(path)
            if not paths and sorting.reads.every and sorting.model and sorting.model.has_raw(path, prefix == KOHYA):
                return (path,), ""
            reason = _why_not(sorting, spelling, path, paths, names)
            if not reason:
                if any(each in _parts(pattern, each) for pattern in spelling.whole for each in paths):
                    sorting.needs_whole[layer] = spelling.whole
                return paths, ""
            reasons.append(reason)
    return (), next(iter(reasons), "its prefix is unknown there")


def _why_not(sorting: _Sorting, spelling: Spelling, path: str, paths: tuple[str, ...], names: Sequence[str]) -> str:
    """Return why a layer is not read in one spelling, "" if it is."""
    if not paths:
        family = FAMILIES[sorting.family]
        if not sorting.engine.embedders and any(
            each in family.embedders for each in (path, *family.native.layers(path))
        ):
            return "it keeps LoRAs off the layers that prepare the prompt"
        return "it knows no layer of this name"
    if spelling.needs and not any(spelling.needs in other for other in names):
        return f"the file has no {spelling.needs}, by which it knows such names"
    absent = sorting.model.lacks(paths) if sorting.model else None
    return f"the model has no layer {absent}" if absent else ""


def _prefixes(engine: Engine, spelling: Spelling) -> tuple[str, ...]:
    """Return the prefixes of a spelling, the longest first, since "" fits each name."""
    return tuple(
        sorted((*spelling.prefixes, *((KOHYA,) if engine.kohya and spelling.kohya else ())), key=len, reverse=True)
    )


@cache
def _kohya_names(spelling: Spelling) -> tuple[tuple[re.Pattern[str], str], ...]:
    names = dict.fromkeys(name for _, theirs in spelling.rows for name in expand(theirs))
    return tuple((re.compile(re.escape(name.replace(".", "_")).replace("_N_", r"_(\d+)_", 1)), name) for name in names)


def _kohya_layers(spelling: Spelling, path: str) -> tuple[str, ...]:
    for pattern, name in _kohya_names(spelling):
        if match := pattern.fullmatch(path):
            return spelling.naming.layers(name.replace("N", match[1], 1) if match.groups() else name)
    return ()


def _drop_halves(sorting: _Sorting) -> None:
    for layer, tensors in list(sorting.tensors.items()):
        if len(tensors) == 1:
            sorting.dropped[tensors[0]] = "the other factor of its layer is missing"
            del sorting.tensors[layer]


def _parts(pattern: str, path: str) -> tuple[str, ...]:
    """Return the layers that a pattern stands for in the block of a path."""
    index = next((part for part in path.split(".") if part.isdecimal()), "")
    return tuple(part.replace("N", index) for part in expand(pattern))


def _drop_incomplete(sorting: _Sorting) -> None:
    """Drop the parts of layers that the engine has as one, where others of them are missing."""
    present = {path for layer in sorting.tensors for path in sorting.layers[layer]}
    for layer, whole in sorting.needs_whole.items():
        for path in sorting.layers[layer]:
            for pattern in whole:
                parts = _parts(pattern, path)
                missing = [part for part in parts if part not in present]
                if path in parts and missing and layer in sorting.tensors:
                    why = f"it has {', '.join(parts)} as one layer, and the file lacks {', '.join(missing)}"
                    sorting.dropped.update(dict.fromkeys(sorting.tensors.pop(layer), why))


def guess_family(names: Iterable[str]) -> str | None:
    """Return the family whose layers most of the names are, None if no name is one of a known layer."""
    counts = dict.fromkeys(FAMILIES, 0)
    for name in names:
        match = _LORA.fullmatch(name)
        path = match[1] if match else name.removesuffix(_ALPHA)
        path = _PREFIX.sub("", path, count=1)
        for family, item in FAMILIES.items():
            native = item.native.layers(path) or item.native.part(path) or path in item.embedders
            if path.startswith(KOHYA):
                native = _kohya_layers(Spelling(item.native.rows), path.removeprefix(KOHYA))
            counts[family] += bool(native)
    best = max(counts, key=lambda family: counts[family])
    return best if counts[best] else None
