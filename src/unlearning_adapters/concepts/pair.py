"""Pairs: two inputs that differ only in the concept, as prompts, pictures or both."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from unlearning_adapters.config import check_keys
from unlearning_adapters.errors import ConceptError

from .images import SIDES, is_path, is_picture, picture_digest, same_picture
from .wording import WORD_OR_MARK, changed_places, check_list, check_repeats, find_word, is_prompt, plain, show


@dataclass(frozen=True)
class Pair:
    """Two inputs that differ only in the concept.

    Args:
        unsafe: Prompt that shows the concept; "" on both sides if only the pictures say what the concept is.
        safe: The same prompt without it.
        unsafe_image: Picture for an image-to-video pipeline (a path or a PIL image), or None.
        safe_image: Its counterpart without the concept, or None.

    Example:
        >>> Pair(unsafe_image="street-with-logo.png", safe_image="street.png").text_differs
        False
    """

    unsafe: str = ""
    safe: str = ""
    unsafe_image: Any = None
    safe_image: Any = None

    def __post_init__(self) -> None:
        images = {side: getattr(self, f"{side}_image") for side in ("unsafe", "safe")}
        texts = (self.unsafe, self.safe)
        wordless = all(isinstance(text, str) and not text for text in texts) and None not in images.values()
        for side, image in images.items():
            text = getattr(self, side)
            if not (is_prompt(text) or wordless):
                raise ConceptError(
                    f"Expected the {side} prompt of a pair to be a text with words, but got {show(text)}."
                )
            if not (image is None or is_picture(image)):
                raise ConceptError(f"Expected the {side} image to be a path or a PIL image, but got {show(image)}.")
        if (self.unsafe_image is None) != (self.safe_image is None):
            raise ConceptError("Expected a pair to have both images or none, but only one side has an image.")
        if not (self.text_differs or self.image_differs):
            raise ConceptError(
                f"Both sides of a pair are the same: {show(self.unsafe or self.unsafe_image)}. The safe side must "
                f"{'show a picture' if wordless else 'be worded'} without the concept."
            )

    def shown(self, side: str) -> str:
        """Return the prompt and the picture of a side, "unsafe" or "safe", as one line for people."""
        image = getattr(self, f"{side}_image")
        picture = "" if image is None else f"[{image if is_path(image) else 'a picture'}]"
        return " ".join(part for part in (getattr(self, side), picture) if part)

    def unsafe_with(self, text: str) -> str | None:
        """Return the unsafe prompt with a text in the concept's place, or None if `place_of_concept` finds no place."""
        if (place := place_of_concept(self)) is None:
            return None
        before, after = self.unsafe[: place[0].start], self.unsafe[place[0].stop :]
        # Chinese words may share a character, which is then beside the place: 红色 and 蓝色 differ in the first one.
        text = text[_overlap(before, text) :]
        return f"{before}{text[: len(text) - _overlap(text, after)]}{after}"

    @property
    def text_differs(self) -> bool:
        """Whether the prompts of the two sides differ."""
        return plain(self.unsafe) != plain(self.safe)

    @property
    def image_differs(self) -> bool:
        """Whether the pictures of the two sides differ."""
        return not same_picture(self.unsafe_image, self.safe_image)


def check_pairs(values: object) -> tuple[Pair, ...]:
    """Return a list of pairs as a tuple; an entry that is no pair or repeats another is an error."""
    pairs = check_list("pairs", values)
    keys = []
    for index, pair in enumerate(pairs, start=1):
        if not isinstance(pair, Pair):
            raise ConceptError(f"Expected entry {index} of `pairs` to be a Pair, but got {show(pair)}.")
        images = [str(image) if is_path(image) else id(image) for image in (pair.unsafe_image, pair.safe_image)]
        keys.append((plain(pair.unsafe), plain(pair.safe), *images))
    check_repeats("pairs", pairs, keys)
    return pairs


def pair_from_entry(index: int, entry: object) -> Pair:
    """Make a pair of one entry of a file; errors name the entry."""
    if isinstance(entry, Pair):
        return entry
    where = f"entry {index} of `pairs`"
    if not isinstance(entry, Mapping):
        raise ConceptError(f"Expected {where} to be a mapping with `unsafe` and `safe`, but got {show(entry)}.")
    check_keys(where, entry, {item.name for item in fields(Pair)})
    for side in ("unsafe", "safe"):
        if side not in entry and not set(SIDES) <= set(entry):
            raise ConceptError(f"The {side} prompt of {where} is missing. Add `{side}: ...` to {show(dict(entry))}.")
    try:
        return Pair(**entry)
    except ConceptError as error:
        raise ConceptError(f"{where.capitalize()}: {error}") from None


def pair_to_dict(pair: Pair) -> dict[str, str]:
    """Return a pair as plain texts, which `pair_from_entry` reads back; pictures must be paths."""
    values = {side: text for side in ("unsafe", "safe") if (text := getattr(pair, side))}
    images = {side: getattr(pair, side) for side in SIDES}
    return values | {side: picture_path(image) for side, image in images.items() if image is not None}


def pairs_digest(pairs: Sequence[Pair]) -> str:
    """Return the SHA-256 of the prompts and pictures of pairs, as 64 hexadecimal digits."""
    sides = []
    for pair in pairs:
        images = [getattr(pair, side) for side in SIDES]
        sides.append([pair.unsafe, pair.safe, *(picture_digest(image) for image in images if image is not None)])
    return hashlib.sha256(json.dumps(sides, ensure_ascii=False).encode()).hexdigest()


def picture_path(image: Any) -> str:
    """Return the absolute path of a picture; one that is not a path is an error."""
    if not is_path(image):
        raise ConceptError(f"Cannot write a picture of type {type(image).__name__}. Save it and give its path.")
    return str(Path(image).resolve())


def place_of_concept(pair: Pair) -> tuple[slice, str] | None:
    """Return where the unsafe prompt of a pair has other words, and the safe words in their place.

    None if the sides differ in more than one place, or one of them says nothing there.
    """
    unsafe, safe = (list(WORD_OR_MARK.finditer(text)) for text in (pair.unsafe, pair.safe))
    places = changed_places([word.group() for word in unsafe], [word.group() for word in safe])
    if len(places) != 1 or not (unsafe[places[0][0]] and safe[places[0][1]]):
        return None
    old, new = unsafe[places[0][0]], safe[places[0][1]]
    return slice(old[0].start(), old[-1].end()), pair.safe[new[0].start() : new[-1].end()]


def names_in_place(pair: Pair, words: Sequence[str]) -> bool:
    """Tell whether the sides differ in one place, and words of the concept are there if the unsafe prompt has some.

    "with a cat" and "without a cat" differ where neither names it.
    """
    place = place_of_concept(pair)
    return place is not None and not (find_word(pair.unsafe, words) and not find_word(pair.unsafe[place[0]], words))


def _overlap(one: str, other: str) -> int:
    """Return the length of the longest end of one text with which another begins."""
    return next(length for length in range(len(other), -1, -1) if one.endswith(other[:length]))
