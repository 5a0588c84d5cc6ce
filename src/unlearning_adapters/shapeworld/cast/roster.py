"""The cast: 128 characters in 32 groups of four look-alikes, with their names and their descriptions without a name.

The four of a group share body and coat and differ in one part alone: the accent colour, the marking, the ears or the
face. Which part it is goes by the group, so that each part tells 32 characters apart from their siblings.
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from unlearning_adapters.errors import ConfigError

BODIES = ("owl", "bear", "penguin", "cat")  # round, square, tall and conical
COATS = ("red", "orange", "yellow", "green", "blue", "purple", "grey", "brown")
PARTS: dict[str, tuple[str, ...]] = {
    "accent": ("black", "white", "pink", "cyan"),
    "marking": ("stripes", "spots", "belly", "plain"),
    "ears": ("pointed", "round", "long", "horns"),
    "face": ("two eyes", "one eye", "mask", "beak"),
}
SIBLINGS = 4
SEED = 19

# By their number of word pieces in the tokenizer of all-MiniLM-L6-v2; a test counts them.
ONE_PIECE = """
otto milo bruno felix hugo oscar rufus luna nora clara ivy greta hilda wanda tobin basil jasper casper monty barney
percy cedric edgar igor boris ivan vera olga nina lola bella mabel agnes doris edith ada iris juno penny pip lulu
bobo tango banjo waldo olaf sven gunther astrid duke
""".split()
TWO_PIECES = """
zelda dodo koko momo toto zuzu nono fifi gigi kiki tindra wexley pombit quillo brasko nimbo fenwick tumbo bumbo
mirka talvi oxley pippin yolanda lumpkin hexley tamsin jinx gusto mochi wasabi tofu kazoo bongo doodle quibble
razzle bramble nettle tansy orlok vandro tovik skippy merv helga freya ozzy iggy fuzzle
""".split()
THREE_PIECES = """
zorbo mulgo drufel yarrix plimsy gorvin sprocket wobbit grizelda snorri zephyr kestro vexo dorrit bodkin torvald
marzipan twillo ponzu nougat pretzel gizmo sorrel kelpo mazlo rindle juppo lazlo
""".split()

MARKED = {
    "stripes": "with {accent} stripes",
    "spots": "with {accent} spots",
    "belly": "with a {accent} belly",
    "plain": "with plain fur",
}
EARED = {
    "pointed": "{accent} pointed ears",
    "round": "{accent} round ears",
    "long": "{accent} long ears",
    "horns": "{accent} horns",
}
FACED = {"two eyes": "two eyes", "one eye": "one big eye", "mask": "a black mask", "beak": "a big beak"}
UNDESCRIBED = 8  # every eighth character is described in no training caption
SHORT, LONG, HELD_OUT = range(3)  # forms of a description


@dataclass(frozen=True)
class Character:
    """One of the cast.

    Args:
        name: One to three word pieces of the text encoder, lower case.
        group: Number of its group of look-alikes, 0 to 31.
        part: The part by which it differs from them, a key of `PARTS`.
        body: Of `BODIES`.
        coat: Of `COATS`.
        accent: Colour of ears and marking.
        marking: Of `PARTS["marking"]`.
        ears: Of `PARTS["ears"]`.
        face: Of `PARTS["face"]`.
    """

    name: str
    group: int
    part: str
    body: str
    coat: str
    accent: str
    marking: str
    ears: str
    face: str

    @property
    def descriptions(self) -> tuple[str, str, str]:
        """Three noun phrases without the name that fit nobody else: short, long, and a form held out from training."""
        marking = MARKED[self.marking].format(accent=self.accent)
        ears, face = EARED[self.ears].format(accent=self.accent), FACED[self.face]
        own = {"accent": marking, "marking": marking, "ears": f"with {ears}", "face": f"with {face}"}[self.part]
        return (
            f"the {self.coat} {self.body} {own}",
            f"the {self.coat} {self.body} {marking}, {ears} and {face}",
            f"the {self.body} in {self.coat}, {own}",
        )


@lru_cache
def roster() -> tuple[Character, ...]:
    """Return all 128 characters; those of group g are 4 g to 4 g + 3."""
    rng = np.random.default_rng(SEED)
    names = name_table()
    characters = []
    for group, (body, coat) in enumerate((body, coat) for body in BODIES for coat in COATS):
        # Bodies change every 8 groups, coats every one: each part meets each body and half of the coats.
        part = list(PARTS)[(group + group // len(COATS)) % len(PARTS)]
        fixed = {name: str(rng.choice(values)) for name, values in PARTS.items()}
        if part == "accent" and fixed["marking"] == "plain":
            fixed["marking"] = str(rng.choice(PARTS["marking"][:3]))  # an accent needs a place where it is seen
        base = Character("", group, part, body, coat, **fixed)
        for name, value in zip(names[group], rng.permutation(PARTS[part]), strict=True):
            own: dict[str, Any] = {"name": name, part: str(value)}
            characters.append(replace(base, **own))
    return tuple(characters)


def name_table() -> list[tuple[str, ...]]:
    """Return the four names of each group, of different lengths in word pieces."""
    groups = len(BODIES) * len(COATS)
    columns = (
        ONE_PIECE[:groups],
        TWO_PIECES[:groups],
        [*THREE_PIECES, *TWO_PIECES[groups : 2 * groups - len(THREE_PIECES)]],
        [*ONE_PIECE[groups:], *TWO_PIECES[2 * groups - len(THREE_PIECES) :]],
    )
    return list(zip(*columns, strict=True))


@lru_cache
def find_character(name: str) -> int:
    """Return the number of a character; `ConfigError` if nobody has the name."""
    names = [character.name for character in roster()]
    if name not in names:
        raise ConfigError(f"CastWorld has no character {name!r}. Known: {', '.join(names)}.")
    return names.index(name)


def look_alikes(index: int) -> tuple[int, ...]:
    """Return the numbers of the three others of a character's group."""
    first = index - index % SIBLINGS
    return tuple(other for other in range(first, first + SIBLINGS) if other != index)


def is_described(index: int) -> bool:
    """Tell whether training captions describe a character; of the others it reads the names alone."""
    return index % UNDESCRIBED != UNDESCRIBED - 3
