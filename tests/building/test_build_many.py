"""Many concepts on one pipeline: the adapters of single builds, with neutral prompts that are recorded once."""

import torch
from tiny import CALL, tiny_wan_pipeline

from unlearning_adapters import BuildConfig, Concept, Pair, build_adapter, build_adapters
from unlearning_adapters.building import shared_neutral

NEUTRAL = ("a dog runs on the street", "a small house in the river", "two women walk slowly")


def concept(word: str, other: str) -> Concept:
    pairs = [
        Pair(f"a {word} {thing} moves left", f"a {other} {thing} moves left") for thing in ("circle", "cat", "car")
    ]
    return Concept(name=word, pairs=tuple(pairs), neutral=NEUTRAL)


def settings():
    return {"progress": False, "call_kwargs": {"max_sequence_length": CALL["max_sequence_length"]}}


def test_many_builds_are_the_single_builds_bit_for_bit_and_share_the_neutral_prompts(monkeypatch):
    pipe, recorded = tiny_wan_pipeline(), []
    concepts = [concept("red", "green"), concept("blue", "white"), concept("black", "grey")]
    alone = [build_adapter(pipe, each, BuildConfig(), **settings()) for each in concepts]
    record = shared_neutral.record

    def counting(pipe, prompts, *args, **kwargs):
        recorded.append(list(prompts))
        return record(pipe, prompts, *args, **kwargs)

    monkeypatch.setattr(shared_neutral, "record", counting)
    together = build_adapters(pipe, concepts, BuildConfig(), **settings())
    assert len(recorded) == 1 and set(NEUTRAL) <= set(recorded[0])
    for one, other in zip(alone, together, strict=True):
        assert one.info == other.info and one.sites == other.sites
        for site in one.sites:
            assert torch.equal(one.directions[site].read, other.directions[site].read)
            assert torch.equal(one.directions[site].write, other.directions[site].write)
            assert torch.equal(one.lora_B[site], other.lora_B[site])
    assert not torch.equal(*(each.directions[alone[0].sites[0]].read for each in together[:2]))


def test_other_settings_or_prompts_are_recorded_anew(monkeypatch):
    pipe, recorded = tiny_wan_pipeline(), []
    record = shared_neutral.record
    monkeypatch.setattr(
        shared_neutral, "record", lambda *args, **kwargs: (recorded.append(args[1]), record(*args, **kwargs))[1]
    )
    build_adapter(pipe, concept("red", "green"), **settings())
    build_adapter(pipe, concept("red", "green"), **settings())
    assert len(recorded) == 2, "single builds share nothing"
    with shared_neutral.shared_neutral():
        build_adapter(pipe, concept("red", "green"), BuildConfig(seed=0), **settings())
        build_adapter(pipe, concept("red", "green"), BuildConfig(seed=1), **settings())
        build_adapter(pipe, concept("red", "green"), BuildConfig(seed=0), **settings())
    assert len(recorded) == 4
