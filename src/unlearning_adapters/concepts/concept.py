"""Concepts: what is to be forgotten, given by pairs of prompts and pictures that differ in nothing else.

Shipped concepts lie in `packs/`, one YAML file each; users bring their own as YAML or JSONL, or make one in code.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from importlib import import_module
from os.path import isfile
from pathlib import Path
from typing import Any

import yaml

from unlearning_adapters.config import check_keys
from unlearning_adapters.errors import ConceptError, ConfigError

from . import file as concept_file
from .images import check_pictures, locate_pictures, relative_pictures
from .pair import Pair, check_pairs, names_in_place, pair_from_entry, pair_to_dict, pairs_digest, picture_path
from .wording import NEAR, check_prompts, find_word, near_sides, plain, show, tokens

# Modules of worlds that word a concept for every value, with `concept_named` and `names_like`; they are imported late.
WORDED = ("unlearning_adapters.shapeworld.cast.concepts",)
LISTS = ("neutral", "evaluation", "neighbours", "words")


@dataclass(frozen=True)
class Concept:
    """What is to be forgotten.

    Args:
        name: Short name, such as "no-nudity" or "shapeworld-red".
        pairs: At least one pair; five are enough for a clear direction.
        neutral: Prompts without the concept whose results must not change.
        evaluation: Held-out prompts that name the concept, worded unlike the pairs.
        neighbours: Prompts near the concept that must survive.
        description: One sentence for people.
        target: For ShapeWorld concepts, the factor and the value, such as {"colour": "red"}.
        neutral_images: Pictures without the concept whose results must not change, for image-to-video pipelines.
        words: The concept's own words and its synonyms. No safe side and no neutral prompt may hold one of them
            (whole words, any case); shared neutral prompts that do, or hold a longer word that begins with one, are
            dropped when a file is read.
    """

    name: str
    pairs: Sequence[Pair]
    neutral: Sequence[str] = ()
    evaluation: Sequence[str] = ()
    neighbours: Sequence[str] = ()
    description: str = ""
    target: Mapping[str, str] = field(default_factory=dict)
    words: Sequence[str] = ()
    neutral_images: Sequence[Any] = ()

    def __post_init__(self) -> None:
        _check_name(self.name)
        object.__setattr__(self, "pairs", check_pairs(self.pairs))
        if not self.pairs:
            raise ConceptError(f"Expected the concept {self.name!r} to have at least one pair, but it has none.")
        for name in LISTS:
            object.__setattr__(self, name, check_prompts(name, getattr(self, name)))
        if not isinstance(self.description, str):
            raise ConceptError(f"Expected `description` to be a text, but got {show(self.description)}.")
        texts = [*self.target, *self.target.values()] if isinstance(self.target, Mapping) else [None]
        if not all(isinstance(text, str) and text for text in texts):
            raise ConceptError(
                f"Expected `target` to be a factor and its value, {{colour: red}}; got {show(self.target)}."
            )
        object.__setattr__(self, "neutral_images", check_pictures("neutral_images", self.neutral_images))
        _reject_words("The safe side of entry {} of `pairs`", [pair.safe for pair in self.pairs], self.words)
        _reject_words("Entry {} of `neutral`", self.neutral, self.words)

    @property
    def pairs_hash(self) -> str:
        """SHA-256 of the prompts and pictures of all pairs, so that an adapter can say what it was made from."""
        return pairs_digest(self.pairs)

    def to_dict(self) -> dict[str, Any]:
        """Return the concept as plain types, which `from_dict` reads back; images must be paths."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        values |= {name: list(values[name]) for name in LISTS}
        values |= {"pairs": [pair_to_dict(pair) for pair in self.pairs], "target": dict(self.target)}
        values |= {"neutral_images": [picture_path(image) for image in self.neutral_images]}
        return {key: value for key, value in values.items() if value}

    def retaining(self, values: Sequence[str], like: "Concept | None" = None) -> "Concept":
        """Return this concept with further neutral prompts that name what must stay, in the sentences of the pairs.

        Sentences that name this concept in another place are left out.

        Args:
            values: What must stay, worded as the concept is in its pairs: with the pair of "Otto walks" and "a dog
                walks" the value "Luna" gives the prompt "Luna walks".
            like: Concept whose pairs give the sentences; None takes this one. Several concepts that share it share
                their neutral prompts, which are then recorded once.

        Raises:
            ConceptError: If a value is no text or names the concept, or no sentence is left to put it in.

        Example:
            >>> load_concept("shapeworld-red").retaining(["purple"]).neutral[-1]
            'a clip of a purple triangle on a white backdrop'
        """
        source = self if like is None else like
        if not isinstance(source, Concept):
            raise ConceptError(f"Expected `like` to be a Concept, but got {show(like)}. Call load_concept first.")
        names = [name.strip() for name in check_prompts("values", values)]
        _reject_words("Entry {} of `values`", names, self.words)
        for name in names:
            if any(plain(pair.unsafe_with(name) or "") == plain(pair.unsafe) != "" for pair in self.pairs):
                raise ConceptError(f"{show(name)} cannot stay, for a pair of {self.name!r} erases it. Leave it out.")
        pairs = [pair for pair in source.pairs if names_in_place(pair, source.words)]
        prompts = [prompt for name in names for pair in pairs if (prompt := pair.unsafe_with(name))]
        prompts = [prompt for prompt in prompts if not find_word(prompt, self.words)]
        if names and not prompts:
            raise ConceptError(
                f"No pair of {source.name!r} differs in one place alone, which names the concept, without naming "
                f"{self.name!r} elsewhere. Add prompts that name what must stay to `neutral`."
            )
        neutral: dict[str, str] = {}
        for prompt in (*self.neutral, *prompts):
            neutral.setdefault(plain(prompt), prompt)
        return replace(self, neutral=tuple(neutral.values()))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Concept":
        """Make a concept from the contents of a file.

        Args:
            values: The fields of a concept as plain types. A pair is a mapping of the fields of `Pair`. In `neutral`,
                the name of a shared set ("neutral", also called "shared", or "shapeworld-neutral") stands for its
                prompts without those that hold one of the concept's `words`.

        Returns:
            The concept.

        Raises:
            ConfigError: A key is not known.
            ConceptError: An entry has the wrong type, is empty, repeats another, or is not a pair of two sides.
        """
        if not isinstance(values, Mapping):
            raise ConceptError(f"Expected a concept to be a mapping with `name` and `pairs`, but got {show(values)}.")
        check_keys("a concept", values, {item.name for item in fields(cls)})
        for key in ("name", "pairs"):
            if key not in values:
                raise ConceptError(f"The concept has no `{key}`. Add it; `unlearn concepts new` writes a template.")
        plain_values = dict(values)
        if isinstance(plain_values["pairs"], (list, tuple)):
            plain_values["pairs"] = [
                pair_from_entry(index, entry) for index, entry in enumerate(plain_values["pairs"], start=1)
            ]
        plain_values["words"] = check_prompts("words", plain_values.get("words", ()))
        plain_values["neutral"] = _expand_neutral(plain_values.get("neutral", ()), plain_values["words"])
        return cls(**plain_values)


@dataclass(frozen=True)
class Overlap:
    """A held-out prompt that is too much like one that the adapter is built from.

    Args:
        held_out: Prompt of `evaluation` or `neighbours`.
        used: Side of a pair, or neutral prompt.
        similarity: Words in common divided by all words of both (Jaccard), 0 to 1; 1 is the same words.
    """

    held_out: str
    used: str
    similarity: float

    def __str__(self) -> str:
        return f"{self.held_out!r} is held out, but {self.used!r} is used (similarity {self.similarity:.2f})"


def list_concepts() -> tuple[str, ...]:
    """Return the names of the shipped concepts, sorted."""
    return tuple(name for name in concept_file.pack_names() if name not in concept_file.neutral_names())


def load_concept(source: str | Path) -> Concept:
    """Return a shipped concept, or one from a file.

    Args:
        source: A name of `list_concepts()`, a ShapeWorld value such as "red", a character, emblem, thing, motion or
            style of CastWorld such as "castworld-otto", or a `.yaml`, `.yml` or `.jsonl` file.
            A line of a JSONL file is a pair, {"unsafe": ..., "safe": ...}, or one of {"neutral": ...},
            {"evaluation": ...}, {"neighbour": ...}, {"word": ...} and {"neutral_image": ...}. Paths of pictures are
            relative to the file.

    Returns:
        The concept; its name is the stem of the file if the file gives none.

    Raises:
        ConceptError: There is no such concept or file, or the file cannot be read as one.
        ConfigError: The file has an unknown key.

    Example:
        >>> load_concept("red").name
        'shapeworld-red'
    """
    if not isinstance(source, (str, Path)):
        raise ConceptError(f"Expected the name of a concept or a file, but got {show(source)}.")
    path = Path(source)
    if isinstance(source, str):
        for name in (source, f"shapeworld-{source}"):
            if name in list_concepts():
                return Concept.from_dict({"name": name, **concept_file.read_pack(name)})
        if concept := _worded(source):
            return concept
        if path.suffix.lower() not in concept_file.SUFFIXES and not isfile(path):  # noqa: PTH113 - never raises
            raise ConceptError(_unknown(source))
    values = concept_file.read_values(path)
    try:
        if not isinstance(values, dict):
            raise ConceptError(f"Expected keys such as `pairs:`, but got {show(values)}. See `unlearn concepts new`.")
        locate_pictures(values, path.parent)
        return Concept.from_dict({"name": path.stem, **values})
    except (ConceptError, ConfigError) as error:
        raise type(error)(f"{path}: {error}") from error


def save_concept(concept: Concept, path: str | Path) -> Path:
    """Write a concept as a YAML file that `load_concept` reads back as an equal one, and return its path.

    Pictures in the folder of the file are named by relative paths, so that the folder can be moved.

    Args:
        concept: The concept; its pictures must be paths.
        path: A path that ends in ".yaml" or ".yml".

    Raises:
        ConceptError: If the path has another suffix, or a picture is not a path.

    Example:
        >>> save_concept(concept, "no-crimson.yaml")
        PosixPath('no-crimson.yaml')
    """
    if not isinstance(concept, Concept):
        raise ConceptError(f"Expected a Concept to save, but got {show(concept)}.")
    if not isinstance(path, (str, Path)) or Path(path).suffix.lower() not in (".yaml", ".yml"):
        raise ConceptError(f"{path}: a concept is saved as YAML. Give a path that ends in .yaml.")
    path = Path(path)
    values = concept.to_dict()
    relative_pictures(values, path.parent)
    text = yaml.dump(values, Dumper=concept_file.TextDumper, sort_keys=False, allow_unicode=True, width=10_000)
    try:
        path.write_text(text, encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConceptError(f"{path}: the concept cannot be written ({reason}). Choose another path.") from error
    return path


def concept_template(name: str) -> str:
    """Return the text of a commented YAML file that loads as it is and waits for the user's own prompts."""
    _check_name(name)
    return concept_file.template().replace("CONCEPT_NAME", json.dumps(name, ensure_ascii=False))


def shared_neutral(name: str = "neutral", words: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the prompts of a shared neutral set, without those that hold one of the words or a longer form of it.

    Args:
        name: "neutral" (or "shared") for real-world prompts, "shapeworld-neutral" for the embedded model.
        words: Words and phrases of the concept, in any case; a longer word that begins with one counts too, since the
            pieces of "circles", "greenhouse" and "blueprint" that a text encoder reads are the concept's own.

    Raises:
        ConceptError: There is no such set, or no prompt is left.
    """
    names = concept_file.neutral_names()
    key = "neutral" if name == "shared" else name
    if key not in names:
        raise ConceptError(f"Unknown neutral set {show(name)}. Known: {', '.join(names)}; own prompts go in a list.")
    prompts = tuple(prompt for prompt in concept_file.neutral_prompts(key) if not find_word(prompt, words, whole=False))
    if not prompts:
        raise ConceptError(f"Each prompt of the neutral set {key!r} holds one of `words`: {', '.join(words)}.")
    return prompts


def overlap(concept: Concept, threshold: float = NEAR) -> list[Overlap]:
    """Find held-out prompts that repeat the prompts of the build, so that no test measures its own examples.

    Args:
        concept: The concept to check.
        threshold: Least similarity, 0 to 1, to a side of a pair that is reported. A neutral prompt is reported only
            if it has the same words in the same order, for it is not an example of the concept.

    Returns:
        The overlaps, the most similar first; empty if there is none.
    """
    sides = dict.fromkeys(side for pair in concept.pairs for side in (pair.unsafe, pair.safe))
    neutral = {tuple(tokens(prompt)): prompt for prompt in concept.neutral}
    overlaps = []
    for held_out in (*concept.evaluation, *concept.neighbours):
        overlaps += [Overlap(held_out, used, value) for used, value in near_sides(held_out, sides, threshold)]
        same = neutral.get(tuple(tokens(held_out)))
        overlaps += [Overlap(held_out, same, 1.0)] if same else []
    return sorted(overlaps, key=lambda item: -item.similarity)


def _check_name(name: object) -> None:
    if not isinstance(name, str) or not re.fullmatch(r"\w[\w .+-]{0,99}", name):
        raise ConceptError(
            f"Expected the name of a concept to be 1 to 100 letters, digits, spaces or -_.+, but got {show(name)}."
        )


def _reject_words(where: str, prompts: Sequence[str], words: Sequence[str]) -> None:
    for index, prompt in enumerate(prompts, start=1):
        word = find_word(prompt, words)
        if word:
            raise ConceptError(
                f"{where.format(index)} names the concept ({word!r} is in `words`): {show(prompt)}. "
                "Word it without the concept, or take the word out of `words`."
            )


def _expand_neutral(values: object, words: Sequence[str]) -> object:
    """Replace the names of shared neutral sets by their prompts."""
    if isinstance(values, str):
        return shared_neutral(values, words)
    if not isinstance(values, (list, tuple)):
        return values
    sets = ("shared", *concept_file.neutral_names())
    prompts = [entry for entry in values if entry not in sets]
    shared = [prompt for entry in values if entry in sets for prompt in shared_neutral(entry, words)]
    return (*prompts, *(prompt for prompt in dict.fromkeys(shared) if prompt not in prompts))


def _worded(name: str) -> Concept | None:
    """Return the concept that a world words itself, by its name; None if no world has it."""
    concepts = (import_module(module).concept_named(name) for module in WORDED)
    return next((concept for concept in concepts if concept is not None), None)


def _unknown(source: str) -> str:
    names = list_concepts()
    near = [name for module in WORDED for name in import_module(module).names_like(source)]
    near += get_close_matches(source, [*names, *(name.removeprefix("shapeworld-") for name in names)], n=3)
    hint = f"Did you mean {' or '.join(map(repr, dict.fromkeys(near)))}? " if near else ""
    return (
        f"Unknown concept {show(source)}. {hint}Shipped: {', '.join(names)}; of CastWorld any value, such as "
        "castworld-otto. Or give a .yaml or .jsonl file."
    )
