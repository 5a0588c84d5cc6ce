"""Change what denoisers of a pipeline carry: on all of them, or, if anything fails, on none."""

from collections.abc import Iterable, Sequence

from unlearning_adapters.errors import FuseError
from unlearning_adapters.pipelines.running.call_lock import changing, held

from .editor import Editor, editing, with_records
from .hooks.scope import Scope
from .plan import Plan, warn_of_near_duplicates
from .stack import Stack


def change_stacks(changes: Sequence[tuple[Editor, Stack]]) -> None:
    """Give denoisers new stacks: all of them, or, if anything fails, none.

    Args:
        changes: Editors, and what their denoisers are to carry.

    Raises:
        UnlearningError: If one cannot be carried; then every weight and hook is as it was.
    """
    denoisers = [editor.denoiser for editor, _ in changes]
    with editing(), held(denoisers):
        plans = [(editor, editor.make_plan(stack)) for editor, stack in changes]
        _check_not_shared(plans)
        for editor, plan in plans:
            warn_of_near_duplicates(editor.plan, plan)
        with changing(denoisers):
            _carry_out(plans)


def _check_not_shared(plans: Sequence[tuple[Editor, Plan]]) -> None:
    """Raise `FuseError` if a weight would hold the fused edits of two denoisers."""
    if not any(plan.fused for _, plan in plans):
        return
    paths: dict[Editor, Iterable[str]] = {editor: list(editor.records) for editor in list(with_records)}
    paths |= {editor: plan.fused for editor, plan in plans}
    owners: dict[int, tuple[Editor, str]] = {}
    for editor, fused in paths.items():
        for path in fused:
            place = editor.weight_place(path)
            owner, other = owners.setdefault(place, (editor, path)) if place else (editor, path)
            if owner is not editor:
                raise FuseError(
                    f"{path} of this {type(editor.denoiser).__name__} and {other} of another denoiser share one "
                    "weight, which holds one edit only. Attach the adapter."
                )


def open_scopes(stacks: Sequence[tuple[Editor, Stack]]) -> list[tuple[Editor, Scope]]:
    """Open a scope on each denoiser: on all of them, or, if anything fails, on none.

    Args:
        stacks: Editors, and what their denoisers are to carry in the scope.

    Raises:
        UnlearningError: If one cannot be opened.
    """
    scopes: list[tuple[Editor, Scope]] = []
    with editing():
        try:
            for editor, stack in stacks:
                scopes.append((editor, editor.open_scope(stack)))
        except BaseException:
            for editor, scope in scopes:
                editor.close_scope(scope)
            raise
    return scopes


def _carry_out(plans: Sequence[tuple[Editor, Plan]]) -> None:
    before = [(editor, editor.plan) for editor, _ in plans]
    try:
        for editor, plan in plans:
            editor.carry_out(plan)
    except BaseException:  # Ctrl-C too: no edit may stay half on
        for editor, plan in before:
            editor.carry_out(plan)
        raise
