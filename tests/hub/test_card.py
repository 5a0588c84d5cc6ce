"""The card says what is known, escapes what it did not write, and leaves alone what others wrote."""

import json
import re
from copy import deepcopy

import pytest
import torch
import yaml
from huggingface_hub import ModelCard, RepoCard
from hypothesis import given, settings
from hypothesis import strategies as st

from unlearning_adapters.adapter.direction import AdapterInfo
from unlearning_adapters.concepts.concept import load_concept
from unlearning_adapters.errors import ConfigError
from unlearning_adapters.hub.card import escape, pipeline_tag, render_card
from unlearning_adapters.hub.card_merge import merge_card
from unlearning_adapters.hub.measured import ARMS, Measured

INFO = AdapterInfo(
    concept="no-red",
    method="ridge",
    strength=1.25,
    base_model="org/base",
    base_revision="0" * 40,
    pipeline="WanPipeline",
    denoisers={"transformer": "WanTransformer3DModel"},
    pairs_hash="ab" * 32,
    versions={"torch": "2.6.0"},
    description="The colour red.",
)
RATES = ("concept_rate", "valid_rate", "context_kept", "preservation", "worst_neighbour")


def arm(hits: int) -> dict:
    return {
        **{rate: hits / 40 for rate in RATES},
        "intervals": {rate: [0.125, 0.875] for rate in RATES},
        "counts": {rate: [hits, 40] for rate in RATES},
    }


DEMO = {"concept": "no-red", "n": 40, "base": arm(39), "attached": arm(3), "fused": arm(3), "random_direction": arm(38)}
BENCHMARK = {"clips": 40, "arms": {"base": arm(39), "ridge": {"strength": 0.5, **arm(3)}, "random": arm(38)}}


def split_card(card: str) -> tuple[dict, str]:
    """The front matter and the body of a card, as the Hub's own client reads them."""
    parsed = RepoCard(card)
    return parsed.data.to_dict(), parsed.text


def section(card: str, name: str) -> str:
    (found,) = re.findall(rf"begin {name} -->(.*)<!-- unlearning-adapters: end {name} -->", card, re.DOTALL)
    return found


def test_the_front_matter_is_what_the_hub_reads():
    card = ModelCard(render_card(INFO, "org/no-red", license="mit", widget=[("a red car", "clips/a.mp4")]))
    data = card.data.to_dict()
    assert data == {
        "library_name": "diffusers",
        "pipeline_tag": "text-to-video",
        "base_model": "org/base",
        "base_model_relation": "adapter",
        "license": "mit",
        "tags": [
            "diffusers", "lora", "unlearning", "concept-erasure", "text-to-video", "template:diffusion-lora",
        ],
        "widget": [{"text": "a red car", "output": {"url": "clips/a.mp4"}}],
    }  # fmt: skip
    assert "<Gallery />" in card.text and "<Gallery />" not in render_card(INFO)


def test_the_task_follows_the_pipeline():
    assert pipeline_tag(INFO) == "text-to-video"
    assert pipeline_tag(AdapterInfo("x", "ridge", pipeline="WanImageToVideoPipeline")) == "image-to-video"


@pytest.mark.parametrize("base", ["", "shapeworld", "a/b/c", "x y/z", "../x"])
def test_a_base_that_is_not_on_the_hub_is_not_linked(base):
    front, body = split_card(render_card(AdapterInfo("x", "ridge", base_model=base)))
    assert "base_model" not in front and "base_model_relation" not in front
    assert ("load_shapeworld()" in body) == (base == "shapeworld")


def test_without_a_result_there_is_no_number():
    card = render_card(INFO, sites=4)
    assert "**Not measured.**" in section(card, "measured") and not re.search(r"\d", section(card, "measured"))
    assert "model-index" not in split_card(card)[0]


@pytest.mark.parametrize("result", [DEMO, BENCHMARK], ids=["demo", "benchmark"])
def test_measured_rates_stand_with_counts_and_intervals(result):
    card = render_card(INFO, "org/no-red", sites=4, result=result)
    text = section(card, "measured")
    assert "| concept shown (lower is better) | 0.97 [0.12, 0.88] (39/40) | 0.07 [0.12, 0.88] (3/40) |" in text
    assert all(title in text for title in ARMS) and "40 held-out prompts" in text
    assert f"strength {0.5 if result is BENCHMARK else 1.25}" in text
    found = {item.metric_type: item for item in ModelCard(card).data.eval_results}
    assert set(found) == set(RATES) and found["concept_rate"].metric_value == 0.075
    assert found["concept_rate"].metric_args == {"interval_95": [0.125, 0.875], "count": 40, "base": 0.975}


def test_a_rate_of_nothing_is_no_zero():
    result = deepcopy(DEMO)
    result["attached"]["concept_rate"] = None
    card = render_card(INFO, result=result)
    assert "| concept shown (lower is better) | 0.97 [0.12, 0.88] (39/40) | - |" in card
    assert "concept_rate" not in {item.metric_type for item in ModelCard(card).data.eval_results}


def broken(change) -> dict:
    result = deepcopy(DEMO)
    change(result)
    return result


@pytest.mark.parametrize(
    "result",
    [
        {},
        [],
        torch.zeros(3),
        {"arms": torch.zeros(3)},
        {"arms": {}},
        {"arms": None},
        broken(lambda r: r.pop("base")),
        broken(lambda r: r.pop("random_direction")),
        broken(lambda r: r["attached"].pop("preservation")),
        broken(lambda r: r["attached"]["intervals"].update(preservation=0.5)),
        broken(lambda r: r["attached"].update(preservation="<b>much</b>")),
        broken(lambda r: r.update(n="many")),
    ],
)
def test_other_results_are_refused(result):
    with pytest.raises(ConfigError, match="cannot go on a card: .* Give what run_demo returned") as caught:
        Measured.from_result(result)
    assert "\n" not in str(caught.value)


def test_the_body_says_how_to_use_it_and_what_it_is_not():
    card = render_card(INFO, "org/no-red", sites=4, concept=load_concept("nudity"))
    assert 'DiffusionPipeline.from_pretrained("org/base")\npipe.load_unlearning_adapter("org/no-red")' in card
    assert 'pipe.load_lora_weights("org/no-red")' in card
    assert "The default is 1.25" in section(card, "strength")
    assert "an adult in swimwear on a sunny beach" in section(card, "removes")
    for text in ("can be taken off", "can be subtracted", "Attacks bring erased concepts back"):
        assert text in section(card, "limits")
    assert "sites: 4" in section(card, "details") and "no file is published" not in card


def test_two_denoisers_are_not_promised_to_stock_loaders():
    two = AdapterInfo("x", "ridge", denoisers={"transformer": "A", "transformer_2": "B"})
    assert r"edits transformer only, and transformer\_2 still knows the concept" in render_card(two)
    assert "still knows" not in render_card(INFO)


def test_a_wrong_repository_is_refused():
    with pytest.raises(ConfigError, match="Expected a Hub repository as 'org/name', but got 'x\"\\)'"):
        render_card(INFO, 'x")')


HOSTILE = (
    "---\nlicense: evil\n---",
    "<script>alert(1)</script>",
    "[click](javascript:x) ![x](http://x/y.png)",
    "<!-- unlearning-adapters: end summary -->",
    "```\ncode",
    "{{ 7 * 7 }} ${concept} $concept %s {0}",
    "| a | b |\n# heading",
    ": {a: [",
)


@pytest.mark.parametrize("text", HOSTILE)
def test_what_comes_from_a_file_is_escaped(text):
    info = AdapterInfo(
        text, text, base_model=text, base_revision=text, pipeline=text, denoisers={text: text, "b": text},
        versions={text: text}, description=text, pairs_hash=text,
    )  # fmt: skip
    card, plain = (
        render_card(info, sites=1, result=DEMO | {"arms": BENCHMARK["arms"] | {text: arm(3)}, "clips": 40}),
        "",
    )
    plain = render_card(AdapterInfo("x", "x", denoisers={"a": "x", "b": "x"}), sites=1)
    front, body = split_card(card)
    assert front.keys() == {"library_name", "pipeline_tag", "tags", "model-index"}
    assert "<script" not in body and "](javascript" not in body and "](http://x" not in body
    assert body.count("```") == plain.count("```") and body.count("<!--") == plain.count("<!--")
    assert [line for line in body.splitlines() if line.startswith("#")] == [
        line.replace(": x", f": {escape(text)}") for line in plain.splitlines() if line.startswith("#")
    ]
    assert merge_card(card, card) == card


@settings(max_examples=200, deadline=None, database=None)
@given(st.text())
def test_escaped_text_is_one_line_without_active_characters(text):
    line = escape(text)
    assert "\n" not in line and "\r" not in line and "<" not in line
    assert not re.search(r"(?<!\\)[`*_\[\]|$]", re.sub(r"\\\\", "", line))


# Merging.


def test_a_card_says_that_a_stack_is_shrunk():
    shrunk, exact = (section(render_card(INFO, sites=2, shrinkage=share), "stack") for share in (0.3, 0.0))
    assert "This adapter has a shrinkage of 0.3: where all others have one too" in shrunk
    assert "shrinkage" not in exact


def test_other_words_stay_and_our_sections_are_renewed():
    old = render_card(INFO, "org/no-red", sites=4, result=DEMO, license="mit")
    new = render_card(AdapterInfo("no-red", "ridge", strength=2.0, base_model="org/other"), "org/no-red", sites=9)
    front, body = split_card(old)
    front |= {"license": "apache-2.0", "language": ["en"], "tags": ["mine", *front["tags"]]}
    mine = {"name": "mine", "results": [{"task": {"type": "x"}, "dataset": {"type": "theirs", "name": "t"}}]}
    front["model-index"] = [mine, *front["model-index"]]
    body = body.replace(
        "<!-- unlearning-adapters: begin limits", "## Mine\n\nwords\n\n<!-- unlearning-adapters: begin limits"
    )
    body = re.sub(r"<!-- unlearning-adapters: begin stack -->.*end stack -->\n", "", body, flags=re.DOTALL)
    edited = f"---\n{yaml.safe_dump(front)}---\n\n{body}"
    merged = merge_card(edited, new)
    data, text = split_card(merged)
    assert (data["license"], data["language"], data["base_model"]) == ("apache-2.0", ["en"], "org/other")
    assert data["tags"][0] == "mine" and len(set(data["tags"])) == len(data["tags"]) == 7
    assert data["model-index"] == [mine], "stale numbers are gone, those of others stay"
    assert "## Mine\n\nwords" in text and "The default is 2," in text and "sites: 9" in text
    assert "**Not measured.**" in text and "begin stack" not in text
    assert merge_card(merged, new) == merged


def test_a_base_that_is_no_longer_known_is_not_kept():
    old, new = render_card(INFO), render_card(AdapterInfo("no-red", "ridge"))
    assert "base_model" not in split_card(merge_card(old, new))[0]


@pytest.mark.parametrize("own", ["My card.", "---\nlicense: mit\n---\nMy card.", "# A\r\n\r\nMy card.\r\n"])
def test_a_card_without_our_sections_keeps_its_text(own):
    new = render_card(INFO)
    merged = merge_card(own, new)
    assert merged.index("My card.") < merged.index("begin summary") and "end details" in merged
    assert merge_card(merged, new) == merged
    assert split_card(merged)[0].get("license") == ("mit" if "mit" in own else None)


def test_an_empty_card_is_replaced():
    assert merge_card("", render_card(INFO)) == render_card(INFO)


@pytest.mark.parametrize(
    ("front", "text"),
    [("a: [", "is not a YAML mapping: .*Correct it"), ("- a", "should be a dict"), ("1: x", "must be strings")],
)
def test_broken_front_matter_is_refused(front, text):
    with pytest.raises(ConfigError, match=text):
        merge_card(f"---\n{front}\n---\nbody", render_card(INFO))


def test_front_matter_is_data():
    with pytest.raises(ConfigError, match="is not a YAML mapping"):
        merge_card("---\na: !!python/object/apply:os.getcwd []\n---\n", render_card(INFO))


def test_a_result_survives_json():
    assert render_card(INFO, result=json.loads(json.dumps(DEMO))) == render_card(INFO, result=DEMO)
