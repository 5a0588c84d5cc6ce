"""What a stack of adapters means for the weights and the inputs of a denoiser's layers."""

import warnings
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from unlearning_adapters.runtime.joint.joint_edit import StackedEdit

from .stack import Stack, edit_in_weight, edit_on_input, near_duplicates, whole_edit


@dataclass(frozen=True)
class Plan:
    """What a stack means for hooks and weights.

    Args:
        stack: The stack.
        fused: Joint edit per path that goes into the weight, while nothing wraps the layer.
        attached: Edit per path that goes onto the input beside it, and whether it acts.
        near_duplicates: Pairs of adapters that remove nearly the same direction, and at how many layers.
    """

    stack: Stack = field(default_factory=Stack)
    fused: Mapping[str, StackedEdit] = field(default_factory=dict)
    attached: Mapping[str, tuple[StackedEdit, bool]] = field(default_factory=dict)
    near_duplicates: Mapping[tuple[str, str], int] = field(default_factory=dict)

    def on_input(self, in_weight: Collection[str]) -> dict[str, tuple[StackedEdit, bool]]:
        """Return the edits of the inputs where only some weights hold their fused edit.

        Args:
            in_weight: Paths of the layers whose weight holds it.
        """
        edits = dict(self.attached)
        for path in self.fused.keys() - set(in_weight):
            whole = whole_edit(self.stack, path)
            if whole is not None:
                edits[path] = whole
        return edits


def plan_of(stack: Stack) -> Plan:
    """Return what a stack means.

    Raises:
        FuseError: If no edit of an input makes the attached adapters act beside the fused ones.
    """
    in_weight = {path: edit_in_weight(stack, path) for path in stack.paths}
    on_input = {path: edit_on_input(stack, path) for path in stack.paths}
    return Plan(
        stack=stack,
        fused={path: edit for path, edit in in_weight.items() if edit is not None},
        attached={path: edit for path, edit in on_input.items() if edit is not None},
        near_duplicates=Counter(pair for path in stack.paths for pair in near_duplicates(stack, path)),
    )


def warn_of_near_duplicates(before: Plan, plan: Plan) -> None:
    """Warn of adapters that remove nearly the same direction, if the plan before had them not."""
    earlier = {frozenset(pair) for pair in before.near_duplicates}
    for (strong, weak), layers in plan.near_duplicates.items():
        if frozenset((strong, weak)) not in earlier:
            warnings.warn(
                f"The adapters {strong!r} and {weak!r} remove nearly the same direction at {layers} of "
                f"{len(plan.stack.paths)} sites; they act there as one, at the larger strength "
                f"({plan.stack.loaded[strong].strength:g}"
                f"{', times the gain of the site' if plan.stack.loaded[strong].adapter.gains else ''}).",
                stacklevel=4,
            )
