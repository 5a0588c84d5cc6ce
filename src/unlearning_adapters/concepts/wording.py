"""Prompts as texts: how they compare, which words they hold, and the check of a list of them."""

import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import SequenceMatcher
from typing import Any

from unlearning_adapters.errors import ConceptError

SOLID = "\u0e00-\u0e7f\u3040-\u309f\u3400-\u9fff"  # Thai, hiragana and Chinese: no spaces between words
MARKS = "\u0300-\u036f\u0591-\u05bd\u064b-\u065f\u0900-\u0963\u0966-\u0d7f"  # accents, vowel signs: not in `\w`
LETTER = rf"(?:[^\W{SOLID}]|[{MARKS}])"  # of a word that ends at a space or a mark
WORD = re.compile(rf"[{SOLID}]|{LETTER}+")
WORD_OR_MARK = re.compile(rf"[{SOLID}]|(?:{LETTER}|['-])+|[^\w\s]")
NEAR = 0.75  # similarity to a side of a pair from which a held-out prompt is no test


def show(value: object) -> str:
    """Return a value for an error message, on one line and not too long."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 100 else f"{text[:97]}..."


def plain(text: str) -> str:
    """Return a text without case and without doubled spaces, so that equal prompts compare equal."""
    return " ".join(text.split()).casefold()


def tokens(text: str) -> list[str]:
    """Return the words of a prompt in order, without case and punctuation; of Chinese, each character."""
    return WORD.findall(text.casefold())


def similarity(first: str, second: str) -> float:
    """Return the words in common divided by all words of both prompts (Jaccard), 0 to 1."""
    one, two = {*tokens(first)}, {*tokens(second)}
    return len(one & two) / len(one | two) if one | two else 1.0


def near_sides(prompt: str, sides: Iterable[str], least: float = NEAR) -> list[tuple[str, float]]:
    """Return the sides of pairs that a prompt nearly repeats, with their similarity, the most similar first."""
    near = [(side, similarity(prompt, side)) for side in sides]
    return sorted((item for item in near if item[1] >= least), key=lambda item: -item[1])


def changed_places(one: Sequence[str], other: Sequence[str]) -> list[tuple[slice, slice]]:
    """Return the places in which two lists of words differ, as slices of both; one is empty where words were added."""
    matcher = SequenceMatcher(None, one, other, autojunk=False)
    return [(slice(a, b), slice(c, d)) for kind, a, b, c, d in matcher.get_opcodes() if kind != "equal"]


def find_word(text: str, words: Sequence[str], *, whole: bool = True) -> str | None:
    """Return the first of some words and phrases that a prompt holds in any case, or None.

    Args:
        text: The prompt.
        words: Words and phrases.
        whole: Whether they must end where a word ends. If not, "circle" is also found in "circles".
    """
    if not words:
        return None
    choices = "|".join(re.escape(plain(word)) for word in words)
    end = rf"(?!{LETTER})" if whole else ""
    match = re.search(rf"(?<!{LETTER})(?:{choices}){end}", plain(text))
    return match.group() if match else None


def leave_out(text: str, words: Sequence[str], replacement: str = "") -> str:
    """Return a prompt without some words and phrases, in any case; the prompt itself if nothing else is in it.

    Args:
        text: The prompt.
        words: Words and phrases; of two that begin alike the longer one is found.
        replacement: What stands in their place.
    """
    phrases = (r"\s+".join(map(re.escape, word.split())) for word in sorted(words, key=len, reverse=True))
    choices = "|".join(phrases)
    if not choices:
        return text
    pattern = rf"(?<!{LETTER})(?:{choices})(?!{LETTER})"
    shorter, count = re.subn(pattern, lambda _: replacement, text, flags=re.IGNORECASE)
    return " ".join(shorter.split()) or text if count else text


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
    """Return a list as a tuple; a text, a mapping or a tensor of one number in its place is an error."""
    try:
        if isinstance(values, Iterable) and not isinstance(values, (str, bytes, Mapping)):
            return tuple(values)
    except TypeError:  # a tensor without a dimension says that it can be iterated
        pass
    raise ConceptError(f"Expected `{name}` to be a list, but got {show(values)}. Write each entry after a dash.")


def check_repeats(name: str, entries: Sequence[object], keys: Sequence[object]) -> None:
    """Raise `ConceptError` if two entries have the same key; entries count from 1."""
    first: dict[object, int] = {}
    for index, (entry, key) in enumerate(zip(entries, keys, strict=True), start=1):
        if first.setdefault(key, index) != index:
            raise ConceptError(
                f"Entry {index} of `{name}` repeats entry {first[key]}: {show(entry)}. Remove one of them."
            )
