"""Part "reads": what edits take from prompts, without a clip: names and descriptions, in one concept or in two.

It was used to choose how pairs are composed, so its characters and its prompts (the tuning seed) are not reported.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

import unlearning_adapters as ua
from unlearning_adapters.shapeworld.cast.roster import look_alikes, roster
from unlearning_adapters.shapeworld.world.prompts import LabelledPrompt

from .asked import TUNE, character_prompts, chosen
from .concepts import DESCRIPTIONS, NAMES, character_concepts, character_pairs, named_half, stand_ins_of
from .store import Cell, Store
from .watch import World, timed

CHARACTERS, PROMPTS, NEUTRAL = 6, 8, 120
MIXED = (NAMES[0], DESCRIPTIONS[0], NAMES[0], DESCRIPTIONS[1], NAMES[0])
# What stands for the character in the pairs of each of its concepts, and the number of these pairs.
VARIANTS: dict[str, tuple[tuple[Sequence[int], int], ...]] = {
    "names": ((NAMES, 5),),
    "descriptions": ((DESCRIPTIONS, 5),),
    "both in one concept": ((MIXED, 5),),
    "both in one concept of ten pairs": ((MIXED, 10),),
    "a concept each, stacked": ((NAMES, 5), (DESCRIPTIONS, 5)),
}


def run_reads(world: World, store: Store) -> None:
    """Measure what is missing; under a minute."""
    for name in VARIANTS:
        store.cell("reads", name, lambda: measure(world, name))  # noqa: B023


def measure(world: World, variant: str) -> Cell:
    """Return what a read takes, at the strength of its edit, from the token of each prompt that reads most.

    1 is the whole concept. Prompts name or describe the character, its look-alikes, or others.
    """
    everybody = frozenset(range(len(roster())))
    reported = chosen(everybody, 20, 20)
    erased = chosen(everybody - set(reported), CHARACTERS, 50)
    neutral, named = character_concepts(erased, neutral=NEUTRAL)[0].neutral, named_half(erased)
    taken: dict[str, list[float]] = {}
    strengths, times = [], dict[str, float]()
    concepts = [
        [
            ua.Concept(
                f"{roster()[index].name} {number}",
                character_pairs(index, stand_ins_of(index, named), count, forms=forms),
                neutral=neutral,
            )
            for number, (forms, count) in enumerate(VARIANTS[variant])
        ]
        for index in erased
    ]
    pairs = max(count for _, count in VARIANTS[variant])
    with timed(times, "build"):
        adapters = iter(
            ua.build_adapters(
                world.pipe,
                [one for each in concepts for one in each],
                ua.BuildConfig(pairs=pairs),
                progress=False,
                call_kwargs=world.build_arguments(),
            )
        )
    for index, each in zip(erased, concepts, strict=True):
        mine = [next(adapters) for _ in each]
        strengths += [one.strength for one in mine]
        for kind, prompts in asked_for(index).items():
            taken.setdefault(kind, []).extend(takes(mine, rows) for rows in rows_of(world, prompts))
    return {
        "taken": {
            kind: [round(float(np.quantile(values, q)), 3) for q in (0.1, 0.5, 0.9)] for kind, values in taken.items()
        },
        "strength": float(np.mean(strengths)),
        "build seconds": times["build"],
    }


def asked_for(index: int) -> dict[str, list[LabelledPrompt]]:
    """Return prompts of a character, by name and by descriptions, and of others by both."""
    others = [one for one in range(index % 16, len(roster()), 16) if one != index and one not in look_alikes(index)]
    forms = ("name", "held-out description")
    return {
        "by name": character_prompts(index, PROMPTS, seed=TUNE),
        "by description": character_prompts(index, PROMPTS, "description", TUNE),
        "by a held-out form of it": character_prompts(index, PROMPTS, "held-out description", TUNE),
        "look-alikes": [
            one for other in look_alikes(index) for f in forms for one in character_prompts(other, 2, f, TUNE)
        ],
        "others": [one for other in others for f in forms for one in character_prompts(other, 1, f, TUNE)],
    }


@torch.no_grad()
def rows_of(world: World, prompts: Sequence[LabelledPrompt]) -> list[Tensor]:
    """Return what text sites read of each prompt, without padding: (tokens, features)."""
    pipe, texts = world.pipe, [one.prompt for one in prompts]
    length = world.call["max_sequence_length"]
    states, _ = pipe.encode_prompt(texts, do_classifier_free_guidance=False, max_sequence_length=length)
    rows = pipe.transformer.condition_embedder.text_embedder(states)
    counts = [min(length, len(ids)) for ids in pipe.tokenizer(texts).input_ids]
    return [row[:count] for row, count in zip(rows, counts, strict=True)]


def takes(adapters: Sequence[ua.UnlearningAdapter], rows: Tensor) -> float:
    """Return the largest part that one of some edits takes from a token."""
    reads = [(one.strength, next(iter(one.directions.values())).read) for one in adapters]
    return max(float(strength * (rows @ read.T).norm(dim=1).max()) for strength, read in reads)
