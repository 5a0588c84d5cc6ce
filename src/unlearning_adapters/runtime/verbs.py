"""The verbs of unlearning adapters, as functions of a pipeline; `install` makes them methods of diffusers' pipelines.

They are named after diffusers' LoRA verbs. Each checks everything, on all denoisers of the pipeline, before it changes
anything, so that a call that fails leaves no trace.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from typing_extensions import Unpack

from unlearning_adapters.adapter.adapter import UnlearningAdapter, load_adapter, save_adapter
from unlearning_adapters.adapter.source import SourceOptions, check_options
from unlearning_adapters.config import check_strength
from unlearning_adapters.errors import AdapterNameError, ConfigError, FuseError
from unlearning_adapters.hub.hub import push_adapter
from unlearning_adapters.pipelines.sites import denoisers

from .compatibility import check_sites, warn_of_other_base, warn_of_partial_cover, with_stock_factors
from .editor import Editor, change_stacks, editor_of
from .fusing.record_choice import COPY_SHARE, Record, RecordChoice
from .names import as_names, check_loaded, check_new_name, default_name
from .stack import Loaded, Stack
from .status import AdapterStatus, status_by_name


def load_unlearning_adapter(
    pipe: Any,
    source: str | Path | UnlearningAdapter,
    adapter_name: str | None = None,
    strength: float | None = None,
    **options: Unpack[SourceOptions],
) -> str:
    """Attach an adapter to the pipeline; it acts at once, beside those that act already, and touches no weight.

    The joint edit is `x' = x - V G^-1 L A x` (docs/maths.md 5): each concept's own read-out is scaled by 1 minus its
    own strength, in whatever order adapters are loaded. If adapters were disabled, they act again. An attached edit is
    no part of what `pipe.save_pretrained` writes, which warns of it: fuse it first.

    Args:
        pipe: A diffusers pipeline.
        source: A Hub repository "org/name", a folder, a ".safetensors" file, or an adapter.
        adapter_name: Name on this pipeline, without "."; None takes the concept's name.
        strength: Part of the direction that is removed, 0 to 4; None takes the one that the builder calibrated.
        **options: `revision`, `token`, `cache_dir`, `local_files_only` and `subfolder`, see `SourceOptions`.

    Returns:
        Name of the adapter on this pipeline.

    Raises:
        AdapterNotFoundError: If there is nothing at the source.
        AdapterFileError: If it is not a valid adapter.
        AdapterNameError: If the name is taken or not valid.
        DenoiserError: If the pipeline has no denoiser, or one that bypasses the sites.
        SiteError: If the pipeline lacks sites of the adapter.
        BaseMismatchError: If a layer has another width than the adapter.
        FuseError: If no edit of the input makes it act beside what is fused (docs/maths.md 5); fuse all together.

    Example:
        >>> pipe.load_unlearning_adapter("org/no-nudity")
        'no-nudity'
    """
    editors = _editors(pipe)
    if adapter_name is not None:
        check_new_name(adapter_name, _loaded(editors))
    check_options(options)
    if not isinstance(source, UnlearningAdapter):
        source = load_adapter(source, **options)
    name = default_name(source.info.concept, _loaded(editors)) if adapter_name is None else adapter_name
    strength = source.strength if strength is None else source.allowed_strength(strength)
    changes = [
        (editors[component], editors[component].stack.with_adapter(name, Loaded(source, part, strength, strength)))
        for component, part in check_sites(pipe, source).items()
    ]
    warn_of_partial_cover(pipe, source)
    warn_of_other_base(pipe, source)
    change_stacks(changes)
    return name


def set_unlearning_adapters(
    pipe: Any,
    adapter_names: str | Sequence[str],
    strengths: float | Sequence[float | None] | None = None,
) -> None:
    """Let exactly these adapters act, at these strengths; only tensors are rewritten if only strengths change.

    Args:
        pipe: A diffusers pipeline.
        adapter_names: A name, or several; an empty list lets none act.
        strengths: One for all, or one for each; None is the strength with which an adapter was loaded.

    Raises:
        AdapterNameError: If there is no adapter of that name.
        ConfigError: If a strength is out of range, or their number is not that of the names.
        FuseError: If that would change a fused adapter, or no edit of the input makes the others act beside it.

    Example:
        >>> pipe.set_unlearning_adapters(["no-nudity", "no-violence"], [1.0, 0.5])
    """
    names = as_names(adapter_names)
    editors = _editors(pipe)
    check_loaded(names, _loaded(editors))
    values = list(strengths) if isinstance(strengths, Sequence) else [strengths] * len(names)
    if len(values) != len(names):
        raise ConfigError(f"Expected one strength for each of {len(names)} adapters, but got {len(values)} strengths.")
    wanted = {name: None if value is None else check_strength(value) for name, value in zip(names, values, strict=True)}
    change_stacks([(editor, editor.stack.with_active(wanted)) for editor in editors.values()])


def get_list_unlearning_adapters(pipe: Any) -> dict[str, list[str]]:
    """Return the names of all loaded adapters by component, such as `{"transformer": ["no-nudity"]}`.

    Args:
        pipe: A diffusers pipeline.
    """
    return {name: list(editor.stack.loaded) for name, editor in _editors(pipe).items() if editor.stack.loaded}


def get_active_unlearning_adapters(pipe: Any) -> list[str]:
    """Return the names of the adapters that act now, attached or fused; none of those that are disabled.

    Args:
        pipe: A diffusers pipeline.
    """
    return list(dict.fromkeys(name for editor in _editors(pipe).values() for name in editor.stack.acting))


def get_unlearning_adapters_info(pipe: Any) -> dict[str, AdapterStatus]:
    """Return what each loaded adapter does now: its state, strength, components, and the records of fused weights.

    Args:
        pipe: A diffusers pipeline.

    Example:
        >>> pipe.get_unlearning_adapters_info()["no-nudity"]
        AdapterStatus(state='attached', strength=1.3, components=('transformer',), records={})
    """
    return status_by_name(_editors(pipe))


def enable_unlearning_adapters(pipe: Any) -> None:
    """Let the adapters act again that `disable_unlearning_adapters` switched off.

    Args:
        pipe: A diffusers pipeline.
    """
    change_stacks([(editor, replace(editor.stack, enabled=True)) for editor in _editors(pipe).values()])


def disable_unlearning_adapters(pipe: Any) -> None:
    """Let no adapter act, and remember which ones did; the pipeline is then the base, bit for bit.

    Args:
        pipe: A diffusers pipeline.

    Raises:
        FuseError: If an adapter is fused.
    """
    editors = _editors(pipe)
    _check_not_fused(editors, _loaded(editors), "disabled")
    change_stacks([(editor, replace(editor.stack, enabled=False)) for editor in editors.values()])


def delete_unlearning_adapters(pipe: Any, adapter_names: str | Sequence[str]) -> None:
    """Take adapters off the pipeline; the others act on.

    Args:
        pipe: A diffusers pipeline.
        adapter_names: A name, or several.

    Raises:
        AdapterNameError: If there is no adapter of that name.
        FuseError: If one of them is fused.
    """
    names, editors = as_names(adapter_names), _editors(pipe)
    check_loaded(names, _loaded(editors))
    _check_not_fused(editors, names, "deleted")
    change_stacks([(editor, editor.stack.without(names)) for editor in editors.values()])


def unload_unlearning_adapters(pipe: Any) -> None:
    """Take all adapters off the pipeline; no trace is left of them.

    Args:
        pipe: A diffusers pipeline.

    Raises:
        FuseError: If an adapter is fused. To keep an edited model for good, save it with `pipe.save_pretrained`.
    """
    editors = _editors(pipe)
    _check_not_fused(editors, _loaded(editors), "unloaded")
    change_stacks([(editor, Stack()) for editor in editors.values()])


def fuse_unlearning_adapters(
    pipe: Any,
    adapter_names: str | Sequence[str] | None = None,
    record: Record = "auto",
    copy_share: float = COPY_SHARE,
) -> None:
    """Write adapters into the weights, `W' = W - (W V G^-1 L) A`, so that they cost nothing per call.

    `pipe.save_pretrained` then writes an ordinary checkpoint without the concepts. Other adapters can be attached
    beside fused ones: weight and input together are the joint edit of all, or the call is refused (docs/maths.md 5).

    Args:
        pipe: A diffusers pipeline.
        adapter_names: A name, or several; None fuses all that act.
        record: What is kept to restore the weights bit for bit: "copy", the weights themselves on the CPU, from which
            they are restored fastest; "compact", 6 % of weights in bfloat16 at rank 1; or "auto", copies if all of them
            fit into `copy_share` of the memory that is free. `get_unlearning_adapters_info` says which it was.
        copy_share: Share of the free memory of the CPU that copies may take with "auto", 0 to 1.

    Raises:
        AdapterNameError: If there is no adapter of that name, or none that acts.
        ConfigError: If there is no such record, or the share is out of range.
        FuseError: If weights are quantised or offloaded to a file, adapters are disabled, or no edit of the input makes
            the adapters that stay attached act beside these.
    """
    choice, editors = RecordChoice(record, copy_share), _editors(pipe)
    names = get_active_unlearning_adapters(pipe) if adapter_names is None else as_names(adapter_names)
    check_loaded(names, _loaded(editors))
    if not all(editor.stack.enabled for editor in editors.values()):
        raise FuseError("The adapters are disabled, and fused ones would act. Call enable_unlearning_adapters() first.")
    if not names:
        raise AdapterNameError("No adapter acts that could be fused. Load one with load_unlearning_adapter().")
    change_stacks([(editor, editor.stack.with_fused(names, choice)) for editor in editors.values()])


def unfuse_unlearning_adapters(pipe: Any, adapter_names: str | Sequence[str] | None = None) -> None:
    """Take fused adapters out of the weights, which are restored bit for bit; they act on as attached ones.

    Args:
        pipe: A diffusers pipeline.
        adapter_names: A name, or several; None unfuses all. The rest is fused again, as if alone.

    Raises:
        AdapterNameError: If there is no fused adapter of that name.
        FuseError: If a weight changed since it was fused, or no edit of the input makes these act beside the rest.
    """
    editors = _editors(pipe)
    fused = list(dict.fromkeys(name for editor in editors.values() for name in editor.stack.fused))
    names = fused if adapter_names is None else as_names(adapter_names)
    check_loaded(names, _loaded(editors))
    for name in names:
        if name not in fused:
            raise AdapterNameError(f"The adapter {name!r} is not fused; fused are: {', '.join(fused) or 'none'}.")
    change_stacks([(editor, editor.stack.without_fused(names)) for editor in editors.values()])


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
    editors = _editors(pipe)
    loaded = _loaded(editors)
    if adapter_name is None and len(loaded) != 1:
        raise AdapterNameError(
            f"Expected `adapter_name`, since {len(loaded)} are loaded: {', '.join(loaded) or 'none'}."
        )
    name = loaded[0] if adapter_name is None else adapter_name
    check_loaded([name], loaded)
    item = next(editor.stack.loaded[name] for editor in editors.values() if name in editor.stack.loaded)
    adapter = item.adapter if item.strength == item.adapter.strength else item.adapter.with_strength(item.strength)
    return with_stock_factors(pipe, adapter)


VERBS: tuple[Callable[..., Any], ...] = (
    load_unlearning_adapter,
    set_unlearning_adapters,
    get_list_unlearning_adapters,
    get_active_unlearning_adapters,
    get_unlearning_adapters_info,
    enable_unlearning_adapters,
    disable_unlearning_adapters,
    delete_unlearning_adapters,
    unload_unlearning_adapters,
    fuse_unlearning_adapters,
    unfuse_unlearning_adapters,
    save_unlearning_adapter,
    push_unlearning_adapter,
)


def install(pipeline_class: type) -> None:
    """Make the verbs methods of a pipeline class; a method of that name that is not ours stays, with a warning."""
    for verb in VERBS:
        present = getattr(pipeline_class, verb.__name__, verb)
        if getattr(present, "__module__", None) == __name__:
            setattr(pipeline_class, verb.__name__, verb)
        else:
            warnings.warn(
                f"{pipeline_class.__name__} has a method {verb.__name__} of its own, which is left as it is. "
                f"Call unlearning_adapters.{verb.__name__}(pipe, ...) instead.",
                stacklevel=2,
            )


def _editors(pipe: Any) -> dict[str, Editor]:
    return {component: editor_of(denoiser) for component, denoiser in denoisers(pipe).items()}


def _loaded(editors: Mapping[str, Editor]) -> list[str]:
    return list(dict.fromkeys(name for editor in editors.values() for name in editor.stack.loaded))


def _check_not_fused(editors: Mapping[str, Editor], names: Sequence[str], done: str) -> None:
    fused = [name for name in names if any(name in editor.stack.fused for editor in editors.values())]
    if fused:
        raise FuseError(
            f"The adapter {fused[0]!r} is fused into the weights and cannot be {done}. "
            "Call unfuse_unlearning_adapters() first."
        )
