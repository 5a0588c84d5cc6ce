"""What a build records: both sides of the pairs, the neutral prompts, and what guidance steers away from."""

from dataclasses import replace

import planted_pictures as planted
import pytest
import torch
from planted_pictures import concept
from planted_words import CONCEPT, NEUTRAL, planted_pipeline, word
from tiny import KEY

from unlearning_adapters.building.build import build_adapter
from unlearning_adapters.building.inputs import record_inputs
from unlearning_adapters.config import BuildConfig


@pytest.mark.parametrize("negative", [None, "a green cross"])
def test_the_prompts_of_guidance_are_told_from_the_neutral_ones(negative) -> None:
    call = {} if negative is None else {"negative_prompt": negative}
    inputs = record_inputs(planted_pipeline(), CONCEPT, BuildConfig(), progress=False, call_kwargs=call)
    expected = 1 if negative is None else 2
    assert inputs.guidance == (False,) * len(NEUTRAL) + (True,) * expected
    neutral = inputs.rows(0).neutral
    assert len(neutral.prompts) == len(NEUTRAL) and len(neutral.guidance) == expected


def test_a_neutral_prompt_that_is_the_negative_one_is_one_of_guidance() -> None:
    call = {"negative_prompt": NEUTRAL[1]}
    inputs = record_inputs(planted_pipeline(), CONCEPT, BuildConfig(), progress=False, call_kwargs=call)
    assert inputs.guidance == (False, True, False, False, False, True, True)
    alone = replace(CONCEPT, neutral=NEUTRAL[1:2])  # nothing is left that is neutral alone
    assert build_adapter(planted_pipeline(), alone, BuildConfig(), progress=False, call_kwargs=call).directions


def test_the_words_of_a_negative_prompt_are_moved_less_than_those_of_a_neutral_one() -> None:
    """With few neutral prompts and strong regularisation, so that something is left to be seen."""
    pipe, read = planted_pipeline(), {}
    for where, call in (("neutral", {}), ("negative", {"negative_prompt": "the house in a street"})):
        adapter = build_adapter(pipe, CONCEPT, BuildConfig(epsilon=0.1), progress=False, call_kwargs=call)
        read[where] = float((adapter.directions[KEY].read @ word(pipe, "street")).abs())
    assert 0 < read["negative"] < read["neutral"]


@pytest.mark.parametrize("many", [list, tuple])
def test_a_list_of_negative_prompts_is_protected_as_a_text_is(many) -> None:
    text, pipe = "the house in a street", planted_pipeline()
    reads = [
        build_adapter(pipe, CONCEPT, BuildConfig(epsilon=0.1), progress=False, call_kwargs={"negative_prompt": given})
        for given in (text, many([text]))
    ]
    assert torch.equal(*(adapter.directions[KEY].read for adapter in reads))


def test_negative_prompts_as_embeddings_are_said_to_be_unprotected() -> None:
    pipe = planted_pipeline()
    _, embeds = pipe.encode_prompt("", "the house in a street", True, 1, max_sequence_length=16)
    with pytest.warns(UserWarning, match=r"^`negative_prompt_embeds` is given as embeddings.* Give its text"):
        build_adapter(pipe, CONCEPT, progress=False, call_kwargs={"negative_prompt_embeds": embeds})


@pytest.mark.parametrize(("negative", "words"), [("a red house", ()), ("the Cross in a street", ("cross",))])
def test_a_negative_prompt_that_names_the_concept_is_not_protected(negative, words) -> None:
    """It often does, such as "nudity": protected, it would forbid the edit what the edit is for."""
    concept = replace(CONCEPT, words=words, pairs=CONCEPT.pairs[:3], neutral=("a dog moves", "the street"))
    pipe, call = planted_pipeline(), {"negative_prompt": negative}
    inputs = record_inputs(pipe, concept, BuildConfig(), progress=False, call_kwargs=call)
    assert inputs.guidance == (False, False, True)
    named = build_adapter(pipe, concept, BuildConfig(), progress=False, call_kwargs=call)
    plain = build_adapter(pipe, concept, BuildConfig(), progress=False)
    assert torch.equal(named.directions[KEY].read, plain.directions[KEY].read)


def test_pictures_have_no_prompt_of_guidance() -> None:
    pipe = planted.wan_pipeline()
    inputs = record_inputs(pipe, concept("wan"), BuildConfig(), progress=False)
    assert inputs.neutral is not None and not any(inputs.guidance)
    assert all(len(rows) for rows in inputs.rows(0).neutral.prompts)
    assert torch.cat(inputs.rows(0).neutral.prompts).isfinite().all()
