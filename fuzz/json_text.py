"""JSON that may be wrong on purpose: objects are lists of pairs, so that a key can come twice, and values raw text."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from json.encoder import encode_basestring as _quote
from typing import Any

_number = repr  # as json writes numbers, without its checks


class Pairs(list[Any]):
    """A JSON object as a list of [key, value]."""


@dataclass(frozen=True)
class Raw:
    """Text that is written as it is, such as NaN or a number of 5,000 digits."""

    text: str


def parse(text: str) -> Any:
    """Return the tree of a JSON text, with every object as `Pairs`."""
    return json.loads(text, object_pairs_hook=lambda pairs: Pairs([key, value] for key, value in pairs))


def write(value: Any) -> str:
    """Return the text of a tree."""
    if isinstance(value, Raw):
        return value.text
    if isinstance(value, Pairs):
        return "{" + ",".join(f"{write(key)}:{write(item)}" for key, item in value) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(write, value)) + "]"
    return (
        _quote(value)
        if isinstance(value, str)
        else _number(value)
        if type(value) in (int, float)
        else json.dumps(value)
    )


def places(value: Any) -> Iterator[tuple[list[Any], int]]:
    """Yield every place of a tree that holds a value, or a key, as a list and an index in it."""
    if isinstance(value, Pairs):
        for pair in value:
            yield pair, 0
            yield pair, 1
            yield from places(pair[1])
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield value, index
            yield from places(item)


def objects(value: Any) -> Iterator[Pairs]:
    """Yield every object of a tree."""
    if isinstance(value, Pairs):
        yield value
        for _, item in value:
            yield from objects(item)
    elif isinstance(value, list):
        for item in value:
            yield from objects(item)
