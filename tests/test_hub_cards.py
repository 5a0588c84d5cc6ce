"""hub_cards/ holds the card of every shipped concept, as `python hub_cards/render.py` writes them."""

import re
import runpy
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from unlearning_adapters.concepts import list_concepts

FOLDER = Path(__file__).resolve().parent.parent / "hub_cards"
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


def test_real_world_concepts_are_not_measured():
    assert all(name.startswith("shapeworld-") for name in RENDER["measured_results"]())
