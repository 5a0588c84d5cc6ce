"""Names of layers in two programs, as pairs of patterns that are read in both directions; imports no torch.

A pattern is a path in which `N` is the index of a block and `{a,b}` one of several parts. With as many alternatives on
both sides they are the same layers under other names. With several on the first side and one on the second, the second
program has one fused layer that holds them, in this order.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import NamedTuple

Rows = tuple[tuple[str, str], ...]

_ALTERNATIVES = re.compile(r"\{([^{}]*)\}")


class Part(NamedTuple):
    """Which rows of which layer of another program a layer of diffusers is.

    Args:
        layer: Path of the layer in the other program.
        number: Which of its parts.
        of: How many parts it has.
    """

    layer: str
    number: int = 0
    of: int = 1


@dataclass(frozen=True)
class Naming:
    """How another program names the layers of one model.

    Args:
        rows: Pairs of patterns: a path of diffusers, and the path of the other program.

    Example:
        >>> naming = Naming((("blocks.N.attn.to_{q,k,v}", "blocks.N.attn.qkv"),))
        >>> naming.part("blocks.7.attn.to_k")
        Part(layer='blocks.7.attn.qkv', number=1, of=3)
        >>> naming.layers("blocks.7.attn.qkv")
        ('blocks.7.attn.to_q', 'blocks.7.attn.to_k', 'blocks.7.attn.to_v')
    """

    rows: Rows

    def part(self, path: str) -> Part | None:
        """Return what a layer of diffusers is in the other program, or None if it has no name there."""
        pattern, index = _pattern_of(path)
        entry = self._forward.get(pattern)
        return None if entry is None else Part(entry.layer.replace("N", index), entry.number, entry.of)

    def layers(self, name: str) -> tuple[str, ...]:
        """Return the layers of diffusers that a layer of the other program holds, none if the name is unknown."""
        pattern, index = _pattern_of(name)
        return tuple(path.replace("N", index) for path in self._backward.get(pattern, ()))

    @cached_property
    def _forward(self) -> Mapping[str, Part]:
        return {path: part for ours, theirs in self.rows for path, part in _pairs(ours, theirs)}

    @cached_property
    def _backward(self) -> Mapping[str, tuple[str, ...]]:
        names: dict[str, tuple[str, ...]] = {}
        for ours, theirs in self.rows:
            for path, part in _pairs(ours, theirs):
                names[part.layer] = (*names.get(part.layer, ()), path)
        return names


def expand(pattern: str) -> tuple[str, ...]:
    """Return all paths that a pattern stands for, `N` left as it is, in the order of its alternatives."""
    choices = [part.split(",") for part in _ALTERNATIVES.findall(pattern)]
    blank = _ALTERNATIVES.sub("{}", pattern)
    return tuple(blank.format(*values) for values in product(*choices))


def same(*patterns: str) -> Rows:
    """Return rows for layers that have one name in both programs."""
    return tuple((pattern, pattern) for pattern in patterns)


def _pairs(ours: str, theirs: str) -> Iterator[tuple[str, Part]]:
    paths, names = expand(ours), expand(theirs)
    if len(names) not in (1, len(paths)):
        raise ValueError(f"The patterns {ours!r} and {theirs!r} stand for {len(paths)} and {len(names)} layers.")
    fused = len(names) == 1 and len(paths) > 1
    for number, path in enumerate(paths):
        yield path, Part(names[0], number, len(paths)) if fused else Part(names[number])


def _pattern_of(path: str) -> tuple[str, str]:
    """Return a path with `N` for its first index that follows a list of blocks, and that index."""
    parts = path.split(".")
    for position, part in enumerate(parts):
        if part.isdecimal() and position and parts[position - 1].endswith("blocks"):
            return ".".join([*parts[:position], "N", *parts[position + 1 :]]), part
    return path, ""
