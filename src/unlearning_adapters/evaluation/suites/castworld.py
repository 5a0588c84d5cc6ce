"""Suites of CastWorld: what is named, described, implied or negated, what is near to it, and look-alikes."""

from collections.abc import Sequence
from dataclasses import replace

from unlearning_adapters.concepts.wording import find_word, leave_out
from unlearning_adapters.evaluation.metrics import FORGET, GENERIC, NEIGHBOUR, PARAPHRASE, UNRELATED
from unlearning_adapters.shapeworld.cast.prompts import draw_thing_prompts
from unlearning_adapters.shapeworld.cast.roster import find_character, is_described, look_alikes, roster
from unlearning_adapters.shapeworld.cast.scenes import IMPLIED, SETTINGS, THINGS
from unlearning_adapters.shapeworld.cast.values import (
    cast_factor,
    cast_targets,
    draw_value_prompts,
    even_shares,
    other_values,
    words_of,
)
from unlearning_adapters.shapeworld.models.generate import CAST_GENERATION
from unlearning_adapters.shapeworld.world.prompts import LabelledPrompt

from .suite import PromptSet, Suite
from .world import SEED, World, prompt_set, sides_of

SCENE = ("character", "motion", "setting", "style", "emblem", "object")  # what the rest of a scene is judged by
SURPLUS = 8  # prompts that are drawn for each one with a phrase of the rarer kind
PLAIN = tuple(setting for setting in SETTINGS if setting not in IMPLIED)  # settings that bring nothing along
FILLERS = {"character": "somebody", "emblem": "mark", "motion": "is seen"}


def castworld_suite(value: str, clips: int = 24, seed: int = SEED) -> Suite:
    """Return the suite of a character, emblem, thing, motion or style of CastWorld, such as "otto" or "hat".

    Its sets: "forget" names it, and "neighbours" names others of its kind. Of a character: "description" and
    "held-out-description" describe it without its name, and "look-alikes" names its three siblings. Of a thing:
    "implied" is silent about it in the setting that brings it along, "negated" says that it is not there, "elsewhere"
    names it in settings that bring nothing along. Of a thing, a motion and a style: "other-words" names it by a phrase
    that training never saw. Of a motion and a style: "open" leaves it out.

    Args:
        value: What is to be forgotten.
        clips: Prompts of each of "forget", "implied" and "neighbours"; the other sets have half as many.
        seed: Seed of the prompts and of their noise.
    """
    sets = (
        *named_sets(value, clips, seed),
        neighbour_set("neighbours", other_values(value), clips, seed + 10),
        *further_sets(value, clips, seed),
    )
    name, call = CASTWORLD.concept_name(value), dict(CAST_GENERATION)
    return Suite(name, sets, cast_targets()[value], call, words_of(value), sides_of(name), sensitive=False)


def named_sets(value: str, clips: int, seed: int) -> list[PromptSet]:
    """Return the sets that name a value: by phrases of the training, and by the one that it never saw, if there is."""
    factor, words = cast_factor(value), words_of(value)
    if factor in ("character", "emblem"):
        return [prompt_set("forget", FORGET, scene_truth(draw_value_prompts(clips, seed, value), factor))]
    drawn = scene_truth(draw_value_prompts(SURPLUS * max(clips, 4), seed, value), factor)
    trained = [prompt for prompt in drawn if not find_word(prompt.prompt, words[-1:])]
    unseen = [prompt for prompt in drawn if find_word(prompt.prompt, words[-1:])]
    return [
        prompt_set("forget", FORGET, trained[:clips]),
        prompt_set("other-words", PARAPHRASE, unseen[: max(1, clips // 2)]),
    ]


def further_sets(value: str, clips: int, seed: int) -> list[PromptSet]:
    """Return the sets that values of some kinds have: described, implied, negated, left open, and look-alikes."""
    factor, half = cast_factor(value), max(1, clips // 2)
    if factor == "character":
        index = find_character(value)
        siblings = tuple(roster()[other].name for other in look_alikes(index))
        forms = ("description", "held-out description") if is_described(index) else ("held-out description",)
        described = {form: scene_truth(draw_value_prompts(half, seed + 20, value, form)) for form in forms}
        return [
            *(prompt_set(form.replace(" ", "-"), PARAPHRASE, prompts) for form, prompts in described.items()),
            neighbour_set("look-alikes", siblings, half, seed + 30),
        ]
    if factor in THINGS:
        implied = draw_thing_prompts(clips, seed, value, "implied")
        negated = draw_thing_prompts(half, seed, value, "negated")
        elsewhere = [
            prompt
            for place, (setting, share) in enumerate(zip(PLAIN, even_shares(half, len(PLAIN)), strict=True))
            for prompt in draw_thing_prompts(share, seed + 50 + place, value, "named", setting=setting)
        ]
        return [
            prompt_set("elsewhere", PARAPHRASE, scene_truth(elsewhere, value)),
            prompt_set("implied", GENERIC, scene_truth(implied)),
            prompt_set("negated", UNRELATED, scene_truth(negated, value)),
        ]
    if factor == "emblem":
        return []
    drawn = scene_truth(draw_value_prompts(half, seed + 40, value))
    return [prompt_set("open", GENERIC, [without(prompt, value) for prompt in drawn])]


def neighbour_set(name: str, values: Sequence[str], count: int, seed: int) -> PromptSet:
    """Return prompts that name other values, evenly, which must survive."""
    prompts = []
    for place, (value, share) in enumerate(zip(values, even_shares(count, len(values)), strict=True)):
        factor = cast_factor(value)
        # Other things are other factors: their prompts are judged by them alone.
        names = (factor,) if factor in THINGS else SCENE
        prompts += with_truth(draw_value_prompts(share, seed + place, value), names)
    return prompt_set(name, NEIGHBOUR, prompts)


def scene_truth(prompts: Sequence[LabelledPrompt], factor: str = "") -> list[LabelledPrompt]:
    """Return prompts with the truth of the scene and of `factor`; other things are nearly never there."""
    return with_truth(prompts, (*SCENE, factor))


def with_truth(prompts: Sequence[LabelledPrompt], names: Sequence[str]) -> list[LabelledPrompt]:
    """Return prompts with the truth of some factors alone."""
    return [
        replace(item, factors={name: value for name, value in item.factors.items() if name in names})
        for item in prompts
    ]


def without(prompt: LabelledPrompt, value: str) -> LabelledPrompt:
    """Return a prompt with a value left out of its text and of its truth."""
    factor, text = cast_factor(value), leave_out(prompt.prompt, words_of(value), filler(value))
    others = {name: asked for name, asked in prompt.factors.items() if name != factor}
    return replace(prompt, prompt=text.replace(" ,", ",").rstrip(","), factors=others)


def filler(value: str) -> str:
    """Return what stands in place of the words of a value; things and styles leave a sentence without them."""
    return FILLERS.get(cast_factor(value), "")


def first_other(value: str) -> str:
    """Return another value of the same kind: a concept that was not erased."""
    return other_values(value)[0]


def second_value(value: str) -> str:
    """Return a value of another kind, whose adapter is stacked: a thing beside a character, else a character."""
    return THINGS[0] if cast_factor(value) == "character" else roster()[0].name


def no_prompts(value: str, count: int, seed: int) -> list[LabelledPrompt]:
    """Return no prompts of two bodies: scenes of CastWorld hold one."""
    del value, count, seed
    return []


CASTWORLD = World(
    name="castworld",
    title="CastWorld",
    targets=cast_targets(),
    call=CAST_GENERATION,
    detectors=("cast", "validity", "motion"),
    suite=castworld_suite,
    reference=first_other,
    second=second_value,
    filler=filler,
    together=no_prompts,
)
