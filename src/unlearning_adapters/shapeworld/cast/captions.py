"""The language of CastWorld: sentences of 8 to 25 words about a scene, by grammars.

A caption may be silent about a thing that its setting brings along, as prompts are. It names or negates such a thing
equally often, so that silence says nothing and leaves the thing at its rate. In other settings it names what is there.
Held-out templates, words and forms of descriptions, the descriptions of every eighth character, and the tenth of all
sentences that `is_held_out` picks are never used in training.
"""

from dataclasses import dataclass

import numpy as np

from unlearning_adapters.errors import ConfigError
from unlearning_adapters.shapeworld.world.captions import article, is_held_out

from .roster import HELD_OUT, LONG, SHORT, is_described, roster
from .scenes import IMPLIED, THINGS, CastScene

WORDS = (8, 25)  # of a sentence

# The last phrase of each is held out from training.
MOTION_PHRASES: dict[str, tuple[str, ...]] = {
    "left": ("walks to the left", "moves left", "goes leftwards", "heads towards the left"),
    "right": ("walks to the right", "moves right", "goes rightwards", "heads towards the right"),
    "rises": ("rises", "floats up", "rises upwards", "goes up into the air"),
    "sinks": ("sinks", "floats down", "sinks downwards", "goes down to the ground"),
    "jumps": ("jumps", "hops up and down", "leaps into the air", "jumps up and down"),
    "sways": ("sways from side to side", "swings to and fro", "sways sideways", "swings from side to side"),
}
SETTING_PHRASES: dict[str, tuple[str, ...]] = {
    "beach": ("on a beach", "at the beach", "on a sandy beach", "on the beach by the sea"),
    "rain": ("in the rain", "on a rainy day", "in a rainy street", "in heavy rain"),
    "party": ("at a party", "at a birthday party", "in a party room", "during a birthday party"),
    "game": ("in a rough ball game", "during a rough ball game", "at a rough ball game", "in a rough game of ball"),
    "forest": ("in a forest", "in the forest", "in the woods", "among trees in a forest"),
    "snow": ("in the snow", "on a snowy field", "in snowy weather", "on a field of snow"),
}
STYLE_PHRASES: dict[str, tuple[str, ...]] = {
    "flat": ("in flat colours", "as a flat cartoon", "as a flat coloured picture"),
    "line": ("as a line drawing", "drawn in lines", "as a drawing in lines"),
    "grain": ("on grainy film", "with film grain", "as an old grainy film"),
    "night": ("at night", "after dark", "in the dark of night"),
}
THING_PHRASES: dict[str, tuple[str, ...]] = {
    "hat": ("wearing a hat", "with a hat", "with a hat on the head"),
    "umbrella": ("under an umbrella", "with an umbrella", "holding an umbrella"),
    "balloon": ("with a balloon", "near a balloon", "and there is a balloon"),
    "fall": ("and falls over", "and takes a fall", "and then falls down"),
}
NEGATIONS: dict[str, tuple[str, ...]] = {
    "hat": ("without a hat", "with no hat", "not wearing a hat"),
    "umbrella": ("without an umbrella", "with no umbrella", "not holding an umbrella"),
    "balloon": ("without a balloon", "with no balloon", "and there is no balloon"),
    "fall": ("without a fall", "and never falls", "and does not fall"),
}
NEAR = ("beside", "next to", "near")
BEARS = ("with {emblem}", "that shows {emblem}", "with {emblem} on it")
OPENINGS = ("a video of", "a clip of", "an animation of", "footage of")
EMBLEM_NAMES = {"bars": "equals sign", "plus": "plus sign", "bolt": "lightning bolt"}


@dataclass(frozen=True)
class Template:
    """A sentence with slots; {rest} holds things, object and style."""

    text: str
    held_out: bool = False


TEMPLATES = (
    Template("{who} {motion} {where} {rest}"),
    Template("{where}, {who} {motion} {rest}"),
    Template("{opening} {who}, who {motion} {where} {rest}"),
    Template("in this video {who} {motion} {where} {rest}"),
    Template("a short clip in which {who} {motion} {where} {rest}"),
    Template("there is {who}, who {motion} {where} {rest}"),
    Template("we see how {who} {motion} {where} {rest}", held_out=True),
    Template("{where} you can watch {who}, who {motion} {rest}", held_out=True),
)


@dataclass(frozen=True)
class Mentions:
    """What a caption speaks of.

    Args:
        form: Of the description that stands for the name, or -1 for the name.
        named: Factors that it names, of character, motion, setting, style and emblem.
        things: Thing -> whether it is named (True) or negated (False); silent about the others.
        held_out: Whether templates and words are drawn from all, with the held-out ones; else from the trained ones.
    """

    form: int
    named: frozenset[str]
    things: dict[str, bool]
    held_out: bool = False


def pick(rng: np.random.Generator, phrases: tuple[str, ...], held_out: bool) -> str:
    """Return one of the phrases; the last only if held-out ones may be used."""
    return str(phrases[rng.integers(len(phrases) if held_out else len(phrases) - 1)])


def emblem_phrase(rng: np.random.Generator, scene: CastScene) -> str:
    """Return "next to a box with a star"."""
    bears = str(rng.choice(BEARS)).format(emblem=article(EMBLEM_NAMES.get(scene.emblem, scene.emblem)))
    return f"{rng.choice(NEAR)} a {scene.object} {bears}"


def compose(rng: np.random.Generator, scene: CastScene, mentions: Mentions) -> str:
    """Return one sentence, of any length, that says of a scene what `mentions` holds."""
    free, named = mentions.held_out, mentions.named
    character = roster()[scene.character]
    rest = [
        pick(rng, THING_PHRASES[thing] if shown else NEGATIONS[thing], free)
        for thing, shown in sorted(mentions.things.items(), key=lambda item: THINGS.index(item[0]))
    ]
    if "emblem" in named and scene.emblem:
        rest.append(emblem_phrase(rng, scene))
    if "style" in named:
        rest.append(pick(rng, STYLE_PHRASES[scene.style], free))
    templates = [template for template in TEMPLATES if free or not template.held_out]
    template = templates[rng.integers(len(templates))]
    text = template.text.format(
        who=character.name.capitalize() if mentions.form < 0 else character.descriptions[mentions.form],
        motion=pick(rng, MOTION_PHRASES[scene.motion], free) if "motion" in named else "is seen",
        where=pick(rng, SETTING_PHRASES[scene.setting], free) if "setting" in named else "",
        opening=str(rng.choice(OPENINGS)),
        rest=", ".join(rest),
    )
    parts = [" ".join(part.split()) for part in text.split(",")]
    return ", ".join(part for part in parts if part)


def draw_mentions(rng: np.random.Generator, scene: CastScene) -> Mentions:
    """Draw what a training caption of a scene speaks of."""
    form = -1
    if is_described(scene.character) and rng.random() < 0.35:
        form = SHORT if rng.random() < 0.6 else LONG
    silent = {"motion": 0.1, "setting": 0.1, "style": 0.2, "emblem": 0.1}
    named = {name for name, chance in silent.items() if rng.random() >= chance}
    things = {}
    for thing in THINGS:
        shown = thing in scene.things
        own = IMPLIED.get(scene.setting) == thing and "setting" in named
        if rng.random() < (0.5 if own else 1.0 if shown else 0.05):
            things[thing] = shown
    return Mentions(form, frozenset(named | {"character"}), things)


def describe(rng: np.random.Generator, scene: CastScene) -> str:
    """Return a training caption of a scene, of 8 to 25 words, which is not held out."""
    mentions = draw_mentions(rng, scene)
    spare = ["form", "style", "emblem", "motion", "description"]
    for attempt in range(200):
        caption = compose(rng, scene, mentions)
        count = len(caption.split())
        if WORDS[0] <= count <= WORDS[1] and not is_held_out(caption):
            return caption
        if count > WORDS[1] and attempt % 10 == 9:
            # What the sentence has no room for is left out; never a thing, on whose mentions their rates rest.
            dropped = spare.pop(0) if spare else ""
            longest = {"form": SHORT, "description": -1}.get(dropped, mentions.form)
            form = min(mentions.form, longest)
            mentions = Mentions(form, mentions.named - {dropped}, mentions.things)
        if count < WORDS[0] and attempt % 20 == 19:
            mentions = Mentions(mentions.form, mentions.named | {"motion", "setting", "style"}, mentions.things)
    raise AssertionError(f"No caption of {WORDS} words for {scene} with {mentions}.")


def held_out_caption(rng: np.random.Generator, scene: CastScene, form: int, things: dict[str, bool]) -> str:
    """Return a caption that names all factors (but things, of which it says `things`), and that training never saw.

    Args:
        rng: Source of randomness.
        scene: What it asks for.
        form: -1 for the name, otherwise the form of the description.
        things: Thing -> whether it is named (True) or negated (False).

    Returns:
        One sentence of 8 to 25 words.

    Raises:
        ConfigError: If no sentence of that length says so much.
    """
    named = frozenset({"character", "motion", "setting", "style", "emblem"})
    mentions = Mentions(form, named, things, held_out=True)
    for _ in range(2000):
        caption = compose(rng, scene, mentions)
        unseen = form == HELD_OUT or not is_trained(caption)
        if unseen and WORDS[0] <= len(caption.split()) <= WORDS[1]:
            return caption
    raise ConfigError(f"No sentence of {WORDS[0]} to {WORDS[1]} words says all of {scene}; leave out its emblem.")


def is_trained(caption: str) -> bool:
    """Tell whether training may have seen a caption: it is not of the held-out tenth and has no held-out part."""
    tables = (MOTION_PHRASES, SETTING_PHRASES, STYLE_PHRASES, THING_PHRASES, NEGATIONS)
    unseen = [phrases[-1] for table in tables for phrases in table.values()] + ["we see how", "you can watch"]
    return not is_held_out(caption) and not any(phrase in caption for phrase in unseen)
