"""Many concepts on one pipeline: the adapters of single builds, with neutral prompts that are recorded once."""

import pytest
import torch
from tiny import CALL, tiny_wan_pipeline

from unlearning_adapters import BuildConfig, Concept, ConceptError, Pair, build_adapter, build_adapters
from unlearning_adapters.building import inputs, shared_neutral

NEUTRAL = ("a dog runs on the street", "a small house in the river", "two women walk slowly")


def concept(word: str, other: str, neutral: tuple[str, ...] = NEUTRAL) -> Concept:
    pairs = [
        Pair(f"a {word} {thing} moves left", f"a {other} {thing} moves left") for thing in ("circle", "cat", "car")
    ]
    return Concept(name=word, pairs=tuple(pairs), neutral=neutral)


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


def test_prompts_that_only_some_concepts_have_are_recorded_together_and_change_rounding_alone(monkeypatch):
    pipe, recorded = tiny_wan_pipeline(), []
    own = [concept("red", "green", (*NEUTRAL, "a blue cup")), concept("blue", "white", ("a red cup", *NEUTRAL[:2]))]
    alone = [build_adapter(pipe, each, BuildConfig(), **settings()) for each in own]
    record = shared_neutral.record
    monkeypatch.setattr(
        shared_neutral, "record", lambda *args, **kwargs: (recorded.append(args[1]), record(*args, **kwargs))[1]
    )
    together = build_adapters(pipe, own, BuildConfig(), **settings())
    assert len(recorded) == 1 and len(recorded[0]) == len(set(recorded[0]))
    assert {*NEUTRAL, "a blue cup", "a red cup"} <= set(recorded[0])
    for one, other in zip(alone, together, strict=True):
        assert one.strength == pytest.approx(other.strength, rel=1e-3)
        for site in one.sites:
            read, write = one.directions[site].read, one.directions[site].write
            torch.testing.assert_close(other.directions[site].read, read, rtol=0, atol=1e-3 * float(read.norm()))
            torch.testing.assert_close(other.directions[site].write, write, rtol=0, atol=1e-5 * float(write.norm()))


def test_the_feeds_of_the_sites_are_found_once(monkeypatch):
    calls = []
    find = inputs.find_shared_inputs
    monkeypatch.setattr(
        inputs, "find_shared_inputs", lambda *args, **kwargs: (calls.append(1), find(*args, **kwargs))[1]
    )
    build_adapters(tiny_wan_pipeline(), [concept("red", "green"), concept("blue", "white")], **settings())
    assert len(calls) == 1


def test_the_moment_of_the_neutral_prompts_is_decomposed_once_for_each_list_of_them(monkeypatch):
    pipe, decomposed, eigh = tiny_wan_pipeline(), [], torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda matrix: (decomposed.append(len(matrix)), eigh(matrix))[1])
    groups = len({id(each) for each in build_adapter(pipe, concept("red", "green"), **settings()).directions.values()})
    assert len(decomposed) == groups > 0
    build_adapters(pipe, [concept("red", "green"), concept("blue", "white"), concept("black", "grey")], **settings())
    assert len(decomposed) == 2 * groups
    build_adapters(pipe, [concept("red", "green"), concept("blue", "white", NEUTRAL[:2])], **settings())
    assert len(decomposed) == 4 * groups


def test_an_argument_of_another_type_is_refused_before_anything_runs():
    with pytest.raises(ConceptError, match="Expected entry 2 of the concepts to be a Concept"):
        build_adapters(tiny_wan_pipeline(), [concept("red", "green"), "blue"], **settings())  # type: ignore[list-item]
    assert build_adapters(tiny_wan_pipeline(), [], **settings()) == []


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
        build_adapter(pipe, concept("red", "green"), BuildConfig(seed=1), **settings())  # the noise does not matter
        build_adapter(pipe, concept("red", "green"), BuildConfig(batch_size=2), **settings())
        build_adapter(pipe, concept("red", "green"), BuildConfig(seed=0), **settings())
    assert len(recorded) == 4


def test_where_the_noise_matters_whole_lists_are_shared(monkeypatch):
    pipe, recorded = tiny_wan_pipeline(), []
    record = shared_neutral.record
    monkeypatch.setattr(
        shared_neutral, "record", lambda *args, **kwargs: (recorded.append(args[1]), record(*args, **kwargs))[1]
    )
    config = BuildConfig(sites="*.blocks.1.attn1.to_out.0", steps=1)
    others = [concept("red", "green"), concept("blue", "white"), concept("blue", "white", NEUTRAL[:2])]
    given = {"progress": False, "call_kwargs": CALL}
    alone = [build_adapter(pipe, each, config, **given) for each in others]
    assert len(recorded) == 3
    together = build_adapters(pipe, others, config, **given)
    assert len(recorded) == 5
    for one, other in zip(alone, together, strict=True):
        assert all(torch.equal(one.directions[site].read, other.directions[site].read) for site in one.sites)
