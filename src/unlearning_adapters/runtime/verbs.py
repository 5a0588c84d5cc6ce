"""The verbs of unlearning adapters, as functions of a pipeline; `install` makes them methods of diffusers' pipelines.

They are named after diffusers' LoRA verbs. Each checks everything, on all denoisers of the pipeline, before it changes
anything, so that a call that fails leaves no trace.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from unlearning_adapters.adapter.record import COMPONENTS
from unlearning_adapters.errors import AdapterNameError, DenoiserError, FuseError
from unlearning_adapters.pipelines.running.call_lock import held
from unlearning_adapters.pipelines.running.compiling import any_compiled

from .change import change_stacks, open_scopes
from .checks.verify import verify_unlearning_adapters as verify_unlearning_adapters
from .coverage import remember_edited
from .editor import Editor
from .file_verbs import load_unlearning_adapter as load_unlearning_adapter
from .file_verbs import push_unlearning_adapter as push_unlearning_adapter
from .file_verbs import save_unlearning_adapter as save_unlearning_adapter
from .fusing.record_choice import COPY_SHARE, Record, RecordChoice
from .hooks.bypass import check_strict
from .hooks.scope import current_scope, entered
from .pipeline_editors import check_loaded, check_not_fused, editors_of, loaded_names, locked_editors
from .stack import Stack
from .status import AdapterStatus, status_by_name
from .strengths import Strengths, strength_by_name
from .tracking import track_calls


def set_unlearning_adapters(
    pipe: Any,
    adapter_names: str | Sequence[str],
    strengths: Strengths = None,
    strict: bool | None = None,
) -> None:
    """Let exactly these adapters act, at these strengths; only tensors are rewritten if only strengths change.

    Args:
        pipe: A diffusers pipeline.
        adapter_names: A name, or several; an empty list lets none act.
        strengths: One for all, or one for each; None is the strength with which an adapter was loaded. Each of them may
            be a dictionary with a strength for each component, as `{"transformer": 1.0, "transformer_2": 0.5}`.
        strict: Whether a call fails in which an edit does not act, as in `load_unlearning_adapter`; None leaves it.

    Raises:
        AdapterNameError: If there is no adapter of that name.
        ConfigError: If a strength is out of range, is for a component that the adapter does not edit, differs for
            components that are one module, or their number is not that of the names; if `strict` is no truth value.
        FuseError: If that would change a fused adapter, or no edit of the input makes the others act beside it.

    Example:
        >>> pipe.set_unlearning_adapters(["no-nudity", "no-violence"], [1.0, 0.5])
    """
    names = as_names(adapter_names)
    check_strict(strict)
    with locked_editors(pipe) as editors:
        check_loaded(names, loaded_names(editors))
        by_editor = strength_by_name(names, strengths, _carried(editors), _modules(editors))
        change_stacks([(editor, editor.stack.with_active(by_editor[name], strict)) for name, editor in editors.items()])


@contextmanager
def unlearning_adapters(pipe: Any, adapter_names: str | Sequence[str], strength: Strengths = None) -> Iterator[None]:
    """Let exactly these adapters act, at these strengths, in the calls that are made inside of a `with` block.

    Calls of other threads, and of this thread outside of the block, keep the state that the other verbs set, and these
    verbs change nothing inside of it: it is for servers that give each request its own state. A thread that is started
    inside is outside (`asyncio.to_thread` and tasks are inside). Blocks can be nested; the innermost one counts.

    Args:
        pipe: A diffusers pipeline.
        adapter_names: A loaded adapter, or several; an empty list lets none act.
        strength: One for all, or one for each; None is the strength with which an adapter was loaded. Each of them may
            be a dictionary with a strength for each component.

    Raises:
        AdapterNameError: If there is no adapter of that name.
        ConfigError: If a strength is out of range, is for a component that the adapter does not edit, differs for
            components that are one module, or their number is not that of the names.
        FuseError: If that would change a fused adapter, or no edit of the input makes the others act beside it.
        DenoiserError: If a part of a denoiser is compiled.

    Example:
        >>> with pipe.unlearning_adapters("no-red", strength=1.2):
        ...     video = pipe("a red car").frames[0]
    """
    names = as_names(adapter_names)
    _check_not_compiled(pipe)
    with locked_editors(pipe) as editors:
        check_loaded(names, loaded_names(editors))
        by_editor = strength_by_name(names, strength, _carried(editors), _modules(editors))
        scopes = open_scopes([(editor, editor.stack.with_active(by_editor[name])) for name, editor in editors.items()])
    try:
        with entered({editor.hooks.state: scope for editor, scope in scopes}):
            yield
    finally:
        with held([editor.denoiser for editor, _ in scopes]):
            for editor, scope in scopes:
                editor.close_scope(scope)


def get_list_unlearning_adapters(pipe: Any) -> dict[str, list[str]]:
    """Return the names of all loaded adapters by component, such as `{"transformer": ["no-nudity"]}`.

    Args:
        pipe: A diffusers pipeline.
    """
    return {name: list(editor.stack.loaded) for name, editor in editors_of(pipe).items() if editor.stack.loaded}


def get_active_unlearning_adapters(pipe: Any) -> list[str]:
    """Return the names of the adapters that act in a call made here and now, attached or fused.

    Args:
        pipe: A diffusers pipeline.
    """
    stacks = []
    for editor in editors_of(pipe).values():
        scope = current_scope(editor.hooks.state)
        stacks.append(editor.stack if scope is None else scope.plan.stack)
    return list(dict.fromkeys(name for stack in stacks for name in stack.acting))


def get_unlearning_adapters_info(pipe: Any) -> dict[str, AdapterStatus]:
    """Return what each loaded adapter does now: its state, strength, components, and the records of fused weights.

    Args:
        pipe: A diffusers pipeline.

    Example:
        >>> pipe.get_unlearning_adapters_info()["no-nudity"]
        AdapterStatus(state='attached', strength=1.3, components=('transformer',), records={}, strengths={...})
    """
    return status_by_name(editors_of(pipe))


def enable_unlearning_adapters(pipe: Any) -> None:
    """Let the adapters act again that `disable_unlearning_adapters` switched off.

    Args:
        pipe: A diffusers pipeline.
    """
    with locked_editors(pipe) as editors:
        change_stacks([(editor, replace(editor.stack, enabled=True)) for editor in editors.values()])


def disable_unlearning_adapters(pipe: Any) -> None:
    """Let no adapter act, and remember which ones did; the pipeline is then the base, bit for bit.

    Args:
        pipe: A diffusers pipeline.

    Raises:
        FuseError: If an adapter is fused.
    """
    with locked_editors(pipe) as editors:
        check_not_fused(editors, loaded_names(editors), "disabled")
        change_stacks([(editor, replace(editor.stack, enabled=False)) for editor in editors.values()])


def delete_unlearning_adapters(pipe: Any, adapter_names: str | Sequence[str]) -> None:
    """Remove adapters from the pipeline; the others stay.

    Args:
        pipe: A diffusers pipeline.
        adapter_names: A name, or several.

    Raises:
        AdapterNameError: If there is no adapter of that name.
        FuseError: If one of them is fused.
    """
    names = as_names(adapter_names)
    with locked_editors(pipe) as editors:
        check_loaded(names, loaded_names(editors))
        check_not_fused(editors, names, "deleted")
        change_stacks([(editor, editor.stack.without(names)) for editor in editors.values()])


def unload_unlearning_adapters(pipe: Any) -> None:
    """Remove all adapters from the pipeline, without a trace.

    Args:
        pipe: A diffusers pipeline.

    Raises:
        FuseError: If an adapter is fused. To keep an edited model for good, save it with `pipe.save_pretrained`.
    """
    with locked_editors(pipe) as editors:
        check_not_fused(editors, loaded_names(editors), "unloaded")
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
        FuseError: If weights are quantised, offloaded to a file or shared by two denoisers, adapters are disabled, or
            no edit of the input makes the adapters that stay attached act beside these.
    """
    choice = RecordChoice(record, copy_share)
    with locked_editors(pipe) as editors:
        names = get_active_unlearning_adapters(pipe) if adapter_names is None else as_names(adapter_names)
        check_loaded(names, loaded_names(editors))
        if not all(editor.stack.enabled for editor in editors.values()):
            raise FuseError(
                "The adapters are disabled, and fused ones would act. Call enable_unlearning_adapters() first."
            )
        if not names:
            raise AdapterNameError("No adapter acts that could be fused. Load one with load_unlearning_adapter().")
        change_stacks([(editor, editor.stack.with_fused(names, choice)) for editor in editors.values()])
        remember_edited(pipe)


def unfuse_unlearning_adapters(pipe: Any, adapter_names: str | Sequence[str] | None = None) -> None:
    """Take fused adapters out of the weights, which are restored bit for bit; the adapters then act as attached ones.

    Args:
        pipe: A diffusers pipeline.
        adapter_names: A name, or several; None unfuses all. The rest is fused again, as if alone.

    Raises:
        AdapterNameError: If there is no fused adapter of that name.
        FuseError: If a weight changed since it was fused, or no edit of the input makes these act beside the rest.
    """
    with locked_editors(pipe) as editors:
        fused = list(dict.fromkeys(name for editor in editors.values() for name in editor.stack.fused))
        names = fused if adapter_names is None else as_names(adapter_names)
        check_loaded(names, loaded_names(editors))
        for name in names:
            if name not in fused:
                raise AdapterNameError(f"The adapter {name!r} is not fused; fused are: {', '.join(fused) or 'none'}.")
        change_stacks([(editor, editor.stack.without_fused(names)) for editor in editors.values()])
        remember_edited(pipe)


VERBS: tuple[Callable[..., Any], ...] = (
    load_unlearning_adapter,
    set_unlearning_adapters,
    unlearning_adapters,
    get_list_unlearning_adapters,
    get_active_unlearning_adapters,
    get_unlearning_adapters_info,
    verify_unlearning_adapters,
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
    """Make the verbs methods of a pipeline class, and its calls known; a method of that name that is not ours stays."""
    track_calls(pipeline_class)
    for verb in VERBS:
        present = getattr(pipeline_class, verb.__name__, verb)
        if getattr(present, "__module__", None) == verb.__module__:
            setattr(pipeline_class, verb.__name__, verb)
        else:
            warnings.warn(
                f"{pipeline_class.__name__} has a method {verb.__name__} of its own, which is left as it is. "
                f"Call unlearning_adapters.{verb.__name__}(pipe, ...) instead.",
                stacklevel=2,
            )


def as_names(adapter_names: str | Sequence[str]) -> list[str]:
    """Return one name or several as a list, or raise `AdapterNameError` if one comes twice or is no text."""
    several = isinstance(adapter_names, Iterable) and not isinstance(adapter_names, (str, bytes))
    try:
        names: list[str] = list(adapter_names) if several else [adapter_names]  # type: ignore[list-item]
    except TypeError:  # an array or tensor of no dimension
        names = [adapter_names]  # type: ignore[list-item]
    if not all(isinstance(name, str) for name in names):
        raise AdapterNameError(f"Expected the name of an adapter, or several as a list, but got {adapter_names!r:.80}.")
    if len(set(names)) != len(names):
        raise AdapterNameError(f"Expected each adapter once, but got {', '.join(map(repr, names))}.")
    return names


def _check_not_compiled(pipe: Any) -> None:
    """Raise `DenoiserError` if a denoiser or a part of it is compiled: its graph holds the edits of all calls."""
    for name in COMPONENTS:
        if any_compiled([pipe.components.get(name)]):
            raise DenoiserError(
                f"The {name} of {type(pipe).__name__}, or a part of it, is compiled, so that all threads share the "
                "edits in its graph. Change them for all with set_unlearning_adapters(), or do not compile."
            )


def _carried(editors: Mapping[str, Editor]) -> dict[str, list[str]]:
    return {component: list(editor.stack.loaded) for component, editor in editors.items()}


def _modules(editors: Mapping[str, Editor]) -> dict[str, object]:
    return {component: editor.denoiser for component, editor in editors.items()}
