"""A tiny Wan in which a word is planted, the concept that names it, and what a build must find: known exactly."""

from __future__ import annotations

import tiny
import torch
from tiny import KEY
from torch import Tensor

from unlearning_adapters.adapter.adapter import UnlearningAdapter
from unlearning_adapters.building.build import build_adapter
from unlearning_adapters.concepts.concept import Concept
from unlearning_adapters.concepts.pair import Pair
from unlearning_adapters.config import BuildConfig
from unlearning_adapters.runtime.joint.joint_edit import apply_edit, stack_directions

SCENES = (("circle", "left"), ("dog", "right"), ("car", "up"), ("cross", "down"), ("tree", "left"))


NEUTRAL = (
    "a dog moves",
    "a green car",
    "the house in a street",
    "a green dog in the house",
    "a car moves on the street",
)


CONCEPT = Concept(
    "no-red",
    tuple(Pair(f"a red {thing} moves {way}", f"a blue {thing} moves {way}") for thing, way in SCENES),
    neutral=NEUTRAL,
)


def planted_pipeline(**kind: int):
    """A tiny Wan whose text stream is a sum of words: "red" differs from "blue" by one known vector, everywhere."""
    pipe = tiny.tiny_wan_pipeline(**kind)
    with torch.no_grad():
        for block in pipe.text_encoder.encoder.block:
            block.layer[0].SelfAttention.o.weight.zero_()  # no word hears of another
            block.layer[1].DenseReluDense.wo.weight.zero_()
        for name in ("transformer", "transformer_2"):
            if getattr(pipe, name) is not None:
                getattr(pipe, name).condition_embedder.text_embedder.act_1 = torch.nn.Identity()
    return pipe


def word(pipe, text: str, component: str = "transformer") -> Tensor:
    """What the sites read for one word, from the weights."""
    (token,) = pipe.tokenizer(text, add_special_tokens=False).input_ids
    with torch.no_grad():
        embedding = pipe.text_encoder.encoder.final_layer_norm(pipe.text_encoder.shared.weight[token])
        return getattr(pipe, component).condition_embedder.text_embedder(embedding[None])[0]


def edited(adapter: UnlearningAdapter, rows: Tensor, site: str = KEY, strength: float = 1.0) -> Tensor:
    return apply_edit(rows, stack_directions([adapter.directions[site]], [strength]))


def build(pipe, concept: Concept = CONCEPT, **settings) -> UnlearningAdapter:
    return build_adapter(pipe, concept, BuildConfig(**settings), progress=False)
