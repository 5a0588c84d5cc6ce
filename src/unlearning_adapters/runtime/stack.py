"""`Stack`, the adapters of one denoiser as plain data: which are loaded, active and fused, and their joint edits.

Where some adapters are fused and others attached, the input gets what makes weight and input together the joint edit
of all (`remainder.py`), so that the edit is the same, whatever is fused; a stack for which there is no such edit of the
input is refused.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import torch

from unlearning_adapters.adapter.adapter import UnlearningAdapter
from unlearning_adapters.adapter.direction import Direction
from unlearning_adapters.config import site_strength
from unlearning_adapters.errors import FuseError
from unlearning_adapters.runtime.joint.joint_edit import StackedEdit, StackReport
from unlearning_adapters.runtime.joint.remainder import remaining_edit
from unlearning_adapters.runtime.joint.solved_edits import SolvedEdits

from .fusing.record_choice import RecordChoice

SLIGHT = 1e-3  # a strength that is not 0, to see which rows an adapter has


@dataclass(frozen=True)
class Loaded:
    """An adapter on a denoiser.

    Args:
        adapter: The whole adapter, which may edit other denoisers too.
        directions: Its directions for this denoiser, by path.
        strength: Strength now.
        default: Strength with which it was loaded.
    """

    adapter: UnlearningAdapter
    directions: Mapping[str, Direction]
    strength: float
    default: float

    def strength_at(self, path: str) -> float:
        """Return the strength at a layer, `strength * gain`."""
        return site_strength(self.strength, self.directions[path].gain, path)


@dataclass(frozen=True)
class Stack:
    """The adapters of a denoiser.

    Args:
        loaded: All of them by name.
        active: Names of those that act if they are enabled; fused ones are among them.
        fused: Names of those whose edit is in the weights.
        enabled: Whether the active ones that are not fused act.
        strict: Whether an edit that nothing calls is an error, where it is a warning otherwise.
        choice: Which record is kept of weights that are fused from now on.
        solved: The last joint edits, which the stacks that are made from this one share.
    """

    loaded: Mapping[str, Loaded] = field(default_factory=dict)
    active: tuple[str, ...] = ()
    fused: tuple[str, ...] = ()
    enabled: bool = True
    strict: bool = False
    choice: RecordChoice = field(default_factory=RecordChoice)
    solved: SolvedEdits = field(default_factory=SolvedEdits, repr=False, compare=False)

    @property
    def attached(self) -> tuple[str, ...]:
        """Names of the active adapters that are not fused."""
        return tuple(name for name in self.active if name not in self.fused)

    @property
    def acting(self) -> tuple[str, ...]:
        """Names of the adapters that act now."""
        return tuple(name for name in self.active if self.enabled or name in self.fused)

    @property
    def paths(self) -> tuple[str, ...]:
        """Paths of all layers that an active adapter edits."""
        return tuple(dict.fromkeys(path for name in self.active for path in self.loaded[name].directions))

    def at(self, path: str, names: Iterable[str]) -> dict[str, Loaded]:
        """Return those of the named adapters that edit a layer."""
        return {name: self.loaded[name] for name in names if path in self.loaded[name].directions}

    def with_adapter(self, name: str, item: Loaded, strict: bool = False) -> "Stack":
        """Return the stack with one more adapter, which acts beside the others."""
        loaded, strict = {**self.loaded, name: item}, strict or self.strict
        return replace(self, loaded=loaded, active=(*self.active, name), enabled=True, strict=strict)

    def without(self, names: Iterable[str]) -> "Stack":
        """Return the stack without some adapters."""
        removal = set(names)
        loaded = {name: item for name, item in self.loaded.items() if name not in removal}
        return replace(self, loaded=loaded, active=tuple(name for name in self.active if name not in removal))

    def with_active(self, strengths: Mapping[str, float | None], strict: bool | None = None) -> "Stack":
        """Return the stack in which just these adapters act; None is the strength with which one was loaded.

        Args:
            strengths: Strength of each of them.
            strict: Whether an edit that nothing calls is an error; None leaves it as it is.

        Raises:
            ConfigError: If a strength is out of range at a site.
            FuseError: If that would change a fused adapter.
        """
        loaded = dict(self.loaded)
        for name in self.fused:
            now, choice = loaded[name].strength, strengths.get(name, 0.0)
            if choice not in (None, now):
                raise FuseError(
                    f"The adapter {name!r} is fused at strength {now:g} and cannot be set to {choice:g}. "
                    "Call unfuse_unlearning_adapters() first."
                )
        here = {name: strength for name, strength in strengths.items() if name in loaded}
        for name, strength in here.items():
            if name not in self.fused:
                amount = loaded[name].adapter.allowed_strength(loaded[name].default if strength is None else strength)
                loaded[name] = replace(loaded[name], strength=amount)
        strict = self.strict if strict is None else strict
        return replace(self, loaded=loaded, active=tuple(here), enabled=True, strict=strict)

    def with_fused(self, names: Iterable[str], choice: RecordChoice | None = None) -> "Stack":
        """Return the stack in which these adapters are fused too, with records as chosen; None keeps the choice."""
        here = [name for name in names if name in self.loaded]
        return replace(
            self,
            active=tuple(dict.fromkeys((*self.active, *here))),
            fused=tuple(dict.fromkeys((*self.fused, *here))),
            choice=choice or self.choice,
        )

    def without_fused(self, names: Iterable[str]) -> "Stack":
        """Return the stack in which these adapters are attached instead of fused."""
        apart = set(names)
        return replace(self, fused=tuple(name for name in self.fused if name not in apart))


def edit_in_weight(stack: Stack, path: str) -> StackedEdit | None:
    """Return the joint edit of the fused adapters at a layer, or None if there is nothing to fuse."""
    edit = _joint(stack, stack.at(path, stack.fused), path)
    return edit if edit is not None and edit.rank else None


def edit_on_input(stack: Stack, path: str) -> tuple[StackedEdit, bool] | None:
    """Return what the input of a layer needs beside its weight, and whether that does anything; None if nothing.

    An adapter at strength 0 has its rows in the edit too, as zeros, so that the shape does not depend on the strengths.

    Raises:
        FuseError: If no edit of the input makes the attached adapters act beside the fused ones.
    """
    rest, fused = stack.at(path, stack.attached), stack.at(path, stack.fused)
    everything = {**fused, **rest}
    joint = _joint(stack, everything, path)
    if not rest or joint is None:
        return None
    rank = _rank_at_any_strength(stack, everything, path)
    if not rank:  # no strength does anything where all gains are 0
        return None
    on = stack.enabled and any(item.strength for item in rest.values())
    in_weight = edit_in_weight(stack, path)
    if in_weight is None:
        return _padded(joint, rank), on
    remainder = remaining_edit(joint, in_weight)
    if remainder is None:
        raise FuseError(_no_remainder(fused, rest, path))
    return _padded(remainder, rank + in_weight.rank), on and not same_edit(joint, in_weight)


def whole_edit(stack: Stack, path: str) -> tuple[StackedEdit, bool] | None:
    """Return what the input of a layer needs if its weight holds nothing, not even of the adapters that are fused."""
    return edit_on_input(replace(stack, fused=()), path)


def near_duplicates(stack: Stack, path: str) -> list[tuple[str, str]]:
    """Return the pairs of active adapters that remove nearly the same direction at a layer, the stronger one first."""
    here = stack.at(path, stack.active)
    return _merged_and_absorbed(stack, here, path)[0] if len(here) > 1 else []


def same_edit(one: StackedEdit | None, other: StackedEdit | None) -> bool:
    """Whether two edits are the same bit for bit."""
    if one is None or other is None:
        return one is other
    return torch.equal(one.read, other.read) and torch.equal(one.mix, other.mix)


def _joint(stack: Stack, adapters: Mapping[str, Loaded], path: str) -> StackedEdit | None:
    return _solved(stack, adapters, path)[0] if adapters else None


def _solved(stack: Stack, adapters: Mapping[str, Loaded], path: str) -> tuple[StackedEdit, StackReport]:
    items = adapters.values()
    return stack.solved(path, [item.directions[path] for item in items], [item.strength for item in items])


def _padded(edit: StackedEdit, rank: int) -> StackedEdit:
    """Return an edit with rows of zeros up to the rank that it may have at other strengths."""
    if edit.rank >= rank:
        return edit
    empty = edit.read.new_zeros(rank - edit.rank, edit.in_features)
    return StackedEdit(torch.cat([edit.read, empty]), torch.cat([edit.mix, empty.T], dim=1))


def _rank_at_any_strength(stack: Stack, adapters: Mapping[str, Loaded], path: str) -> int:
    joint = _joint(
        stack, {name: replace(item, strength=item.strength or SLIGHT) for name, item in adapters.items()}, path
    )
    return 0 if joint is None else joint.rank


def _merged_and_absorbed(
    stack: Stack, adapters: Mapping[str, Loaded], path: str
) -> tuple[list[tuple[str, str]], list[str]]:
    names, report = list(adapters), _solved(stack, adapters, path)[1]
    return [(names[strong], names[weak]) for strong, weak in report.merged], [names[row] for row in report.absorbed]


def _no_remainder(fused: Mapping[str, Loaded], rest: Mapping[str, Loaded], path: str) -> str:
    """Return what to say where no edit of the input completes a weight: it does not bring back what was taken out."""
    in_weight, on_input = (
        ", ".join(f"{name!r} at strength {item.strength_at(path):g}" for name, item in part.items())
        for part in (fused, rest)
    )
    return (
        f"At {path}, {on_input} on the input and {in_weight} in the weight overlap, and no edit of the input adds up "
        "with this weight to their joint edit. Fuse them together: call unfuse_unlearning_adapters() if adapters are "
        "fused, load all of them, then call fuse_unlearning_adapters()."
    )
