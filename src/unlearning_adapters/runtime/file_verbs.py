"""The verbs that bring an adapter from a file to a pipeline, and back: load, save, push."""

from collections.abc import Sequence
from itertools import chain, count
from pathlib import Path
from typing import Any

import torch
from typing_extensions import Unpack

from unlearning_adapters.adapter.adapter import UnlearningAdapter, load_adapter, save_adapter
from unlearning_adapters.adapter.source import SourceOptions, check_options
from unlearning_adapters.errors import AdapterNameError, ConfigError
from unlearning_adapters.hub.hub import push_adapter

from .change import change_stacks
from .compatibility import check_sites, warn_of_other_base, warn_of_partial_cover, with_stock_factors
from .components import Components, for_components, with_strengths
from .coverage import remember_edited
from .editor import Editor
from .hooks.bypass import check_strict
from .pipeline_editors import check_loaded, editors_of, loaded_names, locked_editors
from .stack import Loaded
from .strengths import Strength, by_component, by_module

MAX_LENGTH = 100  # of a name


def load_unlearning_adapter(
    pipe: Any,
    source: str | Path | UnlearningAdapter,
    adapter_name: str | None = None,
    strength: Strength = None,
    *,
    components: Components | None = None,
    strict: bool = False,
    **options: Unpack[SourceOptions],
) -> str:
    """Attach an adapter to the pipeline. It acts at once, together with the active adapters, and changes no weight.

    The joint edit is `x' = x - V G^-1 L A x` (docs/maths.md 5): each concept's read-out is scaled by 1 minus its
    strength, and the order of loading does not matter. If adapters were disabled, they act again.
    `pipe.save_pretrained` does not write an attached edit, and warns: fuse it first.

    Args:
        pipe: A diffusers pipeline.
        source: A Hub repository "org/name", a folder, a ".safetensors" file, or an adapter.
        adapter_name: Name on this pipeline, without "."; None takes the concept's name.
        strength: Part of the direction that is removed, 0 to 4; None takes the one that the builder calibrated. A
            dictionary has a strength for each component, as `{"transformer": 1.0, "transformer_2": 0.5}`.
        components: Components of the file that are taken, as `["transformer_2"]`, or where each part of it goes, as
            `{"transformer": "transformer_2"}` or `{"transformer": ["transformer", "transformer_2"]}` for an adapter of
            one denoiser on the other, or on both. None takes all: of those that the pipeline has not loaded, a warning.
        strict: Whether a call fails with `DenoiserError` if it skips a layer that is edited, or runs another denoiser
            than the edited one. Otherwise there is one warning for each cause, unless the environment variable
            UNLEARNING_ADAPTERS_STRICT is 1.
        **options: `revision`, `token`, `cache_dir`, `local_files_only` and `subfolder`, see `SourceOptions`.

    Returns:
        Name of the adapter on this pipeline.

    Raises:
        AdapterNotFoundError: If there is nothing at the source.
        AdapterFileError: If it is not a valid adapter.
        AdapterNameError: If the name is taken or not valid.
        ConfigError: If a strength is out of range, the file or the pipeline has no such component, or components share
            one module and get different parts or strengths.
        DenoiserError: If the pipeline has no denoiser, or one that bypasses the sites.
        SiteError: If the pipeline lacks sites of the adapter.
        BaseMismatchError: If a layer has another width than the adapter.
        FuseError: If no edit of the input makes it act beside what is fused (docs/maths.md 5); fuse all together.

    Example:
        >>> pipe.load_unlearning_adapter("org/no-nudity")
        'no-nudity'
    """
    if adapter_name is not None:  # before anything is downloaded
        check_new_name(adapter_name, loaded_names(editors_of(pipe)))
    check_options(options)
    check_strict(strict)
    if not isinstance(source, UnlearningAdapter):
        source = load_adapter(source, **options)
    source = for_components(pipe, source, components)
    strengths = by_component(strength, source.components, source.info.concept)
    with locked_editors(pipe) as editors:
        name = default_name(source.info.concept, loaded_names(editors)) if adapter_name is None else adapter_name
        check_new_name(name, loaded_names(editors))
        modules = {component: editor.denoiser for component, editor in editors.items()}
        strengths = by_module(strengths, modules, source.info.concept)
        items: dict[str, tuple[Editor, Loaded]] = {}
        for component, part in check_sites(pipe, source).items():
            choice = strengths[component]
            amount = source.strength if choice is None else source.allowed_strength(choice)
            editor, item = editors[component], Loaded(source, part, amount, amount)
            owner = next((name for name, (other, _) in items.items() if other is editor), None)
            if owner is None:
                items[component] = editor, item
            elif not _same_edit(items[owner][1], item):
                raise ConfigError(
                    f"The {owner} and the {component} of this pipeline are one module, which cannot hold the two "
                    f"different parts of {source.info.concept!r}. Choose one of them with components={owner!r}."
                )
        changes = [(editor, editor.stack.with_adapter(name, item, strict)) for editor, item in items.values()]
        warn_of_partial_cover(pipe, source)
        warn_of_other_base(pipe, source)
        change_stacks(changes)
        remember_edited(pipe)
    return name


def _same_edit(one: Loaded, other: Loaded) -> bool:
    """Whether two parts of an adapter do the same to a module."""
    if one.strength != other.strength or one.directions.keys() != other.directions.keys():
        return False
    pairs = [(direction, other.directions[path]) for path, direction in one.directions.items()]
    return all(
        mine.gain == theirs.gain and torch.equal(mine.read, theirs.read) and torch.equal(mine.write, theirs.write)
        for mine, theirs in pairs
    )


def save_unlearning_adapter(pipe: Any, save_directory: str | Path, adapter_name: str | None = None) -> Path:
    """Write a loaded adapter to a file, with the strength that it has now as its default.

    Args:
        pipe: A diffusers pipeline.
        save_directory: A folder, or a path that ends in ".safetensors".
        adapter_name: Which one; None if only one is loaded.

    Returns:
        Path of the file.

    Raises:
        AdapterNameError: If there is no adapter of that name, or no name is given and not exactly one is loaded.
        FuseError: If the stock LoRA factor has to be computed from a weight that is out of reach, or holds a LoRA.
    """
    return save_adapter(_as_it_acts(pipe, adapter_name), save_directory)


def push_unlearning_adapter(pipe: Any, repo_id: str, adapter_name: str | None = None, **options: Any) -> str:
    """Push a loaded adapter and its card to the Hub, with the strength that it has now as its default.

    Args:
        pipe: A diffusers pipeline.
        repo_id: Repository on the Hub, "org/name"; it is made if it is missing.
        adapter_name: Which one; None if only one is loaded.
        options: As for `push_adapter`: `private`, `token`, `create_pr`, `revision`, `commit_message`, `result`, ...

    Returns:
        URL of the commit, or of the pull request.

    Raises:
        AdapterNameError: If there is no adapter of that name, or no name is given and not exactly one is loaded.
        FuseError: If the stock LoRA factor has to be computed from a weight that is out of reach, or holds a LoRA.
        HubError: If the Hub cannot be reached, or refuses.
    """
    return push_adapter(_as_it_acts(pipe, adapter_name), repo_id, **options)


def _as_it_acts(pipe: Any, adapter_name: str | None) -> UnlearningAdapter:
    """Return a loaded adapter with its present strength, and with the stock factors that a file needs."""
    with locked_editors(pipe) as editors:
        names = loaded_names(editors)
        if adapter_name is None and len(names) != 1:
            raise AdapterNameError(
                f"Expected `adapter_name`, since {len(names)} are loaded: {', '.join(names) or 'none'}."
            )
        name = names[0] if adapter_name is None else adapter_name
        check_loaded([name], names)
        items = {part: editor.stack.loaded[name] for part, editor in editors.items() if name in editor.stack.loaded}
        strengths = {component: item.strength for component, item in items.items()}
        return with_stock_factors(pipe, with_strengths(next(iter(items.values())).adapter, strengths))


def check_new_name(name: str, loaded: Sequence[str]) -> None:
    """Raise `AdapterNameError` if an adapter cannot get a name; the rules are PEFT's, so that names mean the same."""
    if not isinstance(name, str) or not name.strip() or "." in name or len(name) > MAX_LENGTH:
        raise AdapterNameError(
            f"Expected an adapter name of 1 to {MAX_LENGTH} characters without '.', but got {name!r:.{MAX_LENGTH}}."
        )
    if name in loaded:
        raise AdapterNameError(
            f"An unlearning adapter {name!r} is loaded already. Pass another `adapter_name`, change its strength with "
            f"set_unlearning_adapters, or delete it first."
        )


def default_name(concept: str, loaded: Sequence[str]) -> str:
    """Return the name of a concept, made valid, and made unique by a number."""
    stem = concept.replace(".", "-").strip()[: MAX_LENGTH - 10] or "adapter"
    others = (f"{stem}_{number}" for number in count(2))
    return next(name for name in chain([stem], others) if name not in loaded)
