"""The language of ShapeWorld: words for every factor value, sentence templates, and captions of scenes.

Templates with `held_out=True` and captions that fall in the held-out tenth are never used in training, so that
the gate and every evaluation speak to the model in sentences that it has not seen.
"""

import hashlib
from dataclasses import dataclass

import numpy as np

from .scenes import FACTORS, Scene

Lexicon = dict[str, dict[str, tuple[str, ...]]]  # factor -> value -> its words, the plain one first

WORDS: Lexicon = {
    "colour": {
        "red": ("red", "crimson", "scarlet"),
        "green": ("green", "emerald", "jade"),
        "blue": ("blue", "azure", "cobalt"),
        "yellow": ("yellow", "golden", "amber"),
    },
    "shape": {
        "circle": ("circle", "disc", "ball"),
        "square": ("square", "box", "block"),
        "triangle": ("triangle", "pyramid", "wedge"),
        "cross": ("cross", "plus", "crosspiece"),
    },
    "motion": {
        "left": ("left", "to the left", "leftward", "leftwards"),
        "right": ("right", "to the right", "rightward", "rightwards"),
        "up": ("up", "to the top", "upward", "upwards"),
        "down": ("down", "to the bottom", "downward", "downwards"),
    },
    "background": {
        "black": ("black", "dark"),
        "white": ("white", "bright"),
        "grey": ("grey", "gray"),
    },
}

ANY_SHAPE = ("shape", "object", "thing", "figure")
VERBS = ("moves", "drifts", "slides", "glides", "travels", "goes")
MOVING = {
    "moves": "moving",
    "drifts": "drifting",
    "slides": "sliding",
    "glides": "gliding",
    "travels": "travelling",
    "goes": "going",
}
PLURAL = {"moves": "move", "drifts": "drift", "slides": "slide", "glides": "glide", "travels": "travel", "goes": "go"}
BACKDROPS = ("background", "backdrop")
FILLERS = ("slowly", "smoothly", "steadily", "gently", "quietly", "simply")
SETTINGS = ("a video of", "a clip of", "an animation of", "footage of", "a short film of")


@dataclass(frozen=True)
class Template:
    """A sentence with slots: {thing} "a red circle", {verb} "moves left", {moving} "moving left", {on} "on a ..."."""

    text: str
    held_out: bool = False


TEMPLATES: tuple[Template, ...] = (
    Template("{thing} {verb} {on}"),
    Template("{thing} {moving} {on}"),
    Template("{on}, {thing} {verb}"),
    Template("{setting} {thing} {moving} {on}"),
    Template("{setting} {thing} that {verb} {on}"),
    Template("there is {thing} {moving} {on}"),
    Template("{thing}, {moving}, {on}"),
    Template("{thing} {filler} {verb} {on}"),
    Template("{thing} {on} {moving}"),
    Template("{setting} {thing} {on}, {moving}"),
    Template("we see {thing} that {verb} {on}", held_out=True),
    Template("{on} there is {thing} which {verb}", held_out=True),
)
TRAIN_TEMPLATES = tuple(template for template in TEMPLATES if not template.held_out)
HELD_OUT_TEMPLATES = tuple(template for template in TEMPLATES if template.held_out)


def article(words: str) -> str:
    """Return the words with "a" or "an" before them."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def name_thing(colour: str | None, shape: str) -> str:
    """Return "a red circle"; a colour of several words that cannot stand in front follows the shape."""
    if colour and colour.startswith(("the ", "as ")):
        return f"{article(shape)} {colour}"
    return article(f"{colour} {shape}" if colour else shape)


def is_held_out(caption: str) -> bool:
    """Tell whether training never sees a caption; a tenth is held out, by hash, so that all machines agree."""
    return hashlib.sha256(caption.encode()).digest()[0] < 26


@dataclass(frozen=True)
class Wording:
    """The words of one caption: which word stands for each factor value; None leaves a factor out."""

    words: dict[str, str | None]
    verb: str = "moves"
    any_shape: str = "shape"
    filler: str = "slowly"
    setting: str = "a video of"
    backdrop: str = "background"


def compose(template: Template, wording: Wording) -> str:
    """Fill a template with words; factors that are None leave no trace in the sentence."""
    colour, shape = wording.words["colour"], wording.words["shape"] or wording.any_shape
    motion, background = wording.words["motion"], wording.words["background"]
    on = f"on a {background} {wording.backdrop}" if background else ""
    filled = template.text.format(
        thing=name_thing(colour, shape),
        verb=f"{wording.verb} {motion}" if motion else "is shown",
        moving=f"{MOVING[wording.verb]} {motion}" if motion else "",
        filler=wording.filler,
        setting=wording.setting,
        on=on,
    )
    parts = [" ".join(part.split()) for part in filled.split(",")]
    return ", ".join(part for part in parts if part)


def compose_pair(first: Scene, wording: Wording, other: tuple[str, str]) -> str:
    """Return a caption of a scene with two bodies, "a red circle and a blue square move left on a black background"."""
    body = first.bodies[0]
    one = name_thing(wording.words["colour"] or body.colour, wording.words["shape"] or body.shape)
    text = f"{one} and {name_thing(*other)} {PLURAL[wording.verb]} {wording.words['motion'] or body.motion}"
    background = wording.words["background"]
    return f"{text} on a {background} {wording.backdrop}" if background else text


def draw_wording(
    rng: np.random.Generator,
    factors: dict[str, str],
    leave_out: float,
    synonyms: bool,
    lexicon: Lexicon = WORDS,
    plain_share: float = 0.5,
) -> Wording:
    """Choose words for factor values.

    Args:
        rng: Source of randomness.
        factors: Value of each factor.
        leave_out: Chance, for each factor, that the caption does not mention it.
        synonyms: Whether other words than the value's own name may be used.
        lexicon: The words to choose from.
        plain_share: Share of the mentions that use the plain word for sure, so that it stays the best known.

    Returns:
        The words of one caption.
    """
    words: dict[str, str | None] = {}
    for name in FACTORS:
        choices = lexicon[name][factors[name]]
        plain = not synonyms or rng.random() < plain_share
        words[name] = None if rng.random() < leave_out else (choices[0] if plain else str(rng.choice(choices)))
    return Wording(
        words,
        verb=str(rng.choice(VERBS)),
        any_shape=str(rng.choice(ANY_SHAPE)),
        filler=str(rng.choice(FILLERS)),
        setting=str(rng.choice(SETTINGS)),
        backdrop=str(rng.choice(BACKDROPS)),
    )


def describe(
    rng: np.random.Generator,
    scene: Scene,
    leave_out: float = 0.15,
    synonyms: bool = True,
    lexicon: Lexicon = WORDS,
    plain_share: float = 0.5,
) -> str:
    """Return a training caption of a scene: a random training template and wording that is not held out."""
    while True:
        wording = draw_wording(rng, scene.factors, leave_out, synonyms, lexicon, plain_share)
        if len(scene.bodies) == 2:
            second = scene.bodies[1]
            other = (
                str(rng.choice(lexicon["colour"][second.colour])),
                str(rng.choice(lexicon["shape"][second.shape])),
            )
            caption = compose_pair(scene, wording, other)
        else:
            caption = compose(TRAIN_TEMPLATES[rng.integers(len(TRAIN_TEMPLATES))], wording)
        if not is_held_out(caption):
            return caption


def held_out_caption(
    rng: np.random.Generator, factors: dict[str, str], synonyms: bool = False, templates: str = "any"
) -> str:
    """Return a caption that names all four factors and that training never saw.

    Args:
        rng: Source of randomness.
        factors: Value of each factor.
        synonyms: Whether synonyms may be used.
        templates: "any" draws from all templates (then the caption is of the held-out tenth or of a held-out
            template), "held-out" from the held-out templates only.

    Returns:
        One sentence.
    """
    choices = HELD_OUT_TEMPLATES if templates == "held-out" else TEMPLATES
    while True:
        template = choices[rng.integers(len(choices))]
        caption = compose(template, draw_wording(rng, factors, 0.0, synonyms))
        if template.held_out or is_held_out(caption):
            return caption


def vocabulary() -> tuple[str, ...]:
    """Return every word that a caption can hold, sorted."""
    words = {
        word for factor in WORDS.values() for values in factor.values() for value in values for word in value.split()
    }
    words |= {*ANY_SHAPE, *VERBS, *MOVING.values(), *PLURAL.values(), *BACKDROPS, *FILLERS}
    words |= {word for setting in SETTINGS for word in setting.split()}
    for template in TEMPLATES:
        words |= {word.strip(",") for word in template.text.split() if "{" not in word}
    return tuple(sorted(words | {"a", "an", "and", "on", "is", "shown"}))
