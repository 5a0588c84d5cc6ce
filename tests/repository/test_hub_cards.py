"""hub_cards/ holds the card of every shipped concept, as `python hub_cards/render.py` writes them."""

import re
import runpy
from pathlib import Path

import pytest
import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.repocard_data import model_index_to_eval_results

from unlearning_adapters.concepts.concept import list_concepts

FOLDER = Path(__file__).resolve().parents[2] / "hub_cards"
RENDER = runpy.run_path(str(FOLDER / "render.py"))


def test_the_cards_are_those_that_are_rendered_now(tmp_path):
    RENDER["main"](tmp_path)
    assert {path.stem for path in FOLDER.glob("*.md")} == set(list_concepts())
    for path in sorted(tmp_path.iterdir()):
        shipped = (FOLDER / path.name).read_text(encoding="utf-8")
        assert shipped == path.read_text(encoding="utf-8"), "run `python hub_cards/render.py`"


@pytest.mark.parametrize("name", list_concepts())
def test_a_number_stands_only_where_something_was_measured(name):
    card = ModelCard((FOLDER / f"{name}.md").read_text(encoding="utf-8"))
    section = re.search(r"begin measured -->(.*)<!-- unlearning-adapters: end measured", card.text, re.DOTALL)[1]
    if name in RENDER["measured_results"]():
        assert card.data.eval_results and re.search(r"\d/\d", section) and "Not measured" not in section
    else:
        assert card.data.eval_results is None and "**Not measured.**" in section and not re.search(r"\d", section)


@pytest.mark.parametrize("name", list_concepts())
def test_the_hub_s_own_parsers_read_the_front_matter_and_write_it_back(name):
    card = ModelCard.load(FOLDER / f"{name}.md", ignore_metadata_errors=False)
    written = yaml.safe_load(card.content.split("---\n")[1])
    known = dict(written)
    index = known.pop("model-index", None)
    if index is not None:
        known["model_name"], known["eval_results"] = model_index_to_eval_results(index)
        assert all(isinstance(result, EvalResult) for result in known["eval_results"])
        assert {result.dataset_type for result in known["eval_results"]} == {"unlearning-adapters"}
    data = ModelCardData(**known, ignore_metadata_errors=False)
    assert data.to_dict() == card.data.to_dict() == written
    assert (data.library_name, data.pipeline_tag, data.license) == ("diffusers", "text-to-video", "apache-2.0")
    assert {"diffusers", "lora", "unlearning", "text-to-video", "template:diffusion-lora"} <= set(data.tags)
    real = not name.startswith("shapeworld-")
    assert (data.base_model, data.get("base_model_relation")) == ((RENDER["BASE"], "adapter") if real else (None, None))


@pytest.mark.parametrize("name", list_concepts())
def test_a_card_says_all_that_it_must(name):
    text = ModelCard.load(FOLDER / f"{name}.md").text
    for title in ("What it removes, and what it does not", "How well it works", "Strength", "How to load it"):
        assert f"## {title}\n" in text
    for title in ("How to stack it", "Limits", "Details"):
        assert f"## {title}\n" in text
    assert f'pipe.load_unlearning_adapter("your-name/no-{name}")' in text
    assert f'pipe.load_lora_weights("your-name/no-{name}")' in text
    for words in ("can be taken off", "can be subtracted", "Attacks bring erased concepts back"):
        assert words in text


def test_real_world_concepts_are_not_measured():
    assert all(name.startswith("shapeworld-") for name in RENDER["measured_results"]())
