"""Joint edits that were solved before: a change of a stack asks for the same one several times."""

from collections.abc import Sequence

from unlearning_adapters.adapter.direction import Direction

from .joint_edit import StackedEdit, StackReport, solved_edit

KEPT = 2  # per layer: the edit of all adapters, and that of those that are fused


class SolvedEdits:
    """The last joint edits of each layer, by the very directions and strengths that they were solved for."""

    def __init__(self) -> None:
        self._by_path: dict[str, dict[tuple[tuple[Direction, float], ...], tuple[StackedEdit, StackReport]]] = {}

    def __call__(
        self, path: str, directions: Sequence[Direction], strengths: Sequence[float]
    ) -> tuple[StackedEdit, StackReport]:
        """Return what `solved_edit` returns for a layer."""
        by_key = self._by_path.setdefault(path, {})
        # Directions are compared by identity, and kept alive here, so that no other one takes their place.
        key = tuple(zip(directions, strengths, strict=True))
        solution = by_key.pop(key, None) or solved_edit(directions, strengths)
        by_key[key] = solution
        while len(by_key) > KEPT:
            del by_key[next(iter(by_key))]
        return solution
