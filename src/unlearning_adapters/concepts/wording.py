"""Prompts as texts: how they compare, which words they hold, and the check of a list of them."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from unlearning_adapters.errors import ConceptError


def show(value: object) -> str:
    """Return a value for an error message, on one line and not too long."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 100 else f"{text[:97]}..."


def plain(text: str) -> str:
    """Return a text without case and without doubled spaces, so that equal prompts compare equal."""
    return " ".join(text.split()).casefold()


def tokens(text: str) -> list[str]:
    """Return the words of a prompt in order, without case and punctuation."""
    return re.findall(r"\w+", text.casefold())


def similarity(first: str, second: str) -> float:
    """Return the words in common divided by all words of both prompts (Jaccard), 0 to 1."""
    one, two = {*tokens(first)}, {*tokens(second)}
    return len(one & two) / len(one | two) if one | two else 1.0


def find_word(text: str, words: Sequence[str], *, whole: bool = True) -> str | None:
    """Return the first of some words and phrases that a prompt holds in any case, or None.

    Args:
        text: The prompt.
        words: Words and phrases.
        whole: Whether they must end where a word ends; else "circle" is found in "circles" as well.
    """
    if not words:
        return None
    choices = "|".join(re.escape(plain(word)) for word in words)
    end = r"(?!\w)" if whole else ""
    found = re.search(rf"(?<!\w)(?:{choices}){end}", plain(text))
    return found.group() if found else None


def is_prompt(value: object) -> bool:
    """Tell whether a value is a text that is not empty and that UTF-8 can write (JSON can hold half a character)."""
    return isinstance(value, str) and bool(value.strip()) and value.encode("utf-8", "ignore").decode() == value


def check_prompts(name: str, values: object) -> tuple[str, ...]:
    """Return a list of prompts as a tuple; an entry that is no text, is empty or repeats another is an error."""
    prompts = check_list(name, values)
    for index, prompt in enumerate(prompts, start=1):
        if not is_prompt(prompt):
            cure = " Put quotes around a text that holds a colon." if isinstance(prompt, Mapping) else ""
            raise ConceptError(
                f"Expected entry {index} of `{name}` to be a text that is not empty, but got {show(prompt)}.{cure}"
            )
    check_repeats(name, prompts, [plain(prompt) for prompt in prompts])
    return prompts


def check_list(name: str, values: object) -> tuple[Any, ...]:
    """Return a list as a tuple; a text or a mapping in its place is an error."""
    if isinstance(values, (str, bytes, Mapping)) or not isinstance(values, Iterable):
        raise ConceptError(f"Expected `{name}` to be a list, but got {show(values)}. Write each entry after a dash.")
    return tuple(values)


def check_repeats(name: str, entries: Sequence[object], keys: Sequence[object]) -> None:
    """Raise `ConceptError` if two entries have the same key; entries count from 1."""
    first: dict[object, int] = {}
    for index, (entry, key) in enumerate(zip(entries, keys, strict=True), start=1):
        if first.setdefault(key, index) != index:
            raise ConceptError(
                f"Entry {index} of `{name}` repeats entry {first[key]}: {show(entry)}. Remove one of them."
            )
