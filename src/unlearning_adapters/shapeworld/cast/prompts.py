"""Held-out prompts of CastWorld with known truth."""

import numpy as np

from unlearning_adapters.errors import ConfigError
from unlearning_adapters.shapeworld.world.prompts import LabelledPrompt

from .captions import held_out_caption
from .roster import HELD_OUT, SHORT, is_described, roster
from .scenes import IMPLIED, SETTINGS, THINGS, sample_scene

FORMS = {"name": -1, "description": SHORT, "held-out description": HELD_OUT}


def draw_cast_prompts(count: int, seed: int, form: str = "name", **fixed: object) -> list[LabelledPrompt]:
    """Draw held-out prompts that are silent about things; characters cycle evenly through the cast.

    Args:
        count: Number of prompts.
        seed: Seed of the draw.
        form: What stands for the character: "name", "description" (of a form and of characters that training
            describes), or "held-out description" (of a form that it never reads).
        fixed: Fields of `CastScene` that all prompts share, such as `setting="beach"`.

    Returns:
        `count` prompts. Their factors leave out the thing that the setting implies, which is there in some clips.
    """
    if form not in FORMS:
        raise ConfigError(f"Expected `form` to be one of {', '.join(map(repr, FORMS))}, but got {form!r}.")
    rng = np.random.default_rng((seed, list(FORMS).index(form)))
    cast = [index for index in range(len(roster())) if form != "description" or is_described(index)]
    order = [int(cast[index % len(cast)]) for index in range(count)]
    prompts = []
    for character in rng.permutation(order):
        # A description leaves no room for an emblem in 25 words.
        bare = {} if form == "name" else {"emblem": "", "object": ""}
        scene = sample_scene(rng, **{"character": int(character), "things": (), **bare, **fixed})
        caption = held_out_caption(rng, scene, FORMS[form], {})
        factors = {name: value for name, value in scene.factors.items() if name != IMPLIED.get(scene.setting)}
        prompts.append(LabelledPrompt(caption, factors, int(rng.integers(2**31))))
    return prompts


def draw_thing_prompts(count: int, seed: int, thing: str, mention: str, **fixed: object) -> list[LabelledPrompt]:
    """Draw held-out prompts about one thing.

    Args:
        count: Number of prompts.
        seed: Seed of the draw.
        thing: Of `THINGS`.
        mention: "implied" (in its setting, silent), "named" or "negated" (in its setting), "elsewhere" (silent, in
            other settings).
        fixed: Fields of `CastScene` that all prompts share.

    Returns:
        `count` prompts; their factors hold the thing, as "shown" where it is implied.
    """
    mentions: dict[str, dict[str, bool]] = {
        "implied": {}, "elsewhere": {}, "named": {thing: True}, "negated": {thing: False},
    }  # fmt: skip
    if thing not in THINGS or mention not in mentions:
        raise ConfigError(f"Expected a thing of {', '.join(THINGS)} and one of {', '.join(mentions)}; got {thing!r}, "
                          f"{mention!r}.")  # fmt: skip
    rng = np.random.default_rng((seed, THINGS.index(thing), list(mentions).index(mention)))
    own = next(setting for setting, implied in IMPLIED.items() if implied == thing)
    others = [setting for setting in SETTINGS if setting != own]
    prompts = []
    for _ in range(count):
        setting = str(rng.choice(others)) if mention == "elsewhere" else own
        things = (thing,) if mention in ("implied", "named") else ()
        scene = sample_scene(rng, **{"things": things, "setting": setting, **fixed})
        caption = held_out_caption(rng, scene, -1, mentions[mention])
        factors = {name: value for name, value in scene.factors.items() if name not in THINGS or name == thing}
        prompts.append(LabelledPrompt(caption, factors, int(rng.integers(2**31))))
    return prompts
